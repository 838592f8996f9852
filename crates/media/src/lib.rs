//! Pixels in and out: the protocol's exact post-processing, picture files, and what an encoder expects of its input.
//!
//! | module | what it holds |
//! |---|---|
//! | [`postprocess`] | decoder output to `uint8` and to [0, 1] |
//! | [`encode`] | PNG and JPEG files as Pillow writes them by default, lossless WebP files |
//! | [`rows`] | the same PNG and JPEG files, written while their rows come |
//! | [`decode`] | PNG, JPEG and WebP files to RGB, within limits |
//! | [`mp4`] | MP4 files with H.264, written frame by frame |
//! | [`mp4_read`] | MP4 files with H.264 to frames, within limits |
//! | [`animation`] | animated WebP files, lossless |
//! | [`resize`] | Pillow's Lanczos resampling |
//! | [`preprocess`] | pictures and tensors to the encoder's range and size |
//!
//! Pictures are 8-bit RGB, rows from top to bottom, no padding. Tensors are f32 `[batch, channels, height, width]`.
#![forbid(unsafe_code)]

pub mod animation;
pub mod decode;
pub mod encode;
pub mod error;
pub mod mp4;
pub mod mp4_read;
pub mod postprocess;
pub mod preprocess;
pub mod resize;
pub mod rows;
mod sps;
mod yuv;

pub use animation::WebpAnimation;
pub use decode::{DecodeLimits, decode_image};
pub use encode::{check_jpeg_sides, check_webp_sides, encode_jpeg, encode_png, encode_webp};
pub use error::MediaError;
pub use mp4::{Mp4Encoder, Mp4Layout, Mp4Options};
pub use mp4_read::{Video, VideoLimits, decode_mp4, decode_mp4_start, is_mp4};
pub use postprocess::{psnr, to_uint8_channel_last, to_unit_interval};
pub use preprocess::{
    clip_to_model_range, resize_tensor_to_multiple, resize_to_multiple, tensor_to_model_range, to_model_range,
};
pub use resize::resize_lanczos;
pub use rows::{write_jpeg, write_png};

/// A picture of 8-bit RGB pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RgbImage {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes: rows from the top, pixels from the left, red first.
    pub pixels: Vec<u8>,
}
