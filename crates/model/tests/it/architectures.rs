//! The graphs of the well-known configs: weights, shapes, sizes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use remote_vae_model::{Checkpoint, Graph, Operation, WeightSource};
use serde_json::{Value, json};

use crate::support::{kl_config, kl_graphs, tiny_config, tiny_graphs};

fn sd() -> Value {
    json!({"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2})
}

fn flux() -> Value {
    json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 16,
        "use_quant_conv": false, "use_post_quant_conv": false, "scaling_factor": 0.3611, "shift_factor": 0.1159,
    })
}

fn weights(graphs: &[Graph]) -> BTreeMap<String, Vec<usize>> {
    let specs: Vec<_> = graphs.iter().flat_map(|graph| graph.weights.clone()).collect();
    let count = specs.len();
    let map: BTreeMap<_, _> = specs.into_iter().map(|spec| (spec.name, spec.shape)).collect();
    assert_eq!(map.len(), count, "a weight is listed twice");
    map
}

/// Compares with a list `name [sides]` from the test data; attention weights stand there with two sides.
fn assert_like_list(graphs: &[Graph], list: &str) {
    let Some(data) = std::env::var_os("REMOTE_VAE_TEST_DATA") else {
        eprintln!("skipped: REMOTE_VAE_TEST_DATA is not set");
        return;
    };
    let text = fs::read_to_string(Path::new(&data).join("reference/tensor-names").join(list)).unwrap();
    let mut expected: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with(|c: char| c.is_alphabetic())) {
        let (name, shape) = line.split_once(' ').unwrap();
        let sides: Vec<usize> =
            shape.trim_matches(['[', ']']).split(", ").filter_map(|side| side.parse().ok()).collect();
        expected.insert(name.to_owned(), sides);
    }
    let mut found = weights(graphs);
    for (name, shape) in &mut found {
        if name.contains(".attentions.") && shape.len() == 4 {
            assert_eq!(shape[2..], [1, 1]);
            shape.truncate(2);
        }
    }
    assert_eq!(found, expected);
}

fn assert_sound(graph: &Graph) {
    assert!(matches!(graph.nodes[0].operation, Operation::Input));
    let mut used = vec![false; graph.nodes.len()];
    used[graph.output.0] = true;
    for (index, node) in graph.nodes.iter().enumerate() {
        assert!(node.inputs.iter().all(|value| value.0 < index), "{} reads what is not yet there", node.name);
        node.inputs.iter().for_each(|value| used[value.0] = true);
    }
    assert!(used.iter().all(|used| *used), "a node has no reader");
    let names: std::collections::BTreeSet<_> = graph.nodes.iter().map(|node| &node.name).collect();
    assert_eq!(names.len(), graph.nodes.len());
}

#[test]
fn stable_diffusion() {
    let graphs = kl_graphs(&kl_config(&sd()));
    graphs.iter().for_each(assert_sound);
    let weights = weights(&graphs);
    assert_eq!(weights.len(), 248);
    assert_eq!(weights["post_quant_conv.weight"], [4, 4, 1, 1]);
    assert_eq!(weights["quant_conv.bias"], [8]);
    assert_eq!(weights["decoder.conv_in.weight"], [512, 4, 3, 3]);
    assert_eq!(weights["decoder.up_blocks.2.resnets.0.conv_shortcut.weight"], [256, 512, 1, 1]);
    assert_eq!(weights["decoder.up_blocks.2.upsamplers.0.conv.weight"], [256, 256, 3, 3]);
    assert!(!weights.contains_key("decoder.up_blocks.3.upsamplers.0.conv.weight"));
    assert_eq!(weights["decoder.mid_block.attentions.0.to_out.0.weight"], [512, 512, 1, 1]);
    assert_eq!(weights["encoder.down_blocks.1.resnets.0.conv1.weight"], [256, 128, 3, 3]);
    assert_eq!(weights["encoder.conv_out.weight"], [8, 512, 3, 3]);
    assert_eq!(graphs[0].parameters(), 49_490_199);
    assert_eq!(graphs[1].parameters(), 34_163_664);
    assert_like_list(&graphs, "sd15_sdxl.txt");
}

#[test]
fn flux_and_sd3() {
    let graphs = kl_graphs(&kl_config(&flux()));
    graphs.iter().for_each(assert_sound);
    let weights = weights(&graphs);
    assert_eq!(weights.len(), 244);
    assert_eq!(weights["decoder.conv_in.weight"], [512, 16, 3, 3]);
    assert_eq!(weights["encoder.conv_out.bias"], [32]);
    assert_like_list(&graphs, "flux_sd3.txt");
}

#[test]
fn tiny() {
    let graphs = tiny_graphs(&tiny_config(&json!({})));
    graphs.iter().for_each(assert_sound);
    let weights = weights(&graphs);
    assert_eq!(weights.len(), 134);
    assert_eq!(weights["decoder.layers.0.weight"], [64, 4, 3, 3]);
    assert_eq!(weights["decoder.layers.6.weight"], [64, 64, 3, 3]);
    assert!(!weights.contains_key("decoder.layers.6.bias"));
    assert_eq!(weights["decoder.layers.18.bias"], [3]);
    assert_eq!(weights["encoder.layers.13.conv.4.weight"], [64, 64, 3, 3]);
    assert_like_list(&graphs, "tiny.txt");
}

#[test]
fn tiny_with_pools() {
    let graphs = tiny_graphs(&tiny_config(&json!({"latent_channels": 32, "use_midblock_gn": true})));
    graphs.iter().for_each(assert_sound);
    let weights = weights(&graphs);
    assert_eq!(weights.len(), 134 + 6 * 4);
    for block in ["decoder.layers.2", "decoder.layers.4", "encoder.layers.11", "encoder.layers.13"] {
        assert_eq!(weights[&format!("{block}.pool.0.weight")], [256, 64, 1, 1]);
        assert_eq!(weights[&format!("{block}.pool.1.bias")], [256]);
        assert_eq!(weights[&format!("{block}.pool.3.weight")], [64, 256, 1, 1]);
        assert!(!weights.contains_key(&format!("{block}.pool.0.bias")));
    }
    assert!(!weights.contains_key("decoder.layers.7.pool.0.weight"));
}

#[test]
fn shapes_follow_the_input() {
    let output = |graph: &Graph, input| graph.shapes(input).map(|shapes| shapes[graph.output.0]);
    let [decoder, encoder] = &kl_graphs(&kl_config(&sd()))[..] else { panic!() };
    assert_eq!((decoder.input_channels(), decoder.output_channels()), (4, 3));
    assert_eq!((encoder.input_channels(), encoder.output_channels()), (3, 8));
    assert_eq!(output(decoder, [2, 4, 37, 50]).unwrap(), [2, 3, 296, 400]);
    assert_eq!(output(decoder, [1, 4, 1, 1]).unwrap(), [1, 3, 8, 8]);
    assert_eq!(output(encoder, [1, 3, 296, 400]).unwrap(), [1, 8, 37, 50]);
    assert_eq!(output(encoder, [1, 3, 8, 8]).unwrap(), [1, 8, 1, 1]);
    let [decoder, encoder] = &tiny_graphs(&tiny_config(&json!({})))[..] else { panic!() };
    assert_eq!(output(decoder, [1, 4, 23, 29]).unwrap(), [1, 3, 184, 232]);
    assert_eq!(output(encoder, [3, 3, 184, 232]).unwrap(), [3, 4, 23, 29]);
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let [decoder, encoder] = &kl_graphs(&kl_config(&sd()))[..] else { panic!() };
    let message = |graph: &Graph, input| graph.shapes(input).unwrap_err().to_string();
    assert!(message(decoder, [1, 16, 8, 8]).contains("expected 4 channels, got 16"));
    assert!(message(decoder, [0, 4, 8, 8]).contains("empty side"));
    assert!(message(decoder, [1, 4, usize::MAX / 4, 8]).contains("too many elements"));
    assert!(message(decoder, [1, 4, 1 << 60, 1 << 60]).contains("too many elements"));
    assert!(message(encoder, [1, 3, 4, 4]).contains("too small"));
}

#[test]
fn optional_parts_and_any_depth() {
    let graphs = kl_graphs(&kl_config(&json!({
        "block_out_channels": [32, 64], "norm_num_groups": 16, "latent_channels": 8, "in_channels": 1,
        "out_channels": 4, "mid_block_add_attention": false,
        "down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
    })));
    graphs.iter().for_each(assert_sound);
    let weights = weights(&graphs);
    assert!(!weights.contains_key("decoder.mid_block.attentions.0.to_q.weight"));
    assert_eq!(weights["encoder.down_blocks.0.attentions.0.to_q.weight"], [32, 32, 1, 1]);
    assert_eq!(weights["decoder.up_blocks.1.attentions.1.to_q.weight"], [32, 32, 1, 1]);
    assert_eq!((graphs[0].input_channels(), graphs[0].output_channels()), (8, 4));
    assert_eq!((graphs[1].input_channels(), graphs[1].output_channels()), (1, 16));
    let graphs = kl_graphs(&kl_config(&json!({})));
    assert_eq!(graphs[0].shapes([1, 4, 5, 6]).unwrap()[graphs[0].output.0], [1, 3, 5, 6]);
}

#[test]
fn a_checkpoint_is_a_weight_source() {
    fn is_source<T: WeightSource>() {}
    is_source::<Checkpoint>();
}
