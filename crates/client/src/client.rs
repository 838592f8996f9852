//! The async client.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use remote_vae_wire::{content_type, error_message};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use reqwest::{Method, RequestBuilder, Response, Url};

use crate::connect::{connect, parse_address, shown};
use crate::error::ClientError;
use crate::options::{DecodeOptions, EncodeOptions, Source};
use crate::progress::{self, Progress, ProgressCallback, Stage};
use crate::reply::Reply;
use crate::retry;
use crate::tensor::Tensor;

/// The longest look at whether a server speaks HTTPS.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// Speaks to one endpoint. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    pub(crate) url: Url,
    pub(crate) retries: u32,
    pub(crate) timeout: Option<Duration>,
    progress: Option<ProgressCallback>,
}

/// Settings of a [`Client`].
#[derive(Clone)]
pub struct ClientBuilder {
    url: String,
    key: Option<String>,
    timeout: Option<Duration>,
    connect_timeout: Duration,
    retries: u32,
    progress: Option<ProgressCallback>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("url", &shown(&self.url)).finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBuilder").field("has_key", &self.key.is_some()).finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// Sends this key as `authorization: Bearer KEY`. It is never logged or shown.
    #[must_use]
    pub fn bearer_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Longest time of one attempt, from connecting to the last byte of the answer; 600 s unless set, none for no
    /// limit.
    #[must_use]
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Longest time to connect; 10 s unless set.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How often to try again after 408, 429, 502, 503 or 504, or when a connection breaks; 5 unless set. Jobs are handed
    /// in again after 408, 429 and 503 only, where the server has not taken them. The waits are
    /// those that the server names in `Retry-After`, or half a second that doubles, at most a minute.
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Called while the bytes of a decode or an encode travel, from the task that awaits it.
    #[must_use]
    pub fn on_progress(mut self, progress: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// Makes the client. Does not connect yet.
    ///
    /// # Errors
    /// The address or the key cannot be used.
    pub fn build(self) -> Result<Client, ClientError> {
        let url = parse_address(&self.url)?;
        let http = connect(&url, self.key.as_deref(), self.timeout, self.connect_timeout)?;
        let Self { retries, timeout, progress, .. } = self;
        Ok(Client { http, url, retries, timeout, progress })
    }
}

/// When a request may be sent again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Also where a server may have heard it: it does the same twice as once.
    Always,
    /// Only where the answer says that nothing came of it.
    Unheard,
}

/// One request, ready to be sent as often as needed.
pub(crate) struct Attempt {
    method: Method,
    url: Url,
    accept: &'static str,
    content_type: Option<&'static str>,
    body: Bytes,
    /// Whether the progress callback hears of its bytes.
    is_told: bool,
    /// What may be sent again.
    repeat: Repeat,
}

impl Attempt {
    /// A request without a body, for a short answer.
    pub(crate) fn short(method: Method, url: Url) -> Self {
        let (accept, content_type) = (content_type::JSON, None);
        let (body, repeat) = (Bytes::new(), Repeat::Always);
        Self { method, url, accept, content_type, body, is_told: false, repeat }
    }

    /// A request for an answer that the callback hears of.
    pub(crate) fn fetch(url: Url) -> Self {
        Self { accept: "*/*", is_told: true, ..Self::short(Method::GET, url) }
    }

    /// `latents`, to be decoded at `url`.
    pub(crate) fn decode(
        mut url: Url,
        latents: &Tensor,
        options: &DecodeOptions,
    ) -> Result<Self, ClientError> {
        latents.check()?;
        add_query(&mut url, &options.parameters(latents).to_query());
        Ok(Self {
            method: Method::POST,
            url,
            accept: options.output.accept(),
            content_type: Some(content_type::TENSOR_BINARY),
            body: Bytes::from(latents.bytes.clone()),
            is_told: true,
            repeat: Repeat::Always,
        })
    }

    /// `source`, to be encoded at `url`.
    pub(crate) fn encode(mut url: Url, source: Source, options: &EncodeOptions) -> Result<Self, ClientError> {
        source.check()?;
        add_query(&mut url, &options.parameters(&source).to_query());
        let body = Bytes::from(match source {
            Source::File(bytes) => bytes,
            Source::Pixels(tensor) => tensor.bytes,
        });
        // The Python client states no type either: signature and shape say what the body is.
        let (accept, content_type) = (content_type::TENSOR_BINARY, None);
        let repeat = Repeat::Always;
        Ok(Self { method: Method::POST, url, accept, content_type, body, is_told: true, repeat })
    }

    /// The same, sent again only where no server has taken it: a second one would make a second job.
    pub(crate) fn at_most_once(self) -> Self {
        Self { repeat: Repeat::Unheard, ..self }
    }
}

/// Adds to what the address says already.
fn add_query(url: &mut Url, query: &str) {
    let own = url.query().unwrap_or("").to_owned();
    let parts: Vec<&str> = [own.as_str(), query].into_iter().filter(|part| !part.is_empty()).collect();
    url.set_query(if parts.is_empty() { None } else { Some(parts.join("&")) }.as_deref());
}

impl Client {
    /// A client of the endpoint at `url`, for instance `http://127.0.0.1:8080` or `http://host:8080/sdxl`.
    ///
    /// # Errors
    /// The address cannot be used.
    pub fn new(url: impl Into<String>) -> Result<Self, ClientError> {
        Self::builder(url).build()
    }

    /// A client with other settings.
    pub fn builder(url: impl Into<String>) -> ClientBuilder {
        ClientBuilder {
            url: url.into(),
            key: None,
            timeout: Some(Duration::from_secs(600)),
            connect_timeout: Duration::from_secs(10),
            retries: 5,
            progress: None,
        }
    }

    /// Decodes latents `[batch, channels, height, width]`, or packed ones with the picture's size in the options.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or answers with something else than was asked for.
    pub async fn decode(&self, latents: &Tensor, options: &DecodeOptions) -> Result<Reply, ClientError> {
        let (headers, bytes) = self.send(&Attempt::decode(self.url.clone(), latents, options)?).await?;
        Reply::read(&headers, bytes, options.output.answer().is_tensor())
    }

    /// Encodes a picture file or pixels to latents `[batch, channels, height / 8, width / 8]`, float16.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or answers with something else than a tensor.
    pub async fn encode(&self, source: Source, options: &EncodeOptions) -> Result<Reply, ClientError> {
        let (headers, bytes) = self.send(&Attempt::encode(self.url.clone(), source, options)?).await?;
        Reply::read(&headers, bytes, true)
    }

    /// Whether the server takes work: what `/health` beside the endpoint's root says.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn is_ready(&self) -> Result<bool, ClientError> {
        let response = self.get("/health").await?;
        Ok(response.status().is_success())
    }

    /// What the server tells about itself at `/info`: models, limits, engine.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, or does not answer with JSON.
    pub async fn info(&self) -> Result<serde_json::Value, ClientError> {
        let (_, body) = self.finish(self.get("/info").await?, false).await?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Answer { reason: error.to_string() })
    }

    /// The server's measurements at `/metrics`, in Prometheus' text form.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let (_, body) = self.finish(self.get("/metrics").await?, false).await?;
        String::from_utf8(body).map_err(|error| ClientError::Answer { reason: error.to_string() })
    }

    async fn get(&self, path: &str) -> Result<Response, ClientError> {
        let mut url = self.url.clone();
        url.set_path(path);
        url.set_query(None);
        match self.http.get(url).send().await {
            Ok(response) => Ok(response),
            Err(error) => Err(self.other_scheme(self.failure(&error)).await),
        }
    }

    /// Sends until there is an answer or the retries are used up.
    pub(crate) async fn send(&self, attempt: &Attempt) -> Result<(HeaderMap, Vec<u8>), ClientError> {
        self.send_counted(attempt).await.1
    }

    /// The same, with the number of attempts before the last.
    pub(crate) async fn send_counted(
        &self,
        attempt: &Attempt,
    ) -> (u32, Result<(HeaderMap, Vec<u8>), ClientError>) {
        let is_repeatable = attempt.repeat == Repeat::Always;
        let is_temporary = if is_repeatable { retry::is_temporary } else { retry::is_untaken };
        let mut number = 0;
        loop {
            let is_last = number >= self.retries;
            let outcome = match self.request(attempt).send().await {
                Ok(response) if is_temporary(response.status()) && !is_last => {
                    Err(retry::retry_after(response.headers()))
                }
                Ok(response) => match self.finish(response, attempt.is_told).await {
                    Err(ClientError::Connection { .. }) if is_repeatable && !is_last => Err(None),
                    finished => Ok(finished),
                },
                Err(error) => {
                    let failure = self.failure(&error);
                    // Once is enough to know what the server speaks.
                    let failure = if number == 0 { self.other_scheme(failure).await } else { failure };
                    match failure {
                        ClientError::Connection { .. } if is_repeatable && !is_last => Err(None),
                        failure => Ok(Err(failure)),
                    }
                }
            };
            match outcome {
                Ok(finished) => return (number, finished),
                Err(asked) => tokio::time::sleep(retry::wait(number, asked)).await,
            }
            number += 1;
        }
    }

    /// One request; with a callback its body goes in pieces, of which it is told.
    pub(crate) fn request(&self, attempt: &Attempt) -> RequestBuilder {
        let mut request = self.http.request(attempt.method.clone(), attempt.url.clone());
        request = request.header(ACCEPT, attempt.accept);
        if let Some(content_type) = attempt.content_type {
            request = request.header(CONTENT_TYPE, content_type);
        }
        let body = attempt.body.clone();
        match &self.progress {
            _ if body.is_empty() => request,
            Some(callback) if attempt.is_told => request.body(progress::counted(body, Arc::clone(callback))),
            _ => request.body(body),
        }
    }

    /// Reads a success whole; anything else becomes an error with the server's words.
    pub(crate) async fn finish(
        &self,
        mut response: Response,
        is_told: bool,
    ) -> Result<(HeaderMap, Vec<u8>), ClientError> {
        let (status, headers) = (response.status(), response.headers().clone());
        let total = response.content_length().unwrap_or(0);
        // A length that is stated may be wrong: memory is taken as bytes come.
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.failure(&error))? {
            body.extend_from_slice(&piece);
            if let Some(callback) = self.progress.as_ref().filter(|_| is_told) {
                callback(Progress { stage: Stage::Receiving, done: body.len() as u64, total });
            }
        }
        if status.is_success() {
            return Ok((headers, body));
        }
        let message = error_message(&body).unwrap_or_else(|| foreign_message(status, &body));
        Err(ClientError::Refused {
            status: status.as_u16(),
            message,
            retry_after: retry::retry_after(&headers),
        })
    }

    /// `failure`, or that the server of an address with `http` speaks HTTPS, where a handshake shows it.
    async fn other_scheme(&self, failure: ClientError) -> ClientError {
        let is_plain = self.url.scheme() == "http";
        // What a server of HTTPS answers to plain HTTP begins with no line of HTTP.
        let is_odd =
            matches!(&failure, ClientError::Connection { reason, .. } if reason.contains("invalid HTTP"));
        if !is_plain || !is_odd {
            return failure;
        }
        // With the certificates of a client for plain HTTP, which are none, nothing is sent after the handshake.
        match self.http.head(self.with_scheme("https")).timeout(HANDSHAKE).send().await {
            Err(error) if matches!(tls_error(&error), Some(rustls::Error::InvalidCertificate(_))) => {
                self.scheme("http", "https")
            }
            _ => failure,
        }
    }

    fn scheme(&self, asked: &'static str, spoken: &'static str) -> ClientError {
        let (address, instead) = (shown(&self.url), shown(&self.with_scheme(spoken)));
        ClientError::Scheme { address, asked, spoken, instead }
    }

    /// The same port with another protocol.
    fn with_scheme(&self, scheme: &str) -> Url {
        let (mut url, port) = (self.url.clone(), self.url.port_or_known_default());
        // Neither fails for an address that was checked.
        let _ = url.set_scheme(scheme);
        let _ = url.set_port(port);
        url
    }

    pub(crate) fn failure(&self, error: &reqwest::Error) -> ClientError {
        let address = shown(&self.url);
        if error.is_timeout() && !error.is_connect() {
            return ClientError::Timeout { address, timeout: self.timeout.unwrap_or_default() };
        }
        match tls_error(error) {
            // Later than that it is a connection that broke.
            Some(rustls::Error::InvalidMessage(_)) if error.is_connect() => {
                return self.scheme("https", "http");
            }
            Some(rustls::Error::InvalidCertificate(reason)) => {
                return ClientError::Certificate { address, reason: reason.to_string() };
            }
            _ => {}
        }
        let reason = chain(error);
        if error.is_connect() {
            ClientError::Unreachable { address, reason }
        } else {
            ClientError::Connection { address, reason }
        }
    }
}

/// What the TLS library said, if it was the one: inside of errors of input and output, themselves inside of others.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let inner = |error: &'a std::io::Error| tls_error(error.get_ref()?);
    error
        .downcast_ref()
        .or_else(|| error.downcast_ref().and_then(inner))
        .or_else(|| error.source().and_then(tls_error))
}

/// What an error without JSON says: some proxy's page, shortened, or just the status' name.
fn foreign_message(status: reqwest::StatusCode, body: &[u8]) -> String {
    const LIMIT: usize = 200;
    let text: String =
        String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).take(LIMIT).collect();
    let reason = status.canonical_reason().unwrap_or("no reason given");
    if text.is_empty() { format!("{reason}.") } else { format!("{reason}. {text}") }
}

/// The innermost cause, which is what the system said; the outer ones repeat the address with its query.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
