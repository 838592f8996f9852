//! The HTTP library set up: its TLS provider, certificates only where they are needed, no proxy for the own machine.

use std::sync::Once;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Url, redirect};

use crate::error::ClientError;

/// Chooses the TLS implementation of the process, unless the program has done so.
fn install_tls_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// Reads and checks an address.
pub(crate) fn parse_address(text: &str) -> Result<Url, ClientError> {
    let bad = |reason: &str| ClientError::Address { found: without_secrets(text), reason: reason.to_owned() };
    if !text.contains("://") {
        return Err(bad("it must begin with `http://` or `https://`"));
    }
    let url = Url::parse(text.trim()).map_err(|error| bad(&error.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.has_host() => Ok(url),
        _ => Err(bad("it must begin with `http://` or `https://`")),
    }
}

/// An address may hold a password.
fn without_secrets(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, rest)) => format!("…@{rest}"),
        None => text.to_owned(),
    }
}

/// The address for messages.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    // Fails only for addresses that cannot have them.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.to_string()
}

fn is_own_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("");
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// Sets up the HTTP library for one address.
pub(crate) fn connect(
    url: &Url,
    key: Option<&str>,
    timeout: Option<Duration>,
    connect_timeout: Duration,
) -> Result<reqwest::Client, ClientError> {
    install_tls_provider();
    let mut headers = HeaderMap::new();
    if let Some(key) = key {
        let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| ClientError::Key)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let mut builder = reqwest::Client::builder()
        .default_headers(headers)
        .connect_timeout(connect_timeout)
        .redirect(redirect::Policy::none())
        .user_agent(concat!("remote-vae/", env!("CARGO_PKG_VERSION")));
    if let Some(timeout) = timeout {
        builder = builder.timeout(timeout);
    }
    if is_own_machine(url) {
        builder = builder.no_proxy();
    }
    if url.scheme() == "http" {
        // Machines without certificates can speak plain HTTP all the same.
        builder = builder.tls_certs_only([]);
    }
    builder.build().map_err(|error| ClientError::Connection {
        address: shown(url),
        reason: crate::client::chain(&error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        assert!(parse_address("http://127.0.0.1:8080").is_ok());
        for wrong in ["localhost:8080", "ftp://x", "http://", "", "http://[::1"] {
            assert!(matches!(parse_address(wrong), Err(ClientError::Address { .. })), "{wrong}");
        }
        let message = parse_address("htp://me:secret@host").unwrap_err().to_string();
        assert!(!message.contains("secret"), "{message}");
        assert_eq!(shown(&parse_address("http://me:pw@host/x?y=1").unwrap()), "http://host/x");
    }

    #[test]
    fn the_own_machine_is_known() {
        let own = |text: &str| is_own_machine(&parse_address(text).unwrap());
        assert!(own("http://localhost:1") && own("http://127.0.0.2") && own("http://[::1]:80"));
        assert!(!own("http://example.org") && !own("http://10.0.0.1"));
    }
}
