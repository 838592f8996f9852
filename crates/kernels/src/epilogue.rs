//! How a convolution writes its result: residual and activation on the way out, padding kept at zero.

use crate::elementwise::{Activation, activate};
use crate::layout::BLOCK;
use crate::microkernel::Tile;
use crate::moments::{Patches, RECORD, Rows, record};
use crate::shared::SharedOutput;
use crate::strip::place;
use crate::tensor::{SharedTensor, Tensor};
use std::ops::Range;

/// What is added to the result before the last activation.
#[derive(Clone, Copy, Default)]
pub enum Residual<'a> {
    /// Nothing.
    #[default]
    None,
    /// Another tensor of the output's shape.
    Tensor(Tensor<'a>),
    /// What the output held before.
    InPlace,
}

/// What happens to a result on its way out: bias (the convolution's own), residual, activation.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Summand.
    pub residual: Residual<'a>,
    /// Nonlinearity of the sum.
    pub activation: Activation,
}

/// A blocked output with what is done to values on their way into it.
pub(crate) struct Target<'a> {
    pub output: SharedTensor<'a>,
    /// Height and width.
    pub size: [usize; 2],
    /// Rows that are made.
    pub rows: Range<usize>,
    /// Rows of the output and of a residual that lie in memory (see [`crate::strip`]).
    pub stored_rows: [usize; 2],
    pub channels: usize,
    pub epilogue: Epilogue<'a>,
    /// Where moments of the result go, if they are wanted: how it is cut, and their table (see [`Patches::table_len`]).
    pub moments: Option<(Patches, SharedOutput<'a>)>,
}

impl Target<'_> {
    /// Takes the moments of some patches of a band and channel block, if they are wanted.
    ///
    /// # Safety
    /// The CPU has the tier; these patches are finished, and no other task has them or writes their moments.
    #[inline(always)]
    pub(crate) unsafe fn take_moments<T: Tile>(&self, block: usize, band: usize, some: Range<usize>) {
        let Some((patches, table)) = &self.moments else { return };
        let (bands, across) = (patches.bands(self.rows.clone()), patches.across(self.size[1]));
        for patch in some {
            let [rows, columns] = patches.place(band, patch, self.size);
            let index = (block * bands.len() + band - bands.start) * across + patch;
            let patch = Patch { target: self, block, columns };
            // SAFETY: the caller's contract.
            unsafe { record::<T>(&patch, rows, table.part(index * RECORD, RECORD)) };
        }
    }

    /// Asks for what [`Target::finish`] will touch, as far as it lies inside the picture.
    #[inline(always)]
    pub(crate) fn prefetch(&self, block: usize, [row, column]: [usize; 2], columns: usize) {
        let [height, width] = self.size;
        if row >= height || column >= width || block * BLOCK >= self.channels {
            return;
        }
        let [output, other] = self.offsets(block, [row, column]);
        let len = columns.min(width - column);
        self.output.prefetch(output, len);
        if let Residual::Tensor(residual) = self.epilogue.residual {
            residual.prefetch(other, len);
        }
    }

    /// Where a pixel of a channel block lies in the output and in a residual, in groups.
    #[inline(always)]
    fn offsets(&self, block: usize, [row, column]: [usize; 2]) -> [usize; 2] {
        self.stored_rows.map(|rows| (block * rows + place(row, rows)) * self.size[1] + column)
    }

    /// Finishes the `columns` pixels of one channel block that begin at `start` (row and column); the sixteen values of
    /// pixel `i` begin at `values[i · stride]`.
    ///
    /// # Safety
    /// The CPU has the tier, and no other task writes these pixels of this block.
    #[inline(always)]
    pub(crate) unsafe fn finish<T: Tile>(
        &self,
        block: usize,
        start: [usize; 2],
        columns: usize,
        values: &[f32],
        stride: usize,
    ) {
        let [offset, residual_offset] = self.offsets(block, start);
        // Zero weights alone do not keep the padding at zero: 0 · NaN is NaN.
        let used = (self.channels - block * BLOCK).min(BLOCK);
        let Epilogue { residual, activation } = self.epilogue;
        // The usual cases, whose loops have nothing to decide.
        if let (SharedTensor::Float32(output), BLOCK) = (&self.output, used) {
            // SAFETY: the caller's contract.
            let output = unsafe { output.part(offset * BLOCK, columns * BLOCK) }.as_chunks_mut::<BLOCK>().0;
            match residual {
                Residual::None => {
                    for (index, pixel) in output.iter_mut().enumerate() {
                        *pixel = finished::<T>(activation, sums_at(values, index * stride), None);
                    }
                    return;
                }
                Residual::InPlace => {
                    for (index, pixel) in output.iter_mut().enumerate() {
                        *pixel = finished::<T>(activation, sums_at(values, index * stride), Some(pixel));
                    }
                    return;
                }
                Residual::Tensor(Tensor::Float32(residual)) => {
                    let others = &residual[residual_offset * BLOCK..][..columns * BLOCK];
                    for (index, (pixel, other)) in output.iter_mut().zip(others.as_chunks().0).enumerate() {
                        *pixel = finished::<T>(activation, sums_at(values, index * stride), Some(other));
                    }
                    return;
                }
                Residual::Tensor(_) => {}
            }
        }
        for index in 0..columns {
            let place = offset + index;
            // SAFETY: the caller's contract.
            let other = unsafe {
                match residual {
                    Residual::None => None,
                    Residual::Tensor(residual) => Some(residual.group::<T>(residual_offset + index)),
                    Residual::InPlace => Some(self.output.get::<T>(place)),
                }
            };
            let mut pixel = finished::<T>(activation, sums_at(values, index * stride), other.as_ref());
            if used < BLOCK {
                for (lane, value) in pixel.iter_mut().enumerate() {
                    *value = if lane < used { *value } else { 0.0 };
                }
            }
            // SAFETY: the caller's contract.
            unsafe { self.output.put::<T>(place, pixel) };
        }
    }
}

/// Some columns of a channel block of what was finished.
struct Patch<'a> {
    target: &'a Target<'a>,
    block: usize,
    columns: Range<usize>,
}

impl Rows for Patch<'_> {
    #[inline(always)]
    unsafe fn row(&self, row: usize) -> Tensor<'_> {
        let [offset, _] = self.target.offsets(self.block, [row, self.columns.start]);
        // SAFETY: the caller's contract.
        unsafe { self.target.output.read(offset, self.columns.len()) }
    }
}

/// The sums of one pixel, which begin at `start`.
#[inline(always)]
fn sums_at(values: &[f32], start: usize) -> &[f32; BLOCK] {
    values[start..].first_chunk().expect("one value for each lane")
}

/// `activation(sums + other)`
#[inline(always)]
fn finished<T: Tile>(
    activation: Activation,
    sums: &[f32; BLOCK],
    other: Option<&[f32; BLOCK]>,
) -> [f32; BLOCK] {
    let mut pixel = *sums;
    if let Some(other) = other {
        for (sum, other) in pixel.iter_mut().zip(other) {
            *sum += other;
        }
    }
    activate::<T>(activation, &mut pixel);
    pixel
}
