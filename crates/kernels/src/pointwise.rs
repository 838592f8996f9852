//! Pointwise (1×1) convolutions: one matrix product of pixels and channels. Linear layers are pointwise convolutions.
//!
//! A task gathers a stretch of pixels, with integers rounds it pixel by pixel, and multiplies it with each group of output
//! channels. Every value is summed over input channels in one order, wherever a stretch ends.

use crate::ahead::Ahead;
use crate::convolution::{Arithmetic, Geometry};
use crate::epilogue::Target;
use crate::integers::{self, MOST_POINTS, PAIRS, SPLIT, Sources, words, words_mut};
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::microkernel::{PairRows, Rows, Tile};
use crate::pool::{Pool, carve, whole_lines};
use crate::prologue::Source;
use crate::shared::SharedOutput;
use crate::weights::Span;

/// Pixels of a stretch: whole passes of every tier's micro-kernel.
const STRETCH: usize = 96;
/// `f32` from one channel block of a stretch to the next: one cache line more than it is long, lest all fall into few
/// cache sets.
const BLOCK_STRIDE: usize = STRETCH * BLOCK + 16;
/// Input channel blocks whose weights are multiplied as `f32` before the sums are put down: their panel stays in the
/// first-level cache while the stretch passes by.
const PASS: usize = 16;
/// Tasks for each thread, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;

/// Whether a convolution is a pointwise one.
pub(crate) fn fits(geometry: &Geometry) -> bool {
    geometry.kernel == [1, 1] && geometry.stride == 1 && geometry.padding == [0; 4]
}

/// `f32` that the rounded weights take: panels (`[group][input block][pair][lanes]`), then factors
/// (`[group][split][lanes]`). None without integers: the weights are used as they are.
pub(crate) fn weights_len(isa: Isa, geometry: &Geometry, arithmetic: Arithmetic) -> usize {
    match arithmetic {
        Arithmetic::Float32 => 0,
        Arithmetic::Integer16 => {
            let shape = Shape::new(isa, geometry);
            shape.groups * (shape.input_blocks * PAIRS + shape.splits()) * shape.lanes
        }
    }
}

/// Bytes of scratch that each worker takes.
pub(crate) fn worker_bytes(isa: Isa, geometry: &Geometry, arithmetic: Arithmetic) -> usize {
    worker_lens(&Shape::new(isa, geometry), arithmetic).map(whole_lines).iter().sum::<usize>()
        * size_of::<f32>()
}

/// `f32` of the parts of [`Scratch`].
fn worker_lens(shape: &Shape, arithmetic: Arithmetic) -> [usize; 4] {
    let sums = STRETCH * shape.lanes;
    match arithmetic {
        Arithmetic::Float32 => [shape.input_blocks * BLOCK_STRIDE, 0, 0, sums],
        Arithmetic::Integer16 => [
            shape.input_blocks.min(SPLIT) * BLOCK_STRIDE,
            STRETCH * shape.input_blocks * PAIRS,
            shape.splits() * STRETCH,
            sums,
        ],
    }
}

#[derive(Clone, Copy)]
struct Shape {
    input_blocks: usize,
    /// Groups of output channels, and the channels of each.
    groups: usize,
    lanes: usize,
}

impl Shape {
    fn new(isa: Isa, geometry: &Geometry) -> Shape {
        let lanes = isa.lanes();
        let groups = geometry.output_channels.div_ceil(lanes);
        Shape { input_blocks: blocks(geometry.input_channels), groups, lanes }
    }

    /// Splits of the input channels, each with scales of its own.
    fn splits(&self) -> usize {
        self.input_blocks.div_ceil(SPLIT)
    }
}

/// Convolves each frame's source with the input blocks `span` of `panels` (`[group of lanes][input block][16][lanes]`) into its target, all of one
/// size; rounded weights are made in `scratch`, at least [`weights_len`] long, unless they are `ready` there.
pub(crate) fn run(
    isa: Isa,
    pool: &Pool,
    (geometry, arithmetic): (Geometry, Arithmetic),
    (panels, span, bias): (&[f32], Span, &[f32]),
    frames: Vec<(Source<'_>, Target<'_>)>,
    scratch: &mut [f32],
    ready: bool,
) {
    let Some((first, target)) = frames.first() else { return };
    let shape = Shape::new(isa, &geometry);
    if arithmetic == Arithmetic::Integer16 && !ready {
        quantize(isa, pool, shape, (panels, span), scratch);
    }
    // Where all rows lie one after the other, they are one long row, which makes fuller stretches.
    let height = target.size[0];
    let flat = first.rows == height && target.stored_rows == [height; 2] && target.rows == (0..height);
    let jobs: Vec<Job<'_>> = frames
        .into_iter()
        .map(|(source, target)| {
            let (source, target) = if flat {
                let one_row = |[height, width]: [usize; 2]| [1, height * width];
                let target = Target { size: one_row(target.size), rows: 0..1, stored_rows: [1; 2], ..target };
                (Source { size: one_row(source.size), rows: 1, ..source }, target)
            } else {
                (source, target)
            };
            Job { shape, span, arithmetic, panels, rounded: scratch, bias, source, target }
        })
        .collect();
    let rows = jobs[0].target.rows.clone();
    let per_row = jobs[0].target.size[1].div_ceil(STRETCH);
    let stretches = rows.len() * per_row;
    let parts = (pool.threads() * TASKS_PER_THREAD).div_ceil(stretches * jobs.len()).min(shape.groups);
    let groups_per_task = shape.groups.div_ceil(parts);
    let tasks = stretches * shape.groups.div_ceil(groups_per_task);
    let lens = worker_lens(&shape, arithmetic);
    pool.run_in_room(jobs.len() * tasks, lens.map(whole_lines).iter().sum(), |mut room, index| {
        let (job, index) = (&jobs[index / tasks], index % tasks);
        let (part, stretch) = (index / stretches, index % stretches);
        let [patch, sources, factors, sums] = lens.map(|len| carve(&mut room, len));
        let scratch = &mut Scratch { patch, sources, factors, sums };
        let start = [rows.start + stretch / per_row, stretch % per_row * STRETCH];
        let groups = [part * groups_per_task, ((part + 1) * groups_per_task).min(shape.groups)];
        dispatch!(isa, task(job: &Job<'_>, scratch: &mut Scratch<'_>, start: [usize; 2], groups: [usize; 2]));
    });
}

/// Rounds the weights, see [`weights_len`].
fn quantize(isa: Isa, pool: &Pool, shape: Shape, (panels, span): (&[f32], Span), rounded: &mut [f32]) {
    let Shape { input_blocks, groups, lanes } = shape;
    let split_len = SPLIT.min(input_blocks) * BLOCK * lanes;
    let output = SharedOutput::new(rounded);
    pool.run(groups, |group| {
        let start = (group * span.all + span.first) * BLOCK * lanes;
        let values = &panels[start..][..input_blocks * BLOCK * lanes];
        for (split, values) in values.chunks(split_len).enumerate() {
            let start = (group * input_blocks + split * SPLIT) * PAIRS * lanes;
            let factors = groups * input_blocks * PAIRS * lanes + (group * shape.splits() + split) * lanes;
            // SAFETY: each task owns the panels and factors of its group.
            let (words, factors) =
                unsafe { (output.part(start, values.len() / 2), output.part(factors, lanes)) };
            integers::round_weights(isa, values, words, factors);
        }
    });
}

struct Job<'a> {
    shape: Shape,
    span: Span,
    arithmetic: Arithmetic,
    panels: &'a [f32],
    /// With integers: the rounded weights.
    rounded: &'a [f32],
    bias: &'a [f32],
    source: Source<'a>,
    target: Target<'a>,
}

struct Scratch<'a> {
    /// The inputs of a stretch, `[input block][pixel][16]`, blocks [`BLOCK_STRIDE`] apart; with integers those of a split.
    patch: &'a mut [f32],
    /// With integers: rounded inputs, `[pixel / pixels][input block][pixel % pixels][pair]`.
    sources: &'a mut [f32],
    /// With integers: what undoes the scale, `[split][pixel]`.
    factors: &'a mut [f32],
    /// Sums of one group, `[pixel][lanes]`.
    sums: &'a mut [f32],
}

/// The stretch that begins at `start` (row and column), for the groups `first..last` of output channels.
#[inline(always)]
unsafe fn task<T: Tile>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    start: [usize; 2],
    [first, last]: [usize; 2],
) {
    let columns = STRETCH.min(job.target.size[1] - start[1]);
    let blocks_of = T::LANES / BLOCK;
    // SAFETY: the caller vouches for the CPU; stretches and groups partition the output, and each belongs to one task.
    unsafe {
        gather::<T>(job, scratch, start, columns);
        for group in first..last {
            let used = blocks(job.target.channels).min((group + 1) * blocks_of);
            for block in group * blocks_of..used {
                job.target.prefetch(block, start, columns);
            }
            for sums in scratch.sums.chunks_exact_mut(T::LANES) {
                sums.copy_from_slice(&job.bias[group * T::LANES..][..T::LANES]);
            }
            match job.arithmetic {
                Arithmetic::Float32 => multiply::<T>(job, scratch, columns, group),
                Arithmetic::Integer16 => multiply_integers::<T>(job, scratch, columns, group),
            }
            for block in group * blocks_of..used {
                let values = &scratch.sums[(block - group * blocks_of) * BLOCK..];
                job.target.finish::<T>(block, start, columns, values, T::LANES);
            }
        }
    }
}

/// Fills the patch, and with integers rounds it.
#[inline(always)]
unsafe fn gather<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, start: [usize; 2], columns: usize) {
    let input_blocks = job.shape.input_blocks;
    for block in 0..input_blocks {
        let place = match job.arithmetic {
            Arithmetic::Float32 => block,
            Arithmetic::Integer16 => block % SPLIT,
        };
        let patch = &mut scratch.patch[place * BLOCK_STRIDE..][..columns * BLOCK];
        let ahead = (block + 1 < input_blocks).then_some(block + 1);
        // SAFETY: the caller vouches for the CPU.
        unsafe { job.source.gather::<T>(block, start, columns, patch, ahead) };
        if job.arithmetic == Arithmetic::Integer16 && (place + 1 == SPLIT || block + 1 == input_blocks) {
            // SAFETY: the caller vouches for the CPU.
            unsafe { round::<T>(job, scratch, columns, block / SPLIT, place + 1) };
        }
    }
}

/// The patch's `count` channel blocks, those of split `split` → integers with their factors.
#[inline(always)]
unsafe fn round<T: Tile>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    columns: usize,
    split: usize,
    count: usize,
) {
    const { assert!(T::PIXELS <= MOST_POINTS && STRETCH.is_multiple_of(T::PIXELS)) };
    for pixel in (0..columns).step_by(T::PIXELS) {
        let pixels = T::PIXELS.min(columns - pixel);
        let values = Sources {
            values: &scratch.patch[pixel * BLOCK..],
            strides: [BLOCK, BLOCK_STRIDE],
            blocks: count,
        };
        let start = (pixel * job.shape.input_blocks + split * SPLIT * T::PIXELS) * PAIRS;
        let factors = &mut scratch.factors[split * STRETCH + pixel..][..pixels];
        let out = &mut words_mut(scratch.sources)[start..];
        // SAFETY: the caller vouches for the CPU.
        unsafe { integers::quantize_sources::<T::Vector>(values, factors, out, [PAIRS, T::PIXELS * PAIRS]) };
    }
}

#[inline(always)]
unsafe fn multiply<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, columns: usize, group: usize) {
    let len = job.shape.input_blocks * BLOCK * T::LANES;
    let start = (group * job.span.all + job.span.first) * BLOCK * T::LANES;
    let panels = &job.panels[start..][..len];
    for (pass, panel) in panels.chunks(PASS * BLOCK * T::LANES).enumerate() {
        for pixel in (0..columns).step_by(T::PIXELS) {
            let rows = Rows {
                ahead: Ahead::NONE,
                patch: scratch.patch,
                start: pass * PASS * BLOCK_STRIDE + pixel * BLOCK,
                row_stride: BLOCK,
                block_stride: BLOCK_STRIDE,
                taps: &[0],
            };
            // SAFETY: the caller vouches for the CPU.
            unsafe { T::accumulate(&rows, panel, &mut scratch.sums[pixel * T::LANES..]) };
        }
    }
}

#[inline(always)]
unsafe fn multiply_integers<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, columns: usize, group: usize) {
    let Shape { input_blocks, groups, .. } = job.shape;
    let len = input_blocks * PAIRS * T::LANES;
    let panels = &words(job.rounded)[group * len..][..len];
    let panel_factors = &job.rounded[groups * len + group * job.shape.splits() * T::LANES..];
    for (split, panel) in panels.chunks(SPLIT * PAIRS * T::LANES).enumerate() {
        for pixel in (0..columns).step_by(T::PIXELS) {
            let rows = PairRows {
                ahead: Ahead::NONE,
                words: &words(scratch.sources)[(pixel * input_blocks + split * SPLIT * T::PIXELS) * PAIRS..],
                factors: &scratch.factors[split * STRETCH + pixel..],
            };
            let panel_factors = &panel_factors[split * T::LANES..][..T::LANES];
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                T::accumulate_pairs(&rows, panel, panel_factors, &mut scratch.sums[pixel * T::LANES..])
            };
        }
    }
}
