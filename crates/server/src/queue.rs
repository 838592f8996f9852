//! The bounded line of jobs in front of the engine: first come, first served, and who leaves frees the place.
//!
//! A request first [reserves](Queue::reserve) a place, so that a full queue refuses before pictures are unpacked,
//! then [submits](Place::submit) its job and waits on the [`Ticket`]. Dropping the ticket takes a waiting job out
//! and tells a running one to stop. The engine's thread, in `worker.rs`, takes jobs from the other end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use remote_vae_engine::{Control, EngineError};
use tokio::sync::oneshot;

use crate::metrics::Metrics;

/// Values and shape `[batch, channels, height, width]` that come out of the engine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) values: Vec<f32>,
    pub(crate) shape: [usize; 4],
}

/// What the engine's thread runs for one request.
pub(crate) type Work = Box<dyn FnOnce(&Control) -> Result<Tensor, EngineError> + Send>;

/// Why a job gave no tensor.
#[derive(Debug)]
pub(crate) enum JobError {
    /// The engine refused or gave up.
    Engine(EngineError),
    /// The engine panicked.
    Panicked,
    /// The server stopped before the job's turn came.
    Stopped,
}

/// What became of a job, and how long it took.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) result: Result<Tensor, JobError>,
    pub(crate) queued: Duration,
    pub(crate) engine: Duration,
}

/// A job in line.
pub(crate) struct Job {
    id: u64,
    pub(crate) control: Control,
    pub(crate) work: Work,
    pub(crate) answer: oneshot::Sender<Done>,
    pub(crate) since: Instant,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    reserved: usize,
    running: Option<Running>,
    closed: bool,
    next_id: u64,
    /// Running mean of the engine's seconds per job; what a client is told to wait rests on it.
    mean_seconds: Option<f64>,
}

struct Running {
    id: u64,
    since: Instant,
    cancel: Arc<AtomicBool>,
}

/// The queue. One per server, shared by handlers and the engine's thread.
pub(crate) struct Queue {
    capacity: usize,
    state: Mutex<State>,
    arrival: Condvar,
    metrics: Arc<Metrics>,
}

/// How the queue stands, for `/info` and `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Occupancy {
    pub(crate) waiting: usize,
    pub(crate) running: usize,
    pub(crate) capacity: usize,
}

/// Why no place could be had.
#[derive(Debug, PartialEq)]
pub(crate) enum NoPlace {
    /// Every place is taken; `retry_after` is when one should be free.
    Full { retry_after: Duration },
    /// The server is stopping.
    Closed,
}

impl Queue {
    pub(crate) fn new(capacity: usize, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { capacity, state: Mutex::default(), arrival: Condvar::new(), metrics })
    }

    /// No code that can panic runs under the lock, so a poisoned one still holds a sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place in the line, or says at once that there is none.
    pub(crate) fn reserve(self: &Arc<Self>) -> Result<Place, NoPlace> {
        let mut state = self.lock();
        if state.closed {
            return Err(NoPlace::Closed);
        }
        if state.waiting.len() + state.reserved >= self.capacity {
            return Err(NoPlace::Full { retry_after: state.expected_wait() });
        }
        state.reserved += 1;
        Ok(Place { queue: Some(Arc::clone(self)) })
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        let state = self.lock();
        Occupancy {
            waiting: state.waiting.len() + state.reserved,
            running: usize::from(state.running.is_some()),
            capacity: self.capacity,
        }
    }

    /// Whether nothing waits and nothing runs.
    pub(crate) fn is_idle(&self) -> bool {
        let occupancy = self.occupancy();
        occupancy.waiting == 0 && occupancy.running == 0
    }

    /// Blocks until a job is due and marks it as running; none once the queue is closed.
    pub(crate) fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                let cancel = job.control.cancel_handle();
                state.running = Some(Running { id: job.id, since: Instant::now(), cancel });
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.arrival.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the job that [`Queue::next`] gave last.
    pub(crate) fn finished(&self, engine: Duration) {
        const WEIGHT: f64 = 0.2;
        let mut state = self.lock();
        state.running = None;
        let seconds = engine.as_secs_f64();
        state.mean_seconds =
            Some(state.mean_seconds.map_or(seconds, |mean| mean + WEIGHT * (seconds - mean)));
    }

    /// Ends a job whose client left just before its turn.
    pub(crate) fn finished_without_work(&self) {
        self.lock().running = None;
    }

    /// Takes no more jobs, drops those that wait and tells the running one to stop.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut state = self.lock();
            state.closed = true;
            if let Some(running) = &state.running {
                running.cancel.store(true, Ordering::Relaxed);
            }
            std::mem::take(&mut state.waiting)
        };
        self.arrival.notify_all();
        drop(dropped);
    }

    /// The client of job `id` is gone.
    fn abandon(&self, id: u64, cancel: &AtomicBool) {
        cancel.store(true, Ordering::Relaxed);
        let (waiting, running) = {
            let mut state = self.lock();
            let position = state.waiting.iter().position(|job| job.id == id);
            let waiting = position.and_then(|position| state.waiting.remove(position));
            (waiting, state.running.as_ref().is_some_and(|running| running.id == id))
        };
        match (waiting.is_some(), running) {
            (true, _) => self.metrics.cancelled("queued"),
            (false, true) => self.metrics.cancelled("running"),
            (false, false) => {}
        }
    }
}

impl State {
    /// When a place should be free: when the running job ends and the first in line moves up.
    fn expected_wait(&self) -> Duration {
        const LONGEST: f64 = 3600.0;
        let mean = self.mean_seconds.unwrap_or(1.0);
        let elapsed = self.running.as_ref().map_or(0.0, |job| job.since.elapsed().as_secs_f64());
        let rest = if elapsed < mean { mean - elapsed } else { mean };
        Duration::from_secs_f64(rest.clamp(0.0, LONGEST))
    }
}

/// A place in the line that is not yet filled; dropping it gives it back.
pub(crate) struct Place {
    queue: Option<Arc<Queue>>,
}

impl Place {
    /// Puts the job in line. The answer comes through the ticket.
    pub(crate) fn submit(mut self, control: Control, work: Work) -> Ticket {
        let (answer, receiver) = oneshot::channel();
        let cancel = control.cancel_handle();
        let since = Instant::now();
        let queue = self.queue.take();
        let mut id = 0;
        if let Some(queue) = &queue {
            let mut state = queue.lock();
            state.reserved = state.reserved.saturating_sub(1);
            id = state.next_id;
            state.next_id += 1;
            if !state.closed {
                state.waiting.push_back(Job { id, control, work, answer, since });
            }
            drop(state);
            queue.arrival.notify_one();
        }
        Ticket { id, queue, cancel, receiver, since }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            let mut state = queue.lock();
            state.reserved = state.reserved.saturating_sub(1);
        }
    }
}

/// The right to one job's answer. Dropping it before the answer cancels the job.
pub(crate) struct Ticket {
    id: u64,
    queue: Option<Arc<Queue>>,
    cancel: Arc<AtomicBool>,
    receiver: oneshot::Receiver<Done>,
    since: Instant,
}

impl Ticket {
    /// Waits for the job's end.
    pub(crate) async fn wait(mut self) -> Done {
        let done = (&mut self.receiver).await;
        self.queue = None;
        done.unwrap_or_else(|_| Done {
            result: Err(JobError::Stopped),
            queued: self.since.elapsed(),
            engine: Duration::ZERO,
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            queue.abandon(self.id, &self.cancel);
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
