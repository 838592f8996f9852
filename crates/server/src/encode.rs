//! From the request to the job of an encode: a picture file, or a tensor of pixels.

use std::sync::Arc;

use remote_vae_engine::{Draw, EngineError};
use remote_vae_media::{
    DecodeLimits, MediaError, RgbImage, decode_image, resize_tensor_to_multiple, resize_to_multiple,
    tensor_to_model_range, to_model_range,
};
use remote_vae_model::Model;
use remote_vae_wire::{
    BodyKind, Dtype, Parameters, Scaling, TensorHeader, elements_from_bytes, image_body, negotiate_encode,
};

use crate::answer::Form;
use crate::body::Lease;
use crate::decode::check_scaling;
use crate::error::Refusal;
use crate::queue::{Place, Tensor, Work};
use crate::request::{Job, Prepared, check_plan, check_size, random_bits};
use crate::state::Shared;

/// Channels of a picture.
const COLOURS: usize = 3;

/// Where the pixels come from, on their way to `[batch, 3, height, width]` in -1 to 1.
enum Pixels {
    Picture(RgbImage),
    /// Sides that are not multiples of `factor` are cut to the next lower ones.
    Tensor {
        dtype: Dtype,
        bytes: Vec<u8>,
        shape: [usize; 4],
        factor: usize,
    },
}

/// Checks the request and makes its job. A picture is unpacked and resized here, beside the engine.
pub(crate) async fn prepare(shared: &Shared, job: Job<'_>) -> Result<Prepared, Refusal> {
    let Job { autoencoder, parameters, precision, kind, body, lease, accept } = job;
    let model = autoencoder.model();
    let space = &model.latent_space;
    let scaling = parameters.scaling();
    let draw = draw(&parameters)?;
    if draw == Draw::Moments {
        check_moments(model, scaling)?;
    } else {
        check_scaling(model.latent_channels(), |probe, shape| space.from_model(probe, shape, &scaling))?;
    }

    let is_picture = kind == BodyKind::Image || image_body(&parameters, &body).is_some();
    let factor = model.spatial_factor();
    let (place, lease, pixels, shape) = if is_picture {
        let place = shared.reserve()?;
        let Unpacked { picture, place, lease } = unpack(shared, body, factor, place, lease).await?;
        let shape = [1, COLOURS, picture.height, picture.width];
        (place, lease, Pixels::Picture(picture), shape)
    } else {
        let header = parameters.tensor_header()?;
        header.check_body(body.len())?;
        let shape = tensor_shape(&header, factor)?;
        let [batch, _, height, width] = shape;
        check_size(shared, batch, height, width)?;
        let cut = [batch, COLOURS, height - height % factor, width - width % factor];
        let pixels = Pixels::Tensor { dtype: header.dtype, bytes: body, shape, factor };
        (shared.reserve()?, lease, pixels, cut)
    };
    let [batch, _, height, width] = shape;
    let count = check_size(shared, batch, height, width)?;
    check_plan(shared, autoencoder.plan_encode(shape, precision))?;

    let autoencoder = Arc::clone(autoencoder);
    let work: Work = Box::new(move |control| {
        let pixels = pixels.into_model_range()?;
        drop(lease);
        let latents = autoencoder.encode(&pixels, shape, &scaling, draw, precision, control)?;
        Ok(Tensor { values: latents.values, shape: latents.shape })
    });
    let answer = Form::Latents(negotiate_encode(accept.as_deref()).encoding);
    Ok(Prepared { place, work, answer, pixels: count, batch })
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

fn tensor_shape(header: &TensorHeader, factor: usize) -> Result<[usize; 4], Refusal> {
    let shape = match header.shape[..] {
        [batch, COLOURS, height, width] => [batch, COLOURS, height, width],
        [COLOURS, height, width] => [1, COLOURS, height, width],
        _ => {
            return Err(Refusal::bad_request(format!(
                "Expected pixels of shape [batch, 3, height, width]. Got shape {:?}.",
                header.shape
            )));
        }
    };
    let [_, _, height, width] = shape;
    if height < factor || width < factor {
        return Err(media_refusal(MediaError::TooSmall { width, height, multiple: factor }));
    }
    Ok(shape)
}

/// A picture, and what its request holds.
struct Unpacked {
    picture: RgbImage,
    place: Place,
    lease: Lease,
}

/// Unpacks a picture file and cuts its sides to multiples of `factor`. A small file may hold a large picture, so the
/// lease becomes that of the pixels.
async fn unpack(
    shared: &Shared,
    file: Vec<u8>,
    factor: usize,
    place: Place,
    mut lease: Lease,
) -> Result<Unpacked, Refusal> {
    /// Bytes that a pixel may take while it is unpacked: four channels of 16 bits.
    const BYTES_PER_PIXEL: u64 = 8;
    let max_pixels = shared.options.limits.max_pixels;
    let limits = DecodeLimits { max_pixels, max_bytes: max_pixels.saturating_mul(BYTES_PER_PIXEL) };
    let unpacking = move || {
        let picture = decode_image(&file, &limits).map_err(media_refusal)?;
        drop(file);
        let picture = resize_to_multiple(picture, factor).map_err(media_refusal)?;
        let bytes = picture.pixels.len() as u64;
        lease.grow_to(bytes)?;
        lease.shrink_to(bytes);
        Ok(Unpacked { picture, place, lease })
    };
    shared.blocking(unpacking).await?.inspect_err(|refusal| shared.note_no_room(refusal))
}

/// A picture larger than a limit is refused as a body larger than a limit is; whatever else is wrong is a bad request.
fn media_refusal(error: MediaError) -> Refusal {
    match error {
        MediaError::TooManyPixels { .. } | MediaError::TooManyBytes { .. } => {
            Refusal::too_large(error.to_string())
        }
        _ => Refusal::bad_request(error.to_string()),
    }
}

impl Pixels {
    /// `[batch, 3, height, width]` in -1 to 1.
    fn into_model_range(self) -> Result<Vec<f32>, EngineError> {
        match self {
            Pixels::Picture(picture) => Ok(to_model_range(&picture)),
            Pixels::Tensor { dtype, bytes, shape, factor } => {
                let values = elements_from_bytes(dtype, &bytes);
                drop(bytes);
                let [_, _, height, width] = shape;
                // Length and sides were checked before.
                let (mut values, _) = resize_tensor_to_multiple(values, shape, factor)
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
        let shape = [1, 1, 1, values.len()];
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
        let shape = |shape: &[usize]| {
            tensor_shape(&TensorHeader { shape: shape.to_vec(), dtype: Dtype::Uint8 }, 8)
                .map_err(|refusal| refusal.message)
        };
        assert_eq!(shape(&[2, 3, 16, 8]), Ok([2, 3, 16, 8]));
        assert_eq!(shape(&[3, 16, 8]), Ok([1, 3, 16, 8]));
        assert_eq!(shape(&[1, 3, 16, 9]), Ok([1, 3, 16, 9]));
        assert!(shape(&[1, 3, 4, 8]).unwrap_err().contains("8x4"));
        assert!(shape(&[1, 4, 8, 8]).unwrap_err().contains("[1, 4, 8, 8]"));
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
