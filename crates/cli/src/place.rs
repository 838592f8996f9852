//! Where the work is done and where bytes come from and go to: a model here or a server, files or pipes.

use std::io::{BufWriter, ErrorKind, IsTerminal, Read, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use remote_vae_client::ClientError;
use remote_vae_engine::Autoencoder;

use crate::arguments::{EngineArguments, PlaceArguments};
use crate::draft::Draft;
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
    write_with(path, |output| Ok(output.write_all(bytes)?))
}

/// As [`write()`], as `make` makes the bytes. A file is there when it is whole (see [`Draft`]).
pub(crate) fn write_with(path: &Path, make: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    if is_pipe(path) {
        let (made, refused) = make_into(std::io::stdout().lock(), make);
        return refused.map_or(made, |error| Err(error.into()));
    }
    let cannot_write = || format!("cannot write {}", path.display());
    let mut draft = Draft::new(path).with_context(cannot_write)?;
    let (made, refused) = make_into(draft.file(), make);
    refused.map_or(Ok(()), Err).with_context(cannot_write)?;
    made?;
    draft.keep().with_context(cannot_write)
}

/// What `make` said, and why `output` took no more of it.
fn make_into<W: Write>(
    output: W,
    make: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> (Result<()>, Option<std::io::Error>) {
    let mut output = BufWriter::with_capacity(BUFFER, Noting { inner: output, refused: None });
    let made = make(&mut output).and_then(|()| Ok(output.flush()?));
    (made, output.into_parts().0.refused)
}

/// Bytes that are written together.
const BUFFER: usize = 64 << 10;

/// Keeps the error of what it writes to: makers of files make texts of them.
struct Noting<W> {
    inner: W,
    refused: Option<std::io::Error>,
}

impl<W> Noting<W> {
    fn note<T>(&mut self, outcome: std::io::Result<T>) -> std::io::Result<T> {
        outcome.map_err(|error| {
            let kind = error.kind();
            // The writer above tries again.
            if kind != ErrorKind::Interrupted {
                self.refused.get_or_insert(error);
            }
            kind.into()
        })
    }
}

impl<W: Write> Write for Noting<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes);
        self.note(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let flushed = self.inner.flush();
        self.note(flushed)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let entries = std::fs::read_dir(folder.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let path = folder.path().join("a.png");
        let half = |path: &Path| {
            write_with(path, |output| {
                output.write_all(&[1; 2 * BUFFER])?;
                assert_eq!(names().len(), 1 + usize::from(path.exists()));
                bail!("the rest never comes")
            })
        };
        assert_eq!(half(&path).unwrap_err().to_string(), "the rest never comes");
        assert!(names().is_empty());
        write(&path, b"before").unwrap();
        half(&path).unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"before");
        write_with(&path, |output| Ok(output.write_all(b"after")?)).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), names()), (b"after".to_vec(), vec!["a.png".into()]));
        let message = format!("{:#}", write(&folder.path().join("no/b.png"), b"").unwrap_err());
        assert!(message.contains("cannot write") && message.contains("b.png"), "{message}");
    }

    #[cfg(unix)]
    #[test]
    fn links_devices_and_permissions_stay() {
        use std::fs::File;
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| folder.path().join(name));
        write(&file, b"before").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
        symlink(&file, &link).unwrap();
        write(&link, b"after").unwrap();
        assert!(link.is_symlink() && std::fs::read(&file).unwrap() == b"after");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let [missing, dangling] = ["missing", "dangling"].map(|name| folder.path().join(name));
        symlink(&missing, &dangling).unwrap();
        write(&dangling, b"after").unwrap();
        assert!(dangling.is_symlink() && std::fs::read(&missing).unwrap() == b"after");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o400)).unwrap();
        // Whoever may write everything may write this.
        if File::options().write(true).open(&file).is_err() {
            write(&file, b"never").unwrap_err();
            assert_eq!(std::fs::read(&file).unwrap(), b"after");
        }
        write(Path::new("/dev/null"), b"nothing").unwrap();
        assert!(!Path::new("/dev/null").is_file());
        if Path::new("/dev/full").exists() {
            let error = write(Path::new("/dev/full"), b"too much").unwrap_err();
            assert!(error.downcast_ref::<std::io::Error>().is_some(), "{error:#}");
        }
    }
}
