//! What all handlers share, and the phases of a server's life.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use remote_vae_engine::Autoencoder;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot, watch};

use crate::auth::{Caller, Keys};
use crate::body::ByteBudget;
use crate::error::{Refusal, ServerError};
use crate::jobs::Jobs;
use crate::memory::{Memory, NoRoom};
use crate::metrics::{Metrics, Rejection};
use crate::options::{Limits, ServerOptions};
use crate::queue::{Bounds, NoPlace, Place, Queue};
use crate::turns::Turns;

/// A model and the name it is served under: `POST /NAME`. The first of a server is its default.
#[derive(Clone)]
pub struct ModelEntry {
    /// Letters, digits, `.`, `_` and `-`; not the name of one of the server's own routes.
    pub name: String,
    /// The model.
    pub autoencoder: Arc<Autoencoder>,
}

/// First path segments that belong to the server.
const RESERVED: [&str; 17] = [
    "api-doc", "decode", "docs", "encode", "health", "info", "jobs", "livez", "metrics", "models", "ping",
    "predict", "readyz", "static", "status", "v1", "v2",
];

/// Checks that names are fit for paths and that there is a default.
pub(crate) fn check_models(models: &[ModelEntry]) -> Result<(), ServerError> {
    if models.is_empty() {
        return Err(ServerError::NoModel);
    }
    for (index, ModelEntry { name, .. }) in models.iter().enumerate() {
        let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if name.is_empty() || !plain || name.starts_with('.') || RESERVED.contains(&name.as_str()) {
            return Err(ServerError::ModelName { name: name.clone() });
        }
        if models.iter().take(index).any(|other| other.name == *name) {
            return Err(ServerError::DuplicateModel { name: name.clone() });
        }
    }
    Ok(())
}

/// Where a server stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Weights are being read.
    Loading,
    /// Work is taken.
    Ready,
    /// No new work is taken; what was accepted is finished.
    Draining,
}

impl Phase {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Phase::Loading => "loading",
            Phase::Ready => "ready",
            Phase::Draining => "draining",
        }
    }
}

/// One server's state.
pub(crate) struct Shared {
    pub(crate) options: ServerOptions,
    pub(crate) models: Vec<ModelEntry>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) budget: Arc<ByteBudget>,
    pub(crate) memory: Arc<Memory>,
    /// What the process held when it had become ready, without weights.
    pub(crate) idle_bytes: OnceLock<u64>,
    pub(crate) keys: Keys,
    pub(crate) jobs: Jobs,
    /// At previews.
    pub(crate) turns: Arc<Turns>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) started: Instant,
    #[cfg(feature = "otlp")]
    pub(crate) exporter: Option<crate::otlp::Exporter>,
    /// Requests for work between their head and their answer's head.
    active: AtomicUsize,
    /// Threads that unpack and compress pictures at one time.
    pictures: Arc<Semaphore>,
    /// Threads that search for plans at one time.
    searches: Arc<Semaphore>,
}

/// What a client is told to wait while models load or a replacement starts.
const PHASE_RETRY: Duration = Duration::from_secs(5);

/// When to come back if answers that are being sent hold all the room there is.
const ANSWER_RETRY: Duration = Duration::from_secs(1);

fn bounds(limits: &Limits, work: Option<u64>) -> Bounds {
    Bounds {
        jobs: limits.max_queue,
        answer_bytes: limits.max_answer_bytes,
        peak_bytes: limits.max_plan_bytes.into_iter().chain(work).min(),
    }
}

impl Shared {
    /// # Errors
    /// The file of keys cannot be used, or the collector's address is none.
    pub(crate) fn new(options: ServerOptions, models: Vec<ModelEntry>) -> Result<Self, ServerError> {
        let keys = Keys::new(options.api_keys.clone(), options.api_key_file.as_deref())?;
        let metrics = Arc::new(Metrics::new());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let budget = ByteBudget::new(options.limits.max_held_bytes);
        let work = models.iter().filter_map(|entry| entry.autoencoder.engine().work_budget()).min();
        let bounds = bounds(&options.limits, work);
        let queue = Queue::new(bounds, Arc::clone(&metrics));
        Ok(Self {
            memory: Memory::new(work, &models, &budget, &queue),
            idle_bytes: OnceLock::new(),
            queue,
            budget,
            phase: watch::Sender::new(Phase::Loading),
            started: Instant::now(),
            #[cfg(feature = "otlp")]
            exporter: options.otlp_endpoint.as_deref().map(crate::otlp::Exporter::start).transpose()?,
            active: AtomicUsize::new(0),
            pictures: Arc::new(Semaphore::new(cores.max(2))),
            turns: Turns::new(cores, options.limits.max_queue),
            searches: Arc::new(Semaphore::new((cores / 4).max(1))),
            jobs: Jobs::new(options.limits.max_jobs, options.job_ttl),
            options,
            models,
            metrics,
            keys,
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Refuses work unless it is taken, and counts the refusal.
    pub(crate) fn check_ready(&self) -> Result<(), Refusal> {
        self.check_ready_quietly().inspect_err(|_| self.metrics.rejected(Rejection::Draining))
    }

    /// As [`Shared::check_ready`], for probes.
    pub(crate) fn check_ready_quietly(&self) -> Result<(), Refusal> {
        let message = match self.phase() {
            Phase::Ready => return Ok(()),
            Phase::Loading => "The server is loading its models. Try again shortly.",
            Phase::Draining => "The server is shutting down. Try again shortly.",
        };
        Err(Refusal::unavailable(message, PHASE_RETRY))
    }

    /// A place in the queue, or 429.
    pub(crate) fn reserve(&self, caller: &Caller) -> Result<Place, Refusal> {
        self.queue.reserve(&caller.client, caller.max_queue).map_err(|error| self.no_place(error))
    }

    /// What a client is told that got no place.
    pub(crate) fn no_place(&self, error: NoPlace) -> Refusal {
        let limits = &self.options.limits;
        let (reason, message, retry_after) = match error {
            NoPlace::Closed => {
                self.metrics.rejected(Rejection::Draining);
                return Refusal::unavailable("The server is shutting down. Try again shortly.", PHASE_RETRY);
            }
            NoPlace::Full { retry_after } => {
                let message = format!("The queue is full: {} requests wait. Try again.", limits.max_queue);
                (Rejection::Overloaded, message, retry_after)
            }
            NoPlace::Kept { retry_after } => {
                let message =
                    "The queue is nearly full; the places left are for clients that have none. Try again.";
                (Rejection::Overloaded, message.to_owned(), retry_after)
            }
            NoPlace::OwnLimit { limit, retry_after } => {
                let message = format!("Your key may have {limit} requests in the queue. Try again.");
                (Rejection::Client, message, retry_after)
            }
            NoPlace::Answers { retry_after } => {
                let limit = limits.max_answer_bytes;
                let message = format!(
                    "The server holds as many answers as it may ({limit} bytes, the last quarter for clients that hold \
                     little). Try again."
                );
                // What is made leaves at once, but for the results that wait to be fetched.
                let leaving = || self.jobs.until_expiry().unwrap_or(ANSWER_RETRY);
                (Rejection::Answers, message, retry_after.unwrap_or_else(leaving))
            }
        };
        self.metrics.rejected(reason);
        Refusal::overloaded(message, retry_after)
    }

    /// What a client is told for whose job there is no memory.
    pub(crate) fn no_memory(&self, error: NoRoom) -> Refusal {
        self.metrics.rejected(Rejection::Memory);
        match error {
            NoRoom::Never { need, limit } => Refusal::too_large(format!(
                "This request needs {need} bytes of memory with its answer; the server's budget leaves {limit} for work."
            )),
            NoRoom::Now { limit } => Refusal::overloaded(
                format!(
                    "Requests before this one have taken the server's memory ({limit} bytes for work). Try again."
                ),
                self.until_room(),
            ),
        }
    }

    /// When the next job starts, which gives its body back; where none runs or waits, when the first result that is kept
    /// for its client expires.
    fn until_room(&self) -> Duration {
        let occupancy = self.queue.occupancy();
        match (occupancy.waiting + occupancy.running, self.jobs.until_expiry()) {
            (0, Some(expiry)) => expiry,
            _ => self.queue.until_next(),
        }
    }

    /// Counts the refusals of requests for whose bytes there is no room, and says when there should be. Bodies that are
    /// still arriving go on before results expire.
    pub(crate) fn no_room(&self, refusal: Refusal) -> Refusal {
        if refusal.status != StatusCode::TOO_MANY_REQUESTS {
            return refusal;
        }
        self.metrics.rejected(Rejection::Bodies);
        let retry_after = if self.budget.held() > 0 { self.queue.until_next() } else { self.until_room() };
        Refusal::overloaded(refusal.message, retry_after)
    }

    /// What threads that compress pictures take permits of, and the runtime to wait in.
    pub(crate) fn pictures(&self) -> (Arc<Semaphore>, Handle) {
        (Arc::clone(&self.pictures), Handle::current())
    }

    /// Runs work on pictures beside the event loop, a few at a time.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let failed = || Refusal::internal("The server failed while handling a picture.");
        beside(&self.pictures, work).await.ok_or_else(failed)
    }

    /// Runs the search for a plan beside the event loop, fewer at a time than there are processors.
    pub(crate) async fn searching<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let failed = || Refusal::internal("The server failed while planning the work.");
        beside(&self.searches, work).await.ok_or_else(failed)
    }

    /// Counts a request for work as active for as long as the guard lives.
    pub(crate) fn enter(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::SeqCst);
        Active(Arc::clone(self))
    }

    /// Whether no request is being worked on.
    pub(crate) fn is_idle(&self) -> bool {
        self.active.load(Ordering::SeqCst) == 0 && self.queue.is_idle()
    }
}

/// Runs `work` on a thread of its own once there is a permit; none if it panicked. A request that is dropped meanwhile
/// leaves the work running to its end: what bounds it (the permit here, places and leases in `work`) stays taken until
/// then.
async fn beside<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    let (answer, receiver) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        if !answer.is_closed() {
            let _ = answer.send(work());
        }
    });
    receiver.await.ok()
}

/// An active request.
pub(crate) struct Active(Arc<Shared>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_goes_on_with_its_permit_when_its_request_is_dropped() {
        let shared = Shared::new(ServerOptions::default(), Vec::new()).unwrap();
        let permits = shared.pictures.available_permits();
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(std::sync::Mutex::new(gate));
        for _ in 0..permits {
            let (started, begun) = oneshot::channel();
            let gate = Arc::clone(&gate);
            let work = move || {
                let _ = started.send(());
                let _ = gate.lock().map(|gate| gate.recv());
            };
            tokio::select! {
                _ = shared.blocking(work) => panic!("the work ended early"),
                _ = begun => {}
            }
        }
        assert_eq!(shared.pictures.available_permits(), 0);
        let more = tokio::time::timeout(Duration::from_millis(50), shared.blocking(|| ()));
        assert!(more.await.is_err());
        for _ in 0..permits {
            release.send(()).unwrap();
        }
        assert!(shared.blocking(|| ()).await.is_ok());
        let panicking = shared.blocking::<()>(|| panic!("on purpose"));
        assert_eq!(panicking.await.unwrap_err().status, 500);
    }
}
