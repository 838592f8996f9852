//! Element types of tensors, under their torch names, and their little-endian bytes.

use std::fmt;
use std::str::FromStr;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};

use crate::error::{WireError, shortened};

/// Element type of a tensor on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary16, two bytes.
    Float16,
    /// IEEE 754 binary32, four bytes.
    Float32,
    /// The upper half of a binary32, two bytes.
    BFloat16,
    /// Unsigned byte, 0 to 255.
    Uint8,
}

impl Dtype {
    /// Every element type, in the order of the original error text.
    pub const ALL: [Dtype; 4] = [Dtype::Float16, Dtype::Float32, Dtype::BFloat16, Dtype::Uint8];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::Float16 | Dtype::BFloat16 => 2,
            Dtype::Float32 => 4,
            Dtype::Uint8 => 1,
        }
    }

    /// The torch name without its prefix, for instance `float16`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Float16 => "float16",
            Dtype::Float32 => "float32",
            Dtype::BFloat16 => "bfloat16",
            Dtype::Uint8 => "uint8",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Dtype {
    type Err = WireError;

    /// Reads a torch name. Only the four names of the protocol are known; anything else is
    /// [`WireError::UnsupportedDtype`].
    fn from_str(name: &str) -> Result<Self, WireError> {
        Dtype::ALL
            .into_iter()
            .find(|dtype| dtype.name() == name)
            .ok_or_else(|| WireError::UnsupportedDtype { found: shortened(name) })
    }
}

/// Elements converted at a time, so that the buffer between bytes and half floats stays in the first-level cache.
const CHUNK: usize = 4096;

/// Widens little-endian bytes to f32. Every value of every type is represented exactly; `uint8` becomes 0 to 255.
///
/// Bytes after the last whole element are ignored: check the length with
/// [`TensorHeader::check_body`](crate::TensorHeader::check_body) first.
pub fn elements_from_bytes(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::Uint8 => bytes.iter().map(|&byte| f32::from(byte)).collect(),
        Dtype::Float32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::BFloat16 => {
            let widen = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            bytes.as_chunks::<2>().0.iter().map(widen).collect()
        }
        Dtype::Float16 => {
            let pairs = bytes.as_chunks::<2>().0;
            let mut elements = vec![0.0f32; pairs.len()];
            let mut bits = [0u16; CHUNK];
            for (pairs, elements) in pairs.chunks(CHUNK).zip(elements.chunks_mut(CHUNK)) {
                let bits = &mut bits[..pairs.len()];
                bits.iter_mut().zip(pairs).for_each(|(to, &from)| *to = u16::from_le_bytes(from));
                bits.reinterpret_cast::<f16>().convert_to_f32_slice(elements);
            }
            elements
        }
    }
}

/// Narrows f32 to the little-endian bytes of `dtype`.
///
/// `float16` and `bfloat16` round to nearest, ties to even; what is too large becomes infinite, NaN stays NaN.
/// `uint8` rounds to nearest, ties to even, and saturates; NaN becomes 0.
pub fn bytes_from_elements(dtype: Dtype, elements: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::Uint8 => elements.iter().map(|&x| x.round_ties_even() as u8).collect(),
        Dtype::Float32 => {
            let mut bytes = vec![0u8; elements.len() * 4];
            bytes.as_chunks_mut::<4>().0.iter_mut().zip(elements).for_each(|(to, x)| *to = x.to_le_bytes());
            bytes
        }
        Dtype::Float16 => half_bytes(elements, |elements, bits| {
            bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(elements);
        }),
        Dtype::BFloat16 => half_bytes(elements, |elements, bits| {
            bits.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(elements);
        }),
    }
}

/// Little-endian bytes of 16-bit elements that `narrow` makes chunk by chunk.
fn half_bytes(elements: &[f32], narrow: impl Fn(&[f32], &mut [u16])) -> Vec<u8> {
    let mut bytes = vec![0u8; elements.len() * 2];
    let mut bits = [0u16; CHUNK];
    for (elements, bytes) in elements.chunks(CHUNK).zip(bytes.as_chunks_mut::<2>().0.chunks_mut(CHUNK)) {
        let bits = &mut bits[..elements.len()];
        narrow(elements, bits);
        bytes.iter_mut().zip(bits).for_each(|(to, from)| *to = from.to_le_bytes());
    }
    bytes
}
