//! The forms in which a client's latents come, and how they become `[batch, channels, height, width]`: planes of
//! latents, a sequence of tokens, planes of patches. What the values mean is told in [`crate::latent_space`].

use serde::Serialize;

use crate::ModelError;
use crate::latent_space::{LatentSpace, shape_error};

/// Side of a patch.
pub(crate) const PATCH: usize = 2;

/// The forms in which latents of a model come besides `[batch, channels, height, width]`. In both, a patch of 2×2
/// latents has 4·channels elements, of which `c·4 + di·2 + dj` is latent `[c, 2i + di, 2j + dj]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// No other form.
    None,
    /// A token is a patch: `[batch, h/2 · w/2, 4·channels]`, token `i·(w/2) + j` (FLUX.1).
    Patches2x2,
    /// Tokens too, and planes of patches, `[batch, 4·channels, h/2, w/2]` (FLUX.2).
    Patches2x2AndPlanes,
}

/// How the latents of one request lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `[batch, channels, height, width]`.
    Planes([usize; 4]),
    /// `[batch, tokens, 4·channels]`, for latents of this shape.
    Tokens {
        /// The shape as sent.
        tokens: [usize; 3],
        /// `[batch, channels, height, width]`
        latents: [usize; 4],
    },
    /// `[batch, 4·channels, height/2, width/2]`, for latents of this shape.
    PatchPlanes {
        /// `[batch, channels, height, width]`
        latents: [usize; 4],
    },
}

impl Layout {
    /// The shape `[batch, channels, height, width]` of the latents.
    pub fn latents(&self) -> [usize; 4] {
        match *self {
            Layout::Planes(latents) | Layout::Tokens { latents, .. } | Layout::PatchPlanes { latents } => {
                latents
            }
        }
    }
}

impl LatentSpace {
    /// Reads the shape of a client's latents. Height and width, in pixels, count only for tensors of three dimensions:
    /// several clients send them always, and some send wrong ones. Where the first of three dimensions may be the
    /// model's channels, the tensor is a sequence only if the picture of this height and width has just as many tokens.
    ///
    /// # Errors
    /// [`ModelError::Shape`], which names the shapes that the model takes.
    pub fn layout(
        &self,
        shape: &[usize],
        height: Option<usize>,
        width: Option<usize>,
    ) -> Result<Layout, ModelError> {
        let token_size = self.token_size();
        match *shape {
            [batch, channels, height, width] if channels == self.channels => {
                Ok(Layout::Planes([batch, channels, height, width]))
            }
            [batch, elements, rows, columns]
                if self.packing == Packing::Patches2x2AndPlanes && elements == token_size =>
            {
                let sides = rows.checked_mul(PATCH).zip(columns.checked_mul(PATCH));
                let (height, width) =
                    sides.ok_or_else(|| shape_error(format!("shape {shape:?} is too large")))?;
                Ok(Layout::PatchPlanes { latents: [batch, self.channels, height, width] })
            }
            [first, second, third] if self.packing == Packing::None && first == self.channels => {
                Ok(Layout::Planes([1, first, second, third]))
            }
            [first, second, third] if self.packing != Packing::None => {
                let tokens = [first, second, third];
                let planes = Layout::Planes([1, first, second, third]);
                match (height.zip(width), first == self.channels) {
                    (Some((height, width)), may_be_planes) => {
                        match (self.unpacked_shape(tokens, height, width), may_be_planes) {
                            (Ok(latents), _) => Ok(Layout::Tokens { tokens, latents }),
                            (Err(_), true) => Ok(planes),
                            (Err(error), false) => Err(error),
                        }
                    }
                    (None, true) => Ok(planes),
                    (None, false) => Err(shape_error(format!(
                        "expected `height` and `width` of the picture, both, with packed latents [batch, tokens, \
                         {token_size}], got shape {shape:?} with{}",
                        if height.or(width).is_some() { " one of them" } else { "out them" }
                    ))),
                }
            }
            _ => {
                let tokens = format!(", or packed [batch, tokens, {token_size}] with `height` and `width`");
                let others = match self.packing {
                    Packing::None => String::new(),
                    Packing::Patches2x2 => tokens,
                    Packing::Patches2x2AndPlanes => {
                        format!(", [batch, {token_size}, height/2, width/2]{tokens}")
                    }
                };
                Err(shape_error(format!(
                    "expected latents of shape [batch, {}, height, width]{others}, got shape {shape:?}",
                    self.channels
                )))
            }
        }
    }

    /// Brings values that lie as `layout` says into `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when their number does not fit.
    pub fn arrange(&self, values: Vec<f32>, layout: Layout) -> Result<(Vec<f32>, [usize; 4]), ModelError> {
        let shape = layout.latents();
        self.check(values.len(), shape)?;
        let arranged = match layout {
            Layout::Planes(_) => values,
            Layout::Tokens { .. } => {
                let mut latents = vec![0.0; values.len()];
                self.each_pair(shape, |token, place| latents[place] = values[token]);
                latents
            }
            Layout::PatchPlanes { .. } => {
                let mut latents = vec![0.0; values.len()];
                let [_, _, height, width] = shape;
                let (rows, columns) = (height / PATCH, width / PATCH);
                for (place, latent) in latents.iter_mut().enumerate() {
                    let (column, row, plane) =
                        (place % width, place / width % height, place / width / height);
                    let element = (plane * PATCH + row % PATCH) * PATCH + column % PATCH;
                    *latent = values[(element * rows + row / PATCH) * columns + column / PATCH];
                }
                latents
            }
        };
        Ok((arranged, shape))
    }

    /// Elements of a token.
    pub fn token_size(&self) -> usize {
        self.channels * PATCH * PATCH
    }

    /// Latent height and width for a picture of `height` × `width` pixels when latents are packed: the sides are cut
    /// to whole patches.
    pub fn packed_sides(&self, height: usize, width: usize) -> [usize; 2] {
        let patch = self.spatial_factor.max(1) * PATCH;
        [height / patch * PATCH, width / patch * PATCH]
    }

    /// The shape `[batch, channels, h, w]` of the latents in tokens `[batch, tokens, 4·channels]` of a picture of
    /// `height` × `width` pixels.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when the size of a token or their number does not fit.
    pub fn unpacked_shape(
        &self,
        shape: [usize; 3],
        height: usize,
        width: usize,
    ) -> Result<[usize; 4], ModelError> {
        let [batch, count, size] = shape;
        if size != self.token_size() {
            return Err(shape_error(format!(
                "packed latents of this model have {} values a token ({} channels of 2x2 patches), got shape {shape:?}",
                self.token_size(),
                self.channels
            )));
        }
        let [latent_height, latent_width] = self.packed_sides(height, width);
        let expected = (latent_height / PATCH).checked_mul(latent_width / PATCH);
        if expected != Some(count) || count == 0 {
            let expected = expected.map_or_else(|| "too many".to_owned(), |count| count.to_string());
            return Err(shape_error(format!(
                "packed latents of {height}x{width} pixels have {expected} tokens, got {count} in shape {shape:?}"
            )));
        }
        if batch == 0 || batch.checked_mul(count).and_then(|tokens| tokens.checked_mul(size)).is_none() {
            return Err(shape_error(format!("shape {shape:?} is empty or too large")));
        }
        Ok([batch, self.channels, latent_height, latent_width])
    }

    /// Packs latents `[batch, channels, h, w]` with even sides into tokens `[batch, h·w/4, 4·channels]`.
    ///
    /// # Errors
    /// [`ModelError::Shape`] for a wrong channel count or length or an odd side.
    pub fn pack(&self, latents: &[f32], shape: [usize; 4]) -> Result<(Vec<f32>, [usize; 3]), ModelError> {
        self.check(latents.len(), shape)?;
        let [batch, _, height, width] = shape;
        if !height.is_multiple_of(PATCH) || !width.is_multiple_of(PATCH) {
            return Err(shape_error(format!(
                "only latents with even sides can be packed, got shape {shape:?}"
            )));
        }
        let mut tokens = vec![0.0; latents.len()];
        self.each_pair(shape, |token, place| tokens[token] = latents[place]);
        Ok((tokens, [batch, height / PATCH * (width / PATCH), self.token_size()]))
    }

    /// Calls with the index in the tokens and the index in the latents of each element.
    fn each_pair(&self, shape: [usize; 4], mut each: impl FnMut(usize, usize)) {
        let [batch, channels, height, width] = shape;
        let (columns, size) = (width / PATCH, self.token_size());
        let mut place = 0;
        for sample in 0..batch {
            for channel in 0..channels {
                for row in 0..height {
                    for column in 0..width {
                        let token =
                            sample * (height / PATCH) * columns + row / PATCH * columns + column / PATCH;
                        let element = channel * PATCH * PATCH + row % PATCH * PATCH + column % PATCH;
                        each(token * size + element, place);
                        place += 1;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latent_space::Normalisation;

    fn space(channels: usize, packing: Packing) -> LatentSpace {
        let normalisation = Normalisation::Identity { family: None };
        LatentSpace { channels, spatial_factor: 8, normalisation, packing }
    }

    fn flux() -> LatentSpace {
        space(16, Packing::Patches2x2)
    }

    fn unpack(
        tokens: Vec<f32>,
        shape: [usize; 3],
        sides: [usize; 2],
    ) -> Result<(Vec<f32>, [usize; 4]), ModelError> {
        let layout = flux().layout(&shape, Some(sides[0]), Some(sides[1]))?;
        flux().arrange(tokens, layout)
    }

    #[test]
    fn packing_both_ways() {
        let tokens: Vec<f32> = (0..2 * 6 * 64).map(|value| value as f32).collect();
        let (latents, shape) = unpack(tokens.clone(), [2, 6, 64], [37, 50]).unwrap();
        assert_eq!(shape, [2, 16, 4, 6]);
        // token 4 of sample 1, channel 3, lower left element
        assert_eq!(latents[((16 + 3) * 4 + 3) * 6 + 2], ((6 + 4) * 64 + 3 * 4 + 2) as f32);
        assert_eq!(flux().pack(&latents, shape).unwrap(), (tokens, [2, 6, 64]));
    }

    #[test]
    fn planes_of_patches_hold_what_tokens_hold() {
        let space = space(2, Packing::Patches2x2AndPlanes);
        let tokens: Vec<f32> = (0..2 * 6 * 8).map(|value| value as f32).collect();
        // [2, 6, 8] to [2, 8, 2, 3]
        let planes: Vec<f32> = (0..96).map(|i| tokens[i / 48 * 48 + i % 6 * 8 + i / 6 % 8]).collect();
        let layout = space.layout(&[2, 8, 2, 3], None, None).unwrap();
        assert_eq!(layout, Layout::PatchPlanes { latents: [2, 2, 4, 6] });
        let sequence = space.layout(&[2, 6, 8], Some(32), Some(48)).unwrap();
        assert_eq!(space.arrange(planes, layout).unwrap(), space.arrange(tokens, sequence).unwrap());
        let error = self::space(2, Packing::Patches2x2).layout(&[2, 8, 2, 3], None, None).unwrap_err();
        assert!(error.to_string().contains("expected latents of shape [batch, 2, height, width]"), "{error}");
    }

    #[test]
    fn shapes_of_all_clients_are_read() {
        let space = space(4, Packing::Patches2x2);
        let read =
            |shape: &[usize], height, width| space.layout(shape, height, width).map_err(|e| e.to_string());
        let planes = |shape| Ok(Layout::Planes(shape));
        assert_eq!(read(&[2, 4, 5, 6], None, None), planes([2, 4, 5, 6]));
        assert_eq!(read(&[1, 4, 5, 6], Some(7), Some(9)), planes([1, 4, 5, 6]));
        assert_eq!(read(&[4, 5, 6], None, None), planes([1, 4, 5, 6]));
        assert_eq!(read(&[4, 5, 6], Some(40), Some(48)), planes([1, 4, 5, 6]));
        for batch in [1, 4] {
            let tokens = [batch, 16, 16];
            let layout = Layout::Tokens { tokens, latents: [batch, 4, 8, 8] };
            assert_eq!(read(&tokens, Some(64), Some(64)), Ok(layout));
        }
        // Not packed: this size has 64 tokens, and 16 x 16 latents as planes.
        assert_eq!(read(&[4, 16, 16], Some(128), Some(128)), planes([1, 4, 16, 16]));
        for wrong in [&[1, 16, 5, 6][..], &[5, 6], &[1, 4, 3, 5, 6], &[1, 16, 16]] {
            let message = read(wrong, None, None).unwrap_err();
            assert!(message.contains(&format!("{wrong:?}")) && message.contains("expected"), "{message}");
        }
        assert!(read(&[1, 16, 16], Some(64), None).unwrap_err().contains("both"));
    }

    #[test]
    fn packing_errors_name_what_is_expected() {
        let message = |shape: [usize; 3], height, width| {
            let tokens = vec![0.0; shape.iter().product()];
            unpack(tokens, shape, [height, width]).unwrap_err().to_string()
        };
        assert!(message([1, 6, 16], 32, 48).contains("64 values a token"));
        assert!(message([1, 5, 64], 32, 48).contains("6 tokens, got 5"));
        assert!(message([1, 0, 64], 8, 8).contains("0 tokens"));
        assert!(message([0, 6, 64], 32, 48).contains("empty"));
        assert!(flux().pack(&[0.0; 48], [1, 16, 1, 3]).unwrap_err().to_string().contains("even sides"));
        assert!(unpack(Vec::new(), [1, 6, 64], [usize::MAX, usize::MAX]).is_err());
        let layout = flux().layout(&[1, 6, 64], Some(32), Some(48)).unwrap();
        assert!(flux().arrange(vec![0.0; 5], layout).unwrap_err().to_string().contains("5 values"));
        let patches = space(2, Packing::Patches2x2AndPlanes);
        assert!(
            patches.layout(&[1, 8, usize::MAX, 1], None, None).unwrap_err().to_string().contains("too large")
        );
    }
}
