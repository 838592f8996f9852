//! Pictures and tensors to what an encoder takes: sides that are multiples of 8, values in [-1, 1].
//!
//! The rules and the arithmetic are those of the `VaeImageProcessor` of diffusers.

use crate::error::{MediaError, check_length};
use crate::{RgbImage, resize_lanczos};

/// The largest multiples of `multiple` within `width` and `height`.
fn floored(width: usize, height: usize, multiple: usize) -> Result<(usize, usize), MediaError> {
    let step = multiple.max(1);
    if width < step || height < step {
        return Err(MediaError::TooSmall { width, height, multiple: step });
    }
    Ok((width - width % step, height - height % step))
}

/// Resizes (never crops) a picture so that both sides are multiples of `multiple`, each rounded down; a picture that
/// already fits comes back as it is.
///
/// # Errors
/// [`MediaError::TooSmall`] when a side is below `multiple`, and what [`resize_lanczos`] gives.
pub fn resize_to_multiple(image: RgbImage, multiple: usize) -> Result<RgbImage, MediaError> {
    let (width, height) = floored(image.width, image.height, multiple)?;
    if (width, height) == (image.width, image.height) {
        return Ok(image);
    }
    resize_lanczos(&image, width, height)
}

/// A picture as tensor `[1, 3, height, width]` in [-1, 1]: in f32, `2 * (byte / 255) - 1`.
pub fn to_model_range(image: &RgbImage) -> Vec<f32> {
    let table: [f32; 256] = std::array::from_fn(|byte| 2.0 * (byte as f32 / 255.0) - 1.0);
    let mut values = Vec::with_capacity(image.pixels.len());
    for channel in 0..3 {
        values.extend(image.pixels.as_chunks::<3>().0.iter().map(|pixel| table[usize::from(pixel[channel])]));
    }
    values
}

/// Frames of one size as tensor `[1, 3, frames, height, width]` in [-1, 1]: each as [`to_model_range`] has it.
pub fn clip_to_model_range(frames: &[RgbImage]) -> Vec<f32> {
    if let [picture] = frames {
        return to_model_range(picture);
    }
    let frames: Vec<Vec<f32>> = frames.iter().map(to_model_range).collect();
    let plane = frames.first().map_or(0, |frame| frame.len() / 3);
    let channel = |channel: usize| frames.iter().flat_map(move |frame| &frame[channel * plane..][..plane]);
    (0..3).flat_map(channel).copied().collect()
}

/// Brings the values of an image tensor into [-1, 1], in place: if none is negative they are taken to be in [0, 1] and
/// become `2 * x - 1`; otherwise they are there already. (Bytes must be divided by 255 before.)
pub fn tensor_to_model_range(values: &mut [f32]) {
    if !values.iter().any(|&value| value < 0.0) {
        values.iter_mut().for_each(|value| *value = 2.0 * *value - 1.0);
    }
}

/// Resizes an image tensor `[batch, channels, height, width]` so that height and width are multiples of `multiple`,
/// each rounded down, by taking the nearest element: output `i` is input `floor(i * (input / output))`, the ratio in
/// f32.
///
/// # Errors
/// [`MediaError::TooSmall`] when a side is below `multiple`, [`MediaError::BufferLength`].
pub fn resize_tensor_to_multiple(
    values: Vec<f32>,
    shape: [usize; 4],
    multiple: usize,
) -> Result<(Vec<f32>, [usize; 4]), MediaError> {
    let [batch, channels, height, width] = shape;
    check_length(&shape, values.len())?;
    let (new_width, new_height) = floored(width, height, multiple)?;
    if (new_width, new_height) == (width, height) {
        return Ok((values, shape));
    }
    let columns = nearest(width, new_width);
    let rows = nearest(height, new_height);
    let mut resized = Vec::with_capacity(batch * channels * new_height * new_width);
    for plane in values.chunks_exact(height * width) {
        for &row in &rows {
            let line = &plane[row * width..(row + 1) * width];
            resized.extend(columns.iter().map(|&column| line[column]));
        }
    }
    Ok((resized, [batch, channels, new_height, new_width]))
}

/// Which input element each output element takes.
fn nearest(from: usize, to: usize) -> Vec<usize> {
    let ratio = from as f32 / to as f32;
    (0..to).map(|index| ((index as f32 * ratio) as usize).min(from - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_to_model_range() {
        let image = RgbImage { width: 2, height: 1, pixels: vec![0, 1, 2, 255, 128, 127] };
        let expected = [-1.0, 1.0, -0.99215686, 0.003921628, -0.9843137, -0.0039215684];
        assert_eq!(to_model_range(&image), expected);
    }

    #[test]
    fn frames_lie_within_channels() {
        let frame = |first: u8| RgbImage { width: 2, height: 1, pixels: (first..first + 6).collect() };
        let values = clip_to_model_range(&[frame(0), frame(100), frame(200)]);
        let bytes: Vec<u8> = values.iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect();
        let expected = [0, 3, 100, 103, 200, 203, 1, 4, 101, 104, 201, 204, 2, 5, 102, 105, 202, 205];
        assert_eq!(bytes, expected);
        assert_eq!(clip_to_model_range(&[frame(7)]), to_model_range(&frame(7)));
        assert!(clip_to_model_range(&[]).is_empty());
    }

    #[test]
    fn tensors_to_model_range() {
        for (values, expected) in [
            (vec![0.0, 0.5, 1.0], vec![-1.0, 0.0, 1.0]),
            (vec![-0.5, 0.5, 1.0], vec![-0.5, 0.5, 1.0]),
            (vec![-0.0, 1.0], vec![-1.0, 1.0]),
            (vec![], vec![]),
        ] {
            let mut result = values.clone();
            tensor_to_model_range(&mut result);
            assert_eq!(result, expected, "{values:?}");
        }
    }

    #[test]
    fn sides_are_rounded_down() {
        let image = RgbImage { width: 17, height: 9, pixels: vec![77; 17 * 9 * 3] };
        let resized =
            resize_to_multiple(image.clone(), 8).map(|image| (image.width, image.height, image.pixels));
        assert_eq!(resized, Ok((16, 8, vec![77; 16 * 8 * 3])));
        assert_eq!(resize_to_multiple(image.clone(), 1), Ok(image.clone()));
        assert_eq!(resize_to_multiple(image.clone(), 0), Ok(image.clone()));
        let message = resize_to_multiple(image, 16).unwrap_err().to_string();
        assert_eq!(message, "Expected an image of at least 16x16 pixels. Got 17x9.");
    }

    #[test]
    fn tensors_take_the_nearest_element() {
        let values: Vec<f32> = (0..12).map(|value| value as f32).collect();
        let (resized, shape) = resize_tensor_to_multiple(values.clone(), [1, 2, 2, 3], 2).unwrap_or_default();
        assert_eq!(shape, [1, 2, 2, 2]);
        assert_eq!(resized, [0.0, 1.0, 3.0, 4.0, 6.0, 7.0, 9.0, 10.0]);
        assert_eq!(
            resize_tensor_to_multiple(values.clone(), [1, 2, 2, 3], 1),
            Ok((values.clone(), [1, 2, 2, 3]))
        );
        assert!(matches!(
            resize_tensor_to_multiple(values.clone(), [1, 2, 2, 3], 3),
            Err(MediaError::TooSmall { width: 3, height: 2, multiple: 3 })
        ));
        assert!(matches!(
            resize_tensor_to_multiple(values, [1, 2, 2, 4], 2),
            Err(MediaError::BufferLength { expected: 16, found: 12, .. })
        ));
    }
}
