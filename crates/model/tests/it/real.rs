//! Real files, where the variable REMOTE_VAE_TEST_DATA names a folder that holds them.

use std::path::PathBuf;

use remote_vae_model::{Family, Model, Normalisation};

fn data(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("REMOTE_VAE_TEST_DATA")
        .map(|folder| PathBuf::from(folder).join("weights").join(name));
    if path.is_none() {
        eprintln!("skipped: REMOTE_VAE_TEST_DATA is not set");
    }
    path
}

#[test]
fn tiny_models() {
    for (name, channels) in [("taesd", 4), ("taesdxl", 4), ("taef1", 16), ("taesd-fp8.safetensors", 4)] {
        let Some(path) = data(name) else { return };
        let model = Model::open(&path).unwrap();
        assert_eq!(model.family, Family::AutoencoderTiny);
        assert_eq!((model.latent_channels(), model.spatial_factor()), (channels, 8));
        assert_eq!(model.latent_space.normalisation, Normalisation::Identity { family: None });
        let description = model.description();
        let parameters = if channels == 4 { 1_222_531 } else { 1_229_443 };
        assert_eq!(description.decoder_parameters, Some(parameters), "{name}");
        let mut largest = 0.0f32;
        for spec in model.decoder().into_iter().chain(model.encoder()).flat_map(|graph| &graph.weights) {
            let values = model.weights().read(spec).unwrap();
            assert!(values.iter().all(|value| value.is_finite()), "{name}: {}", spec.name);
            largest = values.iter().fold(largest, |largest, value| largest.max(value.abs()));
        }
        assert!(largest > 0.1 && largest < 50.0, "{name}: {largest}");
    }
}

#[test]
fn a_directory_and_its_bare_file_agree() {
    let Some(folder) = data("taef1") else { return };
    let stated = Model::open(&folder).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let bare = copy.path().join("taef1.safetensors");
    std::fs::copy(folder.join("diffusion_pytorch_model.safetensors"), &bare).unwrap();
    let detected = Model::open(&bare).unwrap();
    assert_eq!(stated.config, detected.config);
    assert_eq!(stated.decoder(), detected.decoder());
    assert_eq!(stated.encoder(), detected.encoder());
}
