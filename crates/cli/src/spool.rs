//! Bytes that wait for what comes before them in a file.

use std::fs::File;
use std::io::{Result, Seek, Write};
use std::path::Path;

use crate::{draft, place};

/// A file without a name in the folder of the file that it is for, which is gone when this is. What goes to a pipe or a device
/// touches no disk: it waits in memory, and so it does where the folder takes no file.
pub(crate) enum Spool {
    Disk(File),
    Memory(Vec<u8>),
}

impl Spool {
    pub(crate) fn new(output: &Path) -> Spool {
        let is_file = !place::is_pipe(output) && !draft::is_special(output);
        let folder = output.parent().filter(|_| is_file);
        let folder = folder.map(|folder| if folder == Path::new("") { Path::new(".") } else { folder });
        let file = folder.and_then(|folder| tempfile::tempfile_in(folder).ok());
        file.map_or_else(|| Spool::Memory(Vec::new()), Spool::Disk)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Spool::Disk(file) => file.write_all(bytes),
            Spool::Memory(memory) => memory.write_all(bytes),
        }
    }

    /// Writes all that was added, in order.
    pub(crate) fn write_to(self, output: &mut dyn Write) -> Result<()> {
        match self {
            Spool::Disk(mut file) => {
                file.rewind()?;
                std::io::copy(&mut file, output).map(drop)
            }
            Spool::Memory(memory) => output.write_all(&memory),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_was_added_comes_back_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let of_file = folder.path().join("a.mp4");
        let others = ["-", "/dev/stdout", "/proc/self/fd/1"].map(PathBuf::from);
        for output in [&[of_file.clone(), folder.path().join("missing/a.mp4")], &others[..]].concat() {
            let (mut spool, mut written) = (Spool::new(&output), b"before".to_vec());
            assert_eq!(matches!(spool, Spool::Disk(_)), output == of_file, "{}", output.display());
            spool.add(b" and").unwrap();
            spool.add(b" after").unwrap();
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
            spool.write_to(&mut written).unwrap();
            assert_eq!(written, b"before and after");
        }
    }
}
