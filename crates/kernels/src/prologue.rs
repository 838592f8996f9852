//! How a convolution reads its input: norm, activation, nearest upsampling and zero padding on the way into a patch.

use crate::elementwise::{Activation, activate};
use crate::layout::BLOCK;
use crate::math::multiply_add;
use crate::microkernel::Tile;

/// What happens to an input value on its way into the convolution, in this order: norm, activation, upsampling.
#[derive(Clone, Copy, Default)]
pub struct Prologue<'a> {
    /// Per-channel factor and summand (`[padded channels]` each), as [`crate::norm`] makes them.
    pub affine: Option<(&'a [f32], &'a [f32])>,
    /// Nonlinearity after the norm.
    pub activation: Activation,
    /// Nearest upsampling by this factor in both directions; 0 and 1 mean none.
    pub upsample: usize,
}

/// A blocked tensor with what is done to it while it is read.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub input: &'a [f32],
    /// Height and width before upsampling.
    pub size: [usize; 2],
    /// Norm and activation; upsampling as in `factor`.
    pub prologue: Prologue<'a>,
    /// Nearest upsampling, at least 1.
    pub factor: usize,
    /// Rows of zeros above and columns of zeros to the left.
    pub padding: [usize; 2],
}

impl Source<'_> {
    /// Fills `out` (`[rows][columns][16]`) with one channel block of the window whose first pixel is `corner`, counted
    /// in the upsampled and padded picture.
    #[inline(always)]
    pub(crate) fn gather<T: Tile>(
        &self,
        block: usize,
        corner: [usize; 2],
        columns: usize,
        patch: &mut [f32],
    ) {
        let [top, left] = self.padding;
        let factor = self.factor;
        let [height, width] = self.size;
        let source_plane = &self.input[block * height * width * BLOCK..][..height * width * BLOCK];
        for (row, out) in patch.chunks_exact_mut(columns * BLOCK).enumerate() {
            let y = corner[0] + row;
            if y < top || y - top >= height * factor {
                out.fill(0.0);
                continue;
            }
            let source = &source_plane[(y - top) / factor * width * BLOCK..][..width * BLOCK];
            // Columns `before..after` of the patch lie inside the picture.
            let x = corner[1];
            let before = left.saturating_sub(x).min(columns);
            let after = (width * factor + left).saturating_sub(x).clamp(before, columns);
            out[..before * BLOCK].fill(0.0);
            out[after * BLOCK..].fill(0.0);
            let inside = &mut out[before * BLOCK..after * BLOCK];
            if factor == 1 {
                let from = (x + before).saturating_sub(left) * BLOCK;
                inside.copy_from_slice(&source[from.min(source.len())..][..inside.len()]);
            } else {
                for (column, pixel) in inside.chunks_exact_mut(BLOCK).enumerate() {
                    let from = (x + before + column - left) / factor;
                    pixel.copy_from_slice(&source[from * BLOCK..][..BLOCK]);
                }
            }
            if let Some((scale, shift)) = self.prologue.affine {
                let scale: &[f32; BLOCK] =
                    scale[block * BLOCK..].first_chunk().expect("padded to whole blocks");
                let shift: &[f32; BLOCK] =
                    shift[block * BLOCK..].first_chunk().expect("padded to whole blocks");
                for pixel in inside.as_chunks_mut::<BLOCK>().0 {
                    for lane in 0..BLOCK {
                        pixel[lane] = multiply_add::<T>(pixel[lane], scale[lane], shift[lane]);
                    }
                }
            }
            activate::<T>(self.prologue.activation, inside);
        }
    }
}
