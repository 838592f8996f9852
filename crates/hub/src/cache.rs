//! The cache on disk, in the layout of Python's `huggingface_hub`: under `models--owner--name`, `blobs` holds each
//! content once by its etag, `snapshots/COMMIT` the repository's tree as links to blobs, `refs` the commit of each branch
//! or tag, and `.no_exist/COMMIT` marks of files that a commit lacks.
//!
//! A file becomes part of a snapshot only when it is whole, so what is found there can be used.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::HubError;
use crate::choice::{self, Choice};
use crate::report::Report;
use crate::source::Repository;

const MAX_ENTRIES: usize = 10_000;

/// The part of the cache that belongs to a repository at a revision.
pub(crate) struct Shelf {
    cache: PathBuf,
    repository: Repo,
}

/// A model whose files are all in the cache.
#[derive(Debug)]
pub(crate) struct Found {
    pub commit: String,
    pub checkpoint: PathBuf,
    pub config: Option<PathBuf>,
    pub choice: Choice,
}

impl Shelf {
    pub(crate) fn new(cache: &Path, repository: &Repository) -> Shelf {
        let revision = repository.revision().to_owned();
        let repository = Repo::with_revision(repository.id.clone(), RepoType::Model, revision);
        Shelf { cache: cache.to_owned(), repository }
    }

    fn files(&self) -> CacheRepo {
        Cache::new(self.cache.clone()).repo(self.repository.clone())
    }

    fn folder(&self) -> PathBuf {
        self.cache.join(self.repository.folder_name())
    }

    /// Where a file of a commit is, or would be.
    pub(crate) fn snapshot(&self, commit: &str, file: &str) -> PathBuf {
        self.files().pointer_path(commit).join(file)
    }

    /// The commit that the revision stood for when files of it were last downloaded.
    pub(crate) fn commit(&self) -> Option<String> {
        let revision = self.repository.revision();
        if is_commit(revision) {
            return Some(revision.to_ascii_lowercase());
        }
        let text = fs::read_to_string(self.folder().join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// The model in a folder, if all its files are here.
    ///
    /// # Errors
    /// What is missing, for people.
    pub(crate) fn find(&self, folder: Option<&str>) -> Result<Found, String> {
        let usual = || match folder {
            Some(folder) if folder.ends_with(".safetensors") => format!("`{folder}`"),
            Some(folder) => format!("a safetensors file in `{folder}`"),
            None => "a safetensors file".to_owned(),
        };
        let commit = self.commit().ok_or_else(usual)?;
        let root = self.files().pointer_path(&commit);
        let choice = choice::choose(&listing(&root, folder), folder).map_err(|_| usual())?;
        // Without its config, an autoencoder could be taken for another of the same shape.
        let lacks_config =
            || self.folder().join(".no_exist").join(&commit).join(choice.config_path()).exists();
        if choice.config.is_none() && choice.usual() && !lacks_config() {
            return Err(format!("`{}`", choice.config_path()));
        }
        Ok(Found {
            checkpoint: root.join(&choice.checkpoint),
            config: choice.config.as_ref().map(|config| root.join(config)),
            commit,
            choice,
        })
    }

    /// Where the content with this etag is kept.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// Waits until no other process downloads the content with this etag. The lock ends with the file.
    pub(crate) fn lock(&self, etag: &str, report: Report) -> Result<Option<File>, HubError> {
        let path = self.cache.join(".locks").join(self.repository.folder_name()).join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(HubError::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                report.line("waiting for another process that downloads the same file");
                if file.lock().is_err() {
                    return Ok(None);
                }
            }
            // Some network file systems have no locks; the hash of the whole file is checked all the same.
            Err(TryLockError::Error(_)) => return Ok(None),
        }
        Ok(Some(file))
    }

    /// Makes a blob part of a snapshot.
    pub(crate) fn place(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf, HubError> {
        let path = self.snapshot(commit, file);
        if path.is_file() {
            return Ok(path);
        }
        create_parent(&path)?;
        // A link to a blob that was removed.
        if fs::symlink_metadata(&path).is_ok() {
            fs::remove_file(&path).map_err(HubError::io(&path))?;
        }
        let up = "../".repeat(2 + file.matches('/').count());
        link(&PathBuf::from(format!("{up}blobs/{etag}")), &self.blob(etag), &path)
            .map_err(HubError::io(&path))?;
        Ok(path)
    }

    /// Notes that a commit has no such file.
    pub(crate) fn note_absence(&self, commit: &str, file: &str) -> Result<(), HubError> {
        let path = self.folder().join(".no_exist").join(commit).join(file);
        create_parent(&path)?;
        File::create(&path).map(drop).map_err(HubError::io(&path))
    }

    /// Notes which commit the revision stands for.
    pub(crate) fn note_commit(&self, commit: &str) -> Result<(), HubError> {
        if is_commit(self.repository.revision()) || self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        self.files().create_ref(commit).map_err(HubError::io(&self.folder().join("refs")))
    }
}

pub(crate) fn create_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(HubError::io(parent)),
        None => Ok(()),
    }
}

/// Whether this is the full name of a commit.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Files in a folder of a snapshot and in its `vae` folder, as paths in the repository.
fn listing(root: &Path, folder: Option<&str>) -> Vec<String> {
    let folder = match folder {
        Some(file) if file.ends_with(".safetensors") => {
            file.rsplit_once('/').map_or("", |(folder, _)| folder)
        }
        Some(folder) => folder,
        None => "",
    };
    let inner = if folder.is_empty() { "vae".to_owned() } else { format!("{folder}/vae") };
    let mut files = Vec::new();
    for folder in [folder, &inner] {
        let Ok(entries) = fs::read_dir(root.join(folder)) else { continue };
        for entry in entries.take(MAX_ENTRIES).flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            // Follows links: one to a removed blob is no file.
            if entry.path().is_file() {
                files.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        }
    }
    files.sort();
    files
}

#[cfg(unix)]
fn link(relative: &Path, _blob: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Windows allows links to some users only; the others get the file itself.
#[cfg(windows)]
fn link(relative: &Path, blob: &Path, path: &Path) -> std::io::Result<()> {
    let relative: PathBuf = relative.components().collect();
    std::os::windows::fs::symlink_file(relative, path).or_else(|_| fs::rename(blob, path))
}

#[cfg(not(any(unix, windows)))]
fn link(_relative: &Path, blob: &Path, path: &Path) -> std::io::Result<()> {
    fs::rename(blob, path)
}
