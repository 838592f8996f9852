//! The parameters of a request, whichever generation of client sent them, and what they say about scaling.

use std::fmt;
use std::str::FromStr;

use crate::dtype::Dtype;
use crate::error::WireError;
use crate::header::TensorHeader;

/// What the endpoint is asked to return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputType {
    /// A picture file, or with a tensor `Accept` a float tensor in [0, 1].
    Pil,
    /// A tensor.
    Pt,
    /// A video file.
    Mp4,
}

impl OutputType {
    /// The value on the wire.
    pub fn name(self) -> &'static str {
        match self {
            OutputType::Pil => "pil",
            OutputType::Pt => "pt",
            OutputType::Mp4 => "mp4",
        }
    }
}

impl fmt::Display for OutputType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for OutputType {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        match text.to_ascii_lowercase().as_str() {
            "pil" => Ok(OutputType::Pil),
            "pt" => Ok(OutputType::Pt),
            "mp4" => Ok(OutputType::Mp4),
            _ => Err(WireError::invalid("output_type", text, "one of `pil`, `pt`, `mp4`")),
        }
    }
}

/// Format of a picture file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// JPEG, `jpg` on the wire (`jpeg` is understood).
    Jpeg,
    /// PNG.
    Png,
    /// Lossless WebP; of a clip an animation.
    Webp,
}

impl ImageFormat {
    /// The value on the wire.
    pub fn name(self) -> &'static str {
        match self {
            ImageFormat::Jpeg => "jpg",
            ImageFormat::Png => "png",
            ImageFormat::Webp => "webp",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ImageFormat {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        match text.to_ascii_lowercase().as_str() {
            "jpg" | "jpeg" => Ok(ImageFormat::Jpeg),
            "png" => Ok(ImageFormat::Png),
            "webp" => Ok(ImageFormat::Webp),
            _ => Err(WireError::invalid("image_format", text, "one of `jpg`, `png`, `webp`")),
        }
    }
}

/// Sizes of the tiles that a model of pictures works in, by the names of diffusers' attributes. What is absent is as diffusers
/// has it by default.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TileSizes {
    /// `tile_sample_min_size`: side in pixels.
    pub sample_min_size: Option<usize>,
    /// `tile_latent_min_size`: side in latents.
    pub latent_min_size: Option<usize>,
    /// `tile_overlap_factor`: the share of a side that overlaps the tile before. Finite.
    pub overlap_factor: Option<f64>,
}

impl TileSizes {
    /// Name of the first size that is given.
    pub fn first_given(&self) -> Option<&'static str> {
        let given = [
            ("tile_sample_min_size", self.sample_min_size.is_some()),
            ("tile_latent_min_size", self.latent_min_size.is_some()),
            ("tile_overlap_factor", self.overlap_factor.is_some()),
        ];
        given.iter().find(|(_, is_given)| *is_given).map(|(name, _)| *name)
    }

    /// These sizes, and of `others` what they leave open.
    #[must_use]
    pub fn or(self, others: TileSizes) -> TileSizes {
        TileSizes {
            sample_min_size: self.sample_min_size.or(others.sample_min_size),
            latent_min_size: self.latent_min_size.or(others.latent_min_size),
            overlap_factor: self.overlap_factor.or(others.overlap_factor),
        }
    }
}

/// Everything a request may say beside its body. A field is `None` when its key was absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters {
    /// Dimensions of the tensor in the body.
    pub shape: Option<Vec<usize>>,
    /// Element type of the tensor in the body.
    pub dtype: Option<Dtype>,
    /// What a decode returns; its presence marks a request as a decode.
    pub output_type: Option<OutputType>,
    /// Format of the picture file, where one is returned.
    pub image_format: Option<ImageFormat>,
    /// With `output_type=pt`: return `uint8`, channels last.
    pub partial_postprocess: bool,
    /// Scale by the model's own factors; an explicit `False` says the latents are already divided.
    pub do_scaling: Option<bool>,
    /// Divide latents by this (decode) or multiply by it (encode). Finite and not zero.
    pub scaling_factor: Option<f64>,
    /// Add this after dividing (decode) or subtract it before multiplying (encode). Finite.
    pub shift_factor: Option<f64>,
    /// Height of the picture in pixels; meaningful only for packed, three-dimensional latents.
    pub height: Option<usize>,
    /// Width of the picture in pixels; meaningful only for packed, three-dimensional latents.
    pub width: Option<usize>,
    /// Decode: a preview, one pixel for each latent, instead of the picture (`output=preview`).
    pub preview: bool,
    /// Precision asked for; its values are the engine's business.
    pub precision: Option<String>,
    /// Frames per second of a video or an animation. Finite.
    pub fps: Option<f64>,
    /// Quality of a video file: the quantizer of H.264, higher for smaller files.
    pub crf: Option<u8>,
    /// Clips: in windows of frames (`true`) or whole at once.
    pub windows: Option<bool>,
    /// In overlapping tiles that are blended, as diffusers does after `enable_tiling()`.
    pub tiling: Option<bool>,
    /// Of what size the tiles are, where `tiling` is on; models of pictures only.
    pub tile: TileSizes,
    /// Element type of an answer's floats: float16 where it is absent, or float32. Bytes and files are what they are.
    pub output_dtype: Option<Dtype>,
    /// Encode: seed of the draw from the distribution.
    pub seed: Option<u64>,
    /// Encode: draw from the distribution (`true`) or take its mode. See [`Parameters::draws_sample`].
    pub sample: Option<bool>,
    /// Encode: give the moments of the distribution, means before log-variances, instead of latents.
    pub moments: bool,
}

impl Parameters {
    /// Shape and element type of the tensor in the body.
    ///
    /// # Errors
    /// [`WireError::MissingDtype`] or [`WireError::MissingShape`], with the original texts.
    pub fn tensor_header(&self) -> Result<TensorHeader, WireError> {
        let dtype = self.dtype.ok_or(WireError::MissingDtype)?;
        let shape = self.shape.clone().ok_or(WireError::MissingShape)?;
        Ok(TensorHeader { shape, dtype })
    }

    /// What the parameters say about scaling, the same for decode and encode.
    ///
    /// | on the wire | result |
    /// |---|---|
    /// | `do_scaling=False` | [`Scaling::Declined`], also beside factors: the client itself drops them then |
    /// | `scaling_factor=s`, with or without `shift_factor=t` | [`Scaling::Explicit`] |
    /// | `do_scaling=True` without `scaling_factor` | [`Scaling::Model`], where a given shift wins over the model's |
    /// | `shift_factor=t` alone (only an encode can send it) | [`Scaling::Explicit`] with scale 1 |
    /// | nothing | [`Scaling::None`] |
    ///
    /// A body of the oldest JSON form without any such key means the model's scaling;
    /// [`unwrap_json_body`](crate::unwrap_json_body) sets `do_scaling` for it.
    pub fn scaling(&self) -> Scaling {
        match (self.do_scaling, self.scaling_factor, self.shift_factor) {
            (Some(false), _, _) => Scaling::Declined,
            (_, Some(scale), shift) => Scaling::Explicit { scale, shift },
            (Some(true), None, shift) => Scaling::Model { shift },
            (None, None, Some(shift)) => Scaling::Explicit { scale: 1.0, shift: Some(shift) },
            (None, None, None) => Scaling::None,
        }
    }

    /// Whether an encode draws from the distribution instead of taking its mode: as `sample` says, and where it is
    /// absent, whether a seed was given.
    pub fn draws_sample(&self) -> bool {
        self.sample.unwrap_or(self.seed.is_some())
    }
}

/// How the latents of a request relate to the model's own latent space.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// Nothing was said: they are taken as the model's own.
    None,
    /// Scaling was refused (`do_scaling=False`): they are those of the full autoencoder, which the client has scaled
    /// itself. The same as [`Scaling::None`] but for a tiny model of a known family, whose own latents are the
    /// diffusion model's.
    Declined,
    /// By the factors of the model's configuration.
    Model {
        /// Replaces the model's shift when given.
        shift: Option<f64>,
    },
    /// By the factors given. Decode: `latents / scale + shift`; encode: `(latents - shift) * scale`.
    Explicit {
        /// Finite and not zero.
        scale: f64,
        /// Finite; none means zero.
        shift: Option<f64>,
    },
}
