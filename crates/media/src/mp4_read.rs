//! MP4 files with H.264 to frames, within limits. No sound, no other codecs, no edit lists.
//!
//! - What a file says is checked before it is believed: the size of its pictures from the stream's own parameter sets,
//!   the number of its frames from the index, every place of a frame against the length of the file.
//! - Frames come in the order in which they are shown, without their times: a variable frame rate is taken as its mean.
//! - Colours are read as the file's `colr` box says; a file without one, or with another matrix, as BT.601 in limited
//!   range, which is what encoders that do not say anything mostly mean. Rotation is not applied.
//! - The decoder gets no file that names a size above the limits; by itself it takes at most 36864 macroblocks
//!   (9.4 million pixels) a picture and keeps 16 of them.

use openh264::OpenH264API;
use openh264::decoder::{DecodeOptions, DecodedYUV, Decoder, DecoderConfig, Flush};
use openh264::formats::YUVSource;
use shiguredo_mp4::bitstream::h264::{
    H264NalUnitType, LengthSize, parse_length_prefixed_nal_units, parse_sps,
};
use shiguredo_mp4::boxes::{Avc1Box, SampleEntry, UnknownBox};
use shiguredo_mp4::demux::{
    DemuxError, Fmp4FileDemuxer, Input, Mp4FileDemuxer, Mp4FileKind, Mp4FileKindDetector, RequiredInput,
    Sample,
};
use shiguredo_mp4::{BoxType, TrackKind};

use crate::RgbImage;
use crate::decode::DecodeLimits;
use crate::error::MediaError;
use crate::mp4::MP4;
use crate::yuv::{Matrix, PlaneView, to_rgb};

/// What a video file may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VideoLimits {
    /// Limits of one frame, and in `max_bytes` of all frames together, as RGB.
    pub frames: DecodeLimits,
    /// Greatest number of frames.
    pub max_frames: usize,
}

/// A video's frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Video {
    /// Frames in the order in which they are shown, all of one size.
    pub frames: Vec<RgbImage>,
    /// Mean number of frames per second; 0 when the file gives its frames no time.
    pub fps: f64,
}

/// Whether a file begins as MP4 files do.
pub fn is_mp4(bytes: &[u8]) -> bool {
    matches!(bytes, [_, _, _, _, b'f', b't', b'y', b'p', ..])
}

fn unreadable(reason: impl std::fmt::Display) -> MediaError {
    MediaError::Unreadable { format: MP4, reason: reason.to_string() }
}

/// Where the pictures of a file are and how to read them.
struct Track<'a> {
    entry: Avc1Box,
    /// The bytes of each frame, in the order in which they are decoded.
    samples: Vec<&'a [u8]>,
    /// Ticks that all of them last.
    ticks: u64,
    /// Ticks in a second.
    timescale: u32,
}

/// Reads the frames of an MP4 file, plain or fragmented.
///
/// # Errors
/// [`MediaError::UnknownFormat`] for what is no MP4 file, [`MediaError::TooManyPixels`], [`MediaError::TooManyBytes`]
/// or [`MediaError::TooManyFrames`] from what the file declares, [`MediaError::Unreadable`].
pub fn decode_mp4(bytes: &[u8], limits: &VideoLimits) -> Result<Video, MediaError> {
    decode_mp4_start(bytes, usize::MAX, limits)
}

/// As [`decode_mp4`], but only the first `count` frames, or all if there are fewer; the limits on bytes hold for these.
///
/// # Errors
/// As [`decode_mp4`].
pub fn decode_mp4_start(bytes: &[u8], count: usize, limits: &VideoLimits) -> Result<Video, MediaError> {
    if !is_mp4(bytes) {
        return Err(MediaError::UnknownFormat { length: bytes.len() });
    }
    let track = read_track(bytes, limits)?;
    let wanted = track.samples.len().min(count);
    let (width, height) = check_sizes(&track, wanted, limits)?;
    let crop = aperture(&track.entry.unknown_boxes, width, height)?;
    let (matrix, is_full_range) = colours(&track.entry.unknown_boxes);
    let mut frames = Vec::new();
    let all = track.samples.len();
    // Whether no more are wanted.
    let mut keep = |picture: &DecodedYUV<'_>| {
        if picture.dimensions() != (width, height) {
            let (found_width, found_height) = picture.dimensions();
            return Err(unreadable(format!(
                "a frame is {found_width}x{found_height} where the file declares {width}x{height}"
            )));
        }
        if frames.len() == wanted {
            let found = wanted + 1;
            return if wanted < all {
                Ok(true)
            } else {
                Err(MediaError::TooManyFrames { found, limit: wanted })
            };
        }
        let (luma_stride, chroma_stride, _) = picture.strides();
        let view = PlaneView {
            luma: picture.y(),
            chroma: [picture.u(), picture.v()],
            strides: (luma_stride, chroma_stride),
        };
        let pixels = to_rgb(&view, crop, matrix, is_full_range)
            .ok_or_else(|| unreadable("a frame is smaller than the file declares"))?;
        frames.push(RgbImage { width: crop.2, height: crop.3, pixels });
        Ok(frames.len() == wanted && wanted < all)
    };
    let config = DecoderConfig::new().flush_after_decode(Flush::NoFlush);
    let mut decoder = Decoder::with_api_config(OpenH264API::from_source(), config).map_err(unreadable)?;
    let parameters = track.entry.avcc_box.sps_list.iter().chain(&track.entry.avcc_box.pps_list);
    let mut stream = annex_b(parameters.map(Vec::as_slice));
    let mut enough = wanted == 0;
    for sample in &track.samples {
        if enough {
            break;
        }
        let units =
            parse_length_prefixed_nal_units(sample, length_size(&track.entry)?).map_err(unreadable)?;
        stream.extend(annex_b(units.iter().map(|unit| unit.data)));
        if let Some(picture) =
            decoder.decode_with_options(&stream, DecodeOptions::new()).map_err(unreadable)?
        {
            enough = keep(&picture)?;
        }
        stream.clear();
    }
    if !enough {
        for picture in decoder.flush_remaining().map_err(unreadable)? {
            keep(&picture)?;
        }
    }
    if frames.len() != wanted {
        return Err(unreadable(format!("{} of its {wanted} frames could be decoded", frames.len())));
    }
    let fps = match track.ticks {
        0 => 0.0,
        ticks => all as f64 * f64::from(track.timescale) / ticks as f64,
    };
    Ok(Video { frames, fps })
}

/// Units behind the start codes that a decoder looks for.
fn annex_b<'a>(units: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut stream = Vec::new();
    for unit in units {
        stream.extend([0, 0, 0, 1]);
        stream.extend(unit);
    }
    stream
}

fn length_size(entry: &Avc1Box) -> Result<LengthSize, MediaError> {
    match entry.avcc_box.length_size_minus_one.get() {
        0 => Ok(LengthSize::OneByte),
        1 => Ok(LengthSize::TwoBytes),
        3 => Ok(LengthSize::FourBytes),
        other => Err(unreadable(format!("its frames have lengths of {} bytes", other + 1))),
    }
}

/// Hands a reader the parts of the file that it asks for, each of which lies behind what it had before.
fn feed(bytes: &[u8], required: RequiredInput, mut give: impl FnMut(Input<'_>)) {
    let start = usize::try_from(required.position).unwrap_or(usize::MAX).min(bytes.len());
    let end = required.size.map_or(bytes.len(), |size| start.saturating_add(size).min(bytes.len()));
    give(Input { position: required.position, data: &bytes[start..end] });
}

/// Finds the pictures of the first video track.
fn read_track<'a>(bytes: &'a [u8], limits: &VideoLimits) -> Result<Track<'a>, MediaError> {
    // A box has at least eight bytes; a reader that asks more often than there can be boxes does not advance.
    let most_requests = bytes.len() / 8 * 2 + 16;
    let mut detector = Mp4FileKindDetector::new();
    for _ in 0..most_requests {
        let Some(required) = detector.required_input() else { break };
        feed(bytes, required, |input| detector.handle_input(input));
    }
    match detector.file_kind().map_err(unreadable)? {
        Some(Mp4FileKind::Mp4) => {
            let mut demuxer = Mp4FileDemuxer::new();
            for _ in 0..most_requests {
                let Some(required) = demuxer.required_input() else { break };
                feed(bytes, required, |input| demuxer.handle_input(input));
            }
            let mut collector = Collector::new(bytes, limits);
            while let Some(sample) = demuxer.next_sample().map_err(unreadable)? {
                collector.add(&sample)?;
            }
            collector.finish()
        }
        Some(Mp4FileKind::FragmentedMp4) => {
            let mut demuxer = Fmp4FileDemuxer::new();
            let mut collector = Collector::new(bytes, limits);
            for _ in 0..most_requests {
                loop {
                    match demuxer.next_sample() {
                        Ok(Some(sample)) => collector.add(&sample)?,
                        Ok(None) | Err(DemuxError::InputRequired(_)) => break,
                        Err(error) => return Err(unreadable(error)),
                    }
                }
                let Some(required) = demuxer.required_input() else { break };
                feed(bytes, required, |input| demuxer.handle_input(input));
            }
            collector.finish()
        }
        None => Err(unreadable("it has no index")),
    }
}

/// Gathers the samples of one track.
struct Collector<'a, 'b> {
    bytes: &'a [u8],
    limits: &'b VideoLimits,
    track_id: Option<u32>,
    entry: Option<Avc1Box>,
    samples: Vec<&'a [u8]>,
    ticks: u64,
    timescale: u32,
    seen: usize,
}

impl<'a, 'b> Collector<'a, 'b> {
    fn new(bytes: &'a [u8], limits: &'b VideoLimits) -> Self {
        Self { bytes, limits, track_id: None, entry: None, samples: vec![], ticks: 0, timescale: 1, seen: 0 }
    }

    fn add(&mut self, sample: &Sample<'_>) -> Result<(), MediaError> {
        // Samples of other tracks cost time as well; none can be had for less than a byte of the file.
        self.seen += 1;
        if self.seen > self.bytes.len() {
            return Err(unreadable("its index names more samples than the file has bytes"));
        }
        if sample.track.kind != TrackKind::Video
            || self.track_id.is_some_and(|id| id != sample.track.track_id)
        {
            return Ok(());
        }
        self.track_id = Some(sample.track.track_id);
        match (sample.sample_entry, &self.entry) {
            (Some(SampleEntry::Avc1(entry)), None) => self.entry = Some(entry.clone()),
            (Some(SampleEntry::Avc1(entry)), Some(first)) if entry == first => {}
            (Some(SampleEntry::Avc1(_)), Some(_)) => {
                return Err(unreadable("its frames change their format"));
            }
            (Some(_), _) => return Err(unreadable("its video is not H.264 (avc1)")),
            (None, _) => {}
        }
        let limit = self.limits.max_frames;
        if self.samples.len() == limit {
            return Err(MediaError::TooManyFrames { found: limit + 1, limit });
        }
        let start = usize::try_from(sample.data_offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(sample.data_size)?));
        let data = range.and_then(|range| self.bytes.get(range));
        let number = self.samples.len() + 1;
        self.samples.push(data.ok_or_else(|| {
            unreadable(format!("frame {number} lies behind the file's end at {} bytes", self.bytes.len()))
        })?);
        self.ticks += u64::from(sample.duration);
        self.timescale = sample.track.timescale.get();
        Ok(())
    }

    fn finish(self) -> Result<Track<'a>, MediaError> {
        let entry = self.entry.ok_or_else(|| unreadable("it has no H.264 video"))?;
        Ok(Track { entry, samples: self.samples, ticks: self.ticks, timescale: self.timescale })
    }
}

/// The one size that all parameter sets of a video declare, checked against the limits with the frames that are wanted.
fn check_sizes(track: &Track<'_>, wanted: usize, limits: &VideoLimits) -> Result<(usize, usize), MediaError> {
    let mut size = None;
    let mut check = |unit: &[u8]| {
        let set = parse_sps(unit).map_err(unreadable)?;
        if (set.chroma_format_idc, set.bit_depth_luma_minus8, set.bit_depth_chroma_minus8) != (1, 0, 0) {
            return Err(unreadable("its video is not 8-bit 4:2:0"));
        }
        limits.frames.check(u32::from(set.width), u32::from(set.height), 3)?;
        let found = (usize::from(set.width), usize::from(set.height));
        if *size.get_or_insert(found) != found {
            return Err(unreadable("its frames change their size"));
        }
        Ok(())
    };
    for unit in &track.entry.avcc_box.sps_list {
        check(unit)?;
    }
    let length_size = length_size(&track.entry)?;
    for sample in &track.samples {
        for unit in parse_length_prefixed_nal_units(sample, length_size).map_err(unreadable)? {
            match unit.nal_unit_type {
                H264NalUnitType::Sps => check(unit.data)?,
                // Subset sequence parameter sets belong to scalable streams, whose sizes nothing here checks.
                H264NalUnitType::Other(15) => return Err(unreadable("its video is scalable")),
                _ => {}
            }
        }
    }
    let (width, height) = size.ok_or_else(|| unreadable("it has no sequence parameter set"))?;
    let needed = (width * height * 3) as u64 * wanted as u64;
    if needed > limits.frames.max_bytes {
        let (width, height) = (width as u64, height as u64);
        return Err(MediaError::TooManyBytes { width, height, needed, limit: limits.frames.max_bytes });
    }
    Ok((width, height))
}

fn find<'a>(boxes: &'a [UnknownBox], name: &[u8; 4]) -> Option<&'a [u8]> {
    boxes.iter().find(|found| found.box_type == BoxType::Normal(*name)).map(|found| found.payload.as_slice())
}

/// The part of a coded picture to be shown, as left, top, width and height: all of it, or what a clean aperture in its
/// upper left corner leaves.
fn aperture(
    boxes: &[UnknownBox],
    width: usize,
    height: usize,
) -> Result<(usize, usize, usize, usize), MediaError> {
    let Some(payload) = find(boxes, b"clap") else { return Ok((0, 0, width, height)) };
    let numbers: Vec<i64> =
        payload.as_chunks::<4>().0.iter().map(|bytes| i64::from(i32::from_be_bytes(*bytes))).collect();
    let axis = |side: usize, over: i64, under: i64, offset: i64, offset_under: i64| {
        let [over, under, offset, offset_under] = [over, under, offset, offset_under].map(i128::from);
        if under <= 0 || offset_under <= 0 || over % under != 0 {
            return None;
        }
        let shown = over / under;
        // The offset of centres counts from the middle of the coded picture.
        let doubled = 2 * offset / offset_under + (side as i128 - shown);
        let (start, shown) = (usize::try_from(doubled / 2).ok()?, usize::try_from(shown).ok()?);
        (doubled >= 0 && shown > 0 && start + shown <= side).then_some((start, shown))
    };
    let parts = match numbers[..] {
        [w, wd, h, hd, x, xd, y, yd] => axis(width, w, wd, x, xd).zip(axis(height, h, hd, y, yd)),
        _ => None,
    };
    let ((left, width), (top, height)) =
        parts.ok_or_else(|| unreadable("its clean aperture lies outside of its picture"))?;
    Ok((left, top, width, height))
}

/// The matrix of a video's colours, and whether they use all 256 values.
fn colours(boxes: &[UnknownBox]) -> (Matrix, bool) {
    match find(boxes, b"colr") {
        Some([b'n', b'c', b'l', b'x', _, _, _, _, 0, matrix, range, ..]) => {
            (if *matrix == 1 { Matrix::Bt709 } else { Matrix::Bt601 }, range & 0x80 != 0)
        }
        _ => (Matrix::Bt601, false),
    }
}
