//! PNG and JPEG files as Pillow writes them by default.

use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};

use crate::error::{MediaError, check_length};

const PNG: &str = "PNG";
const JPEG: &str = "JPEG";
/// Pillow's default.
const JPEG_QUALITY: u8 = 75;

fn check_size(
    format: &'static str,
    limit: usize,
    rgb: &[u8],
    width: usize,
    height: usize,
) -> Result<(), MediaError> {
    if width == 0 || height == 0 || width > limit || height > limit {
        return Err(MediaError::UnsupportedSize { format, width, height, limit });
    }
    check_length(&[height, width, 3], rgb.len())
}

/// Writes a PNG file: 8-bit RGB, not interlaced, zlib level 6, a filter chosen for each row.
///
/// `rgb` is `height * width * 3` bytes.
///
/// # Errors
/// [`MediaError::UnsupportedSize`] for an empty picture or a side above 2³¹ − 1, [`MediaError::BufferLength`].
pub fn encode_png(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>, MediaError> {
    check_size(PNG, i32::MAX as usize, rgb, width, height)?;
    let unwritable =
        |error: png::EncodingError| MediaError::Unwritable { format: PNG, reason: error.to_string() };
    let mut file = Vec::with_capacity(rgb.len() / 2 + 1024);
    let mut encoder = png::Encoder::new(&mut file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_deflate_compression(png::DeflateCompression::Level(6));
    encoder.set_filter(png::Filter::Adaptive);
    let mut writer = encoder.write_header().map_err(unwritable)?;
    writer.write_image_data(rgb).map_err(unwritable)?;
    writer.finish().map_err(unwritable)?;
    Ok(file)
}

/// Writes a JPEG file: baseline, quality 75, chroma averaged over 2×2 pixels (4:2:0), the standard tables of Annex K
/// of the JPEG standard scaled as libjpeg scales them, JFIF 1.01 without a unit of density.
///
/// `rgb` is `height * width * 3` bytes.
///
/// # Errors
/// [`MediaError::UnsupportedSize`] for an empty picture or a side above 65535, [`MediaError::BufferLength`].
pub fn encode_jpeg(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>, MediaError> {
    check_size(JPEG, usize::from(u16::MAX), rgb, width, height)?;
    let unwritable = |error: jpeg_encoder::EncodingError| MediaError::Unwritable {
        format: JPEG,
        reason: error.to_string(),
    };
    let mut file = Vec::with_capacity(rgb.len() / 8 + 1024);
    let mut encoder = Encoder::new(&mut file, JPEG_QUALITY);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    encoder.encode(rgb, width as u16, height as u16, ColorType::Rgb).map_err(unwritable)?;
    // The minor version of JFIF: 1.01, as libjpeg writes; no later feature is used.
    if let Some(minor) = file.get_mut(12) {
        *minor = 1;
    }
    Ok(file)
}
