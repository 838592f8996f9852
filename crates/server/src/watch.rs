//! Files that may be replaced while the server runs: what tells that one has changed.

use std::path::Path;
use std::time::SystemTime;

/// Time and length of a file; none of a file that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
}

impl Stamp {
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let facts = std::fs::metadata(path).ok()?;
        Some(Self { modified: facts.modified().ok(), length: facts.len() })
    }
}
