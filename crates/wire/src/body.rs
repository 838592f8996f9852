//! Kinds of request body, picture signatures, and telling a decode from an encode on one URL.

use crate::error::WireError;
use crate::parameters::Parameters;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Latents to pixels.
    Decode,
    /// Pixels to latents.
    Encode,
}

impl Operation {
    /// Its name, as in paths.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Decode => "decode",
            Operation::Encode => "encode",
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What `Content-Type` says about the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// `tensor/binary`: the bare bytes of a tensor.
    TensorBinary,
    /// `tensor/base64`: a JSON object with `inputs`.
    TensorBase64,
    /// `application/json`: a JSON object with `inputs` and `parameters`.
    Json,
    /// `image/…`: a picture file.
    Image,
    /// `video/…`: a video file.
    Video,
    /// No header, or one that says nothing (`application/octet-stream`, curl's form type, an unknown type).
    Unstated,
}

impl BodyKind {
    /// Reads the value of the `Content-Type` header; case and parameters after `;` do not matter.
    pub fn from_content_type(value: Option<&str>) -> Self {
        let media_type = value.unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        match media_type.as_str() {
            "tensor/binary" => BodyKind::TensorBinary,
            "tensor/base64" => BodyKind::TensorBase64,
            "application/json" => BodyKind::Json,
            other if other.starts_with("image/") => BodyKind::Image,
            other if other.starts_with("video/") => BodyKind::Video,
            _ => BodyKind::Unstated,
        }
    }

    /// Whether the body must go through [`unwrap_json_body`](crate::unwrap_json_body) first.
    pub fn is_json(self) -> bool {
        matches!(self, BodyKind::TensorBase64 | BodyKind::Json)
    }
}

/// File formats told apart by their first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// PNG.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP.
    WebP,
    /// GIF.
    Gif,
}

/// The picture format that the first bytes of a body show; 12 bytes are enough.
pub fn image_signature(prefix: &[u8]) -> Option<ImageKind> {
    match prefix {
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(ImageKind::Png),
        [0xff, 0xd8, 0xff, ..] => Some(ImageKind::Jpeg),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(ImageKind::WebP),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(ImageKind::Gif),
        _ => None,
    }
}

/// Whether the first bytes of a body are those of an MP4 file; 8 bytes are enough.
pub fn video_signature(prefix: &[u8]) -> bool {
    matches!(prefix, [0, 0, _, _, b'f', b't', b'y', b'p', ..])
}

/// Whether the body of an encode is a video file: as with pictures, a tensor may begin like one, and has a shape.
pub fn video_body(parameters: &Parameters, prefix: &[u8]) -> bool {
    parameters.shape.is_none() && video_signature(prefix)
}

/// The picture format of an encode's body, or none if the body is a tensor.
///
/// No client sends a shape with a picture. Where there is a shape, only the signatures too long to be chance (PNG,
/// WebP, GIF) are believed: three bytes `ff d8 ff` may well begin a tensor of bytes.
pub fn image_body(parameters: &Parameters, prefix: &[u8]) -> Option<ImageKind> {
    image_signature(prefix).filter(|&kind| parameters.shape.is_none() || kind != ImageKind::Jpeg)
}

/// Tells a decode from an encode by what each client really sends, so that one URL can serve both.
///
/// - `output_type` is sent with every decode since the query parameters exist, and with no encode.
/// - The oldest JSON form (`application/json`) only decodes.
/// - Otherwise a picture or a video, by signature or by content type, is an encode, also with an empty query.
/// - Otherwise a raw tensor `[batch, 3, height, width]` or `[batch, 3, frames, height, width]` is an encode; so is
///   `[3, height, width]`, unless height and width say that it is packed latents.
/// - All else is a decode, whose own checks then name what is missing.
///
/// `body_prefix` is the beginning of the raw body (at least 12 bytes if it has them). For a JSON body read the
/// parameters with [`unwrap_json_body`](crate::unwrap_json_body) first and pass the unwrapped bytes.
///
/// # Errors
/// [`WireError::ImageForDecode`] when a picture or a video comes with `output_type`.
pub fn classify(
    parameters: &Parameters,
    body_kind: BodyKind,
    body_prefix: &[u8],
) -> Result<Operation, WireError> {
    let stated = matches!(body_kind, BodyKind::Image | BodyKind::Video);
    let file = stated || image_body(parameters, body_prefix).is_some() || video_body(parameters, body_prefix);
    if parameters.output_type.is_some() || parameters.preview {
        let surely_file = stated || (file && parameters.shape.is_none());
        return if surely_file { Err(WireError::ImageForDecode) } else { Ok(Operation::Decode) };
    }
    if body_kind == BodyKind::Json {
        return Ok(Operation::Decode);
    }
    let unpacked = parameters.height.is_none() && parameters.width.is_none();
    let pixels = match parameters.shape.as_deref() {
        Some([_, 3, _, _] | [_, 3, _, _, _]) => true,
        Some([3, _, _]) => unpacked,
        _ => false,
    };
    Ok(if file || pixels { Operation::Encode } else { Operation::Decode })
}
