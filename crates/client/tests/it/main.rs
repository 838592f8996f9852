//! The client against the real server with the embedded model.

use std::sync::Arc;

use remote_vae_client::{
    Client, ClientError, DecodeOptions, EncodeOptions, Output, Source, Tensor, blocking,
};
use remote_vae_engine::{Autoencoder, CpuEngine, EngineOptions};
use remote_vae_media as media;
use remote_vae_model::Model;
use remote_vae_server::{ApiKey, ModelEntry, Server, ServerOptions, TlsFiles};
use remote_vae_wire::{Dtype, elements_from_bytes};

mod jobs;
mod serve;

use serve::{photo, png, serve};

fn limits() -> media::DecodeLimits {
    media::DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 24 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_goes_there_and_back_in_every_output() {
    let (url, _handle) = serve(vec![]).await;
    let client = Client::new(format!("{url}/small/")).unwrap();
    assert!(client.is_ready().await.unwrap());
    assert_eq!(client.info().await.unwrap()["models"][0]["name"], "small");

    let image = photo();
    let encoding = EncodeOptions::default().scaled_by_model();
    let reply = client.encode(Source::file(png()), &encoding).await.unwrap();
    assert!(reply.engine.as_deref().unwrap().starts_with("cpu/") && reply.request_id.is_some());
    assert!(!reply.timing.engine.is_zero());
    let latents = reply.tensor().unwrap();
    assert_eq!((latents.shape.as_slice(), latents.dtype), (&[1, 4, 6, 8][..], Dtype::Float16));

    let decode =
        async |output| client.decode(&latents, &DecodeOptions::new(output).scaled_by_model()).await.unwrap();
    let bytes = decode(Output::Uint8).await.tensor().unwrap();
    assert_eq!(bytes.shape, [1, 48, 64, 3]);
    let psnr = media::psnr(&bytes.bytes, &image.pixels);
    assert!(psnr > 20.0, "{psnr} dB");
    let file = decode(Output::Png).await.file().unwrap();
    assert_eq!(media::decode_image(&file, &limits()).unwrap().pixels, bytes.bytes);
    let file = decode(Output::Jpeg).await.file().unwrap();
    assert!(file.starts_with(&[0xff, 0xd8]));
    let raw = decode(Output::Float16).await.tensor().unwrap();
    assert_eq!(raw.shape, [1, 3, 48, 64]);
    assert_eq!(media::to_uint8_channel_last(&raw.to_f32(), [1, 3, 48, 64]), bytes.bytes);
    let unit = decode(Output::Unit).await.tensor().unwrap();
    assert_eq!(unit.to_f32(), media::to_unit_interval(&raw.to_f32()));

    // The same pixels as a tensor give the same latents.
    let pixels =
        Tensor::from_f32(vec![1, 3, 48, 64], Dtype::Float32, &media::to_model_range(&image)).unwrap();
    let again = client.encode(pixels.into(), &encoding).await.unwrap().tensor().unwrap();
    assert_eq!(again, latents);
    // Latents that are the model's own need no scaling.
    let own = client.encode(Source::file(png()), &EncodeOptions::default()).await.unwrap().tensor().unwrap();
    let moments = EncodeOptions { moments: true, ..EncodeOptions::default() };
    let moments = client.encode(Source::file(png()), &moments).await.unwrap().tensor().unwrap();
    assert_eq!(moments.shape, [1, 8, 6, 8]);
    assert_eq!(moments.bytes[..own.bytes.len()], own.bytes);
    let plain = client.decode(&own, &DecodeOptions::new(Output::Uint8)).await.unwrap().tensor().unwrap();
    assert!(media::psnr(&plain.bytes, &bytes.bytes) > 40.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_latents_travel_with_their_size() {
    let (url, _handle) = serve(vec![]).await;
    let client = Client::new(url).unwrap();
    let values: Vec<f32> = (0..4 * 4 * 6).map(|index| (index as f32 * 0.37).sin()).collect();
    let model = Model::embedded().unwrap();
    let (tokens, shape) = model.latent_space.pack(&values, [1, 4, 4, 6]).unwrap();
    let packed = Tensor::from_f32(shape.to_vec(), Dtype::Float32, &tokens).unwrap();
    let planes = Tensor::from_f32(vec![1, 4, 4, 6], Dtype::Float32, &values).unwrap();
    let options = DecodeOptions::new(Output::Float16);
    let from_packed =
        client.decode(&packed, &options.clone().packed(32, 48)).await.unwrap().tensor().unwrap();
    let from_planes = client.decode(&planes, &options).await.unwrap().tensor().unwrap();
    assert_eq!(from_packed, from_planes);
    assert!(elements_from_bytes(Dtype::Float16, &from_planes.bytes).iter().all(|value| value.is_finite()));

    let error = client.decode(&packed, &options).await.unwrap_err();
    assert!(error.status() == Some(400) && error.to_string().contains("`height`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_open_the_server() {
    let (url, _handle) = serve(vec![ApiKey::new("right")]).await;
    let latents = Tensor::from_f32(vec![1, 4, 1, 1], Dtype::Float32, &[0.0; 4]).unwrap();
    for (key, status) in [(None, Some(401)), (Some("wrong"), Some(401)), (Some("right"), None)] {
        let mut builder = Client::builder(&url);
        if let Some(key) = key {
            builder = builder.bearer_key(key);
        }
        let outcome = builder.build().unwrap().decode(&latents, &DecodeOptions::default()).await;
        assert_eq!(outcome.err().and_then(|error| error.status()), status);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_https_is_told_by_name() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/tests/tls");
    let tls = TlsFiles { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
    let options = ServerOptions { port: 0, tls: Some(tls), ..ServerOptions::default() };
    let engine = Arc::new(CpuEngine::new(EngineOptions::default()).unwrap());
    let autoencoder = Arc::new(Autoencoder::new(Model::embedded().unwrap(), engine));
    let models = vec![ModelEntry { name: "small".into(), autoencoder }];
    let server = Server::bind(options, models).await.unwrap();
    let address = server.address();
    tokio::spawn(server.run());
    let latents = Tensor::from_f32(vec![1, 4, 1, 1], Dtype::Float32, &[0.0; 4]).unwrap();
    let ask = async |url: String| {
        let client = Client::builder(url).retries(0).build().unwrap();
        client.decode(&latents, &DecodeOptions::default()).await.unwrap_err().to_string()
    };
    assert_eq!(
        ask(format!("http://{address}/small")).await,
        format!("The server at http://{address}/small speaks https, not http: use https://{address}/small.")
    );
    let text = ask(format!("https://{address}")).await;
    assert!(text.contains("is not trusted") && text.contains("SSL_CERT_FILE"), "{text}");
}

#[allow(dead_code)] // `main` is for those who run it as a program
#[path = "../../examples/round_trip.rs"]
mod round_trip;

#[test]
fn the_example_makes_a_picture() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (url, handle) = runtime.block_on(serve(vec![]));
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("photo.png"), folder.path().join("out.png"));
    std::fs::write(&input, png()).unwrap();
    round_trip::run(&url, &input, &output).unwrap();
    let made = media::decode_image(&std::fs::read(&output).unwrap(), &limits()).unwrap();
    assert!(media::psnr(&made.pixels, &photo().pixels) > 20.0);
    handle.shutdown();
}

#[test]
fn the_blocking_client_does_the_same() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (url, handle) = runtime.block_on(serve(vec![]));
    let client = blocking::Client::from_builder(Client::builder(&url).retries(0)).unwrap();
    assert!(client.is_ready().unwrap());
    let latents = Tensor::from_f32(vec![1, 4, 2, 2], Dtype::BFloat16, &[0.5; 16]).unwrap();
    let reply = client.decode(&latents, &DecodeOptions::new(Output::Png)).unwrap();
    assert_eq!(media::decode_image(&reply.file().unwrap(), &limits()).unwrap().width, 16);
    let wrong = Tensor::from_f32(vec![1, 5, 2, 2], Dtype::BFloat16, &[0.5; 20]).unwrap();
    let error = client.decode(&wrong, &DecodeOptions::default()).unwrap_err();
    assert!(matches!(&error, ClientError::Refused { status: 400, .. }), "{error}");
    handle.shutdown();
    let error = client.decode(&latents, &DecodeOptions::default()).unwrap_err();
    let gone = matches!(
        &error,
        ClientError::Refused { status: 503, .. }
            | ClientError::Unreachable { .. }
            | ClientError::Connection { .. }
    );
    assert!(gone, "{error}");
}
