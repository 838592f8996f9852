//! Decoder output to what travels: `uint8` channels last, and [0, 1]. (Plain float16 needs no more than rounding.)
//!
//! The formula is the one that fits every published pair of raw and post-processed values. The decoder's output is
//! rounded to float16 first; then, each step rounded to float16 as torch rounds it on a CPU,
//! `y = clamp(x * 0.5 + 0.5, 0, 1)`; then in f32 `round_half_even(y * 255)`. The client runs the same arithmetic on a
//! float16 answer, so every route gives the same pixels. NaN becomes 0.
//!
//! As all of it depends on 16 bits alone, both functions are tables of 65536 entries, built on first use.

use std::sync::LazyLock;

use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// Values rounded to float16 at a time; three such buffers stay in the first-level cache.
const CHUNK: usize = 2048;

/// `clamp(x * 0.5 + 0.5, 0, 1)` with every step in float16; NaN gives 0.
fn denormalise(x: f16) -> f16 {
    let halved = f16::from_f32(x.to_f32() * 0.5);
    let shifted = f16::from_f32(halved.to_f32() + 0.5).to_f32();
    if shifted.is_nan() { f16::ZERO } else { f16::from_f32(shifted.clamp(0.0, 1.0)) }
}

/// Entry `bits` is what the float16 of these bits becomes.
fn table<T>(entry: impl Fn(f16) -> T) -> Vec<T> {
    (0..=u16::MAX).map(|bits| entry(denormalise(f16::from_bits(bits)))).collect()
}

static TO_UINT8: LazyLock<Vec<u8>> =
    LazyLock::new(|| table(|y| (y.to_f32() * 255.0).round_ties_even() as u8));
static TO_UNIT: LazyLock<Vec<f32>> = LazyLock::new(|| table(f16::to_f32));

/// Rounds `values` to float16 and hands over the bits, at most [`CHUNK`] at a time.
fn for_each_chunk(values: &[f32], mut use_bits: impl FnMut(&[u16])) {
    let mut buffer = [0u16; CHUNK];
    for chunk in values.chunks(CHUNK) {
        let bits = &mut buffer[..chunk.len()];
        bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(chunk);
        use_bits(bits);
    }
}

/// Decoder output `[batch, channels, height, width]`, nominally in [-1, 1], to bytes
/// `[batch, height, width, channels]`.
///
/// `pixels` must be as long as `shape` says; what is missing reads as 0, what is too much is ignored.
pub fn to_uint8_channel_last(pixels: &[f32], shape: [usize; 4]) -> Vec<u8> {
    let [_, channels, height, width] = shape;
    let plane = height * width;
    let mut bytes = vec![0u8; shape.iter().product()];
    if bytes.is_empty() {
        return bytes;
    }
    let to_uint8 = TO_UINT8.as_slice();
    for (sample, out) in pixels.chunks(channels * plane).zip(bytes.chunks_mut(channels * plane)) {
        for (channel, values) in sample.chunks(plane).enumerate() {
            let mut targets = out.chunks_mut(channels);
            for_each_chunk(values, |bits| {
                for (&bits, pixel) in bits.iter().zip(&mut targets) {
                    pixel[channel] = to_uint8[usize::from(bits)];
                }
            });
        }
    }
    bytes
}

/// Decoder output to [0, 1], element by element in the same order; every result is a float16 number. NaN becomes 0.
pub fn to_unit_interval(pixels: &[f32]) -> Vec<f32> {
    let to_unit = TO_UNIT.as_slice();
    let mut values = Vec::with_capacity(pixels.len());
    for_each_chunk(pixels, |bits| values.extend(bits.iter().map(|&bits| to_unit[usize::from(bits)])));
    values
}

/// Peak signal-to-noise ratio of two equally long byte images, in dB. Equal images give infinity; images of
/// different length, or empty ones, cannot be compared and give NaN.
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    if a.len() != b.len() || a.is_empty() {
        return f64::NAN;
    }
    let squares: u64 = a.iter().zip(b).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares as f64).log10()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One value through the formula, written out.
    fn reference(x: f32) -> u8 {
        let x = f16::from_f32(x);
        let y = f16::from_f32(f16::from_f32(x.to_f32() * 0.5).to_f32() + 0.5);
        let y = if y > f16::ONE { f16::ONE } else { y };
        let y = if y < f16::ZERO || y.is_nan() { f16::ZERO } else { y };
        (y.to_f32() * 255.0).round_ties_even() as u8
    }

    /// Pairs of raw and post-processed values that the original endpoints gave: SD 1, Flux, packed Flux, Wan. The raw
    /// ones are float16 printed with four decimals. An f32 evaluation misses 0.5962, 0.5259, 0.0552 and 0.6196.
    #[test]
    fn published_pairs() {
        for (raw, byte) in [
            (0.0400, 133),
            (0.1448, 146),
            (0.2649, 161),
            (0.1049, 141),
            (0.0552, 134),
            (0.0574, 135),
            (0.5820, 202),
            (0.5962, 203),
            (0.5898, 203),
            (0.5327, 195),
            (0.3984, 178),
            (0.5259, 194),
            (0.3564, 173),
            (-0.0111, 126),
            (0.6196, 206),
            (0.7310, 221),
            (-0.8501, 19),
            (-0.8979, 13),
        ] {
            let printed = format!("{raw:.4}");
            let candidates: Vec<f32> = (0..=u16::MAX)
                .map(|bits| f16::from_bits(bits).to_f32())
                .filter(|value| (value - raw).abs() < 1e-4 && format!("{value:.4}") == printed)
                .collect();
            let bytes = to_uint8_channel_last(&candidates, [1, 1, 1, candidates.len()]);
            assert!(bytes.contains(&byte), "{raw} -> {byte}: {bytes:?}");
        }
    }

    #[test]
    fn values_outside_the_range_are_defined() {
        let values =
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 7.0, -7.0, 1e30, -0.0, 1.0, -1.0, f32::MIN_POSITIVE];
        let bytes = to_uint8_channel_last(&values, [1, 1, 1, 10]);
        assert_eq!(bytes, [0, 255, 0, 255, 0, 255, 128, 255, 0, 128]);
        assert_eq!(to_unit_interval(&values), [0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.5, 1.0, 0.0, 0.5]);
    }

    #[test]
    fn channels_go_last() {
        // [2, 3, 1, 2] with a value of its own everywhere
        let bytes: Vec<u8> = (0..12).map(|index| index * 20).collect();
        let pixels: Vec<f32> = bytes.iter().map(|&byte| f32::from(byte) / 127.5 - 1.0).collect();
        let last = to_uint8_channel_last(&pixels, [2, 3, 1, 2]);
        let order = [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11].map(|index| bytes[index]);
        assert_eq!(last, order);
        assert_eq!(to_uint8_channel_last(&[], [0, 3, 8, 8]), []);
        assert_eq!(to_uint8_channel_last(&[1.0], [1, 3, 1, 1]), [255, 0, 0]);
        assert_eq!(to_uint8_channel_last(&[1.0; 9], [1, 3, 1, 1]), [255; 3]);
    }

    #[test]
    fn psnr_in_decibels() {
        assert_eq!(psnr(&[1, 2], &[1, 2]), f64::INFINITY);
        assert!((psnr(&[0, 255], &[255, 0]) - 0.0).abs() < 1e-12);
        assert!((psnr(&[10; 4], &[11; 4]) - 48.1308).abs() < 1e-4);
        assert!(psnr(&[1], &[1, 2]).is_nan() && psnr(&[], &[]).is_nan());
    }

    proptest! {
        #[test]
        fn table_agrees_with_formula(values in prop::collection::vec(-1.5f32..1.5, 1..5000)) {
            let count = values.len();
            let bytes = to_uint8_channel_last(&values, [1, 1, 1, count]);
            let unit = to_unit_interval(&values);
            for (index, &value) in values.iter().enumerate() {
                prop_assert_eq!(bytes[index], reference(value));
                prop_assert_eq!(bytes[index], (unit[index] * 255.0).round_ties_even() as u8);
            }
        }

        #[test]
        fn any_bits_are_converted(bits in prop::collection::vec(any::<u32>(), 6)) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let last = to_uint8_channel_last(&values, [1, 3, 1, 2]);
            prop_assert_eq!(last[1], reference(values[2]));
            prop_assert!(to_unit_interval(&values).iter().all(|value| (0.0..=1.0).contains(value)));
        }
    }
}
