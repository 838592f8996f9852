//! The embedded model is worth embedding: on photographs that it was not trained on it beats plain scaling.

use remote_vae_engine::{Autoencoder, Control, CpuEngine, Draw, EngineOptions, Precision};
use remote_vae_media::{DecodeLimits, RgbImage, decode_image, psnr, to_model_range, to_uint8_channel_last};
use remote_vae_model::Model;
use remote_vae_wire::Scaling;
use std::path::Path;
use std::sync::Arc;

const SIDE: usize = 256;
const FACTOR: usize = 8;

#[test]
fn it_beats_box_down_and_bicubic_up_by_far() {
    let engine = Arc::new(CpuEngine::new(EngineOptions::default()).unwrap());
    let autoencoder = Autoencoder::new(Model::embedded().unwrap(), engine);
    let mut gain = 0.0;
    for name in ["chelsea", "coffee", "astronaut"] {
        let photograph = held_out(name);
        let learned = psnr(&photograph.pixels, &round_trip(&autoencoder, &photograph));
        let plain = psnr(&photograph.pixels, &bicubic_up(&box_down(&photograph.pixels)));
        eprintln!("{name}: {learned:.2} dB, plain scaling {plain:.2} dB");
        gain += (learned - plain) / 3.0;
    }
    assert!(gain >= 0.7, "{gain:.2} dB better on average; expected at least 0.7");
}

fn held_out(name: &str) -> RgbImage {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/embedded/heldout");
    let file = std::fs::read(folder.join(format!("{name}.png"))).unwrap();
    let image = decode_image(&file, &DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 22 }).unwrap();
    assert_eq!((image.width, image.height), (SIDE, SIDE));
    image
}

fn round_trip(autoencoder: &Autoencoder, photograph: &RgbImage) -> Vec<u8> {
    let (pixels, shape) = (to_model_range(photograph), [1, 3, SIDE, SIDE]);
    let (scaling, control) = (Scaling::Model { shift: None }, Control::new());
    let latents =
        autoencoder.encode(&pixels, shape, &scaling, Draw::Mode, Precision::Exact, &control).unwrap();
    assert_eq!(latents.shape, [1, 4, SIDE / FACTOR, SIDE / FACTOR]);
    let image =
        autoencoder.decode(latents.values, latents.shape, &scaling, Precision::Exact, &control).unwrap();
    to_uint8_channel_last(&image.pixels, image.shape)
}

/// Means of 8x8 pixels: `[32][32][3]`.
fn box_down(pixels: &[u8]) -> Vec<f64> {
    let small = SIDE / FACTOR;
    let mut means = vec![0.0; small * small * 3];
    for (index, value) in pixels.iter().enumerate() {
        let (y, x, c) = (index / 3 / SIDE, index / 3 % SIDE, index % 3);
        means[(y / FACTOR * small + x / FACTOR) * 3 + c] += f64::from(*value) / (FACTOR * FACTOR) as f64;
    }
    means
}

/// Catmull-Rom's cubic (a = -1/2), pixel centres aligned, edges repeated.
fn bicubic_up(small: &[f64]) -> Vec<u8> {
    let side = SIDE / FACTOR;
    let cubic = |x: f64| {
        let x = x.abs();
        if x < 1.0 {
            1.5 * x * x * x - 2.5 * x * x + 1.0
        } else if x < 2.0 {
            -0.5 * x * x * x + 2.5 * x * x - 4.0 * x + 2.0
        } else {
            0.0
        }
    };
    let taps = |at: usize| {
        let centre = (at as f64 + 0.5) / FACTOR as f64 - 0.5;
        let first = centre.floor() as isize - 1;
        (first..first + 4)
            .map(move |from| (from.clamp(0, side as isize - 1) as usize, cubic(from as f64 - centre)))
    };
    let mut out = Vec::with_capacity(SIDE * SIDE * 3);
    for y in 0..SIDE {
        for x in 0..SIDE {
            for c in 0..3 {
                let sum: f64 = taps(y)
                    .map(|(row, down)| {
                        let across: f64 = taps(x)
                            .map(|(column, weight)| weight * small[(row * side + column) * 3 + c])
                            .sum();
                        down * across
                    })
                    .sum();
                out.push(sum.round().clamp(0.0, 255.0) as u8);
            }
        }
    }
    out
}
