//! From the request to the job of a decode: everything that can be wrong with latents is found here.

use std::sync::Arc;

use remote_vae_engine::{EngineError, Image, Rows};
use remote_vae_model::ModelError;
use remote_vae_wire::{Answer, Operation, elements_from_bytes, negotiate};

use crate::answer::Form;
use crate::clip;
use crate::error::Refusal;
use crate::growing::Growing;
use crate::picture_bytes::{Recipe, Writer};
use crate::planning::{self, Asked, Planned};
use crate::queue::{Cost, Output, Work};
use crate::request::{Job, Prepared, check_size, cost, engine_refusal};
use crate::state::Shared;

/// Checks the request and makes its job.
pub(crate) async fn prepare(shared: &Shared, job: Job<'_>) -> Result<Prepared, Refusal> {
    let negotiated = negotiate(&job.parameters, job.accept.as_deref());
    if job.autoencoder.model().temporal_factor().is_some() {
        let header = job.parameters.tensor_header()?;
        header.check_body(job.body.len())?;
        return clip::prepare(shared, job, negotiated, header).await;
    }
    let Job { autoencoder, parameters, precision, body, lease, in_file, sees_end, caller, .. } = job;
    let windows = clip::windows(autoencoder, &parameters, shared.options.windows)?;
    refuse_video(negotiated.answer)?;
    let header = parameters.tensor_header()?;
    header.check_body(body.len())?;

    let model = autoencoder.model();
    let space = &model.latent_space;
    let layout = space.layout(&header.shape, parameters.height, parameters.width).map_err(model_refusal)?;
    let shape = layout.latents();
    let [batch, channels, height, width] = shape;
    let side = |latents: usize| latents.saturating_mul(model.spatial_factor());
    let pixels = check_size(shared, &caller, batch, side(height), side(width))?;
    let scaling = parameters.scaling();
    check_scaling(channels, |probe, shape| space.to_model(probe, shape, &scaling))?;
    let whole = [batch, channels, 1, height, width];
    let [_, channels, _, rows, columns] = autoencoder.clip_pixels(whole).map_err(engine_refusal)?;
    let output = [batch, channels, rows, columns];
    check_form(negotiated.answer, output)?;
    let recipe = Recipe::new(negotiated, output, sees_end);
    let (chunks, answer) = Growing::new(negotiated, recipe.header(), recipe.streams());
    let answer = Form::Growing(Box::new(answer));
    let answer_bytes = answer.with_copy(recipe.bytes(), in_file);
    let answer_per_pixel = per_pixel(answer_bytes, output);
    // Whoever waits for a plan has a place: so many wait at most, and no client has all of them.
    let place = shared.reserve(&caller)?;
    let operation = Operation::Decode;
    let asked = Asked { operation, shape: whole, windows, precision, answer_per_pixel };
    let Planned { summary, plans } = planning::plan(shared, autoencoder, asked).await?;
    let cost = Cost { answer_bytes, ..cost(&summary) };

    let (autoencoder, held, permits) = (Arc::clone(autoencoder), lease.bytes(), shared.pictures());
    let work: Work = Box::new(move |control| {
        let _plans = plans;
        let values = elements_from_bytes(header.dtype, &body);
        drop((body, lease));
        let (latents, shape) = autoencoder.model().latent_space.arrange(values, layout)?;
        let mut writer = Writer::start(recipe, permits, chunks)?;
        match windows.tiles {
            None => {
                let plan = autoencoder.plan_decode_rows(shape, precision, answer_per_pixel)?;
                autoencoder.decode_rows(&plan, latents, &scaling, control, &mut |rows| writer.add(rows))?;
            }
            Some(tiles) => {
                let image =
                    autoencoder.decode_in_tiles(latents, shape, &scaling, tiles, precision, control)?;
                add_whole(&mut writer, image)?;
            }
        }
        writer.finish()?;
        Ok(Output::Given)
    });
    Ok(Prepared { place, work, answer, cost, held, frames: 1, pixels, batch })
}

/// `bytes` of an answer for each pixel of one picture of `[batch, channels, height, width]`.
fn per_pixel(bytes: u64, [_, _, height, width]: [usize; 4]) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX).div_ceil((height * width).max(1))
}

/// All rows of pictures that are there as a whole.
fn add_whole(writer: &mut Writer, mut image: Image) -> Result<(), EngineError> {
    let [_, channels, height, width] = image.shape;
    let samples = image.pixels.chunks_exact_mut(channels * height * width);
    samples.enumerate().try_for_each(|(sample, values)| {
        writer.add(Rows { sample, first: 0, values, shape: [channels, height, width] })
    })
}

/// Whether the latent space takes this scaling, tried on one latent.
pub(crate) fn check_scaling(
    channels: usize,
    transform: impl Fn(&mut [f32], [usize; 4]) -> Result<(), ModelError>,
) -> Result<(), Refusal> {
    transform(&mut vec![0.0; channels], [1, channels, 1, 1]).map_err(model_refusal)
}

/// A model of pictures makes no video files.
pub(crate) fn refuse_video(answer: Answer) -> Result<(), Refusal> {
    if answer == Answer::Mp4 {
        return Err(Refusal::bad_request(
            "`output_type=mp4` needs a model of videos. This model gives pictures: use `output_type` `pil` or `pt`.",
        ));
    }
    Ok(())
}

/// Whether an output `[batch, channels, height, width]` can be what is asked for.
pub(crate) fn check_form(answer: Answer, output: [usize; 4]) -> Result<(), Refusal> {
    /// Sides of a JPEG file are 16 bits.
    const LONGEST_JPEG: usize = u16::MAX as usize;
    /// Those of a lossless WebP file are 14 bits, less one.
    const LONGEST_WEBP: usize = 1 << 14;
    let [_, channels, height, width] = output;
    if answer != Answer::Tensor && channels != 3 {
        return Err(Refusal::bad_request(format!(
            "This model gives {channels} channels, which only `output_type=pt` without `partial_postprocess` can carry."
        )));
    }
    let (format, longest) = match answer {
        Answer::Jpeg => ("JPEG", LONGEST_JPEG),
        Answer::Webp => ("WebP", LONGEST_WEBP),
        _ => return Ok(()),
    };
    if height.max(width) > longest {
        return Err(Refusal::bad_request(format!(
            "Expected sides of at most {longest} pixels for a {format} file. Got {width}x{height} (width x height)."
        )));
    }
    Ok(())
}

fn model_refusal(error: ModelError) -> Refusal {
    engine_refusal(EngineError::Model(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_answers_are_refused_before_work() {
        assert!(check_form(Answer::Jpeg, [1, 3, 8, 65528]).is_ok());
        assert!(check_form(Answer::Jpeg, [1, 3, 8, 65536]).is_err());
        assert!(check_form(Answer::Png, [1, 3, 8, 65536]).is_ok());
        assert!(check_form(Answer::Webp, [1, 3, 8, 16384]).is_ok());
        assert!(check_form(Answer::Webp, [1, 3, 16392, 8]).is_err());
        assert!(check_form(Answer::PartialTensor, [1, 4, 8, 8]).is_err());
        assert!(check_form(Answer::Tensor, [1, 4, 8, 8]).is_ok());
    }
}
