//! From the request to the job of an encode: a picture or video file, or a tensor of pixels.

use std::sync::Arc;

use remote_vae_engine::{Draw, EngineError};
use remote_vae_media::{
    DecodeLimits, MediaError, RgbImage, VideoLimits, clip_to_model_range, decode_image, decode_mp4,
    resize_tensor_to_multiple, resize_to_multiple, tensor_to_model_range,
};
use remote_vae_model::Model;
use remote_vae_wire::{
    BodyKind, Dtype, Operation, Parameters, Scaling, TensorHeader, elements_from_bytes, image_body,
    negotiate_encode, video_body,
};

use crate::answer::Form;
use crate::auth::Caller;
use crate::body::Lease;
use crate::clip;
use crate::decode::check_scaling;
use crate::error::Refusal;
use crate::planning::{self, Asked, Planned};
use crate::queue::{Cost, Output, Place, Tensor, Work};
use crate::request::{Job, Prepared, check_clip_size, cost, max_pixels, random_bits};
use crate::state::Shared;

/// Channels of a picture.
const COLOURS: usize = 3;

/// Where the pixels come from, on their way to `[batch, 3, frames, height, width]` in -1 to 1.
enum Pixels {
    /// Frames of one clip, all of one size; of a picture one.
    Frames(Vec<RgbImage>),
    /// Sides that are not multiples of `factor` are cut to the next lower ones.
    Tensor { dtype: Dtype, bytes: Vec<u8>, shape: [usize; 5], factor: usize },
}

/// Checks the request and makes its job. A file is unpacked and resized here, beside the engine.
pub(crate) async fn prepare(shared: &Shared, job: Job<'_>) -> Result<Prepared, Refusal> {
    let Job { autoencoder, parameters, precision, kind, body, lease, accept, in_file, caller, .. } = job;
    let model = autoencoder.model();
    let space = &model.latent_space;
    let scaling = parameters.scaling();
    let draw = draw(&parameters)?;
    if draw == Draw::Moments {
        check_moments(model, scaling)?;
    } else {
        check_scaling(model.latent_channels(), |probe, shape| space.from_model(probe, shape, &scaling))?;
    }
    let windows = clip::windows(autoencoder, &parameters, shared.options.windows)?;

    let takes_clips = model.temporal_factor().is_some();
    let is_video = kind == BodyKind::Video || video_body(&parameters, &body);
    if is_video && !takes_clips {
        return Err(Refusal::bad_request("This model takes pictures. Got a video file."));
    }
    let is_picture = kind == BodyKind::Image || image_body(&parameters, &body).is_some();
    let factor = model.spatial_factor();
    let (place, lease, pixels, shape) = if is_video || is_picture {
        let place = shared.reserve(&caller)?;
        let Unpacked { frames, place, lease } =
            unpack(shared, &caller, body, is_video, factor, place, lease).await?;
        let [height, width] = frames.first().map_or([0; 2], |frame| [frame.height, frame.width]);
        let shape = [1, COLOURS, frames.len(), height, width];
        (place, lease, Pixels::Frames(frames), shape)
    } else {
        let header = parameters.tensor_header()?;
        header.check_body(body.len())?;
        let shape = tensor_shape(&header, factor, takes_clips)?;
        check_clip_size(shared, &caller, shape)?;
        let [batch, _, frames, height, width] = shape;
        let cut = [batch, COLOURS, frames, height - height % factor, width - width % factor];
        let pixels = Pixels::Tensor { dtype: header.dtype, bytes: body, shape, factor };
        (shared.reserve(&caller)?, lease, pixels, cut)
    };
    let count = check_clip_size(shared, &caller, shape)?;
    let [batch, _, _, height, width] = shape;
    let picture = [batch, COLOURS, height, width];
    let (operation, answer_per_pixel) = (Operation::Encode, 0);
    let asked = Asked { operation, shape, windows, precision, answer_per_pixel };
    let Planned { summary, plans } = planning::plan(shared, autoencoder, asked).await?;

    let (autoencoder, held) = (Arc::clone(autoencoder), lease.bytes());
    let work: Work = Box::new(move |control| {
        let _plans = plans;
        let pixels = pixels.into_model_range()?;
        drop(lease);
        if !takes_clips {
            let latents = match windows.tiles {
                None => autoencoder.encode(&pixels, picture, &scaling, draw, precision, control)?,
                Some(tiles) => {
                    autoencoder.encode_in_tiles(pixels, picture, &scaling, draw, tiles, precision, control)?
                }
            };
            return Ok(Output::Latents(Tensor { values: latents.values, shape: latents.shape }));
        }
        let latents = autoencoder.encode_clip(pixels, shape, &scaling, draw, windows, precision, control)?;
        let [batch, channels, frames, height, width] = latents.shape;
        let shape = [batch, channels, frames * height, width];
        Ok(Output::Latents(Tensor { values: latents.values, shape }))
    });
    let negotiated = negotiate_encode(&parameters, accept.as_deref());
    let answer = Form::Latents { negotiated, frames: takes_clips.then_some(summary.frames[1]) };
    let cost = cost(&summary);
    let cost = Cost { answer_bytes: answer.with_copy(cost.answer_bytes, in_file), ..cost };
    Ok(Prepared { place, work, answer, cost, held, frames: shape[2], pixels: count, batch })
}

/// The distribution's mode unless moments or a sample are asked for; without a seed every sample is another one.
fn draw(parameters: &Parameters) -> Result<Draw, Refusal> {
    match (parameters.moments, parameters.draws_sample()) {
        (true, true) => Err(Refusal::bad_request(
            "Expected either `moments` or a sample (`sample`, `seed`). Got both.".to_owned(),
        )),
        (true, false) => Ok(Draw::Moments),
        (false, true) => Ok(Draw::Sample { seed: parameters.seed.unwrap_or_else(random_bits) }),
        (false, false) => Ok(Draw::Mode),
    }
}

/// Moments are the model's own, unscaled, and not every encoder gives them.
fn check_moments(model: &Model, scaling: Scaling) -> Result<(), Refusal> {
    if !model.encoder_yields_moments() {
        return Err(Refusal::bad_request(format!(
            "Expected no `moments`: the encoder of an {} gives latents and no distribution.",
            model.family.name()
        )));
    }
    match scaling {
        Scaling::None | Scaling::Declined => Ok(()),
        _ => Err(Refusal::bad_request(
            "Expected no `scaling_factor`, `shift_factor` or `do_scaling` beside `moments`: they are given in the model's \
             own space."
                .to_owned(),
        )),
    }
}

/// The pixels' shape `[batch, 3, frames, height, width]`, from any that the model takes.
fn tensor_shape(header: &TensorHeader, factor: usize, takes_clips: bool) -> Result<[usize; 5], Refusal> {
    let shape = match header.shape[..] {
        [batch, COLOURS, frames, height, width] if takes_clips => [batch, COLOURS, frames, height, width],
        [batch, COLOURS, height, width] => [batch, COLOURS, 1, height, width],
        [COLOURS, height, width] => [1, COLOURS, 1, height, width],
        _ => {
            let expected =
                if takes_clips { "[batch, 3, frames, height, width]" } else { "[batch, 3, height, width]" };
            return Err(Refusal::bad_request(format!(
                "Expected pixels of shape {expected}. Got shape {:?}.",
                header.shape
            )));
        }
    };
    let [.., height, width] = shape;
    if height < factor || width < factor {
        return Err(media_refusal(MediaError::TooSmall { width, height, multiple: factor }));
    }
    Ok(shape)
}

/// The pictures of a file, and what its request holds.
struct Unpacked {
    frames: Vec<RgbImage>,
    place: Place,
    lease: Lease,
}

/// Unpacks a picture or video file and cuts its sides to multiples of `factor`. A small file may hold large pictures, so
/// the lease becomes that of the pixels.
async fn unpack(
    shared: &Shared,
    caller: &Caller,
    file: Vec<u8>,
    is_video: bool,
    factor: usize,
    place: Place,
    mut lease: Lease,
) -> Result<Unpacked, Refusal> {
    /// Bytes that a pixel may take while it is unpacked: four channels of 16 bits.
    const BYTES_PER_PIXEL: u64 = 8;
    let (max_pixels, max_frames) = (max_pixels(shared, caller), shared.options.limits.max_frames);
    let limits = move |bytes: u64| DecodeLimits { max_pixels, max_bytes: max_pixels.saturating_mul(bytes) };
    let unpacking = move || {
        let frames = if is_video {
            // All frames together may have as many pixels as a picture.
            let limits = VideoLimits { frames: limits(COLOURS as u64), max_frames };
            decode_mp4(&file, &limits).map(|video| video.frames)
        } else {
            decode_image(&file, &limits(BYTES_PER_PIXEL)).map(|picture| vec![picture])
        };
        let frames = frames.map_err(media_refusal)?;
        drop(file);
        let resized = frames.into_iter().map(|frame| resize_to_multiple(frame, factor));
        let frames = resized.collect::<Result<Vec<_>, _>>().map_err(media_refusal)?;
        let bytes = frames.iter().map(|frame| frame.pixels.len() as u64).sum();
        lease.grow_to(bytes)?;
        lease.shrink_to(bytes);
        Ok(Unpacked { frames, place, lease })
    };
    shared.blocking(unpacking).await?.map_err(|refusal| shared.no_room(refusal))
}

/// A picture larger than a limit is refused as a body larger than a limit is; whatever else is wrong is a bad request.
fn media_refusal(error: MediaError) -> Refusal {
    match error {
        MediaError::TooManyPixels { .. }
        | MediaError::TooManyBytes { .. }
        | MediaError::TooManyFrames { .. } => Refusal::too_large(error.to_string()),
        _ => Refusal::bad_request(error.to_string()),
    }
}

impl Pixels {
    /// `[batch, 3, frames, height, width]` in -1 to 1.
    fn into_model_range(self) -> Result<Vec<f32>, EngineError> {
        match self {
            Pixels::Frames(frames) => Ok(clip_to_model_range(&frames)),
            Pixels::Tensor { dtype, bytes, shape, factor } => {
                let values = elements_from_bytes(dtype, &bytes);
                drop(bytes);
                let [batch, channels, frames, height, width] = shape;
                // Length and sides were checked before.
                let pictures = [batch, channels * frames, height, width];
                let (mut values, _) = resize_tensor_to_multiple(values, pictures, factor)
                    .map_err(|_| EngineError::ImageSides { height, width, factor })?;
                if dtype == Dtype::Uint8 {
                    values.iter_mut().for_each(|value| *value /= 255.0);
                }
                tensor_to_model_range(&mut values);
                Ok(values)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use remote_vae_wire::bytes_from_elements;

    use super::*;

    fn range(dtype: Dtype, values: &[f32]) -> Vec<f32> {
        let shape = [1, 1, 1, 1, values.len()];
        let bytes = bytes_from_elements(dtype, values);
        Pixels::Tensor { dtype, bytes, shape, factor: 1 }.into_model_range().unwrap()
    }

    #[test]
    fn tensors_are_brought_to_the_models_range() {
        assert_eq!(range(Dtype::Float32, &[0.0, 0.5, 1.0]), [-1.0, 0.0, 1.0]);
        assert_eq!(range(Dtype::Float32, &[-0.5, 0.5, 1.0]), [-0.5, 0.5, 1.0]);
        assert_eq!(range(Dtype::Uint8, &[0.0, 255.0]), [-1.0, 1.0]);
        assert!(range(Dtype::Float32, &[f32::NAN, 0.5])[0].is_nan());
    }

    #[test]
    fn shapes_are_checked() {
        let shape = |shape: &[usize], takes_clips| {
            tensor_shape(&TensorHeader { shape: shape.to_vec(), dtype: Dtype::Uint8 }, 8, takes_clips)
                .map_err(|refusal| refusal.message)
        };
        assert_eq!(shape(&[2, 3, 16, 8], false), Ok([2, 3, 1, 16, 8]));
        assert_eq!(shape(&[3, 16, 8], false), Ok([1, 3, 1, 16, 8]));
        assert_eq!(shape(&[1, 3, 16, 9], true), Ok([1, 3, 1, 16, 9]));
        assert_eq!(shape(&[1, 3, 5, 16, 9], true), Ok([1, 3, 5, 16, 9]));
        assert!(shape(&[1, 3, 4, 8], false).unwrap_err().contains("8x4"));
        assert!(shape(&[1, 4, 8, 8], false).unwrap_err().contains("[1, 4, 8, 8]"));
        assert!(shape(&[1, 3, 5, 8, 8], false).unwrap_err().contains("[batch, 3, height, width]"));
        assert!(shape(&[1, 4, 5, 8, 8], true).unwrap_err().contains("[batch, 3, frames, height, width]"));
    }

    #[test]
    fn a_seed_asks_for_a_sample() {
        let draw = |moments, sample, seed| {
            super::draw(&Parameters { moments, sample, seed, ..Parameters::default() }).ok()
        };
        assert_eq!(draw(false, None, None), Some(Draw::Mode));
        assert_eq!(draw(false, None, Some(7)), Some(Draw::Sample { seed: 7 }));
        assert_eq!(draw(false, Some(false), Some(7)), Some(Draw::Mode));
        assert!(matches!(draw(false, Some(true), None), Some(Draw::Sample { .. })));
        assert_eq!(draw(true, None, None), Some(Draw::Moments));
        assert_eq!(draw(true, Some(true), None), None);
    }
}
