//! How a convolution reads its input: norm, activation, nearest upsampling and padding on the way into a patch.

use crate::clip::MAX_TAPS;
use crate::elementwise::{Activation, activate};
use crate::layout::BLOCK;
use crate::math::{multiply_add, silu};
use crate::microkernel::Tile;
use crate::strip::place;
use crate::tensor::Tensor;

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
    /// Frames, one after the other.
    pub input: Tensor<'a>,
    /// Frames before them, one after the other.
    pub history: &'a [Tensor<'a>],
    /// The frame that each time tap reads, counted from the first of `history`; `None` for zeros.
    pub frames: [Option<usize>; MAX_TAPS],
    /// Channel blocks of a frame.
    pub frame_blocks: usize,
    /// Whether pixels around the picture are those of its edge and not zeros.
    pub replicate: bool,
    /// Height and width before upsampling.
    pub size: [usize; 2],
    /// Rows that lie in memory (see [`crate::strip`]).
    pub rows: usize,
    /// Norm and activation; upsampling as in `factor`.
    pub prologue: Prologue<'a>,
    /// Nearest upsampling, at least 1.
    pub factor: usize,
    /// Rows above and columns to the left of the picture.
    pub padding: [usize; 2],
}

impl Source<'_> {
    /// Fills `out` (`[rows][columns][16]`) with one channel block (those of the first tap's frame first) of the window
    /// whose first pixel is `corner`, counted in the upsampled and padded picture.
    ///
    /// # Safety
    /// The CPU has the tier.
    #[inline(always)]
    pub(crate) unsafe fn gather<T: Tile>(
        &self,
        block: usize,
        corner: [usize; 2],
        columns: usize,
        patch: &mut [f32],
    ) {
        let [top, left] = self.padding;
        let factor = self.factor;
        let [height, width] = self.size;
        let (tap, block) = (block / self.frame_blocks, block % self.frame_blocks);
        let Some(frame) = self.frames[tap] else {
            patch.fill(0.0);
            return;
        };
        let plane = self.rows * width;
        let (frames, frame) = self.frame(frame);
        let source_plane = frames.part((frame * self.frame_blocks + block) * plane, plane);
        for (row, out) in patch.chunks_exact_mut(columns * BLOCK).enumerate() {
            let mut y = corner[0] + row;
            if self.replicate {
                y = y.clamp(top, top + height * factor - 1);
            }
            if y < top || y - top >= height * factor {
                out.fill(0.0);
                continue;
            }
            let source = source_plane.part(place((y - top) / factor, self.rows) * width, width);
            // Columns `before..after` of the patch lie inside the picture.
            let x = corner[1];
            let before = left.saturating_sub(x).min(columns);
            let after = (width * factor + left).saturating_sub(x).clamp(before, columns);
            out[..before * BLOCK].fill(0.0);
            out[after * BLOCK..].fill(0.0);
            let inside = &mut out[before * BLOCK..after * BLOCK];
            let affine = self.prologue.affine.map(|(scale, shift)| {
                let of = |table: &[f32]| -> [f32; BLOCK] {
                    *table[block * BLOCK..].first_chunk().expect("padded to whole blocks")
                };
                (of(scale), of(shift))
            });
            if factor == 1 {
                let from = (x + before).saturating_sub(left).min(width);
                let pixels = source.part(from, after - before);
                let pixels = match pixels {
                    Tensor::Float32(pixels) => pixels.as_chunks::<BLOCK>().0,
                    Tensor::Half(..) => {
                        // SAFETY: the caller vouches for the CPU.
                        unsafe { pixels.read::<T>(inside) };
                        self.change::<T>(affine, inside);
                        if self.replicate {
                            repeat_edges(out, before, after);
                        }
                        continue;
                    }
                };
                let inside = inside.as_chunks_mut::<BLOCK>().0;
                match (affine, self.prologue.activation) {
                    (None, Activation::None) => inside.copy_from_slice(pixels),
                    (Some((scale, shift)), Activation::Silu) => {
                        for (out, pixel) in inside.iter_mut().zip(pixels) {
                            for lane in 0..BLOCK {
                                out[lane] =
                                    silu::<T>(multiply_add::<T>(pixel[lane], scale[lane], shift[lane]));
                            }
                        }
                    }
                    (affine, activation) => {
                        let (scale, shift) = affine.unwrap_or(([1.0; BLOCK], [0.0; BLOCK]));
                        for (out, pixel) in inside.iter_mut().zip(pixels) {
                            for lane in 0..BLOCK {
                                out[lane] = multiply_add::<T>(pixel[lane], scale[lane], shift[lane]);
                            }
                        }
                        activate::<T>(activation, inside.as_flattened_mut());
                    }
                }
                if self.replicate {
                    repeat_edges(out, before, after);
                }
                continue;
            }
            for (column, pixel) in inside.chunks_exact_mut(BLOCK).enumerate() {
                let from = (x + before + column - left) / factor;
                // SAFETY: the caller vouches for the CPU.
                pixel.copy_from_slice(&unsafe { source.group::<T>(from) });
                if let Some((scale, shift)) = affine {
                    for lane in 0..BLOCK {
                        pixel[lane] = multiply_add::<T>(pixel[lane], scale[lane], shift[lane]);
                    }
                }
            }
            activate::<T>(self.prologue.activation, inside);
            if self.replicate {
                repeat_edges(out, before, after);
            }
        }
    }

    /// The tensor that holds a frame, and which of its frames it is.
    #[inline(always)]
    fn frame(&self, frame: usize) -> (Tensor<'_>, usize) {
        match self.history.get(frame) {
            Some(earlier) => (*earlier, 0),
            None => (self.input, frame - self.history.len()),
        }
    }

    /// Norm and activation of pixels that stand where they are read from.
    #[inline(always)]
    fn change<T: Tile>(&self, affine: Option<([f32; BLOCK], [f32; BLOCK])>, pixels: &mut [f32]) {
        let Some((scale, shift)) = affine else {
            return activate::<T>(self.prologue.activation, pixels);
        };
        let silu_after = self.prologue.activation == Activation::Silu;
        for pixel in pixels.as_chunks_mut::<BLOCK>().0 {
            for lane in 0..BLOCK {
                let value = multiply_add::<T>(pixel[lane], scale[lane], shift[lane]);
                pixel[lane] = if silu_after { silu::<T>(value) } else { value };
            }
        }
        if !silu_after {
            activate::<T>(self.prologue.activation, pixels);
        }
    }

    /// Asks for what [`Source::gather`] will read of a window of `rows` and `columns`.
    #[inline(always)]
    pub(crate) fn prefetch(&self, block: usize, corner: [usize; 2], [rows, columns]: [usize; 2]) {
        let [height, width] = self.size;
        let Some(frame) = self.frames[block / self.frame_blocks] else { return };
        let (frames, frame) = self.frame(frame);
        let block = frame * self.frame_blocks + block % self.frame_blocks;
        let inside = |axis: usize, len: usize, end: usize| {
            let start = corner[axis].saturating_sub(self.padding[axis]) / self.factor;
            (start.min(end), (start + len.div_ceil(self.factor)).min(end))
        };
        let ((top, bottom), (left, right)) = (inside(0, rows, height), inside(1, columns, width));
        for row in top..bottom {
            let row = block * self.rows + place(row, self.rows);
            frames.prefetch(row * width + left, right - left);
        }
    }
}

/// Copies the first and the last of the pixels `before..after` of a row over those around them.
#[inline(always)]
fn repeat_edges(row: &mut [f32], before: usize, after: usize) {
    let pixels = row.as_chunks_mut::<BLOCK>().0;
    if before < after {
        let (first, last) = (pixels[before], pixels[after - 1]);
        pixels[..before].fill(first);
        pixels[after..].fill(last);
    }
}
