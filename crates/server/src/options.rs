//! What an operator can set, with defaults and validation. Nothing here knows command lines or environments.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use remote_vae_engine::{Precision, Windows};
use serde::Serialize;

use crate::auth::ApiKey;
use crate::cors::is_origin;
use crate::error::ServerError;
use remote_vae_engine::memory;

const MIB: u64 = 1 << 20;

/// Everything about a server but its models.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerOptions {
    /// Address to listen on; loopback unless the operator says otherwise.
    pub host: String,
    /// Port to listen on; 0 lets the system choose.
    pub port: u16,
    /// Precision of requests that do not name one.
    pub precision: Precision,
    /// How clips are cut by models of videos, for requests that do not say it.
    pub windows: Windows,
    /// What a request may ask for, and how many may wait.
    pub limits: Limits,
    /// Whether the default model's weights are loaded before the server calls itself ready.
    pub warm_up: bool,
    /// How long accepted work may still run once a shutdown was asked for.
    pub drain_timeout: Duration,
    /// Longest time from the end of a request's body to its answer; none means no limit. A request may
    /// shorten it with the header `x-request-timeout-ms`.
    pub request_timeout: Option<Duration>,
    /// Longest time in which a request's body must have arrived.
    pub body_timeout: Duration,
    /// Longest time without a byte of a request's body that is still to come.
    pub body_idle_timeout: Duration,
    /// Longest time from a connection's start, or from the first byte of a later request, to the end of the request's
    /// head.
    pub header_timeout: Duration,
    /// Longest time that a connection may stay idle between requests, or that a client may take nothing of an answer.
    pub idle_timeout: Duration,
    /// Further paths, such as `/vae/decode`, that are served by the default model.
    pub extra_paths: Vec<String>,
    /// Bearer keys; if there are none and no file of them, anybody may use the server. Never printed.
    pub api_keys: Vec<ApiKey>,
    /// A file of further keys, one a line as [`ApiKey::parse_line`] reads them; read anew when it changes.
    pub api_key_file: Option<PathBuf>,
    /// Whether `/info` and `/metrics` want a key too.
    pub private_info: bool,
    /// Certificate and key; none means plain HTTP. Read anew when they change.
    pub tls: Option<TlsFiles>,
    /// Origins whose pages may use the server beside its own, e.g. `https://example.org`; `*` for any.
    pub cors_origins: Vec<String>,
    /// How long the result of a job of `/v1/jobs` is kept.
    pub job_ttl: Duration,
    /// A collector that gets a span of each request for work, e.g. `http://127.0.0.1:4318`; none means no spans.
    #[cfg(feature = "otlp")]
    pub otlp_endpoint: Option<String>,
}

/// Where certificate and key are, both in PEM form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            precision: Precision::default(),
            windows: Windows::default(),
            limits: Limits::default(),
            warm_up: true,
            drain_timeout: Duration::from_secs(30),
            request_timeout: None,
            body_timeout: Duration::from_secs(300),
            body_idle_timeout: Duration::from_secs(300),
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(300),
            extra_paths: Vec::new(),
            api_keys: Vec::new(),
            api_key_file: None,
            private_info: false,
            tls: None,
            cors_origins: Vec::new(),
            job_ttl: Duration::from_secs(600),
            #[cfg(feature = "otlp")]
            otlp_endpoint: None,
        }
    }
}

/// Bounds that are checked before anything is allocated for a request.
/// Serialisable for `/info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Bytes of one request's body.
    pub max_body_bytes: u64,
    /// Bytes of all bodies, and of what is unpacked from them, that are held at one time; at least
    /// [`Limits::least_held_bytes`].
    pub max_held_bytes: u64,
    /// Pixels of one request, over its whole batch: output pixels of a decode, input pixels of an encode.
    pub max_pixels: u64,
    /// Samples of one request.
    pub max_batch: usize,
    /// Frames of a clip.
    pub max_frames: usize,
    /// Requests that may wait for the engine, beside the one it works on.
    pub max_queue: usize,
    /// Bytes that a request's plan may need at its peak; none means no limit. By default 80 % of the memory that the
    /// process may use, where the system says how much that is. The engine has a budget of its own, for which it makes
    /// its plans smaller; this is the bound of what it cannot make smaller.
    pub max_plan_bytes: Option<u64>,
    /// Bytes of all answers together, as they come out of the engine, from admission until they are sent. An answer
    /// that alone is larger is taken when there is no other.
    pub max_answer_bytes: u64,
    /// Jobs of `/v1/jobs` at one time, waiting, running or with their results.
    pub max_jobs: usize,
    /// Connections open at one time. For a further one the connection that is idle longest is closed; if none is idle
    /// it is answered with 503.
    pub max_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 256 * MIB,
            max_held_bytes: 1024 * MIB,
            max_pixels: 4096 * 4096,
            max_batch: 16,
            max_frames: 1024,
            max_queue: 64,
            // The rest is for weights, bodies and answers.
            max_plan_bytes: memory::default_budget(),
            max_answer_bytes: 1024 * MIB,
            max_jobs: 64,
            max_connections: 1024,
        }
    }
}

impl Limits {
    /// What must be allowed to be held so that a body of the largest size fits: seven quarters of it, because base64 in
    /// JSON lies beside the three quarters that are unpacked from it.
    pub fn least_held_bytes(&self) -> u64 {
        self.max_body_bytes.saturating_add(self.max_body_bytes.div_ceil(4).saturating_mul(3))
    }
}

impl ServerOptions {
    /// Checks that the options make sense together.
    ///
    /// # Errors
    /// [`ServerError::Option`] naming the option, what was found and what is expected.
    pub fn validate(&self) -> Result<(), ServerError> {
        let limits = &self.limits;
        at_least("limits.max_body_bytes", limits.max_body_bytes, 1)?;
        at_least("limits.max_pixels", limits.max_pixels, 64)?;
        at_least("limits.max_batch", limits.max_batch as u64, 1)?;
        at_least("limits.max_frames", limits.max_frames as u64, 1)?;
        at_least("limits.max_queue", limits.max_queue as u64, 1)?;
        at_least("limits.max_jobs", limits.max_jobs as u64, 1)?;
        at_least("limits.max_connections", limits.max_connections as u64, 1)?;
        at_least("limits.max_held_bytes", limits.max_held_bytes, limits.least_held_bytes())?;
        for (name, timeout) in [
            ("body_timeout", self.body_timeout),
            ("body_idle_timeout", self.body_idle_timeout),
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("job_ttl", self.job_ttl),
        ] {
            if timeout.is_zero() {
                return Err(option(name, "0", "more than 0 seconds"));
            }
        }
        if self.request_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(option("request_timeout", "0", "more than 0 seconds, or none for no limit"));
        }
        for path in &self.extra_paths {
            let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte));
            if !path.starts_with('/') || path.len() < 2 || !plain || path.contains("//") {
                return Err(option("extra_paths", path, "paths such as `/vae/decode`"));
            }
        }
        if !self.api_keys.iter().all(ApiKey::is_plain) {
            return Err(option("api_keys", "a key that is not", "keys of visible ASCII characters"));
        }
        if let Some(origin) = self.cors_origins.iter().find(|origin| !is_origin(origin)) {
            return Err(option("cors_origins", origin, "`*` or origins such as `https://example.org`"));
        }
        Ok(())
    }
}

fn at_least(name: &'static str, found: u64, least: u64) -> Result<(), ServerError> {
    if found >= least { Ok(()) } else { Err(option(name, found, &format!("at least {least}"))) }
}

fn option(name: &'static str, found: impl fmt::Display, expected: &str) -> ServerError {
    ServerError::Option { name, found: found.to_string(), expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        let options = ServerOptions::default();
        options.validate().unwrap();
        assert!(options.limits.max_body_bytes >= 64 * MIB);
        let least = Limits { max_held_bytes: 448 * MIB, ..options.limits.clone() };
        ServerOptions { limits: least, ..options.clone() }.validate().unwrap();
        assert_eq!(options.limits.max_plan_bytes.is_some(), cfg!(target_os = "linux"));
    }

    #[test]
    fn nonsense_is_named() {
        let refused = |change: fn(&mut ServerOptions)| {
            let mut options = ServerOptions::default();
            change(&mut options);
            options.validate().unwrap_err().to_string()
        };
        assert!(refused(|o| o.limits.max_queue = 0).contains("max_queue"));
        assert!(refused(|o| o.limits.max_held_bytes = 448 * MIB - 1).contains("at least 469762048"));
        assert!(refused(|o| o.extra_paths = vec!["decode".into()]).contains("extra_paths"));
        assert!(refused(|o| o.idle_timeout = Duration::ZERO).contains("idle_timeout"));
        assert!(refused(|o| o.header_timeout = Duration::ZERO).contains("header_timeout"));
        assert!(refused(|o| o.body_idle_timeout = Duration::ZERO).contains("body_idle_timeout"));
        assert!(refused(|o| o.api_keys = vec![ApiKey::new("a b")]).contains("api_keys"));
        assert!(refused(|o| o.cors_origins = vec!["a.example".into()]).contains("cors_origins"));
    }
}
