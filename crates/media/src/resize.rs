//! Lanczos resampling in the arithmetic of Pillow, bit for bit.
//!
//! Two passes over 8-bit pixels; a pass whose size does not change is left out. Across comes first, unless the height
//! loses more than twice what the width loses: this is the order of Pillow 13 (older versions always begin across,
//! which differs by little where a sum overshoots). The window of three lobes is stretched by the reduction ratio.
//! Weights are normalised in f64 to sum to one, then rounded to fixed point with 22 fractional bits, halves away from
//! zero. A sum starts at one half, is shifted down and clamped to a byte, so that the intermediate picture is 8-bit
//! too.

use std::f64::consts::PI;

use crate::RgbImage;
use crate::error::{MediaError, check_length};

/// Fractional bits of a weight. The absolute weights of a window sum to less than 2, so sums of bytes fit an i32.
const FRACTION_BITS: u32 = 22;
const HALF: i32 = 1 << (FRACTION_BITS - 1);
/// Half the width of the Lanczos window.
const LOBES: f64 = 3.0;

/// Resizes a picture to `width` by `height`.
///
/// # Errors
/// [`MediaError::BufferLength`] when the pixels are not as many as the picture's sides say,
/// [`MediaError::TooSmall`] when a side, old or new, is zero.
pub fn resize_lanczos(image: &RgbImage, width: usize, height: usize) -> Result<RgbImage, MediaError> {
    check_length(&[image.height, image.width, 3], image.pixels.len())?;
    for (width, height) in [(image.width, image.height), (width, height)] {
        if width == 0 || height == 0 {
            return Err(MediaError::TooSmall { width, height, multiple: 1 });
        }
    }
    let across = || windows(image.width, width);
    let down = || windows(image.height, height);
    Ok(match (width != image.width, height != image.height) {
        (false, false) => image.clone(),
        (true, false) => resize_columns(image, &across()),
        (false, true) => resize_rows(image, &down()),
        _ if is_down_first(image, width, height) => resize_columns(&resize_rows(image, &down()), &across()),
        _ => resize_rows(&resize_columns(image, &across()), &down()),
    })
}

/// Whether the pass over rows comes before the pass over columns.
fn is_down_first(image: &RgbImage, width: usize, height: usize) -> bool {
    let lost = image.height.saturating_sub(height);
    lost > 2 * image.width.saturating_sub(width)
}

/// The input elements that make one output element.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// `sin(pi x) / (pi x)`.
fn sinc(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) }
}

fn lanczos(x: f64) -> f64 {
    if (-LOBES..LOBES).contains(&x) { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

/// The windows of all output elements when `from` elements become `to`.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let ratio = from as f64 / to as f64;
    let stretch = ratio.max(1.0);
    let reach = LOBES * stretch;
    let window = |index: usize| {
        let centre = (index as f64 + 0.5) * ratio;
        let first = (centre - reach + 0.5).max(0.0) as usize;
        let end = ((centre + reach + 0.5) as usize).min(from);
        let weight = |element: usize| lanczos((element as f64 - centre + 0.5) * (1.0 / stretch));
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: f64| {
            let scaled = if sum == 0.0 { weight } else { weight / sum } * f64::from(1 << FRACTION_BITS);
            (scaled + 0.5f64.copysign(scaled)) as i32
        };
        Window { first, weights: weights.into_iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

fn to_byte(sum: i32) -> u8 {
    (sum >> FRACTION_BITS).clamp(0, 255) as u8
}

fn resize_columns(image: &RgbImage, windows: &[Window]) -> RgbImage {
    let width = windows.len();
    let mut pixels = Vec::with_capacity(image.height * width * 3);
    for row in image.pixels.chunks_exact(image.width * 3) {
        let row = row.as_chunks::<3>().0;
        for window in windows {
            let mut sums = [HALF; 3];
            for (pixel, &weight) in row[window.first..].iter().zip(&window.weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &byte)| *sum += i32::from(byte) * weight);
            }
            pixels.extend(sums.map(to_byte));
        }
    }
    RgbImage { width, height: image.height, pixels }
}

fn resize_rows(image: &RgbImage, windows: &[Window]) -> RgbImage {
    let stride = image.width * 3;
    let mut pixels = Vec::with_capacity(windows.len() * stride);
    let mut sums = vec![HALF; stride];
    for window in windows {
        sums.fill(HALF);
        let rows = image.pixels[window.first * stride..].chunks_exact(stride);
        for (row, &weight) in rows.zip(&window.weights) {
            sums.iter_mut().zip(row).for_each(|(sum, &byte)| *sum += i32::from(byte) * weight);
        }
        pixels.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    RgbImage { width: image.width, height: windows.len(), pixels }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_sum_to_one_and_cannot_overflow() {
        for (from, to) in [(1, 1), (1, 100), (100, 1), (37, 32), (513, 512), (50, 200), (3000, 8), (7, 6)] {
            for window in windows(from, to) {
                let sum: i64 = window.weights.iter().map(|&weight| i64::from(weight)).sum();
                let absolute: i64 = window.weights.iter().map(|&weight| i64::from(weight).abs()).sum();
                assert!((sum - (1 << FRACTION_BITS)).abs() <= window.weights.len() as i64, "{from} {to}");
                assert!(absolute * 255 + i64::from(HALF) <= i64::from(i32::MAX), "{from} {to} {absolute}");
                assert!(window.first + window.weights.len() <= from, "{from} {to}");
            }
        }
    }

    #[test]
    fn wrong_buffers_are_refused() {
        let image = RgbImage { width: 2, height: 2, pixels: vec![0; 11] };
        assert!(matches!(
            resize_lanczos(&image, 1, 1),
            Err(MediaError::BufferLength { expected: 12, found: 11, .. })
        ));
        let image = RgbImage { width: 2, height: 2, pixels: vec![0; 12] };
        assert!(matches!(resize_lanczos(&image, 0, 1), Err(MediaError::TooSmall { .. })));
        let image = RgbImage { width: 0, height: 2, pixels: vec![] };
        assert!(matches!(resize_lanczos(&image, 1, 1), Err(MediaError::TooSmall { .. })));
    }

    proptest! {
        #[test]
        fn flat_pictures_stay_flat(
            colour in any::<[u8; 3]>(), from in (1..40usize, 1..40usize), to in (1..40usize, 1..40usize)
        ) {
            let image = RgbImage { width: from.0, height: from.1, pixels: colour.repeat(from.0 * from.1) };
            let resized = resize_lanczos(&image, to.0, to.1)?;
            prop_assert_eq!(resized.pixels, colour.repeat(to.0 * to.1));
        }
    }
}
