//! From what is typed to a model with the right latent space.

use remote_vae_hub::{Settings, Space, open};
use remote_vae_model::config::ConfigFile;
use remote_vae_model::{Family, Graph, Normalisation, autoencoder_tiny};
use remote_vae_wire::Scaling;
use serde_json::{Value, json};

use crate::settings;
use crate::stand_in::{COMMIT, StandIn};

const CONFIG: &str = include_str!("../../../model/embedded/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../../model/embedded/diffusion_pytorch_model.safetensors");
const NAME: &str = "diffusion_pytorch_model.safetensors";

fn scalar(scaling_factor: f64, shift_factor: Option<f64>) -> Normalisation {
    Normalisation::Scalar { scaling_factor, shift_factor }
}

fn without_scaling() -> String {
    let mut config: Value = serde_json::from_str(CONFIG).unwrap();
    config.as_object_mut().unwrap().remove("scaling_factor");
    config.to_string()
}

/// A tiny model whose weights are all zero: its config and its file.
fn tiny() -> (String, Vec<u8>) {
    let config = json!({
        "_class_name": "AutoencoderTiny", "latent_channels": 4, "scaling_factor": 1.0,
        "encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8],
        "num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1],
    })
    .to_string();
    let parsed = ConfigFile::parse(&config).unwrap().tiny().unwrap();
    let graphs: [Graph; 2] = [autoencoder_tiny::decoder(&parsed), autoencoder_tiny::encoder(&parsed)];
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for spec in graphs.iter().flat_map(|graph| &graph.weights) {
        let begin = end;
        end += 4 * spec.shape.iter().product::<usize>();
        header.insert(
            spec.name.clone(),
            json!({"dtype": "F32", "shape": spec.shape, "data_offsets": [begin, end]}),
        );
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + end, 0);
    (config, file)
}

#[test]
fn an_alias_knows_what_an_old_config_does_not_say() {
    let home = tempfile::tempdir().unwrap();
    let repository = "stabilityai/sdxl-vae";
    let hub = StandIn::new(repository, &[("config.json", without_scaling().as_bytes()), (NAME, WEIGHTS)]);
    let settings = settings(&hub, home.path());
    let model = open("sdxl-vae", &settings).unwrap();
    assert_eq!(model.latent_space.normalisation, scalar(0.13025, None));
    assert_eq!(model.label(), format!("{repository}@{COMMIT}"));
    // Its name alone tells diffusers' default.
    let model = open(repository, &settings).unwrap();
    assert_eq!(model.latent_space.normalisation, scalar(0.18215, None));
    let model = open(&format!("hf:{repository}@main,space=sdxl"), &settings).unwrap();
    assert_eq!(model.latent_space.normalisation, scalar(0.13025, None));
    // What was opened can be named again by its label, also offline.
    let offline = Settings { offline: true, ..settings };
    assert_eq!(open(model.label(), &offline).unwrap().label(), model.label());
}

#[test]
fn a_config_that_states_its_factors_is_right() {
    let home = tempfile::tempdir().unwrap();
    let hub =
        StandIn::new("stabilityai/sd-vae-ft-mse", &[("config.json", CONFIG.as_bytes()), (NAME, WEIGHTS)]);
    let settings = settings(&hub, home.path());
    let stated = open("embedded", &settings).unwrap().latent_space;
    assert_eq!(open("sd15", &settings).unwrap().latent_space, stated);
    let message = open("sd15,space=flux", &settings).unwrap_err().to_string();
    assert!(message.contains("16 channels, the model has 4"), "{message}");
}

#[test]
fn a_tiny_model_undoes_the_division_of_its_family() {
    let (home, (config, weights)) = (tempfile::tempdir().unwrap(), tiny());
    let hub = StandIn::new("madebyollin/taesdxl", &[("config.json", config.as_bytes()), (NAME, &weights)]);
    let settings = settings(&hub, home.path());
    let sent = |source: &str, scaling: Scaling| {
        let model = open(source, &settings).unwrap();
        assert_eq!(model.family, Family::AutoencoderTiny);
        let mut latents = [2.0; 4];
        model.latent_space.to_model(&mut latents, [1, 4, 1, 1], &scaling).unwrap();
        latents[0]
    };
    assert_eq!(sent("taesdxl", Scaling::Declined), 2.0 * 0.13025);
    for scaling in
        [Scaling::None, Scaling::Model { shift: None }, Scaling::Explicit { scale: 0.5, shift: None }]
    {
        assert_eq!(sent("taesdxl", scaling), 2.0);
    }
    assert_eq!(sent("madebyollin/taesdxl", Scaling::Declined), 2.0);
    assert_eq!(sent("madebyollin/taesdxl,space=sd", Scaling::Declined), 2.0 * 0.18215);
    // A file on this machine says no more of its family than the repository does.
    let file = home.path().join("taesd.safetensors");
    std::fs::write(&file, &weights).unwrap();
    assert_eq!(sent(file.to_str().unwrap(), Scaling::Declined), 2.0);
    assert_eq!(sent(&format!("{},space=sdxl", file.display()), Scaling::Declined), 2.0 * 0.13025);
    assert_eq!("sdxl".parse::<Space>().unwrap(), Space::Sdxl);
}
