//! The page's files and `/status`. What the page does in a browser is tested in `tests/page`.

use remote_vae_wire::Dtype;
use serde_json::Value;

use crate::decode::header;
use crate::support::*;

const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

#[tokio::test(flavor = "multi_thread")]
async fn browsers_get_the_page_and_probes_what_they_always_got() {
    let server = TestServer::start().await;
    let get = async |path: &str, accept: &str| {
        server.http.get(server.url(path)).header("accept", accept).send().await.unwrap()
    };
    let page = get("/", BROWSER).await;
    assert_eq!(header(&page, "content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(header(&page, "vary"), Some("accept"));
    let policy = header(&page, "content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
        "{policy}"
    );
    let page = page.text().await.unwrap();
    for reference in page.split("static/").skip(1).filter_map(|rest| rest.split('"').next()) {
        let file = get(&format!("/static/{reference}"), "*/*").await;
        assert_eq!(file.status(), 200, "{reference}");
        assert_eq!(header(&file, "x-content-type-options"), Some("nosniff"));
    }
    for accept in ["*/*", "application/json", ""] {
        let probe = get("/", accept).await;
        assert_eq!((probe.status().as_u16(), header(&probe, "vary")), (200, Some("accept")));
        assert_eq!(probe.text().await.unwrap(), "Ok");
    }
    let (status, _) = refusal(get("/static/none.js", "*/*").await).await;
    assert_eq!(status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_counts_what_happened() {
    let server = TestServer::start().await;
    let status =
        async || -> Value { json(server.http.get(server.url("/status")).send().await.unwrap()).await };
    let sum = |status: &Value, name: &str| -> u64 {
        status["history"][name].as_array().unwrap().iter().filter_map(Value::as_u64).sum()
    };
    let before = status().await;
    assert_eq!((before["state"].as_str(), before["queue"]["waiting"].as_u64()), (Some("ready"), Some(0)));
    assert_eq!(before["running"].as_array().map(Vec::len), Some(0));
    assert_eq!((sum(&before, "answered"), sum(&before, "failed"), sum(&before, "pixels")), (0, 0, 0));

    let (body, _) = latents(&[1, 4, 8, 8], 1);
    let query = tensor_query(&[1, 4, 8, 8], Dtype::Float16);
    assert_eq!(server.raw(&query, body.clone()).await.status(), 200);
    assert_eq!(server.raw("dtype=float16", body).await.status(), 400);
    let after = status().await;
    assert_eq!((sum(&after, "answered"), sum(&after, "failed"), sum(&after, "pixels")), (1, 1, 64 * 64));
    let longest = after["history"]["longest_seconds"].as_array().unwrap();
    assert!(longest.iter().filter_map(Value::as_f64).any(|seconds| seconds > 0.0));
    assert!(longest.len() as u64 <= after["history"]["steps"].as_u64().unwrap());

    // Large enough to be seen at work.
    let shape = [4, 4, 64, 64];
    let (body, _) = latents(&shape, 2);
    let path = format!("/?output_type=pt&{}", tensor_query(&shape, Dtype::Float16));
    let request = tokio::spawn(server.post(&path, body).send());
    let mut seen = Vec::new();
    while !request.is_finished() {
        let now = status().await;
        seen.extend(now["running"].as_array().unwrap().iter().filter_map(|job| job["progress"].as_f64()));
    }
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
    assert!(
        !seen.is_empty() && seen.is_sorted() && seen.iter().all(|share| (0.0..=1.0).contains(share)),
        "{seen:?}"
    );
    let end = status().await;
    assert_eq!(end["running"].as_array().map(Vec::len), Some(0));
}
