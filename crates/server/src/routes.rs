//! Paths and methods. Work is posted to `/`, `/predict`, `/decode`, `/encode`, the operator's own paths, and for models
//! other than the first to `/NAME`, `/NAME/decode`, `/NAME/encode`; a slash at the end makes no difference. The typed
//! API is below `/v1`.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use remote_vae_wire::{Operation, shortened};

use crate::body::{Leftover, discard};
use crate::error::Refusal;
use crate::request::Purpose;
use crate::state::{ModelEntry, Shared};
use crate::{info, page, request, status, typed};

/// All routes. Paths come without a slash at the end.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page::root).post(work))
        .route("/health", get(info::ready))
        .route("/ping", get(info::ready))
        .route("/readyz", get(info::ready))
        .route("/v2/health/ready", get(info::ready))
        .route("/livez", get(info::live))
        .route("/v2/health/live", get(info::live))
        .route("/info", get(info::info))
        .route("/metrics", get(info::metrics))
        .route("/v1/decode", post(typed::decode))
        .route("/v1/encode", post(typed::encode))
        .route("/v1/models", get(typed::models))
        .route("/v1/openapi.json", get(typed::document))
        .route("/v1/jobs", post(typed::post_job))
        .route("/v1/jobs/{id}", get(typed::get_job).delete(typed::delete_job))
        .route("/v1/jobs/{id}/events", get(typed::get_events))
        .route("/v1/jobs/{id}/preview", get(typed::get_preview))
        .route("/v1/jobs/{id}/result", get(typed::get_result))
        .route("/status", get(status::status))
        .route("/static/{name}", get(page::asset))
        .method_not_allowed_fallback(wrong_method)
        .fallback(work)
        .with_state(shared)
}

/// Which model a path means, and which operation it insists on.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) model: &'a ModelEntry,
    pub(crate) operation: Option<Operation>,
}

impl<'a> Target<'a> {
    /// None for a path that means no model.
    pub(crate) fn find(shared: &'a Shared, path: &str) -> Option<Self> {
        let default = shared.models.first()?;
        let operation = match path.rsplit('/').next() {
            Some("decode") => Some(Operation::Decode),
            Some("encode") => Some(Operation::Encode),
            _ => None,
        };
        let extra = shared.options.extra_paths.iter().any(|extra| extra.trim_end_matches('/') == path);
        if matches!(path, "/" | "/predict" | "/decode" | "/encode") || extra {
            return Some(Self { model: default, operation });
        }
        let mut segments = path.strip_prefix('/')?.splitn(3, '/');
        let name = segments.next()?;
        match (segments.next(), segments.next()) {
            (None | Some("decode" | "encode" | "predict"), None) => {}
            _ => return None,
        }
        let model = shared.models.iter().find(|model| model.name == name)?;
        Some(Self { model, operation })
    }
}

/// Everything that is no informational route: work, or a path or method that does not exist.
async fn work(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let Some(target) = Target::find(&shared, request.uri().path()) else {
        let names: Vec<String> = shared.models.iter().map(|model| format!("`/{}`", model.name)).collect();
        let path = shortened(request.uri().path());
        let message = format!("Expected one of the paths `/`, {}. Got `{path}`.", names.join(", "));
        return refuse(request, Refusal::new(StatusCode::NOT_FOUND, message)).await;
    };
    if request.method() != Method::POST {
        let refusal = Refusal::method(request.method(), "POST");
        return refuse(request, refusal).await;
    }
    request::serve(&shared, target, Purpose::Answer, request).await
}

async fn wrong_method(request: Request) -> Response {
    let allow = match request.uri().path() {
        "/" => "GET, HEAD, POST",
        "/v1/decode" | "/v1/encode" | "/v1/jobs" => "POST",
        path if path.starts_with("/v1/jobs/") && path.split('/').count() == 4 => "GET, HEAD, DELETE",
        _ => "GET, HEAD",
    };
    let refusal = Refusal::method(request.method(), allow);
    refuse(request, refusal).await
}

/// Refuses a request whose body was not read.
pub(crate) async fn refuse(request: Request, refusal: Refusal) -> Response {
    let (head, body) = request.into_parts();
    let leftover = discard(&head.headers, body).await;
    with_leftover(refusal.into_response(), leftover)
}

/// Says that the connection ends, where it must.
pub(crate) fn with_leftover(mut response: Response, leftover: Leftover) -> Response {
    if leftover == Leftover::Close {
        let close = axum::http::HeaderValue::from_static("close");
        response.headers_mut().insert(axum::http::header::CONNECTION, close);
    }
    response
}
