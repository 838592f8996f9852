//! Tensors in safetensors files: latents in, latents or pixels out.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use remote_vae_wire::{Dtype, bytes_from_elements, elements_from_bytes};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::place;

/// A plain tensor.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub(crate) fn values(&self) -> Vec<f32> {
        elements_from_bytes(self.dtype, &self.bytes)
    }
}

/// The tensor called `key`, else `latents` or `latent`, else the first of the file.
pub(crate) fn read(path: &Path, key: Option<&str>) -> Result<Tensor> {
    let bytes = place::read(path)?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes)
        .with_context(|| format!("{} is not a whole safetensors file", path.display()))?;
    let file = SafeTensors::deserialize(&bytes)?;
    let names = metadata.offset_keys();
    let has = |name: &&str| names.iter().any(|own| own == name);
    let name = match key {
        Some(key) if has(&key) => key,
        Some(key) => {
            bail!("{} holds no tensor {key:?}; it holds {}", path.display(), names.join(", "))
        }
        None => match ["latents", "latent"].into_iter().find(has).or(names.first().map(String::as_str)) {
            Some(name) => name,
            None => bail!("{} holds no tensor", path.display()),
        },
    };
    let view = file.tensor(name)?;
    let dtype = match view.dtype() {
        safetensors::Dtype::F32 => Dtype::Float32,
        safetensors::Dtype::F16 => Dtype::Float16,
        safetensors::Dtype::BF16 => Dtype::BFloat16,
        other => bail!("tensor {name:?} of {} is {other:?}; expected F32, F16 or BF16", path.display()),
    };
    Ok(Tensor { shape: view.shape().to_vec(), dtype, bytes: view.data().to_vec() })
}

/// Writes one f32 tensor.
pub(crate) fn write(path: &Path, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
    let bytes = bytes_from_elements(Dtype::Float32, values);
    let view = TensorView::new(safetensors::Dtype::F32, shape.to_vec(), &bytes)?;
    let file = safetensors::serialize(HashMap::from([(name, view)]), None)?;
    place::write(path, &file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, "pixels", &[1, 2, 1, 1], &[0.5, -1.0]).unwrap();
        let tensor = read(&path, None).unwrap();
        assert_eq!((tensor.shape.as_slice(), tensor.values()), (&[1, 2, 1, 1][..], vec![0.5, -1.0]));
        let message = read(&path, Some("latents")).unwrap_err().to_string();
        assert!(message.contains("\"latents\"") && message.contains("pixels"), "{message}");
    }

    #[test]
    fn a_cut_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.safetensors");
        write(&path, "latents", &[4], &[1.0; 4]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
        assert!(read(&path, None).unwrap_err().to_string().contains("cut.safetensors"));
    }
}
