//! The header of a safetensors file: 8 bytes of length (little-endian), then a JSON object of tensors. Everything in it
//! is checked before it is believed: lengths, counts, ranks, types, places inside the file, overlaps.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::ModelError;

/// The longest header that is read, in bytes.
pub(crate) const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The most tensors in a file.
pub(crate) const MAX_TENSORS: usize = 1 << 17;
/// The most dimensions of a tensor.
pub(crate) const MAX_RANK: usize = 8;

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum StorageType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// The top half of a 32-bit float.
    BF16,
    /// 8-bit float of 4 exponent and 3 mantissa bits, without infinities ("fn").
    F8E4M3,
    /// Any other type of that many bytes an element; listed but not read.
    Other(usize),
}

impl StorageType {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "F64" => Self::F64,
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::BF16,
            "F8_E4M3" => Self::F8E4M3,
            "I64" | "U64" => Self::Other(8),
            "I32" | "U32" => Self::Other(4),
            "I16" | "U16" => Self::Other(2),
            "I8" | "U8" | "BOOL" | "F8_E5M2" | "F8_E8M0" => Self::Other(1),
            _ => return None,
        })
    }

    /// Bytes of one element.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 => 1,
            Self::Other(bytes) => bytes,
        }
    }
}

/// One tensor of a header; its data lies at `begin..end`, counted from the start of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorEntry {
    /// The type's name in the file.
    pub type_name: String,
    /// The type; `None` for one that is not known.
    pub storage: Option<StorageType>,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// First byte.
    pub begin: u64,
    /// One past the last byte.
    pub end: u64,
}

impl TensorEntry {
    /// Product of the dimensions.
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Length of the header from the first 8 bytes of a file of `file_bytes`.
pub(crate) fn header_length(label: &str, first: [u8; 8], file_bytes: u64) -> Result<u64, ModelError> {
    let length = u64::from_le_bytes(first);
    let rest = file_bytes.saturating_sub(8);
    if length > MAX_HEADER_BYTES {
        return Err(format_error(
            label,
            format!("its header would be {length} bytes, more than {MAX_HEADER_BYTES}"),
        ));
    }
    if length < 2 || length > rest {
        let message = format!("its header would be {length} bytes, and {rest} bytes follow");
        return Err(format_error(label, message));
    }
    Ok(length)
}

/// Parses and checks the header of a file of `file_bytes`.
pub(crate) fn parse(
    label: &str,
    header: &[u8],
    file_bytes: u64,
) -> Result<BTreeMap<String, TensorEntry>, ModelError> {
    let raw: RawHeader = serde_json::from_slice(header)
        .map_err(|error| format_error(label, format!("its header: {error}")))?;
    let data_start = 8 + header.len() as u64;
    let mut tensors = BTreeMap::new();
    for (name, tensor) in raw.tensors {
        let entry = check(&name, tensor, data_start, file_bytes)?;
        if tensors.contains_key(&name) {
            return Err(tensor_error(&name, "it is listed twice in the header".into()));
        }
        tensors.insert(name, entry);
    }
    check_overlaps(&tensors)?;
    Ok(tensors)
}

fn check(name: &str, tensor: RawTensor, data_start: u64, file_bytes: u64) -> Result<TensorEntry, ModelError> {
    let [begin, end] = tensor.data_offsets;
    if begin > end {
        return Err(tensor_error(
            name,
            format!("its data would end at byte {end}, before its start {begin}"),
        ));
    }
    let data_bytes = file_bytes - data_start;
    if end > data_bytes {
        let message = format!(
            "its data would end at byte {end} of the data, which has {data_bytes} bytes (the file is truncated)"
        );
        return Err(tensor_error(name, message));
    }
    let storage = StorageType::from_name(&tensor.dtype.0);
    let elements = tensor.shape.0.iter().try_fold(1u64, |product, &side| product.checked_mul(side));
    let bytes = match (elements, storage) {
        (None, _) => None,
        (Some(_), None) => Some(end - begin),
        (Some(elements), Some(storage)) => elements.checked_mul(storage.bytes() as u64),
    };
    let shape: Option<Vec<usize>> = tensor.shape.0.iter().map(|&side| usize::try_from(side).ok()).collect();
    let (Some(shape), Some(true)) = (shape, bytes.map(|bytes| bytes == end - begin)) else {
        let message = format!(
            "{} {:?} does not fit its {} bytes of data",
            crate::config::shorten(&tensor.dtype.0),
            tensor.shape.0,
            end - begin
        );
        return Err(tensor_error(name, message));
    };
    let (begin, end) = (data_start + begin, data_start + end);
    Ok(TensorEntry { type_name: tensor.dtype.0, storage, shape, begin, end })
}

fn check_overlaps(tensors: &BTreeMap<String, TensorEntry>) -> Result<(), ModelError> {
    let mut places: Vec<(u64, u64, &str)> = tensors
        .iter()
        .filter(|(_, entry)| entry.begin < entry.end)
        .map(|(name, entry)| (entry.begin, entry.end, name.as_str()))
        .collect();
    places.sort_unstable();
    for pair in places.windows(2) {
        if pair[1].0 < pair[0].1 {
            let message = format!("its data overlaps that of `{}`", crate::config::shorten(pair[0].2));
            return Err(tensor_error(pair[1].2, message));
        }
    }
    Ok(())
}

pub(crate) fn format_error(label: &str, message: String) -> ModelError {
    ModelError::Format { label: label.to_owned(), message }
}

pub(crate) fn tensor_error(name: &str, message: String) -> ModelError {
    ModelError::Tensor { name: crate::config::shorten(name), message }
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
}

#[derive(serde::Deserialize)]
struct RawTensor {
    dtype: ShortName,
    shape: Dimensions,
    data_offsets: [u64; 2],
}

/// A string of at most 32 bytes.
struct ShortName(String);

/// At most [`MAX_RANK`] dimensions; reading stops at the first one too many.
struct Dimensions(Vec<u64>);

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut tensors = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if tensors.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let tensor = map.next_value::<RawTensor>().map_err(|error| {
                        A::Error::custom(format!("tensor `{}`: {error}", crate::config::shorten(&name)))
                    })?;
                    tensors.push((name, tensor));
                }
                Ok(RawHeader { tensors })
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

impl<'de> Deserialize<'de> for ShortName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if name.len() > 32 {
            return Err(D::Error::custom("a type name of more than 32 bytes"));
        }
        Ok(Self(name))
    }
}

impl<'de> Deserialize<'de> for Dimensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DimensionsVisitor;
        impl<'de> Visitor<'de> for DimensionsVisitor {
            type Value = Dimensions;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "a list of at most {MAX_RANK} dimensions")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Dimensions, A::Error> {
                let mut sides = Vec::new();
                while let Some(side) = items.next_element::<u64>()? {
                    if sides.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("more than {MAX_RANK} dimensions")));
                    }
                    sides.push(side);
                }
                Ok(Dimensions(sides))
            }
        }
        deserializer.deserialize_seq(DimensionsVisitor)
    }
}
