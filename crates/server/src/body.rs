//! Request bodies: read whole, within the limits of one request and of all together, or thrown away politely.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;

use crate::error::Refusal;

/// Bytes of all bodies held at one time.
#[derive(Debug)]
pub(crate) struct ByteBudget {
    limit: u64,
    held: AtomicU64,
}

impl ByteBudget {
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { limit, held: AtomicU64::new(0) })
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: u64) -> bool {
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

    fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.bytes);
        if !self.budget.take(more) {
            let message = format!(
                "The server holds as many request bodies as it may ({} bytes). Try again shortly.",
                self.budget.limit
            );
            return Err(Refusal::overloaded(message, Duration::from_secs(1)));
        }
        self.bytes += more;
        Ok(())
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
    pub(crate) timeout: Duration,
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

    /// Reads the whole body. The lease must live as long as the bytes do.
    pub(crate) async fn read(
        &self,
        announced: Option<u64>,
        body: &mut Body,
    ) -> Result<(Vec<u8>, Lease), Refusal> {
        let mut lease = Lease::new(self.budget);
        lease.grow_to(announced.unwrap_or(0))?;
        let reading = self.read_frames(announced, body, &mut lease);
        let bytes = tokio::time::timeout(self.timeout, reading).await.map_err(|_| {
            let message = format!("The body did not arrive within {} s.", self.timeout.as_secs_f64());
            Refusal::new(StatusCode::REQUEST_TIMEOUT, message)
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
        const TRUST: u64 = 1 << 20;
        let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(TRUST) as usize);
        while let Some(frame) = body.frame().await {
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
            lease.grow_to(length)?;
            bytes.extend_from_slice(data);
        }
        Ok(bytes)
    }
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
        Reader { max_bytes: 10, timeout: Duration::from_millis(50), budget }
    }

    #[tokio::test]
    async fn limits_and_budget_hold() {
        let budget = ByteBudget::new(15);
        let reader = reader(&budget);
        let (bytes, lease) = reader.read(Some(10), &mut Body::from(vec![1; 10])).await.unwrap();
        assert_eq!((bytes.len(), budget.held()), (10, 10));
        let refusal = reader.read(None, &mut Body::from(vec![1; 6])).await.unwrap_err();
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
