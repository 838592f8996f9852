//! Spans for an OpenTelemetry collector: one for each request for work, as JSON over HTTP (`POST ENDPOINT/v1/traces`, the
//! OpenTelemetry Protocol 1.x, section "OTLP/HTTP").
//!
//! No request waits for the collector: spans go through a bounded channel to a task that sends them by the batch, and what
//! finds no room, or is not taken, is dropped. A span holds what the access log holds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::error::ServerError;
use crate::observe::{Trace, TraceParent};
use crate::request::random_bits;

/// Spans that wait for being sent.
const WAITING: usize = 2048;
/// Spans of one batch.
const BATCH: usize = 256;
/// Longest time that a span waits for others.
const DELAY: Duration = Duration::from_secs(1);
/// Longest time for the collector to take a batch.
const PATIENCE: Duration = Duration::from_secs(5);
/// Kinds and states of spans by the protocol's numbers.
const SERVER: u8 = 2;
const ERROR: u8 = 2;

enum Message {
    Span(Value),
    /// Everything before it is to be sent now.
    Flush(oneshot::Sender<()>),
}

/// Sends spans from a task of its own, which ends with it.
pub(crate) struct Exporter {
    messages: mpsc::Sender<Message>,
}

/// What a span tells of a request.
pub(crate) struct Told<'a> {
    pub(crate) trace: &'a Trace,
    pub(crate) parent: Option<&'a TraceParent>,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) response_bytes: u64,
    pub(crate) took: Duration,
}

impl Exporter {
    /// Starts the task; in a Tokio runtime only.
    ///
    /// # Errors
    /// The address is none, or not of plain HTTP.
    pub(crate) fn start(endpoint: &str) -> Result<Self, ServerError> {
        let wrong = || ServerError::Option {
            name: "otlp_endpoint",
            found: endpoint.to_owned(),
            expected: "the address of a collector, e.g. `http://127.0.0.1:4318`".to_owned(),
        };
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let url = reqwest::Url::parse(&url).ok().filter(|url| url.scheme() == "http").ok_or_else(wrong)?;
        // An error means that there is a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(PATIENCE).build();
        let (sender, messages) = mpsc::channel(WAITING);
        tokio::spawn(send(client.map_err(|_| wrong())?, url, messages));
        Ok(Self { messages: sender })
    }

    /// Takes a request's span, unless its caller says that the trace is not recorded.
    pub(crate) fn note(&self, told: &Told<'_>) {
        if told.parent.is_none_or(|parent| parent.sampled) {
            let _ = self.messages.try_send(Message::Span(span(told)));
        }
    }

    /// Sends what waits, within a few seconds.
    pub(crate) async fn flush(&self) {
        let (sender, done) = oneshot::channel();
        let flushing = async {
            if self.messages.send(Message::Flush(sender)).await.is_ok() {
                let _ = done.await;
            }
        };
        let _ = timeout(PATIENCE, flushing).await;
    }
}

async fn send(client: reqwest::Client, url: reqwest::Url, mut messages: mpsc::Receiver<Message>) {
    let mut failing = false;
    while let Some(first) = messages.recv().await {
        let (mut spans, mut flushed, mut next) = (Vec::new(), None, Some(first));
        let end = tokio::time::Instant::now() + DELAY;
        while let Some(message) = next {
            match message {
                Message::Span(span) => spans.push(span),
                Message::Flush(sender) => flushed = Some(sender),
            }
            if flushed.is_some() || spans.len() >= BATCH {
                break;
            }
            next = tokio::time::timeout_at(end, messages.recv()).await.ok().flatten();
        }
        if !spans.is_empty() {
            let body = batch(spans).to_string();
            let request = client.post(url.clone()).header("content-type", "application/json").body(body);
            let failure = request.send().await.and_then(reqwest::Response::error_for_status).err();
            match &failure {
                Some(error) if !failing => {
                    tracing::warn!(%error, "the collector takes no spans; they are dropped until it does");
                }
                None if failing => tracing::info!("the collector takes spans again"),
                _ => {}
            }
            failing = failure.is_some();
        }
        // Whoever asked may have given up.
        let _ = flushed.map(|flushed| flushed.send(()));
    }
}

fn batch(spans: Vec<Value>) -> Value {
    let service = [text("service.name", "remote-vae"), text("service.version", env!("CARGO_PKG_VERSION"))];
    let scope = json!({"name": "remote-vae", "version": env!("CARGO_PKG_VERSION")});
    json!({"resourceSpans": [{
        "resource": {"attributes": service},
        "scopeSpans": [{"scope": scope, "spans": spans}],
    }]})
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

/// 64-bit integers are strings in the protocol's JSON.
fn whole(key: &str, value: u64) -> Value {
    json!({"key": key, "value": {"intValue": value.to_string()}})
}

fn seconds(key: &str, value: Duration) -> Value {
    json!({"key": key, "value": {"doubleValue": value.as_secs_f64()}})
}

fn span(told: &Told<'_>) -> Value {
    let Told { trace, parent, method, path, status, response_bytes, took } = *told;
    let end = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let new_trace = || format!("{:016x}{:016x}", random_bits(), random_bits());
    let mut attributes = vec![
        text("http.request.method", method),
        text("url.path", path),
        whole("http.response.status_code", status.into()),
        whole("http.request.body.size", trace.request_bytes),
        whole("http.response.body.size", response_bytes),
    ];
    attributes.extend(trace.model.as_deref().map(|model| text("rvae.model", model)));
    attributes.extend(trace.key.as_deref().map(|key| text("rvae.key", key)));
    for (name, time) in [
        ("rvae.queue_seconds", trace.queued),
        ("rvae.engine_seconds", trace.engine),
        ("rvae.post_seconds", trace.post),
    ] {
        attributes.extend(time.map(|time| seconds(name, time)));
    }
    let mut span = json!({
        "traceId": parent.map_or_else(new_trace, |parent| parent.trace.clone()),
        "spanId": format!("{:016x}", random_bits()),
        "name": trace.operation.unwrap_or("request"),
        "kind": SERVER,
        "startTimeUnixNano": end.saturating_sub(took).as_nanos().to_string(),
        "endTimeUnixNano": end.as_nanos().to_string(),
        "attributes": attributes,
    });
    if let Some(parent) = parent {
        span["parentSpanId"] = parent.span.clone().into();
    }
    if status >= 500 {
        span["status"] = json!({"code": ERROR});
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_the_protocols_form() {
        let trace = Trace {
            model: Some("sd".to_owned()),
            operation: Some("decode"),
            engine: Some(Duration::from_millis(250)),
            ..Trace::default()
        };
        let parent = TraceParent { trace: "ab".repeat(16), span: "cd".repeat(8), sampled: true };
        let mut told = Told {
            trace: &trace,
            parent: Some(&parent),
            method: "POST",
            path: "/",
            status: 200,
            response_bytes: 7,
            took: Duration::from_millis(300),
        };
        let found = span(&told);
        assert_eq!(
            (&found["traceId"], &found["parentSpanId"]),
            (&parent.trace.clone().into(), &parent.span.clone().into())
        );
        assert_eq!(
            (&found["name"], &found["kind"], found.get("status")),
            (&"decode".into(), &2.into(), None)
        );
        let nanoseconds = |key: &str| found[key].as_str().unwrap().parse::<u128>().unwrap();
        assert_eq!(nanoseconds("endTimeUnixNano") - nanoseconds("startTimeUnixNano"), 300_000_000);
        let attributes = found["attributes"].as_array().unwrap();
        assert!(attributes.contains(&whole("http.response.status_code", 200)));
        assert!(attributes.contains(&seconds("rvae.engine_seconds", Duration::from_millis(250))));
        (told.parent, told.status) = (None, 500);
        let found = span(&told);
        assert_eq!(found["traceId"].as_str().map(str::len), Some(32));
        assert_eq!((found.get("parentSpanId"), &found["status"]["code"]), (None, &2.into()));
    }
}
