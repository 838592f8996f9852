//! Decodes by a model of videos: every output, and what is refused.

use std::path::Path;
use std::sync::Arc;

use remote_vae_engine::{Autoencoder, Control, Precision, Windows};
use remote_vae_media as media;
use remote_vae_model::Model;
use remote_vae_wire::{Dtype, Scaling, bytes_from_elements};

use crate::decode::header;
use crate::support::*;

/// Three frames of latents become nine of pixels.
const SHAPE: [usize; 5] = [1, 4, 3, 4, 6];
const FRAMES: usize = 9;

/// The small random model of the engine's golden files.
fn hunyuan() -> Arc<Autoencoder> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden_video/hunyuan");
    Arc::new(Autoencoder::new(Model::open(&folder).unwrap(), engine()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clip_comes_back_in_every_form() {
    let model = hunyuan();
    let server = TestServer::with(options(), vec![("default", Arc::clone(&model))]).await;
    let (body, values) = latents(&SHAPE, 1);
    let clip = model
        .decode_clip(values, SHAPE, &Scaling::None, Windows::default(), Precision::Exact, &Control::new())
        .unwrap();
    assert_eq!(clip.shape, [1, 3, FRAMES, 32, 48]);
    let plane = 32 * 48;
    let frame = |frame: usize| -> Vec<f32> {
        (0..3).flat_map(|c| clip.values[(c * FRAMES + frame) * plane..][..plane].to_vec()).collect()
    };
    let frames: Vec<f32> = (0..FRAMES).flat_map(frame).collect();
    let query = tensor_query(&SHAPE, Dtype::Float16);
    // Some clients derive height and width of clips from the wrong sides; they do not count.
    let ask = async |more: &str, accept: &str| {
        let path = format!("/?{more}&height=24&width=32&{query}");
        server.post(&path, body.clone()).header("accept", accept).send().await.unwrap()
    };

    let response = ask("output_type=pt&partial_postprocess=False", "tensor/binary").await;
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "shape"), Some("[1,3,9,32,48]"));
    assert_eq!(response.bytes().await.unwrap(), bytes_from_elements(Dtype::Float16, &clip.values));

    let response = ask("output_type=pil", "tensor/binary").await;
    assert_eq!(header(&response, "shape"), Some("[9,3,32,48]"));
    let unit = media::to_unit_interval(&frames);
    assert_eq!(response.bytes().await.unwrap(), bytes_from_elements(Dtype::Float16, &unit));

    let response = ask("output_type=pt&partial_postprocess=True", "tensor/binary").await;
    assert_eq!(header(&response, "shape"), Some("[9,32,48,3]"));
    let rgb = media::to_uint8_channel_last(&frames, [FRAMES, 3, 32, 48]);
    assert_eq!(response.bytes().await.unwrap(), rgb);

    let response = ask("output_type=mp4", "text/plain").await;
    assert_eq!(response.status(), 200);
    let file = response.bytes().await.unwrap();
    assert_eq!(&file[4..8], b"ftyp");
    let video = media::decode_mp4(
        &file,
        &media::VideoLimits {
            frames: media::DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 26 },
            max_frames: 100,
        },
    )
    .unwrap();
    assert_eq!((video.frames[0].width, video.frames[0].height, video.frames.len()), (48, 32, FRAMES));
    assert!((video.fps - 10.0).abs() < 1e-6);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_model_of_videos_cannot_do_is_refused_with_what_it_expects() {
    let server = TestServer::with(options(), vec![("default", hunyuan())]).await;
    let cases: [(&[usize], &str, &str); 4] = [
        (&[1, 5, 3, 4, 6], "output_type=pt", "[batch, 4, frames, height, width]"),
        (&[1, 4, 0, 4, 6], "output_type=pt", "shape"),
        (&SHAPE, "output_type=pil", "these latents give 9"),
        (&[2, 4, 3, 4, 6], "output_type=mp4", "batch of 1"),
    ];
    for (shape, ask, expected) in cases {
        let (body, _) = latents(shape, 2);
        let path = format!("/?{ask}&{}", tensor_query(shape, Dtype::Float16));
        let response = server.post(&path, body).header("accept", "image/png").send().await.unwrap();
        assert_eq!(response.status(), 400, "{shape:?} {ask}");
        let error = json(response).await["error"].as_str().unwrap().to_owned();
        assert!(error.contains(expected), "{error}");
    }
    let pictures = TestServer::start().await;
    let (body, _) = latents(&SHAPE, 3);
    let response = pictures.raw(&tensor_query(&SHAPE, Dtype::Float16), body).await;
    assert_eq!(response.status(), 400);
}
