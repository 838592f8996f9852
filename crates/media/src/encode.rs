//! PNG and JPEG files as Pillow writes them by default, and lossless WebP files.

use image::ExtendedColorType;
use image::codecs::webp::WebPEncoder;
use jpeg_encoder::{ChromaSubsamplingMethod, ColorType, Encoder, SamplingFactor};

use crate::error::{MediaError, check_length};

const PNG: &str = "PNG";
const JPEG: &str = "JPEG";
pub(crate) const WEBP: &str = "WebP";
/// The longest side of a lossless WebP picture.
pub(crate) const LONGEST_WEBP: usize = 1 << 14;
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
    as_libjpeg_numbers(&mut file);
    Ok(file)
}

/// Writes the numbers that libjpeg writes: JFIF 1.01 (no later feature is used), and components from 1 on, as JFIF asks
/// for, where the encoder counts from 0. Goes from segment to segment up to the scan; whatever is not as expected stays.
fn as_libjpeg_numbers(file: &mut [u8]) {
    const APP0: u8 = 0xe0;
    const SOF0: u8 = 0xc0;
    const SOS: u8 = 0xda;
    /// Adds one to the first byte of each of `count` parts of `size` bytes.
    fn count_from_one(parts: &mut [u8], count: usize, size: usize) {
        for part in parts.chunks_exact_mut(size).take(count) {
            part[0] = part[0].saturating_add(1);
        }
    }
    let mut rest = file.get_mut(2..).unwrap_or_default();
    while let [0xff, marker, high, low, ..] = *rest {
        let end = 2 + usize::from(u16::from_be_bytes([high, low]));
        let Some((segment, following)) = rest.split_at_mut_checked(end) else { return };
        match (marker, segment.get_mut(4..).unwrap_or_default()) {
            (APP0, [b'J', b'F', b'I', b'F', 0, 1, minor, ..]) => *minor = 1,
            (SOF0, [_, _, _, _, _, count, components @ ..]) => {
                count_from_one(components, usize::from(*count), 3);
            }
            (SOS, [count, components @ ..]) => {
                count_from_one(components, usize::from(*count), 2);
                return;
            }
            _ => {}
        }
        rest = following;
    }
}
