//! `doctor`: a machine that is well, and models held against numbers.

use std::path::Path;
use std::sync::Arc;

use remote_vae_engine::{Autoencoder, Control, CpuEngine, EngineOptions, Precision};
use remote_vae_media::to_uint8_channel_last;
use remote_vae_model::{Model, Normalisation, random};
use remote_vae_wire::{Dtype, Scaling};
use serde_json::{Value, json};

use crate::support::{Serving, failure, run, stdout};

#[test]
fn a_machine_that_is_well() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(folder.path(), &["doctor", "--port", "0"]);
    for part in [
        "cpu/",
        "threads",
        "GiB",
        "embedded",
        "4 latent channels",
        "portable code",
        "GFLOP/s",
        "as it should be",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn what_is_not_as_it_should_be_comes_with_advice() {
    let folder = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let text = stdout(folder.path(), &["doctor", "--port", &port]);
    assert!(text.contains(&format!("fix        port {port} cannot be used")), "{text}");
    assert!(!text.contains("as it should be"), "{text}");
    let found: Value =
        serde_json::from_str(&stdout(folder.path(), &["doctor", "--json", "--port", &port])).unwrap();
    assert_eq!(
        (found["port"]["free"].as_bool(), found["model"]["latent_channels"].as_u64()),
        (Some(false), Some(4))
    );
    assert!(found["probe"]["gflop_per_s"].as_f64().unwrap() > 0.0);
    assert!(found["model"]["decode_1024_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(found["advice"][0].as_str().unwrap().contains(&port), "{found}");
    drop(listener);
    let found: Value =
        serde_json::from_str(&stdout(folder.path(), &["doctor", "--json", "--port", &port])).unwrap();
    assert_eq!((&found["port"]["free"], &found["advice"]), (&json!(true), &json!([])));
}

#[test]
fn who_uses_the_port_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let port = |server: &Serving| server.url.rsplit_once(':').unwrap().1.to_owned();
    let told = |server: &Serving| stdout(folder.path(), &["doctor", "--port", &port(server)]);
    let server = Serving::start(&[]);
    let text = told(&server);
    let running =
        format!("{}: remote-vae {} is already running there", port(&server), env!("CARGO_PKG_VERSION"));
    assert!(text.contains(&running) && text.contains("as it should be"), "{text}");
    let found: Value =
        serde_json::from_str(&stdout(folder.path(), &["doctor", "--json", "--port", &port(&server)]))
            .unwrap();
    assert_eq!(found["port"]["running"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&found["port"]["free"], &found["advice"]), (&json!(false), &json!([])));
    let text = told(&Serving::start(&["--api-key", "sesame", "--private-info"]));
    assert!(text.contains("wants a key, perhaps remote-vae") && text.contains("fix        port"), "{text}");
}

/// The embedded model's own factor.
fn factor() -> f64 {
    match Model::embedded().unwrap().latent_space.normalisation {
        Normalisation::Scalar { scaling_factor, .. } => scaling_factor,
        other => panic!("{other:?}"),
    }
}

/// Slices of the embedded model's picture, in the form of the published ones.
fn own_slices() -> Value {
    const SHAPE: [usize; 4] = [1, 4, 16, 24];
    let engine = Arc::new(CpuEngine::new(EngineOptions::default()).unwrap());
    let autoencoder = Autoencoder::new(Model::embedded().unwrap(), engine);
    let latents = random::normal_of(13, SHAPE.iter().product(), Dtype::Float16).unwrap();
    let scaling = Scaling::Explicit { scale: factor(), shift: None };
    let image = autoencoder.decode(latents, SHAPE, &scaling, Precision::Exact, &Control::new()).unwrap();
    let [_, _, height, width] = image.shape;
    let bytes = to_uint8_channel_last(&image.pixels, image.shape);
    let corner = || (height - 3..height).flat_map(|y| (width - 3..width).map(move |x| y * width + x));
    json!({
        "source": "this test", "seed": 13,
        "tolerances": {
            "image": {"relative": 0.01, "absolute": 0.0},
            "partial": {"relative": 0.01, "absolute": 0.0},
            "tensor": {"relative": 0.001, "absolute": 0.001},
        },
        "classes": [{
            "name": "Own", "model": "embedded", "shape": SHAPE, "dtype": "float16", "scaling_factor": factor(),
            "image": &bytes[3 * (width - 3)..3 * width],
            "partial": corner().map(|at| bytes[3 * at]).collect::<Vec<_>>(),
            "tensor": corner().map(|at| image.pixels[at]).collect::<Vec<_>>(),
        }],
    })
}

#[test]
fn a_file_of_ones_own_agrees_until_it_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.json");
    let mut slices = own_slices();
    std::fs::write(&file, slices.to_string()).unwrap();
    let text = stdout(folder.path(), &["doctor", "--golden", "own.json"]);
    assert!(text.contains("gives the expected numbers") && !text.contains("DIFFERS"), "{text}");
    assert_eq!(text.matches("agrees within").count(), 3, "{text}");

    for (member, change) in [("image", 5.0), ("partial", -5.0), ("tensor", 0.01)] {
        let good = slices["classes"][0][member][4].clone();
        slices["classes"][0][member][4] = json!(good.as_f64().unwrap() + change);
        std::fs::write(&file, slices.to_string()).unwrap();
        let output = run(folder.path(), &["doctor", "--golden", "own.json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.matches("DIFFERS").count() == 1 && text.contains("The numbers are those of embedded"),
            "{text}"
        );
        slices["classes"][0][member][4] = good;
    }
}

/// The draw, packing and slices against those of torch and diffusers, on small random models.
#[test]
fn slices_of_diffusers_agree() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let slices = root.join("../server/tests/golden/slices.json");
    for (model, classes) in [("sd15", 1), ("flux", 2)] {
        let model = root.join("../engine/tests/golden").join(model);
        let arguments = ["doctor", "--golden", slices.to_str().unwrap(), "--model", model.to_str().unwrap()];
        let text = stdout(root, &arguments);
        assert_eq!(text.matches("agrees within").count(), 3 * classes, "{text}");
    }
}

#[test]
fn other_models_are_told_that_they_are_others() {
    let folder = tempfile::tempdir().unwrap();
    let (code, message) = failure(folder.path(), &["doctor", "--golden"]);
    assert!(code == 1 && message.contains("embedded") && message.contains("--model"), "{message}");
    let (code, message) = failure(folder.path(), &["doctor", "--golden", "--class", "SDv1"]);
    assert!(code == 1 && message.contains("does not give the numbers expected of SDv1"), "{message}");
    let (_, message) = failure(folder.path(), &["doctor", "--golden", "--class", "Flux"]);
    assert!(message.contains("4 channels"), "{message}");
    let (_, message) = failure(folder.path(), &["doctor", "--golden", "--class", "Wan"]);
    assert!(message.contains("SDXL"), "{message}");
    let (code, _) = failure(folder.path(), &["doctor", "--class", "SDv1"]);
    assert_eq!(code, 2);
}

#[test]
fn damaged_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut slices = own_slices();
    for (change, word) in [
        (json!([1, 4, 0, 8]), "at least 1"),
        (json!([1, 4, 1u64 << 40, 1u64 << 40]), "Own"),
        (json!([1, 4, 16384, 16384]), "too many"),
        (json!([1, 4, 16]), "height"),
        (json!([4]), "no class fits"),
    ] {
        slices["classes"][0]["shape"] = change;
        std::fs::write(folder.path().join("own.json"), slices.to_string()).unwrap();
        let (code, message) = failure(folder.path(), &["doctor", "--golden", "own.json"]);
        assert!(code == 1 && message.contains(word), "{word}: {message}");
    }
    std::fs::write(folder.path().join("own.json"), "{}").unwrap();
    let (_, message) = failure(folder.path(), &["doctor", "--golden", "own.json"]);
    assert!(message.contains("own.json"), "{message}");
    let (_, message) = failure(folder.path(), &["doctor", "--golden", "absent.json"]);
    assert!(message.contains("absent.json"), "{message}");
}
