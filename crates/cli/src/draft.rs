//! Files that get their names when they are whole.

use std::fs::File;
use std::io::{ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::NamedTempFile;

/// The drafts that are there.
static DRAFTS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn drafts() -> MutexGuard<'static, Vec<PathBuf>> {
    DRAFTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes what is not whole, before the process ends by a signal: nothing gets its name any more.
pub(crate) fn discard_all() {
    let drafts = drafts();
    for draft in drafts.iter() {
        // What cannot be removed is no worse than what the signal would have left.
        let _ = std::fs::remove_file(draft);
    }
    std::mem::forget(drafts);
}

/// Whether `path` is no file of its own: a device, a pipe, or one in `/dev` or `/proc`, as `/dev/stdout` may be a file that
/// whoever opened it goes on with.
pub(crate) fn is_special(path: &Path) -> bool {
    ["/dev", "/proc"].iter().any(|folder| path.starts_with(folder))
        || path.metadata().is_ok_and(|found| !found.is_file())
}

/// A file under another name beside its own, until it is whole; what had the name before stays until then. Links and
/// permissions stay too; owners and further names (hard links) of a file that is replaced do not.
///
/// What is no file, and a folder that takes no other file, is written directly.
pub(crate) struct Draft {
    kind: Kind,
}

enum Kind {
    Direct(File),
    /// With its place among the drafts, its name to be, and whether something has it.
    Beside(NamedTempFile<File>, Listed, PathBuf, bool),
}

/// A name among [`DRAFTS`], for as long as a draft has it.
struct Listed(PathBuf);

impl Listed {
    fn new(path: &Path) -> Listed {
        drafts().push(path.to_owned());
        Listed(path.to_owned())
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        drafts().retain(|other| *other != self.0);
    }
}

impl Draft {
    pub(crate) fn new(path: &Path) -> Result<Draft> {
        let direct = || Ok(Draft { kind: Kind::Direct(File::create(path)?) });
        let own = match path.canonicalize() {
            Ok(own) => own,
            // A link to what is not there yet.
            Err(_) if path.is_symlink() => return direct(),
            Err(_) => path.to_owned(),
        };
        if is_special(path) {
            return direct();
        }
        let found = own.metadata().ok();
        if found.is_some() {
            // Another file could take the place of one that may not be written.
            File::options().write(true).open(&own)?;
        }
        let folder = own.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut prefix = own.file_name().unwrap_or_default().to_owned();
        prefix.push(".");
        let create = |path: &Path| File::options().write(true).create_new(true).open(path);
        let draft = match tempfile::Builder::new().prefix(&prefix).suffix(".part").make_in(folder, create) {
            Ok(draft) => draft,
            Err(error) => {
                return match error.kind() {
                    ErrorKind::PermissionDenied
                    | ErrorKind::ReadOnlyFilesystem
                    | ErrorKind::InvalidFilename => direct(),
                    _ => Err(error),
                };
            }
        };
        let listed = Listed::new(draft.path());
        let draft = Draft { kind: Kind::Beside(draft, listed, own, found.is_some()) };
        if let (Kind::Beside(file, ..), Some(found)) = (&draft.kind, found) {
            file.as_file().set_permissions(found.permissions())?;
        }
        Ok(draft)
    }

    pub(crate) fn file(&mut self) -> &mut File {
        match &mut self.kind {
            Kind::Direct(file) => file,
            Kind::Beside(file, ..) => file.as_file_mut(),
        }
    }

    /// The file is whole.
    pub(crate) fn keep(self) -> Result<()> {
        // The place among the drafts is given up after their lock.
        let Kind::Beside(draft, _listed, own, replaces) = self.kind else { return Ok(()) };
        // A signal that comes now waits for the name, or finds a draft.
        let mut drafts = drafts();
        drafts.retain(|other| other != draft.path());
        match draft.persist(&own) {
            Ok(_) => Ok(()),
            // A file may be mounted, or be another's in a folder where only owners rename.
            Err(failed) if replaces => std::fs::copy(failed.file.path(), &own).map(drop),
            Err(failed) => Err(failed.error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_listed_as_long_as_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        // Those of other tests come and go meanwhile.
        let listed = || drafts().iter().filter(|draft| draft.starts_with(folder.path())).count();
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        let draft = Draft::new(&path).unwrap();
        assert_eq!((listed(), files()), (1, 1));
        drop(draft);
        assert_eq!((listed(), files()), (0, 0));
        Draft::new(&path).unwrap().keep().unwrap();
        assert_eq!((listed(), files(), path.exists()), (0, 1, true));
    }
}
