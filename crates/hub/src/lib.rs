//! Where models come from: what a user types as SOURCE (a path, `embedded`, an alias such as `sdxl`, or a repository of
//! the Hugging Face hub) becomes an open [`Model`]. Files of repositories are kept in the cache that Python's
//! `huggingface_hub` uses, and found there.
//!
//! [`Source`] is the grammar, [`Alias`] the table of short names, [`Space`] the latent spaces that tensors cannot tell
//! apart, [`Settings`] what the environment says, [`Hub`] the way to the files. Everything here blocks, so none of it
//! may be called from asynchronous code.
#![forbid(unsafe_code)]

mod alias;
mod cache;
mod choice;
mod download;
mod error;
mod fetch;
mod http;
mod report;
mod settings;
mod source;
mod space;

pub use alias::{ALIASES, Alias, alias_table};
pub use error::HubError;
pub use fetch::{Files, Hub};
pub use report::Report;
pub use settings::{Settings, Token};
pub use source::{Place, Repository, Source, short_name};
pub use space::Space;

use remote_vae_model::Model;

/// Opens the model that SOURCE names, downloading its files if they are not in the cache.
///
/// # Errors
/// [`HubError`], each message one sentence for the person who typed SOURCE.
pub fn open(source: &str, settings: &Settings) -> Result<Model, HubError> {
    Source::parse(source)?.open(settings)
}
