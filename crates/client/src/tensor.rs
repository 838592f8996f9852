//! A tensor as it travels: shape, element type, little-endian bytes.

use remote_vae_wire::{Dtype, TensorHeader, WireError, bytes_from_elements, elements_from_bytes};

/// Contiguous elements, slowest dimension first, little-endian.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Dimensions, for instance `[batch, channels, height, width]`.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: Dtype,
    /// The elements; as many bytes as shape and element type say.
    pub bytes: Vec<u8>,
}

impl Tensor {
    /// A tensor of bytes that are there already.
    ///
    /// # Errors
    /// The bytes are not as many as shape and element type say, or a dimension is zero.
    pub fn new(shape: Vec<usize>, dtype: Dtype, bytes: Vec<u8>) -> Result<Self, WireError> {
        let header = TensorHeader { shape, dtype };
        header.check_body(bytes.len())?;
        Ok(Self { shape: header.shape, dtype, bytes })
    }

    /// Converts `values` to `dtype` (float16 and bfloat16 round to nearest even) for travelling.
    ///
    /// # Errors
    /// The values are not as many as the shape says, or a dimension is zero.
    pub fn from_f32(shape: Vec<usize>, dtype: Dtype, values: &[f32]) -> Result<Self, WireError> {
        // Lengths are compared before anything is converted.
        TensorHeader { shape: shape.clone(), dtype }.check_body(values.len().saturating_mul(dtype.size()))?;
        Self::new(shape, dtype, bytes_from_elements(dtype, values))
    }

    /// The elements as f32; bytes become 0 to 255.
    pub fn to_f32(&self) -> Vec<f32> {
        elements_from_bytes(self.dtype, &self.bytes)
    }

    /// Checks that the public fields still belong together.
    pub(crate) fn check(&self) -> Result<(), WireError> {
        TensorHeader { shape: self.shape.clone(), dtype: self.dtype }.check_body(self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_and_lengths_are_checked() {
        let tensor = Tensor::from_f32(vec![1, 3], Dtype::Float16, &[0.5, -1.0, 2.0]).unwrap();
        assert_eq!(tensor.bytes.len(), 6);
        assert_eq!(tensor.to_f32(), [0.5, -1.0, 2.0]);
        assert!(Tensor::from_f32(vec![1, 3], Dtype::Float32, &[0.0]).is_err());
        assert!(Tensor::new(vec![0], Dtype::Uint8, vec![]).is_err());
    }
}
