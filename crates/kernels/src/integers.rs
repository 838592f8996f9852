//! Inputs and weights as 16-bit integers: scales, rounding and the bound that keeps sums inside 32 bits.
//!
//! Input channels are summed in splits of [`SPLIT`] blocks. Within one split, the inputs of one tile and point share a
//! scale, and so do the weights of one output channel and point. Both come from the numbers themselves, their largest
//! magnitude and their length as a vector, so that nothing is clipped and no sum overflows. The products of a split are
//! summed exactly, and the scales undone when the sum goes to `f32`.
//!
//! Two numbers share a 32-bit word: channels `i` (low half) and `i + 8` of a block.

use crate::isa::{Isa, dispatch};
use crate::layout::BLOCK;
use crate::microkernel::Tile;
use crate::reduce::ROWS;
use crate::vector::Vector;

/// Input channel blocks whose products are summed as integers.
pub(crate) const SPLIT: usize = 8;
/// Words that hold one block.
pub(crate) const PAIRS: usize = BLOCK / 2;
/// Points of one tile's transformed inputs, at most.
pub(crate) const MOST_POINTS: usize = 64;
/// Those, in whole groups of registers that are reduced together.
pub(crate) const REDUCED: usize = MOST_POINTS.next_multiple_of(ROWS);
/// Output channels of one group, at most.
pub(crate) const MOST_LANES: usize = 32;

/// Largest magnitude of an integer.
const MAGNITUDE_LIMIT: f32 = 32767.0;
/// Largest Euclidean length of a split's integers before they are rounded, which adds ½√128 < 5.7 to it at most.
/// No partial sum of products leaves 32 bits, because (46330 + 5.7)² < 2³¹ (Cauchy and Schwarz).
const LENGTH_LIMIT: f32 = 46_330.0;
/// Inputs' factors are larger by this than what undoes their scale, and weights' smaller: the factors then never leave
/// `f32`, nor does an integer sum times a weights' factor while weights are below 2¹²⁰. 2¹¹
const BALANCE: f32 = 2048.0;
/// Magnitudes below this count as this, lest their scale overflow: 2⁻¹¹⁰.
pub(crate) const SMALLEST: f32 = f32::from_bits((127 - 110) << 23);

/// 32-bit words in place of `values`, whatever their bits.
pub(crate) fn words(values: &[f32]) -> &[i32] {
    // SAFETY: the types agree in size and alignment, and each holds any bits.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// See [`words`].
pub(crate) fn words_mut(values: &mut [f32]) -> &mut [i32] {
    // SAFETY: as for `words`; `values` is borrowed exclusively.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

/// Two numbers below 2¹⁵ in magnitude, rounded to the nearest integers, in one word. Added to 3 · 2²², the low bits of
/// a float are those of the integer.
#[inline(always)]
fn pair(low: f32, high: f32) -> i32 {
    const ROUNDER: f32 = 12_582_912.0;
    let integer = |value: f32| (value + ROUNDER).to_bits();
    (integer(low) & 0xffff | integer(high) << 16) as i32
}

/// Scale, and what undoes it, for numbers whose largest magnitude is `most` and whose squares over that of `most` sum up
/// to `squares`. What undoes it is NaN if `most` is not finite.
#[inline(always)]
fn scale(most: f32, squares: f32) -> [f32; 2] {
    if most.is_finite() {
        let steps = MAGNITUDE_LIMIT.min(LENGTH_LIMIT / squares.max(1.0).sqrt());
        [steps / most.max(SMALLEST), most.max(SMALLEST) / steps]
    } else {
        [0.0, f32::NAN]
    }
}

/// A split's inputs: those of the points of one tile, or of some pixels.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub values: &'a [f32],
    /// From one point to the next, and from one of its channel blocks to the next.
    pub strides: [usize; 2],
    /// Channel blocks.
    pub blocks: usize,
}

impl<'a> Sources<'a> {
    #[inline(always)]
    pub(crate) fn block(self, point: usize, block: usize) -> &'a [f32; BLOCK] {
        self.values[point * self.strides[0] + block * self.strides[1]..]
            .first_chunk()
            .expect("a block has sixteen values")
    }
}

/// Rounds the split's inputs of one tile into `out`, where points and blocks of [`PAIRS`] words lie `strides` apart;
/// `factors` get for each point what undoes the scale, times [`BALANCE`]; NaN if an input is not finite.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn quantize_sources<V: Vector>(
    sources: Sources<'_>,
    factors: &mut [f32],
    out: &mut [i32],
    [point_stride, block_stride]: [usize; 2],
) {
    let (mut most, mut squares) = ([0.0f32; REDUCED], [0.0f32; REDUCED]);
    // SAFETY: the caller vouches for the CPU.
    unsafe { sizes::<V, true>(sources, factors.len(), &mut most, &mut squares) };
    let mut scales = [0.0; MOST_POINTS];
    for point in 0..factors.len() {
        let unit = 1.0 / most[point].max(SMALLEST);
        [scales[point], factors[point]] = scale(most[point], squares[point] * unit * unit);
    }
    for point in 0..factors.len() {
        if !is_squarable(most[point]) {
            let values = (0..sources.blocks).flat_map(|block| sources.block(point, block)).copied();
            [scales[point], factors[point]] = scale(most[point], shares(values, most[point]));
        }
    }
    for point in 0..factors.len() {
        let scale = scales[point];
        factors[point] *= BALANCE;
        for index in 0..sources.blocks {
            let block = sources.block(point, index);
            let out: &mut [i32; PAIRS] = out[point * point_stride + index * block_stride..]
                .first_chunk_mut()
                .expect("one place for each block");
            for lane in 0..PAIRS {
                out[lane] = pair(block[lane] * scale, block[lane + PAIRS] * scale);
            }
        }
    }
}

/// The largest magnitudes of the first `points` points and, if `SQUARES`, the sums of their squares.
///
/// # Safety
/// The CPU has the instruction set of `V`.
#[inline(always)]
pub(crate) unsafe fn sizes<V: Vector, const SQUARES: bool>(
    sources: Sources<'_>,
    points: usize,
    most: &mut [f32; REDUCED],
    squares: &mut [f32; REDUCED],
) {
    for first in (0..points).step_by(ROWS) {
        // SAFETY: the caller vouches for the CPU; slices are cut to the length that is read.
        unsafe {
            let (mut peaks, mut sums) = ([V::splat(0.0); ROWS], [V::splat(0.0); ROWS]);
            for row in 0..ROWS.min(points - first) {
                let (mut peak, mut sum) = (V::splat(0.0), V::splat(0.0));
                for block in 0..sources.blocks {
                    for values in sources.block(first + row, block).chunks_exact(V::LANES) {
                        let values = V::load(values);
                        peak = peak.largest_magnitude(values);
                        if SQUARES {
                            sum = values.times(values).plus(sum);
                        }
                    }
                }
                (peaks[row], sums[row]) = (peak, sum);
            }
            most[first..][..ROWS].copy_from_slice(&V::largest_lanes(&peaks));
            if SQUARES {
                squares[first..][..ROWS].copy_from_slice(&V::sums_of_lanes(&sums));
            }
        }
    }
}

/// Whether the squares of numbers up to `most`, and the sum of a split of them, are ordinary `f32`.
#[inline(always)]
fn is_squarable(most: f32) -> bool {
    const RANGE: std::ops::Range<f32> = f32::from_bits((127 - 60) << 23)..f32::from_bits((127 + 60) << 23);
    most == 0.0 || RANGE.contains(&most)
}

/// The sum of the squares of `values` over that of `most`, for magnitudes whose squares are no ordinary `f32`.
#[cold]
#[inline(never)]
fn shares(values: impl Iterator<Item = f32>, most: f32) -> f32 {
    let unit = 1.0 / most.max(SMALLEST);
    values.map(|value| value * unit).fold(0.0, |sum, share| sum + share * share)
}

/// Rounds the split's weights of one point (`[block][16][lanes]`) into `out` (`[block][pair][lanes]`), and writes for
/// each lane what undoes the scale, over [`BALANCE`]; NaN if a weight is not finite.
pub(crate) fn round_weights(isa: Isa, values: &[f32], out: &mut [f32], factors: &mut [f32]) {
    let out = words_mut(out);
    dispatch!(isa, quantize_weights(values: &[f32], out: &mut [i32], factors: &mut [f32]));
}

/// As [`round_weights`].
///
/// # Safety
/// The CPU has the tier.
#[inline(always)]
pub(crate) unsafe fn quantize_weights<T: Tile>(values: &[f32], out: &mut [i32], factors: &mut [f32]) {
    // SAFETY: the caller vouches for the CPU.
    let (most, squares) = unsafe { column_sizes::<T>(values) };
    let mut scales = [0.0; MOST_LANES];
    for lane in 0..T::LANES {
        let unit = 1.0 / most[lane].max(SMALLEST);
        [scales[lane], factors[lane]] = scale(most[lane], squares[lane] * unit * unit);
    }
    for lane in 0..T::LANES {
        if !is_squarable(most[lane]) {
            let column = values.iter().skip(lane).step_by(T::LANES).copied();
            [scales[lane], factors[lane]] = scale(most[lane], shares(column, most[lane]));
        }
    }
    for factor in &mut factors[..T::LANES] {
        *factor /= BALANCE;
    }
    for (block, out) in values.chunks_exact(BLOCK * T::LANES).zip(out.chunks_exact_mut(PAIRS * T::LANES)) {
        let (low, high) = block.split_at(PAIRS * T::LANES);
        let rows = low.chunks_exact(T::LANES).zip(high.chunks_exact(T::LANES));
        for ((low, high), out) in rows.zip(out.chunks_exact_mut(T::LANES)) {
            for lane in 0..T::LANES {
                out[lane] = pair(low[lane] * scales[lane], high[lane] * scales[lane]);
            }
        }
    }
}

/// The largest magnitude of each lane's values, and the sum of their squares.
///
/// # Safety
/// The CPU has the tier.
#[inline(always)]
pub(crate) unsafe fn column_sizes<T: Tile>(values: &[f32]) -> ([f32; MOST_LANES], [f32; MOST_LANES]) {
    let lanes = <T::Vector as Vector>::LANES;
    let (mut most, mut squares) = ([0.0f32; MOST_LANES], [0.0f32; MOST_LANES]);
    for start in (0..T::LANES).step_by(lanes) {
        // SAFETY: the caller vouches for the CPU; slices are cut to the length that is read or written.
        unsafe {
            // Two chains of each, because one waits for itself.
            let zero = T::Vector::splat(0.0);
            let (mut peaks, mut sums) = ([zero; 2], [zero; 2]);
            for rows in values.chunks_exact(2 * T::LANES) {
                for row in 0..2 {
                    let values = T::Vector::load(&rows[row * T::LANES + start..][..lanes]);
                    peaks[row] = peaks[row].largest_magnitude(values);
                    sums[row] = values.times(values).plus(sums[row]);
                }
            }
            peaks[0].largest_magnitude(peaks[1]).store(&mut most[start..][..lanes]);
            sums[0].plus(sums[1]).store(&mut squares[start..][..lanes]);
        }
    }
    (most, squares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::microkernel::Generic;
    use crate::vector::Portable;

    /// One point alone.
    unsafe fn quantize(values: &[f32], out: &mut [i32]) -> f32 {
        let mut factors = [0.0];
        let sources = Sources { values, strides: [0, BLOCK], blocks: values.len() / BLOCK };
        // SAFETY: the caller's contract.
        unsafe { quantize_sources::<Portable>(sources, &mut factors, out, [0, PAIRS]) };
        factors[0]
    }

    /// One lane's weights, the other lanes having others.
    unsafe fn quantize_column(values: &[f32], out: &mut [i32]) {
        const LANES: usize = Generic::LANES;
        let column: Vec<f32> =
            values.iter().flat_map(|value| (0..LANES).map(move |lane| value * (1 + lane) as f32)).collect();
        let (mut words, mut factors) = (vec![0; out.len() * LANES], [0.0; LANES]);
        // SAFETY: the caller's contract.
        unsafe { quantize_weights::<Generic>(&column, &mut words, &mut factors) };
        for (word, words) in out.iter_mut().zip(words.chunks_exact(LANES)) {
            *word = words[0];
        }
    }

    fn halves(word: i32) -> [i64; 2] {
        [i64::from(word as i16), i64::from((word >> 16) as i16)]
    }

    #[test]
    fn pairs_hold_the_nearest_integers() {
        for (low, high) in [(0.0, -0.0), (1.4, -1.6), (16383.0, -16383.0), (32767.0, -32767.0), (-0.4, 2.5)] {
            let nearest = |value: f32| value.round_ties_even() as i64;
            assert_eq!(halves(pair(low, high)), [nearest(low), nearest(high)]);
        }
    }

    #[test]
    fn no_weights_and_inputs_make_a_sum_that_leaves_32_bits() {
        // On both sides of where squares are no ordinary numbers any more.
        for size in [1.0, 0.999_99, 1.1e18, 1.2e18, 3.0e38, 8.8e-19, 8.6e-19, 1e-30] {
            for spread in [0.0, 0.5, 1.0] {
                for period in [2, 7, 128] {
                    let values: Vec<f32> = (0..SPLIT * BLOCK)
                        .map(|i| size * (1.0 - spread * (i % period) as f32 / (period - 1) as f32))
                        .collect();
                    let (mut sources, mut weights) = (vec![0; SPLIT * PAIRS], vec![0; SPLIT * PAIRS]);
                    // SAFETY: the portable tier needs no special instructions.
                    unsafe {
                        quantize_column(&values, &mut weights);
                        quantize(&values, &mut sources);
                    }
                    let of = |words: &[i32]| words.iter().flat_map(|word| halves(*word)).collect::<Vec<_>>();
                    let (sources, weights) = (of(&sources), of(&weights));
                    // One vector with itself: the largest sum of its length.
                    let sum: i64 = sources.iter().zip(&weights).map(|(source, weight)| source * weight).sum();
                    let limit = i64::from(i32::MAX);
                    assert!(sum <= limit && sum > limit / 1000 * 999, "{size} {spread} {period}: {sum}");
                }
            }
        }
        // A single large one is bounded by its own 16 bits.
        let mut words = [0; PAIRS];
        // SAFETY: as above.
        unsafe { quantize_column(&[&[-5.0][..], &[0.0; 15]].concat(), &mut words) };
        assert_eq!(halves(words[0]), [-32767, 0]);
    }

    #[test]
    fn what_is_rounded_comes_back() {
        for size in [1.0, 1e-30, 1e30, 3e38] {
            let values: Vec<f32> = (0..32).map(|i| size * ((i * 37 % 32) as f32 / 32.0 - 0.5)).collect();
            let mut words = [0; 16];
            // SAFETY: the portable vector needs no special instructions.
            let factor = unsafe { quantize(&values, &mut words) };
            for (index, value) in values.iter().enumerate() {
                let word = words[index / BLOCK * PAIRS + index % PAIRS];
                let found = halves(word)[index % BLOCK / PAIRS] as f32 / BALANCE * factor;
                assert!((found - value).abs() <= 0.51 / BALANCE * factor, "{found} for {value}");
            }
        }
        let mut words = [0; 8];
        let mut values = [1.0; 16];
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            values[3] = wrong;
            // SAFETY: as above.
            assert!(unsafe { quantize(&values, &mut words) }.is_nan());
        }
        // SAFETY: as above.
        let factor = unsafe { quantize(&[0.0; 16], &mut words) };
        assert!(factor.is_finite() && words == [0; 8]);
    }
}
