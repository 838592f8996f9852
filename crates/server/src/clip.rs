//! Decodes of models of videos: from latents `[batch, channels, frames, height, width]` to the answer's bytes. What
//! pictures and videos have in common is in [`crate::decode`] and [`crate::answer`].

use std::sync::Arc;

use remote_vae_engine::Windows;
use remote_vae_media as media;
use remote_vae_wire::{Answer, Dtype, Negotiated, TensorHeader, bytes_from_elements, elements_from_bytes};

use crate::answer::{Form, media_refusal};
use crate::decode::check_scaling;
use crate::error::Refusal;
use crate::queue::{Tensor, Work};
use crate::request::{Job, Prepared, check_plan, check_size, engine_refusal};
use crate::state::Shared;

/// Checks the request and makes its job; `header` is that of the latents in the body.
pub(crate) fn prepare(
    shared: &Shared,
    job: Job<'_>,
    answer: Negotiated,
    header: TensorHeader,
) -> Result<Prepared, Refusal> {
    let Job { autoencoder, parameters, precision, body, lease, caller, .. } = job;
    let model = autoencoder.model();
    let channels = model.latent_channels();
    let latents = match header.shape[..] {
        [batch, found, frames, height, width] if found == channels => [batch, found, frames, height, width],
        // One frame.
        [batch, found, height, width] if found == channels => [batch, found, 1, height, width],
        _ => {
            return Err(Refusal::bad_request(format!(
                "latents: expected shape [batch, {channels}, frames, height, width], got {:?}",
                header.shape
            )));
        }
    };
    let windows = Windows::default();
    let output = autoencoder.clip_pixels(latents).map_err(engine_refusal)?;
    let [batch, _, frames, height, width] = output;
    let pixels = check_size(shared, &caller, batch, height.saturating_mul(frames), width)?;
    let scaling = parameters.scaling();
    check_scaling(channels, |probe, shape| model.latent_space.to_model(probe, shape, &scaling))?;
    let plan = check_plan(shared, autoencoder.plan_decode_clip(latents, windows, precision))?;
    check_form(answer.answer, output)?;

    let place = shared.reserve(&caller)?;
    let autoencoder = Arc::clone(autoencoder);
    let work: Work = Box::new(move |control| {
        let values = elements_from_bytes(header.dtype, &body);
        drop((body, lease));
        let clip = autoencoder.decode_clip(values, latents, &scaling, windows, precision, control)?;
        let [batch, channels, frames, height, width] = clip.shape;
        Ok(Tensor { values: clip.values, shape: [batch, channels, frames * height, width] })
    });
    Ok(Prepared { place, work, answer: Form::Clip { negotiated: answer, frames }, plan, pixels, batch })
}

/// Whether a clip `[batch, channels, frames, height, width]` can be what is asked for.
fn check_form(answer: Answer, [batch, channels, frames, ..]: [usize; 5]) -> Result<(), Refusal> {
    if answer == Answer::Tensor {
        return Ok(());
    }
    if channels != 3 || batch != 1 {
        return Err(Refusal::bad_request(format!(
            "Expected a batch of 1 and 3 channels for this output. Got {batch} and {channels}: only `output_type=pt` without \
             `partial_postprocess` can carry them."
        )));
    }
    if matches!(answer, Answer::Png | Answer::Jpeg) && frames != 1 {
        return Err(Refusal::bad_request(format!(
            "A picture file holds one frame, these latents give {frames}: use `output_type` `mp4` or `pt`, or ask for \
             `tensor/binary`."
        )));
    }
    Ok(())
}

/// The header, if it is a tensor, and the bytes of a clip whose values are `[batch, channels, frames, height, width]`; the
/// tensor's shape has frames and height in one.
pub(crate) fn bytes(
    answer: Answer,
    frames: usize,
    tensor: &Tensor,
) -> Result<(Option<TensorHeader>, Vec<u8>), Refusal> {
    let [batch, channels, rows, width] = tensor.shape;
    let height = rows / frames;
    Ok(match answer {
        Answer::Tensor => {
            let shape = vec![batch, channels, frames, height, width];
            let header = TensorHeader { shape, dtype: Dtype::Float16 };
            (Some(header), bytes_from_elements(Dtype::Float16, &tensor.values))
        }
        Answer::UnitTensor => {
            let shape = vec![frames, channels, height, width];
            let mut unit = Vec::with_capacity(tensor.values.len());
            for frame in 0..frames {
                unit.extend(media::to_unit_interval(&planes(tensor, frame, frames)));
            }
            let header = TensorHeader { shape, dtype: Dtype::Float16 };
            (Some(header), bytes_from_elements(Dtype::Float16, &unit))
        }
        Answer::PartialTensor => {
            let shape = vec![frames, height, width, channels];
            let mut bytes = Vec::with_capacity(tensor.values.len());
            for frame in 0..frames {
                bytes.extend(rgb(tensor, frame, frames));
            }
            (Some(TensorHeader { shape, dtype: Dtype::Uint8 }), bytes)
        }
        Answer::Png => {
            (None, media::encode_png(&rgb(tensor, 0, frames), width, height).map_err(media_refusal)?)
        }
        Answer::Jpeg => {
            (None, media::encode_jpeg(&rgb(tensor, 0, frames), width, height).map_err(media_refusal)?)
        }
        Answer::Mp4 => (None, mp4(tensor, frames).map_err(media_refusal)?),
    })
}

fn mp4(tensor: &Tensor, frames: usize) -> Result<Vec<u8>, media::MediaError> {
    let [_, _, rows, width] = tensor.shape;
    let mut encoder = media::Mp4Encoder::new(width, rows / frames, &media::Mp4Options::default())?;
    let mut file = Vec::new();
    for frame in 0..frames {
        file.extend(encoder.push_rgb(&rgb(tensor, frame, frames))?);
    }
    file.extend(encoder.finish()?);
    Ok(file)
}

/// One frame of the first sample, `[channels, height, width]`.
fn planes(tensor: &Tensor, frame: usize, frames: usize) -> Vec<f32> {
    let [_, channels, rows, width] = tensor.shape;
    let plane = rows / frames * width;
    let channel = |index: usize| &tensor.values[(index * frames + frame) * plane..][..plane];
    (0..channels).flat_map(|index| channel(index).iter().copied()).collect()
}

/// One frame of the first sample, `[height, width, channels]`, 0 to 255.
fn rgb(tensor: &Tensor, frame: usize, frames: usize) -> Vec<u8> {
    let [_, channels, rows, width] = tensor.shape;
    media::to_uint8_channel_last(&planes(tensor, frame, frames), [1, channels, rows / frames, width])
}
