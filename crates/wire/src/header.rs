//! The shape and element type of a tensor: two response headers, or two query parameters, and the checks on them.

use crate::dtype::Dtype;
use crate::error::{WireError, shortened};

/// Name of the response header that carries the shape.
pub const HEADER_SHAPE: &str = "shape";
/// Name of the response header that carries the element type.
pub const HEADER_DTYPE: &str = "dtype";
/// Greatest number of dimensions accepted; video tensors have five.
pub const MAX_DIMENSIONS: usize = 8;

/// What must be known beside the bytes of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// Dimensions, slowest first, for instance `[batch, channels, height, width]`.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
}

impl TensorHeader {
    /// The values of the headers [`HEADER_SHAPE`] and [`HEADER_DTYPE`], for instance `[1,3,512,512]` (a JSON array
    /// without spaces) and `float16`.
    pub fn to_headers(&self) -> (String, &'static str) {
        let dimensions: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        (format!("[{}]", dimensions.join(",")), self.dtype.name())
    }

    /// Reads the values of the two headers. Spaces inside the list are allowed.
    ///
    /// # Errors
    /// [`WireError::InvalidParameter`], [`WireError::TooManyDimensions`] or [`WireError::UnsupportedDtype`].
    pub fn parse(shape: &str, dtype: &str) -> Result<Self, WireError> {
        let shape = parse_dimension_list(shape.trim())?;
        Ok(Self { shape, dtype: dtype.trim().parse()? })
    }

    /// Number of elements.
    ///
    /// # Errors
    /// [`WireError::EmptyShape`] for no dimension or a zero one, [`WireError::ShapeOverflow`] when the bytes could
    /// not be addressed, [`WireError::TooManyDimensions`].
    pub fn element_count(&self) -> Result<usize, WireError> {
        Ok(self.byte_len()? / self.dtype.size())
    }

    /// Bytes of the whole tensor.
    ///
    /// # Errors
    /// As [`TensorHeader::element_count`].
    pub fn byte_len(&self) -> Result<usize, WireError> {
        if self.shape.len() > MAX_DIMENSIONS {
            return Err(WireError::TooManyDimensions { limit: MAX_DIMENSIONS });
        }
        if self.shape.is_empty() || self.shape.contains(&0) {
            return Err(WireError::EmptyShape { shape: self.shape.clone() });
        }
        self.shape
            .iter()
            .try_fold(self.dtype.size(), |bytes, &dimension| bytes.checked_mul(dimension))
            .filter(|&bytes| isize::try_from(bytes).is_ok())
            .ok_or_else(|| WireError::ShapeOverflow { shape: self.shape.clone() })
    }

    /// Checks that a body of `len` bytes is exactly this tensor.
    ///
    /// # Errors
    /// As [`TensorHeader::byte_len`], and [`WireError::BodyLength`].
    pub fn check_body(&self, len: usize) -> Result<(), WireError> {
        let expected = self.byte_len()?;
        if len == expected {
            return Ok(());
        }
        Err(WireError::BodyLength { shape: self.shape.clone(), dtype: self.dtype, expected, found: len })
    }
}

/// What a shape may look like, for messages.
const SHAPE_FORM: &str = "whole numbers, as in `shape=1&shape=4&shape=64&shape=64`";

/// One dimension: decimal digits only.
pub(crate) fn parse_dimension(text: &str) -> Result<usize, WireError> {
    let invalid = || WireError::invalid("shape", text, SHAPE_FORM);
    let digits = text.trim();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid());
    }
    digits.parse().map_err(|_| WireError::InvalidParameter {
        name: "shape",
        found: shortened(text),
        expected: "whole numbers that fit the address space",
    })
}

/// A list in one string: `[1,4,64,64]`, `(1, 4, 64, 64)` or `1,4,64,64`; the brackets must match.
pub(crate) fn parse_dimension_list(text: &str) -> Result<Vec<usize>, WireError> {
    let inner = match (text.strip_prefix('['), text.strip_prefix('(')) {
        (Some(rest), _) => rest.strip_suffix(']'),
        (_, Some(rest)) => rest.strip_suffix(')'),
        _ => Some(text),
    }
    .ok_or_else(|| WireError::invalid("shape", text, SHAPE_FORM))?;
    let mut shape = Vec::new();
    for dimension in inner.split(',') {
        push_dimension(&mut shape, parse_dimension(dimension)?)?;
    }
    Ok(shape)
}

/// Adds a dimension, up to [`MAX_DIMENSIONS`].
pub(crate) fn push_dimension(shape: &mut Vec<usize>, dimension: usize) -> Result<(), WireError> {
    if shape.len() >= MAX_DIMENSIONS {
        return Err(WireError::TooManyDimensions { limit: MAX_DIMENSIONS });
    }
    shape.push(dimension);
    Ok(())
}
