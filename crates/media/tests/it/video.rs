//! MP4 files: what is in them, what players say of them, and damaged ones.

use std::process::Command;

use proptest::prelude::*;
use remote_vae_media::{
    DecodeLimits, MediaError, Mp4Encoder, Mp4Layout, Mp4Options, VideoLimits, decode_mp4, decode_mp4_start,
    psnr,
};

use crate::golden;

const LIMITS: VideoLimits =
    VideoLimits { frames: DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 25 }, max_frames: 64 };

/// A frame with smooth colours and an edge that moves; `height * width * 3` bytes.
pub(crate) fn frame(width: usize, height: usize, time: usize) -> Vec<u8> {
    let pixel = |at: usize| {
        let (x, y) = (at % width, at / width);
        let bright = if (x + 3 * time) % 24 < 8 { 60 } else { 0 };
        [
            (x * 190 / width) as u8 + bright,
            (y * 190 / height) as u8 + bright,
            ((x + y) * 190 / (width + height)) as u8 + bright,
        ]
    };
    (0..width * height).flat_map(pixel).collect()
}

/// A video of `count` such frames.
pub(crate) fn video(width: usize, height: usize, count: usize, options: &Mp4Options) -> Vec<u8> {
    let mut encoder = Mp4Encoder::new(width, height, options).unwrap();
    let mut file = Vec::new();
    for time in 0..count {
        file.extend(encoder.push_rgb(&frame(width, height, time)).unwrap());
    }
    file.extend(encoder.finish().unwrap());
    file
}

#[test]
fn frames_that_are_taken_follow_the_rest() {
    let options = Mp4Options { crf: 12, ..Mp4Options::default() };
    let (mut encoder, mut taken) = (Mp4Encoder::new(33, 19, &options).unwrap(), Vec::new());
    for time in 0..200 {
        assert!(encoder.push_rgb(&frame(33, 19, time)).unwrap().is_empty());
        let bytes = encoder.take_frames();
        assert!(!bytes.is_empty());
        taken.extend(bytes);
    }
    let head = encoder.finish().unwrap();
    assert!(head.len() < taken.len());
    assert!([head, taken].concat() == video(33, 19, 200, &options));
}

#[test]
fn parameters_out_of_range_are_refused() {
    for (fps, crf) in [(0.0, 23), (f64::NAN, 23), (1e9, 23), (10.0, 11), (10.0, 52)] {
        let options = Mp4Options { fps, crf, ..Mp4Options::default() };
        let refused = Mp4Encoder::new(64, 64, &options);
        assert!(matches!(refused, Err(MediaError::OutOfRange { .. })), "{fps} {crf}");
    }
    for (width, height) in [(0, 16), (16, 0), (3841, 16), (2161, 2161)] {
        let refused = Mp4Encoder::new(width, height, &Mp4Options::default());
        assert!(matches!(refused, Err(MediaError::UnsupportedSize { .. })), "{width}x{height}");
    }
    let mut encoder = Mp4Encoder::new(16, 16, &Mp4Options::default()).unwrap();
    assert!(matches!(encoder.push_rgb(&[0; 5]), Err(MediaError::BufferLength { expected: 768, .. })));
    assert!(matches!(encoder.push_planes(&[0.0; 5]), Err(MediaError::BufferLength { expected: 768, .. })));
    assert!(matches!(encoder.finish(), Err(MediaError::Unwritable { .. })));
}

#[test]
fn same_frames_give_the_same_bytes() {
    for layout in [Mp4Layout::Indexed, Mp4Layout::Fragmented] {
        let options = Mp4Options { layout, ..Mp4Options::default() };
        let file = video(72, 40, 5, &options);
        assert_eq!(&file[4..8], b"ftyp");
        assert_eq!(file, video(72, 40, 5, &options));
    }
}

/// What `ffprobe` says of a file, as `key=value` lines; `None` where there is no such program.
fn probe(file: &[u8]) -> Option<String> {
    let path = std::env::temp_dir().join(format!("remote-vae-{}-{}.mp4", std::process::id(), file.len()));
    std::fs::write(&path, file).unwrap();
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_streams", "-of", "default=noprint_wrappers=1"])
        .arg(&path)
        .output();
    std::fs::remove_file(&path).unwrap();
    let output = output.ok()?;
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn ffprobe_sees_what_was_asked() {
    // 4:2:0 knows even sides only; the last size shows what its clean aperture would take off.
    for (layout, (width, height), shown) in [
        (Mp4Layout::Indexed, (96, 64), (96, 64)),
        (Mp4Layout::Fragmented, (96, 64), (96, 64)),
        (Mp4Layout::Indexed, (90, 50), (90, 50)),
        (Mp4Layout::Indexed, (1, 1), (2, 2)),
        (Mp4Layout::Fragmented, (1920, 1080), (1920, 1080)),
        (Mp4Layout::Indexed, (33, 17), (34, 18)),
    ] {
        let options = Mp4Options { fps: 24.0, layout, ..Mp4Options::default() };
        let Some(said) = probe(&video(width, height, 7, &options)) else {
            eprintln!("skipped: ffprobe is not installed");
            return;
        };
        for expected in [
            "codec_name=h264",
            "pix_fmt=yuv420p",
            &format!("width={}", shown.0),
            &format!("height={}", shown.1),
            "nb_read_frames=7",
            "r_frame_rate=24/1",
            "color_range=tv",
            "color_space=bt709",
            "color_primaries=bt709",
            "color_transfer=bt709",
        ] {
            assert!(said.lines().any(|line| line == expected), "{expected} {layout:?}\n{said}");
        }
    }
}

#[test]
fn frames_return() {
    for (layout, crf, at_least) in
        [(Mp4Layout::Indexed, 12, 40.0), (Mp4Layout::Indexed, 23, 36.0), (Mp4Layout::Fragmented, 23, 36.0)]
    {
        let options = Mp4Options { fps: 23.976, crf, layout };
        let read = decode_mp4(&video(160, 96, 50, &options), &LIMITS).unwrap();
        assert_eq!(read.frames.len(), 50);
        assert!((read.fps - 23.976).abs() < 1e-6, "{}", read.fps);
        for (time, picture) in read.frames.iter().enumerate() {
            let similarity = psnr(&picture.pixels, &frame(160, 96, time));
            assert!(similarity >= at_least, "frame {time} at {crf}: {similarity} dB");
        }
    }
}

#[test]
fn planes_become_the_same_file_as_bytes() {
    let bytes = frame(16, 16, 0);
    let planes: Vec<f32> = (0..3)
        .flat_map(|channel| bytes.iter().skip(channel).step_by(3))
        .map(|&byte| f32::from(byte) / 127.5 - 1.0)
        .collect();
    let mut encoder = Mp4Encoder::new(16, 16, &Mp4Options::default()).unwrap();
    assert!(encoder.push_planes(&planes).unwrap().is_empty());
    let read = decode_mp4(&encoder.finish().unwrap(), &LIMITS).unwrap();
    assert!(psnr(&read.frames[0].pixels, &bytes) > 30.0);
}

/// `bidirectional.mp4` has ten grey frames, each brighter than the last, and frames predicted from later ones.
#[test]
fn frames_come_in_the_order_in_which_they_are_shown() {
    let read = decode_mp4(&golden("bidirectional.mp4"), &LIMITS).unwrap();
    assert_eq!((read.frames.len(), read.fps), (10, 25.0));
    for count in [0, 1, 4, 9, 10, 11] {
        let start = decode_mp4_start(&golden("bidirectional.mp4"), count, &LIMITS).unwrap();
        assert_eq!(start.frames, read.frames[..count.min(10)], "the first {count}");
    }
    for (time, picture) in read.frames.iter().enumerate() {
        assert_eq!((picture.width, picture.height), (32, 24));
        let expected = 20 * time as u8 + 20;
        assert!(
            picture.pixels.iter().all(|&byte| byte.abs_diff(expected) <= 4),
            "{time}: {:?}",
            picture.pixels[0]
        );
    }
}

proptest! {
    #[test]
    fn any_size_returns(width in 1usize..90, height in 1usize..90, count in 1usize..4, fragmented: bool) {
        let layout = if fragmented { Mp4Layout::Fragmented } else { Mp4Layout::Indexed };
        let flat = [90u8, 160, 40].repeat(width * height);
        let mut encoder = Mp4Encoder::new(width, height, &Mp4Options { layout, ..Mp4Options::default() })?;
        let mut file = Vec::new();
        for _ in 0..count {
            file.extend(encoder.push_rgb(&flat)?);
        }
        file.extend(encoder.finish()?);
        let read = decode_mp4(&file, &LIMITS)?;
        prop_assert_eq!(read.frames.len(), count);
        for picture in read.frames {
            prop_assert_eq!((picture.width, picture.height), (width, height));
            let worst = picture.pixels.iter().zip(&flat).map(|(a, b)| a.abs_diff(*b)).max();
            prop_assert!(worst <= Some(6), "{worst:?}");
        }
    }

    #[test]
    fn damaged_videos_are_no_panic(
        at in any::<prop::sample::Index>(), with in any::<[u8; 4]>(), cut in any::<prop::sample::Index>(), which in 0..3
    ) {
        let options = Mp4Options {
            layout: if which == 0 { Mp4Layout::Fragmented } else { Mp4Layout::Indexed },
            ..Mp4Options::default()
        };
        let mut file = if which == 2 { golden("bidirectional.mp4") } else { video(33, 19, 4, &options) };
        let start = at.index(file.len() - 4);
        file[start..start + 4].copy_from_slice(&with);
        for part in [&file[..], &file[..cut.index(file.len())]] {
            if let Ok(read) = decode_mp4(part, &LIMITS) {
                prop_assert!(read.frames.len() <= LIMITS.max_frames);
            }
        }
    }
}

#[test]
fn cut_off_videos_are_refused() {
    let file = video(32, 32, 6, &Mp4Options::default());
    for length in 0..file.len() {
        let error = decode_mp4(&file[..length], &LIMITS).unwrap_err();
        assert!(!error.to_string().is_empty(), "{length}");
    }
    assert!(matches!(decode_mp4(b"nonsense", &LIMITS), Err(MediaError::UnknownFormat { length: 8 })));
}

#[test]
fn limits_of_videos_are_checked_before_decoding() {
    for layout in [Mp4Layout::Indexed, Mp4Layout::Fragmented] {
        let file = video(48, 32, 6, &Mp4Options { layout, ..Mp4Options::default() });
        let read = |max_pixels, max_bytes, max_frames| {
            let frames = DecodeLimits { max_pixels, max_bytes };
            decode_mp4(&file, &VideoLimits { frames, max_frames })
        };
        assert!(read(48 * 32, 48 * 32 * 18, 6).is_ok());
        assert!(matches!(read(48 * 32 - 1, 1 << 20, 6), Err(MediaError::TooManyPixels { .. })));
        assert!(matches!(read(1 << 20, 48 * 32 * 18 - 1, 6), Err(MediaError::TooManyBytes { .. })));
        assert!(matches!(read(1 << 20, 1 << 20, 5), Err(MediaError::TooManyFrames { limit: 5, .. })));
        // Of the first frames only their own bytes count.
        let frames = DecodeLimits { max_pixels: 48 * 32, max_bytes: 48 * 32 * 9 };
        let limits = VideoLimits { frames, max_frames: 6 };
        for (count, expected) in [(1, 1), (3, 3)] {
            let start = decode_mp4_start(&file, count, &limits).unwrap();
            assert_eq!(start.frames.len(), expected);
            assert_eq!(start.fps, 10.0);
        }
        assert!(decode_mp4_start(&file, 4, &limits).is_err());
    }
}
