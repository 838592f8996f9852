//! Latent spaces: how the latents that a diffusion model works with (and clients send) relate to those that the
//! autoencoder itself takes. The forms in which they come are told in [`crate::packing`]; a form says nothing about
//! scaling.
//!
//! | scaling | [`Normalisation::Scalar`], to the model | [`Normalisation::PerChannel`], to the model |
//! |---|---|---|
//! | [`Scaling::None`], [`Scaling::Declined`] | x | x |
//! | [`Scaling::Model`] | x / scaling_factor + shift_factor (the request's shift wins) | x · std / scaling_factor + mean |
//! | [`Scaling::Explicit`] | x / scale + shift | error: one factor cannot express this space |
//!
//! [`Normalisation::PerPatchElement`] is as `PerChannel`, with x · std + mean by element of a patch.
//!
//! The latents of a tiny model are already those of the diffusion model: [`Normalisation::Identity`] leaves them as
//! they are in every row but one. A client that sends [`Scaling::Declined`] has divided already, as the full autoencoder
//! needs it; where the family is known, that is undone: (x − shift) · scale. From the model, all of it in reverse:
//! (x − shift) · scale, (x − mean) · scaling_factor / std, and x / scale + shift where a division was undone.
//! The arithmetic is that of PyTorch on f32 tensors: each step is one f32 operation with the factor rounded to f32.

use remote_vae_wire::Scaling;
use serde::Serialize;

use crate::ModelError;
use crate::packing::{PATCH, Packing};

/// The latent space of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LatentSpace {
    /// Channels of the latents.
    pub channels: usize,
    /// Pixels per latent, both ways.
    pub spatial_factor: usize,
    /// How the diffusion model's latents become the autoencoder's.
    pub normalisation: Normalisation,
    /// The forms in which latents come besides `[batch, channels, height, width]`.
    pub packing: Packing,
}

/// How the diffusion model's latents relate to the autoencoder's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Normalisation {
    /// They are the same (tiny models).
    Identity {
        /// The factors of the full autoencoder that the model stands in for, where its family is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        family: Option<Factors>,
    },
    /// One factor, and perhaps a shift, for all.
    Scalar {
        /// The diffusion model's latents are this times the autoencoder's less the shift.
        scaling_factor: f64,
        /// The shift.
        shift_factor: Option<f64>,
    },
    /// A mean and a standard deviation per element of a 2×2 patch (FLUX.2's batch norm): element `c·4 + di·2 + dj` is
    /// that of channel `c` in the rows that leave `di`, and the columns that leave `dj`, when divided by two.
    PerPatchElement {
        /// Mean of each of the 4·channels elements.
        mean: Vec<f64>,
        /// Standard deviation of each element; none is zero.
        std: Vec<f64>,
    },
    /// A mean and a standard deviation per channel, and a factor.
    PerChannel {
        /// Mean of each channel of the autoencoder's latents.
        mean: Vec<f64>,
        /// Standard deviation of each channel; none is zero.
        std: Vec<f64>,
        /// The factor.
        scaling_factor: f64,
    },
}

/// Scalar factors of a family of latent spaces: the diffusion model's latents are `scaling_factor` times the full
/// autoencoder's less the shift.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Factors {
    /// Finite and not zero.
    pub scaling_factor: f64,
    /// None means zero.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift_factor: Option<f64>,
}

impl LatentSpace {
    /// Turns a client's latents `[batch, channels, height, width]` into the autoencoder's.
    ///
    /// # Errors
    /// [`ModelError::Shape`] for a wrong channel count or length, [`ModelError::Scaling`] for scaling that this space
    /// does not have or factors that are not finite or zero.
    pub fn to_model(
        &self,
        latents: &mut [f32],
        shape: [usize; 4],
        scaling: &Scaling,
    ) -> Result<(), ModelError> {
        self.check(latents.len(), shape)?;
        match self.transform(scaling)? {
            Transform::None => {}
            Transform::Scalar { scale, shift } => divide(latents, scale, shift),
            Transform::Undo { scale, shift } => multiply(latents, scale, shift),
            Transform::PerChannel { mean, std, scale } => {
                self.each_channel(latents, shape, |channel, x| {
                    *x = *x * std[channel] / scale + mean[channel]
                });
            }
            Transform::PerPatchElement { mean, std } => {
                self.each_patch_element(latents, shape, |element, x| *x = *x * std[element] + mean[element]);
            }
        }
        Ok(())
    }

    /// Turns the autoencoder's latents `[batch, channels, height, width]` into those that a client gets.
    ///
    /// # Errors
    /// As [`LatentSpace::to_model`].
    pub fn from_model(
        &self,
        latents: &mut [f32],
        shape: [usize; 4],
        scaling: &Scaling,
    ) -> Result<(), ModelError> {
        self.check(latents.len(), shape)?;
        match self.transform(scaling)? {
            Transform::None => {}
            Transform::Scalar { scale, shift } => multiply(latents, scale, shift),
            Transform::Undo { scale, shift } => divide(latents, scale, shift),
            Transform::PerChannel { mean, std, scale } => {
                self.each_channel(latents, shape, |channel, x| {
                    *x = (*x - mean[channel]) * scale / std[channel]
                });
            }
            Transform::PerPatchElement { mean, std } => {
                self.each_patch_element(latents, shape, |element, x| {
                    *x = (*x - mean[element]) / std[element]
                });
            }
        }
        Ok(())
    }

    fn each_channel(&self, latents: &mut [f32], shape: [usize; 4], each: impl Fn(usize, &mut f32)) {
        let plane = (shape[2] * shape[3]).max(1);
        for (index, plane) in latents.chunks_exact_mut(plane).enumerate() {
            plane.iter_mut().for_each(|x| each(index % self.channels, x));
        }
    }

    fn each_patch_element(&self, latents: &mut [f32], shape: [usize; 4], each: impl Fn(usize, &mut f32)) {
        let [_, _, height, width] = shape;
        for (index, row) in latents.chunks_exact_mut(width.max(1)).enumerate() {
            let first =
                index / height.max(1) % self.channels * PATCH * PATCH + index % height.max(1) % PATCH * PATCH;
            for (column, x) in row.iter_mut().enumerate() {
                each(first + column % PATCH, x);
            }
        }
    }

    pub(crate) fn check(&self, length: usize, shape: [usize; 4]) -> Result<(), ModelError> {
        if shape[1] != self.channels {
            let message =
                format!("this model has {} channels, got {} in shape {shape:?}", self.channels, shape[1]);
            return Err(shape_error(message));
        }
        let elements = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
        if elements != Some(length) {
            return Err(shape_error(format!("{length} values do not fit shape {shape:?}")));
        }
        Ok(())
    }

    fn transform(&self, scaling: &Scaling) -> Result<Transform, ModelError> {
        let (scale, shift) = match (&self.normalisation, scaling) {
            (Normalisation::Identity { family: Some(factors) }, Scaling::Declined) => {
                let scale = factor("scaling_factor", factors.scaling_factor)?;
                return Ok(Transform::Undo { scale, shift: finite_shift(factors.shift_factor)? });
            }
            (Normalisation::Identity { .. }, _) | (_, Scaling::None | Scaling::Declined) => {
                return Ok(Transform::None);
            }
            (Normalisation::PerPatchElement { mean, std }, Scaling::Model { shift: None }) => {
                return Ok(Transform::PerPatchElement { mean: single(mean), std: single(std) });
            }
            (Normalisation::PerChannel { mean, std, scaling_factor }, Scaling::Model { shift: None }) => {
                let scale = factor("scaling_factor", *scaling_factor)?;
                return Ok(Transform::PerChannel { mean: single(mean), std: single(std), scale });
            }
            (Normalisation::PerChannel { .. }, _) => {
                return Err(inexpressible(format!("for each of its {} channels", self.channels)));
            }
            (Normalisation::PerPatchElement { .. }, _) => {
                let elements = self.token_size();
                return Err(inexpressible(format!("for each of the {elements} elements of a 2x2 patch")));
            }
            (Normalisation::Scalar { scaling_factor, shift_factor }, Scaling::Model { shift }) => {
                (*scaling_factor, shift.or(*shift_factor))
            }
            (Normalisation::Scalar { .. }, Scaling::Explicit { scale, shift }) => (*scale, *shift),
        };
        let shift = finite_shift(shift)?;
        Ok(Transform::Scalar { scale: factor("scaling_factor", scale)?, shift })
    }
}

enum Transform {
    None,
    Scalar {
        scale: f32,
        shift: Option<f32>,
    },
    /// The reverse of `Scalar`: undoes what the client has done.
    Undo {
        scale: f32,
        shift: Option<f32>,
    },
    PerChannel {
        mean: Vec<f32>,
        std: Vec<f32>,
        scale: f32,
    },
    PerPatchElement {
        mean: Vec<f32>,
        std: Vec<f32>,
    },
}

fn single(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

fn inexpressible(each: String) -> ModelError {
    ModelError::Scaling(format!(
        "this model's latent space has a mean and a standard deviation {each}, which one `scaling_factor` and \
         `shift_factor` cannot express; send `do_scaling=True` alone, or neither when the latents are already the \
         autoencoder's"
    ))
}

fn divide(latents: &mut [f32], scale: f32, shift: Option<f32>) {
    match shift {
        None => latents.iter_mut().for_each(|x| *x /= scale),
        Some(shift) => latents.iter_mut().for_each(|x| *x = *x / scale + shift),
    }
}

fn multiply(latents: &mut [f32], scale: f32, shift: Option<f32>) {
    match shift {
        None => latents.iter_mut().for_each(|x| *x *= scale),
        Some(shift) => latents.iter_mut().for_each(|x| *x = (*x - shift) * scale),
    }
}

fn finite_shift(shift: Option<f64>) -> Result<Option<f32>, ModelError> {
    match shift {
        Some(shift) if !(shift as f32).is_finite() => {
            Err(ModelError::Scaling(format!("`shift_factor` is {shift}, expected a finite number")))
        }
        other => Ok(other.map(|shift| shift as f32)),
    }
}

fn factor(name: &str, value: f64) -> Result<f32, ModelError> {
    let single = value as f32;
    if single.is_finite() && single != 0.0 {
        return Ok(single);
    }
    Err(ModelError::Scaling(format!("`{name}` is {value}, expected a finite number other than 0")))
}

pub(crate) fn shape_error(message: String) -> ModelError {
    ModelError::Shape { place: "latents".into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(channels: usize, normalisation: Normalisation) -> LatentSpace {
        LatentSpace { channels, spatial_factor: 8, normalisation, packing: Packing::Patches2x2 }
    }

    fn flux() -> LatentSpace {
        space(16, Normalisation::Scalar { scaling_factor: 0.3611, shift_factor: Some(0.1159) })
    }

    fn to_model(space: &LatentSpace, scaling: Scaling) -> f32 {
        let mut latents = vec![2.0; space.channels];
        space.to_model(&mut latents, [1, space.channels, 1, 1], &scaling).unwrap();
        latents[0]
    }

    #[test]
    fn truth_table_of_a_scalar_space() {
        let flux = flux();
        assert_eq!(to_model(&flux, Scaling::None), 2.0);
        assert_eq!(to_model(&flux, Scaling::Declined), 2.0);
        assert_eq!(to_model(&flux, Scaling::Model { shift: None }), 2.0 / 0.3611 + 0.1159);
        assert_eq!(to_model(&flux, Scaling::Model { shift: Some(1.0) }), 2.0 / 0.3611 + 1.0);
        assert_eq!(to_model(&flux, Scaling::Explicit { scale: 0.5, shift: None }), 4.0);
        assert_eq!(to_model(&flux, Scaling::Explicit { scale: 0.5, shift: Some(0.25) }), 4.25);
        let sd = space(4, Normalisation::Scalar { scaling_factor: 0.18215, shift_factor: None });
        assert_eq!(to_model(&sd, Scaling::Model { shift: None }), 2.0 / 0.18215);
    }

    #[test]
    fn tiny_latents_are_never_changed() {
        let tiny = space(4, Normalisation::Identity { family: None });
        for scaling in [
            Scaling::None,
            Scaling::Declined,
            Scaling::Model { shift: Some(3.0) },
            Scaling::Explicit { scale: 0.18215, shift: Some(1.0) },
        ] {
            let mut latents = [2.0; 4];
            tiny.to_model(&mut latents, [1, 4, 1, 1], &scaling).unwrap();
            tiny.from_model(&mut latents, [1, 4, 1, 1], &scaling).unwrap();
            assert_eq!(latents, [2.0; 4]);
        }
    }

    #[test]
    fn a_division_is_undone_where_the_family_is_known() {
        for (scaling_factor, shift_factor) in [(0.5, None), (0.5, Some(0.25))] {
            let factors = Factors { scaling_factor, shift_factor };
            let tiny = space(4, Normalisation::Identity { family: Some(factors) });
            let full = space(4, Normalisation::Scalar { scaling_factor, shift_factor });
            let mut latents = [2.0; 4];
            // What a client does before it sends `do_scaling=False`, and after it gets latents back.
            full.to_model(&mut latents, [1, 4, 1, 1], &Scaling::Model { shift: None }).unwrap();
            let divided = latents;
            tiny.to_model(&mut latents, [1, 4, 1, 1], &Scaling::Declined).unwrap();
            assert_eq!(latents, [2.0; 4]);
            tiny.from_model(&mut latents, [1, 4, 1, 1], &Scaling::Declined).unwrap();
            assert_eq!(latents, divided);
            for scaling in
                [Scaling::None, Scaling::Model { shift: None }, Scaling::Explicit { scale: 0.5, shift: None }]
            {
                assert_eq!(to_model(&tiny, scaling), 2.0, "{scaling:?}");
            }
        }
    }

    #[test]
    fn per_channel_space() {
        let normalisation =
            Normalisation::PerChannel { mean: vec![-1.0, 2.0], std: vec![4.0, 8.0], scaling_factor: 0.5 };
        let space = space(2, normalisation);
        let shape = [2, 2, 1, 2];
        let mut latents: Vec<f32> = (1..=8).map(|value| value as f32).collect();
        space.to_model(&mut latents, shape, &Scaling::Model { shift: None }).unwrap();
        assert_eq!(latents, [7.0, 15.0, 50.0, 66.0, 39.0, 47.0, 114.0, 130.0]);
        space.from_model(&mut latents, shape, &Scaling::Model { shift: None }).unwrap();
        assert_eq!(latents, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        space.to_model(&mut latents, shape, &Scaling::None).unwrap();
        space.to_model(&mut latents, shape, &Scaling::Declined).unwrap();
        assert_eq!(latents[0], 1.0);
        let error = space.to_model(&mut latents, shape, &Scaling::Explicit { scale: 0.5, shift: None });
        assert!(error.unwrap_err().to_string().contains("mean and a standard deviation for each of its 2"));
    }

    #[test]
    fn per_patch_element_space() {
        let mean: Vec<f64> = (0..8).map(f64::from).collect();
        let std: Vec<f64> = (0..8).map(|element| f64::from(1 << element)).collect();
        let space = space(2, Normalisation::PerPatchElement { mean, std });
        // Three rows and columns: the patch that is cut off counts from its own first row and column.
        let shape = [2, 2, 3, 3];
        let mut latents = vec![1.0; 36];
        space.to_model(&mut latents, shape, &Scaling::Model { shift: None }).unwrap();
        assert_eq!(latents[..9], [1.0, 3.0, 1.0, 6.0, 11.0, 6.0, 1.0, 3.0, 1.0]);
        assert_eq!(latents[9..12], [20.0, 37.0, 20.0]);
        assert_eq!(latents[..18], latents[18..]);
        space.from_model(&mut latents, shape, &Scaling::Model { shift: None }).unwrap();
        assert_eq!(latents, [1.0; 36]);
        let error = space.to_model(&mut latents, shape, &Scaling::Explicit { scale: 0.5, shift: None });
        assert!(error.unwrap_err().to_string().contains("8 elements of a 2x2 patch"));
    }

    #[test]
    fn from_model_undoes_to_model() {
        let scaling = Scaling::Explicit { scale: 0.5, shift: Some(0.25) };
        let mut latents = vec![3.0; 16];
        flux().to_model(&mut latents, [1, 16, 1, 1], &scaling).unwrap();
        flux().from_model(&mut latents, [1, 16, 1, 1], &scaling).unwrap();
        assert_eq!(latents, vec![3.0; 16]);
    }

    #[test]
    fn bad_factors_and_shapes_are_refused() {
        let mut latents = vec![0.0; 16];
        for scale in [0.0, f64::NAN, f64::INFINITY, 1e300, 1e-300] {
            let scaling = Scaling::Explicit { scale, shift: None };
            assert!(flux().to_model(&mut latents, [1, 16, 1, 1], &scaling).is_err(), "{scale}");
        }
        let scaling = Scaling::Explicit { scale: 1.0, shift: Some(f64::NAN) };
        assert!(flux().to_model(&mut latents, [1, 16, 1, 1], &scaling).is_err());
        let error = flux().to_model(&mut latents, [1, 4, 2, 2], &Scaling::None).unwrap_err();
        assert!(error.to_string().contains("16 channels, got 4"), "{error}");
        assert!(flux().to_model(&mut latents, [usize::MAX, 16, 2, 1], &Scaling::None).is_err());
    }
}
