//! Around every request: its id, its line in the access log (at the end of the answer where that leaves as it is made), its metrics, and an answer even if a handler panics.
//!
//! The log says what was asked for and how long it took, never what was in it: no query, no bytes, of the headers
//! only the ids that the client gave for this purpose.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use remote_vae_wire::shortened;
use tower_service::Service;

use crate::cors::Origin;
use crate::error::Refusal;
use crate::state::Shared;

/// The id of a request, taken from the client if it sent a usable one.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What handlers tell the log about a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trace {
    pub(crate) model: Option<String>,
    pub(crate) operation: Option<&'static str>,
    /// The name of the key that was sent.
    pub(crate) key: Option<Arc<str>>,
    pub(crate) request_bytes: u64,
    pub(crate) queued: Option<Duration>,
    pub(crate) engine: Option<Duration>,
    pub(crate) post: Option<Duration>,
}

/// A [`Trace`] that handler and log share; found in a request's extensions.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedTrace(Arc<Mutex<Trace>>);

impl SharedTrace {
    pub(crate) fn update(&self, change: impl FnOnce(&mut Trace)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn read(&self) -> Trace {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves one request from head to answer's head.
pub(crate) async fn observe(shared: Arc<Shared>, mut router: Router, mut request: Request<Body>) -> Response {
    let record = Record::new(&shared, &request);
    request.extensions_mut().insert(record.trace.clone());
    drop_final_slashes(&mut request);
    let (head, body) = request.into_parts();
    let origin = Origin::of(&head, &shared.options.cors_origins);
    if let Some(mut response) = origin.answer(&head) {
        // What the body holds is not waited for.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        origin.mark(response.headers_mut());
        return record.answered(response);
    }
    let request = Request::from_parts(head, body);
    let mut handling = pin!(router.call(request));
    let outcome = std::future::poll_fn(|context| {
        let poll = catch_unwind(AssertUnwindSafe(|| handling.as_mut().poll(context)));
        poll.map_or_else(|_| std::task::Poll::Ready(None), |poll| poll.map(Some))
    });
    let mut response = match outcome.await {
        Some(Ok(response)) => json_errors(response),
        None => {
            tracing::error!(request_id = ?record.id, "a handler panicked");
            Refusal::internal("The server failed on this request.").into_response()
        }
    };
    origin.mark(response.headers_mut());
    record.answered(response)
}

/// `/health/` is `/health`, without a redirect.
fn drop_final_slashes(request: &mut Request<Body>) {
    let path = request.uri().path();
    let trimmed = match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed,
    };
    if trimmed.len() == path.len() {
        return;
    }
    let rewritten = match request.uri().query() {
        Some(query) => format!("{trimmed}?{query}"),
        None => trimmed.to_owned(),
    };
    if let Ok(path_and_query) = PathAndQuery::try_from(rewritten) {
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = Some(path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
}

/// Answers that the framework made itself become JSON like all others.
fn json_errors(response: Response) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if !is_error || is_json {
        return response;
    }
    let reason = status.canonical_reason().unwrap_or("The request was refused");
    let mut replacement = Refusal::new(status, format!("{reason}.")).into_response();
    for (name, value) in response.headers() {
        if !matches!(*name, header::CONTENT_TYPE | header::CONTENT_LENGTH) {
            replacement.headers_mut().insert(name, value.clone());
        }
    }
    replacement
}

/// One request's line in the log. Dropped without an answer, it says that the client left.
struct Record {
    shared: Arc<Shared>,
    trace: SharedTrace,
    id: HeaderValue,
    /// Of the W3C's trace context, if the client sent one.
    parent: Option<TraceParent>,
    /// Whether the client reads fields behind an answer (`TE: trailers`).
    takes_trailers: bool,
    method: Method,
    path: String,
    start: Instant,
    done: bool,
}

/// Marks an answer that is still being made when its head leaves; its line in the log is written at its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unfinished;

/// The body of such an answer, with its line.
struct Recorded {
    inner: Body,
    record: Record,
    status: StatusCode,
    /// Bytes that have left.
    bytes: u64,
    /// Whether fields with the times that were not known before are still to follow.
    has_trailers: bool,
}

impl HttpBody for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        let poll = Pin::new(&mut this.inner).poll_frame(context);
        if let Poll::Ready(next) = &poll {
            if let Some(Ok(frame)) = next {
                this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            match next {
                Some(Err(error)) => this.record.ended(status_of(error), this.bytes),
                None => {
                    this.record.ended(this.status, this.bytes);
                    if let Some(trailers) = this.trailers() {
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                }
                Some(Ok(_)) if this.inner.is_end_stream() => this.record.ended(this.status, this.bytes),
                Some(Ok(_)) => {}
            }
        }
        poll
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Recorded {
    /// The times that the head could not tell, once.
    fn trailers(&mut self) -> Option<HeaderMap> {
        if !std::mem::take(&mut self.has_trailers) {
            return None;
        }
        let timing = server_timing(&Trace { queued: None, ..self.record.trace.read() })?;
        Some(HeaderMap::from_iter([(SERVER_TIMING, timing)]))
    }
}

/// What the answer would have been had it not begun.
fn status_of(error: &axum::Error) -> StatusCode {
    let mut causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let refusal = causes.find_map(|error| error.downcast_ref::<Refusal>());
    refusal.map_or(StatusCode::INTERNAL_SERVER_ERROR, |refusal| refusal.status)
}

/// What proxies write for a client that left.
const CLIENT_LEFT: u16 = 499;

impl Record {
    fn new(shared: &Arc<Shared>, request: &Request<Body>) -> Self {
        Self {
            shared: Arc::clone(shared),
            trace: SharedTrace::default(),
            id: request_id(request.headers()),
            parent: TraceParent::of(request.headers()),
            takes_trailers: request.version() > Version::HTTP_10 && takes_trailers(request.headers()),
            method: request.method().clone(),
            path: shown(request.uri().path()),
            start: Instant::now(),
            done: false,
        }
    }

    fn answered(mut self, mut response: Response) -> Response {
        let trace = self.trace.read();
        response.headers_mut().insert(REQUEST_ID, self.id.clone());
        if let Some(timing) = server_timing(&trace) {
            response.headers_mut().insert(SERVER_TIMING, timing);
        }
        if response.extensions_mut().remove::<Unfinished>().is_some() {
            let status = response.status();
            // Where a length is told, an answer ends with its last byte.
            let has_trailers = self.takes_trailers && response.body().size_hint().exact().is_none();
            if has_trailers {
                let name = HeaderValue::from_static("server-timing");
                response.headers_mut().insert(header::TRAILER, name);
            }
            let body = |inner| Body::new(Recorded { inner, record: self, status, bytes: 0, has_trailers });
            return response.map(body);
        }
        let bytes = response.body().size_hint().exact().unwrap_or(0);
        self.done = true;
        self.write(&trace, response.status(), bytes);
        response
    }

    /// The end of an answer that left as it was made.
    fn ended(&mut self, status: StatusCode, bytes: u64) {
        if !self.done {
            self.done = true;
            self.write(&self.trace.read(), status, bytes);
        }
    }

    fn write(&self, trace: &Trace, status: StatusCode, response_bytes: u64) {
        let total = self.start.elapsed();
        let code = status.as_u16();
        if let (Some(operation), Some(model)) = (trace.operation, &trace.model) {
            self.shared.metrics.request(operation, model, code, total);
            self.shared.metrics.sizes(trace.request_bytes, response_bytes);
        }
        #[cfg(feature = "otlp")]
        if let (Some(_), Some(exporter)) = (trace.operation, &self.shared.exporter) {
            exporter.note(&crate::otlp::Told {
                trace,
                parent: self.parent.as_ref(),
                method: self.method.as_str(),
                path: &self.path,
                status: code,
                response_bytes,
                took: total,
            });
        }
        let milliseconds =
            |time: Option<Duration>| time.map(|time| (time.as_secs_f64() * 1e5).round() / 100.0);
        let id = self.id.to_str().unwrap_or("");
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "remote_vae::access",
                    id,
                    method = %self.method,
                    path = self.path,
                    status = code,
                    model = trace.model.as_deref(),
                    operation = trace.operation,
                    key = trace.key.as_deref(),
                    trace_id = self.parent.as_ref().map(|parent| parent.trace.as_str()),
                    request_bytes = trace.request_bytes,
                    response_bytes,
                    queue_ms = milliseconds(trace.queued),
                    engine_ms = milliseconds(trace.engine),
                    post_ms = milliseconds(trace.post),
                    total_ms = milliseconds(Some(total)),
                )
            };
        }
        // Probes come every second.
        if self.method == Method::GET || self.method == Method::HEAD { line!(debug) } else { line!(info) }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.done {
            let status = StatusCode::from_u16(CLIENT_LEFT).unwrap_or(StatusCode::BAD_REQUEST);
            self.write(&self.trace.read(), status, 0);
        }
    }
}

/// A path as the log has it. A job's id gives its result to whoever knows it, so only its beginning is shown.
fn shown(path: &str) -> String {
    const JOBS: &str = "/v1/jobs/";
    const SHOWN: usize = 8;
    let short = |path: &str| {
        let (id, rest) =
            path.strip_prefix(JOBS).map(|rest| rest.split_at(rest.find('/').unwrap_or(rest.len())))?;
        let (start, hidden) = id.split_at_checked(SHOWN)?;
        (!hidden.is_empty()).then(|| format!("{JOBS}{start}*{rest}"))
    };
    shortened(&short(path).unwrap_or_else(|| path.to_owned()))
}

/// Milliseconds of each stage, in the form browsers show.
fn server_timing(trace: &Trace) -> Option<HeaderValue> {
    let stages = [("queue", trace.queued), ("engine", trace.engine), ("post", trace.post)];
    let stages: Vec<String> = stages
        .into_iter()
        .filter_map(|(name, time)| time.map(|time| format!("{name};dur={:.2}", time.as_secs_f64() * 1e3)))
        .collect();
    if stages.is_empty() { None } else { HeaderValue::try_from(stages.join(", ")).ok() }
}

/// Whether one of the codings of `TE` says that the client reads fields behind a body.
fn takes_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::TE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// The client's id if it is short and plain, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    const LONGEST: usize = 128;
    let plain = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(byte);
        !bytes.is_empty() && bytes.len() <= LONGEST && bytes.iter().all(allowed)
    };
    headers.get(REQUEST_ID).filter(plain).cloned().unwrap_or_else(new_id)
}

/// What a request is part of: `00-TRACE-SPAN-FLAGS`, lower-case hexadecimal (W3C Trace Context, section 3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceParent {
    pub(crate) trace: String,
    /// The caller's span.
    pub(crate) span: String,
    /// Whether the caller records the trace.
    pub(crate) sampled: bool,
}

impl TraceParent {
    /// None without the header, or if it is not of this form.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut parts = headers.get(TRACE_PARENT)?.to_str().ok()?.split('-');
        let mut part = |length: usize| {
            let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            parts.next().filter(|part| part.len() == length && part.bytes().all(hex))
        };
        let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
        let is_zero = |part: &str| part.bytes().all(|byte| byte == b'0');
        let usable = version != "ff" && !is_zero(trace) && !is_zero(span);
        let sampled = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & 1 == 1);
        usable.then(|| Self { trace: trace.to_owned(), span: span.to_owned(), sampled })
    }
}

fn new_id() -> HeaderValue {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let text = format!("{:08x}-{number:06x}", crate::request::random_bits() as u32);
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trimmed(uri: &str) -> String {
        let mut request = Request::builder().uri(uri).body(Body::empty()).unwrap();
        drop_final_slashes(&mut request);
        request.uri().to_string()
    }

    #[test]
    fn final_slashes_go() {
        assert_eq!(trimmed("/health/"), "/health");
        assert_eq!(trimmed("/a/decode//?shape=1&x=/"), "/a/decode?shape=1&x=/");
        assert_eq!(trimmed("/"), "/");
        assert_eq!(trimmed("//?a=b"), "/?a=b");
        assert_eq!(trimmed("http://host/x/"), "http://host/x");
    }

    #[test]
    fn ids_are_kept_when_plain() {
        let id = |text: &str| {
            let headers = HeaderMap::from_iter([(REQUEST_ID, HeaderValue::from_str(text).unwrap())]);
            request_id(&headers).to_str().unwrap().to_owned()
        };
        assert_eq!(id("abc-1"), "abc-1");
        assert_ne!(id("a b"), "a b");
        assert_ne!(id(&"x".repeat(200)), "x".repeat(200));
        assert_ne!(id("a b"), id("a b"));
    }

    #[test]
    fn traces_are_recognised() {
        let parent =
            |text: &str| TraceParent::of(&HeaderMap::from_iter([(TRACE_PARENT, text.parse().unwrap())]));
        let trace = |text: &str| parent(text).map(|parent| parent.trace);
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace(&format!("00-{id}-00f067aa0ba902b7-01")).as_deref(), Some(id));
        for wrong in
            ["", "00-1-2-3", &format!("ff-{id}-00f067aa0ba902b7-01"), &format!("00-{id}-0000000000000000-01")]
        {
            assert_eq!(trace(wrong), None, "{wrong}");
        }
        assert_eq!(trace(&format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase())), None);
        let with_flags = |flags: &str| parent(&format!("00-{id}-00f067aa0ba902b7-{flags}")).unwrap();
        assert!(with_flags("03").sampled && !with_flags("00").sampled);
        assert_eq!(with_flags("00").span, "00f067aa0ba902b7");
    }

    #[test]
    fn ids_of_jobs_are_not_shown_whole() {
        assert_eq!(shown("/v1/jobs/0123456789abcdef/result"), "/v1/jobs/01234567*/result");
        assert_eq!(shown("/v1/jobs/0123456789abcdef"), "/v1/jobs/01234567*");
        for path in ["/v1/jobs/short/events", "/v1/jobs", "/v1/jobs/", "/decode", "/v1/jobs/0123456\u{e9}"] {
            assert_eq!(shown(path), path);
        }
    }

    #[test]
    fn stages_are_told() {
        let trace = Trace { queued: Some(Duration::from_millis(2)), ..Trace::default() };
        assert_eq!(server_timing(&trace).unwrap(), "queue;dur=2.00");
        assert!(server_timing(&Trace::default()).is_none());
    }
}
