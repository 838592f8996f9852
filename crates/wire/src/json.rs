//! JSON bodies: the requests of the two oldest generations of clients, base64 answers, and errors.
//!
//! - v0, `application/json`: `{"inputs": base64, "parameters": {"shape": […], "dtype": …, …}}`, no query.
//! - v1, `tensor/base64`: `{"inputs": base64}`, everything else in the query.

use std::io::Read;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::WireError;
use crate::header::TensorHeader;
use crate::members::Members;
use crate::parameters::Parameters;

#[derive(Deserialize)]
struct Request {
    inputs: Inputs,
    parameters: Option<Members>,
}

/// Bytes decoded while the JSON is read, so that no second copy of the text is needed.
struct Inputs(Result<Vec<u8>, WireError>);

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl serde::de::Visitor<'_> for Text {
            type Value = Inputs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<Inputs, E> {
                Ok(Inputs(decode_base64(text)))
            }
        }
        from.deserialize_str(Text)
    }
}

/// Takes the tensor's (or picture's) bytes out of a JSON body of either generation.
///
/// Parameters inside the body are merged into `parameters`, under the names and rules of the query; where both
/// state something the query wins. A body with a `parameters` member is of the oldest form, which had no switch
/// for scaling and was always scaled by the model: without `do_scaling`, `scaling_factor` or `shift_factor`
/// anywhere, `do_scaling` is set to true.
///
/// # Errors
/// [`WireError::InvalidJson`], [`WireError::InvalidBase64`], or what [`Parameters::from_query`] gives for a
/// parameter.
pub fn unwrap_json_body(body: &[u8], parameters: &mut Parameters) -> Result<Vec<u8>, WireError> {
    let request: Request =
        serde_json::from_slice(body).map_err(|error| WireError::InvalidJson { reason: error.to_string() })?;
    if let Some(members) = request.parameters {
        merge(members.into_parameters()?, parameters);
        let silent = parameters.do_scaling.is_none()
            && parameters.scaling_factor.is_none()
            && parameters.shift_factor.is_none();
        if silent {
            parameters.do_scaling = Some(true);
        }
    }
    request.inputs.0
}

/// Sets from `inner` what `parameters` leaves open.
fn merge(inner: Parameters, parameters: &mut Parameters) {
    let outer = std::mem::take(parameters);
    *parameters = Parameters {
        shape: outer.shape.or(inner.shape),
        dtype: outer.dtype.or(inner.dtype),
        output_type: outer.output_type.or(inner.output_type),
        image_format: outer.image_format.or(inner.image_format),
        partial_postprocess: outer.partial_postprocess || inner.partial_postprocess,
        do_scaling: outer.do_scaling.or(inner.do_scaling),
        scaling_factor: outer.scaling_factor.or(inner.scaling_factor),
        shift_factor: outer.shift_factor.or(inner.shift_factor),
        height: outer.height.or(inner.height),
        width: outer.width.or(inner.width),
        preview: outer.preview || inner.preview,
        precision: outer.precision.or(inner.precision),
        fps: outer.fps.or(inner.fps),
        crf: outer.crf.or(inner.crf),
        windows: outer.windows.or(inner.windows),
        tiling: outer.tiling.or(inner.tiling),
        tile: outer.tile.or(inner.tile),
        output_dtype: outer.output_dtype.or(inner.output_dtype),
        seed: outer.seed.or(inner.seed),
        sample: outer.sample.or(inner.sample),
        moments: outer.moments || inner.moments,
    };
}

/// Line breaks and spaces between the characters are skipped, as Python's decoder skips them.
fn decode_base64(text: &str) -> Result<Vec<u8>, WireError> {
    if !text.contains(|c: char| c.is_ascii_whitespace()) {
        return STANDARD.decode(text).map_err(|error| WireError::InvalidBase64 { reason: error.to_string() });
    }
    let compact = WithoutWhitespace(text.as_bytes());
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 3);
    let mut reader = base64::read::DecoderReader::new(compact, &STANDARD);
    reader.read_to_end(&mut bytes).map_err(|error| WireError::InvalidBase64 { reason: error.to_string() })?;
    Ok(bytes)
}

/// A text read without its white space.
struct WithoutWhitespace<'a>(&'a [u8]);

impl Read for WithoutWhitespace<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut count = 0;
        while let (Some(to), Some((&byte, rest))) = (buffer.get_mut(count), self.0.split_first()) {
            self.0 = rest;
            if !byte.is_ascii_whitespace() {
                *to = byte;
                count += 1;
            }
        }
        Ok(count)
    }
}

/// The JSON answer that carries a tensor: `{"inputs": base64, "parameters": {"shape": […], "dtype": …}}`.
pub fn base64_tensor(header: &TensorHeader, bytes: &[u8]) -> String {
    let parameters = TensorMembers { shape: header.shape.clone(), dtype: header.dtype.name().into() };
    let parameters = serde_json::to_string(&parameters).unwrap_or_default();
    // Base64 needs no escapes in JSON, so it is written in its place, without a second copy.
    between("{\"inputs\":\"", bytes, &format!("\",\"parameters\":{parameters}}}"))
}

/// The bytes in base64 between two texts, in memory for their length.
fn between(before: &str, bytes: &[u8], after: &str) -> String {
    let length = bytes.len().div_ceil(3) * 4 + before.len() + after.len();
    let mut text = String::with_capacity(length);
    text.push_str(before);
    STANDARD.encode_string(bytes, &mut text);
    text.push_str(after);
    text
}

/// Reads what [`base64_tensor`] writes, and checks that the bytes are the tensor.
///
/// # Errors
/// [`WireError::InvalidJson`], [`WireError::InvalidBase64`], [`WireError::UnsupportedDtype`], or what
/// [`TensorHeader::check_body`] gives.
pub fn parse_base64_tensor(body: &[u8]) -> Result<(TensorHeader, Vec<u8>), WireError> {
    let answer: TensorAnswer<'_> =
        serde_json::from_slice(body).map_err(|error| WireError::InvalidJson { reason: error.to_string() })?;
    let header = TensorHeader { shape: answer.parameters.shape, dtype: answer.parameters.dtype.parse()? };
    let bytes = decode_base64(&answer.inputs)?;
    header.check_body(bytes.len())?;
    Ok((header, bytes))
}

#[derive(Deserialize)]
struct TensorAnswer<'a> {
    #[serde(borrow)]
    inputs: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    parameters: TensorMembers<'a>,
}

#[derive(Serialize, Deserialize)]
struct TensorMembers<'a> {
    shape: Vec<usize>,
    #[serde(borrow)]
    dtype: std::borrow::Cow<'a, str>,
}

/// The JSON answer that carries a file: one string, the file in base64.
pub fn base64_file(bytes: &[u8]) -> String {
    between("\"", bytes, "\"")
}

/// The body of every answer that is not a success: `{"error": message}`.
pub fn error_body(message: &str) -> String {
    serde_json::json!({ "error": message }).to_string()
}

/// The message in a body that [`error_body`] wrote; none if it is something else.
pub fn error_message(body: &[u8]) -> Option<String> {
    match serde_json::from_slice(body).ok()? {
        Value::Object(mut members) => match members.remove("error")? {
            Value::String(message) => Some(message),
            other => Some(other.to_string()),
        },
        _ => None,
    }
}
