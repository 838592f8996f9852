//! The typed API below `/v1`, and the OpenAPI document that describes it, which is made from these functions.

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use remote_vae_engine::Precision;
use remote_vae_wire::{Operation, content_type, shortened};
use serde::{Deserialize, Serialize};
use utoipa::{OpenApi, ToSchema};

use crate::error::Refusal;
use crate::jobs::{Asker, JobState, JobStatus};
use crate::request::{self, Purpose};
use crate::routes::Target;
use crate::state::{ModelEntry, Shared};

/// The document of this API.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "remote-vae",
        description = "Decodes the latents of diffusion models and encodes pictures. The protocol of Hugging Face's \
                       Remote VAE endpoints, which the same server speaks at `/`, is described in docs/protocol.md."
    ),
    paths(
        decode,
        encode,
        models,
        post_job,
        get_job,
        get_events,
        get_preview,
        get_result,
        delete_job,
        document
    ),
    components(schemas(ErrorBody, JobState, JobStatus, Model, ModelList))
)]
struct Document;

/// The document as text, the same in the repository and at `/v1/openapi.json`.
pub(crate) fn openapi() -> String {
    let text = Document::openapi().to_pretty_json().unwrap_or_default();
    format!("{text}\n")
}

/// Any answer of 400 and above.
#[derive(Serialize, ToSchema)]
struct ErrorBody {
    /// What was found and what was expected.
    error: String,
}

/// A model that this server has.
#[derive(Serialize, ToSchema)]
struct Model {
    /// For the parameter `model`.
    name: String,
    /// Whether it answers where no model is named.
    default: bool,
    /// Its architecture.
    family: String,
    latent_channels: usize,
    /// Pixels per latent, both ways.
    spatial_factor: usize,
    /// Frames per latent of a model of videos.
    temporal_factor: Option<usize>,
    decodes: bool,
    encodes: bool,
    precisions: Vec<String>,
}

/// All models, the default one first.
#[derive(Serialize, ToSchema)]
struct ModelList {
    models: Vec<Model>,
}

impl Model {
    fn of(index: usize, entry: &ModelEntry) -> Self {
        let model = entry.autoencoder.model();
        Self {
            name: entry.name.clone(),
            default: index == 0,
            family: model.family.name().to_owned(),
            latent_channels: model.latent_channels(),
            spatial_factor: model.spatial_factor(),
            temporal_factor: model.temporal_factor(),
            decodes: model.decoder().is_some(),
            encodes: model.encoder().is_some(),
            precisions: Precision::ALL.map(|precision| precision.name().to_owned()).to_vec(),
        }
    }
}

/// What a typed request says beside the protocol's own parameters.
#[derive(Debug, Default, Deserialize)]
struct Choice {
    model: Option<String>,
    operation: Option<String>,
}

impl Choice {
    fn of(request: &Request) -> Result<Self, Refusal> {
        let Query(choice) = Query::try_from_uri(request.uri()).map_err(|_| {
            Refusal::bad_request("Expected `model` and `operation` at most once in the query.")
        })?;
        Ok(choice)
    }

    fn model<'a>(&self, shared: &'a Shared) -> Result<&'a ModelEntry, Refusal> {
        let found = match &self.model {
            None => shared.models.first(),
            Some(name) => shared.models.iter().find(|entry| entry.name == *name),
        };
        found.ok_or_else(|| {
            let names: Vec<&str> = shared.models.iter().map(|entry| entry.name.as_str()).collect();
            let found = shortened(self.model.as_deref().unwrap_or(""));
            let message = format!("Expected `model` to be one of {}. Got `{found}`.", names.join(", "));
            Refusal::new(StatusCode::NOT_FOUND, message)
        })
    }

    fn operation(&self) -> Result<Operation, Refusal> {
        match self.operation.as_deref() {
            None | Some("decode") => Ok(Operation::Decode),
            Some("encode") => Ok(Operation::Encode),
            Some(found) => Err(Refusal::bad_request(format!(
                "Expected `operation` to be `decode` or `encode`. Got `{}`.",
                shortened(found)
            ))),
        }
    }
}

async fn work(
    shared: Arc<Shared>,
    request: Request,
    operation: Option<Operation>,
    purpose: Purpose,
) -> Response {
    let chosen = Choice::of(&request).and_then(|choice| {
        let operation = operation.map_or_else(|| choice.operation(), Ok)?;
        Ok(Target { model: choice.model(&shared)?, operation: Some(operation) })
    });
    match chosen {
        Ok(target) => request::serve(&shared, target, purpose, request).await,
        Err(refusal) => crate::routes::refuse(request, refusal).await,
    }
}

/// Decode latents.
#[utoipa::path(
    post,
    path = "/v1/decode",
    params(
        ("model" = Option<String>, Query, description = "Name of a model; the default one if absent"),
        ("shape" = Option<Vec<u64>>, Query, description = "Repeated: `[batch, channels, height, width]`, with `frames` before `height` for videos; not for safetensors"),
        ("dtype" = Option<String>, Query, description = "`float16`, `float32`, `bfloat16` or `uint8`; not for safetensors"),
        ("scaling_factor" = Option<f64>, Query, description = "Latents are divided by it"),
        ("shift_factor" = Option<f64>, Query, description = "Added after dividing"),
        ("do_scaling" = Option<bool>, Query, description = "Scale by the model's own factors"),
        ("output_type" = Option<String>, Query, description = "`pt` for a tensor, `pil` for a picture file, `mp4` for a video"),
        ("image_format" = Option<String>, Query, description = "`jpg` or `png`"),
        ("partial_postprocess" = Option<bool>, Query, description = "With `pt`: bytes `[batch, height, width, 3]`"),
        ("height" = Option<u64>, Query, description = "Of the picture, for packed latents"),
        ("width" = Option<u64>, Query, description = "Of the picture, for packed latents"),
        ("fps" = Option<f64>, Query, description = "Frames a second of a video file"),
        ("crf" = Option<u8>, Query, description = "Quality of an MP4 file: less is better and larger"),
        ("windows" = Option<bool>, Query, description = "Whether a model of videos works in windows of frames, as diffusers does"),
        ("tiling" = Option<String>, Query, description = "`on` or `diffusers` for overlapping tiles that are blended, as diffusers does after `enable_tiling()`; `off` for whole pictures"),
        ("tile_sample_min_size" = Option<u64>, Query, description = "Side of a tile in pixels; models of pictures, as the next two. Absent: diffusers' default"),
        ("tile_latent_min_size" = Option<u64>, Query, description = "Side of a tile in latents"),
        ("tile_overlap_factor" = Option<f64>, Query, description = "Share of a side that overlaps the tile before, 0 to 0.5"),
        ("output" = Option<String>, Query, description = "`preview` for one pixel per latent, at once; not for jobs"),
        ("precision" = Option<String>, Query, description = "`exact` or `fast`"),
        ("output_dtype" = Option<String>, Query, description = "Of floats in the answer: `float16` or `float32`"),
    ),
    request_body(content_type = "application/x-safetensors", description = "A safetensors file with the tensor `latents`, or as `tensor/binary` the bare bytes of one whose shape and type are in the query"),
    responses(
        (status = 200, description = "By `accept` and `output_type`: `application/x-safetensors` with the tensor `pixels`, `tensor/binary` with the headers `shape` and `dtype`, `image/png`, `image/jpeg` or an MP4 file"),
        (status = "4XX", description = "The request's fault, or 429 with `retry-after`", body = ErrorBody, content_type = "application/json"),
        (status = "5XX", description = "The server's fault, 503 with `retry-after`, or 504 after the deadline", body = ErrorBody, content_type = "application/json"),
    )
)]
pub(crate) async fn decode(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    work(shared, request, Some(Operation::Decode), Purpose::Answer).await
}

/// Encode a picture or pixels.
#[utoipa::path(
    post,
    path = "/v1/encode",
    params(
        ("model" = Option<String>, Query, description = "Name of a model; the default one if absent"),
        ("shape" = Option<Vec<u64>>, Query, description = "Repeated: `[batch, 3, height, width]`; for bare bytes only"),
        ("dtype" = Option<String>, Query, description = "`float16`, `float32`, `bfloat16` or `uint8`; for bare bytes only"),
        ("scaling_factor" = Option<f64>, Query, description = "Latents are multiplied by it"),
        ("shift_factor" = Option<f64>, Query, description = "Subtracted before multiplying"),
        ("sample" = Option<bool>, Query, description = "Draw from the distribution instead of taking its mode"),
        ("seed" = Option<u64>, Query, description = "Makes the sample repeatable"),
        ("moments" = Option<bool>, Query, description = "Give mean and log-variance of the distribution, unscaled, `[batch, 2 * channels, height, width]`"),
        ("windows" = Option<bool>, Query, description = "Whether a model of videos works in windows of frames, as diffusers does"),
        ("tiling" = Option<String>, Query, description = "`on` or `diffusers` for overlapping tiles that are blended, as diffusers does after `enable_tiling()`; `off` for whole pictures"),
        ("tile_sample_min_size" = Option<u64>, Query, description = "Side of a tile in pixels; models of pictures, as the next two. Absent: diffusers' default"),
        ("tile_latent_min_size" = Option<u64>, Query, description = "Side of a tile in latents"),
        ("tile_overlap_factor" = Option<f64>, Query, description = "Share of a side that overlaps the tile before, 0 to 0.5"),
        ("precision" = Option<String>, Query, description = "`exact` or `fast`"),
        ("output_dtype" = Option<String>, Query, description = "Of floats in the answer: `float16` or `float32`"),
    ),
    request_body(content_type = "application/x-safetensors", description = "A picture file (PNG, JPEG, WebP), a safetensors file with the tensor `pixels`, or bare bytes"),
    responses(
        (status = 200, description = "Latents: `application/x-safetensors` with the tensor `latents` if accepted, else `tensor/binary` with the headers `shape` and `dtype`"),
        (status = "4XX", description = "The request's fault, or 429 with `retry-after`", body = ErrorBody, content_type = "application/json"),
        (status = "5XX", description = "The server's fault, 503 with `retry-after`, or 504 after the deadline", body = ErrorBody, content_type = "application/json"),
    )
)]
pub(crate) async fn encode(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    work(shared, request, Some(Operation::Encode), Purpose::Answer).await
}

/// List the models.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = ModelList)))]
pub(crate) async fn models(State(shared): State<Arc<Shared>>) -> Response {
    let models = shared.models.iter().enumerate().map(|(index, entry)| Model::of(index, entry)).collect();
    let text = serde_json::to_string(&ModelList { models }).unwrap_or_default();
    ([(header::CONTENT_TYPE, content_type::JSON)], text).into_response()
}

/// Ask for work whose result is fetched later.
///
/// Parameters and body are those of `/v1/decode` or `/v1/encode`. The answer's `location` names the job.
#[utoipa::path(
    post,
    path = "/v1/jobs",
    params(
        ("operation" = Option<String>, Query, description = "`decode`, which is the default, or `encode`"),
        ("model" = Option<String>, Query, description = "Name of a model; the default one if absent"),
    ),
    request_body(content_type = "application/x-safetensors", description = "As for `/v1/decode` or `/v1/encode`"),
    responses(
        (status = 202, body = JobStatus),
        (status = "4XX", description = "The request's fault, or 429 with `retry-after`", body = ErrorBody, content_type = "application/json"),
    )
)]
pub(crate) async fn post_job(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    work(shared, request, None, Purpose::Job).await
}

/// Who asks about a job, if anybody known.
fn asker(shared: Arc<Shared>, id: String, request: Request) -> Result<Asker, Refusal> {
    let client = shared.keys.identify(&request.into_parts().0)?;
    Ok(Asker { shared, id, client })
}

/// Where a job stands.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    params(("id" = String, Path)),
    responses((status = 200, body = JobStatus), (status = 404, body = ErrorBody, description = "Unknown or expired"))
)]
pub(crate) async fn get_job(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    asker(shared, id, request)?.status()
}

/// Follow a job: server-sent events `progress`, and `end` at last, each with the job's state as data. The first is `preview`
/// if there is one, with the PNG file of `/v1/jobs/{id}/preview` as a data URL in `image`.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/events",
    params(("id" = String, Path)),
    responses(
        (status = 200, content_type = "text/event-stream", body = String),
        (status = 404, body = ErrorBody, description = "Unknown or expired"),
    )
)]
pub(crate) async fn get_events(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    asker(shared, id, request)?.events()
}

/// Fetch a job's early preview: one pixel for each latent, at most 128 each way, of the first picture or the middle latent
/// frame of the first clip.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/preview",
    params(("id" = String, Path)),
    responses(
        (status = 200, content_type = "image/png", description = "Made before the job waited in line"),
        (status = 404, body = ErrorBody, description = "Unknown or expired, an encode, or a latent space without a preview"),
    )
)]
pub(crate) async fn get_preview(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    asker(shared, id, request)?.preview()
}

/// Fetch a job's result, as often as wanted until it expires.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/result",
    params(("id" = String, Path)),
    responses(
        (status = 200, description = "What the same request to `/v1/decode` or `/v1/encode` would have been answered"),
        (status = 404, body = ErrorBody, description = "Unknown or expired"),
        (status = 409, body = ErrorBody, description = "Not done yet; `retry-after` says when it should be"),
        (status = "5XX", body = ErrorBody, description = "The job failed"),
    )
)]
pub(crate) async fn get_result(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    asker(shared, id, request)?.result()
}

/// Stop a job, or forget its result.
#[utoipa::path(
    delete,
    path = "/v1/jobs/{id}",
    params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody, description = "Unknown or expired"))
)]
pub(crate) async fn delete_job(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    asker(shared, id, request)?.delete()
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, description = "OpenAPI 3.1")))]
pub(crate) async fn document() -> Response {
    ([(header::CONTENT_TYPE, content_type::JSON)], openapi()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_OPENAPI=1` writes the file anew.
    #[test]
    fn the_document_in_the_repository_is_the_codes_own() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json");
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(path, openapi()).unwrap();
        }
        let stored = std::fs::read_to_string(path).unwrap();
        assert_eq!(stored, openapi(), "run the test with UPDATE_OPENAPI=1");
        let document: serde_json::Value = serde_json::from_str(&stored).unwrap();
        for path in ["/v1/decode", "/v1/encode", "/v1/models", "/v1/jobs", "/v1/jobs/{id}/events"] {
            assert!(document["paths"][path].is_object(), "{path}");
        }
    }
}
