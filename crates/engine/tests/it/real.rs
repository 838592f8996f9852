//! Trained tiny models and full-size checkpoints, when `REMOTE_VAE_TEST_DATA` names a folder that holds them.

use crate::support::{Tensor, assert_close, engine, largest_difference, psnr, read_tensors};
use remote_vae_engine::{Autoencoder, Control, Precision, Windows};
use remote_vae_kernels::Isa;
use remote_vae_model::Model;
use remote_vae_wire::Scaling;
use std::path::{Path, PathBuf};

/// The fixtures hold latents rounded to f16, and decodes of latents that were not.
const FIXTURE_TOLERANCE: f32 = 1e-3;

fn data() -> Option<PathBuf> {
    let folder = std::env::var_os("REMOTE_VAE_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: REMOTE_VAE_TEST_DATA is not set");
    }
    folder
}

fn decode(
    source: &Path,
    latents: &[f32],
    shape: [usize; 4],
    scaling: Scaling,
    precision: Precision,
) -> Vec<f32> {
    let model = Model::open(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    let autoencoder = Autoencoder::new(model, engine(2, Isa::detect().name()));
    autoencoder.decode(latents.to_vec(), shape, &scaling, precision, &Control::new()).unwrap().pixels
}

/// PSNR of what a picture would show: values beyond -1..1 are clamped.
fn picture_psnr(a: &[f32], b: &[f32]) -> f64 {
    let clamp = |values: &[f32]| values.iter().map(|value| value.clamp(-1.0, 1.0)).collect::<Vec<_>>();
    psnr(&clamp(a), &clamp(b))
}

#[test]
fn trained_tiny_models_decode_a_photograph() {
    let Some(folder) = data() else { return };
    for name in ["taesd", "taesdxl", "taef1"] {
        let fixture = read_tensors(&folder.join(format!("fixtures/{name}_chelsea_256x256.safetensors")));
        let (latent, expected) = (&fixture["latent"], &fixture["decoded_f32"]);
        let found = decode(
            &folder.join("weights").join(name),
            &latent.values,
            latent.shape4(),
            Scaling::None,
            Precision::Exact,
        );
        let psnr = picture_psnr(&found, &expected.values);
        assert!(psnr >= 60.0, "{name}: {psnr:.1} dB");
        assert_close(&found, &expected.values, FIXTURE_TOLERANCE, name);
        let weights = folder.join("weights").join(name);
        let fast = decode(&weights, &latent.values, latent.shape4(), Scaling::None, Precision::Fast);
        let psnr = picture_psnr(&fast, &expected.values);
        eprintln!("{name}: fast {psnr:.1} dB");
        assert!(psnr >= 54.0, "{name}: fast {psnr:.1} dB");
    }
}

#[test]
fn eight_bit_weights_decode_the_same_photograph() {
    let Some(folder) = data() else { return };
    let fixture = read_tensors(&folder.join("fixtures/taesd_chelsea_256x256.safetensors"));
    let (latent, expected) = (&fixture["latent"], &fixture["decoded_f32"]);
    let found = decode(
        &folder.join("weights/taesd-fp8.safetensors"),
        &latent.values,
        latent.shape4(),
        Scaling::None,
        Precision::Exact,
    );
    // The f16 file is the 8-bit one widened, which is exact.
    assert_close(&found, &expected.values, FIXTURE_TOLERANCE, "taesd-fp8");
}

/// Latents of a picture or, with five sides, of a clip, in diffusers' default windows, as a diffusion model gives them.
fn decode_sample(source: &Path, latents: &Tensor, precision: Precision) -> Vec<f32> {
    let scaling = Scaling::Model { shift: None };
    let Ok(shape) = <[usize; 5]>::try_from(latents.shape.as_slice()) else {
        return decode(source, &latents.values, latents.shape4(), scaling, precision);
    };
    let model = Model::open(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    let autoencoder = Autoencoder::new(model, engine(2, Isa::detect().name()));
    let (values, windows, control) = (latents.values.clone(), Windows::default(), Control::new());
    autoencoder.decode_clip(values, shape, &scaling, windows, precision, &control).unwrap().values
}

/// `REMOTE_VAE_TEST_CHECKPOINTS` names a folder of full-size checkpoints, one folder each, with the latents that a
/// client would send and diffusers' decode of them in `sample.safetensors`.
#[test]
fn full_size_checkpoints_decode_to_their_samples() {
    let Some(folder) = std::env::var_os("REMOTE_VAE_TEST_CHECKPOINTS").map(PathBuf::from) else {
        eprintln!("skipped: REMOTE_VAE_TEST_CHECKPOINTS is not set");
        return;
    };
    let mut checked = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("sample.safetensors").exists() {
            continue;
        }
        let sample = read_tensors(&path.join("sample.safetensors"));
        let latents = &sample["latents"];
        let found = decode_sample(&path, latents, Precision::Exact);
        let expected = &sample["decoded_f32"].values;
        let (worst, psnr) = (largest_difference(&found, expected), picture_psnr(&found, expected));
        eprintln!("{}: {psnr:.1} dB, within {worst:.1e}", path.display());
        assert_close(&found, expected, 1e-4, &path.display().to_string());
        assert!(psnr >= 100.0, "{}: {psnr:.1} dB", path.display());
        let fast = decode_sample(&path, latents, Precision::Fast);
        let psnr = picture_psnr(&fast, expected);
        eprintln!("{}: fast {psnr:.1} dB", path.display());
        assert!(psnr >= 54.0, "{}: fast {psnr:.1} dB", path.display());
        checked += 1;
    }
    assert!(checked > 0, "{} holds no checkpoint", folder.display());
}

/// Mean and deviation of each channel of Wan 2.1's latents, as its config.json states them.
const WAN21: [[f64; 16]; 2] = [
    [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
        -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ],
    [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
        1.6382, 1.1253, 2.8251, 1.9160,
    ],
];

#[test]
fn latents_that_wan_made_pass_its_latent_space() {
    let Some(folder) = data() else { return };
    let fixture = read_tensors(&folder.join("fixtures/wan21_cheesecake_latents.safetensors"));
    let latents = &fixture["latents"];
    assert_eq!(latents.shape, [1, 16, 16, 40, 64]);
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_video/wan");
    let own = Autoencoder::new(Model::open(&golden).unwrap(), engine(2, Isa::detect().name()));
    assert_eq!(own.clip_pixels([1, 16, 16, 40, 64]).unwrap(), [1, 3, 61, 320, 512]);

    // A diffusion model's latents have a deviation of about one.
    let plane = 16 * 40 * 64;
    let moments = |values: &[f32]| -> Vec<[f64; 2]> {
        let of = |plane: &[f32]| {
            let count = plane.len() as f64;
            let mean = plane.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
            let variance = plane.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
            [mean, variance.sqrt()]
        };
        values.chunks_exact(plane).map(of).collect()
    };
    let before = moments(&latents.values);
    assert!(before.iter().all(|[mean, deviation]| mean.abs() < 1.0 && (0.5..1.5).contains(deviation)));

    // Frames and rows are one axis to the latent space.
    let (space, shape) = (&own.model().latent_space, [1, 16, 16 * 40, 64]);
    let scaling = Scaling::Model { shift: None };
    let mut values = latents.values.clone();
    space.to_model(&mut values, shape, &scaling).unwrap();
    for (channel, ([mean, deviation], [own_mean, own_deviation])) in
        moments(&values).into_iter().zip(&before).enumerate()
    {
        let [center, scale] = [WAN21[0][channel], WAN21[1][channel]];
        assert!((mean - (own_mean * scale + center)).abs() < 1e-4, "mean of channel {channel}: {mean}");
        assert!((deviation - own_deviation * scale).abs() < 1e-4, "deviation of channel {channel}");
    }
    for (index, (found, given)) in values.iter().zip(&latents.values).enumerate() {
        let channel = index / plane;
        let expected = f64::from(*given) * WAN21[1][channel] + WAN21[0][channel];
        assert!((f64::from(*found) - expected).abs() < 1e-5 * (1.0 + expected.abs()), "value {index}");
    }
    let mut back = values.clone();
    space.from_model(&mut back, shape, &scaling).unwrap();
    assert_close(&back, &latents.values, 1e-5, "back");

    // Through a whole decode: what the server divides is what a client can divide.
    let corner = |values: &[f32]| -> Vec<f32> {
        let at = |c: usize, t: usize, y: usize, x: usize| values[((c * 16 + t) * 40 + y) * 64 + x];
        let mut cut = Vec::new();
        for (c, t) in (0..16).flat_map(|c| (0..3).map(move |t| (c, t))) {
            cut.extend((0..5).flat_map(|y| (0..7).map(move |x| at(c, t, y, x))));
        }
        cut
    };
    let decode = |latents: Vec<f32>, scaling: &Scaling| {
        let (windows, precision) = (Windows::default(), Precision::Exact);
        own.decode_clip(latents, [1, 16, 3, 5, 7], scaling, windows, precision, &Control::new()).unwrap()
    };
    let scaled = decode(corner(&latents.values), &scaling);
    assert_eq!(scaled.shape, [1, 3, 9, 40, 56]);
    assert!(scaled == decode(corner(&values), &Scaling::None));
    assert!(scaled.values.iter().all(|value| value.abs() <= 1.0));
}
