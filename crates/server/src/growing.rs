//! Answers whose bytes are made while the engine is still at work: frames of clips and rows of pictures come from the engine's
//! thread, become bytes on a thread beside it, and leave as they are ready, or all together where the answer cannot be sent
//! in parts.
//!
//! What has been made waits here for the client, never the engine: a slow client holds no more than an answer's bytes.
//! Before the first byte a failure is a refusal as any other; after it the connection is closed before the answer's end.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use remote_vae_media::MediaError;
use remote_vae_wire::{Negotiated, TensorHeader};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::answer::{media_refusal, response, wrapped};
use crate::error::Refusal;
use crate::observe::{SharedTrace, Unfinished};
use crate::queue::{Done, Ticket};
use crate::request::{job_refusal, too_late};
use crate::state::{Active, Shared};

/// What a client is told whose answer came to nothing.
const FAILED: &str = "The server failed while making the bytes of the answer.";

/// What comes of the thread that makes bytes.
pub(crate) enum Chunk {
    Bytes(Bytes),
    /// All bytes have come; making them took this long.
    End(Duration),
    Failed(Refusal),
}

/// The client's end of an answer that is being made.
pub(crate) struct Growing {
    negotiated: Negotiated,
    header: Option<TensorHeader>,
    streams: bool,
    chunks: UnboundedReceiver<Chunk>,
}

impl Growing {
    /// `streams` is whether bytes leave before the last one is made.
    pub(crate) fn new(
        negotiated: Negotiated,
        header: Option<TensorHeader>,
        streams: bool,
    ) -> (UnboundedSender<Chunk>, Self) {
        let (sender, chunks) = unbounded_channel();
        (sender, Self { negotiated, header, streams, chunks })
    }

    pub(crate) fn negotiated(&self) -> Negotiated {
        self.negotiated
    }
}

/// Starts the thread in which `making` makes an answer's bytes and sends them. It gives the time that it took, or none when
/// the client or the engine has given up.
pub(crate) fn make(
    chunks: UnboundedSender<Chunk>,
    making: impl FnOnce(&UnboundedSender<Chunk>) -> Result<Option<Duration>, MediaError> + Send + 'static,
) -> std::io::Result<()> {
    let work = move || {
        let end = match catch_unwind(AssertUnwindSafe(|| making(&chunks))) {
            Ok(Ok(None)) => return,
            Ok(Ok(Some(spent))) => Chunk::End(spent),
            Ok(Err(error)) => Chunk::Failed(media_refusal(error)),
            Err(_) => {
                tracing::error!("the making of an answer's bytes panicked; the request is answered with 500");
                Chunk::Failed(Refusal::internal(FAILED))
            }
        };
        let _ = chunks.send(end);
    };
    std::thread::Builder::new().name("answer".to_owned()).spawn(work).map(drop)
}

/// What is noted about the work when it has ended.
pub(crate) struct Account {
    pub(crate) shared: Arc<Shared>,
    pub(crate) trace: SharedTrace,
    pub(crate) operation: &'static str,
    pub(crate) model: String,
    pub(crate) form: &'static str,
    pub(crate) pixels: u64,
    pub(crate) batch: usize,
}

impl Account {
    fn begun(&self, queued: Option<Duration>) {
        self.trace.update(|trace| trace.queued = trace.queued.or(queued));
    }

    fn engine(&self, queued: Duration, engine: Duration) {
        self.trace.update(|trace| (trace.queued, trace.engine) = (Some(queued), Some(engine)));
    }

    fn finished(&self, queued: Duration, engine: Duration, post: Duration) {
        let metrics = &self.shared.metrics;
        metrics.work(self.operation, &self.model, queued, engine);
        metrics.pixels(self.pixels, self.batch);
        metrics.output(self.form, post);
        self.trace.update(|trace| trace.post = Some(post));
    }
}

/// Waits for the first bytes, or for all where they cannot leave earlier, and answers. `deadline` holds for the whole
/// answer.
pub(crate) async fn respond(
    answer: Growing,
    ticket: Ticket,
    account: Account,
    deadline: Option<(Instant, Duration)>,
) -> Result<Response, Refusal> {
    let Growing { negotiated, header, streams, chunks } = answer;
    let active = account.shared.enter();
    let deadline = deadline.map(|(end, limit)| (tokio::time::Instant::from_std(end), limit));
    let mut source = Source { chunks, ticket: Some(ticket), account, deadline, _active: active };
    if !streams {
        let mut bytes = Vec::new();
        while let Some(chunk) = source.next().await? {
            if bytes.is_empty() { bytes = chunk.into() } else { bytes.extend(chunk) }
        }
        let body = wrapped(negotiated.encoding, header.as_ref(), bytes);
        return Ok(response(negotiated, header, body));
    }
    let length = header.as_ref().and_then(|header| header.byte_len().ok()).map(|length| length as u64);
    let first = source.next().await?;
    // All that is known of its times when the head leaves.
    source.account.begun(source.ticket.as_ref().and_then(|ticket| ticket.meter().queued()));
    let body = Streamed { held: first, next: Box::pin(following(source)), left: length };
    let mut response = response(negotiated, header, Body::new(body));
    response.extensions_mut().insert(Unfinished);
    Ok(response)
}

/// Chunks until the end of both the engine's work and the making of bytes.
struct Source {
    chunks: UnboundedReceiver<Chunk>,
    /// Dropping it cancels the job.
    ticket: Option<Ticket>,
    account: Account,
    deadline: Option<(tokio::time::Instant, Duration)>,
    _active: Active,
}

impl Source {
    async fn next(&mut self) -> Result<Option<Bytes>, Refusal> {
        match self.deadline {
            None => self.next_in_time().await,
            Some((end, limit)) => tokio::time::timeout_at(end, self.next_in_time())
                .await
                .unwrap_or_else(|_| Err(too_late(limit))),
        }
    }

    async fn next_in_time(&mut self) -> Result<Option<Bytes>, Refusal> {
        let post = match self.chunks.recv().await {
            Some(Chunk::Bytes(bytes)) => return Ok(Some(bytes)),
            Some(Chunk::Failed(refusal)) => return Err(refusal),
            Some(Chunk::End(post)) => Some(post),
            None => None,
        };
        let Some(ticket) = self.ticket.take() else { return Ok(None) };
        let Done { result, queued, engine } = ticket.wait().await;
        self.account.engine(queued, engine);
        let limit = self.deadline.map_or(Duration::ZERO, |(_, limit)| limit);
        result.map_err(|error| job_refusal(error, limit))?;
        let post = post.ok_or_else(|| Refusal::internal(FAILED))?;
        self.account.finished(queued, engine, post);
        Ok(None)
    }
}

type Following = Pin<Box<dyn Future<Output = (Source, Result<Option<Bytes>, Refusal>)> + Send>>;

async fn following(mut source: Source) -> (Source, Result<Option<Bytes>, Refusal>) {
    let next = source.next().await;
    (source, next)
}

/// The body of an answer that leaves as it is made.
struct Streamed {
    /// The first bytes, or the last.
    held: Option<Bytes>,
    next: Following,
    /// Bytes that are still to come, if that is known.
    left: Option<u64>,
}

impl HttpBody for Streamed {
    type Data = Bytes;
    type Error = Refusal;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Refusal>>> {
        let this = &mut *self;
        if let Some(bytes) = this.held.take_if(|bytes| this.left != Some(bytes.len() as u64)) {
            return Poll::Ready(Some(Ok(this.give(bytes))));
        }
        if this.left == Some(0) {
            return Poll::Ready(None);
        }
        loop {
            let (source, next) = ready!(this.next.as_mut().poll(context));
            this.next = Box::pin(following(source));
            return Poll::Ready(match next {
                Err(refusal) => {
                    tracing::warn!(reason = refusal.message, "an answer under way ends unfinished");
                    Some(Err(refusal))
                }
                // Nobody asks again after the last byte of a known length, so it waits for the end of the work.
                Ok(Some(bytes)) if this.left == Some(bytes.len() as u64) => {
                    this.held = Some(bytes);
                    continue;
                }
                Ok(Some(bytes)) => Some(Ok(this.give(bytes))),
                Ok(None) => this.held.take().map(|bytes| Ok(this.give(bytes))),
            });
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Streamed {
    fn give(&mut self, bytes: Bytes) -> Frame<Bytes> {
        self.left = self.left.map(|left| left.saturating_sub(bytes.len() as u64));
        Frame::data(bytes)
    }
}

#[cfg(test)]
mod tests {
    use remote_vae_wire::{Parameters, negotiate};

    use super::*;
    use crate::options::ServerOptions;
    use crate::queue::{Client, Cost, Work};

    /// The engine has not even begun.
    #[tokio::test]
    async fn who_waits_is_told_at_once_that_bytes_cannot_be_made() {
        let shared = Arc::new(Shared::new(ServerOptions::default(), Vec::new()).unwrap());
        let negotiated = negotiate(&Parameters::default(), None);
        type Making = fn(&UnboundedSender<Chunk>) -> Result<Option<Duration>, MediaError>;
        let fails: Making = |_| Err(MediaError::Unwritable { format: "PNG", reason: "a fault".to_owned() });
        let panics: Making = |_| panic!("on purpose");
        for (making, expected) in [(fails, "a fault"), (panics, FAILED)] {
            for streams in [true, false] {
                let (chunks, answer) = Growing::new(negotiated, None, streams);
                let place = shared.queue.reserve(&Client::Key("one".into()), None).unwrap();
                let cost = Cost { flops: 1, peak_bytes: 1, answer_bytes: 1, kept: false };
                let work: Work = Box::new(|_| unreachable!("nobody runs it"));
                let ticket = place.submit(cost, None, None, work).unwrap();
                make(chunks, making).unwrap();
                let account = Account {
                    shared: Arc::clone(&shared),
                    trace: SharedTrace::default(),
                    operation: "decode",
                    model: "one".to_owned(),
                    form: "png",
                    pixels: 1,
                    batch: 1,
                };
                let outcome =
                    tokio::time::timeout(Duration::from_secs(60), respond(answer, ticket, account, None));
                let refusal = outcome.await.unwrap().unwrap_err();
                assert!(refusal.status == 500 && refusal.message.contains(expected), "{refusal:?}");
                let left = shared.queue.occupancy();
                assert_eq!((left.waiting, left.answer_bytes), (0, 0));
            }
        }
    }
}
