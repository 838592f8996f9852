//! Previews: one pixel for each latent, `rgb = latents · factors + bias` in −1 to 1, without running any model.
//!
//! The factors belong to a latent space and take the latents that its diffusion model works with.
//!
//! | space | factors from |
//! |---|---|
//! | Stable Diffusion 1 and 2, XL, FLUX.1, the embedded model | `preview/fit.py`: least squares over encoded photographs |
//! | Stable Diffusion 3, FLUX.2, HunyuanVideo, Wan 2.1 (and Qwen-Image), Wan 2.2 5B | the numbers of ComfyUI's `comfy/latent_formats.py` |
//! | Playground v2.5 | those of Stable Diffusion XL, whose autoencoder it has |

// A factor may come near some constant by chance.
#[allow(clippy::approx_constant)]
mod fitted;
mod published;

use remote_vae_wire::Scaling;

use crate::ModelError;
use crate::latent_space::{Factors, LatentSpace, Normalisation};

/// Colours of a preview.
const COLOURS: usize = 3;

/// What turns a diffusion model's latents into colours.
#[derive(Debug, PartialEq)]
struct PreviewFactors {
    /// Red, green and blue for each channel of the latents.
    factors: &'static [[f32; COLOURS]],
    /// Added to each colour.
    bias: [f32; COLOURS],
}

const SD: Factors = Factors { scaling_factor: 0.18215, shift_factor: None };
const SDXL: Factors = Factors { scaling_factor: 0.13025, shift_factor: None };
const EMBEDDED: Factors = Factors { scaling_factor: 0.78063, shift_factor: None };
const SD3: Factors = Factors { scaling_factor: 1.5305, shift_factor: Some(0.0609) };
const FLUX: Factors = Factors { scaling_factor: 0.3611, shift_factor: Some(0.1159) };
const HUNYUAN_VIDEO: Factors = Factors { scaling_factor: 0.476986, shift_factor: None };

/// Spaces with one factor for all channels, which with the number of channels tells them apart.
const SCALAR_SPACES: [(usize, Factors, &PreviewFactors); 6] = [
    (4, SD, &fitted::SD),
    (4, SDXL, &fitted::SDXL),
    (4, EMBEDDED, &fitted::EMBEDDED),
    (16, SD3, &published::SD3),
    (16, FLUX, &fitted::FLUX),
    (16, HUNYUAN_VIDEO, &published::HUNYUAN_VIDEO),
];

/// Channels of FLUX.2's latents, which no other space of pictures has.
const FLUX2_CHANNELS: usize = 32;
/// Spaces with a mean for each channel, by channels and the mean of the first.
const CHANNEL_SPACES: [(usize, f64, &PreviewFactors, Basis); 3] = [
    (4, PLAYGROUND_MEAN, &fitted::SDXL, Basis::Scaled(SDXL.scaling_factor as f32)),
    (16, -0.7571, &published::WAN21, Basis::Own),
    (48, -0.2289, &published::WAN22, Basis::Own),
];
const PLAYGROUND_MEAN: f64 = -1.6574;

/// Which latents the factors take.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Basis {
    /// As the space's own normalisation gives them.
    Own,
    /// The autoencoder's times this.
    Scaled(f32),
}

impl LatentSpace {
    /// Colours of a client's latents `[batch, channels, height, width]`: `[batch, 3, height, width]`, nominally in −1 to
    /// 1, not clamped. A clip comes with frames and height in one.
    ///
    /// # Errors
    /// [`ModelError::Preview`] for a space without factors, and the errors of [`LatentSpace::to_model`].
    pub fn preview(
        &self,
        mut latents: Vec<f32>,
        shape: [usize; 4],
        scaling: &Scaling,
    ) -> Result<Vec<f32>, ModelError> {
        let (factors, basis) = self.preview_factors()?;
        self.to_model(&mut latents, shape, scaling)?;
        match basis {
            Basis::Own => self.from_model(&mut latents, shape, &Scaling::Model { shift: None })?,
            Basis::Scaled(scale) => latents.iter_mut().for_each(|x| *x *= scale),
        }
        Ok(factors.apply(&latents, shape))
    }

    /// Whether [`LatentSpace::preview`] can work in this space.
    ///
    /// # Errors
    /// [`ModelError::Preview`] if no factors are known for it.
    pub fn check_preview(&self) -> Result<(), ModelError> {
        self.preview_factors().map(|_| ())
    }

    fn preview_factors(&self) -> Result<(&'static PreviewFactors, Basis), ModelError> {
        let by_scalar = |wanted: Factors| {
            let known = SCALAR_SPACES
                .iter()
                .find(|(channels, factors, _)| *channels == self.channels && *factors == wanted);
            known.map(|(_, _, factors)| (*factors, Basis::Own))
        };
        let found = match &self.normalisation {
            Normalisation::Identity { family: Some(factors) } => by_scalar(*factors),
            Normalisation::Scalar { scaling_factor, shift_factor } => by_scalar(Factors {
                scaling_factor: *scaling_factor,
                shift_factor: shift_factor.filter(|&x| x != 0.0),
            }),
            Normalisation::PerChannel { mean, .. } => {
                let known = CHANNEL_SPACES
                    .iter()
                    .find(|(channels, first, ..)| *channels == self.channels && mean.first() == Some(first));
                known.map(|(_, _, factors, basis)| (*factors, *basis))
            }
            Normalisation::PerPatchElement { .. } | Normalisation::Identity { family: None }
                if self.channels == FLUX2_CHANNELS =>
            {
                Some((&published::FLUX2, Basis::Own))
            }
            _ => None,
        };
        found.ok_or_else(|| self.unknown_preview())
    }

    fn unknown_preview(&self) -> ModelError {
        let advice = match self.normalisation {
            Normalisation::Identity { family: None } => {
                ". The file does not say which one it is: serve it as `NAME=SOURCE,space=SPACE`"
            }
            _ => "",
        };
        ModelError::Preview(format!(
            "no factors for previews are known for this model's latent space of {} channels{advice}",
            self.channels
        ))
    }
}

impl PreviewFactors {
    /// `[batch, 3, height, width]` of latents `[batch, channels, height, width]` that fit the shape. Each value is one
    /// sum over the channels in their order.
    fn apply(&self, latents: &[f32], [_, channels, height, width]: [usize; 4]) -> Vec<f32> {
        let plane = height * width;
        let mut colours = Vec::with_capacity(latents.len() / channels.max(1) * COLOURS);
        for sample in latents.chunks_exact((channels * plane).max(1)) {
            for (colour, &bias) in self.bias.iter().enumerate() {
                let start = colours.len();
                colours.resize(start + plane, bias);
                for (values, factors) in sample.chunks_exact(plane).zip(self.factors) {
                    let sums = &mut colours[start..];
                    sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += factors[colour] * x);
                }
            }
        }
        colours
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packing::Packing;

    fn space(channels: usize, normalisation: Normalisation) -> LatentSpace {
        LatentSpace { channels, spatial_factor: 8, normalisation, packing: Packing::Patches2x2 }
    }

    fn scalar(channels: usize, factors: Factors) -> LatentSpace {
        let Factors { scaling_factor, shift_factor } = factors;
        space(channels, Normalisation::Scalar { scaling_factor, shift_factor })
    }

    fn tiny(channels: usize, family: Option<Factors>) -> LatentSpace {
        space(channels, Normalisation::Identity { family })
    }

    #[test]
    fn tables_have_a_row_for_each_channel() {
        for (channels, factors, table) in SCALAR_SPACES {
            assert_eq!(table.factors.len(), channels, "{factors:?}");
        }
        for (channels, mean, table, _) in CHANNEL_SPACES {
            assert_eq!(table.factors.len(), channels, "{mean}");
        }
        assert_eq!(published::FLUX2.factors.len(), FLUX2_CHANNELS);
    }

    /// One sum written out, in every form in which the same latents may come.
    #[test]
    fn every_scaling_gives_the_same_colours() {
        let latents = [0.5, -1.0, 2.0, 0.25];
        let expected: Vec<f32> = (0..COLOURS)
            .map(|colour| {
                let rows = fitted::SD.factors.iter().zip(latents);
                rows.fold(fitted::SD.bias[colour], |sum, (row, x)| sum + row[colour] * x)
            })
            .collect();
        let divided = latents.map(|x| x / 0.18215);
        let preview = |space: &LatentSpace, latents: [f32; 4], scaling: Scaling| {
            space.preview(latents.to_vec(), [1, 4, 1, 1], &scaling).unwrap()
        };
        let own = Scaling::Model { shift: None };
        let explicit = Scaling::Explicit { scale: 0.18215, shift: None };
        for (found, what) in [
            (preview(&tiny(4, Some(SD)), latents, own), "tiny"),
            (preview(&tiny(4, Some(SD)), divided, Scaling::Declined), "tiny, divided"),
            (preview(&scalar(4, SD), latents, own), "full"),
            (preview(&scalar(4, SD), latents, explicit), "full, explicit"),
            (preview(&scalar(4, SD), divided, Scaling::None), "full, divided"),
        ] {
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-5, "{what}: {found} {expected}");
            }
        }
    }

    #[test]
    fn samples_and_pixels_keep_their_places() {
        let flux = scalar(16, FLUX);
        let latents: Vec<f32> = (0..2 * 16 * 6).map(|index| (index as f32 * 0.37).sin()).collect();
        let whole = flux.preview(latents.clone(), [2, 16, 2, 3], &Scaling::Model { shift: None }).unwrap();
        assert_eq!(whole.len(), 2 * 3 * 6);
        for sample in 0..2 {
            for pixel in 0..6 {
                let one = (0..16).map(|channel| latents[(sample * 16 + channel) * 6 + pixel]).collect();
                let one = flux.preview(one, [1, 16, 1, 1], &Scaling::Model { shift: None }).unwrap();
                let at = |colour: usize| whole[(sample * 3 + colour) * 6 + pixel];
                assert_eq!(one, [at(0), at(1), at(2)]);
            }
        }
    }

    #[test]
    fn playground_has_the_colours_of_sdxl() {
        let mean = vec![PLAYGROUND_MEAN, 1.886, -1.383, 2.5155];
        let std = vec![8.4927, 5.9022, 6.5498, 5.2299];
        let playground = space(4, Normalisation::PerChannel { mean, std, scaling_factor: 0.5 });
        let of_autoencoder = vec![3.0, -2.0, 5.0, 1.0];
        let expected = scalar(4, SDXL).preview(of_autoencoder.clone(), [1, 4, 1, 1], &Scaling::None).unwrap();
        let mut latents = of_autoencoder;
        let scaling = Scaling::Model { shift: None };
        playground.from_model(&mut latents, [1, 4, 1, 1], &scaling).unwrap();
        let found = playground.preview(latents, [1, 4, 1, 1], &scaling).unwrap();
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn unknown_spaces_say_so() {
        let message = |space: LatentSpace| space.check_preview().unwrap_err().to_string();
        assert!(message(scalar(4, FLUX)).ends_with("latent space of 4 channels"));
        let wan = |mean: f64| Normalisation::PerChannel {
            mean: vec![mean; 16],
            std: vec![2.0; 16],
            scaling_factor: 1.0,
        };
        assert!(space(16, wan(-0.7571)).check_preview().is_ok());
        assert!(space(16, wan(0.5)).check_preview().is_err());
        assert!(message(tiny(4, None)).contains("space=SPACE"));
        let mean = vec![0.0; 4];
        let own = Normalisation::PerChannel { mean: mean.clone(), std: mean, scaling_factor: 1.0 };
        assert!(space(4, own).check_preview().is_err());
        assert!(tiny(32, None).check_preview().is_ok());
    }
}
