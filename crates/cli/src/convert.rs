//! The work of `remote-vae decode` and `encode` on one file, here or on a server. Many files are in [`crate::batch`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use remote_vae_client as client;
use remote_vae_engine::{Autoencoder, Draw, Image};
use remote_vae_model::{LatentSpace, Layout};
use remote_vae_wire::{Dtype, Scaling};

use crate::arguments::{DecodeOptions, EncodeOptions, EngineArguments, PlaceArguments};
use crate::local;
use crate::place::{self, Place};
use crate::tensors::{self, Tensor};

/// What a decode writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Png,
    Jpeg,
    Tensor,
}

impl Format {
    /// By the extension.
    pub(crate) fn of(path: &Path) -> Result<Format> {
        let extension = path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("png") => Ok(Format::Png),
            Some("jpg" | "jpeg") => Ok(Format::Jpeg),
            Some("safetensors") => Ok(Format::Tensor),
            _ => bail!(
                "cannot tell the format of {}; write .png, .jpg, .safetensors, or {0}/ for a folder",
                path.display()
            ),
        }
    }
}

/// A file that was made.
#[derive(Debug)]
pub(crate) struct Written {
    pub path: PathBuf,
    /// Of the tensor, or `[height, width]` of a picture.
    pub shape: Vec<usize>,
}

/// Decodes `options.input` to `options.output`, which has `format`.
pub(crate) fn decode(options: &DecodeOptions, format: Format, place: &Place) -> Result<Vec<Written>> {
    let latents = tensors::read(&options.input, options.key.as_deref())?;
    let image = match place {
        Place::There(server) => decode_remotely(server, options, latents)?,
        Place::Here(autoencoder) => decode_here(autoencoder, options, &latents)?,
    };
    warn_of_bad_values(&image.pixels);
    write_image(&image, format, &options.output)
}

fn warn_of_bad_values(values: &[f32]) {
    let bad = values.iter().filter(|value| !value.is_finite()).count();
    if bad > 0 {
        local::say(&format!(
            "warning: {bad} of {} values are not finite; are the latents damaged?",
            values.len()
        ));
    }
}

fn scaling(place: &PlaceArguments) -> Scaling {
    if place.no_scaling { Scaling::None } else { Scaling::Model { shift: None } }
}

fn decode_here(autoencoder: &Autoencoder, options: &DecodeOptions, latents: &Tensor) -> Result<Image> {
    let space = &autoencoder.model().latent_space;
    let (values, shape) = four_dimensional(space, latents, options.height.zip(options.width))
        .with_context(|| format!("cannot use the latents in {}", options.input.display()))?;
    let precision = options.place.engine.precision();
    Ok(autoencoder.decode(values, shape, &scaling(&options.place), precision, &local::control("decoding"))?)
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

fn decode_remotely(
    server: &client::blocking::Client,
    options: &DecodeOptions,
    latents: Tensor,
) -> Result<Image> {
    let latents = client::Tensor::new(latents.shape, latents.dtype, latents.bytes)?;
    let size = options.height.zip(options.width).map(|(height, width)| [height, width]);
    let (scaling, precision) = (scaling(&options.place), remote_precision(&options.place.engine));
    let request = client::DecodeOptions { output: client::Output::Float16, scaling, size, precision };
    let pixels = server.decode(&latents, &request)?.tensor()?;
    let shape = pixels.shape[..].try_into().map_err(|_| {
        anyhow::anyhow!("the server answered with shape {:?}; expected four sides", pixels.shape)
    })?;
    Ok(Image { pixels: pixels.to_f32(), shape })
}

/// The name to ask a server for; none leaves it to the server.
fn remote_precision(engine: &EngineArguments) -> Option<String> {
    engine.precision.map(|precision| remote_vae_engine::Precision::from(precision).name().to_owned())
}

fn write_image(image: &Image, format: Format, output: &Path) -> Result<Vec<Written>> {
    if format == Format::Tensor {
        tensors::write(output, "pixels", &image.shape, &image.pixels)?;
        return Ok(vec![Written { path: output.to_owned(), shape: image.shape.to_vec() }]);
    }
    let [batch, channels, height, width] = image.shape;
    if channels != 3 {
        bail!("the model gives {channels} channels, which are no picture; write a .safetensors file instead");
    }
    let bytes = remote_vae_media::to_uint8_channel_last(&image.pixels, image.shape);
    if batch > 1 && place::is_pipe(output) {
        bail!(
            "standard output takes one picture, and there are {batch}; use --format safetensors or a folder"
        );
    }
    let mut written = Vec::with_capacity(batch);
    for (index, rgb) in bytes.chunks_exact(3 * height * width).enumerate() {
        let path = if batch == 1 { output.to_owned() } else { numbered(output, index) };
        let file = match format {
            Format::Jpeg => remote_vae_media::encode_jpeg(rgb, width, height)?,
            _ => remote_vae_media::encode_png(rgb, width, height)?,
        };
        place::write(&path, &file)?;
        written.push(Written { path, shape: vec![height, width] });
    }
    Ok(written)
}

/// `out.png` → `out-0.png`, `out-1.png`, …
fn numbered(path: &Path, index: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{index}.{extension}"))
}

/// Encodes `options.input` to `options.output`.
pub(crate) fn encode(options: &EncodeOptions, place: &Place) -> Result<Vec<Written>> {
    let file = place::read(&options.input)?;
    let (values, shape) = match place {
        Place::There(server) => encode_remotely(server, options, file)?,
        Place::Here(autoencoder) => encode_here(autoencoder, options, &file)?,
    };
    tensors::write(&options.output, "latents", &shape, &values)?;
    Ok(vec![Written { path: options.output.clone(), shape }])
}

fn encode_here(
    autoencoder: &Autoencoder,
    options: &EncodeOptions,
    file: &[u8],
) -> Result<(Vec<f32>, Vec<usize>)> {
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

fn encode_remotely(
    server: &client::blocking::Client,
    options: &EncodeOptions,
    file: Vec<u8>,
) -> Result<(Vec<f32>, Vec<usize>)> {
    let (scaling, precision) = (scaling(&options.place), remote_precision(&options.place.engine));
    let request = client::EncodeOptions { scaling, seed: options.seed, precision };
    let latents = server.encode(client::Source::file(file), &request)?.tensor()?;
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
