//! The products of a batch: for each point one matrix product over input channels.

use super::grid::{rows_at_once, window_side};
use super::{Batch, Job, Scratch, Transform};
use crate::ahead::{Ahead, Sweep};
use crate::amx;
use crate::bytes;
use crate::form::Form;
use crate::integers::{self, PAIRS, SPLIT};
use crate::layout::BLOCK;
use crate::microkernel::{PairRows, Rows, Tile};
use std::ops::Range;

/// Input channel blocks whose weights are multiplied as `f32` before the products are put down: their panel stays in
/// the first-level cache while all tiles of a batch pass by.
const PASS: usize = 16;

/// All products of one batch and a chunk of groups of output channels; meanwhile asks for the output's rows, and for what
/// the batch `next` reads first.
///
/// # Safety
/// The CPU has the tier.
#[inline(always)]
pub(super) unsafe fn multiply<T: Tile, W: Transform>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    batch: Batch,
    groups: Range<usize>,
    next: Option<Batch>,
) {
    let tiles = batch.size[0] * batch.size[1];
    let mut registers = (job.grid.form == Form::Bytes).then(|| (amx::Tiles::new(job.isa), amx::Sums::zero()));
    let passes = tiles.div_ceil(rows_at_once(job.isa, job.grid.form));
    let steps = groups.len() * W::PRODUCTS * W::PRODUCTS * passes;
    let [height, width] = batch.size.map(|tiles| tiles * W::OUTPUTS);
    let corner = batch.origin.map(|tile| (tile * W::OUTPUTS).saturating_sub(W::SKIP));
    let mut outputs = Sweep::new([groups.len() * (T::LANES / BLOCK), height, width], steps);
    let [rows, columns] = next.map_or([0; 2], |next| next.size.map(window_side::<W>));
    let from = next.map_or([0; 2], |next| next.origin.map(|tile| tile * W::STEP));
    let mut inputs = Sweep::new([1, rows, columns], steps);
    let mut meanwhile = || {
        outputs.step(|block, [row, column], columns| {
            let block = groups.start * (T::LANES / BLOCK) + block;
            job.target.prefetch(block, [corner[0] + row, corner[1] + column], columns);
        });
        inputs.step(|_, [row, column], columns| {
            job.source.prefetch_row(0, [from[0] + row, from[1] + column], columns);
        });
    };
    let points = W::PRODUCTS * W::PRODUCTS;
    let source_of =
        |point: usize| W::SOURCE_OF[point / W::PRODUCTS] * W::SOURCES + W::SOURCE_OF[point % W::PRODUCTS];
    // How often a product of bytes asks for what comes next.
    let asks = job.grid.input_blocks.div_ceil(bytes::BLOCKS) * tiles.div_ceil(bytes::ROWS);
    for point in 0..points {
        let source = source_of(point);
        // Asked for beside the products of a chunk; where there is one group, its own reading is all there is.
        let following = (groups.len() > 1 && point + 1 < points)
            .then(|| &scratch.sources[source_of(point + 1) * job.grid.source_stride..]);
        let sources = following.map_or(Ahead::NONE, |sources| {
            Ahead::new(sources.as_ptr(), job.grid.source_stride / job.grid.room * tiles, groups.len() * asks)
        });
        for group in groups.clone() {
            let place = group - groups.start;
            let next = if group + 1 < groups.end { (group + 1, point) } else { (groups.start, point + 1) };
            let next = if next.1 < points { next } else { (groups.end, 0) };
            let part = Part { tiles, group, point, source, place: place * points + point, next };
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                match (job.grid.form, &mut registers) {
                    (Form::Float32, _) => multiply_floats::<T>(job, scratch, part, &mut meanwhile),
                    (Form::Bytes, Some(registers)) => {
                        let sources = sources.skip(place * asks);
                        multiply_bytes(job, scratch, registers, part, sources, &mut meanwhile)
                    }
                    (Form::Pairs, _) => multiply_integers::<T>(job, scratch, part, &mut meanwhile),
                    (Form::Bytes, None) | (Form::Bfloat16, _) => unreachable!("{:?}", job.grid.form),
                }
            }
        }
    }
}

/// The product of one point and one group of output channels.
#[derive(Clone, Copy)]
struct Part {
    /// Tiles of the batch.
    tiles: usize,
    group: usize,
    point: usize,
    /// The transformed input that it multiplies.
    source: usize,
    /// Where it goes.
    place: usize,
    /// Group and point of the product after it.
    next: (usize, usize),
}

#[inline(always)]
unsafe fn multiply_floats<T: Tile>(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    Part { tiles, group, point, source, place, .. }: Part,
    meanwhile: &mut impl FnMut(),
) {
    let grid = &job.grid;
    let panel = &job.weights[job.panels.start(group, point)..][..job.panels.len()];
    let products = &mut scratch.products[place * grid.product_stride..];
    for (pass, panel) in panel.chunks(PASS * BLOCK * T::LANES).enumerate() {
        let blocks = panel.len() / (BLOCK * T::LANES);
        let ahead = Ahead::new(panel.as_ptr_range().end, panel.len(), blocks * tiles.div_ceil(T::PIXELS));
        for (pass_index, tile) in (0..tiles).step_by(T::PIXELS).enumerate() {
            let left = Rows {
                ahead: ahead.skip(pass_index * blocks),
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
                    meanwhile();
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
    Part { tiles, group, point, source, place, .. }: Part,
    meanwhile: &mut impl FnMut(),
) {
    let grid = &job.grid;
    let panel = &integers::words(job.weights)[job.panels.start(group, point)..][..job.panels.len()];
    let sources = &integers::words(scratch.sources)[source * grid.source_stride..];
    let products = &mut scratch.products[place * grid.product_stride..];
    for (split, panel) in panel.chunks(SPLIT * PAIRS * T::LANES).enumerate() {
        let panel_factors = &job.weights[job.panels.factors(group, point, split)..][..T::LANES];
        let factors = &scratch.source_factors[(source * grid.splits() + split) * grid.room..][..grid.room];
        let blocks = panel.len() / (PAIRS * T::LANES);
        let ahead =
            Ahead::new(panel.as_ptr_range().end.cast(), panel.len(), blocks * tiles.div_ceil(T::PIXELS));
        for (pass_index, tile) in (0..tiles).step_by(T::PIXELS).enumerate() {
            let left = PairRows {
                ahead: ahead.skip(pass_index * blocks),
                words: &sources[(tile * grid.input_blocks + split * SPLIT * T::PIXELS) * PAIRS..],
                factors: &factors[tile..],
            };
            let products = &mut products[tile * T::LANES..];
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                if split == 0 {
                    meanwhile();
                    T::pair_product(&left, panel, panel_factors, products);
                } else {
                    T::accumulate_pairs(&left, panel, panel_factors, products);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn multiply_bytes(
    job: &Job<'_>,
    scratch: &mut Scratch<'_>,
    (registers, sums): &mut (amx::Tiles, amx::Sums),
    Part { tiles, group, point, source, place, next }: Part,
    inputs_ahead: Ahead,
    meanwhile: &mut impl FnMut(),
) {
    let grid = &job.grid;
    let panel = &integers::words(job.weights)[job.panels.start(group, point)..][..job.panels.len()];
    let sources = &integers::words(scratch.sources)[source * grid.source_stride..];
    let products = &mut scratch.products[place * grid.product_stride..];
    let following = job.weights.as_ptr().wrapping_add(job.panels.start(next.0, next.1));
    let split_words = SPLIT / bytes::BLOCKS * bytes::COLUMN_WORDS;
    for (split, panel) in panel.chunks(split_words).enumerate() {
        let panel_factors = &job.weights[job.panels.factors(group, point, split)..][..bytes::COLUMNS];
        let factors = &scratch.source_factors[(source * grid.splits() + split) * grid.room..][..grid.room];
        let steps = panel.len() / bytes::COLUMN_WORDS;
        let is_last = split + 1 == grid.splits();
        let behind = if is_last { following } else { panel.as_ptr_range().end.cast() };
        let ahead = Ahead::new(behind, panel.len(), steps * tiles.div_ceil(bytes::ROWS))
            .beside(inputs_ahead.skip(split * SPLIT / bytes::BLOCKS * tiles.div_ceil(bytes::ROWS)));
        for (pass, tile) in (0..tiles).step_by(bytes::ROWS).enumerate() {
            if split == 0 {
                meanwhile();
            }
            let rows = &sources[grid.first_row(tile, split)..];
            registers.multiply_bytes(rows, panel, ahead.skip(pass * steps), sums);
            let products = &mut products[tile * bytes::COLUMNS..][..bytes::ROWS * bytes::COLUMNS];
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                if split == 0 {
                    amx::put_bytes::<false>(sums, &factors[tile..], panel_factors, products);
                } else {
                    amx::put_bytes::<true>(sums, &factors[tile..], panel_factors, products);
                }
            }
        }
    }
}
