//! What can go wrong with a model: its files, its config, its tensors, and the shapes put into it.

use std::path::PathBuf;

/// Everything this crate reports. Messages name the parameter or tensor, what was found and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A path could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A path holds nothing that can be opened as a model.
    #[error("{}: {message}", path.display())]
    Source {
        /// The file or directory.
        path: PathBuf,
        /// What was found and what was expected.
        message: String,
    },
    /// A checkpoint file is not a well-formed safetensors file.
    #[error("{label}: not a valid safetensors file: {message}")]
    Format {
        /// The file.
        label: String,
        /// What is wrong with it.
        message: String,
    },
    /// A checkpoint is a pickle, which can run code when it is loaded.
    #[error(
        "{label}: this is a pickle ({kind}), which can run code when it is read, so it is not opened. Convert it once \
         in Python: import torch, safetensors.torch as st; d = torch.load({label:?}, weights_only=True, \
         map_location=\"cpu\"); st.save_file({{k: v.contiguous().clone() for k, v in d.get(\"state_dict\", d).items() \
         if hasattr(v, \"contiguous\")}}, \"model.safetensors\")"
    )]
    Pickle {
        /// The file.
        label: String,
        /// How it was recognised.
        kind: &'static str,
    },
    /// A tensor is absent, misshapen, of a type that cannot be read, or could not be read.
    #[error("tensor `{name}`: {message}")]
    Tensor {
        /// Its name in the file.
        name: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A value of config.json is out of its range.
    #[error("config.json: `{key}` is {found}, expected {expected}")]
    Config {
        /// The key.
        key: String,
        /// Its value, shortened.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// The file is a model of a kind that is known but not run, or of no known kind.
    #[error("{0}")]
    Unsupported(String),
    /// The model has no such half.
    #[error("this model has no {half}: its file holds no `{half}.*` tensors")]
    MissingHalf {
        /// `decoder` or `encoder`.
        half: &'static str,
    },
    /// A shape does not fit a layer.
    #[error("{place}: {message}")]
    Shape {
        /// The node or parameter.
        place: String,
        /// What was found and what was expected.
        message: String,
    },
    /// Scaling was asked for that the latent space does not have.
    #[error("{0}")]
    Scaling(String),
    /// A preview was asked for in a latent space without factors.
    #[error("{0}")]
    Preview(String),
}
