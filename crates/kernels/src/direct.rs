//! Direct 2-D convolution as an implicit matrix product over tiles of the picture.
//!
//! A task gathers the input patch of one output tile once, multiplies it with every output channel of its group, and
//! finishes each value on the way out.

use crate::convolution::Geometry;
use crate::epilogue::Target;
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::microkernel::{Rows, Tile};
use crate::pool::{Pool, carve, whole_lines};
use crate::prologue::Source;
use crate::weights::Span;
use std::ops::Range;

/// A patch is kept below this many `f32`, so that it stays in a core's second-level cache.
const PATCH_BUDGET: usize = 192 * 1024;
/// Input channel blocks whose weights are multiplied before the sums are put down.
const BLOCKS_PER_PASS: usize = 4;
/// A picture with fewer tiles than this is also split over output channels.
const ENOUGH_TASKS: usize = 64;

/// Convolves each frame's source with the input blocks `span` of `panels` (`[group of lanes][input block][tap][16][lanes]`)
/// into its target, all of one size.
pub(crate) fn run(
    isa: Isa,
    pool: &Pool,
    geometry: Geometry,
    span: Span,
    [panels, bias]: [&[f32]; 2],
    frames: Vec<(Source<'_>, Target<'_>)>,
) {
    let Some((_, target)) = frames.first() else { return };
    let tiling = Tiling::new(isa, &geometry, [target.rows.len(), target.size[1]]);
    let taps = tap_offsets(&geometry, tiling);
    let jobs: Vec<Job<'_>> = frames
        .into_iter()
        .map(|(source, target)| Job { geometry, span, panels, bias, source, target, tiling, taps: &taps })
        .collect();
    let tasks = tiling.tasks();
    let lens = tiling.worker_lens(isa);
    pool.run_in_room(jobs.len() * tasks, lens.map(whole_lines).iter().sum(), |mut room, index| {
        let (job, index) = (&jobs[index / tasks], index % tasks);
        let [patch, sums] = lens.map(|len| carve(&mut room, len));
        let scratch = &mut Scratch { patch, sums };
        dispatch!(isa, tile(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize));
    });
}

/// Bytes of scratch that each worker takes for `rows` of an output of `width`.
pub(crate) fn worker_bytes(isa: Isa, geometry: &Geometry, rows: Range<usize>, width: usize) -> usize {
    let tiling = Tiling::new(isa, geometry, [rows.len(), width]);
    tiling.worker_lens(isa).map(whole_lines).iter().sum::<usize>() * size_of::<f32>()
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
    /// Output channel groups in all, and how many a task treats.
    groups: usize,
    groups_per_task: usize,
}

impl Tiling {
    fn new(isa: Isa, geometry: &Geometry, [height, width]: [usize; 2]) -> Tiling {
        let pixels = isa.pixels();
        let whole = |columns: usize| columns.div_ceil(pixels) * pixels;
        let mut tile = [height.min(8), whole(width.min(32 / pixels * pixels))];
        let patch_of =
            |tile: [usize; 2]| [0, 1].map(|axis| (tile[axis] - 1) * geometry.stride + geometry.kernel[axis]);
        let len_of = |[rows, columns]: [usize; 2]| blocks(geometry.input_channels) * rows * columns * BLOCK;
        while len_of(patch_of(tile)) > PATCH_BUDGET && tile != [1, pixels] {
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
            groups,
            groups_per_task: groups.div_ceil(wanted),
        }
    }

    /// `f32` of a worker's patch and sums.
    fn worker_lens(&self, isa: Isa) -> [usize; 2] {
        [self.patch_len, self.tile[0] * self.tile[1] * isa.lanes()]
    }

    fn tasks(&self) -> usize {
        self.count[0] * self.count[1] * self.groups.div_ceil(self.groups_per_task)
    }
}

struct Job<'a> {
    geometry: Geometry,
    span: Span,
    panels: &'a [f32],
    bias: &'a [f32],
    source: Source<'a>,
    target: Target<'a>,
    tiling: Tiling,
    taps: &'a [usize],
}

struct Scratch<'a> {
    patch: &'a mut [f32],
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
    let first = group_task * tiling.groups_per_task;
    for group in first..(first + tiling.groups_per_task).min(tiling.groups) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { multiply::<T>(job, scratch.patch, origin, group, scratch.sums) };
        // SAFETY: tiles and groups partition the output, and each belongs to one task.
        unsafe { store::<T>(job, origin, group, scratch.sums) };
    }
}

/// `sums[pixel of the tile][lane]` = bias + patch · weights, for the output channels of `group`.
#[inline(always)]
unsafe fn multiply<T: Tile>(
    job: &Job<'_>,
    patch: &[f32],
    origin: [usize; 2],
    group: usize,
    sums: &mut [f32],
) {
    let Geometry { input_channels, stride, .. } = job.geometry;
    let [tile_rows, tile_columns] = job.tiling.tile;
    let rows = tile_rows.min(job.target.rows.end - origin[0]);
    let columns = tile_columns.min(job.target.size[1] - origin[1]);
    let [patch_rows, patch_columns] = job.tiling.patch;
    let block_stride = patch_rows * patch_columns * BLOCK;
    let panel_len = job.taps.len() * BLOCK * T::LANES;
    let group_panels = &job.panels[(group * job.span.all + job.span.first) * panel_len..]
        [..blocks(input_channels) * panel_len];
    let bias = &job.bias[group * T::LANES..][..T::LANES];
    for sum in sums.chunks_exact_mut(T::LANES) {
        sum.copy_from_slice(bias);
    }
    for (pass, panels) in group_panels.chunks(BLOCKS_PER_PASS * panel_len).enumerate() {
        for row in 0..rows {
            for column in (0..columns).step_by(T::PIXELS) {
                let left = Rows {
                    patch,
                    start: pass * BLOCKS_PER_PASS * block_stride
                        + (row * stride * patch_columns + column * stride) * BLOCK,
                    row_stride: stride * BLOCK,
                    block_stride,
                    taps: job.taps,
                };
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    T::accumulate(&left, panels, &mut sums[(row * tile_columns + column) * T::LANES..])
                };
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
