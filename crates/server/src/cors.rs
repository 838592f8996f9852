//! Requests that a browser sends for a page of another origin: refused unless the operator allows that origin.
//!
//! Without this any page could make a visitor's browser post work to a server on the visitor's own machine. Programs
//! send no `Origin`, and a page that the server itself gave is of its own origin.

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use remote_vae_wire::shortened;

use crate::error::Refusal;

/// What pages may read of an answer beside its body.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "shape, dtype, retry-after, server-timing, x-request-id, x-remote-vae-engine, location",
);
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, DELETE");
const HEADERS: HeaderValue = HeaderValue::from_static(
    "authorization, content-type, accept, x-request-id, x-request-timeout-ms, traceparent",
);
const ANY: &str = "*";

/// What is to be done about a request's origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// None, or the server's own.
    Own,
    /// One that may read answers.
    Allowed(HeaderValue),
    /// Another.
    Foreign,
}

impl Origin {
    /// Compares the request's origin with its host and with what the operator allows.
    pub(crate) fn of(head: &Parts, allowed: &[String]) -> Self {
        let Some(value) = head.headers.get(header::ORIGIN) else { return Origin::Own };
        let Ok(origin) = value.to_str() else { return Origin::Foreign };
        let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
        let own = origin.split_once("://").is_some_and(|(_, rest)| host == Some(rest));
        if allowed.iter().any(|allowed| allowed == ANY) {
            return Origin::Allowed(HeaderValue::from_static(ANY));
        }
        if allowed.iter().any(|allowed| allowed == origin) {
            return Origin::Allowed(value.clone());
        }
        if own { Origin::Own } else { Origin::Foreign }
    }

    /// An answer that needs no handler: to a browser's question whether it may ask, or a refusal.
    pub(crate) fn answer(&self, head: &Parts) -> Option<Response> {
        let asks = head.method == Method::OPTIONS
            && head.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        match self {
            Origin::Allowed(_) if asks => Some(StatusCode::NO_CONTENT.into_response()),
            Origin::Foreign if !matches!(head.method, Method::GET | Method::HEAD) => {
                let found = head.headers.get(header::ORIGIN).and_then(|value| value.to_str().ok());
                let message = format!(
                    "Requests of pages of other origins are not allowed here. Got `{}`.",
                    shortened(found.unwrap_or("?"))
                );
                Some(Refusal::new(StatusCode::FORBIDDEN, message).into_response())
            }
            _ => None,
        }
    }

    /// Tells the browser that the page may read the answer.
    pub(crate) fn mark(self, headers: &mut HeaderMap) {
        let Origin::Allowed(origin) = self else { return };
        if origin != ANY {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}

/// Whether an operator may allow this: `*` or `scheme://host[:port]`.
pub(crate) fn is_origin(text: &str) -> bool {
    let plain =
        |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    text == ANY || ["http://", "https://"].iter().any(|scheme| text.strip_prefix(scheme).is_some_and(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(origin: &str, allowed: &[&str]) -> Origin {
        let request =
            axum::http::Request::post("/").header("host", "vae.example:8080").header("origin", origin);
        let (head, ()) = request.body(()).unwrap().into_parts();
        Origin::of(&head, &allowed.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn origins_are_compared_whole() {
        assert_eq!(of("http://vae.example:8080", &[]), Origin::Own);
        for foreign in
            ["http://vae.example", "http://vae.example:8080.evil.example", "null", "https://a.example"]
        {
            assert_eq!(of(foreign, &[]), Origin::Foreign, "{foreign}");
        }
        let a = ["https://a.example"];
        assert_eq!(
            of("https://a.example", &a),
            Origin::Allowed(HeaderValue::from_static("https://a.example"))
        );
        assert_eq!(of("https://a.example.evil", &a), Origin::Foreign);
        assert_eq!(of("https://b.example", &["*"]), Origin::Allowed(HeaderValue::from_static("*")));
    }

    #[test]
    fn only_origins_can_be_allowed() {
        assert!(is_origin("*") && is_origin("https://a.example:8443"));
        assert!(!is_origin("a.example") && !is_origin("https://a.example/") && !is_origin("https://"));
    }
}
