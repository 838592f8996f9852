//! Bytes that wait on the disk for what comes before them in a file.

use std::fs::File;
use std::io::{Result, Seek, Write};
use std::path::Path;

use crate::place;

/// A file without a name, which is gone when this is. It lies in the folder of the file that it is for, or where there is
/// none, or one that takes no file, in that for temporary files.
pub(crate) struct Spool(File);

impl Spool {
    pub(crate) fn new(output: &Path) -> Result<Spool> {
        let folder = output.parent().filter(|_| !place::is_pipe(output));
        let folder = folder.map(|folder| if folder == Path::new("") { Path::new(".") } else { folder });
        let beside = folder.and_then(|folder| tempfile::tempfile_in(folder).ok());
        Ok(Spool(beside.map_or_else(tempfile::tempfile, Ok)?))
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes)
    }

    /// Writes all that was added, in order.
    pub(crate) fn write_to(mut self, output: &mut dyn Write) -> Result<()> {
        self.0.rewind()?;
        std::io::copy(&mut self.0, output).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_comes_back_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for output in [folder.path().join("a.mp4"), folder.path().join("missing/a.mp4"), "-".into()] {
            let (mut spool, mut written) = (Spool::new(&output).unwrap(), b"before".to_vec());
            spool.add(b" and").unwrap();
            spool.add(b" after").unwrap();
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
            spool.write_to(&mut written).unwrap();
            assert_eq!(written, b"before and after");
        }
    }
}
