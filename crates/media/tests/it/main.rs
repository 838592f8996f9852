//! Files against what Pillow, torch and diffusers make of the same pixels; `golden/make_golden.py` makes the files.

mod animation;
mod files;
mod hostile;
mod video;

use remote_vae_media::{DecodeLimits, RgbImage, decode_image};

const LIMITS: DecodeLimits = DecodeLimits { max_pixels: 1 << 22, max_bytes: 1 << 25 };

/// A golden file's bytes.
fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A golden picture.
fn picture(name: &str) -> RgbImage {
    decode_image(&golden(name), &LIMITS).unwrap_or_else(|error| panic!("{name}: {error}"))
}
