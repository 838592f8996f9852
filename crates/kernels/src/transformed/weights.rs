//! The weights' transform, made anew for each call: panels of `f32`, or of 16-bit integers with their scales.

use super::grid::groups_of_chunk;
use super::{MOST, SKEW, TAPS, Transform};
use crate::bytes;
use crate::convolution::{Arithmetic, Geometry};
use crate::form::Form;
use crate::integers::{self, SPLIT};
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::microkernel::Tile;
use crate::pool::{Pool, carve, whole_lines};
use crate::shared::SharedOutput;
use crate::vector::Vector;
use crate::weights::{Compact, Span};
use std::ops::Range;

/// Where things lie in the transformed weights: panels (`[chunk][point][group][input block][16][lanes]`, with integers
/// `[pair][lanes]` for `[16][lanes]` or as `bytes` says, points skewed), then, with integers, `f32` factors
/// (`[group][point][split][lanes]`).
#[derive(Clone, Copy)]
pub(super) struct Panels {
    form: Form,
    points: usize,
    groups: usize,
    lanes: usize,
    input_blocks: usize,
}

impl Panels {
    pub(super) fn new<W: Transform>(isa: Isa, geometry: &Geometry, arithmetic: Arithmetic) -> Panels {
        Panels {
            form: Form::of_transformed(isa, arithmetic),
            points: W::PRODUCTS * W::PRODUCTS,
            groups: geometry.output_channels.div_ceil(isa.lanes()),
            lanes: isa.lanes(),
            input_blocks: blocks(geometry.input_channels),
        }
    }

    /// 32-bit words of one input block's panel.
    pub(super) fn block_len(&self) -> usize {
        self.form.words_per_block() * self.lanes
    }

    /// 32-bit words of one point's panel.
    pub(super) fn len(&self) -> usize {
        self.form.padded(self.input_blocks) * self.block_len()
    }

    /// Where the panel of a group and point begins.
    pub(super) fn start(&self, group: usize, point: usize) -> usize {
        self.place(group, point) * (self.len() + SKEW)
    }

    /// How many panels lie before that of a group and point.
    fn place(&self, group: usize, point: usize) -> usize {
        let chunk = self.chunk(group);
        chunk.start * self.points + point * chunk.len() + group - chunk.start
    }

    /// The groups of a chunk, by one of them.
    pub(super) fn chunk(&self, group: usize) -> Range<usize> {
        let size = groups_of_chunk(self.form, self.input_blocks);
        let first = group - group % size;
        first..(first + size).min(self.groups)
    }

    /// Where the factors of a group, point and split lie.
    pub(super) fn factors(&self, group: usize, point: usize, split: usize) -> usize {
        let splits = self.input_blocks.div_ceil(SPLIT);
        self.end() + ((group * self.points + point) * splits + split) * self.lanes
    }

    /// Where the panels end.
    fn end(&self) -> usize {
        self.groups * self.points * (self.len() + SKEW)
    }

    /// `f32` of all.
    pub(super) fn total(&self) -> usize {
        if self.form.is_integers() { self.factors(self.groups, 0, 0) } else { self.end() }
    }

    /// Input blocks that one task transforms.
    fn blocks_per_task(&self) -> usize {
        if self.form.is_integers() { SPLIT } else { 1 }
    }

    /// `f32` that a worker takes.
    pub(super) fn worker_len(&self) -> usize {
        self.worker_lens().into_iter().map(whole_lines).sum()
    }

    /// Weights as they came, and with integers a split's transformed weights.
    fn worker_lens(&self) -> [usize; 2] {
        let block = BLOCK * self.lanes;
        let split = SPLIT.min(self.input_blocks) * block + SKEW;
        let transformed = if self.form.is_integers() { self.points * split } else { 0 };
        [TAPS * TAPS * block, transformed]
    }
}

/// Makes the transformed weights.
pub(super) fn transform<W: Transform>(
    isa: Isa,
    pool: &Pool,
    panels: Panels,
    (weights, span): (&Compact, Span),
    output: &mut [f32],
) {
    let parts = panels.input_blocks.div_ceil(panels.blocks_per_task());
    let output = SharedOutput::new(output);
    let job = &Job { weights, span, panels, output: &output, parts };
    pool.run_in_room(panels.groups * parts, panels.worker_len(), |mut room, index| {
        let [taps, transformed] = panels.worker_lens().map(|len| carve(&mut room, len));
        let scratch = &mut Scratch { taps, transformed };
        dispatch!(isa, part::<W: Transform>(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize));
    });
}

struct Job<'a> {
    weights: &'a Compact,
    span: Span,
    panels: Panels,
    output: &'a SharedOutput<'a>,
    /// Tasks of one group.
    parts: usize,
}

struct Scratch<'a> {
    /// Weights between sixteen input channels and one group, `[tap][16][lanes]`.
    taps: &'a mut [f32],
    /// Their transform before it is rounded, `[point][input block of the split][16][lanes]`, points skewed.
    transformed: &'a mut [f32],
}

/// Transforms the weights between some input blocks and one group of output channels.
#[inline(always)]
unsafe fn part<T: Tile, W: Transform>(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize) {
    let panels = job.panels;
    let (group, part) = (index / job.parts, index % job.parts);
    let first = part * panels.blocks_per_task();
    let count = panels.blocks_per_task().min(panels.input_blocks - first);
    let len = TAPS * TAPS * BLOCK * T::LANES;
    let block_len = BLOCK * T::LANES;
    let point_len = count * block_len + SKEW;
    for block in 0..count {
        let at = (group * job.span.all + job.span.first + first + block) * len;
        let taps = job.weights.widen(at, len, scratch.taps);
        // SAFETY: the caller vouches for the CPU; each task owns the parts of its group and input blocks.
        unsafe {
            if panels.form.is_integers() {
                transform_block::<T, W>(taps, |point, row, factor| {
                    let offset = point * point_len + block * block_len + row;
                    factor.store(&mut scratch.transformed[offset..][..<T::Vector as Vector>::LANES]);
                });
            } else {
                transform_block::<T, W>(taps, |point, row, factor| {
                    let offset = panels.start(group, point) + (first + block) * block_len + row;
                    factor.store(job.output.part(offset, <T::Vector as Vector>::LANES));
                });
            }
        }
    }
    if panels.form.is_integers() {
        for point in 0..panels.points {
            let values = &scratch.transformed[point * point_len..][..count * block_len];
            let start = panels.start(group, point) + first * panels.block_len();
            // SAFETY: as above; panels and factors do not overlap.
            unsafe {
                let words = job.output.part(start, panels.form.padded(count) * panels.block_len());
                let words = integers::words_mut(words);
                let factors = job.output.part(panels.factors(group, point, part), T::LANES);
                if panels.form == Form::Bytes {
                    bytes::round_weights::<T>(values, words, factors);
                } else {
                    integers::quantize_weights::<T>(values, words, factors);
                }
            }
        }
    }
}

/// One input block: `[tap][16][lanes]` → `put(point, offset in [16][lanes], factors)`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // iterators over arrays of registers are not unrolled
unsafe fn transform_block<T: Tile, W: Transform>(taps: &[f32], mut put: impl FnMut(usize, usize, T::Vector)) {
    for row in (0..BLOCK * T::LANES).step_by(<T::Vector as Vector>::LANES) {
        // SAFETY: the caller vouches for the CPU; slices are cut to the length that is read.
        unsafe {
            let mut half = [[T::Vector::splat(0.0); MOST]; TAPS];
            for column in 0..TAPS {
                let mut w = [T::Vector::splat(0.0); TAPS];
                for y in 0..TAPS {
                    let from = (y * TAPS + column) * BLOCK * T::LANES + row;
                    w[y] = T::Vector::load(&taps[from..][..<T::Vector as Vector>::LANES]);
                }
                half[column] = W::weight(w);
            }
            for y in 0..W::PRODUCTS {
                let factors = W::weight([half[0][y], half[1][y], half[2][y]]);
                for x in 0..W::PRODUCTS {
                    put(y * W::PRODUCTS + x, row, factors[x]);
                }
            }
        }
    }
}
