//! The API below `/v1`: models, safetensors bodies, and jobs that are fetched later.

use std::time::{Duration, Instant};

use remote_vae_server::{ApiKey, ServerOptions};
use remote_vae_wire::Dtype;
use reqwest::{Method, Response};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::support::*;

const SHAPE: [usize; 4] = [1, 4, 4, 6];
/// Work that takes the engine a good while, in many steps.
const LONG: [usize; 4] = [16, 4, 96, 96];

fn path(base: &str, shape: &[usize]) -> String {
    format!("{base}?output_type=pt&{}", tensor_query(shape, Dtype::Float16))
}

impl TestServer {
    async fn post_job(&self, shape: &[usize]) -> Response {
        self.post(&path("/v1/jobs", shape), latents(shape, 70).0).send().await.unwrap()
    }

    async fn ask(&self, method: Method, path: &str) -> Response {
        self.http.request(method, self.url(path)).send().await.unwrap()
    }

    /// Waits for a job to leave the queue and the engine.
    async fn ended(&self, location: &str) -> Value {
        let start = Instant::now();
        loop {
            let status = json(self.ask(Method::GET, location).await).await;
            if status["state"] == "done" || status["state"] == "failed" {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "{status}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn location(response: &Response) -> String {
    assert_eq!(response.status(), 202);
    response.headers()["location"].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gives_the_bytes_of_the_direct_way() {
    let server = TestServer::start().await;
    let direct = server.post(&path("/", &SHAPE), latents(&SHAPE, 70).0).send().await.unwrap();
    let (shape, direct) = (direct.headers()["shape"].clone(), direct.bytes().await.unwrap());
    let location = location(&server.post_job(&SHAPE).await);
    let status = server.ended(&location).await;
    assert_eq!((&status["state"], &status["progress"]), (&"done".into(), &1.0.into()));
    assert!(status["expires_in_seconds"].as_f64().unwrap() > 500.0);
    for _ in 0..2 {
        let result = server.ask(Method::GET, &format!("{location}/result")).await;
        assert_eq!((result.status().as_u16(), &result.headers()["shape"]), (200, &shape));
        assert_eq!(result.headers()["dtype"], "float16");
        assert!(result.headers().contains_key("x-remote-vae-engine"));
        assert!(result.bytes().await.unwrap() == direct);
    }
    let response = server.ask(Method::GET, &format!("{location}/events")).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let events = response.text().await.unwrap();
    assert!(events.starts_with("event: end\ndata: {") && events.contains("\"state\":\"done\""), "{events}");
    assert_eq!(server.ask(Method::DELETE, &location).await.status(), 204);
    assert_eq!(refusal(server.ask(Method::GET, &location).await).await.0, 404);
    let info = json(server.ask(Method::GET, "/info").await).await;
    assert_eq!((&info["queue"]["answer_bytes"], &info["queue"]["jobs"]), (&0.into(), &0.into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_progress_and_deleting_stops_the_work() {
    let server = TestServer::start().await;
    let location = location(&server.post_job(&LONG).await);
    server.until_queue(0, 1).await;
    let response = server.ask(Method::GET, &format!("{location}/result")).await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(refusal(response).await.0, 409);
    let mut events = server.ask(Method::GET, &format!("{location}/events")).await;
    let mut progress = Vec::new();
    let mut text = String::new();
    while progress.len() < 3 {
        text.push_str(std::str::from_utf8(&events.chunk().await.unwrap().unwrap()).unwrap());
        let lines = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let states: Vec<Value> = lines.filter_map(|line| serde_json::from_str(line).ok()).collect();
        progress = states.iter().map(|state| state["progress"].as_f64().unwrap()).collect();
    }
    assert!(text.starts_with("event: progress\n"));
    assert!(progress.is_sorted() && progress[2] > progress[0] && progress[2] < 1.0, "{progress:?}");
    assert_eq!(server.ask(Method::DELETE, &location).await.status(), 204);
    server.until_queue(0, 0).await;
    assert!(events.text().await.unwrap().ends_with("event: end\ndata: {\"state\":\"deleted\"}\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_bounded_and_expire() {
    let mut options = ServerOptions { job_ttl: Duration::from_secs(6), ..options() };
    options.limits.max_jobs = 1;
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let first = location(&server.post_job(&SHAPE).await);
    let response = server.post_job(&SHAPE).await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(refusal(response).await.0, 429);
    server.ended(&first).await;
    tokio::time::sleep(Duration::from_millis(6050)).await;
    assert_eq!(refusal(server.ask(Method::GET, &first).await).await.0, 404);
    location(&server.post_job(&SHAPE).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_cannot_have_all_jobs() {
    let mut options = ServerOptions { api_keys: vec![ApiKey::new("one"), ApiKey::new("two")], ..options() };
    options.limits.max_jobs = 4;
    let server = TestServer::with(options, vec![("default", kl())]).await;
    for (key, status) in [("one", 202), ("one", 202), ("one", 202), ("one", 429), ("two", 202), ("two", 429)]
    {
        let request = server.post(&path("/v1/jobs", &SHAPE), latents(&SHAPE, 75).0).bearer_auth(key);
        assert_eq!(request.send().await.unwrap().status(), status, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_jobs_are_refused_at_once_and_late_ones_fail() {
    let server = TestServer::with(options(), vec![("default", kl()), ("tiny", tiny())]).await;
    for (path, status) in [
        ("/v1/jobs?shape=1", 400),
        ("/v1/jobs?operation=paint", 400),
        ("/v1/jobs?model=none", 404),
        ("/v1/jobs?model=a&model=b", 400),
        ("/v1/decode?model=none", 404),
    ] {
        assert_eq!(refusal(server.post(path, "x").send().await.unwrap()).await.0, status, "{path}");
    }
    for (method, path, status) in [
        (Method::GET, "/v1/jobs", 405),
        (Method::PUT, "/v1/jobs/x", 405),
        (Method::GET, "/v1/decode", 405),
        (Method::GET, "/v1/jobs/0123456789abcdef", 404),
        (Method::GET, "/v1/jobs/%ff/result", 400),
        (Method::DELETE, "/v1/jobs/..%2f..", 404),
    ] {
        assert_eq!(refusal(server.ask(method, path).await).await.0, status, "{path}");
    }
    let running = location(&server.post_job(&LONG).await);
    server.until_queue(0, 1).await;
    let request = server.post(&path("/v1/jobs", &LONG), latents(&LONG, 71).0);
    let late = location(&request.header("x-request-timeout-ms", "30").send().await.unwrap());
    let status = server.ended(&late).await;
    assert!(status["state"] == "failed" && status["error"].as_str().unwrap().contains("0.03"), "{status}");
    assert_eq!(refusal(server.ask(Method::GET, &format!("{late}/result")).await).await.0, 504);
    server.ask(Method::DELETE, &running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_belongs_to_its_key() {
    let options = ServerOptions { api_keys: vec![ApiKey::new("one"), ApiKey::new("two")], ..options() };
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let request = server.post(&path("/v1/jobs", &SHAPE), latents(&SHAPE, 72).0).bearer_auth("one");
    let location = location(&request.send().await.unwrap());
    for (key, status) in [("two", 404), ("three", 401)] {
        for suffix in ["", "/events", "/result"] {
            let asking = server.http.get(server.url(&format!("{location}{suffix}"))).bearer_auth(key);
            assert_eq!(refusal(asking.send().await.unwrap()).await.0, status);
        }
    }
    let own = server.http.get(server.url(&location)).bearer_auth("one").send().await.unwrap();
    assert_eq!(own.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_travel_as_safetensors() {
    let server = TestServer::with(options(), vec![("default", kl()), ("tiny", tiny())]).await;
    let models = json(server.ask(Method::GET, "/v1/models").await).await;
    assert_eq!(models["models"][1]["name"], "tiny");
    assert_eq!(models["models"][0]["latent_channels"], 4);
    let document = json(server.ask(Method::GET, "/v1/openapi.json").await).await;
    assert!(document["paths"]["/v1/jobs/{id}"]["delete"].is_object());

    let (body, _) = latents(&SHAPE, 73);
    let view = TensorView::new(safetensors::Dtype::F16, SHAPE.to_vec(), &body).unwrap();
    let file = safetensors::serialize([("latents", view)], None).unwrap();
    let kind = "application/x-safetensors";
    let request =
        server.post("/v1/decode?model=tiny", file).header("content-type", kind).header("accept", kind);
    let response = request.send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["content-type"]),
        (200, &kind.parse().unwrap())
    );
    let answer = response.bytes().await.unwrap();
    let pixels = SafeTensors::deserialize(&answer).unwrap();
    let pixels = pixels.tensor("pixels").unwrap();
    assert_eq!((pixels.shape(), pixels.dtype()), (&[1, 3, 32, 48][..], safetensors::Dtype::F16));
    let plain = server.post(&path("/tiny", &SHAPE), body).send().await.unwrap().bytes().await.unwrap();
    assert!(pixels.data() == plain);

    let view = TensorView::new(safetensors::Dtype::F16, vec![1, 3, 32, 48], pixels.data()).unwrap();
    let file = safetensors::serialize([("pixels", view)], None).unwrap();
    let request = server.post("/v1/encode", file).header("content-type", kind).header("accept", kind);
    let answer = request.send().await.unwrap().bytes().await.unwrap();
    let file = SafeTensors::deserialize(&answer).unwrap();
    assert_eq!(file.tensor("latents").unwrap().shape(), SHAPE);
    // What is no tensor stays what it is.
    let request = server.post(&path("/v1/decode", &SHAPE), latents(&SHAPE, 74).0);
    let response = request.header("accept", "image/png").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "image/png");
}
