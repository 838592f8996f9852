//! MP4 files: what is in them, what players say of them, and damaged ones.

use std::process::Command;

use remote_vae_media::{MediaError, Mp4Encoder, Mp4Layout, Mp4Options};

/// A frame with smooth colours and an edge that moves; `height * width * 3` bytes.
pub(crate) fn frame(width: usize, height: usize, time: usize) -> Vec<u8> {
    let pixel = |at: usize| {
        let (x, y) = (at % width, at / width);
        let bright = if (x + 3 * time) % 24 < 8 { 60 } else { 0 };
        [(x * 190 / width) as u8 + bright, (y * 190 / height) as u8 + bright, ((x + y) % 150) as u8]
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
fn parameters_out_of_range_are_refused() {
    for (fps, quantizer) in [(0.0, 23), (f64::NAN, 23), (1e9, 23), (10.0, 11), (10.0, 52)] {
        let options = Mp4Options { fps, quantizer, ..Mp4Options::default() };
        let refused = Mp4Encoder::new(64, 64, &options);
        assert!(matches!(refused, Err(MediaError::OutOfRange { .. })), "{fps} {quantizer}");
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
    for layout in [Mp4Layout::Indexed, Mp4Layout::Fragmented] {
        let options = Mp4Options { fps: 24.0, layout, ..Mp4Options::default() };
        let Some(said) = probe(&video(96, 64, 7, &options)) else {
            eprintln!("skipped: ffprobe is not installed");
            return;
        };
        for expected in [
            "codec_name=h264",
            "pix_fmt=yuv420p",
            "width=96",
            "height=64",
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
