//! `AutoencoderDC`: its config, from config.json and from tensors alone.

use std::collections::BTreeSet;
use std::path::Path;

use remote_vae_model::config::ConfigFile;
use remote_vae_model::graph::BatchNorm;
use remote_vae_model::{Family, Graph, Model, Normalisation, autoencoder_dc};
use serde_json::{Value, json};

use crate::support::{Tensor, open, safetensors, write_directory};

/// Sana's published config.
fn sana() -> Value {
    let blocks =
        ["ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock", "EfficientViTBlock"];
    let widths = [16, 16, 32, 32, 64, 64];
    json!({
        "_class_name": "AutoencoderDC", "latent_channels": 32, "encoder_block_types": blocks,
        "decoder_block_types": blocks, "encoder_block_out_channels": widths, "decoder_block_out_channels": widths,
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3], "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
        "downsample_block_type": "conv", "upsample_block_type": "interpolate", "scaling_factor": 0.41407,
    })
}

fn dc_graphs(config: &Value) -> Vec<Graph> {
    let config = ConfigFile::parse(&config.to_string()).unwrap().dc().unwrap();
    vec![autoencoder_dc::decoder(&config), autoencoder_dc::encoder(&config)]
}

/// A tensor of ones for each weight, whole where graphs take it in parts.
fn dc_tensors(config: &Value, prefix: &str) -> Vec<Tensor> {
    let mut tensors: Vec<Tensor> = Vec::new();
    for spec in dc_graphs(config).iter().flat_map(|graph| &graph.weights) {
        let name = format!("{prefix}{}", spec.name);
        let mut shape = spec.shape.clone();
        shape[0] *= spec.part.of;
        let norm =
            spec.batch_norm.iter().flat_map(|norm| BatchNorm::TENSORS.map(|tensor| norm.tensor(tensor)));
        let of_norm = norm.map(|name| (format!("{prefix}{name}"), vec![shape[0]])).collect::<Vec<_>>();
        for (name, shape) in [vec![(name, shape)], of_norm].concat() {
            if !tensors.iter().any(|tensor| tensor.name == name) {
                let data = half::f16::ONE.to_le_bytes().repeat(shape.iter().product());
                tensors.push(Tensor { name, dtype: "F16", shape, data });
            }
        }
    }
    tensors
}

#[test]
fn a_bare_file_of_sana_is_what_its_config_says() {
    let folder = tempfile::tempdir().unwrap();
    write_directory(folder.path(), &sana(), &dc_tensors(&sana(), ""));
    let stated = Model::open(folder.path()).unwrap();
    assert_eq!((stated.family, stated.spatial_factor()), (Family::AutoencoderDc, 32));
    assert!(!stated.encoder_yields_moments());
    let scalar = Normalisation::Scalar { scaling_factor: 0.41407, shift_factor: None };
    assert_eq!(stated.latent_space.normalisation, scalar);
    let description = serde_json::to_value(stated.description()).unwrap();
    for (key, value) in sana().as_object().unwrap().iter().filter(|(key, _)| *key != "_class_name") {
        assert_eq!(description["config"][key], *value, "{key}");
    }
    for prefix in ["", "vae."] {
        let bare = open(&safetensors(&dc_tensors(&sana(), prefix))).unwrap();
        assert_eq!((&bare.config, bare.family), (&stated.config, stated.family));
        assert_eq!(bare.latent_space, stated.latent_space);
    }
    // One half alone.
    let mut tensors = dc_tensors(&sana(), "");
    tensors.retain(|tensor| tensor.name.starts_with("decoder."));
    let half = open(&safetensors(&tensors)).unwrap();
    assert!(half.encoder().is_none());
    assert_eq!(half.decoder(), stated.decoder());
}

#[test]
fn the_other_layout_is_found_too() {
    let mut config = sana();
    config["downsample_block_type"] = "pixel_unshuffle".into();
    config["upsample_block_type"] = "pixel_shuffle".into();
    config["encoder_layers_per_block"] = json!([0, 1, 1, 1, 1, 1]);
    config["decoder_layers_per_block"] = json!([0, 1, 1, 1, 1, 1]);
    let scales = json!([[], [], [], [3], [5, 3], [5]]);
    config["encoder_qkv_multiscales"] = scales.clone();
    config["decoder_qkv_multiscales"] = scales;
    let bare = open(&safetensors(&dc_tensors(&config, ""))).unwrap();
    let graphs = dc_graphs(&config);
    for (found, expected) in [bare.decoder(), bare.encoder()].into_iter().zip(&graphs) {
        assert!(found.unwrap().nodes == expected.nodes);
    }
}

/// The layout of the published `dc-ae-f32c32-in-1.0` and `-mix-1.0`, narrower.
fn with_batch_norms() -> Value {
    let mut config = sana();
    config["downsample_block_type"] = "pixel_unshuffle".into();
    config["upsample_block_type"] = "pixel_shuffle".into();
    config["encoder_layers_per_block"] = json!([0, 4, 8, 2, 2, 2]);
    config["decoder_layers_per_block"] = json!([0, 5, 10, 2, 2, 2]);
    for half in ["encoder", "decoder"] {
        config[format!("{half}_qkv_multiscales")] = json!([[], [], [], [], [], []]);
    }
    config["decoder_norm_types"] =
        json!(["batch_norm", "batch_norm", "batch_norm", "rms_norm", "rms_norm", "rms_norm"]);
    config["decoder_act_fns"] = json!(["relu", "relu", "relu", "silu", "silu", "silu"]);
    config["scaling_factor"] = json!(0.4552);
    config
}

#[test]
fn batch_norms_are_found_and_folded() {
    let config = with_batch_norms();
    let mut tensors = dc_tensors(&config, "vae.");
    // What PyTorch keeps beside the statistics.
    let name = "vae.decoder.up_blocks.2.1.norm.num_batches_tracked".to_owned();
    tensors.push(Tensor { name, dtype: "I64", shape: vec![], data: vec![0; 8] });
    let bare = open(&safetensors(&tensors)).unwrap();
    let graphs = dc_graphs(&config);
    for (found, expected) in [bare.decoder(), bare.encoder()].into_iter().zip(&graphs) {
        assert!(found.unwrap().nodes == expected.nodes);
    }
    // The factor of these is not Sana's.
    let scalar = Normalisation::Scalar { scaling_factor: 1.0, shift_factor: None };
    assert_eq!(bare.latent_space.normalisation, scalar);

    // All tensors are ones: weights are divided by √(1 + 1e-5), and the offset is what is left of 1 − 1.
    let deviation = (1.0 + 1e-5f64).sqrt();
    let decoder = bare.decoder().unwrap();
    let folded = decoder.weights.iter().filter(|spec| spec.batch_norm.is_some()).collect::<Vec<_>>();
    assert_eq!(folded.len(), 2 * (5 + 10));
    for spec in folded {
        assert!(!spec.narrow);
        let expected =
            if spec.name.ends_with("conv2.weight") { 1.0 / deviation } else { 1.0 - 1.0 / deviation };
        let values = bare.weights().read(spec).unwrap();
        assert_eq!(values.len(), spec.shape.iter().product::<usize>());
        assert!(values.iter().all(|value| (f64::from(*value) - expected).abs() < 1e-7), "{}", spec.name);
    }
}

#[test]
fn unsound_batch_norms_are_refused() {
    let damaged = |tensor: &str, shape: Vec<usize>, value: f32| {
        let mut tensors = dc_tensors(&with_batch_norms(), "");
        let name = format!("decoder.up_blocks.1.1.norm.{tensor}");
        tensors.retain(|other| other.name != name);
        if !shape.is_empty() {
            let data = half::f16::from_f32(value).to_le_bytes().repeat(shape.iter().product());
            tensors.push(Tensor { name, dtype: "F16", shape, data });
        }
        open(&safetensors(&tensors)).and_then(|model| {
            let mut weights = model.decoder().unwrap().weights.iter();
            weights
                .try_for_each(|spec| model.weights().read(spec).map(drop))
                .map_err(|error| error.to_string())
        })
    };
    assert_eq!(damaged("running_var", vec![16], 0.25), Ok(()));
    for (tensor, shape, value, expected) in [
        ("running_var", vec![16], -1.0, "holds -1"),
        ("running_var", vec![16], f32::INFINITY, "holds inf"),
        ("running_var", vec![], 0.0, "running_var"),
        ("running_mean", vec![8], 0.0, "[8], expected [16]"),
        ("bias", vec![], 0.0, "norm.bias"),
    ] {
        let error = damaged(tensor, shape, value).unwrap_err();
        assert!(error.contains(expected), "{tensor}: {error}");
    }
}

#[test]
fn layouts_of_dc_that_are_not_run_are_refused() {
    for (key, value, expected) in [
        ("decoder_norm_types", json!("layer_norm"), "\"rms_norm\" or \"batch_norm\""),
        ("decoder_act_fns", json!("gelu"), "\"silu\" or \"relu\""),
        ("upsample_block_type", json!("other"), "\"pixel_shuffle\" or \"interpolate\""),
        ("attention_head_dim", json!(24), "whole heads of 24"),
        ("latent_channels", json!(48), "multiple of the 48 latent channels"),
        ("encoder_block_types", json!(["ResBlock", "Other"]), "EfficientViTBlock"),
        ("encoder_layers_per_block", json!([2, 0, 2, 3, 3, 3]), "blocks in each level"),
        ("decoder_block_out_channels", json!([16, 32]), "as many as"),
        ("encoder_qkv_multiscales", json!([[], [], [], [4], [5], [5]]), "odd numbers"),
        ("encoder_block_out_channels", json!([16, 16, 32, 32, 96, 64]), "divide four times"),
        ("scaling_factor", json!(0), "other than 0"),
    ] {
        let mut config = sana();
        config[key] = value;
        let error = ConfigFile::parse(&config.to_string()).unwrap().dc().unwrap_err().to_string();
        assert!(error.contains(expected), "{key}: {error}");
    }
    // Only decoders have batch norms.
    let mut tensors = dc_tensors(&sana(), "");
    let running = "encoder.down_blocks.0.1.norm.running_mean".to_owned();
    tensors.push(Tensor { name: running, dtype: "F16", shape: vec![16], data: vec![0; 32] });
    let error = open(&safetensors(&tensors)).unwrap_err();
    assert!(error.contains("no such layer"), "{error}");
}

#[test]
fn the_tensors_are_those_of_the_published_file() {
    let Some(data) = std::env::var_os("REMOTE_VAE_TEST_DATA") else {
        eprintln!("skipped: REMOTE_VAE_TEST_DATA is not set");
        return;
    };
    let list = Path::new(&data).join("reference/tensor-names/dc_sana.txt");
    let text = std::fs::read_to_string(list).unwrap();
    let expected: BTreeSet<String> = text
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_alphabetic()))
        .map(str::to_owned)
        .collect();
    let mut config = sana();
    for half in ["encoder", "decoder"] {
        config[format!("{half}_block_out_channels")] = json!([128, 256, 512, 512, 1024, 1024]);
    }
    let found: BTreeSet<String> = dc_graphs(&config)
        .iter()
        .flat_map(|graph| &graph.weights)
        .map(|spec| {
            let mut shape = spec.shape.clone();
            shape[0] *= spec.part.of;
            let is_linear =
                [".to_q.", ".to_k.", ".to_v.", ".to_out."].iter().any(|part| spec.name.contains(part));
            shape.truncate(if is_linear { 2 } else { 4 });
            format!("{} {shape:?}", spec.name)
        })
        .collect();
    assert_eq!(found, expected);
}
