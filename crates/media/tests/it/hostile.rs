//! Files that lie about their size, are cut off, or are damaged: an error, never a panic or a large allocation.

use proptest::prelude::*;
use remote_vae_media::{DecodeLimits, MediaError, decode_image};

use crate::{LIMITS, golden};

/// A PNG file's signature and header chunk for 8-bit RGB, with the right checksum and nothing after it.
fn png_declaring(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\r".to_vec();
    let checksum = chunk.iter().fold(u32::MAX, |state, &byte| {
        (0..8).fold(state ^ u32::from(byte), |state, _| {
            (state >> 1) ^ (0xedb8_8320 & (state & 1).wrapping_neg())
        })
    });
    file.extend(chunk);
    file.extend((!checksum).to_be_bytes());
    file
}

#[test]
fn declared_sizes_are_checked_first() {
    for (width, height) in [(50000, 50000), (0x7fff_ffff, 0x7fff_ffff), (0x7fff_ffff, 1)] {
        let result = decode_image(&png_declaring(width, height), &LIMITS);
        assert!(matches!(result, Err(MediaError::TooManyPixels { .. })), "{result:?}");
    }
    let message = decode_image(&png_declaring(50000, 50000), &LIMITS).unwrap_err().to_string();
    assert_eq!(message, "Expected an image of at most 4194304 pixels. Got 50000x50000.");
    // The size fields of a JPEG and of a lossless WebP, overwritten.
    let mut jpeg = golden("jpeg_61x43.jpg");
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap_or_default();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let mut webp = golden("mode_lossless.webp");
    webp[21..25].copy_from_slice(&[0xff, 0xff, 0xff, 0x0f]);
    for file in [jpeg, webp] {
        let result = decode_image(&file, &LIMITS);
        assert!(matches!(result, Err(MediaError::TooManyPixels { .. })), "{result:?}");
    }
}

#[test]
fn limits_are_inclusive() {
    let file = golden("source.png");
    let pixels = 61 * 43;
    for (max_pixels, max_bytes, expected) in
        [(pixels, 1 << 20, true), (pixels - 1, 1 << 20, false), (pixels, pixels * 3 - 1, false)]
    {
        let result = decode_image(&file, &DecodeLimits { max_pixels, max_bytes });
        assert_eq!(result.is_ok(), expected, "{max_pixels} {max_bytes}: {result:?}");
    }
    for name in ["jpeg_61x43.jpg", "mode_lossy.webp", "mode_lossless_alpha.webp"] {
        assert!(decode_image(&golden(name), &DecodeLimits { max_pixels: 10, max_bytes: 1 << 20 }).is_err());
        assert!(decode_image(&golden(name), &DecodeLimits { max_pixels: 1 << 20, max_bytes: 10 }).is_err());
    }
}

#[test]
fn other_bytes_are_no_image() {
    for bytes in [&b""[..], b"\x89", b"GIF89a", b"BM", b"RIFF\0\0\0\0WAVE", &[0; 64]] {
        assert_eq!(decode_image(bytes, &LIMITS), Err(MediaError::UnknownFormat { length: bytes.len() }));
    }
}

#[test]
fn every_cut_is_survived() {
    for name in [
        "mode_p_transparent.png",
        "mode_sixteen_rgb.png",
        "jpeg_48x32.jpg",
        "mode_lossy.webp",
        "mode_lossless.webp",
    ] {
        let file = golden(name);
        for length in 0..file.len() {
            let _ = decode_image(&file[..length], &LIMITS);
        }
        assert!(decode_image(&file[..file.len() / 4], &LIMITS).is_err(), "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damage_is_survived(index in 0..6usize, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let names = ["source.png", "mode_p.png", "jpeg_48x32.jpg", "mode_progressive.jpg", "mode_lossy.webp", "mode_lossless_alpha.webp"];
        let mut file = golden(names[index]);
        for (at, byte) in damage {
            let at = at.index(file.len());
            file[at] = byte;
        }
        if let Ok(image) = decode_image(&file, &LIMITS) {
            prop_assert_eq!(image.pixels.len(), image.width * image.height * 3);
        }
    }
}
