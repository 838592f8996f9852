//! What can go wrong between a SOURCE and an open model, said so that the user knows what to do about it.

use std::path::{Path, PathBuf};

use remote_vae_model::ModelError;

/// Everything this crate reports. No message holds a token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// SOURCE is nothing that is known.
    #[error("{text:?} is no model: {reason}")]
    Source {
        /// What was typed.
        text: String,
        /// What is wrong with it, and near names.
        reason: String,
    },
    /// A file has to be downloaded, but that is forbidden.
    #[error(
        "HF_HUB_OFFLINE is set, and {what} of `{repository}` (revision {revision}) is not in the cache {}; unset \
         HF_HUB_OFFLINE to download it, or copy the cache of a machine that has it",
        cache.display()
    )]
    Offline {
        /// `owner/name`.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
        /// The files that are missing.
        what: String,
        /// Where they were looked for.
        cache: PathBuf,
    },
    /// The licence of a repository has to be accepted first.
    #[error("{}", gated(repository, page, *token_sent))]
    Gated {
        /// `owner/name`.
        repository: String,
        /// Where the licence is accepted.
        page: String,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// The hub does not know the token.
    #[error(
        "{host} refused the token; set HF_TOKEN to a valid one (an expired or mistyped token is refused even for public \
         repositories)"
    )]
    Token {
        /// The hub's host.
        host: String,
    },
    /// No such repository, or a private one.
    #[error("{host} has no repository `{repository}`{}", hidden(*token_sent))]
    NoRepository {
        /// `owner/name`.
        repository: String,
        /// The hub's host.
        host: String,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// No such branch, tag or commit.
    #[error("the repository `{repository}` has no revision `{revision}`")]
    NoRevision {
        /// `owner/name`.
        repository: String,
        /// What was asked for.
        revision: String,
    },
    /// The repository holds nothing that can be used there.
    #[error("the repository `{repository}` {reason}")]
    NoFile {
        /// `owner/name`.
        repository: String,
        /// What was looked for and what was found.
        reason: String,
    },
    /// The hub cannot be reached, or the connection broke too often.
    #[error("{}", unreached(host, reason, *resumes))]
    Network {
        /// The host.
        host: String,
        /// The innermost cause.
        reason: String,
        /// Whether a part was received and kept.
        resumes: bool,
    },
    /// The hub answered with a status that means nothing to us.
    #[error("{host} answered {status} for {what}")]
    Status {
        /// The host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
    },
    /// The hub's answer is not one of the hub's.
    #[error("{host} does not answer as the Hugging Face hub does: {reason}")]
    Protocol {
        /// The host.
        host: String,
        /// What is missing or wrong.
        reason: String,
    },
    /// What arrived is not what the hub announced.
    #[error("`{file}` arrived damaged twice ({reason}); it was not kept")]
    Damaged {
        /// The file in the repository.
        file: String,
        /// What differs.
        reason: String,
    },
    /// No room for the file.
    #[error("no space left for `{file}`{} in {}", needs(*bytes), cache.display())]
    DiskFull {
        /// The file in the repository.
        file: String,
        /// Its length.
        bytes: Option<u64>,
        /// Where it was to be kept.
        cache: PathBuf,
    },
    /// The cache could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A setting cannot be used.
    #[error("{name} {reason}")]
    Setting {
        /// The variable.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The model has another latent space than the one that was named.
    #[error("the latent space `{space}` does not fit: {reason}")]
    Space {
        /// The space.
        space: &'static str,
        /// What differs.
        reason: String,
    },
    /// The files were found but are no model that can be run.
    #[error("{}", with_label(label, source))]
    Model {
        /// Where the model came from.
        label: String,
        /// What is wrong.
        source: ModelError,
    },
}

impl HubError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> HubError + '_ {
        move |source| HubError::Io { path: path.to_owned(), source }
    }
}

fn gated(repository: &str, page: &str, token_sent: bool) -> String {
    if token_sent {
        format!(
            "the token has no access to `{repository}`: accept the licence at {page} with the token's own account, and \
             let the token read gated repositories"
        )
    } else {
        format!(
            "`{repository}` needs a token: accept its licence at {page} and set HF_TOKEN to a token of that account"
        )
    }
}

fn unreached(host: &str, reason: &str, resumes: bool) -> String {
    if resumes {
        format!(
            "the connection to {host} broke ({reason}); what has arrived is kept, and the next start resumes it"
        )
    } else {
        format!(
            "cannot reach {host} ({reason}); without a network, name a folder or a .safetensors file on this machine \
             instead, or set HF_ENDPOINT to a mirror or HTTPS_PROXY to a proxy that can be reached"
        )
    }
}

fn hidden(token_sent: bool) -> &'static str {
    if token_sent {
        " that the token may read"
    } else {
        " for everyone; if it is a private one, set HF_TOKEN"
    }
}

fn needs(bytes: Option<u64>) -> String {
    bytes.map_or_else(String::new, |bytes| format!(", which has {:.1} MB,", bytes as f64 / 1e6))
}

/// The model's error, with the name of the file in front unless it tells that itself.
fn with_label(label: &str, source: &ModelError) -> String {
    let text = source.to_string();
    if text.contains(label) { text } else { format!("{label}: {text}") }
}
