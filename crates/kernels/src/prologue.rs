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
    /// whose first pixel is `corner`, counted in the upsampled and padded picture, and asks for the same window of the
    /// block `ahead` meanwhile.
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
        ahead: Option<usize>,
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
            if let Some(ahead) = ahead {
                self.prefetch_row(ahead, [corner[0] + row, corner[1]], columns);
            }
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
                // SAFETY: the caller vouches for the CPU.
                unsafe { self.change::<T>(source.part(from, after - before), affine, inside) };
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

    /// The window that [`Source::gather`] would fill, where it lies in memory as it is: from its first value on, and the
    /// values from one of its rows to the next.
    #[inline(always)]
    pub(crate) fn window(
        &self,
        block: usize,
        corner: [usize; 2],
        [rows, columns]: [usize; 2],
    ) -> Option<(&[f32], usize)> {
        let [height, width] = self.size;
        let Prologue { affine: None, activation: Activation::None, .. } = self.prologue else { return None };
        let (tap, block) = (block / self.frame_blocks, block % self.frame_blocks);
        let (Tensor::Float32(values), frame) = self.frame(self.frames[tap]?) else { return None };
        let [top, left] = [corner[0].checked_sub(self.padding[0])?, corner[1].checked_sub(self.padding[1])?];
        let inside = top + rows <= height && left + columns <= width;
        let first = place(top, self.rows);
        if self.factor > 1 || !inside || first + rows > self.rows {
            return None;
        }
        let start = (((frame * self.frame_blocks + block) * self.rows + first) * width + left) * BLOCK;
        Some((&values[start..], width * BLOCK))
    }

    /// The tensor that holds a frame, and which of its frames it is.
    #[inline(always)]
    fn frame(&self, frame: usize) -> (Tensor<'_>, usize) {
        match self.history.get(frame) {
            Some(earlier) => (*earlier, 0),
            None => (self.input, frame - self.history.len()),
        }
    }

    /// Norm and activation of `pixels` on their way to `out`.
    ///
    /// # Safety
    /// The CPU has the tier.
    #[inline(always)]
    unsafe fn change<T: Tile>(
        &self,
        pixels: Tensor<'_>,
        affine: Option<([f32; BLOCK], [f32; BLOCK])>,
        out: &mut [f32],
    ) {
        // SAFETY: the caller's contract.
        unsafe {
            match (affine, self.prologue.activation) {
                (Some((scale, shift)), Activation::Silu) => {
                    for (index, out) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                        let pixel = pixels.group::<T>(index);
                        for lane in 0..BLOCK {
                            out[lane] = silu::<T>(multiply_add::<T>(pixel[lane], scale[lane], shift[lane]));
                        }
                    }
                }
                (affine, activation) => {
                    pixels.read::<T>(out);
                    if let Some((scale, shift)) = affine {
                        for pixel in out.as_chunks_mut::<BLOCK>().0 {
                            for lane in 0..BLOCK {
                                pixel[lane] = multiply_add::<T>(pixel[lane], scale[lane], shift[lane]);
                            }
                        }
                    }
                    activate::<T>(activation, out);
                }
            }
        }
    }

    /// Asks for what [`Source::gather`] will read of `columns` pixels from `corner`.
    #[inline(always)]
    pub(crate) fn prefetch_row(&self, block: usize, corner: [usize; 2], columns: usize) {
        let [height, width] = self.size;
        let Some(frame) = self.frames[block / self.frame_blocks] else { return };
        let (frames, frame) = self.frame(frame);
        let block = frame * self.frame_blocks + block % self.frame_blocks;
        let row = corner[0].saturating_sub(self.padding[0]) / self.factor;
        let left = (corner[1].saturating_sub(self.padding[1]) / self.factor).min(width);
        if row < height {
            let len = columns.div_ceil(self.factor).min(width - left);
            frames.prefetch((block * self.rows + place(row, self.rows)) * width + left, len);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two frames of two channel blocks of 9×7 pixels, of which `rows` rows lie in memory.
    fn source(values: &[f32], rows: usize) -> Source<'_> {
        Source {
            input: values.into(),
            history: &[],
            frames: std::array::from_fn(|tap| (tap < 2).then_some(tap)),
            frame_blocks: 2,
            replicate: false,
            size: [9, 7],
            rows,
            prologue: Prologue::default(),
            factor: 1,
            padding: [1, 1],
        }
    }

    #[test]
    fn a_window_is_read_where_it_lies_if_it_lies_in_one_piece() {
        let values: Vec<f32> = (0..2 * 2 * 9 * 7 * BLOCK).map(|index| index as f32).collect();
        let whole = source(&values, 9);
        let start = |source: Source<'_>, block, corner| {
            let (values, stride) = source.window(block, corner, [4, 3])?;
            assert_eq!(stride, 7 * BLOCK);
            Some(values[0] as usize / BLOCK)
        };
        // One pixel of padding lies before the picture.
        assert_eq!(start(whole, 0, [1, 1]), Some(0));
        assert_eq!(start(whole, 3, [6, 5]), Some((3 * 9 + 5) * 7 + 4));
        for corner in [[0, 1], [1, 0], [7, 1], [1, 6]] {
            assert_eq!(start(whole, 0, corner), None, "{corner:?}");
        }
        let ring = source(&values[..2 * 2 * 6 * 7 * BLOCK], 6);
        assert_eq!(start(ring, 1, [2, 3]), Some((6 + 1) * 7 + 2));
        assert_eq!(start(ring, 1, [4, 3]), None);
        // Row 6 of the picture lies where row 0 did; the picture ends before a window from there on.
        let (values, _) = ring.window(1, [7, 3], [3, 3]).unwrap();
        assert_eq!(values[0] as usize / BLOCK, 6 * 7 + 2);
        let norm = [1.0; 2 * BLOCK];
        for prologue in [
            Prologue { affine: Some((&norm, &norm)), ..Prologue::default() },
            Prologue { activation: Activation::Relu, ..Prologue::default() },
        ] {
            assert_eq!(start(Source { prologue, ..whole }, 0, [1, 1]), None);
        }
        assert_eq!(start(Source { factor: 2, ..whole }, 0, [1, 1]), None);
        assert_eq!(start(Source { frames: [None; MAX_TAPS], ..whole }, 0, [1, 1]), None);
    }
}
