//! config.json: defaults, bounds, and what it says against what the tensors say.

use remote_vae_model::config::ConfigFile;
use remote_vae_model::{Model, Normalisation, VaeConfig};
use serde_json::{Value, json};

use crate::support::{kl_config, kl_graphs, numbered, small_kl, tiny_config, tiny_graphs, write_directory};

fn opened(config: &Value, tensors: &Value) -> Result<Model, String> {
    let folder = tempfile::tempdir().unwrap();
    let graphs = match tensors["_class_name"] == "AutoencoderTiny" {
        true => tiny_graphs(&tiny_config(tensors)),
        false => kl_graphs(&kl_config(tensors)),
    };
    write_directory(folder.path(), config, &numbered(&graphs));
    Model::open(folder.path()).map_err(|error| error.to_string())
}

fn merged(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn defaults_are_those_of_diffusers() {
    let kl = kl_config(&json!({"unknown_key": [1, {"a": null}], "shift_factor": null}));
    assert_eq!(kl.block_out_channels, [64]);
    assert_eq!((kl.layers_per_block, kl.norm_num_groups, kl.latent_channels, kl.sample_size), (1, 32, 4, 32));
    assert_eq!((kl.scaling_factor, kl.shift_factor), (0.18215, None));
    assert!(kl.use_quant_conv && kl.use_post_quant_conv && kl.mid_block_add_attention);
    let tiny = tiny_config(&json!({}));
    assert_eq!((tiny.num_encoder_blocks, tiny.num_decoder_blocks), (vec![1, 3, 3, 3], vec![3, 3, 3, 1]));
    assert_eq!((tiny.upsampling_scaling_factor, tiny.latent_channels, tiny.midblock_pool), (2, 4, false));
    assert_eq!(kl_config(&json!({"sample_size": [768, 512]})).sample_size, 768);
}

#[test]
fn bad_values_name_key_value_and_expectation() {
    for (key, value, expected) in [
        ("latent_channels", json!(0), "an integer from 1 to 4096"),
        ("latent_channels", json!(-4), "an integer"),
        ("latent_channels", json!(4.5), "an integer"),
        ("latent_channels", json!("4"), "an integer"),
        ("latent_channels", json!(1u64 << 60), "an integer"),
        ("layers_per_block", json!(1000), "an integer from 1 to 64"),
        ("block_out_channels", json!([]), "a list of 1 to 16"),
        ("block_out_channels", json!(vec![32; 17]), "a list of 1 to 16"),
        ("block_out_channels", json!([32, 0]), "integers from 1 to 16384"),
        ("block_out_channels", json!(128), "a list"),
        ("block_out_channels", json!([32, 1_000_000]), "integers"),
        ("norm_num_groups", json!(0), "an integer"),
        ("norm_num_groups", json!(48), "64 is not divisible"),
        ("act_fn", json!("gelu"), "\"silu\""),
        ("scaling_factor", json!(0.0), "other than 0"),
        ("scaling_factor", json!("a"), "a finite number"),
        ("scaling_factor", json!(1e300), "a finite number"),
        ("shift_factor", json!([]), "a finite number"),
        ("use_quant_conv", json!(1), "true or false"),
        ("latents_mean", json!([0.0]), "a list of 4 finite numbers"),
        ("latents_mean", json!([0.0, 0.0, 0.0, 0.0]), "because `latents_mean` is one"),
        ("down_block_types", json!(["DownBlock2D"]), "AttnDownEncoderBlock2D"),
        ("up_block_types", json!(["UpDecoderBlock2D", "UpDecoderBlock2D"]), "a list of 1 names"),
        ("sample_size", json!(0), "an integer"),
        ("sample_size", json!([]), "an integer"),
    ] {
        let error =
            ConfigFile::parse(&json!({key: value}).to_string()).unwrap().kl().unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains('`') && !error.contains("found"),
            "{key}: {error}"
        );
    }
    for (key, value, expected) in [
        ("num_decoder_blocks", json!([1, 1]), "as many as `decoder_block_out_channels`"),
        ("num_encoder_blocks", json!([1, 1, 1, 65]), "0 to 64"),
        ("upsampling_scaling_factor", json!(9), "from 1 to 8"),
        ("act_fn", json!("mish"), "\"relu\""),
        ("upsample_fn", json!("bilinear"), "\"nearest\""),
    ] {
        let error =
            ConfigFile::parse(&json!({key: value}).to_string()).unwrap().tiny().unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(expected), "{error}");
    }
    assert!(ConfigFile::parse("[]").is_err());
    assert!(ConfigFile::parse("{").unwrap_err().to_string().contains("not JSON"));
    assert!(ConfigFile::parse(&"[".repeat(100_000)).is_err());
}

#[test]
fn classes_that_are_not_run_are_named() {
    let error = opened(&json!({"_class_name": "AutoencoderKLMochi"}), &small_kl()).unwrap_err();
    assert!(error.contains("AutoencoderKLMochi") && error.contains("does not run"), "{error}");
    let error = opened(&json!({"_class_name": 3}), &small_kl()).unwrap_err();
    assert!(error.contains("_class_name"), "{error}");
    let error = opened(&json!({"_class_name": "AutoencoderTiny"}), &small_kl()).unwrap_err();
    assert!(error.contains("says AutoencoderTiny") && error.contains("of an AutoencoderKL"), "{error}");
}

#[test]
fn a_config_that_does_not_fit_the_tensors_names_both_shapes() {
    let wider = merged(small_kl(), json!({"block_out_channels": [8, 16, 32]}));
    let error = opened(&wider, &small_kl()).unwrap_err();
    assert!(error.contains("`decoder.conv_in.weight`"), "{error}");
    assert!(error.contains("[24, 4, 3, 3]") && error.contains("expected [32, 4, 3, 3]"), "{error}");
    let deeper = merged(small_kl(), json!({"layers_per_block": 3}));
    let error = opened(&deeper, &small_kl()).unwrap_err();
    assert!(
        error.contains("`decoder.up_blocks.0.resnets.3.norm1.weight`") && error.contains("not in"),
        "{error}"
    );
    let without = merged(small_kl(), json!({"use_quant_conv": false, "use_post_quant_conv": false}));
    let error = opened(&small_kl(), &without).unwrap_err();
    assert!(error.contains("`post_quant_conv.weight`"), "{error}");
}

#[test]
fn latent_spaces_come_from_the_config() {
    let space = |changes: Value| opened(&merged(small_kl(), changes), &small_kl()).unwrap().latent_space;
    let flux = space(json!({"scaling_factor": 0.3611, "shift_factor": 0.1159}));
    assert_eq!(
        flux.normalisation,
        Normalisation::Scalar { scaling_factor: 0.3611, shift_factor: Some(0.1159) }
    );
    assert_eq!((flux.channels, flux.spatial_factor, flux.token_size()), (4, 4, 16));
    let playground = space(json!({
        "scaling_factor": 0.5, "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
        "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
    }));
    assert!(matches!(
        playground.normalisation,
        Normalisation::PerChannel { scaling_factor: 0.5, ref mean, .. } if mean[1] == 1.886
    ));
}

#[test]
fn a_tiny_model_takes_its_pools_from_the_tensors() {
    let tensors = json!({
        "_class_name": "AutoencoderTiny", "latent_channels": 32, "use_midblock_gn": true,
        "encoder_block_out_channels": vec![8; 4], "decoder_block_out_channels": vec![8; 4],
    });
    let mut config = tensors.clone();
    config.as_object_mut().unwrap().remove("use_midblock_gn");
    let model = opened(&config, &tensors).unwrap();
    assert!(matches!(&model.config, VaeConfig::Tiny(config) if config.midblock_pool));
}

#[test]
fn description_is_serialisable() {
    let model = opened(&small_kl(), &small_kl()).unwrap();
    let text = serde_json::to_value(model.description()).unwrap();
    assert_eq!(text["family"], "AutoencoderKL");
    assert_eq!(text["dtype"], "F16");
    assert_eq!(text["latent_channels"], 4);
    assert_eq!(text["spatial_factor"], 4);
    assert_eq!(text["packing"], "patches2x2");
    assert_eq!(text["scaling"]["scaling_factor"], 0.18215);
    assert!(text["decoder_parameters"].as_u64() > Some(1000));
    assert!(serde_json::to_value(&model.config).unwrap()["block_out_channels"].is_array());
}

#[test]
fn tensors_that_the_config_has_no_place_for_are_named() {
    let deep = merged(small_kl(), json!({"layers_per_block": 2}));
    assert!(opened(&deep, &deep).is_ok());
    for (change, tensor) in [
        (json!({"layers_per_block": 1}), ".resnets."),
        (json!({"mid_block_add_attention": false}), ".mid_block.attentions.0."),
        (json!({"use_post_quant_conv": false}), "post_quant_conv."),
        (json!({"use_quant_conv": false}), "quant_conv."),
    ] {
        let message = opened(&merged(deep.clone(), change.clone()), &deep).unwrap_err();
        assert!(message.contains(tensor) && message.contains("no such layer"), "{change}: {message}");
    }
}
