//! Request bodies: read whole, within the limits of one request and of all together, or thrown away politely.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;

use crate::error::Refusal;
use crate::memory::Memory;

/// Bytes of all bodies held at one time.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    limit: u64,
    held: AtomicU64,
    /// The account that bodies are a part of.
    memory: OnceLock<Weak<Memory>>,
}

impl ByteBudget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicU64::new(0), memory: OnceLock::new() })
    }

    /// Makes bodies a part of the account `memory`.
    pub(crate) fn count_in(&self, memory: &Arc<Memory>) {
        let _ = self.memory.set(Arc::downgrade(memory));
    }

    fn memory(&self) -> Option<Arc<Memory>> {
        self.memory.get()?.upgrade()
    }

    /// The most that one body could have.
    fn most(&self) -> u64 {
        let all = self.memory().and_then(|memory| memory.limit());
        all.map_or(self.limit, |all| all.min(self.limit))
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
        match self.memory() {
            Some(memory) => memory.take_for_body(bytes, || self.add(bytes)),
            None => self.add(bytes),
        }
    }

    fn add(&self, bytes: u64) -> bool {
        let add = |held: u64| held.checked_add(bytes).filter(|&sum| sum <= self.limit);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }
}

/// A share of the budget; dropping it gives the share back.
#[derive(Debug)]
pub(crate) struct Lease {
    budget: Arc<ByteBudget>,
    bytes: u64,
}

impl Lease {
    fn new(budget: &Arc<ByteBudget>) -> Self {
        Self { budget: Arc::clone(budget), bytes: 0 }
    }

    /// Takes what is missing up to `bytes`, or refuses: with 413 what would never fit, with 429 what does not now.
    pub(crate) fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let limit = self.budget.most();
        if bytes > limit {
            let message =
                format!("This request takes {bytes} bytes; the server holds at most {limit} at one time.");
            return Err(Refusal::too_large(message));
        }
        let more = bytes.saturating_sub(self.bytes);
        if more > 0 && !self.budget.take(more) {
            let message =
                format!("The server has no room for this body now, of {limit} bytes. Try again shortly.");
            return Err(Refusal::overloaded(message, Duration::from_secs(1)));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Lease {
    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back what is more than `bytes`.
    pub(crate) fn shrink_to(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        self.budget.held.fetch_sub(less, Ordering::Relaxed);
        self.bytes -= less;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How bodies are read.
pub(crate) struct Reader<'a> {
    pub(crate) max_bytes: u64,
    /// For the whole body.
    pub(crate) timeout: Duration,
    /// Without a byte.
    pub(crate) idle_timeout: Duration,
    pub(crate) budget: &'a Arc<ByteBudget>,
}

impl Reader<'_> {
    /// Refuses by the announced length, before a byte is read.
    pub(crate) fn check_announced(&self, headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
        let Some(value) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
        let length = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
        let length =
            length.ok_or_else(|| Refusal::bad_request("Expected `content-length` to be a number."))?;
        if length > self.max_bytes { Err(self.too_large(&length.to_string())) } else { Ok(Some(length)) }
    }

    fn too_large(&self, found: &str) -> Refusal {
        Refusal::too_large(format!("Expected a body of at most {} bytes. Got {found}.", self.max_bytes))
    }

    /// Reads the whole body. The lease must live as long as the bytes do. It grows with what has arrived, not with
    /// what is announced: silent connections hold next to nothing.
    pub(crate) async fn read(
        &self,
        announced: Option<u64>,
        body: &mut Body,
    ) -> Result<(Vec<u8>, Lease), Refusal> {
        let mut lease = Lease::new(self.budget);
        let reading = self.read_frames(announced, body, &mut lease);
        let bytes = tokio::time::timeout(self.timeout, reading).await.map_err(|_| {
            late(format!("The body did not arrive within {} s.", self.timeout.as_secs_f64()))
        })??;
        Ok((bytes, lease))
    }

    async fn read_frames(
        &self,
        announced: Option<u64>,
        body: &mut Body,
        lease: &mut Lease,
    ) -> Result<Vec<u8>, Refusal> {
        /// What is reserved at once on a client's word.
        const TRUST: u64 = 64 << 10;
        let first = announced.unwrap_or(0).min(TRUST);
        lease.grow_to(first)?;
        let mut bytes = Vec::with_capacity(first as usize);
        let silent =
            |_| late(format!("No byte of the body arrived for {} s.", self.idle_timeout.as_secs_f64()));
        while let Some(frame) = tokio::time::timeout(self.idle_timeout, body.frame()).await.map_err(silent)? {
            let frame = frame.map_err(|error| {
                Refusal::bad_request(format!(
                    "The body ended before its announced end or is malformed: {error}."
                ))
            })?;
            let Some(data) = frame.data_ref() else { continue };
            let length = bytes.len() as u64 + data.len() as u64;
            if length > self.max_bytes {
                return Err(self.too_large("more"));
            }
            if length > bytes.capacity() as u64 {
                // Twice as much at a time, but never more than announced: what is reserved is what is charged.
                let room = length.max((bytes.capacity() as u64 * 2).min(announced.unwrap_or(self.max_bytes)));
                lease.grow_to(room)?;
                bytes.reserve_exact(room as usize - bytes.len());
            }
            bytes.extend_from_slice(data);
        }
        Ok(bytes)
    }
}

/// 408.
fn late(message: String) -> Refusal {
    Refusal::new(StatusCode::REQUEST_TIMEOUT, message)
}

/// What to do with a body that a refused request still sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// Nothing is left; the connection can go on.
    None,
    /// The answer must say `connection: close`.
    Close,
}

/// Bytes that are cheaper to read than a new connection is.
const SMALL: u64 = 1 << 20;
/// Bytes read after a refusal so that the client, which sends first and reads then, sees the answer at all.
const LINGER_BYTES: u64 = 1 << 30;
/// The time allowed for that.
const LINGER_TIME: Duration = Duration::from_secs(30);

/// Disposes of the rest of a body. Small ones are read here; larger ones beside the answer, whose connection ends.
pub(crate) async fn discard(headers: &HeaderMap, mut body: Body) -> Leftover {
    use axum::body::HttpBody as _;
    if body.is_end_stream() {
        return Leftover::None;
    }
    // Reading would invite the client to send what it has held back.
    if headers.contains_key(header::EXPECT) {
        return Leftover::Close;
    }
    let hint = body.size_hint().upper();
    if hint.is_some_and(|length| length <= SMALL) {
        let reading = read_away(&mut body, SMALL);
        if tokio::time::timeout(Duration::from_secs(1), reading).await == Ok(true) {
            return Leftover::None;
        }
    }
    tokio::spawn(async move {
        let _ = tokio::time::timeout(LINGER_TIME, read_away(&mut body, LINGER_BYTES)).await;
    });
    Leftover::Close
}

/// Whether the end was reached within `limit` bytes.
async fn read_away(body: &mut Body, limit: u64) -> bool {
    let mut seen = 0_u64;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        seen += frame.data_ref().map_or(0, |data| data.len() as u64);
        if seen > limit {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(budget: &Arc<ByteBudget>) -> Reader<'_> {
        let timeout = Duration::from_millis(50);
        Reader { max_bytes: 10, timeout, idle_timeout: timeout, budget }
    }

    #[tokio::test]
    async fn limits_and_budget_hold() {
        let budget = ByteBudget::new(15);
        let reader = reader(&budget);
        let (bytes, lease) = reader.read(Some(10), &mut Body::from(vec![1; 10])).await.unwrap();
        assert_eq!((bytes.len(), budget.held()), (10, 10));
        let refusal = reader.read(Some(6), &mut Body::from(vec![1; 6])).await.unwrap_err();
        assert_eq!((refusal.status, budget.held()), (StatusCode::TOO_MANY_REQUESTS, 10));
        drop(lease);
        assert_eq!(budget.held(), 0);
        let refusal = reader.read(None, &mut Body::from(vec![1; 11])).await.unwrap_err();
        assert_eq!((refusal.status, budget.held()), (StatusCode::PAYLOAD_TOO_LARGE, 0));
    }

    #[tokio::test]
    async fn an_announced_length_is_checked() {
        let budget = ByteBudget::new(15);
        let reader = reader(&budget);
        let headers = |text: &str| HeaderMap::from_iter([(header::CONTENT_LENGTH, text.parse().unwrap())]);
        assert_eq!(reader.check_announced(&headers("10")), Ok(Some(10)));
        assert_eq!(reader.check_announced(&HeaderMap::new()), Ok(None));
        assert_eq!(reader.check_announced(&headers("11")).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(reader.check_announced(&headers("ten")).unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}
