//! The API below `/v1`: models, safetensors bodies, and jobs that are fetched later.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use remote_vae_engine::Autoencoder;
use remote_vae_media as media;
use remote_vae_model::Model;
use remote_vae_server::{ApiKey, ServerOptions};
use remote_vae_wire::Dtype;
use reqwest::{Method, Response};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json as object};

use crate::hooked::{Gate, Hooked, Hooks};
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
    let info = json(server.ask(Method::GET, "/info").await).await;
    assert_eq!(info["queue"]["answer_bytes"], direct.len());
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
    // The float16 answer, which is made of rows: the engine's output is never there as a whole.
    let info = json(server.ask(Method::GET, "/info").await).await;
    assert_eq!(info["queue"]["answer_bytes"], LONG[0] * 3 * LONG[2] * 8 * LONG[3] * 8 * 2);
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

/// The pixels of a PNG file, with width and height.
fn pixels(file: &[u8]) -> (Vec<u8>, usize, usize) {
    let limits = media::DecodeLimits { max_pixels: 1 << 16, max_bytes: 1 << 20 };
    let picture = media::decode_image(file, &limits).unwrap();
    (picture.pixels, picture.width, picture.height)
}

impl TestServer {
    /// The file of a job's preview, which its events tell first.
    async fn early(&self, location: &str) -> Vec<u8> {
        let status = json(self.ask(Method::GET, location).await).await;
        assert_eq!(status["preview"], true);
        let mut events = self.ask(Method::GET, &format!("{location}/events")).await;
        let mut first = Vec::new();
        while !first.windows(2).any(|end| end == b"\n\n") {
            first.extend(events.chunk().await.unwrap().expect("an event is whole"));
        }
        let first = std::str::from_utf8(&first).unwrap().strip_prefix("event: preview\ndata: ").unwrap();
        let told: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
        let data = told["image"].as_str().unwrap().strip_prefix("data:image/png;base64,").unwrap();
        let response = self.ask(Method::GET, &format!("{location}/preview")).await;
        assert_eq!(response.headers()["content-type"], "image/png");
        let file = response.bytes().await.unwrap();
        assert!(file == STANDARD.decode(data).unwrap());
        file.to_vec()
    }

    /// `output=preview` as bytes `[height, width, 3]` of every frame.
    async fn direct_preview(&self, path: &str, body: Vec<u8>) -> Vec<u8> {
        let path = format!("{path}&output=preview&partial_postprocess=True");
        let response = self.post(&path, body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.bytes().await.unwrap().to_vec()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_is_there_while_the_job_waits() {
    let gate = Arc::default();
    let model = kl_with(object!({"scaling_factor": 0.18215}));
    let model = Arc::new(Autoencoder::new(model.model().clone(), Hooked::behind(&gate)));
    let server = TestServer::with(options(), vec![("default", model), ("unknown", kl())]).await;
    // Small jobs would run between the steps of a long one; this one makes no step.
    let held = Gate::close(&gate);
    let running = location(&server.post_job(&LONG).await);
    let wide = [1, 4, 8, 300];
    let waiting = location(&server.post_job(&wide).await);
    let query = format!("?output_type=pt&height=32&width=48&{}", tensor_query(&[2, 6, 16], Dtype::Float16));
    let sequence = latents(&[2, 6, 16], 76).0;
    let packed = location(&server.post(&format!("/v1/jobs{query}"), sequence.clone()).send().await.unwrap());
    server.until_queue(2, 1).await;

    let body = latents(&LONG, 70).0;
    let one = body[..body.len() / LONG[0]].to_vec();
    let expected = server.direct_preview(&path("/v1/decode", &[1, 4, 96, 96]), one).await;
    assert!(pixels(&server.early(&running).await) == (expected, 96, 96));

    // Too large for an event: every third pixel. And latents as a sequence of patches.
    let all = server.direct_preview(&path("/v1/decode", &wide), latents(&wide, 70).0).await;
    let third: Vec<u8> =
        all.chunks(900).step_by(3).flat_map(|row| row.chunks(3).step_by(3)).flatten().copied().collect();
    assert!(pixels(&server.early(&waiting).await) == (third, 100, 3));
    let both = server.direct_preview(&format!("/v1/decode{query}"), sequence).await;
    assert!(pixels(&server.early(&packed).await) == (both[..both.len() / 2].to_vec(), 6, 4));

    let unknown = path("/v1/jobs", &SHAPE) + "&model=unknown";
    let unknown = location(&server.post(&unknown, latents(&SHAPE, 70).0).send().await.unwrap());
    assert_eq!(json(server.ask(Method::GET, &unknown).await).await["preview"], false);
    let (code, message) = refusal(server.ask(Method::GET, &format!("{unknown}/preview")).await).await;
    assert!(code == 404 && message.contains("no preview"), "{message}");
    server.until_queue(3, 1).await;
    for job in [running, waiting, packed, unknown] {
        server.ask(Method::DELETE, &job).await;
    }
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_is_there_while_the_engine_stands_between_two_strips() {
    // Of 512x512 pixels, in several strips.
    const LATENTS: [usize; 4] = [1, 4, 64, 64];
    let (held, is_held) = std::sync::mpsc::channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (held, released) = (Mutex::new(held), Mutex::new(released));
    let at_rows = Box::new(move |first: usize| {
        // Once; what comes later finds nobody who holds it.
        if first > 0 && held.lock().unwrap().send(first).is_ok() {
            let _ = released.lock().unwrap().recv();
        }
    });
    let model = kl_with(object!({"scaling_factor": 0.18215}));
    let engine = Hooked::new(Hooks { at_rows, ..Hooks::default() });
    let stands = Arc::new(Autoencoder::new(model.model().clone(), engine));
    let server = TestServer::with(options(), vec![("stands", stands)]).await;
    let free = TestServer::with(options(), vec![("free", model)]).await;
    let body = latents(&LATENTS, 78).0;
    let post = |server: &TestServer, base: &str| server.post(&path(base, &LATENTS), body.clone()).send();
    let expected = post(&free, "/").await.unwrap().bytes().await.unwrap();

    let job = location(&post(&server, "/v1/jobs").await.unwrap());
    let first = tokio::task::spawn_blocking(move || (is_held.recv_timeout(PATIENCE), is_held));
    let (first, is_held) = first.await.unwrap();
    assert!((1..512).contains(&first.unwrap()));
    drop(is_held);
    let colours = server.direct_preview(&path("/v1/decode", &LATENTS), body.clone()).await;
    assert!(pixels(&server.early(&job).await) == (colours.clone(), 64, 64));
    // Of one that waits behind it, too.
    let waiting = location(&post(&server, "/v1/jobs").await.unwrap());
    assert!(pixels(&server.early(&waiting).await) == (colours, 64, 64));
    let state = async |job: &str| json(server.ask(Method::GET, job).await).await["state"].clone();
    assert_eq!((state(&job).await, state(&waiting).await), ("running".into(), "queued".into()));

    drop(release);
    for job in [job, waiting] {
        assert_eq!(server.ended(&job).await["state"], "done");
        let result = server.ask(Method::GET, &format!("{job}/result")).await;
        assert!(result.bytes().await.unwrap() == expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_preview_of_a_clip_is_its_middle() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden_video/wan");
    let wan = Arc::new(Autoencoder::new(Model::open(&folder).unwrap(), engine()));
    let server = TestServer::with(options(), vec![("default", wan)]).await;
    for (shape, frames, middle) in [([2, 16, 4, 3, 5], 4, 2), ([1, 16, 1, 3, 5], 1, 0)] {
        let body = latents(&shape, 77).0;
        let job = location(&server.post(&path("/v1/jobs", &shape), body.clone()).send().await.unwrap());
        let mut one = shape;
        one[0] = 1;
        let first = body[..body.len() / shape[0]].to_vec();
        let all = server.direct_preview(&path("/v1/decode", &one), first).await;
        let frame = all.chunks(all.len() / frames).nth(middle).unwrap().to_vec();
        assert!(pixels(&server.early(&job).await) == (frame, 5, 3));
    }
}
