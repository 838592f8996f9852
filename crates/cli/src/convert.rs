//! The work of `remote-vae decode` and `encode` on one file, here or on a server. Many files are in [`crate::batch`], files
//! of clips in [`crate::clips`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use remote_vae_client as client;
use remote_vae_engine::{Autoencoder, Draw, EngineError, Frames, Image, PlanSummary, Windows};
use remote_vae_model::{LatentSpace, Layout};
use remote_vae_wire::{Dtype, Operation, Scaling};

use crate::arguments::{DecodeOptions, EncodeOptions, EngineArguments, PlaceArguments};
use crate::clips::{self, Writer};
use crate::local;
use crate::pictures::{self, Pictures};
use crate::place::{self, Place};
use crate::remote::Remote;
use crate::tensors::{self, Tensor};

/// What a decode writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Frames(clips::Format),
    Tensor,
}

impl Format {
    /// By the extension.
    pub(crate) fn of(path: &Path) -> Result<Format> {
        let extension = path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase());
        Ok(Format::Frames(match extension.as_deref() {
            Some("png") => clips::Format::Png,
            Some("jpg" | "jpeg") => clips::Format::Jpeg,
            Some("webp") => clips::Format::Webp,
            Some("mp4") => clips::Format::Mp4,
            None => clips::Format::Folder,
            Some("safetensors") => return Ok(Format::Tensor),
            _ => bail!(
                "cannot tell the format of {}; write .png, .jpg, .webp, .mp4, .safetensors or a folder's name without \
                 an extension",
                path.display()
            ),
        }))
    }
}

/// A file or folder that was made.
#[derive(Debug)]
pub(crate) struct Written {
    pub path: PathBuf,
    /// Of the tensor, `[height, width]` of a picture or `[frames, height, width]` of a clip.
    pub shape: Vec<usize>,
}

/// Decodes `options.input` to `options.output`, which has `format`.
pub(crate) fn decode(options: &DecodeOptions, format: Format, place: &Place) -> Result<Vec<Written>> {
    let latents = tensors::read(&options.input, options.key.as_deref())?;
    let autoencoder = match place {
        Place::There(server) => return decode_there(server, options, format, latents),
        Place::Here(autoencoder) => autoencoder,
    };
    if autoencoder.model().temporal_factor().is_some() {
        return decode_clips_here(autoencoder, options, format, &latents);
    }
    let windows = clips::windows(autoencoder, &options.place.clips)?;
    if let (Format::Frames(format), None, false) = (format, windows.tiles, options.preview) {
        return decode_rows_here(autoencoder, options, format, latents);
    }
    let image = decode_here(autoencoder, options, format, windows, &latents)?;
    warn_of_bad_values(&image.pixels);
    write_image(&image, format, &options.output)
}

fn decode_there(
    server: &Remote,
    options: &DecodeOptions,
    format: Format,
    latents: Tensor,
) -> Result<Vec<Written>> {
    let (values, shape) = decode_remotely(server, options, format, latents)?;
    warn_of_bad_values(&values);
    match shape[..] {
        [batch, channels, height, width] => {
            let shape = [batch, channels, height, width];
            write_image(&Image { pixels: values, shape }, format, &options.output)
        }
        [batch, channels, frames, height, width] => {
            write_clips(&values, [batch, channels, frames, height, width], format, options)
        }
        _ => bail!("the server answered with shape {shape:?}; expected four or five sides"),
    }
}

/// Clips, written as their frames are decoded.
fn decode_clips_here(
    autoencoder: &Autoencoder,
    options: &DecodeOptions,
    format: Format,
    latents: &Tensor,
) -> Result<Vec<Written>> {
    let DecodeOptions { place, .. } = options;
    let shape = clips::five_dimensional(&latents.shape, autoencoder.model().latent_channels())
        .with_context(|| format!("cannot use the latents in {}", options.input.display()))?;
    if options.preview {
        let [batch, channels, frames, height, width] = shape;
        let space = &autoencoder.model().latent_space;
        let flat = [batch, channels, frames * height, width];
        let colours = space.preview(latents.values(), flat, &scaling(place))?;
        return write_clips(&colours, [batch, 3, frames, height, width], format, options);
    }
    let windows = clips::windows(autoencoder, &place.clips)?;
    let (scaling, precision, control) =
        (scaling(place), place.engine.precision(), local::control("decoding"));
    let Format::Frames(format) = format else {
        let clip =
            autoencoder.decode_clip(latents.values(), shape, &scaling, windows, precision, &control)?;
        warn_of_bad_values(&clip.values);
        return write_tensor(&options.output, &clip.shape, &clip.values);
    };
    let plan = autoencoder.plan_decode_frames(shape, windows, precision)?;
    local::check_budget(autoencoder, &clips::with_files(plan, format))?;
    let mut writer = Writer::new(&options.output, format, &options.video, autoencoder.clip_pixels(shape)?)?;
    let mut failure = None;
    let mut emit = |frames: Frames| {
        warn_of_bad_values(&frames.values);
        writer.add(&frames).map_err(|error| {
            failure = Some(error);
            EngineError::Cancelled
        })
    };
    let done =
        autoencoder.decode_frames(latents.values(), shape, &scaling, windows, precision, &control, &mut emit);
    failure.map_or(done.map_err(Into::into), Err)?;
    Ok(writer.files)
}

/// Clips that are there as a whole.
fn write_clips(
    values: &[f32],
    shape: [usize; 5],
    format: Format,
    options: &DecodeOptions,
) -> Result<Vec<Written>> {
    let Format::Frames(format) = format else { return write_tensor(&options.output, &shape, values) };
    let mut writer = Writer::new(&options.output, format, &options.video, shape)?;
    let [_, channels, frames, height, width] = shape;
    let clips = values.chunks_exact(channels * frames * height * width);
    for (sample, values) in clips.enumerate() {
        let shape = [channels, frames, height, width];
        writer.add(&Frames { sample, first: 0, values: values.to_vec(), shape })?;
    }
    Ok(writer.files)
}

fn write_tensor(output: &Path, shape: &[usize], pixels: &[f32]) -> Result<Vec<Written>> {
    tensors::write(output, "pixels", shape, pixels)?;
    Ok(vec![Written { path: output.to_owned(), shape: shape.to_vec() }])
}

fn warn_of_bad_values(values: &[f32]) {
    warn_of(bad_values(values), values.len());
}

fn bad_values(values: &[f32]) -> usize {
    values.iter().filter(|value| !value.is_finite()).count()
}

fn warn_of(bad: usize, values: usize) {
    if bad > 0 {
        local::say(&format!("warning: {bad} of {values} values are not finite; are the latents damaged?"));
    }
}

fn scaling(place: &PlaceArguments) -> Scaling {
    if place.no_scaling { Scaling::None } else { Scaling::Model { shift: None } }
}

/// Pictures for files, whose rows become bytes as they are finished: the engine's values are never there together.
fn decode_rows_here(
    autoencoder: &Autoencoder,
    options: &DecodeOptions,
    format: clips::Format,
    latents: Tensor,
) -> Result<Vec<Written>> {
    let (values, shape) = four_dimensional(autoencoder, options, &latents)?;
    drop(latents);
    let precision = options.place.engine.precision();
    let plan = autoencoder.plan_decode_rows(shape, precision, pictures::kept_per_pixel(format))?;
    let mut pictures = Pictures::new(&options.output, format, plan.output)?;
    let (scaling, control) = (scaling(&options.place), local::control("decoding"));
    let (mut bad, mut failure) = (0, None);
    let done = autoencoder.decode_rows(&plan, values, &scaling, &control, &mut |rows| {
        bad += bad_values(rows.values);
        pictures.add(&rows).map_err(|error| {
            failure = Some(error);
            EngineError::Cancelled
        })
    });
    failure.map_or(done.map_err(Into::into), Err)?;
    warn_of(bad, plan.output.iter().product());
    Ok(std::mem::take(&mut pictures.files))
}

fn decode_here(
    autoencoder: &Autoencoder,
    options: &DecodeOptions,
    format: Format,
    windows: Windows,
    latents: &Tensor,
) -> Result<Image> {
    let (values, shape) = four_dimensional(autoencoder, options, latents)?;
    let space = &autoencoder.model().latent_space;
    let scaling = scaling(&options.place);
    if options.preview {
        let [batch, _, height, width] = shape;
        let pixels = space.preview(values, shape, &scaling)?;
        return Ok(Image { pixels, shape: [batch, 3, height, width] });
    }
    let (precision, control) = (options.place.engine.precision(), local::control("decoding"));
    Ok(match windows.tiles {
        None => autoencoder.decode(values, shape, &scaling, precision, &control)?,
        Some(tiles) => {
            let plan = autoencoder.plan_in_tiles(Operation::Decode, shape, tiles, precision)?;
            local::check_budget(autoencoder, &with_files(plan, format))?;
            autoencoder.decode_in_tiles(values, shape, &scaling, tiles, precision, &control)?
        }
    })
}

/// Latents as `[batch, channels, height, width]`, from any form that the model takes.
fn four_dimensional(
    autoencoder: &Autoencoder,
    options: &DecodeOptions,
    latents: &Tensor,
) -> Result<(Vec<f32>, [usize; 4])> {
    arranged(&autoencoder.model().latent_space, latents, options.height.zip(options.width))
        .with_context(|| format!("cannot use the latents in {}", options.input.display()))
}

fn arranged(
    space: &LatentSpace,
    latents: &Tensor,
    size: Option<(usize, usize)>,
) -> Result<(Vec<f32>, [usize; 4])> {
    let layout =
        space.layout(&latents.shape, size.map(|(height, _)| height), size.map(|(_, width)| width))?;
    if size.is_some() && !matches!(layout, Layout::Tokens { .. }) {
        bail!("they have shape {:?}; --height and --width are for packed latents only", latents.shape);
    }
    Ok(space.arrange(latents.values(), layout)?)
}

/// The pixels and their shape.
fn decode_remotely(
    server: &Remote,
    options: &DecodeOptions,
    format: Format,
    latents: Tensor,
) -> Result<(Vec<f32>, Vec<usize>)> {
    let latents = client::Tensor::new(latents.shape, latents.dtype, latents.bytes)?;
    let size = options.height.zip(options.width).map(|(height, width)| [height, width]);
    let (scaling, precision) = (scaling(&options.place), remote_precision(&options.place.engine));
    let (output, cuts) = (client::Output::Float16, options.place.clips.cuts());
    let preview = options.preview;
    // Of pictures the bytes are those of the float16 numbers, here as there.
    let float32 = format == Format::Tensor;
    let request = client::DecodeOptions {
        scaling,
        size,
        precision,
        cuts,
        preview,
        float32,
        ..client::DecodeOptions::new(output)
    };
    let pixels = server.decode(&latents, &request).map_err(place::explained)?.tensor()?;
    Ok((pixels.to_f32(), pixels.shape))
}

/// The name to ask a server for; none leaves it to the server.
fn remote_precision(engine: &EngineArguments) -> Option<String> {
    engine.precision.map(|precision| remote_vae_engine::Precision::from(precision).name().to_owned())
}

fn write_image(image: &Image, format: Format, output: &Path) -> Result<Vec<Written>> {
    let Format::Frames(format) = format else { return write_tensor(output, &image.shape, &image.pixels) };
    let mut pictures = Pictures::new(output, format, image.shape)?;
    pictures.add_whole(image)?;
    Ok(std::mem::take(&mut pictures.files))
}

/// What a decode costs whose pictures are written when all are there: activations have gone by then.
fn with_files(plan: PlanSummary, format: Format) -> PlanSummary {
    let Format::Frames(format) = format else { return plan };
    let [.., height, width] = plan.output;
    let values = plan.output.iter().product::<usize>() * size_of::<f32>();
    let writing = plan.weight_bytes + values + pictures::kept_per_pixel(format) * height * width;
    PlanSummary { peak_bytes: plan.peak_bytes.max(writing), ..plan }
}

/// `out.png` → `out-0.png`, `out-1.png`, …
pub(crate) fn numbered(path: &Path, index: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{index}.{extension}"))
}

/// Encodes `options.input` to `options.output`.
pub(crate) fn encode(options: &EncodeOptions, place: &Place) -> Result<Vec<Written>> {
    let file = place::read(&options.input)?;
    let (values, shape) = match place {
        Place::There(server) => encode_remotely(server, options, file)?,
        Place::Here(autoencoder) => encode_here(autoencoder, options, file)?,
    };
    tensors::write(&options.output, "latents", &shape, &values)?;
    Ok(vec![Written { path: options.output.clone(), shape }])
}

fn encode_here(
    autoencoder: &Autoencoder,
    options: &EncodeOptions,
    file: Vec<u8>,
) -> Result<(Vec<f32>, Vec<usize>)> {
    let windows = clips::windows(autoencoder, &options.place.clips)?;
    let (factor, takes_clips) =
        (autoencoder.model().spatial_factor(), autoencoder.model().temporal_factor().is_some());
    let is_video = remote_vae_media::is_mp4(&file);
    if is_video && !takes_clips {
        bail!("{} is a video; {} takes pictures", options.input.display(), autoencoder.model().label());
    }
    if options.frames.is_some() && !is_video {
        bail!("--frames is for video files; {} is none", options.input.display());
    }
    let frames = if is_video {
        clips::read(&file, options.frames.map(|count| count as usize), factor)
    } else {
        remote_vae_media::decode_image(&file, &local::PICTURE_LIMITS)
            .and_then(|picture| remote_vae_media::resize_to_multiple(picture, factor))
            .map(|picture| vec![picture])
            .map_err(Into::into)
    };
    let frames = frames.with_context(|| format!("cannot use {}", options.input.display()))?;
    let [height, width] = frames.first().map_or([0; 2], |frame| [frame.height, frame.width]);
    let (pixels, count) = (remote_vae_media::clip_to_model_range(&frames), frames.len());
    drop((file, frames));
    let draw = options.seed.map_or(Draw::Mode, |seed| Draw::Sample { seed });
    let (scaling, precision) = (scaling(&options.place), options.place.engine.precision());
    let control = local::control("encoding");
    if takes_clips {
        let shape = [1, 3, count, height, width];
        let latents = autoencoder.encode_clip(pixels, shape, &scaling, draw, windows, precision, &control)?;
        return Ok((latents.values, latents.shape.to_vec()));
    }
    let shape = [1, 3, height, width];
    let latents = match windows.tiles {
        None => autoencoder.encode(&pixels, shape, &scaling, draw, precision, &control)?,
        Some(tiles) => {
            autoencoder.encode_in_tiles(pixels, shape, &scaling, draw, tiles, precision, &control)?
        }
    };
    Ok((latents.values, latents.shape.to_vec()))
}

fn encode_remotely(
    server: &Remote,
    options: &EncodeOptions,
    file: Vec<u8>,
) -> Result<(Vec<f32>, Vec<usize>)> {
    let (scaling, precision) = (scaling(&options.place), remote_precision(&options.place.engine));
    let cuts = options.place.clips.cuts();
    let seed = options.seed;
    let request =
        client::EncodeOptions { scaling, seed, precision, cuts, float32: true, ..Default::default() };
    let latents = server.encode(client::Source::file(file), &request).map_err(place::explained)?.tensor()?;
    debug_assert_ne!(latents.dtype, Dtype::Uint8);
    Ok((latents.to_f32(), latents.shape))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_pictures_are_numbered_beside_one_another() {
        assert_eq!(numbered(Path::new("a/out.png"), 3), Path::new("a/out-3.png"));
    }

    #[test]
    fn formats_are_known_by_their_extension() {
        assert!(Format::of(Path::new("a.JPG")).is_ok());
        assert!(Format::of(Path::new("a.tiff")).is_err());
        assert!(Format::of(Path::new("png")).unwrap() == Format::Frames(clips::Format::Folder));
    }
}
