//! What an operator can set, with defaults and validation. Nothing here knows command lines or environments.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::ServerError;

const MIB: u64 = 1 << 20;

/// Everything about a server but its models. Serialisable; the keys are left out when written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerOptions {
    /// Address to listen on; loopback unless the operator says otherwise.
    pub host: String,
    /// Port to listen on; 0 lets the system choose.
    pub port: u16,
    /// What a request may ask for, and how many may wait.
    pub limits: Limits,
    /// Whether the default model's weights are loaded before the server calls itself ready.
    pub warm_up: bool,
    /// How long accepted work may still run once a shutdown was asked for, in seconds.
    #[serde(with = "seconds")]
    pub drain_timeout: Duration,
    /// Longest time from the end of a request's body to its answer, in seconds; none means no limit. A request may
    /// shorten it with the header `x-request-timeout-ms`.
    #[serde(with = "optional_seconds")]
    pub request_timeout: Option<Duration>,
    /// Longest time in which a request's body must have arrived, in seconds.
    #[serde(with = "seconds")]
    pub body_timeout: Duration,
    /// Longest time a connection may stay idle or take to send a request's head, in seconds.
    #[serde(with = "seconds")]
    pub idle_timeout: Duration,
    /// Further paths, such as `/vae/decode`, that are served by the default model.
    pub extra_paths: Vec<String>,
    /// Bearer keys; empty means that anybody may use the server. Never written or printed.
    #[serde(skip_serializing)]
    pub api_keys: Vec<ApiKey>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            limits: Limits::default(),
            warm_up: true,
            drain_timeout: Duration::from_secs(30),
            request_timeout: None,
            body_timeout: Duration::from_secs(300),
            idle_timeout: Duration::from_secs(300),
            extra_paths: Vec::new(),
            api_keys: Vec::new(),
        }
    }
}

/// Bounds that are checked before anything is allocated for a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of one request's body.
    pub max_body_bytes: u64,
    /// Bytes of all bodies that are held at one time.
    pub max_held_bytes: u64,
    /// Pixels of one request, over its whole batch: output pixels of a decode, input pixels of an encode.
    pub max_pixels: u64,
    /// Samples of one request.
    pub max_batch: usize,
    /// Requests that may wait for the engine, beside the one it works on.
    pub max_queue: usize,
    /// Bytes that a request's plan may need at its peak; none means no limit.
    pub max_plan_bytes: Option<u64>,
    /// Connections open at one time; further ones wait to be accepted.
    pub max_connections: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 256 * MIB,
            max_held_bytes: 1024 * MIB,
            max_pixels: 4096 * 4096,
            max_batch: 16,
            max_queue: 64,
            max_plan_bytes: None,
            max_connections: 1024,
        }
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
        at_least("limits.max_queue", limits.max_queue as u64, 1)?;
        at_least("limits.max_connections", limits.max_connections as u64, 1)?;
        at_least("limits.max_held_bytes", limits.max_held_bytes, limits.max_body_bytes)?;
        if limits.max_connections > tokio::sync::Semaphore::MAX_PERMITS {
            return Err(option("limits.max_connections", limits.max_connections, "a smaller number"));
        }
        for (name, timeout) in [("body_timeout", self.body_timeout), ("idle_timeout", self.idle_timeout)] {
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
        for key in &self.api_keys {
            if key.0.is_empty() || !key.0.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(option("api_keys", "a key that is not", "keys of visible ASCII characters"));
            }
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

/// A bearer key. `Debug` does not show it, and comparing takes the same time wherever two keys differ.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub struct ApiKey(String);

impl ApiKey {
    /// Takes the key's text.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// Whether `candidate` is this key.
    pub(crate) fn matches(&self, candidate: &[u8]) -> bool {
        let key = self.0.as_bytes();
        let difference = key.iter().zip(candidate).fold(0_u8, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0 && key.len() == candidate.len()
    }
}

impl PartialEq for ApiKey {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.0.as_bytes())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Durations as numbers of seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_f64(value.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Durations as numbers of seconds, or null.
mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        value.map(|duration| duration.as_secs_f64()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(from)?
            .map(Duration::try_from_secs_f64)
            .transpose()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_survive_json_without_keys() {
        let options = ServerOptions { api_keys: vec![ApiKey::new("s3cret")], ..ServerOptions::default() };
        options.validate().unwrap();
        let text = serde_json::to_string(&options).unwrap();
        assert!(!text.contains("s3cret") && !format!("{options:?}").contains("s3cret"));
        let back: ServerOptions = serde_json::from_str(&text).unwrap();
        assert_eq!(back, ServerOptions::default());
        assert!(options.limits.max_body_bytes >= 64 * MIB);
    }

    #[test]
    fn keys_may_be_read() {
        let options: ServerOptions =
            serde_json::from_str(r#"{"port":1,"api_keys":["abc"],"request_timeout":1.5}"#).unwrap();
        assert!(options.api_keys[0].matches(b"abc"));
        assert!(!options.api_keys[0].matches(b"ab") && !options.api_keys[0].matches(b"abcd"));
        assert!(!options.api_keys[0].matches(b"") && !options.api_keys[0].matches(b"abd"));
        assert_eq!(options.request_timeout, Some(Duration::from_millis(1500)));
        assert!(serde_json::from_str::<ServerOptions>(r#"{"prot":1}"#).is_err());
        assert!(serde_json::from_str::<ServerOptions>(r#"{"drain_timeout":-1}"#).is_err());
    }

    #[test]
    fn nonsense_is_named() {
        let refused = |change: fn(&mut ServerOptions)| {
            let mut options = ServerOptions::default();
            change(&mut options);
            options.validate().unwrap_err().to_string()
        };
        assert!(refused(|o| o.limits.max_queue = 0).contains("max_queue"));
        assert!(refused(|o| o.limits.max_held_bytes = 1).contains("max_held_bytes"));
        assert!(refused(|o| o.extra_paths = vec!["decode".into()]).contains("extra_paths"));
        assert!(refused(|o| o.idle_timeout = Duration::ZERO).contains("idle_timeout"));
        assert!(refused(|o| o.api_keys = vec![ApiKey::new("a b")]).contains("api_keys"));
    }
}
