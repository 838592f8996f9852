// A server for the tests and for the examples in the documentation, which include this file.

use std::sync::{Arc, LazyLock};

use remote_vae_engine::{Autoencoder, CpuEngine, EngineOptions};
use remote_vae_media as media;
use remote_vae_model::Model;
use remote_vae_server::{ApiKey, ModelEntry, Server, ServerHandle, ServerOptions};

/// The address of a server with the embedded model, `small`, that runs until its handle is used.
pub(crate) async fn serve(api_keys: Vec<ApiKey>) -> (String, ServerHandle) {
    static MODEL: LazyLock<Arc<Autoencoder>> = LazyLock::new(|| {
        let engine = CpuEngine::new(EngineOptions::default()).unwrap();
        Arc::new(Autoencoder::new(Model::embedded().unwrap(), Arc::new(engine)))
    });
    let options = ServerOptions { port: 0, api_keys, ..ServerOptions::default() };
    let models = vec![ModelEntry { name: "small".into(), autoencoder: Arc::clone(&MODEL) }];
    let server = Server::bind(options, models).await.unwrap();
    let (url, handle) = (format!("http://{}", server.address()), server.shutdown_handle());
    tokio::spawn(server.run());
    assert!(handle.ready().await);
    (url, handle)
}

/// A smooth picture, 64 by 48.
#[allow(dead_code)] // not every example wants a picture
pub(crate) fn photo() -> media::RgbImage {
    let (width, height) = (64, 48);
    let pixel = |x: usize, y: usize| [40 + 2 * x as u8, 60 + 3 * y as u8, 200 - x as u8 - y as u8];
    let pixels = (0..width * height).flat_map(|index| pixel(index % width, index / width)).collect();
    media::RgbImage { width, height, pixels }
}

/// [`photo`] as a file.
#[allow(dead_code)]
pub(crate) fn png() -> Vec<u8> {
    let media::RgbImage { width, height, pixels } = photo();
    media::encode_png(&pixels, width, height).unwrap()
}
