//! How far a request is, by the bytes that have travelled.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;

/// Bytes between two calls.
const PIECE: usize = 1 << 18;

/// How far a request is. A retry begins with [`Stage::Sending`] again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes of this stage that have travelled.
    pub done: u64,
    /// Bytes of this stage in all; 0 where that is not known.
    pub total: u64,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The request travels. The server computes when all of it has arrived.
    Sending,
    /// The answer travels.
    Receiving,
}

pub(crate) type ProgressCallback = Arc<dyn Fn(Progress) + Send + Sync>;

/// A body that is sent in pieces; `callback` is told when the connection takes one.
pub(crate) fn counted(bytes: Bytes, callback: ProgressCallback) -> reqwest::Body {
    let total = bytes.len();
    let pieces = (0..total).step_by(PIECE).map(move |start| {
        let end = (start + PIECE).min(total);
        callback(Progress { stage: Stage::Sending, done: end as u64, total: total as u64 });
        Ok::<_, Infallible>(bytes.slice(start..end))
    });
    reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
}
