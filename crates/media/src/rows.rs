//! PNG and JPEG files from rows that come one after the other, written as they come. [`crate::encode`] has the files of
//! whole pictures, which are the same to the byte.
//!
//! Rows come in parts: some whole rows each, `rows * width * 3` bytes. The writer gets pieces of any size, some of one byte.

use std::cell::{Cell, RefCell};
use std::io::{self, Write};

use jpeg_encoder::{
    ChromaSubsamplingMethod, Encoder, ImageBuffer, JpegColorType, SamplingFactor, rgb_to_ycbcr,
};

use crate::encode::{JPEG, LONGEST_JPEG, LONGEST_PNG, PNG, check_sides};
use crate::error::MediaError;

/// Pillow's default.
const JPEG_QUALITY: u8 = 75;
/// Bytes of one chunk of a PNG file's data.
const PNG_CHUNK: usize = 1 << 16;

fn not_filled() -> io::Error {
    io::Error::other("the rows do not fill the picture")
}

fn unwritable(format: &'static str, reason: impl ToString) -> MediaError {
    MediaError::Unwritable { format, reason: reason.to_string() }
}

/// Writes a PNG file of `width` by `height` pixels: 8-bit RGB, not interlaced, zlib level 6, a filter chosen for each row.
///
/// # Errors
/// [`MediaError::UnsupportedSize`] for an empty picture or a side above 2³¹ − 1; [`MediaError::Unwritable`] where `rows`
/// are too few or too many, or `file` refuses.
pub fn write_png<P: AsRef<[u8]>>(
    file: impl Write,
    width: usize,
    height: usize,
    rows: impl Iterator<Item = P>,
) -> Result<(), MediaError> {
    check_sides(PNG, LONGEST_PNG, width, height)?;
    let mut encoder = png::Encoder::new(file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_deflate_compression(png::DeflateCompression::Level(6));
    encoder.set_filter(png::Filter::Adaptive);
    let write = || {
        let mut file = encoder.write_header()?;
        let mut data = file.stream_writer_with_size(PNG_CHUNK)?;
        // What is too much would be the next frame of an animation.
        let mut left = width as u64 * height as u64 * 3;
        for part in rows {
            left = left.checked_sub(part.as_ref().len() as u64).ok_or_else(not_filled)?;
            data.write_all(part.as_ref())?;
        }
        data.finish()?;
        file.finish()
    };
    write().map_err(|error: png::EncodingError| unwritable(PNG, error))
}

/// Writes a JPEG file of `width` by `height` pixels: baseline, quality 75, chroma averaged over 2×2 pixels (4:2:0), the
/// standard tables of Annex K of the JPEG standard scaled as libjpeg scales them, JFIF 1.01 without a unit of density.
///
/// # Errors
/// [`MediaError::UnsupportedSize`] for an empty picture or a side above 65535; [`MediaError::Unwritable`] where `rows` are
/// too few or too many, or `file` refuses.
pub fn write_jpeg<P: AsRef<[u8]>>(
    file: impl Write,
    width: usize,
    height: usize,
    rows: impl Iterator<Item = P>,
) -> Result<(), MediaError> {
    check_sides(JPEG, LONGEST_JPEG, width, height)?;
    let fits = Cell::new(true);
    let source = RefCell::new(Source { rows, part: None, first: 0, end: 0 });
    let picture = Picture { width, height, source: &source, fits: &fits };
    let mut file = Renumbered { file, head: Some(Vec::with_capacity(HEAD)), fits: &fits };
    let mut encoder = Encoder::new(&mut file, JPEG_QUALITY);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.set_chroma_subsampling_method(ChromaSubsamplingMethod::Average);
    encoder.encode_image(picture).map_err(|error| unwritable(JPEG, error))?;
    let Source { mut rows, end, .. } = source.into_inner();
    fits.set(fits.get() && end == height && rows.next().is_none());
    file.flush().map_err(|error| unwritable(JPEG, error))
}

/// The part of a picture's rows that the encoder looks at.
struct Source<I: Iterator> {
    rows: I,
    part: Option<I::Item>,
    /// Rows of the part.
    first: usize,
    end: usize,
}

/// A picture whose encoder asks for its rows from the top, for the last one several times.
struct Picture<'a, I: Iterator> {
    width: usize,
    height: usize,
    source: &'a RefCell<Source<I>>,
    /// Whether all rows were there so far. The encoder cannot be told.
    fits: &'a Cell<bool>,
}

impl<I: Iterator<Item: AsRef<[u8]>>> ImageBuffer for Picture<'_, I> {
    fn get_jpeg_color_type(&self) -> JpegColorType {
        JpegColorType::Ycbcr
    }

    fn width(&self) -> u16 {
        self.width as u16
    }

    fn height(&self) -> u16 {
        self.height as u16
    }

    fn fill_buffers(&self, y: u16, buffers: &mut [Vec<u8>; 4]) {
        let (y, row) = (usize::from(y), self.width * 3);
        let mut source = self.source.borrow_mut();
        while self.fits.get() && y >= source.end {
            source.part = source.rows.next();
            let len = source.part.as_ref().map_or(0, |part| part.as_ref().len());
            self.fits.set(len > 0 && len.is_multiple_of(row));
            source.first = source.end;
            source.end += len / row;
        }
        let part = source.part.as_ref().map(AsRef::as_ref).unwrap_or_default();
        let pixels = part.get(y.saturating_sub(source.first) * row..).and_then(|part| part.get(..row));
        let Some(pixels) = pixels else {
            // Bytes of what is made of these never leave.
            self.fits.set(false);
            buffers.iter_mut().take(3).for_each(|buffer| buffer.resize(buffer.len() + self.width, 0));
            return;
        };
        let [luma, blue, red, _] = buffers;
        for &[r, g, b] in pixels.as_chunks::<3>().0 {
            let (y, cb, cr) = rgb_to_ycbcr(r, g, b);
            luma.push(y);
            blue.push(cb);
            red.push(cr);
        }
    }
}

/// More than all that stands before a picture's scan.
const HEAD: usize = 1024;

/// Writes the numbers that libjpeg writes into the head of a file, and nothing when rows were missing.
struct Renumbered<'a, W> {
    file: W,
    /// What was written so far, until that is the whole head.
    head: Option<Vec<u8>>,
    fits: &'a Cell<bool>,
}

impl<W: Write> Renumbered<'_, W> {
    fn write_head(&mut self) -> io::Result<()> {
        if let Some(mut head) = self.head.take() {
            as_libjpeg_numbers(&mut head);
            self.file.write_all(&head)?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Renumbered<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.fits.get() {
            return Err(not_filled());
        }
        match &mut self.head {
            None => self.file.write(bytes),
            Some(head) => {
                head.extend(bytes);
                if head.len() >= HEAD {
                    self.write_head()?;
                }
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.fits.get() {
            return Err(not_filled());
        }
        self.write_head()?;
        self.file.flush()
    }
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
