//! The client against small servers that stand in for the real one: what it sends, what it makes of answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use remote_vae_wire::Dtype;

use super::*;
use crate::options::Output;

/// Serves `router` on a free port.
async fn serve(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

fn latents() -> Tensor {
    Tensor::from_f32(vec![1, 4, 1, 1], Dtype::Float32, &[1.0, 2.0, 3.0, 4.0]).unwrap()
}

/// Answers with the request itself: the query as `x-request-id`, the body as the tensor it was.
async fn echo(request: Request) -> impl IntoResponse {
    let query = request.uri().query().unwrap_or("").to_owned();
    let accept = request.headers()["accept"].clone();
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let shape = format!("[{}]", body.len());
    (
        [("shape", shape), ("dtype", "uint8".into()), ("x-request-id", query)],
        [("x-remote-vae-engine", accept)],
        body,
    )
}

#[tokio::test]
async fn a_decode_travels_as_the_python_client_sends_it() {
    let url = serve(Router::new().fallback(echo)).await;
    let client = Client::new(url).unwrap();
    let options = DecodeOptions::new(Output::Float16).scaled_by(0.18215, None).packed(8, 16);
    let reply = client.decode(&latents(), &options).await.unwrap();
    assert_eq!(
        reply.request_id.as_deref().unwrap(),
        "output_type=pt&partial_postprocess=False&shape=1&shape=4&shape=1&shape=1&dtype=float32\
         &scaling_factor=0.18215&height=8&width=16"
    );
    assert_eq!(reply.engine.as_deref(), Some("tensor/binary"));
    assert_eq!(reply.tensor().unwrap().bytes, latents().bytes);
}

#[tokio::test]
async fn an_encode_states_only_what_is_needed() {
    let url = serve(Router::new().fallback(echo)).await;
    let client = Client::new(format!("{url}/?token=1")).unwrap();
    let reply = client.encode(Source::file([1, 2, 3]), &EncodeOptions::default()).await.unwrap();
    assert_eq!(reply.request_id.as_deref(), Some("token=1"));
    let pixels = Tensor::from_f32(vec![1, 3, 1, 1], Dtype::Float32, &[0.5; 3]).unwrap();
    let reply = client.encode(pixels.into(), &EncodeOptions::default().sampled(7)).await.unwrap();
    let query = reply.request_id.unwrap();
    assert!(
        query.contains("shape=1") && query.contains("seed=7") && !query.contains("output_type"),
        "{query}"
    );
    let whole = EncodeOptions { float32: true, ..EncodeOptions::default() };
    let reply = client.encode(Source::file([1]), &whole).await.unwrap();
    assert_eq!(reply.request_id.as_deref(), Some("token=1&output_dtype=float32"));
    let error = client.encode(latents().into(), &EncodeOptions::default()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "Expected a picture file or pixels [batch, 3, height, width] to encode. Got a tensor of shape [1, 4, 1, 1]; \
         latents are made pictures by a decode."
    );
}

#[tokio::test]
async fn the_wrong_one_of_http_and_https_is_told() {
    let url = serve(Router::new().fallback(echo)).await;
    let wrong = url.replace("http:", "https:");
    let client = Client::new(&wrong).unwrap();
    let expected = format!("The server at {wrong}/ speaks http, not https: use {url}/.");
    let error = client.decode(&latents(), &DecodeOptions::default()).await.unwrap_err();
    assert_eq!(error.to_string(), expected);
    assert_eq!(client.info().await.unwrap_err().to_string(), expected);
    let client = Client::new("https://example.org/x").unwrap();
    let error = client.scheme("https", "http").to_string();
    assert!(error.ends_with("use http://example.org:443/x."), "the port that was asked: {error}");
}

#[tokio::test]
async fn busy_servers_are_asked_again() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let router =
        Router::new().fallback(async move |request: Request| match counted.fetch_add(1, Ordering::SeqCst) {
            0 => (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")], "{}").into_response(),
            1 => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")], "<html>").into_response(),
            _ => echo(request).await.into_response(),
        });
    let url = serve(router).await;
    let client = Client::new(&url).unwrap();
    assert!(client.decode(&latents(), &DecodeOptions::default()).await.is_ok());
    assert_eq!(calls.load(Ordering::SeqCst), 3);

    calls.store(0, Ordering::SeqCst);
    let hasty = Client::builder(&url).retries(0).build().unwrap();
    let error = hasty.decode(&latents(), &DecodeOptions::default()).await.unwrap_err();
    assert_eq!((error.status(), calls.load(Ordering::SeqCst)), (Some(429), 1));
}

#[tokio::test]
async fn a_broken_connection_is_tried_again() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        // The first connection is closed without an answer.
        drop(listener.accept().await.unwrap());
        axum::serve(listener, Router::new().fallback(echo)).await.unwrap();
    });
    let client = Client::new(&url).unwrap();
    assert!(client.decode(&latents(), &DecodeOptions::default()).await.is_ok());
}

#[tokio::test]
async fn progress_counts_the_bytes_of_both_ways() {
    let url = serve(Router::new().fallback(echo)).await;
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let builder = Client::builder(url).on_progress(move |progress| sink.lock().unwrap().push(progress));
    let large = Tensor::new(vec![1, 4, 400, 400], Dtype::Uint8, vec![7; 640_000]).unwrap();
    let reply = builder.build().unwrap().decode(&large, &DecodeOptions::default()).await.unwrap();
    assert_eq!(reply.tensor().unwrap().bytes, large.bytes);
    let told = told.lock().unwrap();
    let last = |stage| *told.iter().rfind(|progress| progress.stage == stage).unwrap();
    for stage in [Stage::Sending, Stage::Receiving] {
        assert_eq!(last(stage), Progress { stage, done: 640_000, total: 640_000 });
    }
    assert_eq!(told.iter().filter(|progress| progress.stage == Stage::Sending).count(), 3);
}

/// Answers after a while, and counts how many requests are there at one time.
async fn crowded(
    most: Arc<AtomicUsize>,
    now: Arc<AtomicUsize>,
    request: Request,
) -> axum::response::Response {
    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(30)).await;
    now.fetch_sub(1, Ordering::SeqCst);
    let wrong = request.uri().query().unwrap_or("").contains("dtype=float16");
    if wrong {
        (StatusCode::BAD_REQUEST, r#"{"error":"wrong"}"#).into_response()
    } else {
        echo(request).await.into_response()
    }
}

#[tokio::test]
async fn the_queue_is_bounded_and_keeps_the_order() {
    let (most, now) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (seen, current) = (Arc::clone(&most), Arc::clone(&now));
    let router = Router::new()
        .fallback(move |request: Request| crowded(Arc::clone(&seen), Arc::clone(&current), request));
    let client = Client::new(serve(router).await).unwrap();
    let mut queue = crate::DecodeQueue::new(client, DecodeOptions::default(), 3, 2).untaken(7);
    let begun = std::time::Instant::now();
    for number in 0..7_u8 {
        let dtype = if number == 4 { Dtype::Float16 } else { Dtype::Uint8 };
        queue.put(Tensor::new(vec![1], dtype, vec![number; dtype.size()]).unwrap()).await.unwrap();
    }
    let further = queue.put(Tensor::new(vec![1], Dtype::Uint8, vec![7]).unwrap()).await;
    assert!(matches!(further, Err(ClientError::Untaken { waiting: 7 })));
    // The last put had to wait for four answers, two of which come at one time.
    assert!(begun.elapsed() >= Duration::from_millis(60), "{:?}", begun.elapsed());
    assert_eq!(queue.len(), 7);
    for number in 0..7_u8 {
        let reply = queue.next().await.unwrap();
        match number {
            4 => assert_eq!(reply.unwrap_err().status(), Some(400)),
            _ => assert_eq!(reply.unwrap().tensor().unwrap().bytes, [number]),
        }
    }
    assert!(queue.next().await.is_none() && queue.is_empty());
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[test]
fn the_blocking_face_decodes_many_in_order() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = runtime.block_on(serve(Router::new().fallback(echo)));
    let client = crate::blocking::Client::new(&url).unwrap();
    let many = (0..5_u8).map(|number| Tensor::new(vec![1], Dtype::Uint8, vec![number]).unwrap());
    let options = DecodeOptions::default();
    let replies =
        client.decode_each(many, &options, 2).map(|reply| reply.unwrap().tensor().unwrap().bytes[0]);
    assert_eq!(replies.collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
}

#[tokio::test]
async fn refusals_carry_the_servers_words() {
    let router = Router::new()
        .fallback(async || (StatusCode::BAD_REQUEST, r#"{"error":"Expected `dtype` in query params."}"#));
    let client = Client::new(serve(router).await).unwrap();
    let error = client.decode(&latents(), &DecodeOptions::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "The server answered 400: Expected `dtype` in query params.");

    let router = Router::new().fallback(async || (StatusCode::BAD_GATEWAY, "<html>nginx</html>"));
    let client = Client::new(serve(router).await).unwrap();
    let error = client.info().await.unwrap_err();
    assert_eq!(error.to_string(), "The server answered 502: Bad Gateway. <html>nginx</html>");
}

#[tokio::test]
async fn the_key_is_sent_and_never_shown() {
    let router = Router::new().fallback(async |request: Request| {
        let key = request.headers()["authorization"].to_str().unwrap().to_owned();
        if key == "Bearer s3cret" { StatusCode::OK } else { StatusCode::UNAUTHORIZED }
    });
    let builder = Client::builder(serve(router).await).bearer_key("s3cret");
    assert!(!format!("{builder:?}").contains("s3cret"));
    let client = builder.build().unwrap();
    assert!(!format!("{client:?}").contains("s3cret"));
    assert!(client.is_ready().await.unwrap());
    assert!(matches!(Client::builder("http://x").bearer_key("a\nb").build(), Err(ClientError::Key)));
}

#[tokio::test]
async fn an_absent_server_is_one_clear_sentence() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(format!("http://{address}")).unwrap();
    let message = client.decode(&latents(), &DecodeOptions::default()).await.unwrap_err().to_string();
    assert!(
        message.starts_with(&format!("Nothing answers at http://{address}/: is the server running")),
        "{message}"
    );
    assert!(!message.contains("shape="), "{message}");
}

#[tokio::test]
async fn slow_servers_time_out() {
    let router = Router::new().fallback(async || {
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
    let builder = Client::builder(serve(router).await).timeout(Duration::from_millis(100));
    let error = builder.build().unwrap().info().await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
}

#[test]
fn the_blocking_face_works_outside_a_runtime_only() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let url = runtime.block_on(serve(Router::new().fallback(echo)));
    let client = crate::blocking::Client::new(&url).unwrap();
    assert!(client.decode(&latents(), &DecodeOptions::default()).is_ok());
    let inside = runtime.block_on(async { client.is_ready() });
    assert!(matches!(inside, Err(ClientError::InsideRuntime)));
}
