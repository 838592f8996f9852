//! The way of one request for work, decode or encode alike: checks, body, parameters, queue, answer.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, header, request::Parts};
use axum::response::{IntoResponse, Response};
use remote_vae_engine::{Autoencoder, Control, EngineError, PlanSummary, Precision};
use remote_vae_model::ModelError;
use remote_vae_wire::{BodyKind, Operation, Parameters, WireError, classify, shortened, unwrap_json_body};

use crate::body::{Lease, Leftover, Reader, discard};
use crate::clip_answer::{self, Account};
use crate::error::Refusal;
use crate::metrics::Rejection;
use crate::observe::SharedTrace;
use crate::queue::{Done, JobError, Place, Work};
use crate::routes::{Target, with_leftover};
use crate::state::Shared;
use crate::{answer, decode, encode, preview};

/// How long a request may take, in milliseconds; only ever shortens what the operator allows.
const REQUEST_TIMEOUT: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// When to come back if memory was short or the server stops.
const RETRY: Duration = Duration::from_secs(5);

/// A request whose body has arrived and whose parameters are read.
pub(crate) struct Job<'a> {
    pub(crate) autoencoder: &'a Arc<Autoencoder>,
    pub(crate) parameters: Parameters,
    pub(crate) precision: Precision,
    pub(crate) kind: BodyKind,
    pub(crate) body: Vec<u8>,
    /// The body's share of the budget; goes where the bytes go.
    pub(crate) lease: Lease,
    pub(crate) accept: Option<String>,
}

/// A job that can only fail for reasons of our own, and its place in the queue.
pub(crate) struct Prepared {
    pub(crate) place: Place,
    pub(crate) work: Work,
    pub(crate) answer: answer::Form,
    /// Pixels of the whole batch.
    pub(crate) pixels: u64,
    pub(crate) batch: usize,
}

/// Serves a request that was posted to a model.
pub(crate) async fn serve(shared: &Arc<Shared>, target: Target<'_>, request: Request) -> Response {
    let _active = shared.enter();
    let (head, mut body) = request.into_parts();
    let trace = head.extensions.get::<SharedTrace>().cloned().unwrap_or_default();
    match handle(shared, target, &head, &mut body, &trace).await {
        Ok(response) => response,
        Err(refusal) => {
            let leftover = discard(&head.headers, body).await;
            // Who waits for a draining server to let go of its connection would wait in vain.
            let leftover = if shared.check_ready_quietly().is_err() { Leftover::Close } else { leftover };
            with_leftover(refusal.into_response(), leftover)
        }
    }
}

async fn handle(
    shared: &Arc<Shared>,
    target: Target<'_>,
    head: &Parts,
    body: &mut Body,
    trace: &SharedTrace,
) -> Result<Response, Refusal> {
    let entry = target.model;
    trace.update(|trace| {
        trace.model = Some(entry.name.clone());
        trace.operation = Some(target.operation.map_or("unknown", Operation::name));
    });
    check_key(shared, &head.headers)?;
    shared.check_ready()?;
    let (job, operation) = read(shared, target, head, body, trace).await?;
    trace.update(|trace| trace.operation = Some(operation.name()));

    if job.parameters.preview {
        return preview::serve(shared, job, operation, trace).await;
    }
    let deadline = deadline(shared, &head.headers)?;
    let precision = job.precision;
    let prepared = match operation {
        Operation::Decode => decode::prepare(shared, job)?,
        Operation::Encode => encode::prepare(shared, job).await?,
    };
    let Prepared { place, work, answer: form, pixels, batch } = prepared;
    let engine_name = entry.autoencoder.engine().name(precision);
    let (ticket, form_name) = (place.submit(Control::new(), work), form.name());
    let form = match form {
        answer::Form::Clip(answer) => {
            let account = Account {
                shared: Arc::clone(shared),
                trace: trace.clone(),
                operation: operation.name(),
                model: entry.name.clone(),
                form: form_name,
                pixels,
                batch,
            };
            let response = clip_answer::respond(*answer, ticket, account, deadline).await?;
            return Ok(answer::finish(response, &engine_name));
        }
        form => form,
    };
    let waiting = ticket.wait();
    let done = match deadline {
        None => waiting.await,
        Some(limit) => tokio::time::timeout(limit, waiting).await.map_err(|_| too_late(limit))?,
    };
    let Done { result, queued, engine } = done;
    trace.update(|trace| (trace.queued, trace.engine) = (Some(queued), Some(engine)));
    let tensor = result.map_err(job_refusal)?;
    shared.metrics.work(operation.name(), &entry.name, queued, engine);
    shared.metrics.pixels(pixels, batch);

    let start = std::time::Instant::now();
    let building = move || match form {
        answer::Form::Picture(negotiated) => answer::picture(negotiated, &tensor),
        answer::Form::Latents { encoding, frames } => Ok(answer::latents(encoding, frames, &tensor)),
        answer::Form::Clip(_) => Err(Refusal::internal("A clip's answer was to be made twice.")),
    };
    let response = shared.blocking(building).await??;
    let post = start.elapsed();
    shared.metrics.output(form_name, post);
    trace.update(|trace| trace.post = Some(post));
    Ok(answer::finish(response, &engine_name))
}

/// 504.
pub(crate) fn too_late(limit: Duration) -> Refusal {
    let message = format!("The answer was not ready within {} s.", limit.as_secs_f64());
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, message)
}

/// Reads and unwraps the body, and finds out what it is for.
async fn read<'a>(
    shared: &'a Arc<Shared>,
    target: Target<'a>,
    head: &Parts,
    body: &mut Body,
    trace: &SharedTrace,
) -> Result<(Job<'a>, Operation), Refusal> {
    let options = &shared.options;
    let reader = Reader {
        max_bytes: options.limits.max_body_bytes,
        timeout: options.body_timeout,
        idle_timeout: options.body_idle_timeout,
        budget: &shared.budget,
    };
    let announced = reader.check_announced(&head.headers)?;
    check_coding(&head.headers)?;
    let mut parameters = Parameters::from_query(head.uri.query().unwrap_or(""))?;
    let mut precision = precision(&parameters, options.precision)?;
    let kind = BodyKind::from_content_type(text(&head.headers, header::CONTENT_TYPE).as_deref());
    let reading = reader.read(announced, body).await;
    let (mut bytes, mut lease) = reading.inspect_err(|refusal| shared.note_no_room(refusal))?;
    trace.update(|trace| trace.request_bytes = bytes.len() as u64);
    if kind.is_json() {
        let unwrapping = move || {
            let inner = unwrap_json_body(&bytes, &mut parameters)?;
            drop(bytes);
            lease.shrink_to(inner.capacity() as u64);
            Ok::<_, WireError>((inner, parameters, lease))
        };
        (bytes, parameters, lease) = shared.blocking(unwrapping).await??;
        precision = self::precision(&parameters, options.precision)?;
    }
    let operation = match target.operation {
        Some(operation) => operation,
        None => classify(&parameters, kind, &bytes)?,
    };
    let accept = text(&head.headers, header::ACCEPT);
    let autoencoder = &target.model.autoencoder;
    Ok((Job { autoencoder, parameters, precision, kind, body: bytes, lease, accept }, operation))
}

/// All values of a header, joined; bytes that are no text are ignored with their value.
fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    if values.is_empty() { None } else { Some(values.join(", ")) }
}

/// Bodies travel as they are; no client of the protocol compresses them.
fn check_coding(headers: &HeaderMap) -> Result<(), Refusal> {
    match text(headers, header::CONTENT_ENCODING).as_deref().map(str::trim) {
        None | Some("" | "identity") => Ok(()),
        Some(found) => Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("Expected a body without `content-encoding`. Got `{}`.", shortened(found)),
        )),
    }
}

/// The precision asked for, or the server's own.
fn precision(parameters: &Parameters, default: Precision) -> Result<Precision, Refusal> {
    let Some(name) = parameters.precision.as_deref() else { return Ok(default) };
    Precision::by_name(name).ok_or_else(|| {
        let names = Precision::ALL.map(|precision| format!("`{}`", precision.name())).join(" or ");
        Refusal::bad_request(format!("Expected `precision` to be {names}. Got `{}`.", shortened(name)))
    })
}

/// Anybody if no key is set; else only who sends one of them.
fn check_key(shared: &Shared, headers: &HeaderMap) -> Result<(), Refusal> {
    const SCHEME: &[u8] = b"bearer ";
    let keys = &shared.options.api_keys;
    if keys.is_empty() {
        return Ok(());
    }
    let sent = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
    let candidate = match sent.split_at_checked(SCHEME.len()) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(SCHEME) => key,
        _ => &[],
    };
    // Every key is compared, so that time does not tell which one came close.
    if keys.iter().fold(false, |found, key| found | key.matches(candidate)) {
        return Ok(());
    }
    let message = "Expected a valid key in the header `authorization: Bearer KEY`.";
    Err(Refusal::new(StatusCode::UNAUTHORIZED, message))
}

fn deadline(shared: &Shared, headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let limit = shared.options.request_timeout;
    let Some(value) = text(headers, REQUEST_TIMEOUT) else { return Ok(limit) };
    let asked = value.trim().parse::<u64>().ok().filter(|&milliseconds| milliseconds > 0);
    let asked = asked.map(Duration::from_millis).ok_or_else(|| {
        let found = shortened(&value);
        Refusal::bad_request(format!("Expected `{REQUEST_TIMEOUT}` to be whole milliseconds. Got `{found}`."))
    })?;
    Ok(Some(limit.map_or(asked, |limit| limit.min(asked))))
}

/// Checks frames and pixels of a clip `[batch, channels, frames, height, width]` against the limits.
pub(crate) fn check_clip_size(
    shared: &Shared,
    [batch, _, frames, height, width]: [usize; 5],
) -> Result<u64, Refusal> {
    let limits = &shared.options.limits;
    if frames > limits.max_frames {
        let message = format!("Expected a clip of at most {} frames. Got {frames}.", limits.max_frames);
        return Err(Refusal::too_large(message));
    }
    check_size(shared, batch, height.saturating_mul(frames), width).map_err(|refusal| {
        if batch > limits.max_batch || frames == 1 {
            return refusal;
        }
        Refusal::too_large(format!(
            "Expected at most {} pixels in one request. Got {batch} clip(s) of {frames} frames of {width}x{height} (width x \
             height).",
            limits.max_pixels
        ))
    })
}

/// Checks a batch and its pixels against the limits. Sides are of the picture.
pub(crate) fn check_size(shared: &Shared, batch: usize, height: usize, width: usize) -> Result<u64, Refusal> {
    let limits = &shared.options.limits;
    if batch > limits.max_batch {
        let message = format!("Expected a batch of at most {} samples. Got {batch}.", limits.max_batch);
        return Err(Refusal::too_large(message));
    }
    let pixels =
        [batch, height, width].into_iter().try_fold(1_u64, |pixels, side| pixels.checked_mul(side as u64));
    pixels.filter(|&pixels| pixels <= limits.max_pixels).ok_or_else(|| {
        Refusal::too_large(format!(
            "Expected at most {} pixels in one request. Got {batch} picture(s) of {width}x{height} (width x height).",
            limits.max_pixels
        ))
    })
}

/// Checks what a plan needs against the limit on memory.
pub(crate) fn check_plan(
    shared: &Shared,
    plan: Result<PlanSummary, EngineError>,
) -> Result<PlanSummary, Refusal> {
    let plan = plan.map_err(engine_refusal)?;
    check_memory(shared, plan.peak_bytes)?;
    Ok(plan)
}

/// Checks the bytes that a request's work needs against the limit.
pub(crate) fn check_memory(shared: &Shared, need: usize) -> Result<(), Refusal> {
    match shared.options.limits.max_plan_bytes {
        Some(limit) if need as u64 > limit => {
            shared.metrics.rejected(Rejection::Memory);
            let message = format!("This request needs {need} bytes of memory; the server allows {limit}.");
            Err(Refusal::too_large(message))
        }
        _ => Ok(()),
    }
}

pub(crate) fn job_refusal(error: JobError) -> Refusal {
    match error {
        JobError::Engine(error) => engine_refusal(error),
        JobError::Panicked => {
            Refusal::internal("The engine failed on this request; other requests are not affected.")
        }
        JobError::Stopped => Refusal::unavailable("The server is shutting down. Try again shortly.", RETRY),
    }
}

/// What does not fit the model is the client's fault; the rest is ours.
pub(crate) fn engine_refusal(error: EngineError) -> Refusal {
    match &error {
        EngineError::Model(
            ModelError::Shape { .. }
            | ModelError::Scaling(_)
            | ModelError::Preview(_)
            | ModelError::MissingHalf { .. },
        )
        | EngineError::ImageSides { .. }
        | EngineError::ClipFrames { .. }
        | EngineError::NoVideo { .. } => Refusal::bad_request(error.to_string()),
        EngineError::Memory { .. } => Refusal::unavailable(error.to_string(), RETRY),
        EngineError::Cancelled => {
            Refusal::unavailable("The work was stopped because the server shuts down.", RETRY)
        }
        _ => {
            tracing::error!(%error, "the engine failed");
            Refusal::internal(error.to_string())
        }
    }
}

/// Bits that differ from call to call and from process to process; not for secrets.
pub(crate) fn random_bits() -> u64 {
    RandomState::new().build_hasher().finish()
}
