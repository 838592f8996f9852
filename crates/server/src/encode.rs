//! From the request to the job of an encode: a picture file, or a tensor of pixels.

use std::sync::Arc;

use remote_vae_engine::Draw;
use remote_vae_media::{
    DecodeLimits, MediaError, RgbImage, decode_image, resize_to_multiple, tensor_to_model_range,
    to_model_range,
};
use remote_vae_wire::{
    BodyKind, Dtype, Parameters, TensorHeader, elements_from_bytes, image_body, negotiate_encode,
};

use crate::answer::Form;
use crate::decode::check_scaling;
use crate::error::Refusal;
use crate::queue::{Tensor, Work};
use crate::request::{Job, Prepared, check_plan, check_size, random_bits};
use crate::state::Shared;

/// Channels of a picture.
const COLOURS: usize = 3;

/// Where the pixels come from, on their way to `[batch, 3, height, width]` in -1 to 1.
enum Pixels {
    Picture(RgbImage),
    Tensor { dtype: Dtype, bytes: Vec<u8> },
}

/// Checks the request and makes its job. A picture is unpacked and resized here, beside the engine.
pub(crate) async fn prepare(shared: &Shared, job: Job<'_>) -> Result<Prepared, Refusal> {
    let Job { autoencoder, parameters, kind, body, accept } = job;
    let model = autoencoder.model();
    let space = &model.latent_space;
    let scaling = parameters.scaling();
    check_scaling(model.latent_channels(), |probe, shape| space.from_model(probe, shape, &scaling))?;

    let is_picture = kind == BodyKind::Image || image_body(&parameters, &body).is_some();
    let factor = model.spatial_factor();
    let (place, pixels, shape) = if is_picture {
        let place = shared.reserve()?;
        let picture = unpack(shared, body, factor).await?;
        let shape = [1, COLOURS, picture.height, picture.width];
        (place, Pixels::Picture(picture), shape)
    } else {
        let header = parameters.tensor_header()?;
        header.check_body(body.len())?;
        let shape = tensor_shape(&header, factor)?;
        check_size(shared, shape[0], shape[2], shape[3])?;
        (shared.reserve()?, Pixels::Tensor { dtype: header.dtype, bytes: body }, shape)
    };
    let [batch, _, height, width] = shape;
    let count = check_size(shared, batch, height, width)?;
    check_plan(shared, autoencoder.plan_encode(shape))?;

    let draw = draw(&parameters);
    let autoencoder = Arc::clone(autoencoder);
    let work: Work = Box::new(move |control| {
        let pixels = pixels.into_model_range();
        let latents = autoencoder.encode(&pixels, shape, &scaling, draw, control)?;
        Ok(Tensor { values: latents.values, shape: latents.shape })
    });
    let answer = Form::Latents(negotiate_encode(accept.as_deref()).encoding);
    Ok(Prepared { place, work, answer, pixels: count, batch })
}

/// The distribution's mode unless a sample is asked for; without a seed every sample is another one.
fn draw(parameters: &Parameters) -> Draw {
    if parameters.draws_sample() {
        Draw::Sample { seed: parameters.seed.unwrap_or_else(random_bits) }
    } else {
        Draw::Mode
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
    for (name, side) in [("height", height), ("width", width)] {
        if !side.is_multiple_of(factor) {
            return Err(Refusal::bad_request(format!(
                "Expected the {name} of a tensor of pixels to be a multiple of {factor}. Got {side} in shape {:?}.",
                header.shape
            )));
        }
    }
    Ok(shape)
}

/// Unpacks a picture file and cuts its sides to multiples of `factor`.
async fn unpack(shared: &Shared, file: Vec<u8>, factor: usize) -> Result<RgbImage, Refusal> {
    /// Bytes that a pixel may take while it is unpacked: four channels of 16 bits.
    const BYTES_PER_PIXEL: u64 = 8;
    let max_pixels = shared.options.limits.max_pixels;
    let limits = DecodeLimits { max_pixels, max_bytes: max_pixels.saturating_mul(BYTES_PER_PIXEL) };
    let unpacking = move || resize_to_multiple(decode_image(&file, &limits)?, factor);
    shared.blocking(unpacking).await?.map_err(media_refusal)
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
    fn into_model_range(self) -> Vec<f32> {
        match self {
            Pixels::Picture(picture) => to_model_range(&picture),
            Pixels::Tensor { dtype, bytes } => {
                let mut values = elements_from_bytes(dtype, &bytes);
                if dtype == Dtype::Uint8 {
                    values.iter_mut().for_each(|value| *value /= 255.0);
                }
                tensor_to_model_range(&mut values);
                values
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use remote_vae_wire::bytes_from_elements;

    use super::*;

    fn range(dtype: Dtype, values: &[f32]) -> Vec<f32> {
        Pixels::Tensor { dtype, bytes: bytes_from_elements(dtype, values) }.into_model_range()
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
        assert!(shape(&[1, 3, 16, 9]).unwrap_err().contains("width"));
        assert!(shape(&[1, 3, 4, 8]).unwrap_err().contains("height"));
        assert!(shape(&[1, 4, 8, 8]).unwrap_err().contains("[1, 4, 8, 8]"));
    }

    #[test]
    fn a_seed_asks_for_a_sample() {
        let draw = |sample, seed| super::draw(&Parameters { sample, seed, ..Parameters::default() });
        assert_eq!(draw(None, None), Draw::Mode);
        assert_eq!(draw(None, Some(7)), Draw::Sample { seed: 7 });
        assert_eq!(draw(Some(false), Some(7)), Draw::Mode);
        assert!(matches!(draw(Some(true), None), Draw::Sample { .. }));
    }
}
