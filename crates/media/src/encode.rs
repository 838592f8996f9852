//! PNG and JPEG files as Pillow writes them by default, and lossless WebP files.

use image::ExtendedColorType;
use image::codecs::webp::WebPEncoder;

use crate::error::{MediaError, check_length};
use crate::rows::{write_jpeg, write_png};

pub(crate) const PNG: &str = "PNG";
pub(crate) const JPEG: &str = "JPEG";
pub(crate) const WEBP: &str = "WebP";
/// The longest sides of pictures.
pub(crate) const LONGEST_PNG: usize = i32::MAX as usize;
pub(crate) const LONGEST_JPEG: usize = u16::MAX as usize;
/// Of lossless ones.
pub(crate) const LONGEST_WEBP: usize = 1 << 14;

/// Checks the sides of a picture that is to be written.
pub(crate) fn check_sides(
    format: &'static str,
    limit: usize,
    width: usize,
    height: usize,
) -> Result<(), MediaError> {
    if width == 0 || height == 0 || width > limit || height > limit {
        return Err(MediaError::UnsupportedSize { format, width, height, limit });
    }
    Ok(())
}

/// Whether a JPEG file takes a picture of these sides.
///
/// # Errors
/// [`MediaError::UnsupportedSize`] for an empty picture or a side above 65535.
pub fn check_jpeg_sides(width: usize, height: usize) -> Result<(), MediaError> {
    check_sides(JPEG, LONGEST_JPEG, width, height)
}

/// Whether a lossless WebP file takes a picture of these sides.
///
/// # Errors
/// [`MediaError::UnsupportedSize`] for an empty picture or a side above 16384.
pub fn check_webp_sides(width: usize, height: usize) -> Result<(), MediaError> {
    check_sides(WEBP, LONGEST_WEBP, width, height)
}

fn check_size(
    format: &'static str,
    limit: usize,
    rgb: &[u8],
    width: usize,
    height: usize,
) -> Result<(), MediaError> {
    check_sides(format, limit, width, height)?;
    check_length(&[height, width, 3], rgb.len())
}

/// Writes a PNG file: as [`write_png`], of a whole picture.
///
/// `rgb` is `height * width * 3` bytes.
///
/// # Errors
/// [`MediaError::UnsupportedSize`] for an empty picture or a side above 2³¹ − 1, [`MediaError::BufferLength`].
pub fn encode_png(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>, MediaError> {
    check_size(PNG, LONGEST_PNG, rgb, width, height)?;
    let mut file = Vec::with_capacity(rgb.len() / 2 + 1024);
    write_png(&mut file, width, height, std::iter::once(rgb))?;
    Ok(file)
}

/// Writes a lossless WebP file.
///
/// `rgb` is `height * width * 3` bytes.
///
/// # Errors
/// [`MediaError::UnsupportedSize`] for an empty picture or a side above 16384, [`MediaError::BufferLength`].
pub fn encode_webp(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>, MediaError> {
    check_size(WEBP, LONGEST_WEBP, rgb, width, height)?;
    let mut file = Vec::new();
    WebPEncoder::new_lossless(&mut file)
        .encode(rgb, width as u32, height as u32, ExtendedColorType::Rgb8)
        .map_err(|error| MediaError::Unwritable { format: WEBP, reason: error.to_string() })?;
    Ok(file)
}

/// Writes a JPEG file: as [`write_jpeg`], of a whole picture.
///
/// `rgb` is `height * width * 3` bytes.
///
/// # Errors
/// [`MediaError::UnsupportedSize`] for an empty picture or a side above 65535, [`MediaError::BufferLength`].
pub fn encode_jpeg(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>, MediaError> {
    check_size(JPEG, LONGEST_JPEG, rgb, width, height)?;
    let mut file = Vec::with_capacity(rgb.len() / 8 + 1024);
    write_jpeg(&mut file, width, height, std::iter::once(rgb))?;
    Ok(file)
}
