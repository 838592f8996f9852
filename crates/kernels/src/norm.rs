//! GroupNorm in two halves: statistics of a tensor, turned into one factor and one summand for each channel, which the
//! next operation applies on its way in (or [`apply`] writes out).

use crate::elementwise::{Activation, activate};
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::math::multiply_add;
use crate::microkernel::Tile;
use crate::moments::{Moments, RECORD, Rows, record};
use crate::pool::Pool;
use crate::strip::place;
use crate::tensor::{Edit, SharedTensor, Tensor, TensorMut};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

pub use crate::moments::Patches;

/// Bands whose moments are taken before they are merged.
const BANDS: usize = 64;
/// Pixels that one task of [`apply`] treats.
const STRETCH: usize = 8192;

/// GroupNorm's parameters for one tensor.
#[derive(Clone, Copy)]
pub struct GroupNorm<'a> {
    /// Channel groups that share statistics.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// `[channels]`, factor after normalising.
    pub weight: &'a [f32],
    /// `[channels]`, summand after normalising.
    pub bias: &'a [f32],
}

/// Moments of each channel of a tensor that comes in parts: its rows in order, one frame after the other. How it is cut into
/// parts changes no bit of what comes out, nor does who has taken the moments of its patches.
pub struct Sums {
    patches: Patches,
    /// Height and width of a frame.
    size: [usize; 2],
    /// Frames that were seen.
    frames: usize,
    /// Rows of the current frame that were seen.
    rows: usize,
    /// For each channel block.
    whole: Vec<Moments<BLOCK>>,
}

/// Where the moments of patches come from.
#[derive(Clone, Copy)]
enum Given<'a> {
    /// A tensor of which so many rows are kept.
    Tensor { input: Tensor<'a>, kept: usize },
    /// A table of bands: the first and how many.
    Table { table: &'a [f32], bands: [usize; 2] },
}

impl Sums {
    /// Of frames of `size` (height, width) that are cut into `patches`.
    pub fn new(channels: usize, size: [usize; 2], patches: Patches) -> Sums {
        Sums { patches, size, frames: 0, rows: 0, whole: vec![Moments::default(); blocks(channels)] }
    }

    /// Whole frames that were seen, and rows of the next.
    pub fn seen(&self) -> [usize; 2] {
        [self.frames, self.rows]
    }

    /// Adds the next rows of a frame. Of each channel block, `input` holds as many rows as it has room for (see
    /// [`crate::strip`]).
    ///
    /// # Panics
    /// The rows do not begin where the last ones ended, or do not end with a band (see [`Patches::whole_rows`]).
    pub fn add(&mut self, isa: Isa, pool: &Pool, input: Tensor<'_>, rows: Range<usize>) {
        let kept = input.groups() / (self.whole.len() * self.size[1]);
        assert_eq!(input.groups(), kept * self.whole.len() * self.size[1]);
        self.merge(isa, pool, Given::Tensor { input, kept }, rows);
    }

    /// As [`Sums::add`], by the table that was made with the rows: `[channel block][band][patch][3][16]`.
    ///
    /// # Panics
    /// As [`Sums::add`]; also when the table is not as long as [`Patches::table_len`] says.
    pub fn add_table(&mut self, isa: Isa, pool: &Pool, table: &[f32], rows: Range<usize>) {
        let channels = self.whole.len() * BLOCK;
        assert_eq!(table.len(), self.patches.table_len(channels, rows.clone(), self.size[1]));
        let bands = self.patches.bands(rows.clone());
        self.merge(isa, pool, Given::Table { table, bands: [bands.start, bands.len()] }, rows);
    }

    fn merge(&mut self, isa: Isa, pool: &Pool, given: Given<'_>, rows: Range<usize>) {
        let (patches, [height, _], blocks) = (self.patches, self.size, self.whole.len());
        assert!(rows.start == self.rows && rows.end <= height, "{rows:?} after {}", self.rows);
        assert_eq!(patches.whole_rows(rows.end, height), rows.end, "{rows:?} of {height}");
        let bands = patches.bands(rows.clone());
        for first in bands.clone().step_by(BANDS) {
            let some = first..bands.end.min(first + BANDS);
            let parts: Vec<Mutex<Moments<BLOCK>>> =
                (0..some.len() * blocks).map(|_| Mutex::default()).collect();
            let job = &Band { patches, size: self.size, given };
            pool.run(parts.len(), |index| {
                let place = [index % blocks, first + index / blocks];
                let mut part = Moments::default();
                let out = &mut part;
                dispatch!(isa, band_moments(job: &Band<'_>, place: [usize; 2], out: &mut Moments<BLOCK>));
                *parts[index].lock().unwrap_or_else(PoisonError::into_inner) = part;
            });
            for (index, part) in parts.into_iter().enumerate() {
                self.whole[index % blocks].merge(&part.into_inner().unwrap_or_else(PoisonError::into_inner));
            }
        }
        (self.frames, self.rows) =
            if rows.end == height { (self.frames + 1, 0) } else { (self.frames, rows.end) };
    }

    /// Makes `scale` and `shift` (`[padded channels]` each, zero in the padding) so that `x · scale + shift` is the
    /// normalised value; the channels are those of `norm.weight`. The variance is that of the group's own values, divided by
    /// their number.
    ///
    /// # Panics
    /// A length does not fit, or `groups` does not divide the channels.
    pub fn table(&self, norm: GroupNorm<'_>, scale: &mut [f32], shift: &mut [f32]) {
        let channels = norm.weight.len();
        assert_eq!(norm.bias.len(), channels);
        assert!(channels.is_multiple_of(norm.groups), "{channels} channels in {} groups", norm.groups);
        assert!(scale.len() == self.whole.len() * BLOCK && shift.len() == scale.len());
        scale.fill(0.0);
        shift.fill(0.0);
        let size = channels / norm.groups;
        for group in 0..norm.groups {
            let own = group * size..(group + 1) * size;
            let mut whole = Moments::default();
            for channel in own.clone() {
                whole.merge(&self.whole[channel / BLOCK].channel(channel % BLOCK));
            }
            let ([mean], [deviation]) = (whole.mean, whole.deviation);
            let inverse = 1.0 / (deviation / whole.count + f64::from(norm.epsilon)).sqrt();
            for channel in own {
                let factor = f64::from(norm.weight[channel]) * inverse;
                scale[channel] = factor as f32;
                shift[channel] = (f64::from(norm.bias[channel]) - mean * factor) as f32;
            }
        }
    }
}

/// What the moments of a band are taken of.
struct Band<'a> {
    patches: Patches,
    size: [usize; 2],
    given: Given<'a>,
}

/// Those of one channel block of one band, patch after patch.
#[inline(always)]
unsafe fn band_moments<T: Tile>(job: &Band<'_>, [block, band]: [usize; 2], out: &mut Moments<BLOCK>) {
    let Band { patches, size, given } = *job;
    let across = patches.across(size[1]);
    let mut room = [0.0; RECORD];
    for patch in 0..across {
        let [rows, columns] = patches.place(band, patch, size);
        let count = rows.len() * columns.len();
        let record = match given {
            Given::Table { table, bands: [first, bands] } => {
                &table[((block * bands + band - first) * across + patch) * RECORD..][..RECORD]
            }
            Given::Tensor { input, kept } => {
                let patch = Patch { input, block: block * kept, kept, width: size[1], columns };
                // SAFETY: the caller vouches for the CPU.
                unsafe { record::<T>(&patch, rows, &mut room) };
                &room
            }
        };
        out.merge(&Moments::recorded(record, count));
    }
}

/// Some columns of a channel block of a tensor.
struct Patch<'a> {
    input: Tensor<'a>,
    /// The first row of the channel block, of which so many are kept.
    block: usize,
    kept: usize,
    width: usize,
    columns: Range<usize>,
}

impl Rows for Patch<'_> {
    #[inline(always)]
    unsafe fn row(&self, row: usize) -> Tensor<'_> {
        let row = self.block + place(row, self.kept);
        self.input.part(row * self.width + self.columns.start, self.columns.len())
    }
}

/// Writes `activation(input · scale + shift)` to `output`, per channel; all blocked `[channels, pixels]`.
///
/// # Panics
/// The lengths do not fit each other.
pub fn apply(
    isa: Isa,
    pool: &Pool,
    input: Tensor<'_>,
    pixels: usize,
    (scale, shift): (&[f32], &[f32]),
    activation: Activation,
    output: TensorMut<'_>,
) {
    assert_eq!(input.groups(), output.groups());
    assert_eq!(input.groups() * BLOCK, scale.len() * pixels);
    assert_eq!(scale.len(), shift.len());
    let stretches = pixels.div_ceil(STRETCH);
    let shared = SharedTensor::new(output);
    pool.run(scale.len() / BLOCK * stretches, |index| {
        let (block, stretch) = (index / stretches, index % stretches);
        let start = stretch * STRETCH;
        let place = [block * pixels + start, STRETCH.min(pixels - start)];
        let affine = (&scale[block * BLOCK..][..BLOCK], &shift[block * BLOCK..][..BLOCK]);
        let job = &Job { input, output: &shared, affine, activation };
        dispatch!(isa, apply_stretch(job: &Job<'_>, place: [usize; 2]));
    });
}

struct Job<'a> {
    input: Tensor<'a>,
    output: &'a SharedTensor<'a>,
    affine: (&'a [f32], &'a [f32]),
    activation: Activation,
}

#[inline(always)]
unsafe fn apply_stretch<T: Tile>(job: &Job<'_>, [start, groups]: [usize; 2]) {
    // SAFETY: the caller vouches for the CPU; stretches of different blocks and places do not overlap.
    unsafe { job.output.edit::<T>(start, groups, Some(job.input), job) }
}

impl Edit for Job<'_> {
    #[inline(always)]
    unsafe fn edit<T: Tile>(&self, _: usize, values: &mut [f32]) {
        let (scale, shift) = self.affine;
        for pixel in values.as_chunks_mut::<BLOCK>().0 {
            for lane in 0..BLOCK {
                pixel[lane] = multiply_add::<T>(pixel[lane], scale[lane], shift[lane]);
            }
        }
        activate::<T>(self.activation, values);
    }
}
