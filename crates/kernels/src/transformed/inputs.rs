//! From the picture to transformed inputs: a batch's window through the prologue, and the forward transform.

use super::grid::window_side;
use super::{Batch, Job, MOST, Scratch, Transform};
use crate::bytes;
use crate::form::Form;
use crate::integers::{self, MOST_POINTS, PAIRS, SPLIT};
use crate::layout::BLOCK;
use crate::microkernel::Tile;
use crate::vector::Vector;

/// Fills the transformed inputs of a batch.
///
/// # Safety
/// The CPU has the tier.
#[inline(always)]
pub(super) unsafe fn transform<T: Tile, W: Transform>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    batch: Batch,
) {
    let corner = batch.origin.map(|tile| tile * W::STEP);
    let [rows, columns] = batch.size.map(window_side::<W>);
    // SAFETY: the caller vouches for the CPU.
    let room = &mut unsafe { [[T::Vector::splat(0.0); MOST]; MOST] };
    let window_len = rows * columns * BLOCK;
    let input_blocks = job.grid.input_blocks;
    for block in 0..input_blocks {
        let ahead = (block + 1 < input_blocks).then_some(block + 1);
        let is_float = !job.grid.form.is_integers();
        let whole = if is_float { job.source.window(block, corner, [rows, columns]) } else { None };
        if let Some(inputs) = whole {
            // SAFETY: the caller vouches for the CPU.
            unsafe { transform_block::<T, W>(job, inputs, scratch.sources, batch, block, room, ahead) };
            continue;
        }
        let place = if is_float { 0 } else { block % SPLIT };
        let window = &mut scratch.window[place * window_len..][..window_len];
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            job.source.gather::<T>(block, corner, columns, window, ahead);
            if is_float {
                let inputs = (&*window, columns * BLOCK);
                transform_block::<T, W>(job, inputs, scratch.sources, batch, block, room, None);
            } else if place + 1 == SPLIT || block + 1 == input_blocks {
                transform_split::<T, W>(job, scratch, batch, [block / SPLIT, place + 1], room);
            }
        }
    }
}

/// A window of channel block number `block`, rows of it as far apart as `inputs` says → transformed inputs; asks for the
/// same window of the block `ahead` meanwhile.
#[inline(always)]
unsafe fn transform_block<T: Tile, W: Transform>(
    job: &Job<'_>,
    (inputs, row_stride): (&[f32], usize),
    sources: &mut [f32],
    Batch { origin, size: [rows, columns] }: Batch,
    block: usize,
    room: &mut [[T::Vector; MOST]; MOST],
    ahead: Option<usize>,
) {
    let [top, left] = origin.map(|tile| tile * W::STEP);
    for row in 0..rows {
        if let Some(ahead) = ahead {
            let end = if row + 1 < rows { (row + 1) * W::STEP } else { window_side::<W>(rows) };
            for y in row * W::STEP..end {
                job.source.prefetch_row(ahead, [top + y, left], window_side::<W>(columns));
            }
        }
        for column in 0..columns {
            let inputs = &inputs[row * W::STEP * row_stride + column * W::STEP * BLOCK..];
            let out = &mut sources[place::<T>(job, row * columns + column, block) * BLOCK..];
            // SAFETY: the caller vouches for the CPU.
            unsafe { transform_tile::<T::Vector, W>(inputs, row_stride, out, job.grid.source_stride, room) };
        }
    }
}

/// The window's `count` channel blocks, those of split `split` → transformed inputs as integers, with their factors.
#[inline(always)]
unsafe fn transform_split<T: Tile, W: Transform>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    batch: Batch,
    [split, count]: [usize; 2],
    room: &mut [[T::Vector; MOST]; MOST],
) {
    let Batch { size: [rows, columns], .. } = batch;
    let row_stride = window_side::<W>(columns) * BLOCK;
    let window_len = window_side::<W>(rows) * row_stride;
    for row in 0..rows {
        for column in 0..columns {
            let corner = row * W::STEP * row_stride + column * W::STEP * BLOCK;
            for block in 0..count {
                let inputs = &scratch.window[block * window_len + corner..];
                let out = &mut scratch.tile_sources[block * BLOCK..];
                // SAFETY: the caller vouches for the CPU.
                unsafe { transform_tile::<T::Vector, W>(inputs, row_stride, out, SPLIT * BLOCK, room) };
            }
            let tile = row * columns + column;
            let points = W::SOURCES * W::SOURCES;
            let mut factors = [0.0; MOST_POINTS];
            let values = integers::Sources {
                values: scratch.tile_sources,
                strides: [SPLIT * BLOCK, BLOCK],
                blocks: count,
            };
            let factors = &mut factors[..points];
            let sources = integers::words_mut(scratch.sources);
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                if job.grid.form == Form::Bytes {
                    let start = job.grid.first_row(tile, split) + tile % bytes::ROWS * bytes::ROW;
                    let sources = &mut sources[start..];
                    bytes::round_sources::<T::Vector>(values, factors, sources, job.grid.source_stride);
                } else {
                    let start = place::<T>(job, tile, split * SPLIT) * PAIRS;
                    let places = [job.grid.source_stride, T::PIXELS * PAIRS];
                    integers::quantize_sources::<T::Vector>(values, factors, &mut sources[start..], places);
                }
            };
            for (point, factor) in factors.iter().enumerate() {
                scratch.source_factors[(point * job.grid.splits() + split) * job.grid.room + tile] = *factor;
            }
        }
    }
}

/// Which of a point's places of sixteen channels belongs to `tile` and `block`.
#[inline(always)]
fn place<T: Tile>(job: &Job<'_>, tile: usize, block: usize) -> usize {
    (tile / T::PIXELS * job.grid.input_blocks + block) * T::PIXELS + tile % T::PIXELS
}

/// One tile and channel block: `inputs` with rows `row_stride` apart → points `stride` apart, by way of `half`.
#[inline(always)]
unsafe fn transform_tile<V: Vector, W: Transform>(
    inputs: &[f32],
    row_stride: usize,
    out: &mut [f32],
    stride: usize,
    half: &mut [[V; MOST]; MOST],
) {
    for lane in (0..BLOCK).step_by(V::LANES) {
        // SAFETY: the caller vouches for the CPU; slices are cut to the length that is read or written.
        unsafe {
            for x in 0..W::INPUTS {
                let mut d = [V::splat(0.0); MOST];
                for y in 0..W::INPUTS {
                    d[y] = V::load(&inputs[y * row_stride + x * BLOCK + lane..][..V::LANES]);
                }
                let d = W::input(d);
                for y in 0..W::SOURCES {
                    half[y][x] = d[y];
                }
            }
            for y in 0..W::SOURCES {
                let d = W::input(half[y]);
                for x in 0..W::SOURCES {
                    d[x].store(&mut out[(y * W::SOURCES + x) * stride + lane..][..V::LANES]);
                }
            }
        }
    }
}
