//! Files and headers made to break a reader: errors, never a panic, never more memory than the file is long.

use proptest::prelude::*;
use remote_vae_model::config::ConfigFile;
use remote_vae_model::{Checkpoint, Model, autoencoder_kl, autoencoder_tiny};
use serde_json::json;

use crate::support::{kl_config, kl_graphs, numbered, open, safetensors, single_file, small_kl, with_header};

fn refused(header: &str, data: &[u8]) -> String {
    let (_folder, path) = single_file(&with_header(header, data));
    Checkpoint::open(&path).unwrap_err().to_string()
}

#[test]
fn headers() {
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    for (header, expected) in [
        (tensor("F32", "[2]", "[0,4]"), "F32 [2] does not fit its 4 bytes"),
        (tensor("F32", "[2]", "[8,0]"), "before its start"),
        (tensor("F32", "[4]", "[0,16]"), "truncated"),
        (tensor("F32", "[18446744073709551615,18446744073709551615]", "[0,4]"), "does not fit"),
        (tensor("F32", "[4611686018427387904,4]", "[0,0]"), "does not fit"),
        (tensor("F32", "[-1]", "[0,4]"), "tensor `t`"),
        (tensor("F32", "[1.5]", "[0,4]"), "tensor `t`"),
        (tensor("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), "more than 8 dimensions"),
        (tensor("F32", "[1]", "[0,18446744073709551616]"), "tensor `t`"),
        (tensor("F32", "[1]", "[0]"), "tensor `t`"),
        (tensor(&"F".repeat(100), "[1]", "[0,4]"), "more than 32 bytes"),
        (r#"{"t":{"dtype":"F32","shape":[1]}}"#.into(), "data_offsets"),
        (r#"{"t":null}"#.into(), "tensor `t`"),
        ("[]".into(), "an object of tensors"),
        ("{}}".into(), "trailing"),
        ("\u{0}\u{1}".into(), "header"),
        (format!("{{\"t\":{}", "[".repeat(100_000)), "header"),
        (format!("{{\"__metadata__\":{}", "[".repeat(100_000)), "header"),
    ] {
        let error = refused(&header, &[0; 8]);
        assert!(error.contains(expected), "{error}\nfor {}", &header[..header.len().min(200)]);
    }
    let two = |first: &str, second: &str| {
        let entry = |offsets| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#);
        format!(r#"{{"a":{},"b":{}}}"#, entry(first), entry(second))
    };
    assert!(refused(&two("[0,4]", "[2,6]"), &[0; 8]).contains("`b`: its data overlaps that of `a`"));
    assert!(refused(&two("[0,4]", "[4,8]").replace("\"b\"", "\"a\""), &[0; 8]).contains("twice"));
}

#[test]
fn lengths() {
    for length in [0u64, 1, 3, 1 << 20, 100_000_001, 1 << 40, u64::MAX] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        let error = open(&bytes).unwrap_err();
        assert!(error.contains("header would be"), "{error}");
    }
}

#[test]
fn too_many_tensors() {
    let mut header = String::from("{");
    for index in 0..=(1 << 17) {
        header.push_str(&format!(r#""{index}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#));
    }
    header.pop();
    header.push('}');
    assert!(refused(&header, &[]).contains("more than 131072 tensors"));
}

#[test]
fn deep_and_many_numbered_names_do_not_take_long() {
    let mut header = json!({});
    for index in 0..2000 {
        let name = format!("{}{index}.conv.0.weight", "0.".repeat(index));
        header[name] = json!({"dtype": "U8", "shape": [0, 1, 1, 1], "data_offsets": [0, 0]});
    }
    assert!(open(&with_header(&header.to_string(), &[])).is_err());
}

#[test]
fn the_largest_config_still_makes_a_bounded_graph() {
    let config = kl_config(&json!({
        "block_out_channels": vec![16384; 16], "layers_per_block": 64,
        "down_block_types": vec!["AttnDownEncoderBlock2D"; 16], "up_block_types": vec!["AttnUpDecoderBlock2D"; 16],
    }));
    let graph = autoencoder_kl::decoder(&config);
    assert!(graph.nodes.len() < 20_000);
    assert!(graph.parameters() > 0);
    assert!(graph.shapes([1, 4, 1 << 20, 1 << 20]).is_err());
}

fn small_file() -> Vec<u8> {
    let config = json!({"block_out_channels": [2], "norm_num_groups": 1, "latent_channels": 1});
    safetensors(&numbered(&kl_graphs(&kl_config(&config))))
}

/// Opens and reads all of a file; only its errors are of interest.
fn exercise(bytes: Vec<u8>) {
    let size = bytes.len();
    let bytes: &'static [u8] = bytes.leak();
    let Ok(checkpoint) = Checkpoint::from_static("test", bytes) else { return };
    for name in checkpoint.names() {
        if let Ok(values) = checkpoint.read_f32(name) {
            assert!(values.len() <= size);
        }
    }
    if let Ok(model) = Model::from_checkpoint(checkpoint, None, "test") {
        for spec in model.decoder().into_iter().chain(model.encoder()).flat_map(|graph| &graph.weights) {
            let _ = model.weights().read(spec);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        exercise(bytes);
    }

    #[test]
    fn random_headers(text in "[\\[\\]{}\":,a-z0-9.]{0,300}", data in proptest::collection::vec(any::<u8>(), 0..64)) {
        exercise(with_header(&text, &data));
    }

    #[test]
    fn changed_bytes(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = small_file();
        for (index, value) in changes {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        exercise(bytes);
    }

    #[test]
    fn changed_digits(changes in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..10), 1..4)) {
        let mut bytes = small_file();
        let digits: Vec<usize> = (8..bytes.len()).filter(|&index| bytes[index].is_ascii_digit()).collect();
        for (index, value) in changes {
            bytes[digits[index.index(digits.len())]] = b'0' + value;
        }
        exercise(bytes);
    }

    #[test]
    fn cut_files(length in any::<prop::sample::Index>()) {
        let mut bytes = small_file();
        bytes.truncate(length.index(bytes.len()));
        exercise(bytes);
    }

    #[test]
    fn random_configs(
        key in prop::sample::select(vec![
            "block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups", "sample_size",
            "latents_mean", "latents_std", "scaling_factor", "act_fn", "down_block_types", "num_encoder_blocks",
            "encoder_block_out_channels", "upsampling_scaling_factor", "decoder_block_out_channels", "_class_name",
        ]),
        value in "(-?[0-9]{1,20}(\\.[0-9]{1,3})?(e[0-9]{1,3})?|\\[[0-9]{1,6}(,[0-9]{1,6}){0,20}\\]|\"[a-zA-Z0-9]{0,20}\"|null|true|\\{\\})",
    ) {
        if let Ok(file) = ConfigFile::parse(&format!("{{\"{key}\":{value}}}")) {
            let _ = file.family();
            if let Ok(config) = file.kl() {
                prop_assert!(autoencoder_kl::decoder(&config).nodes.len() < 20_000);
                prop_assert!(autoencoder_kl::encoder(&config).nodes.len() < 20_000);
            }
            if let Ok(config) = file.tiny() {
                prop_assert!(autoencoder_tiny::decoder(&config).nodes.len() < 20_000);
                prop_assert!(autoencoder_tiny::encoder(&config).nodes.len() < 20_000);
            }
        }
    }
}

#[test]
fn the_unchanged_small_file_opens() {
    assert!(open(&small_file()).is_ok());
    assert!(open(&safetensors(&numbered(&kl_graphs(&kl_config(&small_kl()))))).is_ok());
}
