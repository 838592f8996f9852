//! What kind of answer a request asks for, from its parameters and its `Accept` header.

use crate::dtype::Dtype;
use crate::parameters::{ImageFormat, OutputType, Parameters};

/// Media types of answers.
pub mod content_type {
    /// Bare tensor; shape and element type are in the headers.
    pub const TENSOR_BINARY: &str = "tensor/binary";
    /// JSON object with a tensor in base64.
    pub const TENSOR_BASE64: &str = "tensor/base64";
    /// JSON: errors, and files in base64.
    pub const JSON: &str = "application/json";
    /// JPEG file.
    pub const JPEG: &str = "image/jpeg";
    /// PNG file.
    pub const PNG: &str = "image/png";
    /// WebP file.
    pub const WEBP: &str = "image/webp";
    /// What the original gives a video file.
    pub const MP4: &str = "text/plain; charset=utf-8";
}

/// Content of the answer to a decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// JPEG file of the first picture.
    Jpeg,
    /// PNG file of the first picture.
    Png,
    /// Lossless WebP file of the first picture, or an animation of a clip.
    Webp,
    /// Raw decoder output as float16, `[batch, 3, height, width]`, not clamped.
    Tensor,
    /// `uint8`, channels last: `[batch, height, width, 3]`.
    PartialTensor,
    /// Float16 in [0, 1], `[batch, 3, height, width]`.
    UnitTensor,
    /// Video file.
    Mp4,
}

impl Answer {
    /// Whether the answer carries `shape` and `dtype`, as opposed to being a file.
    pub fn is_tensor(self) -> bool {
        matches!(self, Answer::Tensor | Answer::PartialTensor | Answer::UnitTensor)
    }
}

/// How the content is put into the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Bare bytes.
    Binary,
    /// JSON: [`base64_tensor`](crate::base64_tensor) for tensors, [`base64_file`](crate::base64_file) for files.
    Base64,
}

/// The answer a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Content.
    pub answer: Answer,
    /// Its form.
    pub encoding: Encoding,
    /// Element type of [`Answer::Tensor`], of [`Answer::UnitTensor`] and of latents.
    pub float: Dtype,
}

impl Negotiated {
    /// Value of the answer's `Content-Type` header.
    pub fn content_type(self) -> &'static str {
        match (self.answer, self.encoding) {
            (answer, Encoding::Base64) if answer.is_tensor() => content_type::TENSOR_BASE64,
            (_, Encoding::Base64) => content_type::JSON,
            (Answer::Jpeg, _) => content_type::JPEG,
            (Answer::Png, _) => content_type::PNG,
            (Answer::Webp, _) => content_type::WEBP,
            (Answer::Mp4, _) => content_type::MP4,
            _ => content_type::TENSOR_BINARY,
        }
    }
}

/// Decides the answer to a decode.
///
/// `Accept` decides between file and tensor, the parameters decide which tensor; where `Accept` says nothing the
/// parameters decide alone. In the order of precedence:
///
/// | `Accept` | `output_type` | answer | sent by |
/// |---|---|---|---|
/// | `image/jpeg`, `image/jpg`, `image/png` | any | that file, whatever `image_format` says | v0, v1, v2, SD.Next |
/// | `image/webp` | any | [`Answer::Webp`] | |
/// | `video/mp4` | any | [`Answer::Mp4`] | |
/// | `image/*` | any | file by `image_format`, JPEG if absent | |
/// | `tensor/binary`, `tensor/base64` | `pil` | [`Answer::UnitTensor`] | v1 and v2 with a processor |
/// | the same | any other or none | [`Answer::PartialTensor`] with `partial_postprocess`, else [`Answer::Tensor`] | v1, v2, nodes |
/// | `application/json` | any | as without `Accept`, in base64 | v0 |
/// | anything else or none, as `*/*` or `text/plain` | `mp4` | [`Answer::Mp4`] | v1, v2 |
/// | | `pt` | [`Answer::PartialTensor`] or [`Answer::Tensor`] | v1.5 |
/// | | `pil` | file by `image_format`, JPEG if absent | v1.5 |
/// | | none | [`Answer::PartialTensor`] with `partial_postprocess`, else as `pil` | hand-made requests |
///
/// No client sends `output_type=pt` with an image `Accept`; the header wins there, as it did on the first
/// endpoints. An `Accept` that names nothing known is ignored rather than refused. In a list the greatest `q` wins,
/// then what is most telling (image and tensor types, then WebP, `*/*`, `application/json`), then what comes first: a
/// browser library's `application/json, text/plain, */*` thus says nothing, and a browser gets no WebP file only because
/// it could show one.
pub fn negotiate(parameters: &Parameters, accept: Option<&str>) -> Negotiated {
    let file = || match parameters.image_format {
        Some(ImageFormat::Png) => Answer::Png,
        Some(ImageFormat::Webp) => Answer::Webp,
        Some(ImageFormat::Jpeg) | None => Answer::Jpeg,
    };
    let raw = if parameters.partial_postprocess { Answer::PartialTensor } else { Answer::Tensor };
    let tensor = if parameters.output_type == Some(OutputType::Pil) { Answer::UnitTensor } else { raw };
    let by_parameters = || match parameters.output_type {
        Some(OutputType::Mp4) => Answer::Mp4,
        Some(OutputType::Pt) => raw,
        Some(OutputType::Pil) => file(),
        None if parameters.partial_postprocess => raw,
        None => file(),
    };
    let (answer, encoding) = match preferred(accept) {
        Preference::Jpeg => (Answer::Jpeg, Encoding::Binary),
        Preference::Png => (Answer::Png, Encoding::Binary),
        Preference::Webp => (Answer::Webp, Encoding::Binary),
        Preference::Mp4 => (Answer::Mp4, Encoding::Binary),
        Preference::AnyImage => (file(), Encoding::Binary),
        Preference::TensorBinary => (tensor, Encoding::Binary),
        Preference::TensorBase64 => (tensor, Encoding::Base64),
        Preference::Json => (by_parameters(), Encoding::Base64),
        Preference::Anything => (by_parameters(), Encoding::Binary),
    };
    Negotiated { answer, encoding, float: parameters.output_dtype.unwrap_or(Dtype::Float16) }
}

/// Decides the answer to an encode: latents, bare unless base64 or JSON is asked for by name.
pub fn negotiate_encode(parameters: &Parameters, accept: Option<&str>) -> Negotiated {
    let encoding = match preferred(accept) {
        Preference::TensorBase64 | Preference::Json => Encoding::Base64,
        _ => Encoding::Binary,
    };
    let float = parameters.output_dtype.unwrap_or(Dtype::Float16);
    Negotiated { answer: Answer::Tensor, encoding, float }
}

/// What an `Accept` header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preference {
    Jpeg,
    Png,
    Webp,
    Mp4,
    AnyImage,
    TensorBinary,
    TensorBase64,
    Json,
    Anything,
}

impl Preference {
    fn from_media_range(range: &str) -> Option<Self> {
        match range.to_ascii_lowercase().as_str() {
            "image/jpeg" | "image/jpg" => Some(Preference::Jpeg),
            "image/png" => Some(Preference::Png),
            "image/webp" => Some(Preference::Webp),
            "video/mp4" => Some(Preference::Mp4),
            "image/*" => Some(Preference::AnyImage),
            "tensor/binary" | "tensor/*" => Some(Preference::TensorBinary),
            "tensor/base64" => Some(Preference::TensorBase64),
            "application/json" => Some(Preference::Json),
            "*/*" => Some(Preference::Anything),
            _ => None,
        }
    }

    /// How much it tells about what the sender wants.
    fn weight(self) -> u8 {
        match self {
            Preference::Json => 0,
            Preference::Anything => 1,
            Preference::Webp => 2,
            _ => 3,
        }
    }
}

/// The most preferred known range of an `Accept` header.
fn preferred(accept: Option<&str>) -> Preference {
    let mut best: Option<(Preference, f32)> = None;
    for range in accept.unwrap_or("").split(',') {
        let mut parts = range.split(';').map(str::trim);
        let Some(preference) = parts.next().and_then(Preference::from_media_range) else { continue };
        let quality = parts
            .filter_map(|part| part.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            .map_or(1.0, |(_, value)| value.trim().parse::<f32>().unwrap_or(0.0));
        let is_better = best.is_none_or(|(other, other_quality)| {
            quality > other_quality || (quality == other_quality && preference.weight() > other.weight())
        });
        if quality > 0.0 && is_better {
            best = Some((preference, quality));
        }
    }
    best.map_or(Preference::Anything, |(preference, _)| preference)
}
