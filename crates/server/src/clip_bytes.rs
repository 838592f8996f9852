//! From finished frames to the bytes of an answer, a group of frames at a time.

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use remote_vae_engine::Frames;
use remote_vae_media::{self as media, MediaError, Mp4Encoder, Mp4Options, WebpAnimation};
use remote_vae_wire::{Answer, Dtype, Negotiated, TensorHeader, bytes_from_elements};
use tokio::sync::mpsc::UnboundedSender;

use crate::growing::Chunk;

/// What is to be made of a clip.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    answer: Answer,
    /// Element type, where the answer is a tensor of floats.
    float: Dtype,
    /// `[batch, channels, frames, height, width]`
    output: [usize; 5],
    /// How often frames come, over the whole batch.
    groups: usize,
    video: Mp4Options,
    streams: bool,
}

impl Recipe {
    pub(crate) fn new(
        Negotiated { answer, float, .. }: Negotiated,
        output: [usize; 5],
        groups: usize,
        video: Mp4Options,
        streams: bool,
    ) -> Self {
        Self { answer, float, output, groups, video, streams }
    }

    /// Whether bytes leave before the last frame is there.
    pub(crate) fn streams(&self) -> bool {
        self.streams
    }

    /// `[batch, channels, frames, height, width]`
    pub(crate) fn output(&self) -> [usize; 5] {
        self.output
    }

    /// The tensor's header, if the answer is one.
    pub(crate) fn header(&self) -> Option<TensorHeader> {
        let [_, channels, frames, height, width] = self.output;
        let (shape, dtype) = match self.answer {
            Answer::Tensor => (self.output.to_vec(), self.float),
            Answer::UnitTensor => (vec![frames, channels, height, width], self.float),
            Answer::PartialTensor => (vec![frames, height, width, channels], Dtype::Uint8),
            Answer::Png | Answer::Jpeg | Answer::Webp | Answer::Mp4 => return None,
        };
        Some(TensorHeader { shape, dtype })
    }

    /// Bytes of the answer at most: of a tensor its own, of a file those of its frames in the colours that are compressed.
    pub(crate) fn bytes(&self) -> u64 {
        /// Bytes of a pixel in three colours.
        const COLOURS: u64 = 3;
        let [batch, _, frames, height, width] = self.output;
        let pixels = [batch, frames, height, width]
            .iter()
            .fold(COLOURS, |product, &side| product.saturating_mul(side as u64));
        self.header().and_then(|header| header.byte_len().ok()).map_or(pixels, |bytes| bytes as u64)
    }

    /// Bytes that what makes the answer keeps beside it.
    pub(crate) fn kept_bytes(&self) -> u64 {
        let [.., height, width] = self.output;
        if self.answer == Answer::Mp4 { Mp4Encoder::kept_bytes(width, height) as u64 } else { 0 }
    }

    /// Starts.
    pub(crate) fn start(&self) -> Result<Maker, MediaError> {
        let [.., height, width] = self.output;
        Ok(match self.answer {
            Answer::Tensor => {
                let count: usize = self.output.iter().product();
                let bytes = vec![0; count * self.float.size()];
                Maker::Tensor { bytes, dtype: self.float, output: self.output }
            }
            Answer::UnitTensor => Maker::Unit(self.float),
            Answer::PartialTensor => Maker::Bytes,
            Answer::Png | Answer::Jpeg => Maker::Picture { answer: self.answer, file: Vec::new() },
            Answer::Mp4 => Maker::Mp4(Box::new(Mp4Encoder::new(width, height, &self.video)?)),
            Answer::Webp => Maker::Webp(WebpAnimation::new(width, height, self.video.fps)?),
        })
    }
}

/// Makes the bytes of frames as they come. Gives the time that took; none when the client or the engine has given up.
pub(crate) fn make(
    recipe: &Recipe,
    frames: &Receiver<Frames>,
    chunks: &UnboundedSender<Chunk>,
) -> Result<Option<Duration>, MediaError> {
    let send = |bytes: Vec<u8>| bytes.is_empty() || chunks.send(Chunk::Bytes(bytes.into())).is_ok();
    let mut maker = recipe.start()?;
    let mut spent = Duration::ZERO;
    for _ in 0..recipe.groups {
        let Ok(group) = frames.recv() else { return Ok(None) };
        let start = Instant::now();
        let bytes = maker.add(group)?;
        spent += start.elapsed();
        if !send(bytes) {
            return Ok(None);
        }
    }
    let start = Instant::now();
    let bytes = maker.finish()?;
    spent += start.elapsed();
    Ok(send(bytes).then_some(spent))
}

/// An answer that is being made. What [`Maker::add`] and [`Maker::finish`] give, put together, is its body.
pub(crate) enum Maker {
    /// Channels come before frames, so nothing is whole before the end.
    Tensor {
        bytes: Vec<u8>,
        dtype: Dtype,
        output: [usize; 5],
    },
    Unit(Dtype),
    Bytes,
    Picture {
        answer: Answer,
        file: Vec<u8>,
    },
    Mp4(Box<Mp4Encoder>),
    Webp(WebpAnimation),
}

impl Maker {
    pub(crate) fn add(&mut self, group: Frames) -> Result<Vec<u8>, MediaError> {
        let [channels, frames, height, width] = group.shape;
        let mut ready = Vec::new();
        match self {
            Maker::Tensor { bytes, dtype, output: [_, _, all, ..] } => {
                let plane = height * width;
                for (channel, values) in group.values.chunks_exact(frames * plane).enumerate() {
                    let first = (group.sample * channels + channel) * *all + group.first;
                    let values = bytes_from_elements(*dtype, values);
                    bytes[first * plane * dtype.size()..][..values.len()].copy_from_slice(&values);
                }
            }
            Maker::Unit(dtype) => {
                for frame in 0..frames {
                    let unit = media::to_unit_interval(&planes(&group, frame));
                    ready.extend(bytes_from_elements(*dtype, &unit));
                }
            }
            Maker::Bytes => (0..frames).for_each(|frame| ready.extend(rgb(&group, frame))),
            Maker::Picture { answer: Answer::Png, file } => {
                *file = media::encode_png(&rgb(&group, 0), width, height)?;
            }
            Maker::Picture { file, .. } => *file = media::encode_jpeg(&rgb(&group, 0), width, height)?,
            Maker::Mp4(encoder) => {
                for frame in 0..frames {
                    ready.extend(encoder.push_rgb(&rgb(&group, frame))?);
                }
            }
            Maker::Webp(animation) => {
                (0..frames).try_for_each(|frame| animation.push_rgb(&rgb(&group, frame)))?;
            }
        }
        Ok(ready)
    }

    pub(crate) fn finish(self) -> Result<Vec<u8>, MediaError> {
        match self {
            Maker::Tensor { bytes, .. } | Maker::Picture { file: bytes, .. } => Ok(bytes),
            Maker::Unit(_) | Maker::Bytes => Ok(Vec::new()),
            Maker::Mp4(encoder) => encoder.finish(),
            Maker::Webp(animation) => animation.finish(),
        }
    }
}

/// One frame, `[channels, height, width]`.
fn planes(group: &Frames, frame: usize) -> Vec<f32> {
    let [channels, frames, height, width] = group.shape;
    let plane = height * width;
    let channel = |index: usize| &group.values[(index * frames + frame) * plane..][..plane];
    (0..channels).flat_map(|index| channel(index).iter().copied()).collect()
}

/// One frame, `[height, width, channels]`, 0 to 255.
fn rgb(group: &Frames, frame: usize) -> Vec<u8> {
    let [channels, _, height, width] = group.shape;
    media::to_uint8_channel_last(&planes(group, frame), [1, channels, height, width])
}
