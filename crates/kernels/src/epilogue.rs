//! How a convolution writes its result: residual and activation on the way out, padding kept at zero.

use crate::elementwise::{Activation, activate};
use crate::layout::BLOCK;
use crate::microkernel::Tile;
use crate::shared::{SharedOutput, prefetch};

/// What is added to the result before the last activation.
#[derive(Clone, Copy, Default)]
pub enum Residual<'a> {
    /// Nothing.
    #[default]
    None,
    /// Another tensor of the output's shape.
    Tensor(&'a [f32]),
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
    pub output: SharedOutput<'a>,
    /// Height and width.
    pub size: [usize; 2],
    pub channels: usize,
    pub epilogue: Epilogue<'a>,
}

impl Target<'_> {
    /// Asks for what [`Target::finish`] will touch, as far as it lies inside the picture.
    #[inline(always)]
    pub(crate) fn prefetch(&self, block: usize, [row, column]: [usize; 2], columns: usize) {
        let [height, width] = self.size;
        if row >= height || column >= width || block * BLOCK >= self.channels {
            return;
        }
        let offset = ((block * height + row) * width + column) * BLOCK;
        let len = columns.min(width - column) * BLOCK;
        self.output.prefetch(offset, len);
        if let Residual::Tensor(residual) = self.epilogue.residual {
            prefetch(&residual[offset..][..len]);
        }
    }

    /// Finishes the `columns` pixels of one channel block that begin at `[row, column]`; the sixteen values of pixel `i`
    /// begin at `values[i · stride]`.
    ///
    /// # Safety
    /// No other task writes these pixels of this block.
    #[inline(always)]
    pub(crate) unsafe fn finish<T: Tile>(
        &self,
        block: usize,
        [row, column]: [usize; 2],
        columns: usize,
        values: &[f32],
        stride: usize,
    ) {
        let [height, width] = self.size;
        let offset = ((block * height + row) * width + column) * BLOCK;
        // SAFETY: the caller's contract.
        let out = unsafe { self.output.part(offset, columns * BLOCK) };
        for (index, pixel) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let sum: &[f32; BLOCK] = values[index * stride..].first_chunk().expect("one value for each lane");
            match self.epilogue.residual {
                Residual::None => *pixel = *sum,
                Residual::Tensor(residual) => {
                    let other: &[f32; BLOCK] =
                        residual[offset + index * BLOCK..].first_chunk().expect("shaped as the output");
                    for lane in 0..BLOCK {
                        pixel[lane] = sum[lane] + other[lane];
                    }
                }
                Residual::InPlace => {
                    for lane in 0..BLOCK {
                        pixel[lane] += sum[lane];
                    }
                }
            }
        }
        activate::<T>(self.epilogue.activation, out);
        // Zero weights alone do not keep the padding at zero: 0 · NaN is NaN.
        let used = (self.channels - block * BLOCK).min(BLOCK);
        if used < BLOCK {
            for pixel in out.as_chunks_mut::<BLOCK>().0 {
                pixel[used..].fill(0.0);
            }
        }
    }
}
