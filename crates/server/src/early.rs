//! The early preview of a job: its first picture, or the middle latent frame of its first clip, one pixel for each latent
//! and small enough for an event. Made before the job waits in line, without the engine.

use std::sync::Arc;

use bytes::Bytes;
use remote_vae_media as media;
use remote_vae_model::{Layout, Model};
use remote_vae_wire::{Dtype, Parameters, elements_from_bytes};

use crate::clip;
use crate::error::Refusal;
use crate::request::Job;
use crate::state::Shared;

/// Most pixels of a side: of more latents every second, third … is shown.
const MAX_SIDE: usize = 128;
/// Latents of a picture or a frame, all channels: larger ones are not shown. Those of 8192x8192 pixels of Stable Diffusion.
const MOST_LATENTS: usize = 4 << 20;
/// Colours of a preview.
const COLOURS: usize = 3;

/// The job as it was, and the PNG file of its preview. None where the latent space has no factors, for latents that
/// the checks of a decode will refuse, and where there are too many of them or there is no room.
pub(crate) async fn preview<'a>(shared: &Shared, job: Job<'a>) -> Result<(Job<'a>, Option<Bytes>), Refusal> {
    let (autoencoder, parameters) = (Arc::clone(job.autoencoder), job.parameters.clone());
    let Job { body, mut lease, .. } = job;
    let making = move || {
        let (model, held) = (autoencoder.model(), lease.bytes());
        let file = Asked::new(model, &parameters, &body).and_then(|asked| {
            // What there is no room for now is not shown.
            lease.grow_to(held.saturating_add(asked.room())).ok()?;
            let file = asked.png(model, &parameters);
            lease.shrink_to(held);
            file
        });
        (body, lease, file)
    };
    let (body, lease, file) = shared.blocking(making).await?;
    Ok((Job { body, lease, ..job }, file.map(Bytes::from)))
}

/// What is to be shown.
struct Asked<'a> {
    dtype: Dtype,
    /// Of the first of the batch.
    sample: &'a [u8],
    /// `[channels, frames, height, width]`
    shape: [usize; 4],
    /// How a picture's latents lie.
    layout: Option<Layout>,
}

impl<'a> Asked<'a> {
    fn new(model: &Model, parameters: &Parameters, body: &'a [u8]) -> Option<Asked<'a>> {
        let space = &model.latent_space;
        space.check_preview().ok()?;
        let header = parameters.tensor_header().ok()?;
        header.check_body(body.len()).ok()?;
        let (shape, layout) = if model.temporal_factor().is_some() {
            clip::latents_shape(space, &header, parameters).ok()?
        } else {
            let layout = space.layout(&header.shape, parameters.height, parameters.width).ok()?;
            let [batch, channels, height, width] = layout.latents();
            ([batch, channels, 1, height, width], Some(layout))
        };
        let [batch, channels, frames, height, width] = shape;
        let shape = [channels, frames, height, width];
        let is_small = channels.saturating_mul(height).saturating_mul(width) <= MOST_LATENTS;
        if batch == 0 || shape.contains(&0) || !is_small {
            return None;
        }
        let sample = body.get(..body.len() / batch)?;
        Some(Asked { dtype: header.dtype, sample, shape, layout })
    }

    /// Bytes that [`Asked::png`] takes at most: latents twice as `f32`, which they are while they are arranged, and
    /// colours as `f32` and bytes.
    fn room(&self) -> u64 {
        let [channels, _, height, width] = self.shape;
        let pixel = channels * 2 * size_of::<f32>() + COLOURS * (size_of::<f32>() + 1);
        (height * width * pixel) as u64
    }

    fn png(self, model: &Model, parameters: &Parameters) -> Option<Vec<u8>> {
        let Asked { dtype, sample, shape: [channels, frames, height, width], layout } = self;
        let space = &model.latent_space;
        let values = match layout {
            Some(layout) => space.arrange(elements_from_bytes(dtype, sample), first(layout)).ok()?.0,
            None => {
                let plane = height * width * dtype.size();
                let middle = sample.chunks_exact(plane).skip(frames / 2).step_by(frames);
                middle.flat_map(|plane| elements_from_bytes(dtype, plane)).collect()
            }
        };
        let colours = space.preview(values, [1, channels, height, width], &parameters.scaling()).ok()?;
        let rgb = media::to_uint8_channel_last(&colours, [1, COLOURS, height, width]);
        let (rgb, width, height) = thinned(&rgb, width, height);
        media::encode_png(&rgb, width, height).ok()
    }
}

/// How the first sample of a batch lies.
fn first(layout: Layout) -> Layout {
    let one = |[_, channels, height, width]: [usize; 4]| [1, channels, height, width];
    match layout {
        Layout::Planes(latents) => Layout::Planes(one(latents)),
        Layout::Tokens { tokens: [_, count, size], latents } => {
            Layout::Tokens { tokens: [1, count, size], latents: one(latents) }
        }
        Layout::PatchPlanes { latents } => Layout::PatchPlanes { latents: one(latents) },
    }
}

/// Pixels `[height, width, 3]` at equal distances, so many that no side is above [`MAX_SIDE`], with width and height.
fn thinned(rgb: &[u8], width: usize, height: usize) -> (Vec<u8>, usize, usize) {
    let step = width.max(height).div_ceil(MAX_SIDE);
    let rows = rgb.chunks_exact(width * COLOURS).step_by(step);
    let pixels = rows.flat_map(|row| row.chunks_exact(COLOURS).step_by(step)).flatten().copied().collect();
    (pixels, width.div_ceil(step), height.div_ceil(step))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_previews_are_thinned_evenly() {
        for (width, height, expected) in
            [(1, 1, (1, 1)), (128, 7, (128, 7)), (129, 3, (65, 2)), (50, 300, (17, 100))]
        {
            let rgb: Vec<u8> =
                (0..height).flat_map(|y| (0..width).flat_map(move |x| [x as u8, y as u8, 7])).collect();
            let (pixels, w, h) = thinned(&rgb, width, height);
            assert_eq!(((w, h), pixels.len()), (expected, 3 * w * h));
            let step = width.max(height).div_ceil(MAX_SIDE);
            for (index, pixel) in pixels.chunks_exact(3).enumerate() {
                assert_eq!(pixel, [(index % w * step) as u8, (index / w * step) as u8, 7]);
            }
        }
    }
}
