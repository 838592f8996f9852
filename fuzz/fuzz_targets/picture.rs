//! A picture file of anybody's: decoded within its limits, and resized, without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use remote_vae_media::{DecodeLimits, decode_image, resize_to_multiple, to_model_range};

fuzz_target!(|file: &[u8]| {
    let limits = DecodeLimits { max_pixels: 1 << 16, max_bytes: 1 << 22 };
    let Ok(image) = decode_image(file, &limits) else { return };
    assert!(image.width as u64 * image.height as u64 <= limits.max_pixels);
    if let Ok(image) = resize_to_multiple(image, 8) {
        assert!(to_model_range(&image).iter().all(|x| (-1.0..=1.0).contains(x)));
    }
});
