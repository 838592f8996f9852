//! What the log says of a request, and what it must not say.

use std::io::Write;
use std::sync::{Arc, Mutex};

use remote_vae_server::{ApiKey, ServerOptions};
use remote_vae_wire::Dtype;

use crate::support::*;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_line_a_request_without_its_contents() {
    let buffer = Buffer::default();
    let writer = buffer.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let options = ServerOptions { api_keys: vec![ApiKey::new("hidden-key")], ..options() };
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let shape = [1, 4, 2, 2];
    let query = tensor_query(&shape, Dtype::Float16);
    for (key, id) in [("hidden-key", "log-test-good"), ("hidden-guess", "log-test-bad")] {
        let request =
            server.post(&format!("/predict/?output_type=pt&{query}&note=hidden-note"), latents(&shape, 60).0);
        let request = request.bearer_auth(key).header("x-request-id", id).header("cookie", "hidden-cookie");
        request.send().await.unwrap();
    }
    let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
    let ours: Vec<&str> = text.lines().filter(|line| line.contains("remote_vae")).collect();
    assert!(ours.iter().all(|line| !line.contains("hidden")), "{ours:#?}");
    let line = |id: &str| {
        let mut found = ours.iter().filter(|line| line.contains(id));
        let line = *found.next().unwrap();
        assert!(found.next().is_none());
        line
    };
    for word in ["INFO", "method=POST", "path=\"/predict/\"", "status=200", "model=\"default\"", "engine_ms="]
    {
        assert!(line("log-test-good").contains(word), "no {word} in {}", line("log-test-good"));
    }
    assert!(
        line("log-test-good").contains("request_bytes=32 response_bytes=1536"),
        "{}",
        line("log-test-good")
    );
    assert!(line("log-test-bad").contains("status=401"));
}

/// A collector's end: the spans that it was sent.
#[cfg(feature = "otlp")]
async fn collector() -> (String, tokio::sync::mpsc::UnboundedReceiver<serde_json::Value>) {
    let (sender, spans) = tokio::sync::mpsc::unbounded_channel();
    let take = move |body: String| {
        let batch: serde_json::Value = serde_json::from_str(&body).unwrap();
        for span in batch["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap() {
            sender.send(span.clone()).unwrap();
        }
        async { axum::Json(serde_json::json!({})) }
    };
    let router = axum::Router::new().route("/v1/traces", axum::routing::post(take));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, spans)
}

#[cfg(feature = "otlp")]
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_a_span_of_each_request() {
    let (address, mut spans) = collector().await;
    let options = ServerOptions { otlp_endpoint: Some(address), ..options() };
    let mut server = TestServer::with(options, vec![("default", kl())]).await;
    let shape = [1, 4, 2, 2];
    let path = format!("/?output_type=pt&note=hidden-note&{}", tensor_query(&shape, Dtype::Float16));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    for (path, flags, status) in [(&path[..], "01", 200), (&path, "00", 200), ("/?shape=x", "01", 400)] {
        let request = server.post(path, latents(&shape, 61).0);
        let parent = format!("00-{trace}-00f067aa0ba902b7-{flags}");
        assert_eq!(request.header("traceparent", parent).send().await.unwrap().status(), status);
    }
    // What waits is sent before the server ends.
    server.handle.shutdown();
    (&mut server.task).await.unwrap().unwrap();
    let mut statuses = Vec::new();
    for _ in 0..2 {
        let span = tokio::time::timeout(PATIENCE, spans.recv()).await.unwrap().unwrap();
        assert_eq!((&span["traceId"], &span["parentSpanId"]), (&trace.into(), &"00f067aa0ba902b7".into()));
        assert!(!span.to_string().contains("hidden"), "{span}");
        let attributes = span["attributes"].as_array().unwrap();
        let status = attributes.iter().find(|pair| pair["key"] == "http.response.status_code").unwrap();
        statuses.push(status["value"]["intValue"].as_str().unwrap().to_owned());
    }
    assert_eq!(statuses, ["200", "400"]);
    assert!(spans.try_recv().is_err());

    let wrong =
        ServerOptions { otlp_endpoint: Some("https://collector".to_owned()), ..ServerOptions::default() };
    let models = vec![remote_vae_server::ModelEntry { name: "default".into(), autoencoder: kl() }];
    let error = remote_vae_server::Server::bind(wrong, models).await.err().unwrap().to_string();
    assert!(error.contains("otlp_endpoint") && error.contains("https://collector"), "{error}");
}
