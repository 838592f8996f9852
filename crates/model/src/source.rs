//! Finds the checkpoint file and the config.json that a path stands for.
//!
//! - A directory with a `vae` folder and no checkpoint of its own stands for that folder.
//! - In a directory, the checkpoint is `diffusion_pytorch_model.safetensors`, else
//!   `diffusion_pytorch_model.fp16.safetensors`, else the only `*.safetensors`; the config is its config.json, if any.
//! - A file stands for itself. Only one with diffusers' name takes the config.json beside it, because elsewhere that may
//!   belong to something else.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::ModelError;

const USUAL: [&str; 2] = ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_DIRECTORY_ENTRIES: usize = 100_000;

/// What a path stands for.
#[derive(Debug)]
pub(crate) struct Source {
    pub checkpoint: PathBuf,
    /// The text of config.json.
    pub config: Option<String>,
}

impl Source {
    pub(crate) fn find(path: &Path) -> Result<Self, ModelError> {
        let facts = fs::metadata(path).map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        if facts.is_dir() {
            return Self::find_in(path);
        }
        let diffusers = path.file_name().is_some_and(|name| USUAL.iter().any(|usual| name == *usual));
        let config = match path.parent() {
            Some(directory) if diffusers => read_config(directory)?,
            _ => None,
        };
        Ok(Self { checkpoint: path.to_owned(), config })
    }

    fn find_in(directory: &Path) -> Result<Self, ModelError> {
        if let Some(checkpoint) = checkpoint_in(directory)? {
            return Ok(Self { checkpoint, config: read_config(directory)? });
        }
        let inner = directory.join("vae");
        if inner.is_dir() {
            return match checkpoint_in(&inner)? {
                Some(checkpoint) => Ok(Self { checkpoint, config: read_config(&inner)? }),
                None => Err(nothing_in(&inner)),
            };
        }
        Err(nothing_in(directory))
    }
}

fn checkpoint_in(directory: &Path) -> Result<Option<PathBuf>, ModelError> {
    for usual in USUAL {
        let path = directory.join(usual);
        if path.is_file() {
            return Ok(Some(path));
        }
    }
    // A pipeline's root may hold whole checkpoints beside the folder that is meant.
    if directory.join("vae").is_dir() {
        return Ok(None);
    }
    let mut found = files_with(directory, &["safetensors"])?;
    match found.len() {
        0 => Ok(None),
        1 => Ok(found.pop()),
        count => {
            let names: Vec<String> = found
                .iter()
                .take(4)
                .filter_map(|path| Some(format!("`{}`", path.file_name()?.to_string_lossy())))
                .collect();
            let message = format!(
                "it holds {count} safetensors files ({}{}) and none is named `{}`; name the file itself (files split \
                 into shards have to be joined first)",
                names.join(", "),
                if count > names.len() { ", ..." } else { "" },
                USUAL[0]
            );
            Err(ModelError::Source { path: directory.to_owned(), message })
        }
    }
}

fn files_with(directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, ModelError> {
    let io = |source| ModelError::Io { path: directory.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)?.take(MAX_DIRECTORY_ENTRIES) {
        let path = entry.map_err(io)?.path();
        let matches =
            path.extension().is_some_and(|extension| extensions.iter().any(|wanted| extension == *wanted));
        if matches && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn nothing_in(directory: &Path) -> ModelError {
    let message = match files_with(directory, &["bin", "ckpt", "pt", "pth"]) {
        Err(error) => return error,
        Ok(pickles) => match pickles.first().and_then(|path| path.file_name()) {
            Some(pickle) => format!(
                "it holds no safetensors file, only `{}`, which is a pickle; convert it with safetensors.torch in \
                 Python (name the file itself to see how)",
                pickle.to_string_lossy()
            ),
            None => format!("it holds no safetensors file (expected `{}`)", USUAL[0]),
        },
    };
    ModelError::Source { path: directory.to_owned(), message }
}

fn read_config(directory: &Path) -> Result<Option<String>, ModelError> {
    let path = directory.join("config.json");
    if !path.exists() {
        return Ok(None);
    }
    let failed = |source| ModelError::Io { path: path.clone(), source };
    let mut text = Vec::new();
    let file = File::open(&path).map_err(failed)?;
    file.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        let message = format!("it is longer than {MAX_CONFIG_BYTES} bytes, which no config.json of a VAE is");
        return Err(ModelError::Source { path, message });
    }
    match String::from_utf8(text) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(ModelError::Source { path, message: "it is not UTF-8 text".into() }),
    }
}
