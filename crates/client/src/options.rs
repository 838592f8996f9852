//! What a decode or an encode is asked for.

use remote_vae_wire::{Answer, Dtype, ImageFormat, OutputType, Parameters, Scaling, TileSizes, content_type};

use crate::error::ClientError;
use crate::tensor::Tensor;

/// What a decode gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Output {
    /// Raw decoder output, float16 `[batch, 3, height, width]` (of clips `[batch, 3, frames, height, width]`), about -1 to
    /// 1, not clamped.
    #[default]
    Float16,
    /// Bytes, channels last: `[batch, height, width, 3]`.
    Uint8,
    /// Float16 in 0 to 1, `[batch, 3, height, width]`.
    Unit,
    /// A PNG file of the first picture.
    Png,
    /// A JPEG file of the first picture, quality 75.
    Jpeg,
    /// A lossless WebP file of the first picture, or an animation of a clip.
    Webp,
    /// An MP4 file of a clip.
    Mp4,
}

impl Output {
    pub(crate) fn accept(self) -> &'static str {
        match self {
            Output::Png => content_type::PNG,
            Output::Jpeg => content_type::JPEG,
            Output::Webp => content_type::WEBP,
            // What the endpoints call a video file.
            Output::Mp4 => "text/plain",
            Output::Float16 | Output::Uint8 | Output::Unit => content_type::TENSOR_BINARY,
        }
    }

    /// Sets the parameters that ask for this output.
    fn ask(self, parameters: &mut Parameters) {
        let (output_type, image_format) = match self {
            Output::Float16 | Output::Uint8 => (OutputType::Pt, None),
            Output::Unit => (OutputType::Pil, None),
            Output::Png => (OutputType::Pil, Some(ImageFormat::Png)),
            Output::Jpeg => (OutputType::Pil, Some(ImageFormat::Jpeg)),
            Output::Webp => (OutputType::Pil, Some(ImageFormat::Webp)),
            Output::Mp4 => (OutputType::Mp4, None),
        };
        parameters.output_type = Some(output_type);
        parameters.image_format = image_format;
        parameters.partial_postprocess = self == Output::Uint8;
    }

    /// What the wire crate calls it.
    pub fn answer(self) -> Answer {
        match self {
            Output::Float16 => Answer::Tensor,
            Output::Uint8 => Answer::PartialTensor,
            Output::Unit => Answer::UnitTensor,
            Output::Png => Answer::Png,
            Output::Jpeg => Answer::Jpeg,
            Output::Webp => Answer::Webp,
            Output::Mp4 => Answer::Mp4,
        }
    }
}

/// Options of a decode.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeOptions {
    /// What comes back.
    pub output: Output,
    /// How the latents relate to the model's; [`Scaling::None`] means that they are the model's own.
    pub scaling: Scaling,
    /// Height and width of the picture in pixels; needed for packed latents `[batch, tokens, 4·channels]` only.
    pub size: Option<[usize; 2]>,
    /// Precision by name, if the server has several.
    pub precision: Option<String>,
    /// A preview instead of the picture: one pixel for each latent, at once, without the engine.
    pub preview: bool,
    /// How clips are cut.
    pub cuts: Cuts,
    /// Frames per second of an MP4 file or an animation, 0.1 to 240; 10 if not given.
    pub fps: Option<f64>,
    /// Quality of an MP4 file: the quantizer of H.264, 12 (largest file) to 51 (smallest); 23 if not given.
    pub crf: Option<u8>,
    /// Ask for float32 where [`Output`] says float16. Servers of other programs do not know it; the reply says what came.
    pub float32: bool,
}

/// How clips and pictures are cut; `None` leaves it to the server.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cuts {
    /// Clips: in windows of frames (`true`) or whole at once.
    pub windows: Option<bool>,
    /// In overlapping tiles that are blended, as diffusers does after `enable_tiling()`.
    pub tiling: Option<bool>,
    /// Of what size the tiles are, where `tiling` is on; models of pictures only.
    pub tile: TileSizes,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self::new(Output::default())
    }
}

impl DecodeOptions {
    /// This output of latents that are the model's own.
    pub fn new(output: Output) -> Self {
        Self {
            output,
            scaling: Scaling::None,
            size: None,
            precision: None,
            preview: false,
            cuts: Cuts::default(),
            fps: None,
            crf: None,
            float32: false,
        }
    }

    /// A preview instead of the picture: one pixel for each latent, made without the engine.
    #[must_use]
    pub fn preview(mut self) -> Self {
        self.preview = true;
        self
    }

    /// The latents are the diffusion model's; the server scales them by the factors of its model.
    #[must_use]
    pub fn scaled_by_model(mut self) -> Self {
        self.scaling = Scaling::Model { shift: None };
        self
    }

    /// The latents are the diffusion model's; the server divides by `scale` and adds `shift`.
    #[must_use]
    pub fn scaled_by(mut self, scale: f64, shift: Option<f64>) -> Self {
        self.scaling = Scaling::Explicit { scale, shift };
        self
    }

    /// The latents are packed, for a picture of `height` times `width` pixels.
    #[must_use]
    pub fn packed(mut self, height: usize, width: usize) -> Self {
        self.size = Some([height, width]);
        self
    }

    pub(crate) fn parameters(&self, latents: &Tensor) -> Parameters {
        let mut parameters = Parameters {
            shape: Some(latents.shape.clone()),
            dtype: Some(latents.dtype),
            height: self.size.map(|[height, _]| height),
            width: self.size.map(|[_, width]| width),
            preview: self.preview,
            precision: self.precision.clone(),
            windows: self.cuts.windows,
            tiling: self.cuts.tiling,
            tile: self.cuts.tile,
            fps: self.fps,
            crf: self.crf,
            output_dtype: self.float32.then_some(Dtype::Float32),
            ..Parameters::default()
        };
        self.output.ask(&mut parameters);
        parameters.with_scaling(self.scaling)
    }
}

/// Options of an encode.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodeOptions {
    /// How the latents that come back relate to the model's; [`Scaling::None`] gives the model's own.
    pub scaling: Scaling,
    /// Draw a sample of the distribution with this seed, instead of taking its mode.
    pub seed: Option<u64>,
    /// Precision by name, if the server has several.
    pub precision: Option<String>,
    /// How clips are cut.
    pub cuts: Cuts,
    /// The distribution itself instead of latents: `[batch, 2·channels, height / 8, width / 8]`, the means before the
    /// log-variances, in the model's own space.
    pub moments: bool,
    /// Ask for float32 instead of float16. Servers of other programs do not know it; the reply says what came.
    pub float32: bool,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        let (seed, precision, cuts) = (None, None, Cuts::default());
        Self { scaling: Scaling::None, seed, precision, cuts, moments: false, float32: false }
    }
}

impl EncodeOptions {
    /// The latents are to be the diffusion model's, by the factors of the server's model.
    #[must_use]
    pub fn scaled_by_model(mut self) -> Self {
        self.scaling = Scaling::Model { shift: None };
        self
    }

    /// The latents are to be the diffusion model's: `(latents - shift) * scale`.
    #[must_use]
    pub fn scaled_by(mut self, scale: f64, shift: Option<f64>) -> Self {
        self.scaling = Scaling::Explicit { scale, shift };
        self
    }

    /// A sample of the distribution, the same for the same seed.
    #[must_use]
    pub fn sampled(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    pub(crate) fn parameters(&self, source: &Source) -> Parameters {
        let tensor = match source {
            Source::File(_) => None,
            Source::Pixels(tensor) => Some(tensor),
        };
        let parameters = Parameters {
            shape: tensor.map(|tensor| tensor.shape.clone()),
            dtype: tensor.map(|tensor| tensor.dtype),
            precision: self.precision.clone(),
            windows: self.cuts.windows,
            tiling: self.cuts.tiling,
            tile: self.cuts.tile,
            seed: self.seed,
            sample: self.seed.map(|_| true),
            moments: self.moments,
            output_dtype: self.float32.then_some(Dtype::Float32),
            ..Parameters::default()
        };
        parameters.with_scaling(self.scaling)
    }
}

/// What is encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A picture file (PNG, JPEG, WebP), or for a model of videos an MP4 file; the server cuts its sides to multiples of 8
    /// by resizing.
    File(Vec<u8>),
    /// Pixels `[batch, 3, height, width]` or `[batch, 3, frames, height, width]`, sides multiples of 8: floats in -1 to 1 (if any is negative) or in 0 to 1,
    /// or bytes.
    Pixels(Tensor),
}

impl Source {
    /// A picture file's bytes.
    pub fn file(bytes: impl Into<Vec<u8>>) -> Self {
        Source::File(bytes.into())
    }

    pub(crate) fn check(&self) -> Result<(), ClientError> {
        let Source::Pixels(tensor) = self else { return Ok(()) };
        tensor.check()?;
        match tensor.shape[..] {
            [3, _, _] | [_, 3, _, _] | [_, 3, _, _, _] => Ok(()),
            _ => Err(ClientError::Pixels { shape: tensor.shape.clone() }),
        }
    }
}

impl From<Tensor> for Source {
    fn from(pixels: Tensor) -> Self {
        Source::Pixels(pixels)
    }
}

#[cfg(test)]
mod tests {
    use remote_vae_wire::negotiate;

    use super::*;

    #[test]
    fn every_output_is_asked_for_in_the_protocols_words() {
        let latents = Tensor::from_f32(vec![1, 1, 1, 1], Dtype::Float32, &[0.0]).unwrap();
        for output in [
            Output::Float16,
            Output::Uint8,
            Output::Unit,
            Output::Png,
            Output::Jpeg,
            Output::Webp,
            Output::Mp4,
        ] {
            let parameters = DecodeOptions::new(output).parameters(&latents);
            assert_eq!(negotiate(&parameters, Some(output.accept())).answer, output.answer());
        }
    }

    #[test]
    fn scaling_travels() {
        let latents = Tensor::from_f32(vec![1, 1, 1, 1], Dtype::Float32, &[0.0]).unwrap();
        let scaling = |options: DecodeOptions| options.parameters(&latents).scaling();
        assert_eq!(scaling(DecodeOptions::default()), Scaling::None);
        assert_eq!(scaling(DecodeOptions::default().scaled_by_model()), Scaling::Model { shift: None });
        let explicit = Scaling::Explicit { scale: 0.5, shift: Some(0.1) };
        assert_eq!(scaling(DecodeOptions::default().scaled_by(0.5, Some(0.1))), explicit);
    }

    #[test]
    fn a_preview_is_asked_for() {
        let latents = Tensor::from_f32(vec![1, 1, 1, 1], Dtype::Float32, &[0.0]).unwrap();
        let query = |options: DecodeOptions| options.parameters(&latents).to_query();
        assert!(query(DecodeOptions::new(Output::Png).preview()).ends_with("&output=preview"));
        assert!(!query(DecodeOptions::new(Output::Png)).contains("output=preview"));
    }

    #[test]
    fn what_a_video_is_like_travels() {
        let latents = Tensor::from_f32(vec![1, 1, 1, 1, 1], Dtype::Float32, &[0.0]).unwrap();
        let options = DecodeOptions { fps: Some(24.0), crf: Some(30), ..DecodeOptions::new(Output::Mp4) };
        let query = options.parameters(&latents).to_query();
        assert!(query.contains("fps=24") && query.contains("crf=30"), "{query}");
    }

    #[test]
    fn a_file_is_sent_bare() {
        let query = EncodeOptions::default().parameters(&Source::file([1, 2])).to_query();
        assert_eq!(query, "");
    }
}
