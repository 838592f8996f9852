//! diffusers' tiles over HTTP: what the engine gives in them, and only for requests that ask.

use std::path::Path;
use std::sync::Arc;

use remote_vae_engine::{Autoencoder, Control, Draw, Precision, Windows};
use remote_vae_model::Model;
use remote_vae_server::ServerOptions;
use remote_vae_wire::{Dtype, Scaling, TileSizes, bytes_from_elements};

use crate::support::*;

fn sd15() -> Arc<Autoencoder> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden/sd15");
    Arc::new(Autoencoder::new(Model::open(&folder).unwrap(), engine()))
}

fn float16(values: &[f32]) -> Vec<u8> {
    bytes_from_elements(Dtype::Float16, values)
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_decoded_in_tiles_where_a_request_says_so() {
    let (model, exact, control) = (sd15(), Precision::Exact, Control::new());
    // The operator's choice is for models of videos.
    let tiling = Windows { tiles: Some(TileSizes::default()), ..Windows::default() };
    let operated = ServerOptions { windows: tiling, ..options() };
    let server = TestServer::with(operated, vec![("default", Arc::clone(&model))]).await;
    let shape = [2, 4, 11, 13];
    let (body, values) = latents(&shape, 3);
    let ask = async |more: &str| {
        let path = format!("/?output_type=pt{more}&{}", tensor_query(&shape, Dtype::Float16));
        let response = server.post(&path, body.clone()).send().await.unwrap();
        assert_eq!(response.status(), 200, "{more}");
        response.bytes().await.unwrap()
    };
    let whole = model.decode(values.clone(), shape, &Scaling::None, exact, &control).unwrap();
    assert_eq!(ask("").await, float16(&whole.pixels));
    assert_eq!(ask("&tiling=off").await, float16(&whole.pixels));
    let sizes = |sample, latent, overlap| TileSizes {
        sample_min_size: sample,
        latent_min_size: latent,
        overlap_factor: overlap,
    };
    for (more, sizes) in [
        ("", sizes(None, None, None)),
        ("&tile_latent_min_size=12", sizes(None, Some(12), None)),
        ("&tile_sample_min_size=64&tile_overlap_factor=0.5", sizes(Some(64), None, Some(0.5))),
    ] {
        let tiled =
            model.decode_in_tiles(values.clone(), shape, &Scaling::None, sizes, exact, &control).unwrap();
        assert_ne!(tiled.pixels, whole.pixels);
        assert_eq!(ask(&format!("&tiling=diffusers{more}")).await, float16(&tiled.pixels), "{more}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_encoded_in_tiles_where_a_request_says_so() {
    let (model, exact, control) = (sd15(), Precision::Exact, Control::new());
    let server = TestServer::with(options(), vec![("default", Arc::clone(&model))]).await;
    let shape = [2, 3, 72, 104];
    let (_, values) = latents(&shape, 4);
    let values: Vec<f32> = values.iter().map(|value| value.clamp(-1.0, 1.0)).collect();
    let body = float16(&values);
    for tiles in [None, Some(TileSizes::default())] {
        let expected = match tiles {
            None => model.encode(&values, shape, &Scaling::None, Draw::Mode, exact, &control),
            Some(tiles) => {
                let (values, none) = (values.clone(), &Scaling::None);
                model.encode_in_tiles(values, shape, none, Draw::Mode, tiles, exact, &control)
            }
        };
        let tiling = if tiles.is_some() { "tiling=on&" } else { "" };
        let path = format!("/encode?{tiling}{}", tensor_query(&shape, Dtype::Float16));
        let response = server.post(&path, body.clone()).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.bytes().await.unwrap(), float16(&expected.unwrap().values), "{tiling}");
    }
    let path = format!("/encode?tile_overlap_factor=0.9&{}", tensor_query(&shape, Dtype::Float16));
    let response = server.post(&path, body).send().await.unwrap();
    assert_eq!(response.status(), 400);
    assert!(response.text().await.unwrap().contains("`tile_overlap_factor` is for tiles"));
}
