//! Where the work is done and where bytes come from and go to: a model here or a server, files or pipes.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use remote_vae_client::ClientError;
use remote_vae_engine::Autoencoder;

use crate::arguments::{EngineArguments, PlaceArguments};
use crate::local;
use crate::remote::{self, Remote};

/// Opened once for all files.
pub(crate) enum Place {
    Here(Box<Autoencoder>),
    There(Box<Remote>),
}

impl Place {
    /// Opens the place for the work on `files` files; of a single one a bar shows what a server does.
    pub(crate) fn open(arguments: &PlaceArguments, files: usize) -> Result<Place> {
        let Some(url) = &arguments.url else {
            return Ok(Place::Here(Box::new(local::autoencoder(&arguments.model, &arguments.engine)?)));
        };
        refuse_local_arguments(&arguments.engine)?;
        let builder = remote::builder(url, arguments.api_key.as_deref());
        Ok(Place::There(Box::new(Remote::new(builder, files == 1)?)))
    }
}

/// With `--url` the server's engine does the work, so flags for ours would be ignored.
fn refuse_local_arguments(engine: &EngineArguments) -> Result<()> {
    let given = [
        ("--threads", engine.threads.is_some()),
        ("--isa", engine.isa.is_some()),
        ("--memory-budget", engine.memory_budget.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => bail!("{flag} has no effect with --url, where the server computes"),
        None => Ok(()),
    }
}

/// What to do about a key that is missing or wrong, beside the server's words.
pub(crate) fn explained(error: ClientError) -> anyhow::Error {
    match error.status() {
        Some(401) => anyhow::anyhow!("{error} Write `--api-key KEY`, or set REMOTE_VAE_API_KEY."),
        _ => error.into(),
    }
}

/// Whether `path` is `-`: standard input or output.
pub(crate) fn is_pipe(path: &Path) -> bool {
    path == Path::new("-")
}

/// The bytes of a file, or of standard input.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    if !is_pipe(path) {
        return std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
    Ok(bytes)
}

/// Writes a file, or to standard output.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if !is_pipe(path) {
        return std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()));
    }
    let mut output = std::io::stdout().lock();
    output.write_all(bytes)?;
    Ok(output.flush()?)
}

/// A terminal cannot show pictures or tensors.
pub(crate) fn refuse_terminal(output: &Path) -> Result<()> {
    if is_pipe(output) && std::io::stdout().is_terminal() {
        bail!("standard output is a terminal, which cannot show the result; write `> FILE` or `| PROGRAM`");
    }
    Ok(())
}

/// Standard output takes one file.
pub(crate) fn one_result(output: &Path, results: usize) -> Result<()> {
    if is_pipe(output) && results > 1 {
        bail!(
            "standard output takes one file, and there are {results}; use --format safetensors or a folder"
        );
    }
    Ok(())
}
