//! Previews (`output=preview`): one pixel for each latent, computed beside the engine. They wait in no queue and take no
//! time of the engine; what is checked, and the forms of the answer, are those of a decode.

use std::time::Instant;

use axum::response::Response;
use remote_vae_wire::{Negotiated, Operation, TensorHeader, elements_from_bytes, negotiate};

use crate::answer::{self, Form};
use crate::error::Refusal;
use crate::observe::SharedTrace;
use crate::queue::Tensor;
use crate::request::{Job, check_size, engine_refusal};
use crate::state::Shared;
use crate::{clip, decode};

/// What the header that names the engine says of previews.
const ENGINE: &str = "preview";
/// Colours of a preview.
const COLOURS: usize = 3;

/// Checks the request and answers it.
pub(crate) async fn serve(
    shared: &Shared,
    job: Job<'_>,
    operation: Operation,
    trace: &SharedTrace,
) -> Result<Response, Refusal> {
    if operation != Operation::Decode {
        return Err(Refusal::bad_request("`output=preview` is for latents: this request is an encode."));
    }
    trace.update(|trace| trace.operation = Some(ENGINE));
    let negotiated = negotiate(&job.parameters, job.accept.as_deref());
    let header = job.parameters.tensor_header()?;
    header.check_body(job.body.len())?;
    let Latents { shape, form, layout } = latents(&job, negotiated, &header)?;
    let [batch, channels, height, width] = shape;
    check_size(shared, batch, height, width)?;
    let scaling = job.parameters.scaling();
    let space = &job.autoencoder.model().latent_space;
    space.check_preview().map_err(|error| engine_refusal(error.into()))?;
    decode::check_scaling(channels, |probe, shape| space.to_model(probe, shape, &scaling))?;

    let Job { body, lease, .. } = job;
    let space = space.clone();
    let start = Instant::now();
    let response = shared
        .blocking(move || {
            let values = elements_from_bytes(header.dtype, &body);
            drop((body, lease));
            let values = match layout {
                Some(layout) => space.arrange(values, layout).map(|(values, _)| values),
                None => Ok(values),
            };
            let colours = values.and_then(|values| space.preview(values, shape, &scaling));
            let values = colours.map_err(|error| engine_refusal(error.into()))?;
            answer::build(form, Tensor { values, shape: [batch, COLOURS, height, width] })
        })
        .await??;
    trace.update(|trace| trace.post = Some(start.elapsed()));
    Ok(answer::finish(response, ENGINE))
}

/// How the latents of a request lie.
struct Latents {
    /// `[batch, channels, height, width]`; of a clip, frames and height are one.
    shape: [usize; 4],
    form: Form,
    /// How a picture's are brought into that shape; a clip's lie in it.
    layout: Option<remote_vae_model::Layout>,
}

fn latents(job: &Job<'_>, negotiated: Negotiated, header: &TensorHeader) -> Result<Latents, Refusal> {
    let model = job.autoencoder.model();
    if model.temporal_factor().is_some() {
        let [batch, channels, frames, height, width] = clip::latents_shape(model.latent_channels(), header)?;
        clip::check_form(negotiated.answer, [batch, COLOURS, frames, height, width])?;
        let shape = [batch, channels, frames.saturating_mul(height), width];
        return Ok(Latents { shape, form: Form::Clip { negotiated, frames }, layout: None });
    }
    decode::refuse_video(negotiated.answer)?;
    let parameters = &job.parameters;
    let layout = model.latent_space.layout(&header.shape, parameters.height, parameters.width);
    let layout = layout.map_err(|error| engine_refusal(error.into()))?;
    let shape = layout.latents();
    let [batch, _, height, width] = shape;
    decode::check_form(negotiated.answer, [batch, COLOURS, height, width])?;
    Ok(Latents { shape, form: Form::Picture(negotiated), layout: Some(layout) })
}
