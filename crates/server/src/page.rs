//! The page that a browser gets at `/`: files that are part of the program, under a policy that lets the browser run and
//! load nothing else.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::Refusal;
use crate::info;
use crate::state::Shared;

/// No inline code or style, nothing from other hosts; pictures and clips that were just decoded are blobs.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; media-src blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const REFERRER_POLICY: HeaderName = HeaderName::from_static("referrer-policy");
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

const PAGE: &str = include_str!("../page/index.html");

/// The page's other files: name below `/static/`, type, text.
const FILES: [(&str, &str, &str); 11] = [
    ("base.css", CSS, include_str!("../page/base.css")),
    ("parts.css", CSS, include_str!("../page/parts.css")),
    ("icon.svg", SVG, include_str!("../page/icon.svg")),
    ("page.js", SCRIPT, include_str!("../page/page.js")),
    ("server.js", SCRIPT, include_str!("../page/server.js")),
    ("status.js", SCRIPT, include_str!("../page/status.js")),
    ("chart.js", SCRIPT, include_str!("../page/chart.js")),
    ("playground.js", SCRIPT, include_str!("../page/playground.js")),
    ("tensors.js", SCRIPT, include_str!("../page/tensors.js")),
    ("pictures.js", SCRIPT, include_str!("../page/pictures.js")),
    ("snippets.js", SCRIPT, include_str!("../page/snippets.js")),
];

/// `GET /`: the page for who prefers HTML, as browsers do; for all others whether the server is ready.
pub(crate) async fn root(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let mut response = if wants_html(&headers) {
        file(HTML, PAGE)
    } else {
        info::ready(State(shared)).await.into_response()
    };
    response.headers_mut().insert(header::VARY, header::HeaderValue::from_static("accept"));
    response
}

/// `GET /static/NAME`: a file of the page.
pub(crate) async fn asset(Path(name): Path<String>) -> Response {
    match FILES.iter().find(|(known, ..)| *known == name) {
        Some((_, content_type, text)) => file(content_type, text),
        None => Refusal::new(StatusCode::NOT_FOUND, "The page has no such file.").into_response(),
    }
}

fn file(content_type: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
        (REFERRER_POLICY, "no-referrer"),
        (OPENER_POLICY, "same-origin"),
    ];
    (headers, text).into_response()
}

/// Whether `text/html` is asked for by name. Health probes and command-line clients send `*/*` or nothing.
fn wants_html(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_html = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("text/html"));
        let declined = parts.any(|part| part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)));
        is_html && !declined
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn browsers_are_known_by_what_they_accept() {
        let wants = |accept: &str| {
            let value = header::HeaderValue::from_str(accept).unwrap();
            wants_html(&HeaderMap::from_iter([(header::ACCEPT, value)]))
        };
        for browser in [
            "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
            "TEXT/HTML",
            "application/json;q=0.1, text/html ; q=0.5",
        ] {
            assert!(wants(browser), "{browser}");
        }
        for other in ["*/*", "application/json", "text/*", "text/html;q=0", "text/html; q=0.0, */*", ""] {
            assert!(!wants(other), "{other}");
        }
        assert!(!wants_html(&HeaderMap::new()));
    }

    /// What the policy forbids would not work in a browser.
    #[test]
    fn the_page_has_no_inline_code_and_no_foreign_address() {
        for (name, _, text) in FILES.into_iter().chain([("index.html", HTML, PAGE)]) {
            let lines = text.lines().filter(|line| !line.contains("http://www.w3.org/2000/svg"));
            for line in lines {
                for bad in [
                    "style=\"",
                    "<style",
                    "onclick",
                    "javascript:",
                    "https://",
                    "http://",
                    "innerHTML",
                    "eval(",
                ] {
                    assert!(!line.contains(bad), "{name}: `{bad}` in {line}");
                }
            }
            assert!(text.len() < 16_000, "{name} has {} bytes", text.len());
        }
        let references = PAGE.split("static/").skip(1).filter_map(|rest| rest.split('"').next());
        for name in references {
            assert!(FILES.iter().any(|(known, ..)| *known == name), "{name}");
        }
        for (file, _, text) in FILES {
            for import in text.split(" from \"./").skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(FILES.iter().any(|(known, ..)| *known == import), "{file} imports {import}");
            }
        }
    }
}
