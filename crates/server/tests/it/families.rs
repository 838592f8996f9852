//! Every family of models that is served: latents and pixels of a wrong rank, channel count or frame count are refused with the
//! protocol's JSON, which names what the model expects.

use std::path::Path;
use std::sync::Arc;

use remote_vae_engine::Autoencoder;
use remote_vae_model::{Checkpoint, Family, Model};
use remote_vae_wire::Dtype;

use crate::support::*;

/// A model of the engine's golden files; a file there has no config.json, `class` stands for it.
fn golden(place: &str, class: Option<&str>) -> Arc<Autoencoder> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests").join(place);
    let model = match class {
        None => Model::open(&path),
        Some(class) => Checkpoint::open(&path)
            .and_then(|checkpoint| Model::from_checkpoint(checkpoint, Some(class), place)),
    };
    Arc::new(Autoencoder::new(model.unwrap(), engine()))
}

/// Asks for a decode of latents, or an encode of pixels, of this shape.
async fn refused(server: &TestServer, operation: &str, shape: &[usize], more: &str) -> String {
    let (body, _) = latents(shape, 1);
    let path = format!("/{operation}{more}&{}", tensor_query(shape, Dtype::Float16));
    let response = server.post(&path, body).send().await.unwrap();
    assert!(!response.status().is_success(), "{operation} {shape:?}");
    let (status, message) = refusal(response).await;
    assert_eq!(status, 400, "{shape:?}: {message}");
    message
}

const DECODE: &str = "decode?output_type=pt";
const ENCODE: &str = "encode?do_scaling=False";

#[tokio::test(flavor = "multi_thread")]
async fn models_of_pictures_name_the_shapes_that_they_take() {
    for (place, family, channels, packed) in [
        ("golden/sd15", Family::AutoencoderKl, 4, true),
        ("golden/sd3", Family::AutoencoderKl, 16, true),
        ("golden/flux2", Family::AutoencoderKlFlux2, 32, true),
        ("golden/tiny", Family::AutoencoderTiny, 4, true),
        ("golden/sana", Family::AutoencoderDc, 8, false),
        ("golden/dc-pixels", Family::AutoencoderDc, 6, false),
    ] {
        let model = golden(place, None);
        assert_eq!(model.model().family, family);
        let server = TestServer::with(options(), vec![("default", model)]).await;
        let expected = format!("[batch, {channels}, height, width]");
        for shape in [&[1, channels + 1, 2, 2][..], &[1, channels, 3, 2, 2], &[channels, 4]] {
            let message = refused(&server, DECODE, shape, "").await;
            assert!(
                message.contains(&expected) && message.contains(&format!("{shape:?}")),
                "{place}: {message}"
            );
            let tokens = format!("[batch, tokens, {}]", 4 * channels);
            assert_eq!(message.contains(&tokens), packed, "{place}: {message}");
        }
        if packed {
            let shape = [1, 5, 4 * channels];
            let message = refused(&server, DECODE, &shape, "&height=32&width=48").await;
            assert!(message.contains("6 tokens, got 5"), "{place}: {message}");
        }
        for shape in [&[1, 4, 64, 64][..], &[1, 3, 5, 64, 64], &[64, 64]] {
            let message = refused(&server, ENCODE, shape, "").await;
            assert!(message.contains("[batch, 3, height, width]"), "{place} {shape:?}: {message}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_clips_name_the_shapes_and_frames_that_they_take() {
    let qwen = r#"{"_class_name": "AutoencoderKLQwenImage", "base_dim": 4}"#;
    for (place, class, family, channels, packed) in [
        ("golden_video/hunyuan", None, Family::AutoencoderKlHunyuanVideo, 4, false),
        ("golden_video/wan", None, Family::AutoencoderKlWan, 16, false),
        ("golden_video/wan22", None, Family::AutoencoderKlWan, 48, false),
        ("golden_video/qwen-image.safetensors", Some(qwen), Family::AutoencoderKlQwenImage, 16, true),
    ] {
        let model = golden(place, class);
        assert_eq!(model.model().family, family);
        let server = TestServer::with(options(), vec![("default", model)]).await;
        let expected = format!("[batch, {channels}, frames, height, width]");
        for shape in [&[1, channels + 1, 3, 2, 2][..], &[1, channels, 3, 2, 2, 1], &[channels, 4]] {
            let message = refused(&server, DECODE, shape, "").await;
            assert!(
                message.contains(&expected) && message.contains(&format!("{shape:?}")),
                "{place}: {message}"
            );
            let tokens = format!("[batch, tokens, {}]", 4 * channels);
            assert_eq!(message.contains(&tokens), packed, "{place}: {message}");
        }
        for frames in [2, 4, 8] {
            let message = refused(&server, ENCODE, &[1, 3, frames, 32, 32], "").await;
            assert!(message.contains("1 frame more than a multiple of 4"), "{place}: {message}");
        }
        for shape in [&[1, 4, 5, 32, 32][..], &[1, 3, 5, 32, 32, 1]] {
            let message = refused(&server, ENCODE, shape, "").await;
            assert!(message.contains("[batch, 3, frames, height, width]"), "{place} {shape:?}: {message}");
        }
    }
}
