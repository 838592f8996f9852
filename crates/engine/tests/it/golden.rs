//! diffusers' output on small random models: `tests/golden`, made by the script there.

use crate::support::{Tensor, assert_close, engine, engines, golden_folder, read_tensors, run};
use remote_vae_engine::{Autoencoder, Control, Draw, Precision};
use remote_vae_kernels::Isa;
use remote_vae_model::Model;
use remote_vae_wire::Parameters;
use serde_json::Value;
use std::collections::BTreeMap;

const TOLERANCE: f32 = 1e-4;

pub(crate) struct Case {
    pub source: String,
    /// `decode`, `encode` or both: what the file holds.
    operations: Vec<String>,
    client: BTreeMap<String, Vec<Value>>,
    expected: BTreeMap<String, Tensor>,
}

impl Case {
    pub(crate) fn model(&self) -> Model {
        Model::open(&golden_folder().join(&self.source))
            .unwrap_or_else(|error| panic!("{}: {error}", self.source))
    }

    /// `prefix.0`, `prefix.1`, … as far as they go; none if the file lacks the half they need.
    pub(crate) fn numbered(&self, prefix: &str) -> Vec<String> {
        let operation = if prefix.ends_with("encode") { "encode" } else { "decode" };
        if !self.operations.iter().any(|own| own == operation) {
            return Vec::new();
        }
        (0..)
            .map(|n| format!("{prefix}.{n}"))
            .take_while(|name| self.expected.keys().any(|key| key.starts_with(&format!("{name}."))))
            .collect()
    }

    pub(crate) fn tensor(&self, case: &str, what: &str) -> &Tensor {
        &self.expected[&format!("{case}.{what}")]
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let list = std::fs::read_to_string(golden_folder().join("golden.json")).unwrap();
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    assert!(list.len() >= 17, "{} golden models", list.len());
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    list.iter()
        .map(|entry| Case {
            source: text(entry, "source"),
            operations: serde_json::from_value(entry["operations"].clone()).unwrap(),
            client: serde_json::from_value(entry["client"].clone()).unwrap(),
            expected: read_tensors(&golden_folder().join(text(entry, "expected"))),
        })
        .collect()
}

#[test]
fn decoders_give_what_diffusers_gives() {
    let mut checked = 0;
    for case in cases() {
        let model = case.model();
        for name in case.numbered("decode") {
            let (latents, pixels) = (case.tensor(&name, "latents"), case.tensor(&name, "pixels"));
            for engine in engines() {
                let graph = model.decoder().unwrap();
                let (found, shape) = run(&*engine, graph, model.weights(), latents.shape4(), &latents.values);
                let what = format!("{} {name} {}", case.source, engine.name(Precision::Exact));
                assert_eq!(shape, pixels.shape4(), "{what}");
                assert_close(&found, &pixels.values, TOLERANCE, &what);
                checked += 1;
            }
        }
    }
    assert!(checked >= 20 * Isa::available().len(), "{checked} decodes");
}

#[test]
fn encoders_give_what_diffusers_gives() {
    let mut checked = 0;
    for case in cases() {
        let model = case.model();
        for name in case.numbered("encode") {
            let pixels = case.tensor(&name, "pixels");
            let what = if model.encoder_yields_moments() { "moments" } else { "latents" };
            let expected = case.tensor(&name, what);
            for engine in engines() {
                let graph = model.encoder().unwrap();
                let (found, shape) = run(&*engine, graph, model.weights(), pixels.shape4(), &pixels.values);
                let what = format!("{} {name} {}", case.source, engine.name(Precision::Exact));
                assert_eq!(shape, expected.shape4(), "{what}");
                assert_close(&found, &expected.values, TOLERANCE, &what);
                checked += 1;
            }
        }
    }
    assert!(checked >= 8 * Isa::available().len(), "{checked} encodes");
}

/// Parameters as a client's query string spells them.
fn parameters(set: &Value) -> Parameters {
    let pairs: Vec<String> = set
        .as_object()
        .unwrap()
        .iter()
        .map(|(key, value)| match value {
            Value::Bool(flag) => format!("{key}={}", if *flag { "True" } else { "False" }),
            other => format!("{key}={other}"),
        })
        .collect();
    Parameters::from_query(&pairs.join("&")).unwrap()
}

#[test]
fn latents_of_clients_decode_as_the_pipelines_decode_them() {
    let mut checked = 0;
    for case in cases() {
        let autoencoder = Autoencoder::new(case.model(), engine(2, Isa::detect().name()));
        for name in case.numbered("client") {
            let (latents, pixels) = (case.tensor(&name, "latents"), case.tensor(&name, "pixels"));
            for set in &case.client[&name] {
                let parameters = parameters(set);
                let space = &autoencoder.model().latent_space;
                let layout = space.layout(&latents.shape, parameters.height, parameters.width).unwrap();
                let (values, shape) = space.arrange(latents.values.clone(), layout).unwrap();
                let image = autoencoder
                    .decode(values, shape, &parameters.scaling(), Precision::Exact, &Control::new())
                    .unwrap();
                let what = format!("{} {name} {set}", case.source);
                assert_eq!(image.shape, pixels.shape4(), "{what}");
                assert_close(&image.pixels, &pixels.values, TOLERANCE, &what);
                checked += 1;
            }
        }
    }
    assert!(checked >= 20, "{checked} requests");
}

#[test]
fn pictures_of_clients_encode_as_the_pipelines_encode_them() {
    let mut checked = 0;
    for case in cases() {
        let autoencoder = Autoencoder::new(case.model(), engine(2, Isa::detect().name()));
        for name in case.numbered("client_encode") {
            let (pixels, latents) = (case.tensor(&name, "pixels"), case.tensor(&name, "latents"));
            for set in &case.client[&name] {
                let scaling = parameters(set).scaling();
                let found = autoencoder
                    .encode(
                        &pixels.values,
                        pixels.shape4(),
                        &scaling,
                        Draw::Mode,
                        Precision::Exact,
                        &Control::new(),
                    )
                    .unwrap();
                let what = format!("{} {name} {set}", case.source);
                assert_eq!(found.shape, latents.shape4(), "{what}");
                assert_close(&found.values, &latents.values, TOLERANCE, &what);
                checked += 1;
            }
        }
    }
    assert!(checked >= 8, "{checked} requests");
}
