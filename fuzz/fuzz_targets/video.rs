//! MP4 files from strangers: an error or frames within the limits, never a panic or a large allocation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use remote_vae_media::{DecodeLimits, VideoLimits, decode_mp4};

const LIMITS: VideoLimits =
    VideoLimits { frames: DecodeLimits { max_pixels: 1 << 18, max_bytes: 1 << 22 }, max_frames: 16 };

fuzz_target!(|file: &[u8]| {
    if let Ok(video) = decode_mp4(file, &LIMITS) {
        assert!(video.frames.len() <= LIMITS.max_frames);
        let bytes: usize = video.frames.iter().map(|frame| frame.pixels.len()).sum();
        assert!(bytes as u64 <= LIMITS.frames.max_bytes);
    }
});
