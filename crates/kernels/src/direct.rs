//! Direct 2-D convolution as an implicit matrix product over tiles of the picture.
//!
//! A task gathers the input patch of one output tile once, multiplies it with every output channel of its group, and
//! finishes each value on the way out. With integers each tap is a matrix product of its own, whose inputs are rounded
//! pixel by pixel.

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
use std::ops::Range;

/// A patch, with its rounded inputs, is kept below this many `f32`, so that it stays in a core's second-level cache.
const PATCH_BUDGET: usize = 192 * 1024;
/// Input channel blocks whose weights are multiplied before the sums are put down.
const BLOCKS_PER_PASS: usize = 4;
/// A picture with fewer tiles than this is also split over output channels.
const ENOUGH_TASKS: usize = 64;

/// Convolves each frame's source with the input blocks `span` of `panels` (`[group of lanes][input block][tap][16][lanes]`)
/// into its target, all of one size; rounded weights are made in `scratch`, [`Rounded::len`] long, unless they are
/// `ready` there.
#[allow(clippy::too_many_arguments)] // as for its callers
pub(crate) fn run(
    isa: Isa,
    pool: &Pool,
    (geometry, arithmetic): (Geometry, Arithmetic),
    span: Span,
    [panels, bias]: [&[f32]; 2],
    frames: Vec<(Source<'_>, Target<'_>)>,
    scratch: &mut [f32],
    ready: bool,
) {
    let Some((_, target)) = frames.first() else { return };
    let rounded = Rounded::new(isa, &geometry, arithmetic);
    if arithmetic == Arithmetic::Integer16 && !ready {
        rounded.fill(isa, pool, (panels, span), scratch);
    }
    let tiling = Tiling::new(isa, &geometry, arithmetic, [target.rows.len(), target.size[1]]);
    let taps = tap_offsets(&geometry, tiling);
    let weights = Weights { span, panels, rounded, words: scratch, bias };
    let jobs: Vec<Job<'_>> = frames
        .into_iter()
        .map(|(source, target)| Job { geometry, arithmetic, weights, source, target, tiling, taps: &taps })
        .collect();
    let tasks = tiling.tasks();
    let lens = tiling.worker_lens(isa);
    pool.run_in_room(jobs.len() * tasks, lens.map(whole_lines).iter().sum(), |mut room, index| {
        let (job, index) = (&jobs[index / tasks], index % tasks);
        let [patch, sources, factors, sums] = lens.map(|len| carve(&mut room, len));
        let scratch = &mut Scratch { patch, sources, factors, sums };
        dispatch!(isa, tile(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize));
    });
}

/// Bytes of scratch that each worker takes for `rows` of an output of `width`.
pub(crate) fn worker_bytes(
    isa: Isa,
    geometry: &Geometry,
    rows: Range<usize>,
    width: usize,
    arithmetic: Arithmetic,
) -> usize {
    let tiling = Tiling::new(isa, geometry, arithmetic, [rows.len(), width]);
    let room: usize = tiling.worker_lens(isa).map(whole_lines).iter().sum();
    room.max(Rounded::new(isa, geometry, arithmetic).split_len()) * size_of::<f32>()
}

/// Where rounded weights lie: panels (`[group][tap][input block][pair][lanes]`), then what undoes the scales
/// (`[group][tap][split][lanes]`). Empty without integers: the weights are used as they are.
#[derive(Clone, Copy)]
pub(crate) struct Rounded {
    groups: usize,
    taps: usize,
    /// Of the input; none without integers.
    blocks: usize,
    lanes: usize,
}

impl Rounded {
    pub(crate) fn new(isa: Isa, geometry: &Geometry, arithmetic: Arithmetic) -> Rounded {
        Rounded {
            groups: geometry.output_channels.div_ceil(isa.lanes()),
            taps: geometry.kernel[0] * geometry.kernel[1],
            blocks: match arithmetic {
                Arithmetic::Float32 => 0,
                Arithmetic::Integer16 => blocks(geometry.input_channels),
            },
            lanes: isa.lanes(),
        }
    }

    /// `f32` of all.
    pub(crate) fn len(&self) -> usize {
        self.factors(self.groups, 0)
    }

    /// Splits of the input channels, each with scales of its own.
    fn splits(&self) -> usize {
        self.blocks.div_ceil(SPLIT)
    }

    /// `f32` of one split's weights of one tap before they are rounded.
    fn split_len(&self) -> usize {
        self.blocks.min(SPLIT) * BLOCK * self.lanes
    }

    /// Where the panel of a group and tap begins.
    fn panel(&self, group: usize, tap: usize) -> usize {
        (group * self.taps + tap) * self.blocks * PAIRS * self.lanes
    }

    /// Where the factors of a group and tap begin.
    fn factors(&self, group: usize, tap: usize) -> usize {
        self.panel(self.groups, 0) + (group * self.taps + tap) * self.splits() * self.lanes
    }

    /// Rounds the weights.
    fn fill(&self, isa: Isa, pool: &Pool, (panels, span): (&[f32], Span), output: &mut [f32]) {
        let block_len = BLOCK * self.lanes;
        let output = SharedOutput::new(output);
        pool.run_in_room(self.groups * self.taps, self.split_len(), |room, index| {
            let (group, tap) = (index / self.taps, index % self.taps);
            for split in 0..self.splits() {
                let first = split * SPLIT;
                let count = SPLIT.min(self.blocks - first);
                for (block, values) in room.chunks_exact_mut(block_len).enumerate().take(count) {
                    let block = group * span.all + span.first + first + block;
                    values.copy_from_slice(&panels[(block * self.taps + tap) * block_len..][..block_len]);
                }
                // SAFETY: each task owns the panels and factors of its group and tap.
                let (words, factors) = unsafe {
                    let start = self.panel(group, tap) + first * block_len / 2;
                    let factors = self.factors(group, tap) + split * self.lanes;
                    (output.part(start, count * block_len / 2), output.part(factors, self.lanes))
                };
                integers::round_weights(isa, &room[..count * block_len], words, factors);
            }
        });
    }
}

fn tap_offsets(geometry: &Geometry, tiling: Tiling) -> Vec<usize> {
    let [rows, columns] = geometry.kernel;
    (0..rows).flat_map(|y| (0..columns).map(move |x| (y * tiling.patch[1] + x) * BLOCK)).collect()
}

/// How an output is cut into tiles; a function of shape and tier alone.
#[derive(Clone, Copy)]
struct Tiling {
    /// Output rows and columns of a tile.
    tile: [usize; 2],
    /// Tiles down and across.
    count: [usize; 2],
    /// Input rows and columns of a tile.
    patch: [usize; 2],
    patch_len: usize,
    /// With integers: rounded inputs of a pixel, and what undoes their scales, in `f32`.
    rounded: [usize; 2],
    /// Output channel groups in all, and how many a task treats.
    groups: usize,
    groups_per_task: usize,
}

impl Tiling {
    fn new(isa: Isa, geometry: &Geometry, arithmetic: Arithmetic, [height, width]: [usize; 2]) -> Tiling {
        let weights = Rounded::new(isa, geometry, arithmetic);
        let rounded = [weights.taps * weights.blocks * PAIRS, weights.taps * weights.splits()];
        let pixels = isa.pixels();
        let whole = |columns: usize| columns.div_ceil(pixels) * pixels;
        let mut tile = [height.min(8), whole(width.min(32 / pixels * pixels))];
        let patch_of =
            |tile: [usize; 2]| [0, 1].map(|axis| (tile[axis] - 1) * geometry.stride + geometry.kernel[axis]);
        let len_of = |[rows, columns]: [usize; 2]| blocks(geometry.input_channels) * rows * columns * BLOCK;
        let room_of = |tile: [usize; 2]| len_of(patch_of(tile)) + tile[0] * tile[1] * rounded[0];
        while room_of(tile) > PATCH_BUDGET && tile != [1, pixels] {
            if tile[0] > 1 {
                tile[0] /= 2;
            } else {
                tile[1] = whole(tile[1] / 2);
            }
        }
        let count = [height.div_ceil(tile[0]), width.div_ceil(tile[1])];
        let groups = geometry.output_channels.div_ceil(isa.lanes());
        let wanted = ENOUGH_TASKS.div_ceil(count[0] * count[1]).min(groups);
        let patch = patch_of(tile);
        Tiling {
            tile,
            count,
            patch,
            patch_len: len_of(patch),
            rounded,
            groups,
            groups_per_task: groups.div_ceil(wanted),
        }
    }

    /// `f32` of the parts of [`Scratch`].
    fn worker_lens(&self, isa: Isa) -> [usize; 4] {
        let pixels = self.tile[0] * self.tile[1];
        [self.patch_len, pixels * self.rounded[0], pixels * self.rounded[1], pixels * isa.lanes()]
    }

    fn tasks(&self) -> usize {
        self.count[0] * self.count[1] * self.groups.div_ceil(self.groups_per_task)
    }
}

#[derive(Clone, Copy)]
struct Weights<'a> {
    span: Span,
    panels: &'a [f32],
    rounded: Rounded,
    /// With integers: the rounded weights.
    words: &'a [f32],
    bias: &'a [f32],
}

struct Job<'a> {
    geometry: Geometry,
    arithmetic: Arithmetic,
    weights: Weights<'a>,
    source: Source<'a>,
    target: Target<'a>,
    tiling: Tiling,
    taps: &'a [usize],
}

struct Scratch<'a> {
    /// `[input block][row][column][16]`
    patch: &'a mut [f32],
    /// With integers: rounded inputs, `[pixel / pixels][tap][input block][pixel % pixels][pair]`.
    sources: &'a mut [f32],
    /// With integers: what undoes the scale, `[tap][split][pixel]`.
    factors: &'a mut [f32],
    /// `[pixel of the tile][lanes]`
    sums: &'a mut [f32],
}

#[inline(always)]
unsafe fn tile<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize) {
    let tiling = &job.tiling;
    let tiles = tiling.count[0] * tiling.count[1];
    let (group_task, position) = (index / tiles, index % tiles);
    let [row, column] = [position / tiling.count[1], position % tiling.count[1]];
    let origin = [job.target.rows.start + row * tiling.tile[0], column * tiling.tile[1]];
    let corner = origin.map(|start| start * job.geometry.stride);
    let [patch_rows, patch_columns] = tiling.patch;
    for (block, plane) in scratch.patch.chunks_exact_mut(patch_rows * patch_columns * BLOCK).enumerate() {
        // SAFETY: the caller vouches for the CPU.
        unsafe { job.source.gather::<T>(block, corner, patch_columns, plane, None) };
    }
    if job.arithmetic == Arithmetic::Integer16 {
        // SAFETY: the caller vouches for the CPU.
        unsafe { round::<T>(job, scratch) };
    }
    let first = group_task * tiling.groups_per_task;
    for group in first..(first + tiling.groups_per_task).min(tiling.groups) {
        let bias = &job.weights.bias[group * T::LANES..][..T::LANES];
        for sum in scratch.sums.chunks_exact_mut(T::LANES) {
            sum.copy_from_slice(bias);
        }
        // SAFETY: the caller vouches for the CPU; tiles and groups partition the output, and each belongs to one task.
        unsafe {
            match job.arithmetic {
                Arithmetic::Float32 => multiply::<T>(job, scratch, origin, group),
                Arithmetic::Integer16 => multiply_integers::<T>(job, scratch, group),
            }
            store::<T>(job, origin, group, scratch.sums);
        }
    }
}

/// The patch → integers with their factors, for each tap.
#[inline(always)]
unsafe fn round<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>) {
    const { assert!(T::PIXELS <= MOST_POINTS) };
    let Rounded { taps, blocks, .. } = job.weights.rounded;
    let stride = job.geometry.stride;
    let [tile_rows, tile_columns] = job.tiling.tile;
    let [patch_rows, patch_columns] = job.tiling.patch;
    let block_stride = patch_rows * patch_columns * BLOCK;
    let pixels = tile_rows * tile_columns;
    for pixel in (0..pixels).step_by(T::PIXELS) {
        let (row, column) = (pixel / tile_columns, pixel % tile_columns);
        let corner = (row * stride * patch_columns + column * stride) * BLOCK;
        for (tap, offset) in job.taps.iter().enumerate() {
            for split in 0..job.weights.rounded.splits() {
                let values = Sources {
                    values: &scratch.patch[corner + offset + split * SPLIT * block_stride..],
                    strides: [stride * BLOCK, block_stride],
                    blocks: SPLIT.min(blocks - split * SPLIT),
                };
                let start = ((pixel * taps + tap * T::PIXELS) * blocks + split * SPLIT * T::PIXELS) * PAIRS;
                let place = (tap * job.weights.rounded.splits() + split) * pixels + pixel;
                let factors = &mut scratch.factors[place..][..T::PIXELS];
                let out = &mut words_mut(scratch.sources)[start..];
                let strides = [PAIRS, T::PIXELS * PAIRS];
                // SAFETY: the caller vouches for the CPU.
                unsafe { integers::quantize_sources::<T::Vector>(values, factors, out, strides) };
            }
        }
    }
}

/// Adds inputs · weights to the sums, for the output channels of `group`.
#[inline(always)]
unsafe fn multiply_integers<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, group: usize) {
    let Weights { rounded, words: weights, .. } = job.weights;
    let pixels = job.tiling.tile[0] * job.tiling.tile[1];
    for tap in 0..rounded.taps {
        let len = rounded.blocks * PAIRS * T::LANES;
        let panels = &words(weights)[rounded.panel(group, tap)..][..len];
        for (split, panel) in panels.chunks(SPLIT * PAIRS * T::LANES).enumerate() {
            let factors = &weights[rounded.factors(group, tap) + split * T::LANES..][..T::LANES];
            for pixel in (0..pixels).step_by(T::PIXELS) {
                let start = (pixel * rounded.taps + tap * T::PIXELS) * rounded.blocks;
                let rows = PairRows {
                    ahead: Ahead::NONE,
                    words: &words(scratch.sources)[(start + split * SPLIT * T::PIXELS) * PAIRS..],
                    factors: &scratch.factors[(tap * rounded.splits() + split) * pixels + pixel..],
                };
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    T::accumulate_pairs(&rows, panel, factors, &mut scratch.sums[pixel * T::LANES..]);
                }
            }
        }
    }
}

/// Adds patch · weights to the sums, for the output channels of `group`.
#[inline(always)]
unsafe fn multiply<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, origin: [usize; 2], group: usize) {
    let Weights { span, panels, .. } = job.weights;
    let Geometry { input_channels, stride, .. } = job.geometry;
    let [tile_rows, tile_columns] = job.tiling.tile;
    let rows = tile_rows.min(job.target.rows.end - origin[0]);
    let columns = tile_columns.min(job.target.size[1] - origin[1]);
    let [patch_rows, patch_columns] = job.tiling.patch;
    let block_stride = patch_rows * patch_columns * BLOCK;
    let panel_len = job.taps.len() * BLOCK * T::LANES;
    let group_panels =
        &panels[(group * span.all + span.first) * panel_len..][..blocks(input_channels) * panel_len];
    for (pass, panels) in group_panels.chunks(BLOCKS_PER_PASS * panel_len).enumerate() {
        for row in 0..rows {
            for column in (0..columns).step_by(T::PIXELS) {
                let left = Rows {
                    ahead: Ahead::NONE,
                    patch: scratch.patch,
                    start: pass * BLOCKS_PER_PASS * block_stride
                        + (row * stride * patch_columns + column * stride) * BLOCK,
                    row_stride: stride * BLOCK,
                    block_stride,
                    taps: job.taps,
                };
                let sums = &mut scratch.sums[(row * tile_columns + column) * T::LANES..];
                // SAFETY: the caller vouches for the CPU.
                unsafe { T::accumulate(&left, panels, sums) };
            }
        }
    }
}

/// Writes the tile's values of `group` with residual and activation.
///
/// # Safety
/// No other task treats this tile and group.
#[inline(always)]
unsafe fn store<T: Tile>(job: &Job<'_>, origin: [usize; 2], group: usize, sums: &[f32]) {
    let [tile_rows, tile_columns] = job.tiling.tile;
    let rows = tile_rows.min(job.target.rows.end - origin[0]);
    let columns = tile_columns.min(job.target.size[1] - origin[1]);
    let first = group * (T::LANES / BLOCK);
    for block in first..(first + T::LANES / BLOCK).min(blocks(job.geometry.output_channels)) {
        for row in 0..rows {
            let values = &sums[row * tile_columns * T::LANES + (block - first) * BLOCK..];
            // SAFETY: the caller's contract.
            unsafe { job.target.finish::<T>(block, [origin[0] + row, origin[1]], columns, values, T::LANES) };
        }
    }
}
