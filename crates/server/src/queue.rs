//! The bounded line of jobs in front of the engine. `fair.rs` says in which order they are served; here they are
//! admitted, told their end, and taken out when their client leaves.
//!
//! A request first [reserves](Queue::reserve) a place, so that a full queue refuses before pictures are unpacked,
//! then [submits](Place::submit) its job and waits on the [`Ticket`]. Dropping the ticket takes a waiting job out
//! and tells a running one to stop. The engine's thread, in `worker.rs`, takes jobs from the other end.

mod answers;
mod job;
mod ticket;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::fair::Line;
use crate::memory::{Memory, Share};
use crate::metrics::Metrics;

pub(crate) use job::{Client, Cost, Done, Ended, Job, JobError, Meter, Tensor, Work};
pub(crate) use ticket::{Charge, Place, Ticket};

use answers::Answers;
use job::{Rate, Running};

#[derive(Default)]
struct State {
    line: Line<Client, Job>,
    reserved: HashMap<Client, usize>,
    /// The last one runs between steps of the first.
    running: Vec<Running>,
    answers: Answers,
    closed: bool,
    next_id: u64,
    rate: Rate,
    /// Time in which the engine had a job, without the present one.
    busy: Duration,
}

/// How much may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) jobs: usize,
    /// Of all answers, from admission until they are sent.
    pub(crate) answer_bytes: u64,
    /// Of the plans of two jobs together of which one runs between the other's steps.
    pub(crate) peak_bytes: Option<u64>,
}

/// The queue. One per server, shared by handlers and the engine's thread.
pub(crate) struct Queue {
    bounds: Bounds,
    state: Mutex<State>,
    arrival: Condvar,
    panicked: AtomicBool,
    metrics: Arc<Metrics>,
    /// The account that jobs and answers are a part of. Its lock is always taken before the queue's.
    memory: OnceLock<Weak<Memory>>,
}

/// How the queue stands, for `/info` and `/metrics`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Occupancy {
    pub(crate) waiting: usize,
    pub(crate) running: usize,
    pub(crate) capacity: usize,
    pub(crate) answer_bytes: u64,
    /// Until the engine has done all of it.
    pub(crate) work_seconds: f64,
    /// Time in which the engine had a job, since the start.
    pub(crate) busy_seconds: f64,
}

/// Why no place could be had. `retry_after` is when there should be one.
#[derive(Debug, PartialEq)]
pub(crate) enum NoPlace {
    /// Every place is taken.
    Full { retry_after: Duration },
    /// The places left are kept for clients that have none.
    Kept { retry_after: Duration },
    /// The client may have no more.
    OwnLimit { limit: usize, retry_after: Duration },
    /// There is no room for another answer of this client. When there should be; none if answers that were made have to
    /// leave first.
    Answers { retry_after: Option<Duration> },
    /// The server is stopping.
    Closed,
}

impl Queue {
    pub(crate) fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Arc<Self> {
        let (state, arrival, panicked) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        Arc::new(Self { bounds, state, arrival, panicked, metrics, memory: OnceLock::new() })
    }

    /// Asks the account `memory` before one job runs between another's steps.
    pub(crate) fn count_in(&self, memory: &Arc<Memory>) {
        let _ = self.memory.set(Arc::downgrade(memory));
    }

    /// No code that can panic runs under the lock, so a poisoned one still holds a sound state.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place in the line, or says at once that there is none. The last quarter of the places is for clients that
    /// have none; `limit` is how many the client may have.
    pub(crate) fn reserve(self: &Arc<Self>, client: &Client, limit: Option<usize>) -> Result<Place, NoPlace> {
        let mut state = self.lock();
        if state.closed {
            return Err(NoPlace::Closed);
        }
        let own = state.line.len_of(client) + state.reserved.get(client).copied().unwrap_or(0);
        let (all, jobs) = (state.taken(), self.bounds.jobs);
        let open = if own > 0 { jobs - jobs / 4 } else { jobs };
        if all >= open {
            let retry_after = state.until_started(all - open + 1);
            return Err(if all >= jobs {
                NoPlace::Full { retry_after }
            } else {
                NoPlace::Kept { retry_after }
            });
        }
        if let Some(limit) = limit.filter(|&limit| own >= limit) {
            return Err(NoPlace::OwnLimit { limit, retry_after: state.until_started_of(client) });
        }
        *state.reserved.entry(client.clone()).or_default() += 1;
        Ok(Place { queue: Arc::clone(self), client: client.clone() })
    }

    /// Of each running job, the time since its beginning and the share of its operations that is done.
    pub(crate) fn running(&self) -> Vec<(Duration, f64)> {
        let share = |job: &Running| job.meter.done_flops() as f64 / job.cost.flops.max(1) as f64;
        self.lock().running.iter().map(|job| (job.since.elapsed(), share(job).min(1.0))).collect()
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        let state = self.lock();
        let flops = state.line.total().saturating_add(state.line.left());
        Occupancy {
            waiting: state.taken(),
            running: state.running.len(),
            capacity: self.bounds.jobs,
            answer_bytes: state.answers.total(),
            work_seconds: state.rate_now().time(flops).unwrap_or_default().as_secs_f64(),
            busy_seconds: (state.busy
                + state.running.first().map_or(Duration::ZERO, |job| job.since.elapsed()))
            .as_secs_f64(),
        }
    }

    /// When job `id` should be done; none if it is unknown, or too far back to tell.
    pub(crate) fn until_done(&self, id: u64) -> Option<Duration> {
        const FARTHEST: usize = 256;
        let state = self.lock();
        if let Some(index) = state.running.iter().position(|running| running.id == id) {
            // Those behind it run between its steps.
            return state.running[index..].iter().map(|running| running.left(&state.rate)).sum();
        }
        let order = state.line.forecast(FARTHEST, |_| ());
        let place = order.iter().position(|due| due.id == id)?;
        Some(state.time_of(order[..=place].iter().map(|due| due.cost)))
    }

    /// When the next of the waiting jobs should start.
    pub(crate) fn until_next(&self) -> Duration {
        self.lock().until_started(1)
    }

    /// Whether nothing waits and nothing runs.
    pub(crate) fn is_idle(&self) -> bool {
        let occupancy = self.occupancy();
        occupancy.waiting == 0 && occupancy.running == 0
    }

    /// What the first expectations rest on: a job of `flops` took `time`.
    pub(crate) fn expect(&self, flops: u64, time: Duration) {
        self.lock().rate.note(flops, time);
    }

    /// Blocks until a job is due and marks it as running; none once the queue is closed.
    pub(crate) fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(due) = state.line.next() {
                if let Some(job) = state.begin(due.job) {
                    return Some(job);
                }
            } else if state.closed {
                return None;
            } else {
                state = self.arrival.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// A job that may run before the next step of job `id`, which has come to `done`; marked as running.
    fn between_steps(&self, id: u64, done: u64) -> Option<Job> {
        {
            let mut state = self.lock();
            state.line.advance(id, done);
            if state.line.len() == 0 {
                return None;
            }
        }
        match self.memory.get().and_then(Weak::upgrade) {
            Some(memory) => memory.choose_beside(|fits| self.begin_between_steps(fits)),
            None => self.begin_between_steps(&|_, _| true),
        }
    }

    /// `fits` says whether a job's share of memory is free when answers hold so many bytes.
    fn begin_between_steps(&self, fits: &dyn Fn(&Share, u64) -> bool) -> Option<Job> {
        let mut state = self.lock();
        let [below] = &state.running[..] else { return None };
        let (below, limit, answers) = (below.cost.peak_bytes, self.bounds.peak_bytes, state.answers.total());
        let both_fit = |job: &Job| {
            let together = below.saturating_add(job.cost.peak_bytes);
            limit.is_none_or(|limit| together <= limit)
                && job.share.as_ref().is_none_or(|share| fits(share, answers))
        };
        while let Some(due) = state.line.next_between_steps(both_fit) {
            if let Some(job) = state.begin(due.job) {
                return Some(job);
            }
        }
        None
    }

    /// Ends a running job after `elapsed`; `whole` if it was not given up. The time without other jobs between its steps.
    pub(crate) fn finished(&self, id: u64, elapsed: Duration, whole: bool, done: u64) -> Duration {
        let mut state = self.lock();
        let Some(index) = state.running.iter().position(|running| running.id == id) else { return elapsed };
        let running = state.running.remove(index);
        match state.running.last_mut() {
            Some(below) => below.paused += elapsed,
            None => state.busy += running.since.elapsed(),
        }
        let own = elapsed.saturating_sub(running.paused);
        state.line.advance(id, done);
        state.line.finish(id, whole);
        if done > 0 {
            state.rate.note(done, own);
        }
        drop(state);
        if let Some(cancelled) = running.cancelled {
            self.metrics.stopped(cancelled.elapsed());
        }
        own
    }

    /// A job panicked.
    pub(crate) fn note_panic(&self) {
        self.panicked.store(true, Ordering::Relaxed);
    }

    /// Whether a job panicked since this was last asked.
    pub(crate) fn take_panic(&self) -> bool {
        self.panicked.swap(false, Ordering::Relaxed)
    }

    /// Takes no more jobs, drops those that wait and tells the running ones to stop.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut state = self.lock();
            state.closed = true;
            for running in &state.running {
                running.cancel.store(true, Ordering::Relaxed);
            }
            state.line.clear()
        };
        self.arrival.notify_all();
        drop(dropped);
    }

    /// The client of job `id` is gone.
    fn abandon(&self, client: &Client, id: u64, cancel: &AtomicBool) {
        cancel.store(true, Ordering::Relaxed);
        let mut state = self.lock();
        let waiting = state.line.remove(client, id);
        let running = state.running.iter_mut().find(|running| running.id == id);
        let is_running = running.map(|running| running.cancelled = Some(Instant::now())).is_some();
        drop(state);
        match (waiting.is_some(), is_running) {
            (true, _) => self.metrics.cancelled("queued"),
            (false, true) => self.metrics.cancelled("running"),
            (false, false) => {}
        }
    }
}

impl State {
    fn taken(&self) -> usize {
        self.line.len() + self.reserved.values().sum::<usize>()
    }

    fn give_back(&mut self, client: &Client) {
        if let Some(count) = self.reserved.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                self.reserved.remove(client);
            }
        }
    }

    /// Marks a job as running. One that nobody waits for any more, or whose deadline has passed, never begins.
    fn begin(&mut self, job: Job) -> Option<Job> {
        let expired = job.deadline.is_some_and(|deadline| deadline <= Instant::now());
        if job.answer.is_closed() || expired {
            self.line.finish(job.id, false);
            // The other kind has its own record of the cancellation.
            let result = Err(if expired { JobError::Expired } else { JobError::Stopped });
            let _ = job.answer.send(Ended { result, queued: job.since.elapsed(), engine: Duration::ZERO });
            return None;
        }
        job.meter.begin(job.since.elapsed());
        self.running.push(Running::of(&job));
        Some(job)
    }

    /// When `count` of the waiting jobs should have started.
    fn until_started(&self, count: usize) -> Duration {
        let before = self.line.forecast(count.saturating_sub(1), |_| ());
        self.time_of(before.iter().map(|due| due.cost))
    }

    /// When the first job of `client` should start.
    fn until_started_of(&self, client: &Client) -> Duration {
        let all = self.line.forecast(self.line.len(), |_| ());
        self.time_of(all.iter().take_while(|due| due.client != *client).map(|due| due.cost))
    }

    /// When the answers of jobs that run and wait should have given back `bytes`; none if they are not enough.
    fn until_freed(&self, bytes: u64) -> Option<Duration> {
        let gives = |cost: &Cost| if cost.kept { 0 } else { cost.answer_bytes };
        let running = self.running.iter().fold(0, |sum: u64, job| sum.saturating_add(gives(&job.cost)));
        let mut wanted = bytes.saturating_sub(running);
        if wanted == 0 {
            return Some(self.time_of(std::iter::empty()));
        }
        let order = self.line.forecast(self.line.len(), |job| gives(&job.cost));
        let last = order.iter().position(|due| {
            wanted = wanted.saturating_sub(due.job);
            wanted == 0
        })?;
        Some(self.time_of(order[..=last].iter().map(|due| due.cost)))
    }

    /// The rate of the last jobs, and of what the running one has done so far.
    fn rate_now(&self) -> Rate {
        let mut rate = self.rate;
        if let Some(job) = self.running.first() {
            let done = job.meter.done_flops();
            if done > 0 {
                rate.note(done, job.since.elapsed().saturating_sub(job.paused));
            }
        }
        rate
    }

    /// What is left of the running jobs, and these.
    fn time_of(&self, costs: impl Iterator<Item = u64>) -> Duration {
        const UNKNOWN: Duration = Duration::from_secs(1);
        self.rate_now().time(costs.fold(self.line.left(), u64::saturating_add)).unwrap_or(UNKNOWN)
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
