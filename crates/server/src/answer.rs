//! From the engine's tensor to the bytes of the answer. Runs beside the engine, on a thread of its own.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use remote_vae_media as media;
use remote_vae_media::MediaError;
use remote_vae_wire::{
    Answer, Dtype, Encoding, HEADER_DTYPE, HEADER_SHAPE, Negotiated, TensorHeader, base64_file,
    base64_tensor, bytes_from_elements,
};

use crate::error::Refusal;
use crate::growing::Growing;
use crate::queue::Tensor;

/// Names device, instruction tier and precision, because equal requests give equal bytes only within one of them.
const ENGINE: HeaderName = HeaderName::from_static("x-remote-vae-engine");

/// What an answer is.
pub(crate) enum Form {
    /// Of a decode: made while the engine is at work.
    Growing(Box<Growing>),
    /// Of an encode.
    Latents {
        /// How they travel.
        negotiated: Negotiated,
        /// Latent frames, by a model of videos; the tensor has frames and rows in one.
        frames: Option<usize>,
    },
}

impl Form {
    /// For metrics.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Form::Latents { .. } => "latents",
            Form::Growing(answer) => answer_name(answer.negotiated()),
        }
    }

    /// `bytes`, and those of what is made of them while they are still there: of the engine's values, or of a decode's answer
    /// that is put into text or `in_file`. Whatever is made of that has room where they were.
    pub(crate) fn with_copy(&self, bytes: u64, in_file: bool) -> u64 {
        let copy = match self {
            Form::Latents { negotiated, .. } => {
                bytes / size_of::<f32>() as u64 * negotiated.float.size() as u64
            }
            Form::Growing(_) if in_file => bytes,
            Form::Growing(answer) if answer.negotiated().encoding == Encoding::Base64 => {
                bytes.div_ceil(3).saturating_mul(4)
            }
            Form::Growing(_) => 0,
        };
        bytes.saturating_add(copy)
    }
}

fn answer_name(Negotiated { answer, float, .. }: Negotiated) -> &'static str {
    match answer {
        Answer::Jpeg => "jpeg",
        Answer::Png => "png",
        Answer::Webp => "webp",
        Answer::Mp4 => "mp4",
        Answer::Tensor => float.name(),
        Answer::PartialTensor => "uint8",
        Answer::UnitTensor => "unit",
    }
}

/// Makes the answer of latents `[batch, channels, height, width]`.
pub(crate) fn latents(negotiated: Negotiated, frames: Option<usize>, tensor: Tensor) -> Response {
    let [batch, channels, rows, width] = tensor.shape;
    let shape = match frames {
        Some(frames) => vec![batch, channels, frames, rows / frames, width],
        None => tensor.shape.to_vec(),
    };
    let header = TensorHeader { shape, dtype: negotiated.float };
    let bytes = bytes_from_elements(negotiated.float, &tensor.values);
    drop(tensor);
    let body = wrapped(negotiated.encoding, Some(&header), bytes);
    response(negotiated, Some(header), body)
}

/// Makes the answer of a picture `[batch, channels, height, width]`. Its values go as soon as bytes were made of them, so
/// that what is made of these has room in their place.
pub(crate) fn picture(negotiated: Negotiated, tensor: Tensor) -> Result<Response, Refusal> {
    let shape @ [batch, channels, height, width] = tensor.shape;
    let float = negotiated.float;
    let planes = |dtype| Some(TensorHeader { shape: shape.to_vec(), dtype });
    let (header, bytes) = match negotiated.answer {
        Answer::Tensor => (planes(float), bytes_from_elements(float, &tensor.values)),
        Answer::UnitTensor => (planes(float), unit_bytes(float, &tensor.values)),
        Answer::PartialTensor => {
            let header = TensorHeader { shape: vec![batch, height, width, channels], dtype: Dtype::Uint8 };
            (Some(header), media::to_uint8_channel_last(&tensor.values, shape))
        }
        Answer::Png | Answer::Jpeg | Answer::Webp | Answer::Mp4 => {
            let first = tensor.values.get(..channels * height * width).unwrap_or(&tensor.values);
            (None, media::to_uint8_channel_last(first, [1, channels, height, width]))
        }
    };
    drop(tensor);
    let bytes = match negotiated.answer {
        Answer::Tensor | Answer::UnitTensor | Answer::PartialTensor => Ok(bytes),
        Answer::Png => media::encode_png(&bytes, width, height),
        Answer::Jpeg => media::encode_jpeg(&bytes, width, height),
        Answer::Webp => media::encode_webp(&bytes, width, height),
        Answer::Mp4 => return Err(Refusal::internal("A picture was to be sent as a video.")),
    };
    let body = wrapped(negotiated.encoding, header.as_ref(), bytes.map_err(media_refusal)?);
    Ok(response(negotiated, header, body))
}

/// Values in 0 to 1, those of float16 numbers, made a few at a time.
fn unit_bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    const CHUNK: usize = 1 << 16;
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    for chunk in values.chunks(CHUNK) {
        bytes.extend(bytes_from_elements(dtype, &media::to_unit_interval(chunk)));
    }
    bytes
}

/// What a file cannot hold was refused before the work.
pub(crate) fn media_refusal(error: MediaError) -> Refusal {
    tracing::error!(%error, "a picture could not be written");
    Refusal::internal(error.to_string())
}

/// The answer with this body, which [`wrapped`] has put into its form.
pub(crate) fn response(negotiated: Negotiated, header: Option<TensorHeader>, body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(negotiated.content_type()));
    if let Some(header) = header {
        let (shape, dtype) = header.to_headers();
        if let Ok(shape) = HeaderValue::try_from(shape) {
            headers.insert(HEADER_SHAPE, shape);
        }
        headers.insert(HEADER_DTYPE, HeaderValue::from_static(dtype));
    }
    response
}

/// The bytes as they travel: bare, or in base64 inside of JSON.
pub(crate) fn wrapped(encoding: Encoding, header: Option<&TensorHeader>, bytes: Vec<u8>) -> Body {
    Body::from(match (encoding, header) {
        (Encoding::Binary, _) => Bytes::from(bytes),
        (Encoding::Base64, Some(header)) => Bytes::from(base64_tensor(header, &bytes)),
        (Encoding::Base64, None) => Bytes::from(base64_file(&bytes)),
    })
}

/// Adds what is the same for every answer of an engine.
pub(crate) fn finish(mut response: Response, engine: &str) -> Response {
    if let Ok(engine) = HeaderValue::try_from(engine) {
        response.headers_mut().insert(ENGINE, engine);
    }
    response
}
