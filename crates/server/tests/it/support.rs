//! Small models, servers on free ports, and the client's side of the protocol.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, Once};
use std::time::{Duration, Instant};

use remote_vae_engine::{Autoencoder, CpuEngine, EngineOptions};
use remote_vae_model::checkpoint::Checkpoint;
use remote_vae_model::config::ConfigFile;
use remote_vae_model::{Factors, Graph, Model, Normalisation, autoencoder_kl, autoencoder_tiny};
use remote_vae_server::{ModelEntry, Server, ServerError, ServerHandle, ServerOptions};
use remote_vae_wire::{Dtype, bytes_from_elements, elements_from_bytes};
use reqwest::{RequestBuilder, Response};
use serde_json::{Map, Value, json};
use tokio::task::JoinHandle;

/// A linear congruential generator; -1 to 1.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// A safetensors file with weights for the graphs that keep activations of about one.
fn random_checkpoint(graphs: &[Graph]) -> Vec<u8> {
    let mut random = Random::new(1);
    let (mut header, mut data) = (Map::new(), Vec::new());
    for spec in graphs.iter().flat_map(|graph| &graph.weights) {
        let count: usize = spec.shape.iter().product();
        let fan_in: usize = spec.shape.iter().skip(1).product();
        let is_norm = spec.name.contains("norm") && spec.name.ends_with("weight");
        let scale = if is_norm { 0.2 } else { (3.0 / fan_in.max(1) as f32).sqrt().min(0.3) };
        let begin = data.len();
        for value in random.values(count) {
            data.extend((value * scale + f32::from(is_norm)).to_le_bytes());
        }
        let entry = json!({"dtype": "F32", "shape": spec.shape, "data_offsets": [begin, data.len()]});
        header.insert(spec.name.clone(), entry);
    }
    let header = Value::Object(header).to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// The engine all models share.
pub(crate) fn engine() -> Arc<CpuEngine> {
    static ENGINE: LazyLock<Arc<CpuEngine>> = LazyLock::new(|| {
        let options = EngineOptions { threads: Some(2), ..EngineOptions::default() };
        Arc::new(CpuEngine::new(options).unwrap())
    });
    Arc::clone(&ENGINE)
}

fn model(graphs: Vec<Graph>, config: &Value) -> Arc<Autoencoder> {
    let bytes: &'static [u8] = Box::leak(random_checkpoint(&graphs).into_boxed_slice());
    let checkpoint = Checkpoint::from_static("random", bytes).unwrap();
    let model = Model::from_checkpoint(checkpoint, Some(&config.to_string()), "random").unwrap();
    Arc::new(Autoencoder::new(model, engine()))
}

/// Like Stable Diffusion's, but a few channels wide: 8 times down, 4 latent channels. `more` adds to its config.
pub(crate) fn kl_with(more: Value) -> Arc<Autoencoder> {
    let mut config = json!({
        "_class_name": "AutoencoderKL", "block_out_channels": [8, 8, 8, 16], "layers_per_block": 1,
        "norm_num_groups": 4, "latent_channels": 4, "scaling_factor": 0.5,
        "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let parsed = ConfigFile::parse(&config.to_string()).unwrap().kl().unwrap();
    model(vec![autoencoder_kl::decoder(&parsed), autoencoder_kl::encoder(&parsed)], &config)
}

pub(crate) fn kl() -> Arc<Autoencoder> {
    static MODEL: LazyLock<Arc<Autoencoder>> = LazyLock::new(|| kl_with(json!({})));
    Arc::clone(&MODEL)
}

/// Has a shift, as Flux's has.
pub(crate) fn shifted() -> Arc<Autoencoder> {
    static MODEL: LazyLock<Arc<Autoencoder>> = LazyLock::new(|| kl_with(json!({"shift_factor": 0.25})));
    Arc::clone(&MODEL)
}

/// Has a mean and a deviation for each channel, as Playground's has.
pub(crate) fn per_channel() -> Arc<Autoencoder> {
    static MODEL: LazyLock<Arc<Autoencoder>> = LazyLock::new(|| {
        kl_with(json!({"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.0, 2.0, 0.5, 1.5]}))
    });
    Arc::clone(&MODEL)
}

pub(crate) fn tiny() -> Arc<Autoencoder> {
    static MODEL: LazyLock<Arc<Autoencoder>> = LazyLock::new(|| {
        let config = json!({
            "_class_name": "AutoencoderTiny", "latent_channels": 4,
            "encoder_block_out_channels": [8, 8, 8, 8], "decoder_block_out_channels": [8, 8, 8, 8],
            "num_encoder_blocks": [1, 1, 1, 1], "num_decoder_blocks": [1, 1, 1, 1],
        });
        let parsed = ConfigFile::parse(&config.to_string()).unwrap().tiny().unwrap();
        model(vec![autoencoder_tiny::decoder(&parsed), autoencoder_tiny::encoder(&parsed)], &config)
    });
    Arc::clone(&MODEL)
}

/// The tiny model, known to stand in for an autoencoder with this scaling factor.
pub(crate) fn tiny_of_family(scaling_factor: f64) -> Arc<Autoencoder> {
    let mut model = tiny().model().clone();
    let family = Some(Factors { scaling_factor, shift_factor: None });
    model.latent_space.normalisation = Normalisation::Identity { family };
    Arc::new(Autoencoder::new(model, engine()))
}

pub(crate) use crate::http::PATIENCE;

/// A running server; dropping it stops it.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    pub(crate) handle: ServerHandle,
    pub(crate) task: JoinHandle<Result<(), ServerError>>,
    pub(crate) http: reqwest::Client,
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.task.abort();
    }
}

pub(crate) fn options() -> ServerOptions {
    ServerOptions { port: 0, ..ServerOptions::default() }
}

pub(crate) fn http_client() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap()
}

impl TestServer {
    /// Serves the plain model.
    pub(crate) async fn start() -> Self {
        Self::with(options(), vec![("default", kl())]).await
    }

    pub(crate) async fn with(options: ServerOptions, models: Vec<(&str, Arc<Autoencoder>)>) -> Self {
        let server = Self::starting(options, models).await;
        let ready = tokio::time::timeout(PATIENCE, server.handle.ready()).await;
        assert_eq!(ready, Ok(true), "the server did not become ready");
        server
    }

    /// Does not wait until it is ready.
    pub(crate) async fn starting(options: ServerOptions, models: Vec<(&str, Arc<Autoencoder>)>) -> Self {
        let models = models
            .into_iter()
            .map(|(name, autoencoder)| ModelEntry { name: name.to_owned(), autoencoder })
            .collect();
        let server = Server::bind(options, models).await.unwrap();
        let (address, handle) = (server.address(), server.shutdown_handle());
        Self { address, handle, task: tokio::spawn(server.run()), http: http_client() }
    }

    pub(crate) fn url(&self, path_and_query: &str) -> String {
        format!("http://{}{path_and_query}", self.address)
    }

    pub(crate) fn post(&self, path_and_query: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.http.post(self.url(path_and_query)).body(body)
    }

    /// What the current client sends for a raw tensor.
    pub(crate) async fn raw(&self, query: &str, body: Vec<u8>) -> Response {
        let request = self.post(&format!("/?{query}"), body);
        let request = request.header("content-type", "tensor/binary").header("accept", "tensor/binary");
        request.send().await.unwrap()
    }

    /// Waits until this many requests wait and run.
    pub(crate) async fn until_queue(&self, waiting: u64, running: u64) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let info: Value = json(self.http.get(self.url("/info")).send().await.unwrap()).await;
            if info["queue"]["waiting"] == waiting && info["queue"]["running"] == running {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the queue never had {waiting} waiting and {running} running");
    }
}

pub(crate) async fn json(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

/// Status and message of a refusal, which must be the protocol's JSON.
pub(crate) async fn refusal(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert!(status >= 400, "{status}");
    assert_eq!(response.headers()["content-type"], "application/json");
    assert!(response.headers().contains_key("x-request-id"));
    let body = json(response).await;
    let message = body["error"].as_str().unwrap().to_owned();
    assert_eq!(body.as_object().unwrap().len(), 1);
    (status, message)
}

/// `shape=1&shape=4…&dtype=…`.
pub(crate) fn tensor_query(shape: &[usize], dtype: Dtype) -> String {
    let shape: String = shape.iter().map(|side| format!("shape={side}&")).collect();
    format!("{shape}dtype={dtype}")
}

/// Random latents as float16, and the values that float16 holds.
pub(crate) fn latents(shape: &[usize], seed: u64) -> (Vec<u8>, Vec<f32>) {
    let values = Random::new(seed).values(shape.iter().product());
    let bytes = bytes_from_elements(Dtype::Float16, &values);
    let values = elements_from_bytes(Dtype::Float16, &bytes);
    (bytes, values)
}
