//! `remote-vae decode` and `encode`: one file in, one out, here or on a server.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use remote_vae_client as client;
use remote_vae_engine::{Draw, Image};
use remote_vae_model::{LatentSpace, Layout};
use remote_vae_wire::{Dtype, Scaling};

use crate::arguments::{DecodeOptions, EncodeOptions, EngineArguments, PlaceArguments};
use crate::local;
use crate::tensors::{self, Tensor};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Png,
    Jpeg,
    Tensor,
}

impl Format {
    fn of(path: &Path) -> Result<Format> {
        let extension = path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("png") => Ok(Format::Png),
            Some("jpg" | "jpeg") => Ok(Format::Jpeg),
            Some("safetensors") => Ok(Format::Tensor),
            _ => bail!("cannot tell the format of {}; write .png, .jpg or .safetensors", path.display()),
        }
    }
}

pub(crate) fn decode(options: &DecodeOptions) -> Result<()> {
    let format = Format::of(&options.output)?;
    check_output(&options.input, &options.output)?;
    let latents = tensors::read(&options.input, options.key.as_deref())?;
    let image = match &options.place.url {
        Some(url) => decode_remotely(url, options, latents)?,
        None => decode_here(options, &latents)?,
    };
    warn_of_bad_values(&image.pixels);
    write_image(&image, format, &options.output)
}

/// Finds out before the work, not after it, that the result could not be written.
fn check_output(input: &Path, output: &Path) -> Result<()> {
    let folder = match output.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        bail!("the folder {} of the output does not exist", folder.display());
    }
    if let (Ok(input), Ok(output)) = (input.canonicalize(), output.canonicalize())
        && input == output
    {
        bail!("the output {} is the input; choose another name", output.display());
    }
    Ok(())
}

fn warn_of_bad_values(values: &[f32]) {
    let bad = values.iter().filter(|value| !value.is_finite()).count();
    if bad > 0 {
        eprintln!("warning: {bad} of {} values are not finite; are the latents damaged?", values.len());
    }
}

fn scaling(place: &PlaceArguments) -> Scaling {
    if place.no_scaling { Scaling::None } else { Scaling::Model { shift: None } }
}

fn decode_here(options: &DecodeOptions, latents: &Tensor) -> Result<Image> {
    let autoencoder = local::autoencoder(&options.place.model, &options.place.engine)?;
    let space = &autoencoder.model().latent_space;
    let (values, shape) = four_dimensional(space, latents, options.height.zip(options.width))
        .with_context(|| format!("cannot use the latents in {}", options.input.display()))?;
    let scaling = scaling(&options.place);
    if options.preview {
        let [batch, _, height, width] = shape;
        let pixels = space.preview(values, shape, &scaling)?;
        return Ok(Image { pixels, shape: [batch, 3, height, width] });
    }
    let precision = options.place.engine.precision();
    Ok(autoencoder.decode(values, shape, &scaling, precision, &local::control("decoding"))?)
}

/// Latents as `[batch, channels, height, width]`, from any form that the model takes.
fn four_dimensional(
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

fn decode_remotely(url: &str, options: &DecodeOptions, latents: Tensor) -> Result<Image> {
    refuse_local_arguments(&options.place.engine)?;
    let latents = client::Tensor::new(latents.shape, latents.dtype, latents.bytes)?;
    let size = options.height.zip(options.width).map(|(height, width)| [height, width]);
    let (scaling, precision) = (scaling(&options.place), remote_precision(&options.place.engine));
    let (output, preview) = (client::Output::Float16, options.preview);
    let request = client::DecodeOptions { output, scaling, size, precision, preview };
    let pixels = server(url, &options.place)?.decode(&latents, &request)?.tensor()?;
    let shape = pixels.shape[..].try_into().map_err(|_| {
        anyhow::anyhow!("the server answered with shape {:?}; expected four sides", pixels.shape)
    })?;
    Ok(Image { pixels: pixels.to_f32(), shape })
}

fn server(url: &str, place: &PlaceArguments) -> Result<client::blocking::Client> {
    let builder = client::Client::builder(url);
    let builder = match &place.api_key {
        Some(key) => builder.bearer_key(key),
        None => builder,
    };
    Ok(client::blocking::Client::from_builder(builder)?)
}

/// The name to ask a server for; none leaves it to the server.
fn remote_precision(engine: &EngineArguments) -> Option<String> {
    engine.precision.map(|precision| remote_vae_engine::Precision::from(precision).name().to_owned())
}

/// With `--url` the server's engine does the work, so flags for ours would be ignored.
fn refuse_local_arguments(engine: &EngineArguments) -> Result<()> {
    let given = [
        ("--threads", engine.threads.is_some()),
        ("--isa", engine.isa.is_some()),
        ("--memory-budget", engine.memory_budget.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => bail!("{flag} has no effect with --url, where the server computes"),
        None => Ok(()),
    }
}

fn write_image(image: &Image, format: Format, output: &Path) -> Result<()> {
    if format == Format::Tensor {
        tensors::write(output, "pixels", &image.shape, &image.pixels)?;
        eprintln!("wrote {} {:?}", output.display(), image.shape);
        return Ok(());
    }
    let [batch, channels, height, width] = image.shape;
    if channels != 3 {
        bail!("the model gives {channels} channels, which are no picture; write a .safetensors file instead");
    }
    let bytes = remote_vae_media::to_uint8_channel_last(&image.pixels, image.shape);
    for (index, rgb) in bytes.chunks_exact(3 * height * width).enumerate() {
        let path = if batch == 1 { output.to_owned() } else { numbered(output, index) };
        let file = match format {
            Format::Jpeg => remote_vae_media::encode_jpeg(rgb, width, height)?,
            _ => remote_vae_media::encode_png(rgb, width, height)?,
        };
        std::fs::write(&path, file).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("wrote {} {width}x{height}", path.display());
    }
    Ok(())
}

/// `out.png` → `out-0.png`, `out-1.png`, …
fn numbered(path: &Path, index: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{index}.{extension}"))
}

pub(crate) fn encode(options: &EncodeOptions) -> Result<()> {
    if Format::of(&options.output)? != Format::Tensor {
        bail!("latents are written as .safetensors, not as {}", options.output.display());
    }
    check_output(&options.input, &options.output)?;
    let file =
        std::fs::read(&options.input).with_context(|| format!("cannot read {}", options.input.display()))?;
    let (values, shape) = match &options.place.url {
        Some(url) => encode_remotely(url, options, file)?,
        None => encode_here(options, &file)?,
    };
    tensors::write(&options.output, "latents", &shape, &values)?;
    eprintln!("wrote {} {shape:?}", options.output.display());
    Ok(())
}

fn encode_here(options: &EncodeOptions, file: &[u8]) -> Result<(Vec<f32>, Vec<usize>)> {
    let autoencoder = local::autoencoder(&options.place.model, &options.place.engine)?;
    let picture = remote_vae_media::decode_image(file, &local::PICTURE_LIMITS)
        .and_then(|picture| {
            remote_vae_media::resize_to_multiple(picture, autoencoder.model().spatial_factor())
        })
        .with_context(|| format!("cannot use the picture {}", options.input.display()))?;
    let shape = [1, 3, picture.height, picture.width];
    let pixels = remote_vae_media::to_model_range(&picture);
    let draw = options.seed.map_or(Draw::Mode, |seed| Draw::Sample { seed });
    let control = local::control("encoding");
    let latents = autoencoder.encode(
        &pixels,
        shape,
        &scaling(&options.place),
        draw,
        options.place.engine.precision(),
        &control,
    )?;
    Ok((latents.values, latents.shape.to_vec()))
}

fn encode_remotely(url: &str, options: &EncodeOptions, file: Vec<u8>) -> Result<(Vec<f32>, Vec<usize>)> {
    refuse_local_arguments(&options.place.engine)?;
    let (scaling, precision) = (scaling(&options.place), remote_precision(&options.place.engine));
    let request = client::EncodeOptions { scaling, seed: options.seed, precision };
    let latents = server(url, &options.place)?.encode(client::Source::file(file), &request)?.tensor()?;
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
        assert!(Format::of(Path::new("png")).is_err());
    }
}
