//! Trained tiny models and full-size checkpoints, when `REMOTE_VAE_TEST_DATA` names a folder that holds them.

use crate::support::{assert_close, engine, psnr, read_tensors};
use remote_vae_engine::{Autoencoder, Control, Precision};
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
        if latents.shape.len() != 4 {
            continue;
        }
        let scaling = Scaling::Model { shift: None };
        let found = decode(&path, &latents.values, latents.shape4(), scaling, Precision::Exact);
        let expected = &sample["decoded_f32"].values;
        assert_close(&found, expected, 1e-4, &path.display().to_string());
        let psnr = picture_psnr(&found, expected);
        eprintln!("{}: {psnr:.1} dB", path.display());
        assert!(psnr >= 100.0, "{}: {psnr:.1} dB", path.display());
        let fast = decode(&path, &latents.values, latents.shape4(), scaling, Precision::Fast);
        let psnr = picture_psnr(&fast, expected);
        eprintln!("{}: fast {psnr:.1} dB", path.display());
        assert!(psnr >= 54.0, "{}: fast {psnr:.1} dB", path.display());
        checked += 1;
    }
    assert!(checked > 0, "{} holds no checkpoint", folder.display());
}
