//! The errors of this crate. Each is the sender's fault (status 400), and says what was found and what was expected.

use crate::dtype::Dtype;

/// Why a request, header or body was refused.
///
/// Where the text of the original endpoints is known it is kept word for word, because people search for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A raw tensor came without its element type.
    #[error("Expected `dtype` in query params.")]
    MissingDtype,
    /// An element type that the protocol does not have.
    #[error("Supported `dtype`: ['float16', 'float32', 'bfloat16', 'uint8']. Got `{found}`.")]
    UnsupportedDtype {
        /// The name that was sent, shortened.
        found: String,
    },
    /// A raw tensor came without its shape.
    #[error("Expected `shape` in query params.")]
    MissingShape,
    /// A parameter whose value cannot be read.
    #[error("Expected `{name}` to be {expected}. Got `{found}`.")]
    InvalidParameter {
        /// The parameter's name.
        name: &'static str,
        /// The value that was sent, shortened.
        found: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// A parameter that is not a list was given twice with different values.
    #[error("Expected one value of `{name}`. Got `{first}` and `{second}`.")]
    ConflictingParameter {
        /// The parameter's name.
        name: &'static str,
        /// The value that came first, shortened.
        first: String,
        /// A later value, shortened.
        second: String,
    },
    /// A shape with more dimensions than any tensor of the protocol has.
    #[error("Expected `shape` to have at most {limit} dimensions. Got more.")]
    TooManyDimensions {
        /// The greatest number accepted.
        limit: usize,
    },
    /// A shape with no dimension, or with one that is zero.
    #[error("Expected every dimension of `shape` to be at least 1. Got {shape:?}.")]
    EmptyShape {
        /// The shape that was sent.
        shape: Vec<usize>,
    },
    /// A shape whose tensor could not be addressed.
    #[error("Expected a `shape` whose size can be addressed. Got {shape:?}, which overflows.")]
    ShapeOverflow {
        /// The shape that was sent.
        shape: Vec<usize>,
    },
    /// The body is not as long as its shape and element type say.
    #[error(
        "Expected a body of {expected} bytes for `shape` {shape:?} and `dtype` {dtype}. Got {found} bytes."
    )]
    BodyLength {
        /// The shape that was sent.
        shape: Vec<usize>,
        /// The element type that was sent.
        dtype: Dtype,
        /// Bytes that shape and element type need.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
    /// A picture or video file came together with `output_type`, which only a decode has.
    #[error(
        "`output_type` asks for a decode, which takes a tensor. Got a picture or video file; an encode takes no \
         `output_type`."
    )]
    ImageForDecode,
    /// A body announced as JSON cannot be read as the protocol's JSON.
    #[error("Expected a JSON object with `inputs` (base64). Got a body that is not one: {reason}.")]
    InvalidJson {
        /// What the JSON reader said.
        reason: String,
    },
    /// The `inputs` of a JSON body are not base64.
    #[error("Expected `inputs` to be base64. Got text that is not: {reason}.")]
    InvalidBase64 {
        /// What the base64 reader said.
        reason: String,
    },
}

impl WireError {
    /// An [`WireError::InvalidParameter`] with the value shortened for the message.
    pub(crate) fn invalid(name: &'static str, found: &str, expected: &'static str) -> Self {
        Self::InvalidParameter { name, found: shortened(found), expected }
    }
}

/// At most 64 characters of `text`, control characters replaced: what a client sent, for use inside a message.
pub fn shortened(text: &str) -> String {
    const LIMIT: usize = 64;
    let mut out: String =
        text.chars().take(LIMIT).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(LIMIT).is_some() {
        out.push('…');
    }
    out
}
