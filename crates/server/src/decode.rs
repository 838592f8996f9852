//! From the request to the job of a decode: everything that can be wrong with latents is found here.

use std::sync::Arc;

use remote_vae_engine::EngineError;
use remote_vae_model::ModelError;
use remote_vae_wire::{Answer, Parameters, TensorHeader, elements_from_bytes, negotiate};

use crate::answer::Form;
use crate::error::Refusal;
use crate::queue::{Tensor, Work};
use crate::request::{Job, Prepared, check_plan, check_size, engine_refusal};
use crate::state::Shared;

/// How the latents lie in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// `[batch, channels, height, width]`.
    Planes([usize; 4]),
    /// `[batch, tokens, 4·channels]`, two by two latents to a token, for a picture of the size given.
    Packed { tokens: [usize; 3], height: usize, width: usize },
}

/// Checks the request and makes its job.
pub(crate) fn prepare(shared: &Shared, job: Job<'_>) -> Result<Prepared, Refusal> {
    let Job { autoencoder, parameters, precision, body, lease, accept, .. } = job;
    let answer = negotiate(&parameters, accept.as_deref());
    if answer.answer == Answer::Mp4 {
        return Err(Refusal::bad_request(
            "`output_type=mp4` needs a model of videos. This model gives pictures: use `output_type` `pil` or `pt`.",
        ));
    }
    let header = parameters.tensor_header()?;
    header.check_body(body.len())?;

    let model = autoencoder.model();
    let space = &model.latent_space;
    let fits = |tokens, height, width| space.unpacked_shape(tokens, height, width).is_ok();
    let layout = layout(&header, &parameters, model.latent_channels(), fits)?;
    let shape = match layout {
        Layout::Planes(shape) => shape,
        Layout::Packed { tokens, height, width } => {
            space.unpacked_shape(tokens, height, width).map_err(model_refusal)?
        }
    };
    let [batch, channels, height, width] = shape;
    let side = |latents: usize| latents.saturating_mul(model.spatial_factor());
    let pixels = check_size(shared, batch, side(height), side(width))?;
    let scaling = parameters.scaling();
    check_scaling(channels, |probe, shape| space.to_model(probe, shape, &scaling))?;
    let plan = check_plan(shared, autoencoder.plan_decode(shape, precision))?;
    check_form(answer.answer, plan.output)?;

    let place = shared.reserve()?;
    let autoencoder = Arc::clone(autoencoder);
    let work: Work = Box::new(move |control| {
        let values = elements_from_bytes(header.dtype, &body);
        drop((body, lease));
        let (latents, shape) = match layout {
            Layout::Planes(shape) => (values, shape),
            Layout::Packed { tokens, height, width } => {
                autoencoder.model().latent_space.unpack(&values, tokens, height, width)?
            }
        };
        let image = autoencoder.decode(latents, shape, &scaling, precision, control)?;
        Ok(Tensor { values: image.pixels, shape: image.shape })
    });
    Ok(Prepared { place, work, answer: Form::Picture(answer), pixels, batch })
}

/// Reads the shape. Height and width count only for tensors of three dimensions: several clients send them always, and
/// some send wrong ones. Where the first dimension may be the model's channels too, the tensor is packed only if the
/// picture of this height and width has just as many tokens (`fits`).
fn layout(
    header: &TensorHeader,
    parameters: &Parameters,
    channels: usize,
    fits: impl Fn([usize; 3], usize, usize) -> bool,
) -> Result<Layout, Refusal> {
    match header.shape[..] {
        [batch, found, height, width] if found == channels => {
            Ok(Layout::Planes([batch, found, height, width]))
        }
        [first, second, third] => match (parameters.height, parameters.width) {
            (Some(height), Some(width))
                if first != channels || fits([first, second, third], height, width) =>
            {
                Ok(Layout::Packed { tokens: [first, second, third], height, width })
            }
            _ if first == channels => Ok(Layout::Planes([1, first, second, third])),
            _ => Err(Refusal::bad_request(format!(
                "Expected `height` and `width`, both, with packed latents [batch, tokens, {}]. Got shape {:?} with{}.",
                4 * channels,
                header.shape,
                match (parameters.height, parameters.width) {
                    (None, None) => "out them",
                    _ => " one of them",
                }
            ))),
        },
        _ => Err(Refusal::bad_request(format!(
            "Expected latents of shape [batch, {channels}, height, width], or packed [batch, tokens, {}] with `height` \
             and `width`. Got shape {:?}.",
            4 * channels,
            header.shape
        ))),
    }
}

/// Whether the latent space takes this scaling, tried on one latent.
pub(crate) fn check_scaling(
    channels: usize,
    transform: impl Fn(&mut [f32], [usize; 4]) -> Result<(), ModelError>,
) -> Result<(), Refusal> {
    transform(&mut vec![0.0; channels], [1, channels, 1, 1]).map_err(model_refusal)
}

/// Whether an output `[batch, channels, height, width]` can be what is asked for.
fn check_form(answer: Answer, output: [usize; 4]) -> Result<(), Refusal> {
    /// Sides of a JPEG file are 16 bits.
    const LONGEST_JPEG: usize = u16::MAX as usize;
    let [_, channels, height, width] = output;
    if answer != Answer::Tensor && channels != 3 {
        return Err(Refusal::bad_request(format!(
            "This model gives {channels} channels, which only `output_type=pt` without `partial_postprocess` can carry."
        )));
    }
    if answer == Answer::Jpeg && height.max(width) > LONGEST_JPEG {
        return Err(Refusal::bad_request(format!(
            "Expected sides of at most {LONGEST_JPEG} pixels for a JPEG file. Got {width}x{height} (width x height)."
        )));
    }
    Ok(())
}

fn model_refusal(error: ModelError) -> Refusal {
    engine_refusal(EngineError::Model(error))
}

#[cfg(test)]
mod tests {
    use remote_vae_wire::Dtype;

    use super::*;

    fn read(shape: &[usize], height: Option<usize>, width: Option<usize>) -> Result<Layout, String> {
        let header = TensorHeader { shape: shape.to_vec(), dtype: Dtype::Float16 };
        let parameters = Parameters { height, width, ..Parameters::default() };
        let fits = |[_, tokens, size]: [usize; 3], height: usize, width: usize| {
            size == 16 && tokens == (height / 16) * (width / 16)
        };
        layout(&header, &parameters, 4, fits).map_err(|refusal| refusal.message)
    }

    #[test]
    fn impossible_answers_are_refused_before_work() {
        assert!(check_form(Answer::Jpeg, [1, 3, 8, 65528]).is_ok());
        assert!(check_form(Answer::Jpeg, [1, 3, 8, 65536]).is_err());
        assert!(check_form(Answer::Png, [1, 3, 8, 65536]).is_ok());
        assert!(check_form(Answer::PartialTensor, [1, 4, 8, 8]).is_err());
        assert!(check_form(Answer::Tensor, [1, 4, 8, 8]).is_ok());
    }

    #[test]
    fn shapes_of_all_clients_are_read() {
        let planes = |shape| Ok(Layout::Planes(shape));
        let tokens = |tokens, height, width| Ok(Layout::Packed { tokens, height, width });
        assert_eq!(read(&[2, 4, 5, 6], None, None), planes([2, 4, 5, 6]));
        assert_eq!(read(&[1, 4, 5, 6], Some(7), Some(9)), planes([1, 4, 5, 6]));
        assert_eq!(read(&[4, 5, 6], None, None), planes([1, 4, 5, 6]));
        assert_eq!(read(&[4, 5, 6], Some(40), Some(48)), planes([1, 4, 5, 6]));
        assert_eq!(read(&[1, 16, 16], Some(64), Some(64)), tokens([1, 16, 16], 64, 64));
        assert_eq!(read(&[4, 16, 16], Some(64), Some(64)), tokens([4, 16, 16], 64, 64));
        // Not packed: this size has 64 tokens, and 16 x 16 latents as planes.
        assert_eq!(read(&[4, 16, 16], Some(128), Some(128)), planes([1, 4, 16, 16]));
        for wrong in [&[1, 16, 5, 6][..], &[5, 6], &[1, 4, 3, 5, 6], &[1, 16, 16]] {
            let message = read(wrong, None, None).unwrap_err();
            assert!(message.contains(&format!("{wrong:?}")) && message.contains("Expected"), "{message}");
        }
        assert!(read(&[1, 16, 16], Some(64), None).unwrap_err().contains("both"));
    }
}
