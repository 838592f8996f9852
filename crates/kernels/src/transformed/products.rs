//! The products of a batch: for each point one matrix product over input channels.

use super::grid::window_side;
use super::{Batch, Job, Scratch, Transform};
use crate::convolution::Arithmetic;
use crate::integers::{self, PAIRS, SPLIT};
use crate::layout::BLOCK;
use crate::microkernel::{PairRows, Rows, Tile};

/// Input channel blocks whose weights are multiplied as `f32` before the products are put down: their panel stays in
/// the first-level cache while all tiles of a batch pass by.
const PASS: usize = 16;

/// All products of one batch and one group of output channels; meanwhile asks for what the batch `next` reads first.
///
/// # Safety
/// The CPU has the tier.
#[inline(always)]
pub(super) unsafe fn multiply<T: Tile, W: Transform>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    batch: Batch,
    group: usize,
    next: Option<Batch>,
) {
    for y in 0..W::PRODUCTS {
        for x in 0..W::PRODUCTS {
            let point = y * W::PRODUCTS + x;
            let source = W::SOURCE_OF[y] * W::SOURCES + W::SOURCE_OF[x];
            prefetch_outputs::<T, W>(job, batch, group, point);
            if let Some(next) = next {
                prefetch_inputs::<W>(job, next, point);
            }
            let tiles = batch.size[0] * batch.size[1];
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                match job.grid.arithmetic {
                    Arithmetic::Float32 => multiply_floats::<T>(job, scratch, tiles, group, [point, source]),
                    Arithmetic::Integer16 => {
                        multiply_integers::<T>(job, scratch, tiles, group, [point, source])
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_floats<T: Tile>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    tiles: usize,
    group: usize,
    [point, source]: [usize; 2],
) {
    let grid = &job.grid;
    let panel = &job.weights[job.panels.start(group, point)..][..job.panels.len()];
    let products = &mut scratch.products[point * grid.product_stride..];
    for (pass, panel) in panel.chunks(PASS * BLOCK * T::LANES).enumerate() {
        for tile in (0..tiles).step_by(T::PIXELS) {
            let left = Rows {
                patch: scratch.sources,
                start: source * grid.source_stride
                    + (tile * grid.input_blocks + pass * PASS * T::PIXELS) * BLOCK,
                row_stride: BLOCK,
                block_stride: T::PIXELS * BLOCK,
                taps: &[0],
            };
            let products = &mut products[tile * T::LANES..];
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                if pass == 0 {
                    T::product(&left, panel, products);
                } else {
                    T::accumulate(&left, panel, products);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_integers<T: Tile>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    tiles: usize,
    group: usize,
    [point, source]: [usize; 2],
) {
    let grid = &job.grid;
    let panel = &integers::words(job.weights)[job.panels.start(group, point)..][..job.panels.len()];
    let sources = &integers::words(scratch.sources)[source * grid.source_stride..];
    let products = &mut scratch.products[point * grid.product_stride..];
    for (split, panel) in panel.chunks(SPLIT * PAIRS * T::LANES).enumerate() {
        let panel_factors = &job.weights[job.panels.factors(group, point, split)..][..T::LANES];
        let factors = &scratch.source_factors[(source * grid.splits() + split) * grid.room..][..grid.room];
        for tile in (0..tiles).step_by(T::PIXELS) {
            let left = PairRows {
                words: &sources[(tile * grid.input_blocks + split * SPLIT * T::PIXELS) * PAIRS..],
                factors: &factors[tile..],
            };
            let products = &mut products[tile * T::LANES..];
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                if split == 0 {
                    T::pair_product(&left, panel, panel_factors, products);
                } else {
                    T::accumulate_pairs(&left, panel, panel_factors, products);
                }
            }
        }
    }
}

/// Asks for one point's share of the output rows that this batch and group will write.
#[inline(always)]
fn prefetch_outputs<T: Tile, W: Transform>(job: &Job<'_>, batch: Batch, group: usize, point: usize) {
    let Batch { origin, size: [rows, columns] } = batch;
    let (points, height) = (W::PRODUCTS * W::PRODUCTS, rows * W::OUTPUTS);
    let lines = height * (T::LANES / BLOCK);
    let corner = origin.map(|tile| (tile * W::OUTPUTS).saturating_sub(W::SKIP));
    for line in point * lines / points..(point + 1) * lines / points {
        let block = group * (T::LANES / BLOCK) + line / height;
        job.target.prefetch(block, [corner[0] + line % height, corner[1]], columns * W::OUTPUTS);
    }
}

/// Asks for one point's share of the first channel block that a batch reads.
#[inline(always)]
fn prefetch_inputs<W: Transform>(job: &Job<'_>, batch: Batch, point: usize) {
    let corner = batch.origin.map(|tile| tile * W::STEP);
    let [rows, columns] = batch.size.map(window_side::<W>);
    let points = W::PRODUCTS * W::PRODUCTS;
    for row in point * rows / points..(point + 1) * rows / points {
        job.source.prefetch_row(0, [corner[0] + row, corner[1]], columns);
    }
}
