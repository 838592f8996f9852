//! Tiles of pictures, cut and put together as diffusers' autoencoders do after `enable_tiling()`. Most blend each tile with
//! its finished neighbours, above and then to the left; `AutoencoderTiny` lays each over what is there, through a mask.

use remote_vae_model::{Family, Model, VaeConfig};
use remote_vae_wire::{Operation, TileSizes};

use crate::EngineError;
use crate::windows::{COLUMNS, Part, ROWS, Scale};

/// Pixels of a tile of a model of videos, and from one tile to the next.
const CLIP_TILE: [usize; 2] = [256, 192];
/// `tile_sample_min_size` of `AutoencoderTiny`.
const TINY_TILE: usize = 512;
/// `tile_overlap_factor` where nothing is said.
const OVERLAP: f64 = 0.25;
const TINY_OVERLAP: f64 = 0.125;
/// More overlap than this is more than four times the work of the picture as a whole, smaller tiles are all border.
const MOST_OVERLAP: f64 = 0.5;
const LATENTS: std::ops::RangeInclusive<usize> = 4..=1 << 16;

/// Which tiles a picture is cut into. Rows and columns are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiles {
    /// A picture with a side above this is cut; of the input, as the next two.
    above: usize,
    size: usize,
    /// From one tile to the next.
    step: usize,
    /// The same in the output, where so much of a tile is kept before the next one.
    keep: usize,
    /// Rows or columns of the output in which neighbours fade into each other.
    overlap: usize,
    seam: Seam,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seam {
    /// Each tile is blended with its finished neighbours; `grain` rows or columns have one share.
    Blend { grain: usize },
    /// Each tile is laid over what is there, fading in towards its top and its left.
    Mask,
}

impl Tiles {
    /// Those of `model`, with the sizes that a client gives; what it leaves open is as in diffusers.
    ///
    /// # Errors
    /// The model has no tiles, or these do not meet.
    pub(crate) fn new(model: &Model, scale: Scale, sizes: TileSizes) -> Result<Tiles, EngineError> {
        match (&model.config, model.family) {
            (VaeConfig::Kl(config), _) => Tiles::of_kl(config.sample_size, scale, sizes),
            (VaeConfig::Tiny(_), _) => Tiles::of_tiny(scale, sizes),
            (VaeConfig::Dc(_), family) => Err(refusal(format!(
                "an {} decodes and encodes whole pictures; expected no tiling",
                family.name()
            ))),
            (_, family) if sizes != TileSizes::default() => Err(unsized_clips(family)),
            _ => Ok(Tiles::of_clips(scale)),
        }
    }

    fn of_clips(scale: Scale) -> Tiles {
        let above = scale.pair(CLIP_TILE[0], ROWS)[0];
        // The encoder counts both in patches, the decoder blends in them.
        let (times, grain) = match scale.operation {
            Operation::Encode => (scale.patch, 1),
            Operation::Decode => (1, scale.patch),
        };
        let [[size, whole], [step, keep]] = CLIP_TILE.map(|pixels| scale.pair(pixels * times, ROWS));
        Tiles { above, size, step, keep, overlap: whole - keep, seam: Seam::Blend { grain } }
    }

    /// `AutoencoderKL.tiled_decode` and `tiled_encode`: size and step are of the input, what fades of the output.
    fn of_kl(sample_size: usize, scale: Scale, sizes: TileSizes) -> Result<Tiles, EngineError> {
        let [size, whole] = input_and_output(scale, sizes, sample_size)?;
        let factor = overlap_factor(sizes, OVERLAP)?;
        let (step, overlap) = ((size as f64 * (1.0 - factor)) as usize, (whole as f64 * factor) as usize);
        let keep = whole - overlap.min(whole);
        let tiles = Tiles { above: size, size, step, keep, overlap, seam: Seam::Blend { grain: 1 } };
        tiles.checked(scale, sizes)
    }

    /// `AutoencoderTiny._tiled_decode` and `_tiled_encode`, which cut whatever is longer than a step.
    fn of_tiny(scale: Scale, sizes: TileSizes) -> Result<Tiles, EngineError> {
        let [size, whole] = input_and_output(scale, sizes, TINY_TILE)?;
        let factor = overlap_factor(sizes, TINY_OVERLAP)?;
        let step = size - (size as f64 * factor) as usize;
        let keep = scale.output(step, ROWS);
        let overlap = whole.saturating_sub(keep);
        if overlap < 2 {
            return Err(refusal(format!(
                "tiles of this model fade into each other: expected an overlap of at least 2 rows of the result, got \
                 {overlap}"
            )));
        }
        Tiles { above: step, size, step, keep, overlap, seam: Seam::Mask }.checked(scale, sizes)
    }

    /// Whether tiles follow each other in the result as in the input. Where they do not, diffusers gives a picture of
    /// another size.
    fn checked(self, scale: Scale, sizes: TileSizes) -> Result<Tiles, EngineError> {
        let Tiles { size, step, keep, .. } = self;
        let (pixels, latents) = match scale.operation {
            Operation::Decode => (keep, step),
            Operation::Encode => (step, keep),
        };
        let whole_latents = scale.operation == Operation::Decode || size.is_multiple_of(scale.space);
        if step == 0 || pixels != latents * scale.space || !whole_latents {
            return Err(refusal(format!(
                "tiles of {size} {} that follow each other every {step} come to lie every {keep} in the result, where one \
                 latent is {} pixels: they do not meet ({})",
                if scale.operation == Operation::Decode { "latents" } else { "pixels" },
                scale.space,
                named(sizes),
            )));
        }
        Ok(self)
    }

    /// Whether a picture of `shape` is cut.
    pub(crate) fn cut(self, shape: [usize; 5]) -> bool {
        shape[ROWS].max(shape[COLUMNS]) > self.above
    }

    /// `shape` made smaller in its proportions, with sides that are multiples of `factor`, until it is not cut.
    pub(crate) fn uncut(self, mut shape: [usize; 5], factor: usize) -> [usize; 5] {
        let longest = shape[ROWS].max(shape[COLUMNS]).max(self.above);
        for side in &mut shape[ROWS..] {
            *side = *side * self.above / longest / factor * factor;
        }
        shape
    }

    /// The lengths of the input's tiles along a side of `length`, in their order.
    pub(crate) fn lengths(self, length: usize) -> impl Iterator<Item = usize> {
        (0..length).step_by(self.step).map(move |start| self.size.min(length - start))
    }

    /// Whether a row of tiles is kept beside the picture they are put into.
    pub(crate) fn keeps_row(self) -> bool {
        matches!(self.seam, Seam::Blend { .. })
    }

    /// Runs the tiles of `input` row by row, and puts their results together.
    pub(crate) fn run(
        self,
        input: &Part,
        scale: Scale,
        run: &mut dyn FnMut(&Part) -> Result<Part, EngineError>,
    ) -> Result<Part, EngineError> {
        let mut whole: Option<Part> = None;
        // Those above the next tile, and left of it those beside it.
        let mut row: Vec<Part> = Vec::new();
        for (down, top) in (0..input.shape[ROWS]).step_by(self.step).enumerate() {
            for (across, left) in (0..input.shape[COLUMNS]).step_by(self.step).enumerate() {
                let mut tile = run(&input.rectangle([top, left], [self.size; 2])?)?;
                let whole = match &mut whole {
                    Some(whole) => whole,
                    none => none.insert(Part::zeroed(self.output_shape(input, &tile, scale))?),
                };
                let place = [down * self.keep, across * self.keep];
                let Seam::Blend { grain } = self.seam else {
                    whole.lay_over(&tile, place, self.overlap);
                    continue;
                };
                if down > 0 {
                    tile.blend(&row[across], ROWS, self.overlap, grain);
                }
                if across > 0 {
                    tile.blend(&row[across - 1], COLUMNS, self.overlap, grain);
                }
                whole.put(&tile, place, self.keep);
                if down == 0 { row.push(tile) } else { row[across] = tile }
            }
        }
        Ok(whole.unwrap_or(Part { values: Vec::new(), shape: [0; 5] }))
    }

    fn output_shape(self, input: &Part, tile: &Part, scale: Scale) -> [usize; 5] {
        let [batch, channels, frames, ..] = tile.shape;
        let [height, width] = [ROWS, COLUMNS].map(|axis| scale.output(input.shape[axis], axis));
        [batch, channels, frames, height, width]
    }
}

impl Part {
    /// The rows and columns from `start` on, at most `size` of them.
    fn rectangle(&self, start: [usize; 2], size: [usize; 2]) -> Result<Part, EngineError> {
        let [batch, channels, frames, rows, columns] = self.shape;
        let [height, width] = [size[0].min(rows - start[0]), size[1].min(columns - start[1])];
        let mut part = Part::zeroed([batch, channels, frames, height, width])?;
        for (index, to) in part.values.chunks_exact_mut(width.max(1)).enumerate() {
            let row = index / height * rows + start[0] + index % height;
            to.copy_from_slice(&self.values[row * columns + start[1]..][..width]);
        }
        Ok(part)
    }

    /// Writes the first `keep` rows and columns of `tile` at `place`, as far as they fit.
    fn put(&mut self, tile: &Part, place: [usize; 2], keep: usize) {
        self.for_rows(tile, place, keep, |_, to, from| to.copy_from_slice(from));
    }

    /// Lays `tile` over what is there: shares rise over `overlap` rows and columns, but for those that nothing lies before.
    fn lay_over(&mut self, tile: &Part, place: [usize; 2], overlap: usize) {
        let share = |index: usize, start: usize| {
            if start == 0 { 1.0 } else { (index as f32 / (overlap - 1) as f32).min(1.0) }
        };
        let across: Vec<f32> = (0..tile.shape[COLUMNS]).map(|index| share(index, place[1])).collect();
        self.for_rows(tile, place, usize::MAX, |row, to, from| {
            let down = share(row, place[0]);
            for ((value, new), across) in to.iter_mut().zip(from).zip(&across) {
                let mask = down * across;
                *value = mask * new + (1.0 - mask) * *value;
            }
        });
    }

    /// Calls `each` with the index of a row of `tile`, that row from `place` on, and the tile's.
    fn for_rows(
        &mut self,
        tile: &Part,
        place: [usize; 2],
        keep: usize,
        mut each: impl FnMut(usize, &mut [f32], &[f32]),
    ) {
        let ([.., rows, columns], [.., own_rows, own_columns]) = (self.shape, tile.shape);
        let height = keep.min(own_rows).min(rows - place[0].min(rows));
        let width = keep.min(own_columns).min(columns - place[1].min(columns));
        let planes = self.values.chunks_exact_mut((rows * columns).max(1));
        for (plane, own) in planes.zip(tile.values.chunks_exact((own_rows * own_columns).max(1))) {
            for row in 0..height {
                let to = &mut plane[(place[0] + row) * columns + place[1]..][..width];
                each(row, to, &own[row * own_columns..][..width]);
            }
        }
    }
}

/// Sides of a tile of the input and of its result. Of the two that a client may give, one follows from the other.
fn input_and_output(scale: Scale, sizes: TileSizes, default: usize) -> Result<[usize; 2], EngineError> {
    let (pixels, latents) = match (sizes.sample_min_size, sizes.latent_min_size) {
        (Some(pixels), Some(latents)) => (pixels, latents),
        (None, Some(latents)) => (latents.saturating_mul(scale.space), latents),
        (pixels, None) => {
            let pixels = pixels.unwrap_or(default);
            (pixels, pixels / scale.space)
        }
    };
    if !LATENTS.contains(&latents) || pixels > *LATENTS.end() * scale.space {
        return Err(refusal(format!(
            "expected tiles of {} to {} latents, {} pixels each ({})",
            LATENTS.start(),
            LATENTS.end(),
            scale.space,
            named(sizes)
        )));
    }
    Ok(match scale.operation {
        Operation::Decode => [latents, pixels],
        Operation::Encode => [pixels, latents],
    })
}

fn overlap_factor(sizes: TileSizes, default: f64) -> Result<f64, EngineError> {
    let factor = sizes.overlap_factor.unwrap_or(default);
    if (0.0..=MOST_OVERLAP).contains(&factor) {
        return Ok(factor);
    }
    Err(refusal(format!("expected tile_overlap_factor from 0 to {MOST_OVERLAP}, got {factor}")))
}

fn unsized_clips(family: Family) -> EngineError {
    refusal(format!(
        "tiles of an {} have {} pixels every {}; expected no tile_sample_min_size, tile_latent_min_size or \
         tile_overlap_factor",
        family.name(),
        CLIP_TILE[0],
        CLIP_TILE[1]
    ))
}

/// The sizes as diffusers calls them.
fn named(sizes: TileSizes) -> String {
    let number = |value: Option<usize>| value.map_or("not given".to_owned(), |value| value.to_string());
    let factor = sizes.overlap_factor.map_or("not given".to_owned(), |value| value.to_string());
    format!(
        "tile_sample_min_size {}, tile_latent_min_size {}, tile_overlap_factor {factor}",
        number(sizes.sample_min_size),
        number(sizes.latent_min_size)
    )
}

fn refusal(reason: String) -> EngineError {
    EngineError::Tiles { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scale(operation: Operation) -> Scale {
        Scale { operation, space: 8, time: 1, streams: false, patch: 1, tiles: None }
    }

    fn sizes(sample: usize, latent: usize, factor: f64) -> TileSizes {
        TileSizes {
            sample_min_size: Some(sample),
            latent_min_size: Some(latent),
            overlap_factor: Some(factor),
        }
    }

    #[test]
    fn tiles_are_those_of_diffusers_defaults() {
        let given = TileSizes::default();
        let kl = |operation| Tiles::of_kl(512, scale(operation), given).unwrap();
        let decode = kl(Operation::Decode);
        assert_eq!(
            [decode.above, decode.size, decode.step, decode.keep, decode.overlap],
            [64, 64, 48, 384, 128]
        );
        let encode = kl(Operation::Encode);
        assert_eq!(
            [encode.above, encode.size, encode.step, encode.keep, encode.overlap],
            [512, 512, 384, 48, 16]
        );
        let tiny = Tiles::of_tiny(scale(Operation::Decode), given).unwrap();
        assert_eq!([tiny.above, tiny.size, tiny.step, tiny.keep, tiny.overlap], [56, 64, 56, 448, 64]);
        let tiny = Tiles::of_tiny(scale(Operation::Encode), given).unwrap();
        assert_eq!([tiny.above, tiny.size, tiny.step, tiny.keep, tiny.overlap], [448, 512, 448, 56, 8]);
    }

    #[test]
    fn tiles_that_do_not_meet_are_refused() {
        let kl =
            |operation, given| Tiles::of_kl(512, scale(operation), given).map_err(|error| error.to_string());
        assert!(kl(Operation::Decode, sizes(256, 32, 0.25)).is_ok());
        assert!(kl(Operation::Encode, sizes(256, 32, 0.25)).is_ok());
        assert!(kl(Operation::Decode, sizes(64, 8, 0.0)).is_ok());
        for given in [sizes(256, 64, 0.25), sizes(100, 12, 0.25), sizes(512, 32, 0.5)] {
            let message = kl(Operation::Decode, given).unwrap_err();
            assert!(message.contains("do not meet") && message.contains("tile_latent_min_size"), "{message}");
            assert!(kl(Operation::Encode, given).is_err());
        }
        for factor in [-0.1, 0.6, f64::NAN] {
            assert!(
                kl(Operation::Decode, sizes(256, 32, factor)).unwrap_err().contains("tile_overlap_factor")
            );
        }
        for given in
            [sizes(0, 0, 0.25), sizes(24, 3, 0.0), sizes(usize::MAX, 32, 0.25), sizes(256, usize::MAX, 0.25)]
        {
            assert!(kl(Operation::Decode, given).unwrap_err().contains("4 to 65536 latents"));
        }
        let tiny = |given| Tiles::of_tiny(scale(Operation::Encode), given).map_err(|error| error.to_string());
        assert!(tiny(sizes(512, 64, 0.0)).unwrap_err().contains("at least 2"));
        assert!(tiny(sizes(512, 64, 0.1)).unwrap_err().contains("do not meet"));
    }
}
