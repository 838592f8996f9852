//! A checkpoint file: safetensors, opened by its header only and read tensor by tensor, converted to f32. Pickles are
//! recognised and refused.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::ModelError;
use crate::graph::{BATCH_NORM_EPSILON, BatchNorm, Folded, Part, WeightSpec};
use crate::header::{self, StorageType, TensorEntry, format_error, tensor_error};

/// Bytes that are read from a file at once.
const CHUNK_BYTES: usize = 1 << 20;

/// Where the weights of a graph come from.
pub trait WeightSource: Send + Sync {
    /// The values of a weight in the order of its shape. Two-dimensional tensors stand for 1×1 convolutions.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] when it is absent, has another shape or cannot be read.
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>, ModelError>;
}

/// An open safetensors file, or its bytes in memory.
pub struct Checkpoint {
    label: String,
    storage: Storage,
    tensors: BTreeMap<String, TensorEntry>,
    bytes: u64,
}

enum Storage {
    File { file: Mutex<File>, modified: Option<SystemTime> },
    Memory(&'static [u8]),
}

impl Checkpoint {
    /// Opens a file and reads its header; no tensor is read.
    ///
    /// # Errors
    /// [`ModelError::Io`] when it cannot be read, [`ModelError::Pickle`] for a pickle, [`ModelError::Format`] and
    /// [`ModelError::Tensor`] when the header is not sound or does not fit the file.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { path: path.to_owned(), source };
        let label = path.display().to_string();
        let mut file = File::open(path).map_err(io)?;
        let facts = file.metadata().map_err(io)?;
        if !facts.is_file() {
            return Err(format_error(&label, "it is not a regular file".into()));
        }
        let bytes = facts.len();
        let mut first = [0u8; 8];
        let got = read_up_to(&mut file, &mut first).map_err(io)?;
        let length = check_start(&label, &first[..got], bytes)?;
        let mut text = vec![0u8; length];
        if read_up_to(&mut file, &mut text).map_err(io)? < length {
            return Err(format_error(&label, "it ends inside its header".into()));
        }
        let tensors = header::parse(&label, &text, bytes)?;
        let storage = Storage::File { file: Mutex::new(file), modified: facts.modified().ok() };
        Ok(Self { label, storage, tensors, bytes })
    }

    /// A checkpoint whose bytes are part of the program; `label` names it in errors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_static(label: &str, bytes: &'static [u8]) -> Result<Self, ModelError> {
        let length = check_start(label, &bytes[..bytes.len().min(8)], bytes.len() as u64)?;
        let tensors = header::parse(label, &bytes[8..8 + length], bytes.len() as u64)?;
        Ok(Self {
            label: label.to_owned(),
            storage: Storage::Memory(bytes),
            tensors,
            bytes: bytes.len() as u64,
        })
    }

    /// The file's path, or the name given to [`Checkpoint::from_static`].
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The names of all tensors, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The names that begin with `prefix`, in order.
    pub fn names_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let from =
            self.tensors.range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        from.map(|(name, _)| name.as_str()).take_while(move |name| name.starts_with(prefix))
    }

    /// The shape of a tensor, `None` if there is none of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The type of a tensor as the file names it, e.g. `F16`.
    pub fn type_name(&self, name: &str) -> Option<&str> {
        self.tensors.get(name).map(|entry| entry.type_name.as_str())
    }

    /// Length of the file in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Reads one tensor of type F32, F16, BF16, F8_E4M3 or F64, as f32.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] when it is absent, of another type, or the file has changed or cannot be read.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.read_part(name, Part::WHOLE)
    }

    /// As [`Checkpoint::read_f32`], one part of a tensor whose first axis it divides.
    fn read_part(&self, name: &str, part: Part) -> Result<Vec<f32>, ModelError> {
        let entry = self.entry(name)?;
        let storage = readable(name, entry)?;
        let elements = entry.elements() / part.of;
        let begin = entry.begin + (part.index * elements * storage.bytes()) as u64;
        let end = begin + (elements * storage.bytes()) as u64;
        let mut values = Vec::new();
        values
            .try_reserve_exact(elements)
            .map_err(|_| tensor_error(name, format!("no memory for its {elements} elements")))?;
        match &self.storage {
            Storage::Memory(bytes) => {
                let data = usize::try_from(begin).ok().zip(usize::try_from(end).ok());
                let data = data.and_then(|(begin, end)| bytes.get(begin..end));
                let data = data.ok_or_else(|| tensor_error(name, "its data lies outside the file".into()))?;
                append(&mut values, storage, data);
            }
            Storage::File { file, modified } => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                let failed = |error: std::io::Error| tensor_error(name, format!("{}: {error}", self.label));
                let facts = file.metadata().map_err(failed)?;
                if facts.len() != self.bytes || facts.modified().ok() != *modified {
                    let message = format!("{} has changed since it was opened", self.label);
                    return Err(tensor_error(name, message));
                }
                file.seek(SeekFrom::Start(begin)).map_err(failed)?;
                let mut left = elements * storage.bytes();
                let mut chunk = vec![0u8; left.min(CHUNK_BYTES)];
                while left > 0 {
                    let part = &mut chunk[..left.min(CHUNK_BYTES)];
                    file.read_exact(part).map_err(failed)?;
                    append(&mut values, storage, part);
                    left -= part.len();
                }
            }
        }
        Ok(values)
    }

    /// Checks that a weight is there with the shape wanted and of a type that can be read, without reading it.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] with both shapes.
    pub fn check(&self, spec: &WeightSpec) -> Result<(), ModelError> {
        let Some(entry) = self.tensors.get(&spec.name) else {
            let message = format!("it is not in {}; expected shape {:?}", self.label, spec.shape);
            return Err(tensor_error(&spec.name, message));
        };
        let mut wanted = spec.shape.clone();
        if let Some(first) = wanted.first_mut() {
            *first *= spec.part.of;
        }
        if !same_shape(&entry.shape, &wanted) {
            let message = format!("its shape is {:?}, expected {wanted:?}", entry.shape);
            return Err(tensor_error(&spec.name, message));
        }
        if let Some(norm) = &spec.batch_norm {
            for tensor in BatchNorm::TENSORS {
                self.check(&WeightSpec::whole(norm.tensor(tensor), vec![spec.shape[0]]))?;
            }
        }
        readable(&spec.name, entry).map(|_| ())
    }

    /// Folds a batch norm into values whose first axis is its channels.
    fn fold(&self, norm: &BatchNorm, values: &mut [f32]) -> Result<(), ModelError> {
        let read = |tensor: &str| self.read_f32(&norm.tensor(tensor));
        let (weight, mean, variance) = (read("weight")?, read("running_mean")?, read("running_var")?);
        let is_sound = |value: &f32| value.is_finite() && *value > -BATCH_NORM_EPSILON;
        if let Some(bad) = variance.iter().find(|value| !is_sound(value)) {
            let message = format!("it holds {bad}, expected finite numbers above -{BATCH_NORM_EPSILON}");
            return Err(tensor_error(&norm.tensor("running_var"), message));
        }
        let each = values.len() / weight.len().max(1);
        for (channel, values) in values.chunks_exact_mut(each.max(1)).enumerate() {
            let deviation = (f64::from(variance[channel]) + f64::from(BATCH_NORM_EPSILON)).sqrt();
            let factor = f64::from(weight[channel]) / deviation;
            for value in values {
                let folded = match norm.becomes {
                    Folded::Weight => f64::from(*value) * factor,
                    Folded::Offset => f64::from(*value) - f64::from(mean[channel]) * factor,
                };
                *value = folded as f32;
            }
        }
        Ok(())
    }

    fn entry(&self, name: &str) -> Result<&TensorEntry, ModelError> {
        let absent = || tensor_error(name, format!("it is not in {}", self.label));
        self.tensors.get(name).ok_or_else(absent)
    }
}

impl WeightSource for Checkpoint {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>, ModelError> {
        self.check(spec)?;
        let mut values = self.read_part(&spec.name, spec.part)?;
        if let Some(norm) = &spec.batch_norm {
            self.fold(norm, &mut values)?;
        }
        Ok(values)
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Checkpoint")
            .field("label", &self.label)
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

/// Whether a stored shape can stand for the wanted one: equal but for trailing ones of a 1×1 convolution or of a norm.
fn same_shape(found: &[usize], wanted: &[usize]) -> bool {
    let core = |shape: &[usize]| {
        let mut length = shape.len();
        while length > 2 && shape[length - 1] == 1 {
            length -= 1;
        }
        shape[..length].to_vec()
    };
    let norm =
        wanted.len() == 1 && found.first() == wanted.first() && found.iter().skip(1).all(|side| *side == 1);
    found == wanted || norm || (wanted.len() > 1 && found.len() > 1 && core(found) == core(wanted))
}

fn readable(name: &str, entry: &TensorEntry) -> Result<StorageType, ModelError> {
    match entry.storage {
        None | Some(StorageType::Other(_)) => {
            let message = format!("its type is {}, expected F32, F16, BF16, F8_E4M3 or F64", entry.type_name);
            Err(tensor_error(name, message))
        }
        Some(storage) => Ok(storage),
    }
}

fn append(values: &mut Vec<f32>, storage: StorageType, data: &[u8]) {
    let pairs = || data.as_chunks::<2>().0.iter().copied();
    match storage {
        StorageType::F64 => values.extend(data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32)),
        StorageType::F32 => values.extend(data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b))),
        StorageType::F16 => append_halves(values, data),
        StorageType::BF16 => values.extend(pairs().map(|b| half::bf16::from_le_bytes(b).to_f32())),
        StorageType::F8E4M3 => values.extend(data.iter().map(|&byte| f8_e4m3_to_f32(byte))),
        StorageType::Other(_) => {}
    }
}

/// Appends F16 values, many in each conversion: one by one each would ask what the processor can.
fn append_halves(values: &mut Vec<f32>, data: &[u8]) {
    let mut halves = [f16::ZERO; 1024];
    for pairs in data.as_chunks::<2>().0.chunks(halves.len()) {
        let halves = &mut halves[..pairs.len()];
        for (half, pair) in halves.iter_mut().zip(pairs) {
            *half = f16::from_le_bytes(*pair);
        }
        let start = values.len();
        values.resize(start + halves.len(), 0.0);
        halves.convert_to_f32_slice(&mut values[start..]);
    }
}

/// 8-bit float "E4M3FN": bias 7, no infinities, NaN is all ones but the sign, largest 448.
fn f8_e4m3_to_f32(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(byte >> 3 & 0x0f), f32::from(byte & 0x07));
    if byte & 0x7f == 0x7f {
        return f32::NAN;
    }
    let magnitude = match exponent {
        0 => mantissa * 2f32.powi(-9),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    sign * magnitude
}

/// Checks the first bytes of a file and gives the length of its header.
fn check_start(label: &str, first: &[u8], bytes: u64) -> Result<usize, ModelError> {
    if first.is_empty() {
        return Err(format_error(label, "it is empty".into()));
    }
    let pickle = |kind| ModelError::Pickle { label: label.to_owned(), kind };
    if first.starts_with(b"PK\x03\x04") {
        return Err(pickle("a zip archive as torch.save writes it"));
    }
    if first.starts_with(b"GGUF") {
        return Err(format_error(label, "it is a GGUF file".into()));
    }
    if first.starts_with(b"version ") {
        return Err(format_error(
            label,
            "it is a Git LFS pointer; the file itself was not downloaded".into(),
        ));
    }
    let Ok(first) = <[u8; 8]>::try_from(first) else {
        return Err(format_error(label, format!("it has only {bytes} bytes")));
    };
    let length = match header::header_length(label, first, bytes) {
        // Pickles of protocols 2 to 5 begin so; their next bytes would be those of an impossible length.
        Err(_) if first[0] == 0x80 && (2..=5).contains(&first[1]) => {
            return Err(pickle("it begins with a pickle protocol mark"));
        }
        other => other?,
    };
    usize::try_from(length).map_err(|_| format_error(label, "its header is too long".into()))
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
