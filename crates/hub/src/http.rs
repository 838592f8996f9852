//! The hub's HTTP: requests that carry the token to the hub and to nobody else, redirects, and what its statuses mean.

use std::error::Error;
use std::io::Read;
use std::net::IpAddr;
use std::sync::Once;
use std::time::Duration;

use reqwest::blocking::{Client, Response};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, ETAG, HeaderMap, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, StatusCode, Url, redirect};
use serde::Deserialize;

use crate::HubError;
use crate::cache::is_commit;
use crate::settings::Settings;
use crate::source::Repository;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_REDIRECTS: usize = 10;
const MAX_LISTING_BYTES: u64 = 64 << 20;
const MAX_ETAG: usize = 128;

/// A connection to one hub.
pub(crate) struct Http {
    client: Client,
    endpoint: Url,
    token: Option<HeaderValue>,
}

/// What the hub says of a repository at a revision.
#[derive(Debug, Deserialize)]
pub(crate) struct Listing {
    #[serde(rename = "sha")]
    pub commit: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    /// The files whose names can be part of a SOURCE; others could not be named, and may hold anything.
    pub(crate) fn files(&self) -> Vec<String> {
        let names = self.siblings.iter().map(|sibling| &sibling.rfilename);
        names.filter(|name| crate::source::wrong_folder(name).is_none()).cloned().collect()
    }
}

/// What the hub says of a file.
#[derive(Clone, Debug)]
pub(crate) struct Remote {
    /// Names the content: the SHA-256 of a large file, the git hash of a small one.
    pub etag: String,
    pub bytes: Option<u64>,
    /// Where the content is.
    pub location: Url,
}

impl Http {
    pub(crate) fn new(settings: &Settings) -> Result<Http, HubError> {
        let wrong = |name, reason: &str| HubError::Setting { name, reason: reason.to_owned() };
        let endpoint = Url::parse(settings.endpoint.trim_end_matches('/'))
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or_else(|| wrong("HF_ENDPOINT", "is not an address that begins with http:// or https://"))?;
        let token = settings.token.as_ref().map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.secret()))
                .map_err(|_| wrong("HF_TOKEN", "holds characters that a token cannot have"))?;
            value.set_sensitive(true);
            Ok(value)
        });
        install_tls_provider();
        let mut builder = Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(settings.timeout)
            .user_agent(concat!("remote-vae/", env!("CARGO_PKG_VERSION")));
        if is_own_machine(&endpoint) {
            builder = builder.no_proxy().tls_certs_only([]);
        }
        let client = builder.build().map_err(|error| network(&endpoint, &error))?;
        Ok(Http { client, endpoint, token: token.transpose()? })
    }

    /// The hub's host, for messages.
    pub(crate) fn host(&self) -> String {
        host(&self.endpoint)
    }

    fn is_hub(&self, url: &Url) -> bool {
        url.origin() == self.endpoint.origin()
    }

    fn url<'a>(&self, segments: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        // Fails only for addresses without a host, which `new` refuses.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    fn send(&self, method: Method, url: &Url, from: u64) -> Result<Response, HubError> {
        // Compression would hide the length.
        let mut request = self.client.request(method, url.clone()).header(ACCEPT_ENCODING, "identity");
        if let Some(token) = self.token.as_ref().filter(|_| self.is_hub(url)) {
            request = request.header(AUTHORIZATION, token.clone());
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        request.send().map_err(|error| network(url, &error.without_url()))
    }

    /// The files of a repository and the commit of its revision.
    pub(crate) fn listing(&self, repository: &Repository) -> Result<Listing, HubError> {
        let (owner, name) = repository.id.split_once('/').unwrap_or((&repository.id, ""));
        let mut url = self.url(["api", "models", owner, name, "revision", repository.revision()]);
        for _ in 0..MAX_REDIRECTS {
            let response = self.send(Method::GET, &url, 0)?;
            if let Some(target) = self.redirected(&url, &response)? {
                url = target;
                continue;
            }
            let what = format!("the files of `{repository}`");
            if !response.status().is_success() {
                return Err(self.refusal(&url, response.status(), response.headers(), repository, &what));
            }
            let mut text = Vec::new();
            response.take(MAX_LISTING_BYTES).read_to_end(&mut text).map_err(|error| network(&url, &error))?;
            let listing: Listing = serde_json::from_slice(&text)
                .map_err(|_| self.protocol(format!("{what} are not listed as JSON with `sha`")))?;
            if !is_commit(&listing.commit) {
                return Err(self.protocol(format!("{what} are of no commit")));
            }
            return Ok(listing);
        }
        Err(self.protocol("it redirects without end".to_owned()))
    }

    /// Where the content of a file is, and what it will be.
    pub(crate) fn metadata(
        &self,
        repository: &Repository,
        commit: &str,
        file: &str,
    ) -> Result<Remote, HubError> {
        let (owner, name) = repository.id.split_once('/').unwrap_or((&repository.id, ""));
        let mut url = self.url([owner, name, "resolve", commit].into_iter().chain(file.split('/')));
        let (mut linked_etag, mut linked_bytes) = (None, None);
        for _ in 0..MAX_REDIRECTS {
            let response = self.send(Method::HEAD, &url, 0)?;
            let headers = response.headers();
            linked_etag = linked_etag.or_else(|| etag(headers.get("x-linked-etag")));
            linked_bytes = linked_bytes.or_else(|| number(headers.get("x-linked-size")));
            let target = self.redirected(&url, &response)?;
            if let Some(target) = &target
                && self.is_hub(target)
            {
                url = target.clone();
                continue;
            }
            if target.is_none() && !response.status().is_success() {
                return Err(self.refusal(&url, response.status(), headers, repository, &format!("`{file}`")));
            }
            let own_bytes = || {
                let length = target.is_none().then(|| number(headers.get(CONTENT_LENGTH))).flatten();
                length.filter(|bytes| *bytes > 0) // some mirrors answer every HEAD with 0
            };
            return Ok(Remote {
                etag: linked_etag
                    .or_else(|| etag(headers.get(ETAG)))
                    .ok_or_else(|| self.protocol(format!("`{file}` has no usable etag")))?,
                bytes: linked_bytes.or_else(own_bytes),
                location: target.unwrap_or(url),
            });
        }
        Err(self.protocol("it redirects without end".to_owned()))
    }

    /// The content at a location, from a byte on.
    pub(crate) fn content(
        &self,
        location: &Url,
        from: u64,
        repository: &Repository,
        file: &str,
    ) -> Result<Response, HubError> {
        let mut url = location.clone();
        for _ in 0..MAX_REDIRECTS {
            let response = self.send(Method::GET, &url, from)?;
            if let Some(target) = self.redirected(&url, &response)? {
                url = target;
                continue;
            }
            let status = response.status();
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(response);
            }
            return Err(self.refusal(&url, status, response.headers(), repository, &format!("`{file}`")));
        }
        Err(self.protocol("it redirects without end".to_owned()))
    }

    fn redirected(&self, url: &Url, response: &Response) -> Result<Option<Url>, HubError> {
        if !response.status().is_redirection() {
            return Ok(None);
        }
        let target = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
        let target = target.and_then(|location| url.join(location).ok());
        let target = target.filter(|target| matches!(target.scheme(), "http" | "https"));
        let target = target.ok_or_else(|| self.protocol("it redirects to no address".to_owned()))?;
        if url.scheme() == "https" && target.scheme() == "http" {
            return Err(self.protocol("it redirects from https to http".to_owned()));
        }
        Ok(Some(target))
    }

    fn protocol(&self, reason: String) -> HubError {
        HubError::Protocol { host: self.host(), reason }
    }

    /// What a status that is no success means. The hub hides what an account may not see, and says so in `x-error-code`.
    fn refusal(
        &self,
        url: &Url,
        status: StatusCode,
        headers: &HeaderMap,
        repository: &Repository,
        what: &str,
    ) -> HubError {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let id = repository.id.clone();
        let token_sent = self.token.is_some();
        if !self.is_hub(url) {
            return HubError::Status { host: host(url), status: status.as_u16(), what: what.to_owned() };
        }
        match (text("x-error-code"), status.as_u16()) {
            ("RevisionNotFound", _) => {
                HubError::NoRevision { repository: id, revision: repository.revision().to_owned() }
            }
            ("EntryNotFound", _) => {
                HubError::NoFile { repository: id, reason: format!("has no file {what}") }
            }
            ("GatedRepo", _) | ("", 403) => {
                let mut page = self.url(id.split('/'));
                // Fails only for addresses without a host, which hubs are not.
                let _ = page.set_username("").and_then(|()| page.set_password(None));
                HubError::Gated { page: page.to_string(), repository: id, token_sent }
            }
            (_, 401) if token_sent && text("x-error-message").starts_with("Invalid credentials") => {
                HubError::Token { host: self.host() }
            }
            ("RepoNotFound", _) | (_, 401 | 404) => {
                HubError::NoRepository { repository: id, host: self.host(), token_sent }
            }
            (_, status) => HubError::Status { host: self.host(), status, what: what.to_owned() },
        }
    }
}

/// Chooses the TLS implementation of the process, unless the program has done so.
fn install_tls_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn is_own_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn host(url: &Url) -> String {
    let name = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| name.to_owned(), |port| format!("{name}:{port}"))
}

/// A failure of the network by its innermost cause. The outer ones only say which layer passed it on, and may hold the address
/// with a signature.
pub(crate) fn network(url: &Url, error: &(dyn Error + 'static)) -> HubError {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    HubError::Network { host: host(url), reason: innermost.to_string(), resumes: false }
}

fn number(value: Option<&HeaderValue>) -> Option<u64> {
    value?.to_str().ok()?.trim().parse().ok()
}

/// An etag without its marks, which becomes the name of a file.
fn etag(value: Option<&HeaderValue>) -> Option<String> {
    let text = value?.to_str().ok()?.trim();
    let text = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
    let good = (1..=MAX_ETAG).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && !text.starts_with('.');
    good.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_become_names() {
        let read = |text: &'static str| etag(Some(&HeaderValue::from_static(text)));
        assert_eq!(read("\"abc-1\""), Some("abc-1".into()));
        assert_eq!(read("W/\"abc\""), Some("abc".into()));
        for bad in ["", "\"\"", "\"../x\"", "a/b", "..", ".hidden", "a b"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn endpoints_and_tokens_are_checked() {
        let mut settings = Settings::with_cache("/nowhere".into());
        for wrong in ["", "huggingface.co", "ftp://x", "file:///etc"] {
            settings.endpoint = wrong.to_owned();
            assert!(Http::new(&settings).is_err(), "{wrong}");
        }
        settings.endpoint = "http://127.0.0.1:1/hub/".to_owned();
        assert_eq!(Http::new(&settings).unwrap().url(["a b", "x/y"]).path(), "/hub/a%20b/x%2Fy");
        settings.token = crate::Token::new("hf_\u{1}secret");
        let message = Http::new(&settings).err().unwrap().to_string();
        assert!(message.starts_with("HF_TOKEN") && !message.contains("secret"), "{message}");
    }
}
