//! Decodes by a model of videos: the checks of a request for latents `[batch, channels, frames, height, width]`, and its
//! job. How frames become bytes is in [`crate::clip_bytes`], how they leave in [`crate::growing`].

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use remote_vae_engine::{Autoencoder, EngineError, Windows};
use remote_vae_media::{MediaError, Mp4Layout, Mp4Options, WebpAnimation};
use remote_vae_model::{LatentSpace, Layout, Packing};
use remote_vae_wire::{
    Answer, Encoding, Negotiated, Operation, Parameters, TensorHeader, elements_from_bytes,
};

use crate::answer::Form;
use crate::clip_bytes::{Recipe, make};
use crate::decode::check_scaling;
use crate::error::Refusal;
use crate::growing::{self, Growing};
use crate::planning::{self, Asked, Planned};
use crate::queue::{Cost, Output, Work};
use crate::request::{Job, Prepared, check_clip_size, cost, engine_refusal};
use crate::state::Shared;

/// Checks the request and makes its job; `header` is that of the latents in the body.
pub(crate) async fn prepare(
    shared: &Shared,
    job: Job<'_>,
    negotiated: Negotiated,
    header: TensorHeader,
) -> Result<Prepared, Refusal> {
    let Job { autoencoder, parameters, precision, body, lease, in_file, sees_end, caller, .. } = job;
    let model = autoencoder.model();
    let channels = model.latent_channels();
    let (latents, layout) = latents_shape(&model.latent_space, &header, &parameters)?;
    let windows = windows(autoencoder, &parameters, shared.options.windows)?;
    let output = autoencoder.clip_pixels(latents).map_err(engine_refusal)?;
    let pixels = check_clip_size(shared, &caller, output)?;
    let scaling = parameters.scaling();
    check_scaling(channels, |probe, shape| model.latent_space.to_model(probe, shape, &scaling))?;
    let groups = autoencoder.frame_groups(latents, windows);
    let recipe = recipe(&parameters, negotiated, output, groups, sees_end)?;
    let place = shared.reserve(&caller)?;
    let (operation, answer_per_pixel) = (Operation::Decode, 0);
    let asked = Asked { operation, shape: latents, windows, precision, answer_per_pixel };
    let Planned { summary, plans } = planning::plan(shared, autoencoder, asked).await?;
    let (autoencoder, held) = (Arc::clone(autoencoder), lease.bytes());
    let (chunks, answer) = Growing::new(negotiated, recipe.header(), recipe.streams());
    let answer = Form::Growing(Box::new(answer));
    let answer_bytes = answer.with_copy(recipe.bytes(), in_file).saturating_add(recipe.kept_bytes());
    let cost = Cost { answer_bytes, ..cost(&summary) };
    let batch = output[0];
    let work: Work = Box::new(move |control| {
        let _plans = plans;
        let values = elements_from_bytes(header.dtype, &body);
        drop((body, lease));
        let values = match layout {
            Some(layout) => autoencoder.model().latent_space.arrange(values, layout)?.0,
            None => values,
        };
        // Frames become bytes while the next ones are decoded. None wait between, as the plan has room for two groups.
        let (give, frames) = sync_channel(0);
        growing::make(chunks, move |chunks| make(&recipe, &frames, chunks)).map_err(EngineError::Threads)?;
        let mut emit = |frames| give.send(frames).map_err(|_| EngineError::Cancelled);
        autoencoder.decode_frames(values, latents, &scaling, windows, precision, control, &mut emit)?;
        Ok(Output::Given)
    });
    Ok(Prepared { place, work, answer, cost, held, frames: latents[2], pixels, batch })
}

/// `[batch, channels, frames, height, width]` of the latents; where they are one frame, also how that lies.
pub(crate) fn latents_shape(
    space: &LatentSpace,
    header: &TensorHeader,
    parameters: &Parameters,
) -> Result<([usize; 5], Option<Layout>), Refusal> {
    let is_picture = match header.shape[..] {
        [batch, channels, frames, height, width] if channels == space.channels => {
            return Ok(([batch, channels, frames, height, width], None));
        }
        [_, channels, _, _] => channels == space.channels,
        [_, _, _] => space.packing != Packing::None,
        _ => false,
    };
    if !is_picture {
        let packed = match space.packing {
            Packing::None => String::new(),
            _ => format!(", or packed [batch, tokens, {}] with `height` and `width`", space.token_size()),
        };
        return Err(Refusal::bad_request(format!(
            "latents: expected shape [batch, {}, frames, height, width]{packed}, got {:?}",
            space.channels, header.shape
        )));
    }
    let layout = space
        .layout(&header.shape, parameters.height, parameters.width)
        .map_err(|error| engine_refusal(EngineError::Model(error)))?;
    let [batch, channels, height, width] = layout.latents();
    Ok(([batch, channels, 1, height, width], Some(layout)))
}

/// How clips are cut: as the request says, or else as the server's options say. Pictures of a model of pictures are cut only
/// where the request says so. Sizes of tiles where there are none are refused.
pub(crate) fn windows(
    autoencoder: &Autoencoder,
    parameters: &Parameters,
    default: Windows,
) -> Result<Windows, Refusal> {
    let Parameters { windows, tiling, tile, .. } = *parameters;
    let is_video = autoencoder.model().temporal_factor().is_some();
    let has_tiles = tiling.unwrap_or(is_video && default.tiles.is_some());
    if let (false, Some(name)) = (has_tiles, tile.first_given()) {
        let found = if tiling.is_some() { "`tiling=off`" } else { "no `tiling`" };
        return Err(Refusal::bad_request(format!(
            "`{name}` is for tiles: expected `tiling=diffusers` with it. Got {found}."
        )));
    }
    let tiles = has_tiles.then_some(tile);
    if !is_video {
        if windows == Some(true) {
            let family = autoencoder.model().family.name();
            return Err(Refusal::bad_request(format!(
                "This model ({family}) has no `windows`: it decodes and encodes pictures. Got `windows=on`."
            )));
        }
        return Ok(Windows { frames: false, tiles });
    }
    Ok(Windows { frames: windows.unwrap_or(default.frames), tiles })
}

/// What is made of a clip `[batch, channels, frames, height, width]` that is finished in `groups` of frames, if that can
/// be. Files of unknown length leave early only for clients that see where they end.
pub(crate) fn recipe(
    parameters: &Parameters,
    negotiated: Negotiated,
    output: [usize; 5],
    groups: usize,
    sees_end: bool,
) -> Result<Recipe, Refusal> {
    let [batch, channels, frames, height, width] = output;
    let answer = negotiated.answer;
    if answer != Answer::Tensor && (channels != 3 || batch != 1) {
        return Err(Refusal::bad_request(format!(
            "Expected a batch of 1 and 3 channels for this output. Got {batch} and {channels}: only `output_type=pt` without \
             `partial_postprocess` can carry them."
        )));
    }
    if matches!(answer, Answer::Png | Answer::Jpeg) && frames != 1 {
        return Err(Refusal::bad_request(format!(
            "A picture file holds one frame, these latents give {frames}: use `output_type` `mp4` or `pt`, \
             `image_format=webp`, or ask for `tensor/binary`."
        )));
    }
    let default = Mp4Options::default();
    let can_leave_early = match answer {
        Answer::Mp4 => sees_end,
        _ => matches!(answer, Answer::UnitTensor | Answer::PartialTensor),
    };
    let streams = can_leave_early && groups > 1 && negotiated.encoding == Encoding::Binary;
    let video = Mp4Options {
        fps: parameters.fps.unwrap_or(default.fps),
        crf: parameters.crf.unwrap_or(default.crf),
        layout: if streams { Mp4Layout::Fragmented } else { Mp4Layout::Indexed },
    };
    let possible = match answer {
        Answer::Mp4 => video.check_size(width, height),
        Answer::Webp => WebpAnimation::new(width, height, video.fps).map(drop),
        _ => Ok(()),
    };
    possible.map_err(|error: MediaError| Refusal::bad_request(error.to_string()))?;
    Ok(Recipe::new(negotiated, output, groups * batch, video, streams))
}
