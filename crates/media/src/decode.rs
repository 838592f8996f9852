//! PNG, JPEG and WebP files to RGB, as Pillow's `convert("RGB")` does it, within limits checked before allocation.
//!
//! - Alpha is dropped, not blended; a palette is looked up; grey is repeated; grey below 8 bits is stretched to 0–255.
//! - 16 bits keep their upper byte. (Pillow does the same for colour, but cuts 16-bit grey off at 255, which turns a
//!   photograph white; the upper byte is what is meant.)
//! - Colour profiles, gamma and the EXIF orientation are not applied. Of an animation the first frame counts.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::webp::WebPDecoder;

use crate::RgbImage;
use crate::error::MediaError;

/// What a file may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Greatest width × height.
    pub max_pixels: u64,
    /// Greatest number of bytes that the picture may take, as stored in the file's own pixel format or as RGB.
    pub max_bytes: u64,
}

impl DecodeLimits {
    /// Checks a size that a file declares, with the bytes of one of its pixels.
    pub(crate) fn check(&self, width: u32, height: u32, pixel_bytes: u64) -> Result<(), MediaError> {
        let (width, height) = (u64::from(width), u64::from(height));
        let pixels = width * height;
        if pixels > self.max_pixels {
            return Err(MediaError::TooManyPixels { width, height, limit: self.max_pixels });
        }
        let needed = pixels.saturating_mul(pixel_bytes.max(3));
        if needed > self.max_bytes || usize::try_from(needed).is_err() {
            return Err(MediaError::TooManyBytes { width, height, needed, limit: self.max_bytes });
        }
        Ok(())
    }
}

/// Reads a picture file of whichever format its first bytes show.
///
/// # Errors
/// [`MediaError::UnknownFormat`], [`MediaError::TooManyPixels`] or [`MediaError::TooManyBytes`] from the declared size
/// alone, [`MediaError::Unreadable`].
pub fn decode_image(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, MediaError> {
    match bytes {
        [0x89, b'P', b'N', b'G', ..] => decode_png(bytes, limits),
        [0xff, 0xd8, 0xff, ..] => {
            let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(|error| unreadable("JPEG", error))?;
            read(decoder, "JPEG", limits)
        }
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => {
            check_webp_sizes(&bytes[12..], true, limits)?;
            let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(|error| unreadable("WebP", error))?;
            read(decoder, "WebP", limits)
        }
        _ => Err(MediaError::UnknownFormat { length: bytes.len() }),
    }
}

fn unreadable(format: &'static str, error: impl std::fmt::Display) -> MediaError {
    MediaError::Unreadable { format, reason: error.to_string() }
}

/// Checks every size that the chunks of a WebP file declare: its reader looks at the canvas alone before it allocates
/// for a frame. Frames hold chunks themselves, but no further frames.
fn check_webp_sizes(mut chunks: &[u8], with_frames: bool, limits: &DecodeLimits) -> Result<(), MediaError> {
    const PIXEL_BYTES: u64 = 4;
    let u24 = |bytes: &[u8], at: usize| {
        bytes[at..at + 3].iter().rev().fold(0, |sum, &byte| sum << 8 | u32::from(byte))
    };
    while let Some((header, rest)) = chunks.split_first_chunk::<8>() {
        let [name @ .., a, b, c, d] = header;
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        let content = &rest[..length.min(rest.len())];
        let size = match name {
            b"VP8 " if content.len() >= 10 => Some((u24(content, 6) & 0x3fff, u24(content, 7) >> 8 & 0x3fff)),
            b"VP8L" if content.len() >= 5 => {
                let bits = u32::from_le_bytes([content[1], content[2], content[3], content[4]]);
                Some(((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1))
            }
            b"VP8X" if content.len() >= 10 => Some((u24(content, 4) + 1, u24(content, 7) + 1)),
            b"ANMF" if with_frames && content.len() >= 16 => {
                check_webp_sizes(&content[16..], false, limits)?;
                Some((u24(content, 6) + 1, u24(content, 9) + 1))
            }
            _ => None,
        };
        if let Some((width, height)) = size {
            limits.check(width, height, PIXEL_BYTES)?;
        }
        chunks = rest.get(length.saturating_add(length % 2)..).unwrap_or_default();
    }
    Ok(())
}

/// Reads what a decoder of 8-bit pixels has opened.
fn read(
    mut decoder: impl ImageDecoder,
    format: &'static str,
    limits: &DecodeLimits,
) -> Result<RgbImage, MediaError> {
    let (width, height) = decoder.dimensions();
    let colour = decoder.color_type();
    limits.check(width, height, u64::from(colour.bytes_per_pixel()))?;
    let mut allowed = image::Limits::no_limits();
    allowed.max_alloc = Some(limits.max_bytes.saturating_mul(4));
    decoder.set_limits(allowed).map_err(|error| unreadable(format, error))?;
    let length = usize::try_from(decoder.total_bytes()).map_err(|error| unreadable(format, error))?;
    let mut pixels = vec![0u8; length];
    decoder.read_image(&mut pixels).map_err(|error| unreadable(format, error))?;
    let channels = usize::from(colour.channel_count());
    let sample = usize::from(colour.bytes_per_pixel()).div_ceil(channels.max(1));
    // Samples of the image crate are in the machine's order; their upper byte is the last on a little-endian one.
    let offset = if cfg!(target_endian = "big") { 0 } else { sample.saturating_sub(1) };
    Ok(RgbImage {
        width: width as usize,
        height: height as usize,
        pixels: to_rgb(pixels, channels, sample, offset),
    })
}

/// Reads a PNG file; palettes, transparent colours and small depths are expanded by its reader.
fn decode_png(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, MediaError> {
    let malformed = |error: png::DecodingError| unreadable("PNG", error);
    let allowed = usize::try_from(limits.max_bytes).unwrap_or(usize::MAX);
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: allowed });
    decoder.set_transformations(png::Transformations::EXPAND);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(malformed)?;
    let (width, height) = header.size();
    limits.check(width, height, header.bytes_per_pixel() as u64)?;
    let mut reader = decoder.read_info().map_err(malformed)?;
    let (colour, depth) = reader.output_color_type();
    let sample = if depth == png::BitDepth::Sixteen { 2 } else { 1 };
    limits.check(width, height, (colour.samples() * sample) as u64)?;
    let length = reader.output_buffer_size().ok_or_else(|| unreadable("PNG", "its size overflows"))?;
    let mut pixels = vec![0u8; length];
    reader.next_frame(&mut pixels).map_err(malformed)?;
    let pixels = to_rgb(pixels, colour.samples(), sample, 0);
    Ok(RgbImage { width: width as usize, height: height as usize, pixels })
}

/// Makes RGB of pixels with 1 (grey), 2 (grey, alpha), 3 or 4 channels of `sample` bytes each, of which the one at
/// `offset` is kept.
fn to_rgb(pixels: Vec<u8>, channels: usize, sample: usize, offset: usize) -> Vec<u8> {
    let at = |pixel: &[u8], channel: usize| pixel[channel * sample + offset];
    match channels {
        3 if sample == 1 => pixels,
        1 | 2 => pixels.chunks_exact(channels * sample).flat_map(|pixel| [at(pixel, 0); 3]).collect(),
        _ => {
            let channels = channels.max(3);
            let colours = |pixel: &[u8]| [at(pixel, 0), at(pixel, 1), at(pixel, 2)];
            pixels.chunks_exact(channels * sample).flat_map(colours).collect()
        }
    }
}
