//! Everything that can be wrong with a request: its status, its words, and the connection that goes on.

use std::sync::Arc;

use remote_vae_engine::{Autoencoder, CpuEngine, EngineOptions};
use remote_vae_model::Model;
use remote_vae_server::{ApiKey, ServerError, ServerOptions};
use remote_vae_wire::Dtype;
use reqwest::Method;

use crate::support::*;

const SHAPE: [usize; 4] = [1, 4, 8, 8];

#[tokio::test(flavor = "multi_thread")]
async fn wrong_tensors_are_named() {
    let server = TestServer::start().await;
    let (body, _) = latents(&SHAPE, 30);
    let good = tensor_query(&SHAPE, Dtype::Float16);
    for (query, words) in [
        ("shape=1&shape=4&shape=8&shape=8".to_owned(), &["Expected `dtype` in query params."][..]),
        ("dtype=float16".to_owned(), &["Expected `shape` in query params."]),
        (
            "shape=1&shape=4&shape=8&shape=8&dtype=x".to_owned(),
            &["Supported `dtype`: ['float16', 'float32', 'bfloat16', 'uint8']. Got `x`."],
        ),
        (tensor_query(&SHAPE, Dtype::Float32), &["1024 bytes", "512"]),
        (tensor_query(&[1, 4, 8, 9], Dtype::Float16), &["576", "512"]),
        (tensor_query(&[1, 4, 0, 8], Dtype::Float16), &["at least 1"]),
        (tensor_query(&[usize::MAX, 4, 8, 8], Dtype::Float16), &["overflows"]),
        ("shape=-1&dtype=float16".to_owned(), &["shape", "-1"]),
        ("shape=99999999999999999999999&dtype=float16".to_owned(), &["shape"]),
        (tensor_query(&[1, 16, 4, 4], Dtype::Float16), &["[batch, 4, height, width]", "[1, 16, 4, 4]"]),
        (tensor_query(&[1, 4, 1, 8, 8], Dtype::Float16), &["[batch, 4, height, width]", "[1, 4, 1, 8, 8]"]),
        (tensor_query(&[256], Dtype::Float16), &["[256]"]),
        (format!("{good}&scaling_factor=0"), &["scaling_factor"]),
        (format!("{good}&scaling_factor=nan"), &["scaling_factor"]),
        (format!("{good}&do_scaling=maybe"), &["do_scaling", "maybe"]),
        (format!("{good}&output_type=exe"), &["output_type", "exe"]),
        (format!("{good}&image_format=bmp"), &["image_format", "bmp"]),
        (format!("{good}&precision=best"), &["`exact` or `fast`", "`best`"]),
        (format!("{good}&height=-3"), &["height"]),
    ] {
        let query = if query.contains("output_type") { query } else { format!("output_type=pt&{query}") };
        let (status, message) = refusal(server.raw(&query, body.clone()).await).await;
        assert_eq!(status, 400, "{query}: {message}");
        for word in words {
            assert!(message.contains(word), "{query}: {message}");
        }
    }
    let (status, _) = refusal(server.raw("output_type=pt", Vec::new()).await).await;
    assert_eq!(status, 400);
    let request = server.post(&format!("/?{good}"), body).header("content-encoding", "gzip");
    assert_eq!(refusal(request.send().await.unwrap()).await.0, 415);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_before_work() {
    let mut options = options();
    options.limits.max_body_bytes = 4096;
    options.limits.max_pixels = 96 * 96;
    options.limits.max_batch = 2;
    let server = TestServer::with(options.clone(), vec![("default", kl())]).await;
    let refused = async |shape: &[usize], words: &[&str]| {
        let (body, _) = latents(shape, 31);
        let query = format!("output_type=pt&{}", tensor_query(shape, Dtype::Float16));
        let (status, message) = refusal(server.raw(&query, body).await).await;
        assert_eq!(status, 413, "{message}");
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    refused(&[1, 4, 32, 32], &["4096", "8192"]).await;
    refused(&[1, 4, 13, 12], &["9216", "96x104"]).await;
    refused(&[3, 4, 2, 2], &["batch", "2", "3"]).await;

    options.limits.max_plan_bytes = Some(1000);
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let (body, _) = latents(&SHAPE, 31);
    let query = format!("output_type=pt&{}", tensor_query(&SHAPE, Dtype::Float16));
    let (status, message) = refusal(server.raw(&query, body).await).await;
    assert!(status == 413 && message.contains("1000"), "{message}");
    let metrics = server.http.get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("rvae_rejected_total{reason=\"memory\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_plan_makes_fit_names_the_budget() {
    // Less than the process holds already.
    let small = EngineOptions { memory_budget: Some(1 << 20), ..EngineOptions::default() };
    let engine = Arc::new(CpuEngine::new(small).unwrap());
    let model = Arc::new(Autoencoder::new(Model::embedded().unwrap(), engine));
    // A warm-up would not fit either.
    let options = ServerOptions { warm_up: false, ..options() };
    let server = TestServer::with(options, vec![("default", model)]).await;
    let (body, _) = latents(&SHAPE, 31);
    let query = format!("output_type=pt&{}", tensor_query(&SHAPE, Dtype::Float16));
    let (status, message) = refusal(server.raw(&query, body).await).await;
    assert!(status == 413 && message.contains("the memory budget is 1 MiB;"), "{message}");
    assert!(message.contains("the smallest that would do is "), "{message}");
    assert!(message.contains("no picture fits"), "{message}");
    let metrics = server.http.get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("rvae_rejected_total{reason=\"memory\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_paths_and_methods_are_json() {
    let server = TestServer::start().await;
    let send = async |method: Method, path: &str| {
        server.http.request(method, server.url(path)).body("x").send().await.unwrap()
    };
    for (method, path, allow) in [
        (Method::PUT, "/", "POST"),
        (Method::DELETE, "/health", "GET"),
        (Method::OPTIONS, "/", "POST"),
        (Method::OPTIONS, "/info", "GET"),
        (Method::POST, "/metrics", "GET"),
        (Method::POST, "/health/", "GET"),
        (Method::GET, "/predict", "POST"),
        (Method::GET, "/default/decode", "POST"),
        (Method::PATCH, "/encode", "POST"),
    ] {
        let response = send(method.clone(), path).await;
        let allowed = response.headers()["allow"].to_str().unwrap().to_owned();
        assert!(allowed.contains(allow), "{method} {path}: {allowed}");
        let (status, message) = refusal(response).await;
        assert!(status == 405 && message.contains(method.as_str()), "{method} {path}: {status} {message}");
    }
    for path in ["/nothing", "/health/more", "/%00", "/%ff%fe", "/default/decode/x", "/a/../b"] {
        for method in [Method::GET, Method::POST] {
            let (status, message) = refusal(send(method, path).await).await;
            assert!(status == 404 && message.contains("/default"), "{path}: {status} {message}");
        }
    }
    let head = server.http.head(server.url("/nothing")).send().await.unwrap();
    assert_eq!(head.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_survives_refusals() {
    let server = TestServer::start().await;
    let (body, _) = latents(&SHAPE, 32);
    let good = format!("output_type=pt&{}", tensor_query(&SHAPE, Dtype::Float16));
    // One connection: the client keeps a single idle one and requests follow each other.
    for bad in ["output_type=pt", "dtype=x", "output_type=pt&shape=7&dtype=uint8"] {
        let response = server.raw(bad, body.clone()).await;
        assert!(!response.headers().contains_key("connection"));
        assert_eq!(refusal(response).await.0, 400);
        let response = server.raw(&good, body.clone()).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.bytes().await.unwrap().len(), 24576);
    }
    for path in ["/nothing", "/metrics"] {
        let response = server.post(path, vec![0; 100_000]).send().await.unwrap();
        assert!(!response.headers().contains_key("connection"), "{path}");
        refusal(response).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_asked_for_where_they_are_set() {
    let api_keys = vec![ApiKey::new("alpha"), ApiKey::new("beta-2")];
    let server = TestServer::with(ServerOptions { api_keys, ..options() }, vec![("default", kl())]).await;
    let (body, _) = latents(&SHAPE, 33);
    let path = format!("/?output_type=pt&{}", tensor_query(&SHAPE, Dtype::Float16));
    for (sent, status) in [
        (None, 401),
        (Some("Bearer alph"), 401),
        (Some("Bearer alphaa"), 401),
        (Some("Basic alpha"), 401),
        (Some("Bearer"), 401),
        (Some("Bearer alpha"), 200),
        (Some("bearer beta-2"), 200),
    ] {
        let mut request = server.post(&path, body.clone());
        if let Some(sent) = sent {
            request = request.header("authorization", sent);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status, "{sent:?}");
        if status == 401 {
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            refusal(response).await;
        }
    }
    for open in ["/health", "/metrics", "/info", "/livez"] {
        assert_eq!(server.http.get(server.url(open)).send().await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn servers_that_make_no_sense_do_not_start() {
    let entry = |name: &str| remote_vae_server::ModelEntry { name: name.to_owned(), autoencoder: kl() };
    let bind = async |models| remote_vae_server::Server::bind(options(), models).await.err().unwrap();
    assert!(matches!(bind(vec![]).await, ServerError::NoModel));
    for name in ["", "a/b", "health", "metrics", "decode", "a b", ".", "ü"] {
        assert!(matches!(bind(vec![entry(name)]).await, ServerError::ModelName { .. }), "{name}");
    }
    let error = bind(vec![entry("a"), entry("b"), entry("a")]).await;
    assert!(matches!(error, ServerError::DuplicateModel { .. }));
    let taken = TestServer::start().await;
    let options = ServerOptions { port: taken.address.port(), ..options() };
    let error = remote_vae_server::Server::bind(options, vec![entry("a")]).await.err().unwrap();
    assert!(error.to_string().starts_with("Cannot listen on 127.0.0.1:"), "{error}");
}
