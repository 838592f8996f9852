//! The errors of this crate: [`ServerError`] for the program that starts a server, `Refusal` for the clients.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use remote_vae_wire::{WireError, content_type, error_body, shortened};

/// Why a server cannot start or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// An option that makes no sense.
    #[error("Expected the option `{name}` to be {expected}. Got {found}.")]
    Option {
        /// The option's name.
        name: &'static str,
        /// The value found.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A server needs something to serve.
    #[error("Expected at least one model. Got none.")]
    NoModel,
    /// A model's name is part of a path and must not hide another route.
    #[error(
        "Expected a model name of letters, digits, `.`, `_` and `-` that is no route of the server. Got `{name}`."
    )]
    ModelName {
        /// The name found.
        name: String,
    },
    /// Two models have one name.
    #[error("Expected every model to have its own name. Got `{name}` twice.")]
    DuplicateModel {
        /// The name found twice.
        name: String,
    },
    /// The address cannot be listened on.
    #[error("Cannot listen on {host}:{port}: {source}.")]
    Listen {
        /// Host as configured.
        host: String,
        /// Port as configured.
        port: u16,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file of keys cannot be used.
    #[error("Cannot read the keys of {}: {reason}.", path.display())]
    KeyFile {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong; no key is in it.
        reason: String,
    },
    /// Certificate or key cannot be used.
    #[error("Cannot use the certificate: {0}.")]
    Tls(String),
    /// The system would not start a thread for the engine.
    #[error("Cannot start the engine's thread: {0}.")]
    Thread(std::io::Error),
    /// The default model could not be made ready.
    #[error("Cannot load the weights of the model `{model}`: {source}.")]
    WarmUp {
        /// The model's name.
        model: String,
        /// What the engine said.
        source: remote_vae_engine::EngineError,
    },
}

/// A request that is not served: status, message, and the headers that go with the status. Always JSON.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    retry_after: Option<Duration>,
    allow: Option<String>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after: None, allow: None }
    }

    /// 400: what the client sent is wrong.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 413: what the client sent is right, but larger than this server takes.
    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 500: our own fault.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 429: the queue is full.
    pub(crate) fn overloaded(message: impl Into<String>, retry_after: Duration) -> Self {
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, message);
        Self { retry_after: Some(retry_after), ..refusal }
    }

    /// 503: not yet or no longer serving.
    pub(crate) fn unavailable(message: impl Into<String>, retry_after: Duration) -> Self {
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, message);
        Self { retry_after: Some(retry_after), ..refusal }
    }

    /// 409: what is asked for will be there later.
    pub(crate) fn not_yet(message: impl Into<String>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(StatusCode::CONFLICT, message) }
    }

    /// 405 with the methods that would do.
    pub(crate) fn method(found: &axum::http::Method, allow: &str) -> Self {
        let message = format!("Expected the method to be one of {allow}. Got {}.", shortened(found.as_str()));
        Self { allow: Some(allow.to_owned()), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, message) }
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::bad_request(error.to_string())
    }
}

/// Why an answer that is made while it is read broke off.
impl From<axum::Error> for Refusal {
    fn from(error: axum::Error) -> Self {
        let broken = |_| Self::internal("The answer could not be made whole.");
        error.into_inner().downcast::<Self>().map_or_else(broken, |refusal| *refusal)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = error_body(&self.message);
        let mut response = (self.status, [(header::CONTENT_TYPE, content_type::JSON)], body).into_response();
        let headers = response.headers_mut();
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)));
        }
        if let Some(allow) = self.allow.and_then(|allow| HeaderValue::try_from(allow).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Rounded up, at least one: a client told to wait 0 seconds would come back at once.
fn whole_seconds(wait: Duration) -> u64 {
    let rounded = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    rounded.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_json_with_its_headers() {
        let response = Refusal::overloaded("full", Duration::from_millis(1200)).into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/json");
        let response = Refusal::method(&axum::http::Method::PUT, "GET, HEAD").into_response();
        assert_eq!(response.headers()["allow"], "GET, HEAD");
        let response = Refusal::new(StatusCode::UNAUTHORIZED, "no").into_response();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        assert_eq!(whole_seconds(Duration::ZERO), 1);
    }
}
