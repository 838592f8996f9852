//! MP4 files with H.264, written frame by frame. Reading them is `mp4_read`.
//!
//! - Every player knows what is written: 8-bit 4:2:0 (`yuv420p`), Constrained Baseline, progressive, constant frame
//!   rate, no sound. Colours are BT.709 in limited range, and both the stream and the file say so.
//! - One thread encodes with a constant quantizer: the same frames give the same bytes.
//! - The encoder is given whole macroblocks of 16 by 16; what is missing repeats the last column and row, and the stream
//!   says that it is not to be shown. 4:2:0 cannot say so of one column or row: at an odd side players see one repeated
//!   pixel, unless they follow the clean aperture (`clap`), which holds the true size.

use std::num::NonZeroU32;

use openh264::OpenH264API;
use openh264::encoder::{BitRate, FrameType};
use openh264::encoder::{
    Encoder, EncoderConfig, FrameRate, IntraFramePeriod, QpRange, RateControlMode, VuiConfig,
};
use openh264::formats::YUVSlices;
use shiguredo_mp4::bitstream::h264::{
    H264NalUnitType, H264SampleEntryConfig, LengthSize, build_avc1_box, parse_annexb_nal_units,
};
use shiguredo_mp4::boxes::{SampleEntry, UnknownBox};
use shiguredo_mp4::mux::{
    Fmp4SegmentMuxer, Mp4FileMuxer, Mp4FileMuxerOptions, Sample, estimate_maximum_moov_box_size,
};
use shiguredo_mp4::{BoxSize, BoxType, TrackKind};

use crate::error::{MediaError, check_length};
use crate::postprocess::to_uint8_channel_last;
use crate::sps::{MACROBLOCK, with_cropping};
use crate::yuv::Planes;

pub(crate) const MP4: &str = "MP4";
/// The longer and the shorter side that the encoder takes.
const LONGEST: usize = 3840;
const SHORTEST: usize = 2160;
/// Seconds between frames that can be jumped to.
const KEY_FRAME_SECONDS: f64 = 4.0;
/// Ticks that one frame lasts.
const FRAME_TICKS: u32 = 1000;

/// How a video is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mp4Layout {
    /// One index at the front of a file that is handed over when it is finished. Every player knows it.
    #[default]
    Indexed,
    /// A fragment for each frame, so that bytes can leave while later frames are being made.
    Fragmented,
}

/// What a video should be like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mp4Options {
    /// Frames per second, 0.1 to 240. 10 by default, as `export_to_video` of diffusers has it.
    pub fps: f64,
    /// The constant quantizer of H.264, 12 (largest file) to 51 (smallest). 23 by default.
    pub crf: u8,
    /// How the file is laid out.
    pub layout: Mp4Layout,
}

impl Default for Mp4Options {
    fn default() -> Self {
        Self { fps: 10.0, crf: 23, layout: Mp4Layout::Indexed }
    }
}

impl Mp4Options {
    /// Whether a video of `width` by `height` pixels can be written so.
    ///
    /// # Errors
    /// [`MediaError::UnsupportedSize`], [`MediaError::OutOfRange`].
    pub fn check_size(&self, width: usize, height: usize) -> Result<(), MediaError> {
        self.check()?;
        let (longer, shorter) = (width.max(height), width.min(height));
        if shorter == 0 || longer > LONGEST || shorter > SHORTEST {
            let limit = if longer > LONGEST || shorter == 0 { LONGEST } else { SHORTEST };
            return Err(MediaError::UnsupportedSize { format: MP4, width, height, limit });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), MediaError> {
        let crf = f64::from(self.crf);
        for (name, found, least, greatest) in [("fps", self.fps, 0.1, 240.0), ("crf", crf, 12.0, 51.0)] {
            if !(least..=greatest).contains(&found) {
                let range = format!("from {least} to {greatest}");
                return Err(MediaError::OutOfRange { name, range, found: found.to_string() });
            }
        }
        Ok(())
    }
}

/// One encoded frame.
struct CodedFrame {
    length: usize,
    is_key: bool,
}

/// Writes one video.
///
/// What [`push_rgb`](Self::push_rgb), [`push_planes`](Self::push_planes) and [`finish`](Self::finish) return, put
/// together in order, is the file. In [`Mp4Layout::Indexed`] nothing comes before `finish`; what
/// [`take_frames`](Self::take_frames) took is the file's end.
pub struct Mp4Encoder {
    width: usize,
    height: usize,
    timescale: NonZeroU32,
    encoder: Encoder,
    planes: Planes,
    sample_entry: Option<SampleEntry>,
    /// Frames for the index; of a file in fragments the first.
    frames: Vec<CodedFrame>,
    /// Those of them that were not taken: NAL units, each behind its length in four bytes.
    held: Vec<u8>,
    fragments: Option<Fmp4SegmentMuxer>,
}

impl std::fmt::Debug for Mp4Encoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { width, height, timescale, frames, .. } = self;
        formatter
            .debug_struct("Mp4Encoder")
            .field("size", &(width, height))
            .field("timescale", timescale)
            .field("frames", &frames.len())
            .finish_non_exhaustive()
    }
}

fn unwritable(error: impl std::fmt::Display) -> MediaError {
    MediaError::Unwritable { format: MP4, reason: error.to_string() }
}

impl Mp4Encoder {
    /// Bytes that an encoder of `width` by `height` pixels keeps between frames, without what they have become.
    pub fn kept_bytes(width: usize, height: usize) -> usize {
        // Measured are 12 bytes for each pixel, of frames that are compared with the next, and 1 MiB.
        const PER_PIXEL: usize = 13;
        const ALWAYS: usize = 2 << 20;
        width.saturating_mul(height).saturating_mul(PER_PIXEL).saturating_add(ALWAYS)
    }

    /// Starts a video of `width` by `height` pixels.
    ///
    /// # Errors
    /// [`MediaError::UnsupportedSize`] for an empty picture, a side above 3840 or two sides above 2160,
    /// [`MediaError::OutOfRange`] for an option, [`MediaError::Unwritable`] when the encoder cannot start.
    pub fn new(width: usize, height: usize, options: &Mp4Options) -> Result<Self, MediaError> {
        options.check_size(width, height)?;
        let timescale = (options.fps * f64::from(FRAME_TICKS)).round() as u32;
        let timescale = NonZeroU32::new(timescale).unwrap_or(NonZeroU32::MIN);
        let quantizer = options.crf;
        let planes = Planes::new(width.next_multiple_of(MACROBLOCK), height.next_multiple_of(MACROBLOCK));
        // With one quantizer allowed neither the bit rate nor the buffer decides anything; the other modes may skip frames.
        let config = EncoderConfig::new()
            .bitrate(BitRate::from_bps(2_000_000))
            .max_frame_rate(FrameRate::from_hz(options.fps.clamp(1.0, 60.0) as f32))
            .rate_control_mode(RateControlMode::Bufferbased)
            .qp(QpRange::new(quantizer, quantizer))
            .skip_frames(false)
            .adaptive_quantization(false)
            .background_detection(false)
            .scene_change_detect(false)
            .intra_frame_period(IntraFramePeriod::from_num_frames(
                (options.fps * KEY_FRAME_SECONDS).ceil() as u32
            ))
            .num_threads(1)
            .vui(VuiConfig::bt709());
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config).map_err(unwritable)?;
        let fragments = match options.layout {
            Mp4Layout::Indexed => None,
            Mp4Layout::Fragmented => Some(Fmp4SegmentMuxer::new().map_err(unwritable)?),
        };
        let (frames, held) = (vec![], vec![]);
        Ok(Self { width, height, timescale, encoder, planes, sample_entry: None, frames, held, fragments })
    }

    /// Adds a frame of `height * width * 3` bytes, red first, and returns the bytes of the file that are ready.
    ///
    /// # Errors
    /// [`MediaError::BufferLength`], [`MediaError::Unwritable`].
    pub fn push_rgb(&mut self, rgb: &[u8]) -> Result<Vec<u8>, MediaError> {
        check_length(&[self.height, self.width, 3], rgb.len())?;
        self.planes.fill(rgb, self.width, self.height);
        let (frame, data) = self.encode()?;
        let Some(muxer) = &mut self.fragments else {
            self.frames.push(frame);
            self.held.extend(data);
            return Ok(vec![]);
        };
        let is_first = self.frames.is_empty();
        let sample = sample(&frame, self.timescale, self.sample_entry.clone(), 0);
        let head = muxer.create_media_segment_metadata(&[sample]).map_err(unwritable)?;
        let mut bytes = if is_first { muxer.init_segment_bytes().map_err(unwritable)? } else { vec![] };
        bytes.extend(head);
        bytes.extend(data);
        if is_first {
            self.frames.push(frame);
        }
        Ok(bytes)
    }

    /// Adds a frame of decoder output `[3, height, width]`, nominally in [-1, 1], with the rounding of every other
    /// answer, and returns the bytes of the file that are ready.
    ///
    /// # Errors
    /// [`MediaError::BufferLength`], [`MediaError::Unwritable`].
    pub fn push_planes(&mut self, planes: &[f32]) -> Result<Vec<u8>, MediaError> {
        check_length(&[3, self.height, self.width], planes.len())?;
        self.push_rgb(&to_uint8_channel_last(planes, [1, 3, self.height, self.width]))
    }

    /// Takes what the frames so far have become out of memory, in [`Mp4Layout::Indexed`]: whoever does so writes it behind what
    /// [`finish`](Self::finish) returns, in order.
    pub fn take_frames(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Ends the video and returns the bytes of the file that are left, without the frames that were taken.
    ///
    /// # Errors
    /// [`MediaError::Unwritable`], also when there was no frame.
    pub fn finish(self) -> Result<Vec<u8>, MediaError> {
        if self.frames.is_empty() {
            return Err(unwritable("a video needs at least one frame"));
        }
        if self.fragments.is_some() {
            return Ok(vec![]);
        }
        // The index may hold the two boxes that the estimate does not know.
        let reserved_moov_box_size = estimate_maximum_moov_box_size(&[self.frames.len()]) + 256;
        let options = Mp4FileMuxerOptions { reserved_moov_box_size, ..Default::default() };
        let mut muxer = Mp4FileMuxer::with_options(options).map_err(unwritable)?;
        let mut file = muxer.initial_boxes_bytes().to_vec();
        let mut offset = file.len();
        for frame in self.frames {
            let entry = self.sample_entry.clone();
            let sample = sample(&frame, self.timescale, entry, offset as u64);
            muxer.append_sample(&sample).map_err(unwritable)?;
            offset += frame.length;
        }
        for (offset, bytes) in muxer.finalize().map_err(unwritable)?.offset_and_bytes_pairs() {
            let place = usize::try_from(offset).map_err(unwritable)?;
            let place = file.get_mut(place..).and_then(|rest| rest.get_mut(..bytes.len()));
            place.ok_or_else(|| unwritable("the index is larger than its place"))?.copy_from_slice(bytes);
        }
        file.extend(self.held);
        Ok(file)
    }

    /// Encodes what the planes hold; makes the sample entry of the first frame's parameter sets.
    fn encode(&mut self) -> Result<(CodedFrame, Vec<u8>), MediaError> {
        let Planes { width, height, luma, chroma: [blue, red] } = &self.planes;
        let slices = YUVSlices::new((luma, blue, red), (*width, *height), (*width, width / 2, width / 2));
        let stream = self.encoder.encode(&slices).map_err(unwritable)?;
        let is_key = matches!(stream.frame_type(), FrameType::IDR);
        let stream = stream.to_vec();
        let (mut sequence_sets, mut picture_sets, mut data) = (vec![], vec![], vec![]);
        for unit in parse_annexb_nal_units(&stream).map_err(unwritable)? {
            match unit.nal_unit_type {
                H264NalUnitType::Sps => sequence_sets.push(unit.data.to_vec()),
                H264NalUnitType::Pps => picture_sets.push(unit.data.to_vec()),
                _ => {
                    data.extend(u32::try_from(unit.data.len()).map_err(unwritable)?.to_be_bytes());
                    data.extend(unit.data);
                }
            }
        }
        if data.is_empty() {
            return Err(unwritable("the encoder gave no bytes for a frame"));
        }
        if self.sample_entry.is_none() {
            let shown = [self.width, self.height].map(|side| side.next_multiple_of(2));
            let (right, bottom) = (width - shown[0], height - shown[1]);
            if (right, bottom) != (0, 0) {
                for set in &mut sequence_sets {
                    *set = with_cropping(set, right, bottom)
                        .ok_or_else(|| unwritable("the encoder's parameter set cannot be cropped"))?;
                }
            }
            let config = H264SampleEntryConfig { length_size: LengthSize::FourBytes };
            let mut entry = build_avc1_box(&sequence_sets, &picture_sets, &config).map_err(unwritable)?;
            entry.unknown_boxes.push(full_box(*b"colr", colour_information()));
            if shown != [self.width, self.height] {
                let aperture = clean_aperture([self.width, self.height], shown);
                entry.unknown_boxes.push(full_box(*b"clap", aperture));
            }
            self.sample_entry = Some(SampleEntry::Avc1(entry));
        }
        Ok((CodedFrame { length: data.len(), is_key }, data))
    }
}

fn sample(frame: &CodedFrame, timescale: NonZeroU32, entry: Option<SampleEntry>, offset: u64) -> Sample {
    Sample {
        track_kind: TrackKind::Video,
        sample_entry: entry,
        keyframe: frame.is_key,
        timescale,
        duration: FRAME_TICKS,
        composition_time_offset: None,
        data_offset: offset,
        data_size: frame.length,
    }
}

fn full_box(name: [u8; 4], payload: Vec<u8>) -> UnknownBox {
    UnknownBox { box_type: BoxType::Normal(name), box_size: BoxSize::U32(8 + payload.len() as u32), payload }
}

/// The payload of `colr`: BT.709 primaries, transfer and matrix, limited range.
fn colour_information() -> Vec<u8> {
    [b"nclx".as_slice(), &[0, 1, 0, 1, 0, 1, 0]].concat()
}

/// The payload of `clap`: the size as fractions, then how far its centre lies from that of the `shown` picture, across
/// and down. It lies in the upper left corner.
fn clean_aperture(size: [usize; 2], shown: [usize; 2]) -> Vec<u8> {
    let fraction = |over: i32, under: i32| [over.to_be_bytes(), under.to_be_bytes()].concat();
    let sizes = size.map(|side| fraction(side as i32, 1)).concat();
    let offsets = [0, 1].map(|axis| fraction(size[axis] as i32 - shown[axis] as i32, 2)).concat();
    [sizes, offsets].concat()
}
