//! From products to the picture: the inverse transform and the epilogue.

use super::{Batch, Job, MOST, MOST_OUTPUTS, Scratch, Transform};
use crate::layout::{BLOCK, blocks};
use crate::microkernel::Tile;
use crate::moments::PATCH_TILES;
use crate::vector::Vector;

/// Finishes one group of output channels of a batch, the `place`-th of its chunk.
///
/// # Safety
/// The CPU has the tier, and no other task treats this batch and group.
#[inline(always)]
pub(super) unsafe fn transform<T: Tile, W: Transform>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    batch: Batch,
    group: usize,
    place: usize,
) {
    let products = &scratch.products[place * W::PRODUCTS * W::PRODUCTS * job.grid.product_stride..];
    let Batch { origin, size: [rows, columns] } = batch;
    let first = group * (T::LANES / BLOCK);
    // SAFETY: the caller vouches for the CPU.
    let room = &mut unsafe { [[T::Vector::splat(0.0); MOST]; MOST_OUTPUTS] };
    for block in first..(first + T::LANES / BLOCK).min(blocks(job.geometry.output_channels)) {
        let bias = &job.bias[block * BLOCK..][..BLOCK];
        for row in 0..rows {
            for column in 0..columns {
                let tile = (row * columns + column) * T::LANES + (block - first) * BLOCK;
                // SAFETY: the caller vouches for the CPU and for this batch's and group's output.
                unsafe {
                    transform_output::<T::Vector, W>(
                        &products[tile..],
                        job.grid.product_stride,
                        bias,
                        room,
                        &mut scratch.tile,
                    );
                    store::<T, W>(job, block, [origin[0] + row, origin[1] + column], &scratch.tile);
                }
            }
            let patches = origin[1] / PATCH_TILES..(origin[1] + columns).div_ceil(PATCH_TILES);
            // SAFETY: the caller vouches for the CPU and for this batch's and group's output, which is whole patches.
            unsafe { job.target.take_moments::<T>(block, origin[0] + row, patches) };
        }
    }
}

/// One tile and channel block: points `stride` apart → `[row][column][16]` with bias, by way of `half`.
#[inline(always)]
unsafe fn transform_output<V: Vector, W: Transform>(
    products: &[f32],
    stride: usize,
    bias: &[f32],
    half: &mut [[V; MOST]; MOST_OUTPUTS],
    out: &mut [f32; MOST_OUTPUTS * MOST_OUTPUTS * BLOCK],
) {
    for lane in (0..BLOCK).step_by(V::LANES) {
        // SAFETY: the caller vouches for the CPU; slices are cut to the length that is read or written.
        unsafe {
            let bias = V::load(&bias[lane..][..V::LANES]);
            for y in 0..W::PRODUCTS {
                let mut m = [V::splat(0.0); MOST];
                for x in 0..W::PRODUCTS {
                    m[x] = V::load(&products[(y * W::PRODUCTS + x) * stride + lane..][..V::LANES]);
                }
                let m = W::output(m);
                for x in 0..W::OUTPUTS {
                    half[x][y] = m[x];
                }
            }
            for x in 0..W::OUTPUTS {
                let outputs = W::output(half[x]);
                for y in 0..W::OUTPUTS {
                    let place = &mut out[(y * W::OUTPUTS + x) * BLOCK + lane..][..V::LANES];
                    outputs[y].plus(bias).store(place);
                }
            }
        }
    }
}

/// Writes what of a tile lies inside the picture.
///
/// # Safety
/// No other task treats this tile and channel block.
#[inline(always)]
unsafe fn store<T: Tile, W: Transform>(job: &Job<'_>, block: usize, tile: [usize; 2], values: &[f32]) {
    let range = |axis: usize| {
        let start = (tile[axis] * W::OUTPUTS).saturating_sub(W::SKIP);
        let end = (tile[axis] * W::OUTPUTS + W::OUTPUTS - W::SKIP).min(job.target.size[axis]);
        // How many of the tile's outputs come before the picture.
        (start, end, start + W::SKIP - tile[axis] * W::OUTPUTS)
    };
    let ((top, bottom, above), (left, right, before)) = (range(0), range(1));
    for row in top..bottom {
        let values = &values[((row - top + above) * W::OUTPUTS + before) * BLOCK..];
        // SAFETY: the caller's contract.
        unsafe { job.target.finish::<T>(block, [row, left], right - left, values, BLOCK) };
    }
}
