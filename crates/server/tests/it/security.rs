//! Keys with limits, TLS, pages of other origins, faults of the engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use remote_vae_engine::Autoencoder;
use remote_vae_server::{ApiKey, Server, ServerOptions, TlsFiles};
use remote_vae_wire::Dtype;
use reqwest::{Certificate, Method, Response};

use crate::hooked::{Hooked, Hooks};
use crate::support::*;

const SHAPE: [usize; 4] = [1, 4, 4, 4];

fn path(shape: &[usize]) -> String {
    format!("/?output_type=pt&{}", tensor_query(shape, Dtype::Float16))
}

impl TestServer {
    async fn decode_as(&self, key: &str, shape: &[usize]) -> Response {
        self.post(&path(shape), latents(shape, 80).0).bearer_auth(key).send().await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_have_limits_and_change_while_the_server_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "small name=small megapixels=1\nslow per-minute=2\n").unwrap();
    let options = ServerOptions { api_key_file: Some(file.clone()), private_info: true, ..options() };
    let server = TestServer::with(options, vec![("default", kl())]).await;
    assert_eq!(server.decode_as("small", &SHAPE).await.status(), 200);
    let (status, message) = refusal(server.decode_as("small", &[2, 4, 100, 100]).await).await;
    assert!(status == 413 && message.contains("1048576"), "{message}");
    for expected in [200, 200, 429] {
        let response = server.decode_as("slow", &SHAPE).await;
        assert_eq!(response.status(), expected);
        assert_eq!(response.headers().contains_key("retry-after"), expected == 429);
    }
    for (path, open) in [("/info", false), ("/metrics", false), ("/health", true), ("/livez", true)] {
        let without = server.http.get(server.url(path)).send().await.unwrap();
        assert_eq!(without.status().as_u16(), if open { 200 } else { 401 }, "{path}");
        let with = server.http.get(server.url(path)).bearer_auth("small").send().await.unwrap();
        assert_eq!(with.status(), 200);
    }
    std::fs::write(&file, "another\n").unwrap();
    while server.decode_as("another", &SHAPE).await.status() != 200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(refusal(server.decode_as("small", &SHAPE).await).await.0, 401);
}

fn tls_files() -> TlsFiles {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls"));
    TlsFiles { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_when_there_is_a_certificate() {
    let options =
        ServerOptions { tls: Some(tls_files()), header_timeout: Duration::from_secs(3), ..options() };
    let server = TestServer::with(options, vec![("default", kl())]).await;
    http_client();
    let certificate = Certificate::from_pem(&std::fs::read(tls_files().certificate).unwrap()).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([certificate]).build().unwrap();
    let url = format!("https://{}{}", server.address, path(&SHAPE));
    let answer = client.post(url).body(latents(&SHAPE, 81).0).send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.bytes().await.unwrap().len()), (200, 3 * 32 * 32 * 2));
    // Neither plain HTTP nor a handshake that never comes is waited for.
    assert!(server.http.get(server.url("/health")).send().await.is_err());
    let mut silent = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let mut buffer = [0; 16];
    let reading = tokio::io::AsyncReadExt::read(&mut silent, &mut buffer);
    assert!(matches!(tokio::time::timeout(PATIENCE, reading).await, Ok(Ok(0) | Err(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_files_are_told_at_the_start() {
    let started = async |change: &dyn Fn(&mut ServerOptions)| {
        let mut options = options();
        change(&mut options);
        let models = vec![remote_vae_server::ModelEntry { name: "default".into(), autoencoder: kl() }];
        Server::bind(options, models).await.err().map(|error| error.to_string())
    };
    let missing = PathBuf::from("/nowhere/keys");
    let error = started(&|options| options.api_key_file = Some(missing.clone())).await.unwrap();
    assert!(error.contains("/nowhere/keys"), "{error}");
    let swapped = TlsFiles { certificate: tls_files().key, key: tls_files().certificate };
    let error = started(&|options| options.tls = Some(swapped.clone())).await.unwrap();
    assert!(error.contains("key.pem"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_need_leave() {
    let origin = "https://page.example";
    let server = TestServer::start().await;
    let post = |server: &TestServer, origin: &str| {
        server.post(&path(&SHAPE), latents(&SHAPE, 82).0).header("origin", origin.to_owned()).send()
    };
    let (status, message) = refusal(post(&server, origin).await.unwrap()).await;
    assert!(status == 403 && message.contains(origin), "{message}");
    assert_eq!(post(&server, &server.url("")).await.unwrap().status(), 200);
    let read = server.http.get(server.url("/info")).header("origin", origin).send().await.unwrap();
    assert!(read.status() == 200 && !read.headers().contains_key("access-control-allow-origin"));

    let options = ServerOptions { cors_origins: vec![origin.to_owned()], ..options() };
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let answer = post(&server, origin).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["access-control-allow-origin"]),
        (200, &origin.parse().unwrap())
    );
    assert!(answer.headers()["access-control-expose-headers"].to_str().unwrap().contains("shape"));
    let asks = server.http.request(Method::OPTIONS, server.url("/")).header("origin", origin);
    let asked = asks.header("access-control-request-method", "POST").send().await.unwrap();
    assert_eq!(asked.status(), 204);
    assert!(asked.headers()["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    assert_eq!(refusal(post(&server, "https://other.example").await.unwrap()).await.0, 403);
}

/// A model whose engine panics once, at the first run after it was armed.
fn faulty(armed: &Arc<AtomicBool>) -> Arc<Autoencoder> {
    let armed = Arc::clone(armed);
    let engine = Hooked::new(Hooks {
        before_run: Box::new(move || {
            assert!(!armed.swap(false, Ordering::SeqCst), "a fault of the engine, on purpose");
        }),
        ..Hooks::default()
    });
    Arc::new(Autoencoder::new(kl().model().clone(), engine))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_engine_is_one_500_and_the_next_request_is_served() {
    let armed = Arc::new(AtomicBool::new(false));
    let server = TestServer::with(options(), vec![("default", faulty(&armed))]).await;
    let decode = || server.post(&path(&SHAPE), latents(&SHAPE, 83).0).send();
    let before = decode().await.unwrap().bytes().await.unwrap();
    armed.store(true, Ordering::SeqCst);
    let (status, message) = refusal(decode().await.unwrap()).await;
    assert!(status == 500 && !message.contains("on purpose"), "{message}");
    assert!(decode().await.unwrap().bytes().await.unwrap() == before);
    let metrics = server.http.get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.lines().any(|line| line == "rvae_worker_restarts_total 1"), "{metrics}");
    assert_eq!(server.http.get(server.url("/health")).send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_server_that_fails_to_start() {
    let model = faulty(&Arc::new(AtomicBool::new(true)));
    let mut server = TestServer::starting(options(), vec![("default", model)]).await;
    assert_eq!(tokio::time::timeout(PATIENCE, server.handle.ready()).await, Ok(false));
    assert!((&mut server.task).await.unwrap().is_err());

    let models = vec![remote_vae_server::ModelEntry { name: "default".into(), autoencoder: kl() }];
    let server = Server::bind(options(), models).await.unwrap();
    let handle = server.shutdown_handle();
    drop(server);
    assert!(!handle.ready().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_key_does_not_starve_another() {
    let mut options =
        ServerOptions { api_keys: vec![ApiKey::new("flood"), ApiKey::new("other")], ..options() };
    options.limits.max_queue = 16;
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let middle = [8, 4, 64, 64];
    let flood: Vec<_> = (0..24)
        .map(|_| {
            let request = server.post(&path(&middle), latents(&middle, 84).0).bearer_auth("flood").send();
            tokio::spawn(async move { (request.await.unwrap().status().as_u16(), std::time::Instant::now()) })
        })
        .collect();
    let waiting = async || {
        let info = json(server.http.get(server.url("/info")).send().await.unwrap()).await;
        info["queue"]["waiting"].as_u64().unwrap()
    };
    while waiting().await < 8 {
        assert!(!flood.iter().all(|request| request.is_finished()), "the flood was too thin");
    }
    let response = server.decode_as("other", &middle).await;
    let answered = std::time::Instant::now();
    assert_eq!(response.status(), 200);
    let mut later = 0;
    for request in flood {
        let (status, at) = request.await.unwrap();
        assert!(status == 200 || status == 429, "{status}");
        later += usize::from(status == 200 && at > answered);
    }
    assert!(later >= 4, "only {later} of the flood came after the other's");
}
