//! 16-bit integers as two bytes each, `256 · high + low`, for the tile registers of AMX, which multiply bytes.
//!
//! The four products of bytes are summed each by itself, exactly, and brought together in 32 bits in units of 256.
//!
//! Splits of the input channels share scales as in [`crate::integers`], but magnitudes alone limit them: the sums fit 32
//! bits whatever the bytes are. Channels come in *steps* of [`BLOCKS`] blocks, one block in each byte of a 32-bit word.

use crate::amx::{TILE, split_bytes};
use crate::integers::{MOST_LANES, MOST_POINTS, REDUCED, SMALLEST, Sources, column_sizes, sizes};
use crate::layout::BLOCK;
use crate::microkernel::Tile;
use crate::vector::Vector;

/// Channel blocks of a step.
pub(crate) const BLOCKS: usize = 4;
/// Rows that are multiplied at once.
pub(crate) const ROWS: usize = 16;
/// Columns that are multiplied at once.
pub(crate) const COLUMNS: usize = 32;
/// 32-bit words of a step's rows: the high bytes and the low ones, `[2][ROWS][16]`.
pub(crate) const ROW_WORDS: usize = 2 * TILE;
/// 32-bit words of a step's columns: the high bytes and the low ones, `[2][COLUMNS / 16][channel of a block][16]`.
pub(crate) const COLUMN_WORDS: usize = 4 * TILE;

/// 32-bit words of one row of a step's part.
pub(crate) const ROW: usize = BLOCK;
/// Blocks that may share scales at most: more sums of their products could leave 32 bits.
pub(crate) const MOST_BLOCKS: usize = 32;

/// Where the words of row `row` and its neighbours begin in `[row / ROWS][step][ROW_WORDS]`, at block `block`, the first of a
/// step, of so many.
#[inline(always)]
pub(crate) fn first_row(row: usize, block: usize, blocks: usize) -> usize {
    (row / ROWS * blocks.div_ceil(BLOCKS) + block / BLOCKS) * ROW_WORDS
}

/// Largest magnitude of an integer: no high byte is above 127 then.
const MAGNITUDE_LIMIT: f32 = 32_639.0;
/// Inputs' factors are larger by this than what undoes their scale, and weights' smaller: the factors then never leave
/// `f32`, nor does a sum times a weights' factor while weights are below 2¹¹⁸. 2¹⁴
const BALANCE: f32 = 16_384.0;
/// What sums are in units of.
const UNIT: f32 = 256.0;
// No sum of products leaves 32 bits, nor do all together in their unit.
const _: () =
    assert!((MOST_BLOCKS * BLOCK) as i64 * (127 * 127 * 256 + 2 * 127 * 128 + 128 * 128 / 256) < 1 << 31);

/// Scale, and what undoes it, for numbers whose largest magnitude is `most`. What undoes it is NaN if `most` is not finite.
#[inline(always)]
fn scale(most: f32) -> [f32; 2] {
    if most.is_finite() {
        [MAGNITUDE_LIMIT / most.max(SMALLEST), most.max(SMALLEST) / MAGNITUDE_LIMIT]
    } else {
        [0.0, f32::NAN]
    }
}

/// Zeros in place of blocks that are not there.
const ZEROS: &[f32; BLOCK] = &[0.0; BLOCK];

/// Rounds the split's inputs of one tile, or of some pixels, into `out`, one row of a product in the first place: points lie
/// `point_stride` words apart, steps [`ROW_WORDS`]. `factors` get for each point what undoes the scale, times 2¹⁴; NaN if an
/// input is not finite.
///
/// # Safety
/// The CPU has the tier `amx`, and the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn round_sources<V: Vector>(
    sources: Sources<'_>,
    factors: &mut [f32],
    out: &mut [i32],
    point_stride: usize,
) {
    let (mut most, mut unused) = ([0.0f32; REDUCED], [0.0f32; REDUCED]);
    // SAFETY: the caller vouches for the CPU.
    unsafe { sizes::<V, false>(sources, factors.len(), &mut most, &mut unused) };
    let mut scales = [0.0; MOST_POINTS];
    for point in 0..factors.len() {
        [scales[point], factors[point]] = scale(most[point]);
        factors[point] *= BALANCE;
    }
    for point in 0..factors.len() {
        for step in 0..sources.blocks.div_ceil(BLOCKS) {
            let mut blocks = [ZEROS; BLOCKS];
            for (block, values) in (step * BLOCKS..sources.blocks).zip(&mut blocks) {
                *values = sources.block(point, block);
            }
            let out = &mut out[point * point_stride + step * ROW_WORDS..];
            // SAFETY: the caller vouches for the CPU.
            unsafe { split_bytes(blocks, &[scales[point]; BLOCK], out, TILE) };
        }
    }
}

/// Rounds the split's weights of one point (`[block][16][COLUMNS]`) into `out` (steps of [`COLUMN_WORDS`]), and writes for
/// each lane what undoes the scale, over 2¹⁴; NaN if a weight is not finite.
///
/// # Safety
/// The CPU has the tier `amx`, which is `T`.
#[inline(always)]
pub(crate) unsafe fn round_weights<T: Tile>(values: &[f32], out: &mut [i32], factors: &mut [f32]) {
    debug_assert_eq!(T::LANES, COLUMNS);
    // SAFETY: the caller vouches for the CPU.
    let (most, _) = unsafe { column_sizes::<T>(values) };
    let mut scales = [0.0; MOST_LANES];
    for lane in 0..COLUMNS {
        [scales[lane], factors[lane]] = scale(most[lane]);
        factors[lane] *= UNIT / BALANCE;
    }
    let steps = values.chunks(BLOCKS * BLOCK * COLUMNS).zip(out.chunks_exact_mut(COLUMN_WORDS));
    for (values, out) in steps {
        for channel in 0..BLOCK {
            for (group, scales) in scales.chunks_exact(BLOCK).enumerate() {
                let scales = scales.first_chunk().expect("sixteen lanes");
                let blocks = std::array::from_fn(|block| {
                    let at = (block * BLOCK + channel) * COLUMNS + group * BLOCK;
                    values.get(at..).and_then(<[f32]>::first_chunk).unwrap_or(ZEROS)
                });
                let out = &mut out[group * TILE + channel * BLOCK..];
                // SAFETY: the caller vouches for the CPU.
                unsafe { split_bytes(blocks, scales, out, COLUMNS / BLOCK * TILE) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ahead::Ahead;
    use crate::amx::{Sums, Tiles, put_bytes};
    use crate::isa::{Isa, dispatch};

    /// Integers whose scale is one: the largest of each row and column is the limit.
    fn integers(len: usize, period: usize, stride: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut values: Vec<f32> = (0..len)
            .map(|_| {
                state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
                (state >> 16) as i32 as f32 % MAGNITUDE_LIMIT - MAGNITUDE_LIMIT / 2.0
            })
            .map(f32::round)
            .collect();
        for first in 0..period {
            values[first * stride] = MAGNITUDE_LIMIT;
        }
        values
    }

    /// `rows` is `[ROWS][channel]`, `columns` `[channel][COLUMNS]`: their product, which is added to what `products` holds.
    #[inline(always)]
    unsafe fn product<T: Tile>(isa: Isa, rows: &[f32], columns: &[f32], products: &mut [f32]) {
        let blocks = rows.len() / ROWS / BLOCK;
        let steps = blocks.div_ceil(BLOCKS);
        // What a step does not fill has to be written too.
        let (mut row_words, mut column_words) = (vec![-1; steps * ROW_WORDS], vec![-1; steps * COLUMN_WORDS]);
        let (mut row_factors, mut column_factors) = ([0.0; ROWS], [0.0; COLUMNS]);
        let mut sums = Sums::zero();
        // SAFETY: the caller's contract.
        unsafe {
            for (row, values) in rows.chunks_exact(blocks * BLOCK).enumerate() {
                let values = Sources { values, strides: [0, BLOCK], blocks };
                let factor = &mut row_factors[row..][..1];
                round_sources::<T::Vector>(values, factor, &mut row_words[row * ROW..], 0);
            }
            round_weights::<T>(columns, &mut column_words, &mut column_factors);
            Tiles::new(isa).multiply_bytes(&row_words, &column_words, Ahead::NONE, &mut sums);
            put_bytes::<false>(&sums, &row_factors, &column_factors, products);
            put_bytes::<true>(&sums, &row_factors, &column_factors, products);
        }
    }

    #[test]
    fn products_are_exact_but_for_the_last_byte() {
        let Ok(isa) = Isa::by_name("amx") else { return };
        for blocks in [1, 3, 4, 5, MOST_BLOCKS] {
            let channels = blocks * BLOCK;
            // Where a row and a column have a large number, the other has none, and the rest is small.
            let outlier = |at: usize| {
                move |channel: usize| match channel {
                    _ if channel == at => MAGNITUDE_LIMIT,
                    2.. => 126.0,
                    _ => 0.0,
                }
            };
            let cases = [
                (integers(ROWS * channels, ROWS, channels, 1), integers(channels * COLUMNS, COLUMNS, 1, 2)),
                // The largest sums there are.
                (vec![MAGNITUDE_LIMIT; ROWS * channels], vec![-MAGNITUDE_LIMIT; channels * COLUMNS]),
                (
                    (0..ROWS * channels).map(|place| outlier(0)(place % channels)).collect(),
                    (0..channels * COLUMNS).map(|place| outlier(1)(place / COLUMNS)).collect(),
                ),
            ];
            for (rows, columns) in cases {
                let mut products = vec![f32::NAN; ROWS * COLUMNS];
                let (rows, columns, out) = (&rows, &columns, &mut products);
                dispatch!(isa, product(isa: Isa, rows: &[f32], columns: &[f32], out: &mut [f32]));
                for row in 0..ROWS {
                    for column in 0..COLUMNS {
                        let expected: i64 = (0..channels)
                            .map(|channel| {
                                let a = rows[row * channels + channel] as i64;
                                let b = columns[channel * COLUMNS + column] as i64;
                                a * b
                            })
                            .sum();
                        let (found, expected) = (f64::from(products[row * COLUMNS + column]), 2 * expected);
                        let error = (found - expected as f64).abs();
                        let limit = expected.abs() as f64 * 3e-7 + 2.0 * f64::from(UNIT);
                        assert!(error <= limit, "{blocks} blocks: {found} for {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_makes_its_row_or_column_so() {
        let Ok(isa) = Isa::by_name("amx") else { return };
        let (mut rows, mut columns) = (vec![1.0; ROWS * BLOCK], vec![1.0; BLOCK * COLUMNS]);
        rows[3 * BLOCK + 5] = f32::INFINITY;
        columns[7] = f32::NAN;
        let mut products = vec![0.0; ROWS * COLUMNS];
        let (rows, columns, out) = (&rows, &columns, &mut products);
        dispatch!(isa, product(isa: Isa, rows: &[f32], columns: &[f32], out: &mut [f32]));
        for (place, product) in products.iter().enumerate() {
            let is_struck = place / COLUMNS == 3 || place % COLUMNS == 7;
            assert_eq!(product.is_nan(), is_struck, "{place}: {product}");
        }
    }
}
