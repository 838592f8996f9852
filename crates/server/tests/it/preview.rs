//! `output=preview`: colours of latents without the engine, in every form of an answer.

use std::path::Path;
use std::sync::Arc;

use remote_vae_engine::Autoencoder;
use remote_vae_media as media;
use remote_vae_model::{LatentSpace, Model};
use remote_vae_wire::{Dtype, Scaling, bytes_from_elements};
use serde_json::json;

use crate::decode::header;
use crate::support::*;

const SHAPE: [usize; 4] = [2, 4, 3, 5];

/// Stable Diffusion's latent space.
fn sd() -> Arc<Autoencoder> {
    kl_with(json!({"scaling_factor": 0.18215}))
}

fn expected(space: &LatentSpace, values: &[f32], shape: [usize; 4]) -> Vec<f32> {
    space.preview(values.to_vec(), shape, &Scaling::Model { shift: None }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_has_its_deadline_and_waits_for_no_job() {
    let server = TestServer::with(options(), vec![("default", sd())]).await;
    let ask = |shape: &[usize], query: &str| {
        let path = format!("/?output_type=pt&do_scaling=True&{query}{}", tensor_query(shape, Dtype::Float16));
        server.post(&path, latents(shape, 4).0).header("accept", "tensor/binary")
    };
    let large = ask(&[16, 4, 512, 512], "output=preview&").header("x-request-timeout-ms", "1");
    let (status, message) = refusal(large.send().await.unwrap()).await;
    assert!(status == 504 && message.contains("0.001 s"), "{message}");
    let long = tokio::spawn(ask(&[16, 4, 96, 96], "").send());
    server.until_queue(0, 1).await;
    let response = ask(&SHAPE, "output=preview&").send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.headers()["server-timing"].to_str().unwrap().starts_with("queue;dur="));
    server.until_queue(0, 1).await;
    long.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_has_one_pixel_for_each_latent_in_every_form() {
    let model = sd();
    let server = TestServer::with(options(), vec![("default", Arc::clone(&model))]).await;
    let (body, values) = latents(&SHAPE, 1);
    let colours = expected(&model.model().latent_space, &values, SHAPE);
    let query = tensor_query(&SHAPE, Dtype::Float16);
    let ask = async |more: &str, accept: &str| {
        let path = format!("/?output=preview&do_scaling=True&{more}&{query}");
        let response = server.post(&path, body.clone()).header("accept", accept).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), header(&response, "x-remote-vae-engine")),
            (200, Some("preview"))
        );
        response
    };

    let response = ask("output_type=pt", "tensor/binary").await;
    assert_eq!(header(&response, "shape"), Some("[2,3,3,5]"));
    assert_eq!(response.bytes().await.unwrap(), bytes_from_elements(Dtype::Float16, &colours));

    let bytes = media::to_uint8_channel_last(&colours, [2, 3, 3, 5]);
    let response = ask("output_type=pt&partial_postprocess=True", "tensor/binary").await;
    assert_eq!(header(&response, "shape"), Some("[2,3,5,3]"));
    assert_eq!(response.bytes().await.unwrap(), bytes);

    let file = ask("output_type=pil&image_format=png", "image/png").await.bytes().await.unwrap();
    let limits = media::DecodeLimits { max_pixels: 1 << 10, max_bytes: 1 << 20 };
    let picture = media::decode_image(&file, &limits).unwrap();
    assert_eq!((picture.width, picture.height), (5, 3));
    assert_eq!(picture.pixels, bytes[..3 * 3 * 5]);

    // `output_type` need not be there.
    assert!(ask("", "*/*").await.bytes().await.unwrap().starts_with(&[0xff, 0xd8]));

    let metrics = server.http.get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(
        metrics.contains("rvae_requests_total{op=\"preview\",model=\"default\",code=\"200\"} 4"),
        "{metrics}"
    );
    assert!(!metrics.contains("rvae_engine_seconds_count"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_latents_and_other_scalings_give_the_same_preview() {
    let model = sd();
    let space = &model.model().latent_space;
    let server = TestServer::with(options(), vec![("default", Arc::clone(&model))]).await;
    let (_, values) = latents(&[1, 4, 4, 6], 2);
    let (tokens, shape) = space.pack(&values, [1, 4, 4, 6]).unwrap();
    let colours = bytes_from_elements(Dtype::Float16, &expected(space, &values, [1, 4, 4, 6]));
    let query = format!("output=preview&output_type=pt&{}", tensor_query(&shape, Dtype::Float32));
    let body = bytes_from_elements(Dtype::Float32, &tokens);
    for more in ["do_scaling=True", "scaling_factor=0.18215"] {
        let response = server.raw(&format!("{query}&height=32&width=48&{more}"), body.clone()).await;
        assert_eq!(header(&response, "shape"), Some("[1,3,4,6]"));
        assert_eq!(response.bytes().await.unwrap(), colours, "{more}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clips_have_a_preview_for_each_frame_of_latents() {
    // The small random model of the engine's golden files, in the latent space of HunyuanVideo with as many channels.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden_video/hunyuan");
    let mut model = Model::open(&folder).unwrap();
    model.latent_space = sd().model().latent_space.clone();
    let space = model.latent_space.clone();
    let server =
        TestServer::with(options(), vec![("default", Arc::new(Autoencoder::new(model, engine())))]).await;
    let shape = [1, 4, 3, 16, 24];
    let (body, values) = latents(&shape, 3);
    let colours = expected(&space, &values, [1, 4, 3 * 16, 24]);
    let query = format!("output=preview&do_scaling=True&{}", tensor_query(&shape, Dtype::Float16));
    let response = server.raw(&format!("{query}&output_type=pt"), body.clone()).await;
    assert_eq!(header(&response, "shape"), Some("[1,3,3,16,24]"));
    assert_eq!(response.bytes().await.unwrap(), bytes_from_elements(Dtype::Float16, &colours));

    let video = server.post(&format!("/?{query}&output_type=mp4"), body.clone()).send().await.unwrap();
    assert_eq!(video.status(), 200);
    let frames = media::DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 26 };
    let limits = media::VideoLimits { frames, max_frames: 100 };
    let video = media::decode_mp4(&video.bytes().await.unwrap(), &limits).unwrap();
    assert_eq!((video.frames.len(), video.frames[0].width, video.frames[0].height), (3, 24, 16));

    let png = server.post(&format!("/?{query}&image_format=png"), body).header("accept", "image/png");
    let (status, message) = refusal(png.send().await.unwrap()).await;
    assert!(status == 400 && message.contains("3"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_preview_is_refused() {
    let server = TestServer::with(options(), vec![("default", kl()), ("tiny", tiny()), ("sd", sd())]).await;
    let (body, _) = latents(&SHAPE, 4);
    let query = tensor_query(&SHAPE, Dtype::Float16);
    let ask = async |path: &str, body: Vec<u8>| refusal(server.post(path, body).send().await.unwrap()).await;
    for (path, part) in [
        (format!("/?output=preview&{query}"), "no factors for previews are known"),
        (format!("/tiny?output=preview&{query}"), "space=SPACE"),
        (format!("/sd?output=sketch&{query}"), "`output`"),
        (format!("/sd?output=preview&output_type=mp4&{query}"), "needs a model of videos"),
        (format!("/sd/encode?output=preview&{query}"), "is for latents"),
        (
            "/sd?output=preview&dtype=float16&shape=1&shape=3&shape=5&shape=8".to_owned(),
            "[batch, 4, height, width]",
        ),
        ("/sd?output=preview&dtype=float16&shape=1&shape=4&shape=5&shape=8".to_owned(), "320"),
    ] {
        let (status, message) = ask(&path, body.clone()).await;
        assert_eq!(status, 400, "{path}: {message}");
        assert!(message.contains(part), "{path}: {message}");
    }
    let (status, message) =
        ask("/sd?output=preview&dtype=float16&shape=1&shape=4&shape=0&shape=8", Vec::new()).await;
    assert_eq!(status, 400, "{message}");
    let limits = remote_vae_server::Limits { max_pixels: 64, ..remote_vae_server::Limits::default() };
    let small = remote_vae_server::ServerOptions { limits, ..options() };
    let server = TestServer::with(small, vec![("sd", sd())]).await;
    let (body, _) = latents(&[1, 4, 9, 9], 4);
    let query = tensor_query(&[1, 4, 9, 9], Dtype::Float16);
    let (status, _) =
        refusal(server.post(&format!("/?output=preview&{query}"), body).send().await.unwrap()).await;
    assert_eq!(status, 413);
}
