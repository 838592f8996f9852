//! The way of one request for work, decode or encode alike: checks, body, parameters, queue, answer.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, StatusCode, Version, header, request::Parts};
use axum::response::{IntoResponse, Response};
use remote_vae_engine::{Autoencoder, EngineError, PlanSummary, Precision};
use remote_vae_model::ModelError;
use remote_vae_wire::{
    BodyKind, Operation, OutputType, Parameters, classify, content_type, shortened, unwrap_json_body,
};

use crate::auth::Caller;
use crate::body::{Lease, Leftover, Reader, discard};
use crate::error::Refusal;
use crate::growing::{self, Account};
use crate::memory::{Need, Share};
use crate::metrics::Rejection;
use crate::observe::SharedTrace;
use crate::queue::{Charge, Client, Cost, Done, JobError, Output, Place, Ticket, Work};
use crate::routes::{Target, with_leftover};
use crate::state::Shared;
use crate::watched::Holding;
use crate::{answer, decode, early, encode, jobs, preview, tensor_file};

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
    /// Whether the tensor of the answer goes into a safetensors file.
    pub(crate) in_file: bool,
    /// Whether the client sees that an answer of unknown length broke off: before HTTP/1.1 its end is the connection's.
    pub(crate) sees_end: bool,
    pub(crate) caller: Caller,
}

/// A job that can only fail for reasons of our own, and its place in the queue.
pub(crate) struct Prepared {
    pub(crate) place: Place,
    pub(crate) work: Work,
    pub(crate) answer: answer::Form,
    /// Its answer with whatever is there beside it.
    pub(crate) cost: Cost,
    /// Bytes that the body, or what was unpacked from it, holds until the work begins.
    pub(crate) held: u64,
    /// Frames of the input; of a picture one.
    pub(crate) frames: usize,
    /// Pixels of the whole batch.
    pub(crate) pixels: u64,
    pub(crate) batch: usize,
}

/// Whether a request waits for its work or comes back for the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Answer,
    Job,
}

/// A request that was read, checked and put in line.
pub(crate) struct Accepted {
    pub(crate) ticket: Ticket,
    pub(crate) operation: Operation,
    pub(crate) model: String,
    engine: String,
    form: answer::Form,
    pixels: u64,
    batch: usize,
    /// When the answer is due, and the time that was given for it.
    deadline: Option<(Instant, Duration)>,
    /// Whether the tensor of the answer goes into a safetensors file.
    in_file: bool,
}

/// Serves a request that was posted to a model.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    target: Target<'_>,
    purpose: Purpose,
    request: Request,
) -> Response {
    let _active = shared.enter();
    let (head, mut body) = request.into_parts();
    let trace = head.extensions.get::<SharedTrace>().cloned().unwrap_or_default();
    match handle(shared, target, purpose, &head, &mut body, &trace).await {
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
    purpose: Purpose,
    head: &Parts,
    body: &mut Body,
    trace: &SharedTrace,
) -> Result<Response, Refusal> {
    trace.update(|trace| {
        trace.model = Some(target.model.name.clone());
        trace.operation = Some(target.operation.map_or("unknown", Operation::name));
    });
    let caller = admit(shared, head, trace)?;
    shared.check_ready()?;
    if purpose == Purpose::Job {
        shared.jobs.check_room(&caller.client)?;
    }
    let owner = caller.client.clone();
    let (job, operation) = read(shared, target, head, body, caller, trace).await?;
    trace.update(|trace| trace.operation = Some(operation.name()));
    if job.parameters.preview {
        if purpose == Purpose::Job {
            return Err(Refusal::bad_request(
                "A preview takes no job: ask `/v1/decode` for `output=preview`.",
            ));
        }
        let limit = deadline(shared, &head.headers)?;
        return preview::serve(shared, job, operation, limit, trace).await;
    }
    let (job, picture) = match (purpose, operation) {
        (Purpose::Job, Operation::Decode) => early::preview(shared, job).await?,
        _ => (job, None),
    };
    let accepted = accept(shared, target.model.name.clone(), head, job, operation, purpose).await?;
    if purpose == Purpose::Job {
        let status = jobs::start(shared, accepted, owner, picture)?;
        return Ok(jobs::describe(&status, StatusCode::ACCEPTED));
    }
    let (response, charge) = complete(shared, accepted, trace).await?;
    Ok(response.map(|body| Body::new(Holding::new(body, charge))))
}

/// Checks what was asked for and puts the job in line.
async fn accept(
    shared: &Arc<Shared>,
    model: String,
    head: &Parts,
    mut job: Job<'_>,
    operation: Operation,
    purpose: Purpose,
) -> Result<Accepted, Refusal> {
    let in_file = job.in_file;
    if in_file {
        job.accept = Some(content_type::TENSOR_BINARY.to_owned());
        job.parameters.output_type.get_or_insert(OutputType::Pt);
    }
    let limit = deadline(shared, &head.headers)?;
    let engine = job.autoencoder.engine().name(job.precision);
    let prepared = match operation {
        Operation::Decode => decode::prepare(shared, job).await?,
        Operation::Encode => encode::prepare(shared, job).await?,
    };
    let Prepared { place, work, answer: form, cost, held, frames, pixels, batch } = prepared;
    let deadline = limit.and_then(|limit| Some((Instant::now().checked_add(limit)?, limit)));
    let end = deadline.map(|(end, _)| end);
    let cost = Cost { kept: purpose == Purpose::Job, ..cost };
    // The values of latents are in the plan, and become the answer; what is made of them takes the place of the plan's
    // activations, which are gone by then.
    let counted_twice = if matches!(form, answer::Form::Growing(_)) { 0 } else { cost.answer_bytes };
    let bytes = cost.peak_bytes.saturating_sub(counted_twice);
    let index = shared.models.iter().position(|entry| entry.name == model).unwrap_or(0);
    let need = Need { model: index, operation, frames, bytes, body: held };
    let submit = |share: Arc<Share>| {
        let (memory, of_job) = (Arc::clone(&shared.memory), Arc::clone(&share));
        let in_account: Work = Box::new(move |control| {
            memory.begin(&of_job);
            drop(of_job);
            work(control)
        });
        place.submit(cost, end, Some(share), in_account)
    };
    let admitted = shared.memory.admit(need, cost.answer_bytes, submit);
    let ticket =
        admitted.map_err(|error| shared.no_memory(error))?.map_err(|error| shared.no_place(error))?;
    Ok(Accepted { ticket, operation, model, engine, form, pixels, batch, deadline, in_file })
}

/// Waits for the job's end and makes the answer, or its beginning where the rest is sent while the engine is at work. The
/// charge is to be held until the answer is sent.
pub(crate) async fn complete(
    shared: &Arc<Shared>,
    accepted: Accepted,
    trace: &SharedTrace,
) -> Result<(Response, Arc<Charge>), Refusal> {
    let Accepted { ticket, operation, model, engine, form, pixels, batch, deadline, in_file } = accepted;
    let (charge, form_name) = (ticket.charge(), form.name());
    let file_of = in_file.then_some(if operation == Operation::Decode { "pixels" } else { "latents" });
    let (negotiated, frames) = match form {
        answer::Form::Growing(answer) => {
            let account = Account {
                shared: Arc::clone(shared),
                trace: trace.clone(),
                operation: operation.name(),
                model,
                form: form_name,
                pixels,
                batch,
            };
            let response = growing::respond(*answer, ticket, account, deadline).await?;
            let response = tensor_file::wrap(shared, file_of, response).await?;
            charge.shrink_to(response.body().size_hint().exact().unwrap_or(u64::MAX));
            return Ok((answer::finish(response, &engine), charge));
        }
        answer::Form::Latents { negotiated, frames } => (negotiated, frames),
    };
    let limit = deadline.map_or(Duration::ZERO, |(_, limit)| limit);
    let done = match deadline {
        None => ticket.wait().await,
        Some((end, _)) => {
            tokio::time::timeout_at(end.into(), ticket.wait()).await.map_err(|_| too_late(limit))?
        }
    };
    let Done { result, queued, engine: engine_time } = done;
    trace.update(|trace| (trace.queued, trace.engine) = (Some(queued), Some(engine_time)));
    let Output::Latents(tensor) = result.map_err(|error| job_refusal(error, limit))? else {
        return Err(Refusal::internal("The work gave no latents."));
    };
    shared.metrics.work(operation.name(), &model, queued, engine_time);
    shared.metrics.pixels(pixels, batch);

    let start = Instant::now();
    let response = shared.blocking(move || answer::latents(negotiated, frames, tensor)).await?;
    let response = tensor_file::wrap(shared, file_of, response).await?;
    let post = start.elapsed();
    shared.metrics.output(form_name, post);
    trace.update(|trace| trace.post = Some(post));
    charge.shrink_to(response.body().size_hint().exact().unwrap_or(u64::MAX));
    Ok((answer::finish(response, &engine), charge))
}

/// 504.
pub(crate) fn too_late(limit: Duration) -> Refusal {
    let message = format!("The answer was not ready within {} s.", limit.as_secs_f64());
    Refusal::new(StatusCode::GATEWAY_TIMEOUT, message)
}

/// What the queue wants to know of a plan, whose values are the answer.
pub(crate) fn cost(plan: &PlanSummary) -> Cost {
    let values = plan.output.iter().fold(plan.frames[1], |product, &side| product.saturating_mul(side));
    Cost {
        flops: plan.flops,
        peak_bytes: plan.peak_bytes as u64,
        answer_bytes: values.saturating_mul(size_of::<f32>()) as u64,
        kept: false,
    }
}

/// Reads and unwraps the body, and finds out what it is for.
async fn read<'a>(
    shared: &'a Arc<Shared>,
    target: Target<'a>,
    head: &Parts,
    body: &mut Body,
    caller: Caller,
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
    let (mut bytes, mut lease) = reading.map_err(|refusal| shared.no_room(refusal))?;
    trace.update(|trace| trace.request_bytes = bytes.len() as u64);
    if tensor_file::is_named(text(&head.headers, header::CONTENT_TYPE).as_deref()) {
        let unwrapping = move || {
            let inner = tensor_file::unwrap(bytes, &mut parameters)?;
            lease.shrink_to(inner.capacity() as u64);
            Ok::<_, Refusal>((inner, parameters, lease))
        };
        (bytes, parameters, lease) = shared.blocking(unwrapping).await??;
    } else if kind.is_json() {
        let unwrapping = move || {
            // Four characters of base64 become three bytes.
            let inside = bytes.len() as u64 / 4 * 3;
            lease.grow_to((bytes.capacity() as u64).saturating_add(inside))?;
            let inner = unwrap_json_body(&bytes, &mut parameters)?;
            drop(bytes);
            lease.shrink_to(inner.capacity() as u64);
            Ok::<_, Refusal>((inner, parameters, lease))
        };
        let unwrapped = shared.blocking(unwrapping).await?;
        (bytes, parameters, lease) = unwrapped.map_err(|refusal| shared.no_room(refusal))?;
        precision = self::precision(&parameters, options.precision)?;
    }
    let operation = match target.operation {
        Some(operation) => operation,
        None => classify(&parameters, kind, &bytes)?,
    };
    let accept = text(&head.headers, header::ACCEPT);
    let autoencoder = &target.model.autoencoder;
    let sees_end = head.version >= Version::HTTP_11;
    let (body, in_file) = (bytes, tensor_file::is_named(accept.as_deref()));
    let job =
        Job { autoencoder, parameters, precision, kind, body, lease, accept, in_file, sees_end, caller };
    Ok((job, operation))
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

/// Who sends the request; 401 for nobody known, 429 for one who sends too many.
fn admit(shared: &Shared, head: &Parts, trace: &SharedTrace) -> Result<Caller, Refusal> {
    let admitted = shared.keys.admit(head).inspect_err(|refusal| {
        if refusal.status == StatusCode::TOO_MANY_REQUESTS {
            shared.metrics.rejected(Rejection::Client);
        }
    });
    let caller = admitted?;
    if let Client::Key(name) = &caller.client {
        trace.update(|trace| trace.key = Some(Arc::clone(name)));
    }
    Ok(caller)
}

/// Most pixels of one request of this caller.
pub(crate) fn max_pixels(shared: &Shared, caller: &Caller) -> u64 {
    let limit = shared.options.limits.max_pixels;
    caller.max_pixels.map_or(limit, |own| own.min(limit))
}

/// Checks frames and pixels of a clip `[batch, channels, frames, height, width]` against the limits.
pub(crate) fn check_clip_size(
    shared: &Shared,
    caller: &Caller,
    [batch, _, frames, height, width]: [usize; 5],
) -> Result<u64, Refusal> {
    let limits = &shared.options.limits;
    if frames > limits.max_frames {
        let message = format!("Expected a clip of at most {} frames. Got {frames}.", limits.max_frames);
        return Err(Refusal::too_large(message));
    }
    check_size(shared, caller, batch, height.saturating_mul(frames), width).map_err(|refusal| {
        if batch > limits.max_batch || frames == 1 {
            return refusal;
        }
        Refusal::too_large(format!(
            "Expected at most {} pixels in one request. Got {batch} clip(s) of {frames} frames of {width}x{height} (width x \
             height).",
            max_pixels(shared, caller)
        ))
    })
}

/// Checks a batch and its pixels against the limits. Sides are of the picture.
pub(crate) fn check_size(
    shared: &Shared,
    caller: &Caller,
    batch: usize,
    height: usize,
    width: usize,
) -> Result<u64, Refusal> {
    let (limits, max_pixels) = (&shared.options.limits, max_pixels(shared, caller));
    if batch > limits.max_batch {
        let message = format!("Expected a batch of at most {} samples. Got {batch}.", limits.max_batch);
        return Err(Refusal::too_large(message));
    }
    let pixels =
        [batch, height, width].into_iter().try_fold(1_u64, |pixels, side| pixels.checked_mul(side as u64));
    pixels.filter(|&pixels| pixels <= max_pixels).ok_or_else(|| {
        Refusal::too_large(format!(
            "Expected at most {max_pixels} pixels in one request. Got {batch} picture(s) of {width}x{height} (width x height)."
        ))
    })
}

pub(crate) fn job_refusal(error: JobError, limit: Duration) -> Refusal {
    match error {
        JobError::Engine(error) => engine_refusal(error),
        JobError::Panicked => {
            Refusal::internal("The engine failed on this request; other requests are not affected.")
        }
        JobError::Expired => too_late(limit),
        JobError::Stopped => Refusal::unavailable("The server is shutting down. Try again shortly.", RETRY),
    }
}

/// With a capital and a full stop.
fn sentence(message: &str) -> String {
    let mut letters = message.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    first.into_iter().chain(letters).chain(['.']).collect()
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
        | EngineError::Tiles { .. }
        | EngineError::ClipFrames { .. }
        | EngineError::NoVideo { .. } => Refusal::bad_request(error.to_string()),
        EngineError::Budget { .. } => Refusal::too_large(sentence(&error.to_string())),
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
