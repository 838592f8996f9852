//! The server as a service: health, information, the queue, clients that leave, deadlines, shutdown.

use std::sync::Arc;
use std::time::Duration;

use remote_vae_engine::Autoencoder;
use remote_vae_server::ServerOptions;
use remote_vae_wire::Dtype;
use reqwest::Method;

use crate::hooked::{Gate, Hooked};
use crate::support::*;

const SMALL: [usize; 4] = [1, 4, 4, 4];

/// Work that takes the engine a good while, in many steps that can be cancelled between.
const LONG: [usize; 4] = [16, 4, 96, 96];

/// Half as much: too much to run between the steps of the other, so that it waits.
const HALF: [usize; 4] = [8, 4, 96, 96];

fn path(shape: &[usize]) -> String {
    format!("/?output_type=pt&{}", tensor_query(shape, Dtype::Float16))
}

impl TestServer {
    /// Posts latents of this shape from a task of its own.
    fn spawn(&self, shape: &[usize]) -> tokio::task::JoinHandle<reqwest::Result<reqwest::Response>> {
        tokio::spawn(self.post(&path(shape), latents(shape, 50).0).send())
    }

    async fn text(&self, path: &str) -> (u16, String) {
        let response = self.http.get(self.url(path)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }
}

fn queue_of(max_queue: usize) -> ServerOptions {
    let mut options = options();
    options.limits.max_queue = max_queue;
    options
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_information() {
    let server = TestServer::with(options(), vec![("default", kl()), ("tiny", tiny())]).await;
    let probes =
        ["/", "/health", "/health/", "/ping", "/readyz", "/livez", "/v2/health/live", "/v2/health/ready"];
    for probe in probes {
        let response = server.http.get(server.url(probe)).send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!((response.status().as_u16(), response.text().await.unwrap().as_str()), (200, "Ok"));
        let head = server.http.request(Method::HEAD, server.url(probe)).send().await.unwrap();
        assert_eq!(head.status(), 200, "{probe}");
    }
    let info = json(server.http.get(server.url("/info")).send().await.unwrap()).await;
    assert_eq!(info["state"], "ready");
    assert_eq!(info["models"][0]["name"], "default");
    assert_eq!(info["models"][1]["path"], "/tiny");
    assert!(info["models"][0]["engine"].as_str().unwrap().starts_with("cpu/"));
    assert!(info["models"][0]["description"].is_object());
    assert_eq!(info["limits"]["max_queue"], 64);

    server.post(&path(&SMALL), latents(&SMALL, 51).0).send().await.unwrap();
    let (_, metrics) = server.text("/metrics").await;
    for line in [
        "rvae_requests_total{op=\"decode\",model=\"default\",code=\"200\"} 1",
        "rvae_engine_seconds_count{op=\"decode\",model=\"default\"} 1",
        "rvae_encode_output_seconds_count{format=\"float16\"} 1",
        "rvae_pixels_total 1024",
        "rvae_capacity 64",
        "inf_batch_current_size 0",
        "inf_queue_size 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no `{line}` in\n{metrics}");
    }
    assert!(metrics.contains("rvae_build_info{") && metrics.contains("rvae_model_load_seconds_count"));
}

#[tokio::test(flavor = "multi_thread")]
async fn request_ids_come_back() {
    let server = TestServer::start().await;
    let own = server.post("/", "").header("x-request-id", "abc-123").send().await.unwrap();
    assert_eq!(own.headers()["x-request-id"], "abc-123");
    let strange = server.post("/", "").header("x-request-id", "a b\"c").send().await.unwrap();
    assert_ne!(strange.headers()["x-request-id"], "a b\"c");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_and_leavers_free_their_places() {
    let server = TestServer::with(queue_of(1), vec![("default", kl())]).await;
    let running = server.spawn(&LONG);
    server.until_queue(0, 1).await;
    let waiting = server.spawn(&HALF);
    server.until_queue(1, 1).await;

    let response = server.post(&path(&SMALL), latents(&SMALL, 52).0).send().await.unwrap();
    let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3600).contains(&wait));
    assert_eq!(refusal(response).await.0, 429);
    // Full as it is, it answers probes while the engine is at work.
    assert_eq!(server.text("/health").await.0, 200);
    server.until_queue(1, 1).await;

    waiting.abort();
    server.until_queue(0, 1).await;
    let next = server.spawn(&HALF);
    server.until_queue(1, 1).await;
    running.abort();
    assert_eq!(next.await.unwrap().unwrap().status(), 200);
    let (_, metrics) = server.text("/metrics").await;
    for line in [
        "rvae_cancelled_total{stage=\"queued\"} 1",
        "rvae_cancelled_total{stage=\"running\"} 1",
        "rvae_rejected_total{reason=\"overloaded\"} 1",
        "rvae_requests_total{op=\"decode\",model=\"default\",code=\"499\"} 2",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no `{line}` in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn first_come_first_served() {
    let gate = Arc::default();
    let model = Arc::new(Autoencoder::new(kl().model().clone(), Hooked::behind(&gate)));
    let server = TestServer::with(options(), vec![("default", model)]).await;
    let closed = Gate::close(&gate);
    let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
    for number in 0..6_u64 {
        let (request, sender) = (server.spawn(&SMALL), sender.clone());
        server.until_queue(number, 1).await;
        tokio::spawn(async move {
            let status = request.await.unwrap().unwrap().status();
            sender.send((number, status.as_u16())).unwrap();
        });
    }
    for number in 0..6 {
        closed.pass();
        let next = tokio::time::timeout(PATIENCE, order.recv()).await.expect("the next one is served");
        assert_eq!(next, Some((number, 200)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_get_their_own_answers() {
    let server = TestServer::start().await;
    let expected: Vec<Vec<u8>> = {
        let mut all = Vec::new();
        for seed in 0..8 {
            let response = server.post(&path(&SMALL), latents(&SMALL, seed).0).send().await.unwrap();
            all.push(response.bytes().await.unwrap().to_vec());
        }
        all
    };
    let requests: Vec<_> = (0..40)
        .map(|index| {
            let seed = index % 8;
            (seed, tokio::spawn(server.post(&path(&SMALL), latents(&SMALL, seed).0).send()))
        })
        .collect();
    for (seed, request) in requests {
        let bytes = request.await.unwrap().unwrap().bytes().await.unwrap();
        assert!(bytes == expected[seed as usize], "{seed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_end_work() {
    let server = TestServer::start().await;
    let request = server.post(&path(&LONG), latents(&LONG, 53).0).header("x-request-timeout-ms", "50");
    let (status, message) = refusal(request.send().await.unwrap()).await;
    assert!(status == 504 && message.contains("0.05"), "{message}");
    let response = server.post(&path(&SMALL), latents(&SMALL, 53).0).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let request = server.post(&path(&SMALL), latents(&SMALL, 53).0).header("x-request-timeout-ms", "soon");
    assert_eq!(refusal(request.send().await.unwrap()).await.0, 400);

    let options = ServerOptions { request_timeout: Some(Duration::from_millis(50)), ..options() };
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let request = server.post(&path(&LONG), latents(&LONG, 53).0).header("x-request-timeout-ms", "100000");
    assert_eq!(refusal(request.send().await.unwrap()).await.0, 504);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_what_was_accepted() {
    let mut server = TestServer::start().await;
    let running = server.spawn(&[4, 4, 64, 64]);
    server.until_queue(0, 1).await;
    let waiting = server.spawn(&HALF);
    server.until_queue(1, 1).await;
    server.handle.shutdown();
    assert!(!server.handle.is_ready());
    for (path, status) in [("/readyz", 503), ("/health", 503), ("/livez", 200)] {
        assert_eq!(server.text(path).await.0, status, "{path}");
    }
    let response = server.post(&path(&SMALL), latents(&SMALL, 54).0).send().await.unwrap();
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(refusal(response).await.0, 503);
    for request in [running, waiting] {
        let response = request.await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        assert!(!response.bytes().await.unwrap().is_empty());
    }
    let ended = tokio::time::timeout(PATIENCE, &mut server.task).await.unwrap();
    assert!(ended.unwrap().is_ok());
    assert!(server.http.get(server.url("/livez")).send().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_drain_timeout_bounds_a_shutdown() {
    let options = ServerOptions { drain_timeout: Duration::from_millis(100), ..options() };
    let mut server = TestServer::with(options, vec![("default", kl())]).await;
    let (running, waiting) = (server.spawn(&LONG), server.spawn(&LONG));
    server.until_queue(1, 1).await;
    server.handle.shutdown();
    for request in [running, waiting] {
        let (status, message) = refusal(request.await.unwrap().unwrap()).await;
        assert_eq!(status, 503, "{message}");
    }
    let ended = tokio::time::timeout(PATIENCE, &mut server.task).await.unwrap();
    assert!(ended.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_loading_says_so() {
    // A fresh model, whose weights are read on the server's start.
    let models = vec![("default", kl_with(serde_json::json!({})))];
    let server = TestServer::starting(options(), models).await;
    let first = server.text("/health").await;
    assert!(first == (200, "Ok".to_owned()) || (first.0 == 503 && first.1.contains("loading")), "{first:?}");
    assert!(server.handle.ready().await);
    assert_eq!(server.text("/health").await, (200, "Ok".to_owned()));
}
