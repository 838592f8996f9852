//! Every way of naming tensors leads to the same weights.

use remote_vae_model::{Family, Graph, KlConfig, Model, Normalisation, VaeConfig};
use serde_json::{Value, json};

use crate::support::{
    Tensor, assert_numbered, kl_config, kl_graphs, numbered, open, safetensors, small_kl, tiny_config,
    tiny_graphs,
};

fn renamed(graphs: &[Graph], rename: impl Fn(&str) -> String) -> Vec<Tensor> {
    let mut tensors = numbered(graphs);
    tensors.iter_mut().for_each(|tensor| tensor.name = rename(&tensor.name));
    tensors
}

/// The name of a tensor in an LDM file of three levels.
fn ldm(name: &str) -> String {
    ldm_levels(name, 3)
}

/// The name of a tensor in an LDM file of that many levels.
fn ldm_levels(name: &str, levels: usize) -> String {
    let mut name = name.to_owned();
    if let Some((_, rest)) = name.split_once("up_blocks.") {
        let level: usize = rest[..1].parse().unwrap();
        name = format!("decoder.up.{}{}", levels - 1 - level, &rest[1..]);
    }
    for (from, to) in [
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("mid_block.attentions.0", "mid.attn_1"),
        ("attentions.", "attn."),
        ("group_norm", "norm"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("to_out.0", "proj_out"),
        ("down_blocks.", "down."),
        ("resnets.", "block."),
        ("conv_shortcut", "nin_shortcut"),
        ("downsamplers.0.conv", "downsample.conv"),
        ("upsamplers.0.conv", "upsample.conv"),
        ("conv_norm_out", "norm_out"),
    ] {
        name = name.replace(from, to);
    }
    name
}

fn detected(model: &Model) -> &KlConfig {
    match &model.config {
        VaeConfig::Kl(config) => config,
        _ => panic!("not an AutoencoderKL"),
    }
}

#[test]
fn diffusers_names_without_a_config() {
    for prefix in ["", "vae.", "first_stage_model.", "model.vae."] {
        let mut tensors = renamed(&kl_graphs(&kl_config(&small_kl())), |name| format!("{prefix}{name}"));
        for tensor in &mut tensors {
            // As diffusers writes them.
            if tensor.name.contains(".attentions.") && tensor.shape.len() == 4 {
                tensor.shape.truncate(2);
            }
        }
        let model = open(&safetensors(&tensors)).unwrap();
        assert_eq!(model.family, Family::AutoencoderKl);
        assert_numbered(&model);
        let config = detected(&model);
        assert_eq!(config.block_out_channels, [8, 16, 24]);
        assert_eq!((config.layers_per_block, config.norm_num_groups, config.latent_channels), (2, 8, 4));
        assert!(config.use_quant_conv && config.use_post_quant_conv && config.mid_block_add_attention);
        assert_eq!(
            model.latent_space.normalisation,
            Normalisation::Scalar { scaling_factor: 0.18215, shift_factor: None }
        );
    }
}

#[test]
fn old_attention_names() {
    let tensors = renamed(&kl_graphs(&kl_config(&small_kl())), |name| {
        let name = name.replace(".to_q.", ".query.").replace(".to_k.", ".key.");
        name.replace(".to_v.", ".value.").replace(".to_out.0.", ".proj_attn.")
    });
    let model = open(&safetensors(&tensors)).unwrap();
    assert!(detected(&model).mid_block_add_attention);
    assert_numbered(&model);
}

#[test]
fn ldm_names_with_any_prefix() {
    for prefix in ["", "first_stage_model.", "vae.", "model.first_stage_model."] {
        let mut tensors =
            renamed(&kl_graphs(&kl_config(&small_kl())), |name| format!("{prefix}{}", ldm(name)));
        tensors.push(Tensor {
            name: "model.diffusion_model.input_blocks.0.0.weight".into(),
            dtype: "I64",
            shape: vec![1],
            data: vec![0; 8],
        });
        let model = open(&safetensors(&tensors)).unwrap();
        assert_eq!(detected(&model).block_out_channels, [8, 16, 24]);
        assert_numbered(&model);
    }
}

#[test]
fn quant_convolutions_inside_the_halves() {
    let config = kl_config(&json!({
        "block_out_channels": [32, 64, 96], "layers_per_block": 1, "latent_channels": 32,
        "decoder_block_out_channels": [32, 32, 64],
    }));
    let tensors = renamed(&kl_graphs(&config), |name| match name.split_once('.') {
        Some(("quant_conv", _)) => format!("encoder.{name}"),
        Some(("post_quant_conv", _)) => format!("decoder.{name}"),
        _ => ldm(name),
    });
    let model = open(&safetensors(&tensors)).unwrap();
    let found = detected(&model);
    assert_eq!(found.block_out_channels, [32, 64, 96]);
    assert_eq!(found.decoder_block_out_channels(), [32, 32, 64]);
    assert!(found.use_quant_conv && found.use_post_quant_conv);
    assert_numbered(&model);
}

#[test]
fn detected_configs_equal_those_written() {
    for (config, scaling) in [
        (
            json!({"latent_channels": 16, "use_quant_conv": false, "use_post_quant_conv": false}),
            (0.3611, Some(0.1159)),
        ),
        (json!({"mid_block_add_attention": false}), (0.18215, None)),
        (json!({"latent_channels": 8}), (0.18215, None)),
        (
            json!({
                "block_out_channels": [32, 64], "layers_per_block": 3,
                "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
                "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            }),
            (0.18215, None),
        ),
    ] {
        let written = kl_config(&config);
        let levels = written.block_out_channels.len();
        let other = |name: &str| ldm_levels(name, levels);
        for rename in [&str::to_owned as &dyn Fn(&str) -> String, &other] {
            let model = open(&safetensors(&renamed(&kl_graphs(&written), rename))).unwrap();
            let mut found = detected(&model).clone();
            assert_eq!((found.scaling_factor, found.shift_factor), scaling);
            (found.scaling_factor, found.shift_factor) = (written.scaling_factor, written.shift_factor);
            found.sample_size = written.sample_size;
            assert_eq!(found, written);
            assert_numbered(&model);
        }
    }
}

#[test]
fn whole_checkpoints_tell_their_scaling() {
    let marked = |config: Value, mark: &str| {
        let mut tensors =
            renamed(&kl_graphs(&kl_config(&config)), |name| format!("first_stage_model.{}", ldm(name)));
        tensors.push(Tensor { name: mark.into(), dtype: "F16", shape: vec![1], data: vec![0; 2] });
        open(&safetensors(&tensors)).unwrap().latent_space.normalisation
    };
    assert_eq!(
        marked(small_kl(), "conditioner.embedders.1.model.ln_final.weight"),
        Normalisation::Scalar { scaling_factor: 0.13025, shift_factor: None }
    );
    let config = json!({"block_out_channels": [8, 16, 24], "norm_num_groups": 8, "latent_channels": 16});
    assert_eq!(
        marked(config, "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"),
        Normalisation::Scalar { scaling_factor: 1.5305, shift_factor: Some(0.0609) }
    );
}

fn one_up(name: &str) -> String {
    let (half, rest) = name.split_once(".layers.").unwrap();
    let (number, tail) = rest.split_once('.').unwrap();
    let number: usize = number.parse().unwrap();
    format!("{half}.{}.{tail}", number + usize::from(half == "decoder"))
}

#[test]
fn tiny_names() {
    let config = json!({
        "latent_channels": 16, "encoder_block_out_channels": vec![8; 4], "decoder_block_out_channels": vec![8; 4],
        "num_decoder_blocks": [2, 3, 1, 1],
    });
    let graphs = tiny_graphs(&tiny_config(&config));
    for rename in [
        |name: &str| name.to_owned(),
        |name: &str| format!("vae.{name}"),
        one_up,
        |name: &str| format!("taesd_{}", one_up(name)),
    ] {
        let model = open(&safetensors(&renamed(&graphs, rename))).unwrap();
        assert_eq!(model.family, Family::AutoencoderTiny);
        assert_eq!(model.config, VaeConfig::Tiny(tiny_config(&config)));
        assert_eq!(model.latent_space.normalisation, Normalisation::Identity { family: None });
        assert_eq!((model.spatial_factor(), model.latent_channels()), (8, 16));
        assert!(!model.encoder_yields_moments());
        assert_numbered(&model);
    }
}

#[test]
fn tiny_halves_with_bare_numbers() {
    let graphs = tiny_graphs(&tiny_config(&json!({"use_midblock_gn": true, "latent_channels": 32})));
    let bare = |name: &str| one_up(name).split_once('.').unwrap().1.to_owned();
    let decoder = open(&safetensors(&renamed(&graphs[..1], bare))).unwrap();
    assert!(decoder.encoder().is_none());
    assert_eq!(decoder.require_decoder().unwrap().weights[0].name, "1.weight");
    let error = decoder.require_encoder().unwrap_err().to_string();
    assert!(error.contains("no encoder"), "{error}");
    let encoder = open(&safetensors(&renamed(&graphs[1..], bare))).unwrap();
    assert!(encoder.decoder().is_none());
    assert_eq!(encoder.latent_channels(), 32);
    assert_eq!(encoder.require_encoder().unwrap().weights.len(), graphs[1].weights.len());
}

#[test]
fn kl_halves() {
    let graphs = kl_graphs(&kl_config(&small_kl()));
    let decoder = open(&safetensors(&renamed(&graphs[..1], ldm))).unwrap();
    assert!(decoder.encoder().is_none() && decoder.decoder().is_some());
    assert_eq!(detected(&decoder).layers_per_block, 2);
    let encoder = open(&safetensors(&renamed(&graphs[1..], |name| name.to_owned()))).unwrap();
    assert!(encoder.decoder().is_none());
    assert_eq!((encoder.latent_channels(), encoder.spatial_factor()), (4, 4));
}

#[test]
fn other_models_are_refused_by_name() {
    let refused = |names: &[(&str, &[usize])]| {
        let tensors: Vec<Tensor> = names
            .iter()
            .map(|(name, shape)| {
                let data = vec![0; shape.iter().product()];
                Tensor { name: (*name).into(), dtype: "F8_E4M3", shape: shape.to_vec(), data }
            })
            .collect();
        open(&safetensors(&tensors)).unwrap_err()
    };
    let causal: (&str, &[usize]) = ("decoder.conv_in.conv.weight", &[1, 1, 3, 3, 3]);
    let norm: (&str, &[usize]) = ("decoder.up_blocks.0.resnets.0.norm1.weight", &[1]);
    let flat: (&str, &[usize]) = ("decoder.conv_in.weight", &[1, 1, 3, 3]);
    let block: (&str, &[usize]) = ("decoder.3.conv.0.weight", &[8, 16, 3, 3]);
    for (tensors, kind) in [
        (vec![causal, norm], "a video VAE of causal 3-D convolutions"),
        (vec![causal, ("decoder.up_blocks.0.resnets.0.norm1.gamma", &[1])], "a HunyuanVideo 1.5 VAE"),
        (vec![causal, ("decoder.mid_block.resnets.0.norm1.norm_layer.weight", &[1])], "a CogVideoX VAE"),
        (vec![causal, ("latents_mean", &[1])], "an LTX-Video VAE"),
        (vec![flat, ("quantize.embedding.weight", &[1, 1])], "a VQ autoencoder"),
        (
            vec![flat, ("decoder.up.0.block.0.time_stack.in_layers.0.weight", &[1])],
            "a Stable Video Diffusion VAE",
        ),
        (vec![("decoder.stages.3.op_list.0.main.conv1.conv.weight", &[1])], "deep-compression"),
        (vec![("decoder.1.weight", &[8, 4, 3, 3]), block], "a tiny autoencoder of another kind"),
        (vec![("unet.lora_up.weight", &[1])], "a LoRA"),
        (vec![("model.diffusion_model.out.0.weight", &[1])], "a diffusion model without a VAE"),
        (vec![("anything", &[1])], "no autoencoder found in its 1 tensors"),
    ] {
        let error = refused(&tensors);
        assert!(error.contains(kind), "{error}");
    }
}
