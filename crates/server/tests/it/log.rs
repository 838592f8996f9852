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
