//! Transformed inputs and weights as 16-bit integers: scales, rounding and the bound that keeps sums inside 32 bits.
//!
//! Input channels are summed in splits of [`SPLIT`] blocks. Within one split, the inputs of one tile and point share a
//! scale, and so do the weights of one output channel and point; both come from the exact largest magnitude, so that
//! nothing is clipped. The products of a split are summed exactly, and the scales undone when the sum goes to `f32`.
//!
//! Two numbers share a 32-bit word: channels `i` (low half) and `i + 8` of a block.

use crate::layout::BLOCK;

/// Input channel blocks whose products are summed as integers.
pub(super) const SPLIT: usize = 8;
/// Words that hold one block.
pub(super) const PAIRS: usize = BLOCK / 2;
/// Output channels of one group, at most.
pub(super) const MOST_LANES: usize = 32;

/// Largest magnitude of an integer input. With the bound on sums of weights that follows from it, inputs and weights
/// add about equally much to the rounding error.
const SOURCE_LIMIT: f32 = 16383.0;
/// Largest magnitude of an integer weight.
const WEIGHT_LIMIT: f32 = 32767.0;
/// Largest sum of the magnitudes of a split's weights before they are rounded. Rounding adds half for each of them, and
/// (131000 + 64) · 16383 < 2³¹: no partial sum of products leaves 32 bits.
const WEIGHT_SUM_LIMIT: f32 = 131_000.0;
/// Magnitudes below this count as this, lest their scale overflow: 2⁻¹¹⁰.
const SMALLEST: f32 = f32::from_bits((127 - 110) << 23);

/// 32-bit words in place of `values`, whatever their bits.
pub(super) fn words(values: &[f32]) -> &[i32] {
    // SAFETY: the types agree in size and alignment, and each holds any bits.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len()) }
}

/// See [`words`].
pub(super) fn words_mut(values: &mut [f32]) -> &mut [i32] {
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

/// The bits of the magnitude; they compare as the magnitudes do, and above all finite ones if there is none.
#[inline(always)]
fn magnitude(value: f32) -> i32 {
    (value.to_bits() & 0x7fff_ffff) as i32
}

/// Rounds the split's inputs of one tile and point (`[block][16]`) into `out`, whose blocks of [`PAIRS`] words are
/// `stride` apart; returns what undoes the scale up to a constant that [`quantize_weights`] accounts for. It is NaN if
/// an input is not finite.
#[inline(always)]
pub(super) fn quantize_sources(values: &[f32], out: &mut [i32], stride: usize) -> f32 {
    let values = values.as_chunks::<BLOCK>().0;
    let mut most = [0; BLOCK];
    for block in values {
        for lane in 0..BLOCK {
            most[lane] = most[lane].max(magnitude(block[lane]));
        }
    }
    let most = f32::from_bits(most.into_iter().fold(0, i32::max) as u32);
    let (scale, factor) = if most.is_finite() {
        (SOURCE_LIMIT / most.max(SMALLEST), most.max(SMALLEST))
    } else {
        (0.0, f32::NAN)
    };
    for (index, block) in values.iter().enumerate() {
        let out: &mut [i32; PAIRS] =
            out[index * stride..].first_chunk_mut().expect("one place for each block");
        for lane in 0..PAIRS {
            out[lane] = pair(block[lane] * scale, block[lane + PAIRS] * scale);
        }
    }
    factor
}

/// Rounds the split's weights of one point (`[block][16][lanes]`) into `out` (`[block][pair][lanes]`), and writes for
/// each lane what undoes both its scale and the inputs'; NaN if a weight is not finite.
#[inline(always)]
pub(super) fn quantize_weights(values: &[f32], lanes: usize, out: &mut [i32], factors: &mut [f32]) {
    let mut most = [0; MOST_LANES];
    // Of sums divided by the number of summands, which cannot overflow.
    let mut mean = [0.0; MOST_LANES];
    let (most, mean) = (&mut most[..lanes], &mut mean[..lanes]);
    for row in values.chunks_exact(lanes) {
        for lane in 0..lanes {
            most[lane] = most[lane].max(magnitude(row[lane]));
            mean[lane] += row[lane].abs() * (1.0 / (SPLIT * BLOCK) as f32);
        }
    }
    let mut scales = [0.0; MOST_LANES];
    for lane in 0..lanes {
        let most = f32::from_bits(most[lane] as u32);
        (scales[lane], factors[lane]) = if most.is_finite() {
            let by_sum = WEIGHT_SUM_LIMIT / (SPLIT * BLOCK) as f32 / mean[lane].max(SMALLEST);
            let scale = (WEIGHT_LIMIT / most.max(SMALLEST)).min(by_sum);
            (scale, 1.0 / scale / SOURCE_LIMIT)
        } else {
            (0.0, f32::NAN)
        };
    }
    for (block, out) in values.chunks_exact(BLOCK * lanes).zip(out.chunks_exact_mut(PAIRS * lanes)) {
        let (low, high) = block.split_at(PAIRS * lanes);
        for ((low, high), out) in
            low.chunks_exact(lanes).zip(high.chunks_exact(lanes)).zip(out.chunks_exact_mut(lanes))
        {
            for lane in 0..lanes {
                out[lane] = pair(low[lane] * scales[lane], high[lane] * scales[lane]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let rows = SPLIT * BLOCK;
        for weight in [1.0, 0.999_99, 3.0e38, 1e-30, 1e-44] {
            for spread in [0.0, 0.5, 1.0] {
                let weights: Vec<f32> =
                    (0..rows).map(|i| weight * (1.0 - spread * (i % 7) as f32 / 6.0)).collect();
                let (mut words, mut factor) = (vec![0; rows / 2], [0.0]);
                quantize_weights(&weights, 1, &mut words, &mut factor);
                let sum: i64 = words.iter().flat_map(|word| halves(*word)).map(i64::abs).sum();
                assert!(sum * SOURCE_LIMIT as i64 <= i64::from(i32::MAX), "{weight} {spread}: {sum}");
                assert!(sum > 100_000 || weight < SMALLEST, "{weight} {spread}: {sum} wastes bits");
            }
        }
    }

    #[test]
    fn what_is_rounded_comes_back() {
        for size in [1.0, 1e-30, 1e30, 3e38] {
            let values: Vec<f32> = (0..32).map(|i| size * ((i * 37 % 32) as f32 / 32.0 - 0.5)).collect();
            let mut words = [0; 16];
            let factor = quantize_sources(&values, &mut words, PAIRS);
            for (index, value) in values.iter().enumerate() {
                let word = words[index / BLOCK * PAIRS + index % PAIRS];
                let found = halves(word)[index % BLOCK / PAIRS] as f32 / SOURCE_LIMIT * factor;
                assert!((found - value).abs() <= 0.51 / SOURCE_LIMIT * factor, "{found} for {value}");
            }
        }
        let mut words = [0; 8];
        let mut values = [1.0; 16];
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            values[3] = wrong;
            assert!(quantize_sources(&values, &mut words, PAIRS).is_nan());
        }
        assert!(quantize_sources(&[0.0; 16], &mut words, PAIRS).is_finite() && words == [0; 8]);
    }
}
