//! Tensors in safetensors files: latents in, latents or pixels out.

use std::path::Path;

use anyhow::{Context, Result, bail};
use remote_vae_wire::{Dtype, bytes_from_elements, elements_from_bytes};
use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, TensorInfo};

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

/// Writes one f32 tensor, a few values at a time.
pub(crate) fn write(path: &Path, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
    const VALUES: usize = 1 << 14;
    let head = head(name, shape, size_of_val(values))?;
    place::write_with(path, |output| {
        output.write_all(&head)?;
        for some in values.chunks(VALUES) {
            output.write_all(&bytes_from_elements(Dtype::Float32, some))?;
        }
        Ok(())
    })
}

/// What comes before the `length` bytes of the file's one tensor.
fn head(name: &str, shape: &[usize], length: usize) -> Result<Vec<u8>> {
    /// The values begin at a multiple of it.
    const ALIGNMENT: usize = 8;
    let data_offsets = (0, length);
    let tensor = TensorInfo { dtype: safetensors::Dtype::F32, shape: shape.to_vec(), data_offsets };
    let metadata = Metadata::new(None, vec![(name.to_owned(), tensor)])?;
    let mut json = serde_json::to_vec(&metadata)?;
    json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
    let mut head = (json.len() as u64).to_le_bytes().to_vec();
    head.extend(json);
    Ok(head)
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, "pixels", &[1, 2, 1, 1], &[0.5, -1.0]).unwrap();
        let (bytes, tensor) = (std::fs::read(&path).unwrap(), read(&path, None).unwrap());
        let view = TensorView::new(safetensors::Dtype::F32, vec![1, 2, 1, 1], &tensor.bytes).unwrap();
        assert_eq!(bytes, safetensors::serialize([("pixels", view)], None).unwrap());
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
