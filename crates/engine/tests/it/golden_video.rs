//! diffusers' output on small random video models: `tests/golden_video`, made by the script there.

use crate::support::{assert_close, engines, read_tensors};
use remote_vae_engine::Control;
use remote_vae_model::{Graph, Model};
use std::path::{Path, PathBuf};

const TOLERANCE: f32 = 1e-4;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden_video")
}

/// Runs every case of `kind` on whole clips and gives their number.
fn check_whole(model: &Model, graph: &Graph, kind: &str, input: &str, output: &str) -> usize {
    let expected = read_tensors(&folder().join("hunyuan.safetensors"));
    let mut checked = 0;
    while let Some(given) = expected.get(&format!("{kind}.{checked}.{input}")) {
        let whole = expected.get(&format!("{kind}.{checked}.whole"));
        let wanted = whole.unwrap_or_else(|| &expected[&format!("{kind}.{checked}.{output}")]);
        let shape: [usize; 5] = given.shape.as_slice().try_into().unwrap();
        for engine in engines() {
            let plan = engine.plan_clip(graph, shape).unwrap();
            let program = engine.load(graph, model.weights()).unwrap();
            let found = program.run(&plan, &given.values, &Control::new()).unwrap();
            let what = format!("{kind}.{checked} {}", engine.name());
            let [batch, channels, height, width] = plan.output;
            assert_eq!([batch, channels, plan.frames[1], height, width][..], wanted.shape[..], "{what}");
            assert_close(&found, &wanted.values, TOLERANCE, &what);
        }
        checked += 1;
    }
    checked
}

#[test]
fn whole_clips_decode_as_diffusers_decodes_them() {
    let model = Model::open(&folder().join("hunyuan")).unwrap();
    assert_eq!(check_whole(&model, model.decoder().unwrap(), "decode", "latents", "pixels"), 6);
}

#[test]
fn whole_clips_encode_as_diffusers_encodes_them() {
    let model = Model::open(&folder().join("hunyuan")).unwrap();
    assert_eq!(check_whole(&model, model.encoder().unwrap(), "encode", "pixels", "moments"), 4);
}
