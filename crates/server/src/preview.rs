//! Previews (`output=preview`): one pixel for each latent, computed beside the engine. They take no time of it and wait for
//! none of its jobs, only for each other, in turns that are fair between clients; what is checked, the deadline, and the
//! forms of the answer, are those of a decode.

use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use remote_vae_engine::Frames;
use remote_vae_model::Layout;
use remote_vae_wire::{Negotiated, Operation, TensorHeader, elements_from_bytes, negotiate};

use crate::answer::{self, media_refusal, wrapped};
use crate::clip_bytes::Recipe;
use crate::error::Refusal;
use crate::observe::SharedTrace;
use crate::queue::Tensor;
use crate::request::{Job, check_size, engine_refusal, too_late};
use crate::state::Shared;
use crate::watched::Holding;
use crate::{clip, decode};

/// What the header that names the engine says of previews, and the metrics' name of the operation.
const PREVIEW: &str = "preview";
/// Colours of a preview.
const COLOURS: usize = 3;

/// Checks the request and answers it.
pub(crate) async fn serve(
    shared: &Shared,
    job: Job<'_>,
    operation: Operation,
    limit: Option<Duration>,
    trace: &SharedTrace,
) -> Result<Response, Refusal> {
    if operation != Operation::Decode {
        return Err(Refusal::bad_request("`output=preview` is for latents: this request is an encode."));
    }
    trace.update(|trace| trace.operation = Some(PREVIEW));
    let negotiated = negotiate(&job.parameters, job.accept.as_deref());
    let header = job.parameters.tensor_header()?;
    header.check_body(job.body.len())?;
    let (shape, form) = form(&job, negotiated, &header)?;
    let [batch, channels, height, width] = shape;
    let pixels = check_size(shared, &job.caller, batch, height, width)?;
    let scaling = job.parameters.scaling();
    let space = &job.autoencoder.model().latent_space;
    space.check_preview().map_err(|error| engine_refusal(error.into()))?;
    decode::check_scaling(channels, |probe, shape| space.to_model(probe, shape, &scaling))?;

    let Job { body, mut lease, caller, .. } = job;
    let space = space.clone();
    let making = move || {
        let values = elements_from_bytes(header.dtype, &body);
        drop(body);
        let values = match &form {
            Form::Picture(layout) => space.arrange(values, *layout).map(|(values, _)| values),
            Form::Clip(_, Some(layout)) => space.arrange(values, *layout).map(|(values, _)| values),
            Form::Clip(_, None) => Ok(values),
        };
        let colours = values.and_then(|values| space.preview(values, shape, &scaling));
        let values = colours.map_err(|error| engine_refusal(error.into()))?;
        let tensor = Tensor { values, shape: [batch, COLOURS, height, width] };
        let response = match form {
            Form::Picture(_) => answer::picture(negotiated, tensor),
            Form::Clip(recipe, _) => clip_answer(negotiated, &recipe, &tensor),
        }?;
        // The answer may wait long for its client, and counts as the body did.
        let bytes = response.body().size_hint().lower();
        lease.grow_to(bytes)?;
        lease.shrink_to(bytes);
        Ok::<_, Refusal>((response, lease))
    };
    let making = async {
        let arrival = Instant::now();
        let turn = shared.turns.take(&caller.client, caller.max_queue, pixels).await;
        let turn = turn.map_err(|error| shared.no_place(error))?;
        let start = Instant::now();
        // What is dropped before it has begun never begins; what has begun keeps its turn to the end.
        let in_turn = move || {
            let made = making();
            drop(turn);
            made
        };
        let made = shared.blocking(in_turn).await?.map_err(|refusal| shared.no_room(refusal))?;
        trace.update(|trace| (trace.queued, trace.post) = (Some(start - arrival), Some(start.elapsed())));
        Ok::<_, Refusal>(made)
    };
    let (response, lease) = match limit {
        None => making.await?,
        Some(limit) => tokio::time::timeout(limit, making).await.map_err(|_| too_late(limit))??,
    };
    let response = response.map(|body| Body::new(Holding::new(body, lease)));
    Ok(answer::finish(response, PREVIEW))
}

/// What is made of colours.
enum Form {
    /// A picture; how its latents lie.
    Picture(Layout),
    /// A clip; frames and rows of its latents are taken as one. Where it is one frame, how that lies.
    Clip(Recipe, Option<Layout>),
}

/// The shape `[batch, channels, height, width]` of the latents, and the form of the answer, if that can be.
fn form(job: &Job<'_>, negotiated: Negotiated, header: &TensorHeader) -> Result<([usize; 4], Form), Refusal> {
    let (model, parameters) = (job.autoencoder.model(), &job.parameters);
    if model.temporal_factor().is_some() {
        let (shape, layout) = clip::latents_shape(&model.latent_space, header, parameters)?;
        let [batch, channels, frames, height, width] = shape;
        let recipe =
            clip::recipe(parameters, negotiated, [batch, COLOURS, frames, height, width], 1, job.sees_end)?;
        let rows = frames.saturating_mul(height);
        return Ok(([batch, channels, rows, width], Form::Clip(recipe, layout)));
    }
    decode::refuse_video(negotiated.answer)?;
    let layout = model.latent_space.layout(&header.shape, parameters.height, parameters.width);
    let layout = layout.map_err(|error| engine_refusal(error.into()))?;
    let shape = layout.latents();
    let [batch, _, height, width] = shape;
    decode::check_form(negotiated.answer, [batch, COLOURS, height, width])?;
    Ok((shape, Form::Picture(layout)))
}

/// The answer of a clip `[batch, channels, frames · height, width]`.
fn clip_answer(negotiated: Negotiated, recipe: &Recipe, tensor: &Tensor) -> Result<Response, Refusal> {
    let [.., frames, height, width] = recipe.output();
    let mut maker = recipe.start().map_err(media_refusal)?;
    let mut bytes = Vec::new();
    for (sample, values) in tensor.values.chunks_exact(COLOURS * frames * height * width).enumerate() {
        let shape = [COLOURS, frames, height, width];
        let frames = Frames { sample, first: 0, values: values.to_vec(), shape };
        bytes.extend(maker.add(frames).map_err(media_refusal)?);
    }
    bytes.extend(maker.finish().map_err(media_refusal)?);
    let header = recipe.header();
    let body = wrapped(negotiated.encoding, header.as_ref(), bytes);
    Ok(answer::response(negotiated, header, body))
}
