//! Direct convolution in tile registers, for the kernels and strides that no transform fits or pays for.
//!
//! A task gathers the input of one square of outputs, two channel blocks at a time, and splits it into parts (`amx`). For
//! each tap of the kernel the rows of a register are then sixteen neighbouring pixels of that patch as it lies; nothing
//! is copied for a tap. Every value is one chain of sums: all taps of two channel blocks, then those of the
//! next two.

use crate::ahead::Ahead;
use crate::amx::{self, COLUMNS, PART, ROW};
use crate::convolution::{Arithmetic, Geometry};
use crate::epilogue::Target;
use crate::integers::{words, words_mut};
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::microkernel::Tile;
use crate::pool::{Pool, carve, whole_lines};
use crate::prologue::Source;
use crate::shared::SharedOutput;
use crate::weights::Span;

/// Output columns of a square: the rows of one register.
const WIDTH: usize = 16;
/// Output rows of a square, at most, in pairs.
const HEIGHT: usize = 16;
/// A patch in parts is kept below this many 32-bit words, so that it stays in a core's second-level cache.
const PATCH_BUDGET: usize = 288 * 1024;
/// Tasks for each thread, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;

/// Sizes that depend on the convolution's shape and the arithmetic alone, not on the picture or the threads.
#[derive(Clone, Copy)]
struct Shape {
    /// Of each number.
    parts: usize,
    /// Of the kernel.
    taps: usize,
    /// Pairs of input channel blocks.
    steps: usize,
    /// Of output channels.
    groups: usize,
    /// Output rows of a square.
    height: usize,
    /// Input rows and columns of a square.
    patch: [usize; 2],
}

impl Shape {
    fn new(geometry: &Geometry, arithmetic: Arithmetic) -> Shape {
        let parts = match arithmetic {
            Arithmetic::Float32 => amx::EXACT_PARTS,
            Arithmetic::Integer16 => 2,
        };
        let steps = blocks(geometry.input_channels).div_ceil(amx::BLOCKS);
        let side = |outputs: usize, axis: usize| (outputs - 1) * geometry.stride + geometry.kernel[axis];
        let words = |height: usize| side(height, 0) * side(WIDTH, 1) * ROW * parts * steps;
        let mut height = HEIGHT;
        while height > 2 && words(height) > PATCH_BUDGET {
            height /= 2;
        }
        Shape {
            parts,
            taps: geometry.kernel[0] * geometry.kernel[1],
            steps,
            groups: geometry.output_channels.div_ceil(COLUMNS),
            height,
            patch: [side(height, 0), side(WIDTH, 1)],
        }
    }

    /// 32-bit words of the weights between two input blocks and a group, for one tap.
    fn unit(&self) -> usize {
        self.parts * PART
    }

    /// 32-bit words of a group's weights.
    fn group_words(&self) -> usize {
        self.steps * self.taps * self.unit()
    }

    /// 32-bit words of one part of a step of a patch.
    fn plane(&self) -> usize {
        self.patch[0] * self.patch[1] * ROW
    }

    /// `f32` of the parts of [`Scratch`].
    fn worker_lens(&self) -> [usize; 3] {
        let window = amx::BLOCKS * self.patch[0] * self.patch[1] * BLOCK;
        [window, self.steps * self.parts * self.plane(), self.height * WIDTH * COLUMNS]
    }
}

/// `f32` that the split weights take: `[group][step][tap]`, see `amx`.
pub(crate) fn weights_len(geometry: &Geometry, arithmetic: Arithmetic) -> usize {
    let shape = Shape::new(geometry, arithmetic);
    shape.groups * shape.group_words()
}

/// Bytes of scratch that each worker takes.
pub(crate) fn worker_bytes(geometry: &Geometry, arithmetic: Arithmetic) -> usize {
    let lens = Shape::new(geometry, arithmetic).worker_lens();
    let patch: usize = lens.map(whole_lines).iter().sum();
    patch.max(amx::BLOCKS * BLOCK * COLUMNS) * size_of::<f32>()
}

/// Convolves each frame's source with the input blocks `span` of `panels` (`[group of lanes][input block][tap][16][lanes]`)
/// into its target, all of one size; the split weights are made in `scratch`, at least [`weights_len`] long, unless they
/// are `ready` there.
pub(crate) fn run(
    isa: Isa,
    pool: &Pool,
    (geometry, arithmetic): (Geometry, Arithmetic),
    (panels, span, bias): (&[f32], Span, &[f32]),
    frames: Vec<(Source<'_>, Target<'_>)>,
    scratch: &mut [f32],
    ready: bool,
) {
    let Some((_, target)) = frames.first() else { return };
    let shape = Shape::new(&geometry, arithmetic);
    if !ready {
        split_weights(isa, pool, (shape, blocks(geometry.input_channels)), (panels, span), scratch);
    }
    let count = [target.rows.len().div_ceil(shape.height), target.size[1].div_ceil(WIDTH)];
    let squares = count[0] * count[1];
    // Each part gathers and splits the inputs anew, so a square is cut no finer than the threads need.
    let parts = (pool.threads() * TASKS_PER_THREAD).div_ceil(squares * frames.len()).min(shape.groups);
    let groups_per_task = shape.groups.div_ceil(parts);
    let tasks = squares * shape.groups.div_ceil(groups_per_task);
    let weights = words(scratch);
    let jobs: Vec<Job<'_>> = frames
        .into_iter()
        .map(|(source, target)| Job { isa, geometry, shape, weights, bias, source, target })
        .collect();
    let lens = shape.worker_lens();
    pool.run_in_room(jobs.len() * tasks, lens.map(whole_lines).iter().sum(), |mut room, index| {
        let (job, index) = (&jobs[index / tasks], index % tasks);
        let (part, place) = (index / squares, index % squares);
        let [window, patch, sums] = lens.map(|len| carve(&mut room, len));
        let scratch = &mut Scratch { window, patch: words_mut(patch), sums };
        let row = job.target.rows.start + place / count[1] * shape.height;
        let origin = [row, place % count[1] * WIDTH];
        let groups = [part * groups_per_task, ((part + 1) * groups_per_task).min(shape.groups)];
        dispatch!(isa, square(job: &Job<'_>, scratch: &mut Scratch<'_>, origin: [usize; 2], groups: [usize; 2]));
    });
}

/// Splits the weights, see [`weights_len`].
fn split_weights(
    isa: Isa,
    pool: &Pool,
    (shape, input_blocks): (Shape, usize),
    (panels, span): (&[f32], Span),
    output: &mut [f32],
) {
    let output = SharedOutput::new(output);
    let job = &Splitting { shape, input_blocks, panels, span, output: &output };
    let room = amx::BLOCKS * BLOCK * COLUMNS;
    pool.run_in_room(shape.groups * shape.steps, room, |room, index| {
        dispatch!(isa, split_step(job: &Splitting<'_>, room: &mut [f32], index: usize));
    });
}

struct Splitting<'a> {
    shape: Shape,
    input_blocks: usize,
    /// `[group of lanes][input block][tap][16][lanes]`
    panels: &'a [f32],
    span: Span,
    output: &'a SharedOutput<'a>,
}

/// Splits the weights of one group and step.
#[inline(always)]
unsafe fn split_step<T: Tile>(job: &Splitting<'_>, room: &mut [f32], index: usize) {
    let Shape { parts, taps, steps, .. } = job.shape;
    let (group, step) = (index / steps, index % steps);
    let len = BLOCK * COLUMNS;
    for tap in 0..taps {
        for (place, room) in room.chunks_exact_mut(len).enumerate() {
            let block = step * amx::BLOCKS + place;
            if block < job.input_blocks {
                let start = ((group * job.span.all + job.span.first + block) * taps + tap) * len;
                room.copy_from_slice(&job.panels[start..][..len]);
            } else {
                room.fill(0.0);
            }
        }
        let (low, high) = room.split_at(len);
        let unit = job.shape.unit();
        // SAFETY: the caller vouches for the CPU; each task owns the weights of its group and step.
        unsafe {
            let out = job.output.part((index * taps + tap) * unit, unit);
            amx::split_columns(parts, [low, high], words_mut(out));
        }
    }
}

struct Job<'a> {
    isa: Isa,
    geometry: Geometry,
    shape: Shape,
    /// Split.
    weights: &'a [i32],
    bias: &'a [f32],
    source: Source<'a>,
    target: Target<'a>,
}

struct Scratch<'a> {
    /// The inputs of a step, `[block][row][column][16]`.
    window: &'a mut [f32],
    /// Split inputs, `[step][part][row][column][ROW]`.
    patch: &'a mut [i32],
    /// Sums of one group, `[row][column][COLUMNS]`.
    sums: &'a mut [f32],
}

/// The square that begins at `origin` (row and column), for the groups `first..last` of output channels.
#[inline(always)]
unsafe fn square<T: Tile>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    origin: [usize; 2],
    [first, last]: [usize; 2],
) {
    let rows = job.shape.height.min(job.target.rows.end - origin[0]);
    let columns = WIDTH.min(job.target.size[1] - origin[1]);
    let channel_blocks = blocks(job.geometry.output_channels);
    // SAFETY: the caller vouches for the CPU; squares and groups partition the output, and each belongs to one task.
    unsafe {
        gather::<T>(job, scratch, origin);
        for group in first..last {
            let of_group = group * (COLUMNS / BLOCK)..channel_blocks.min((group + 1) * (COLUMNS / BLOCK));
            for sums in scratch.sums.chunks_exact_mut(COLUMNS) {
                sums.copy_from_slice(&job.bias[group * COLUMNS..][..COLUMNS]);
            }
            for block in of_group.clone() {
                for row in 0..rows {
                    job.target.prefetch(block, [origin[0] + row, origin[1]], columns);
                }
            }
            multiply(job, scratch, rows, group);
            for block in of_group {
                for row in 0..rows {
                    let lane = block % (COLUMNS / BLOCK) * BLOCK;
                    let values = &scratch.sums[row * WIDTH * COLUMNS + lane..];
                    let start = [origin[0] + row, origin[1]];
                    job.target.finish::<T>(block, start, columns, values, COLUMNS);
                }
            }
        }
    }
}

/// Fills the patch.
///
/// # Safety
/// The CPU has the tier.
#[inline(always)]
unsafe fn gather<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, origin: [usize; 2]) {
    let Shape { parts, steps, patch: [rows, columns], .. } = job.shape;
    let corner = origin.map(|start| start * job.geometry.stride);
    let input_blocks = blocks(job.geometry.input_channels);
    let (low, high) = scratch.window.split_at_mut(rows * columns * BLOCK);
    for step in 0..steps {
        for (place, window) in [&mut *low, &mut *high].into_iter().enumerate() {
            let block = step * amx::BLOCKS + place;
            if block < input_blocks {
                let ahead = (block + 1 < input_blocks).then_some(block + 1);
                // SAFETY: the caller vouches for the CPU.
                unsafe { job.source.gather::<T>(block, corner, columns, window, ahead) };
            } else {
                window.fill(0.0);
            }
        }
        let patch = &mut scratch.patch[step * parts * job.shape.plane()..];
        let pixels = low.as_chunks::<BLOCK>().0.iter().zip(high.as_chunks::<BLOCK>().0);
        for (pixel, (low, high)) in pixels.enumerate() {
            // SAFETY: the caller vouches for the CPU.
            unsafe { amx::split_rows(parts, [low, high], &mut patch[pixel * ROW..], job.shape.plane()) };
        }
    }
}

/// Adds patch · weights to the sums of `group`.
#[inline(always)]
fn multiply(job: &Job<'_>, scratch: &mut Scratch<'_>, rows: usize, group: usize) {
    let registers = amx::Tiles::new(job.isa);
    let Shape { parts, taps, steps, patch: [_, patch_columns], .. } = job.shape;
    let [stride, kernel_columns] = [job.geometry.stride, job.geometry.kernel[1]];
    let weights = &job.weights[group * job.shape.group_words()..][..job.shape.group_words()];
    let step_words = parts * job.shape.plane();
    let left = amx::Rows {
        words: scratch.patch,
        row: stride * ROW,
        register: stride * patch_columns * ROW,
        part: job.shape.plane(),
        ahead: Ahead::NONE,
    };
    let unit = job.shape.unit();
    for (first, weights) in weights.chunks(amx::PASS * unit).enumerate() {
        let first = first * amx::PASS;
        for row in (0..rows).step_by(2) {
            let starts = (first..(first + amx::PASS).min(steps * taps)).map(|index| {
                let (step, tap) = (index / taps, index % taps);
                let [y, x] = [row * stride + tap / kernel_columns, tap % kernel_columns];
                step * step_words + (y * patch_columns + x) * ROW
            });
            let sums = &mut scratch.sums[row * WIDTH * COLUMNS..];
            amx::multiply(&registers, parts, left, starts, weights, sums);
        }
    }
}
