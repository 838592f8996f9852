//! Mean and squared deviations of a tensor's channels, first of small patches of its pixels, then of all.
//!
//! A convolution that works in tiles takes the moments of a patch as it finishes it, while it lies in the cache; whoever
//! finds a tensor finished takes them of the same patches in the same way, to the same bits. They are safe for large tensors:
//! a patch is summed up in one pass as deviations from its first pixel, and patches are merged in `f64` in a fixed
//! order (Chan, Golub and LeVeque, 1979 and 1983).

use crate::half::widen_group;
use crate::layout::{BLOCK, blocks};
use crate::math::multiply_add;
use crate::microkernel::Tile;
use crate::tensor::Tensor;
use std::ops::Range;

/// Values that a table holds for a patch and channel block: the sixteen of its first pixel, then sums of what all deviate
/// from it, and sums of their squares. A mean in `f32` would be off by as much everywhere, which a norm shows where the variance is
/// small beside it.
pub(crate) const RECORD: usize = 3 * BLOCK;
/// Tiles of a patch, all in one row.
pub(crate) const PATCH_TILES: usize = 8;

/// How the pixels of a tensor are cut into patches: rows of them (*bands*) from the top, each from left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patches {
    /// Height and width of a patch; those at the edges are smaller.
    size: [usize; 2],
    /// Rows and columns by which the first ones are smaller.
    skip: usize,
}

impl Patches {
    /// Pieces of single rows: of tensors that no convolution makes in tiles.
    pub const PLAIN: Patches = Patches { size: [1, 128], skip: 0 };

    /// Eight tiles of `outputs` by `outputs`, of which the first lie `skip` before the picture.
    pub(crate) const fn of_tiles(outputs: usize, skip: usize) -> Patches {
        Patches { size: [outputs, PATCH_TILES * outputs], skip }
    }

    /// How many of the first `rows` rows of a tensor of `height` lie in whole bands.
    pub fn whole_rows(self, rows: usize, height: usize) -> usize {
        let [step, _] = self.size;
        if rows >= height { height } else { ((rows + self.skip) / step * step).saturating_sub(self.skip) }
    }

    /// `f32` of a table of the moments of some whole bands of a tensor.
    pub fn table_len(self, channels: usize, rows: Range<usize>, width: usize) -> usize {
        blocks(channels) * self.bands(rows).len() * self.across(width) * RECORD
    }

    /// The bands that lie in `rows`.
    pub(crate) fn bands(self, rows: Range<usize>) -> Range<usize> {
        let [step, _] = self.size;
        let start = (rows.start + self.skip) / step;
        if rows.is_empty() { start..start } else { start..(rows.end + self.skip).div_ceil(step) }
    }

    /// Patches of a band.
    pub(crate) fn across(self, width: usize) -> usize {
        (width + self.skip).div_ceil(self.size[1])
    }

    /// Rows and columns of the patch number `patch` of a band, in a tensor of `height` and `width`.
    pub(crate) fn place(self, band: usize, patch: usize, [height, width]: [usize; 2]) -> [Range<usize>; 2] {
        let range = |index: usize, step: usize, end: usize| {
            (index * step).saturating_sub(self.skip)..((index + 1) * step - self.skip).min(end)
        };
        [range(band, self.size[0], height), range(patch, self.size[1], width)]
    }
}

/// Count, mean and sum of squared deviations of the values of `N` channels.
#[derive(Clone, Copy)]
pub(crate) struct Moments<const N: usize> {
    pub count: f64,
    pub mean: [f64; N],
    pub deviation: [f64; N],
}

impl<const N: usize> Default for Moments<N> {
    fn default() -> Self {
        Moments { count: 0.0, mean: [0.0; N], deviation: [0.0; N] }
    }
}

impl<const N: usize> Moments<N> {
    /// Adds others.
    #[inline(always)]
    pub(crate) fn merge(&mut self, other: &Moments<N>) {
        if self.count == 0.0 {
            *self = *other;
            return;
        }
        let count = self.count + other.count;
        let (share, both) = (other.count / count, self.count * other.count / count);
        for lane in 0..N {
            let delta = other.mean[lane] - self.mean[lane];
            self.mean[lane] += delta * share;
            self.deviation[lane] += other.deviation[lane] + delta * delta * both;
        }
        self.count = count;
    }
}

impl Moments<BLOCK> {
    /// Of `count` pixels, from a table.
    #[inline(always)]
    pub(crate) fn recorded(record: &[f32], count: usize) -> Moments<BLOCK> {
        let count = count as f64;
        let mut moments = Moments { count, ..Moments::default() };
        for lane in 0..BLOCK {
            let [center, sum, squares] = [0, 1, 2].map(|part| f64::from(record[part * BLOCK + lane]));
            moments.mean[lane] = center + sum / count;
            moments.deviation[lane] = squares - sum * sum / count;
        }
        moments
    }

    /// One channel's.
    pub(crate) fn channel(&self, lane: usize) -> Moments<1> {
        Moments { count: self.count, mean: [self.mean[lane]], deviation: [self.deviation[lane]] }
    }
}

/// Rows of a patch: a trait and not a closure, as [`crate::tensor::Edit`].
pub(crate) trait Rows {
    /// The groups of the picture's row `row` that belong to the patch.
    ///
    /// # Safety
    /// Nobody writes them as long as they are lent.
    unsafe fn row(&self, row: usize) -> Tensor<'_>;
}

/// Sums, and sums of squares, of what pixels deviate from a center.
type Deviations = [[f32; BLOCK]; 2];

/// Writes the moments of the pixels of a patch to its record.
///
/// # Safety
/// The CPU has the tier; nobody writes the patch meanwhile.
#[inline(always)]
pub(crate) unsafe fn record<T: Tile>(patch: &impl Rows, rows: Range<usize>, record: &mut [f32]) {
    let (mut center, first) = ([0.0; BLOCK], rows.start);
    // Two chains, because one waits for itself.
    let (mut even, mut odd): (Deviations, Deviations) = Default::default();
    for index in rows {
        // SAFETY: the caller's contract.
        let row = unsafe { patch.row(index) };
        if index == first {
            // SAFETY: the caller vouches for the CPU.
            center = unsafe { row.group::<T>(0) };
        }
        match row {
            Tensor::Float32(values) => {
                let (pairs, last) = values.as_chunks::<BLOCK>().0.as_chunks::<2>();
                for [first, second] in pairs {
                    deviate::<T>(first, &center, &mut even);
                    deviate::<T>(second, &center, &mut odd);
                }
                if let [last] = last {
                    deviate::<T>(last, &center, &mut even);
                }
            }
            Tensor::Half(values, exponents) => {
                let ((pairs, last), (scales, scale)) = (values.as_chunks::<2>(), exponents.as_chunks::<2>());
                for ([first, second], scales) in pairs.iter().zip(scales) {
                    // SAFETY: the caller vouches for the CPU.
                    let [first, second] = unsafe {
                        [
                            widen_group::<T::Vector>(first, scales[0]),
                            widen_group::<T::Vector>(second, scales[1]),
                        ]
                    };
                    deviate::<T>(&first, &center, &mut even);
                    deviate::<T>(&second, &center, &mut odd);
                }
                if let ([last], [scale]) = (last, scale) {
                    // SAFETY: the caller vouches for the CPU.
                    let last = unsafe { widen_group::<T::Vector>(last, *scale) };
                    deviate::<T>(&last, &center, &mut even);
                }
            }
        }
    }
    for lane in 0..BLOCK {
        let values = [center[lane], even[0][lane] + odd[0][lane], even[1][lane] + odd[1][lane]];
        for (part, value) in values.into_iter().enumerate() {
            record[part * BLOCK + lane] = value;
        }
    }
}

#[inline(always)]
fn deviate<T: Tile>(pixel: &[f32; BLOCK], center: &[f32; BLOCK], [sum, squares]: &mut Deviations) {
    for lane in 0..BLOCK {
        let deviation = pixel[lane] - center[lane];
        sum[lane] += deviation;
        squares[lane] = multiply_add::<T>(deviation, deviation, squares[lane]);
    }
}
