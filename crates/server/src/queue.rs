//! The bounded line of jobs in front of the engine. `fair.rs` says in which order they are served; here they are
//! admitted, told their end, and taken out when their client leaves.
//!
//! A request first [reserves](Queue::reserve) a place, so that a full queue refuses before pictures are unpacked,
//! then [submits](Place::submit) its job and waits on the [`Ticket`]. Dropping the ticket takes a waiting job out
//! and tells a running one to stop. The engine's thread, in `worker.rs`, takes jobs from the other end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use remote_vae_engine::{Control, EngineError, Progress};
use tokio::sync::oneshot;

use crate::body::ByteBudget;
use crate::fair::Line;
use crate::metrics::Metrics;
use crate::worker;

/// Values and shape `[batch, channels, height, width]` that come out of the engine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) values: Vec<f32>,
    pub(crate) shape: [usize; 4],
}

/// What the engine's thread runs for one request.
pub(crate) type Work = Box<dyn FnOnce(&Control) -> Result<Tensor, EngineError> + Send>;

/// Among whom the engine is shared: those who send one key, or come from one address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Client {
    /// By the key's name.
    Key(Arc<str>),
    Address(IpAddr),
}

impl Client {
    /// Who calls from this address. A machine has as many IPv6 addresses as it likes below its first 64 bits.
    pub(crate) fn at(address: IpAddr) -> Self {
        const NETWORK: u128 = !(u64::MAX as u128);
        match address.to_canonical() {
            IpAddr::V6(address) => Client::Address(IpAddr::V6((address.to_bits() & NETWORK).into())),
            address => Client::Address(address),
        }
    }
}

/// What the plan says of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Floating-point operations.
    pub(crate) flops: u64,
    /// Memory while it runs.
    pub(crate) peak_bytes: u64,
    /// What comes out of the engine, held until the answer is sent.
    pub(crate) answer_bytes: u64,
}

/// Why a job gave no tensor.
#[derive(Debug)]
pub(crate) enum JobError {
    /// The engine refused or gave up.
    Engine(EngineError),
    /// The engine panicked.
    Panicked,
    /// The deadline passed before the job's turn came.
    Expired,
    /// The server stopped before the job's turn came.
    Stopped,
}

/// What became of a job, and how long it took.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) result: Result<Tensor, JobError>,
    pub(crate) queued: Duration,
    /// Without the time of jobs that ran between its steps.
    pub(crate) engine: Duration,
}

/// How far a job has come. Written by the engine's thread.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    started: AtomicBool,
    done: AtomicU64,
    /// What a run before the present one of the same job had done; clips take several.
    before: AtomicU64,
    last: AtomicU64,
}

impl Meter {
    /// Whether the engine has begun.
    pub(crate) fn has_started(&self) -> bool {
        self.started.load(Ordering::Relaxed)
    }

    /// Floating-point operations done.
    pub(crate) fn done_flops(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn note(&self, progress: Progress) -> u64 {
        let last = self.last.swap(progress.done_flops, Ordering::Relaxed);
        if progress.done_flops < last {
            self.before.fetch_add(last, Ordering::Relaxed);
        }
        let done = self.before.load(Ordering::Relaxed).saturating_add(progress.done_flops);
        self.done.store(done, Ordering::Relaxed);
        done
    }
}

/// A job in line, or just taken from it.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) control: Control,
    pub(crate) work: Work,
    pub(crate) since: Instant,
    pub(crate) meter: Arc<Meter>,
    pub(crate) cost: Cost,
    pub(crate) answer: oneshot::Sender<Ended>,
    deadline: Option<Instant>,
}

/// What the engine's thread tells of a job.
pub(crate) struct Ended {
    pub(crate) result: Result<Tensor, JobError>,
    pub(crate) queued: Duration,
    pub(crate) engine: Duration,
}

/// A job that the engine works on.
struct Running {
    id: u64,
    since: Instant,
    meter: Arc<Meter>,
    flops: u64,
    peak_bytes: u64,
    cancel: Arc<AtomicBool>,
    cancelled: Option<Instant>,
    /// Time of jobs that ran between its steps.
    paused: Duration,
}

/// Operations and seconds of the last jobs, the latest counting most.
#[derive(Debug, Default, Clone, Copy)]
struct Rate {
    flops: f64,
    seconds: f64,
}

impl Rate {
    const MEMORY: f64 = 0.8;

    fn note(&mut self, flops: u64, time: Duration) {
        self.flops = self.flops * Self::MEMORY + flops as f64;
        self.seconds = self.seconds * Self::MEMORY + time.as_secs_f64();
    }

    /// None before the first job.
    fn time(&self, flops: u64) -> Option<Duration> {
        const LONGEST: f64 = 86_400.0;
        let seconds = flops as f64 * self.seconds / self.flops;
        seconds.is_finite().then(|| Duration::from_secs_f64(seconds.clamp(0.0, LONGEST)))
    }
}

#[derive(Default)]
struct State {
    line: Line<Client, Job>,
    reserved: HashMap<Client, usize>,
    /// The last one runs between steps of the first.
    running: Vec<Running>,
    answer_bytes: u64,
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
    /// What is held beside plans and answers.
    bodies: OnceLock<Arc<ByteBudget>>,
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
    /// There is no room for another answer.
    Answers { retry_after: Duration },
    /// The server is stopping.
    Closed,
}

impl Queue {
    pub(crate) fn new(bounds: Bounds, metrics: Arc<Metrics>) -> Arc<Self> {
        let (state, arrival, panicked) = (Mutex::default(), Condvar::new(), AtomicBool::new(false));
        Arc::new(Self { bounds, state, arrival, panicked, metrics, bodies: OnceLock::new() })
    }

    /// Leaves room for `bodies` where one job runs between another's steps.
    pub(crate) fn count_beside(&self, bodies: &Arc<ByteBudget>) {
        let _ = self.bodies.set(Arc::clone(bodies));
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
        let share = |job: &Running| job.meter.done_flops() as f64 / job.flops.max(1) as f64;
        self.lock().running.iter().map(|job| (job.since.elapsed(), share(job).min(1.0))).collect()
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        let state = self.lock();
        let flops = state.line.total().saturating_add(state.line.left());
        Occupancy {
            waiting: state.taken(),
            running: state.running.len(),
            capacity: self.bounds.jobs,
            answer_bytes: state.answer_bytes,
            work_seconds: state.rate.time(flops).unwrap_or_default().as_secs_f64(),
            busy_seconds: (state.busy
                + state.running.first().map_or(Duration::ZERO, |job| job.since.elapsed()))
            .as_secs_f64(),
        }
    }

    /// When job `id` should be done; none if it is unknown, or too far back to tell.
    pub(crate) fn until_done(&self, id: u64) -> Option<Duration> {
        const FARTHEST: usize = 256;
        let state = self.lock();
        if state.running.iter().any(|running| running.id == id) {
            return state.rate.time(state.line.left());
        }
        let order = state.line.forecast(FARTHEST);
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
        let mut state = self.lock();
        state.line.advance(id, done);
        let [below] = &state.running[..] else { return None };
        let (below, limit) = (below.peak_bytes, self.bounds.peak_bytes);
        let bodies = self.bodies.get().map_or(0, |bodies| bodies.held());
        let held = below.saturating_add(bodies).saturating_add(state.answer_bytes);
        let fits = |job: &Job| limit.is_none_or(|limit| held.saturating_add(job.cost.peak_bytes) <= limit);
        while let Some(due) = state.line.next_between_steps(fits) {
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
        job.meter.started.store(true, Ordering::Relaxed);
        self.running.push(Running {
            id: job.id,
            since: Instant::now(),
            meter: Arc::clone(&job.meter),
            flops: job.cost.flops,
            peak_bytes: job.cost.peak_bytes,
            cancel: job.control.cancel_handle(),
            cancelled: None,
            paused: Duration::ZERO,
        });
        Some(job)
    }

    /// When `count` of the waiting jobs should have started.
    fn until_started(&self, count: usize) -> Duration {
        let before = self.line.forecast(count.saturating_sub(1));
        self.time_of(before.iter().map(|due| due.cost))
    }

    /// When the first job of `client` should start.
    fn until_started_of(&self, client: &Client) -> Duration {
        let all = self.line.forecast(self.line.len());
        self.time_of(all.iter().take_while(|due| due.client != *client).map(|due| due.cost))
    }

    /// What is left of the running jobs, and these.
    fn time_of(&self, costs: impl Iterator<Item = u64>) -> Duration {
        const UNKNOWN: Duration = Duration::from_secs(1);
        self.rate.time(costs.fold(self.line.left(), u64::saturating_add)).unwrap_or(UNKNOWN)
    }
}

/// A place in the line that is not yet filled; dropping it gives it back.
pub(crate) struct Place {
    queue: Arc<Queue>,
    client: Client,
}

impl State {
    fn give_back(&mut self, client: &Client) {
        if let Some(count) = self.reserved.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                self.reserved.remove(client);
            }
        }
    }
}

impl Place {
    /// Puts the job in line, unless there is no room for its answer. The answer comes through the ticket.
    pub(crate) fn submit(self, cost: Cost, deadline: Option<Instant>, work: Work) -> Result<Ticket, NoPlace> {
        let (queue, client) = (Arc::clone(&self.queue), self.client.clone());
        let mut state = queue.lock();
        if state.closed {
            return Err(NoPlace::Closed);
        }
        // One that is larger than the bound is taken when it is alone: it could never be otherwise.
        let together = state.answer_bytes.saturating_add(cost.answer_bytes);
        if state.answer_bytes > 0 && together > queue.bounds.answer_bytes {
            return Err(NoPlace::Answers { retry_after: state.until_started(1) });
        }
        state.answer_bytes = together;
        let charge = Arc::new(Charge { queue: Arc::clone(&queue), bytes: cost.answer_bytes.into() });
        let id = state.next_id;
        state.next_id += 1;
        let (meter, flops) = (Arc::new(Meter::default()), cost.flops);
        let control = Control::with_progress(reporter(&queue, id, &meter));
        let cancel = control.cancel_handle();
        let (answer, receiver) = oneshot::channel();
        let since = Instant::now();
        let job = Job { id, control, work, since, meter: Arc::clone(&meter), cost, answer, deadline };
        state.line.push(client.clone(), id, flops, job);
        drop(state);
        queue.arrival.notify_one();
        let hold = Hold { id, client, queue, cancel, ended: false };
        Ok(Ticket { hold, receiver, since, charge, meter, flops })
    }
}

/// What the engine calls after each step of a job: it may run a short one there.
fn reporter(queue: &Arc<Queue>, id: u64, meter: &Arc<Meter>) -> impl Fn(Progress) + Send + Sync + 'static {
    let (queue, meter) = (Arc::downgrade(queue), Arc::clone(meter));
    move |progress| {
        let done = meter.note(progress);
        let Some(queue) = queue.upgrade() else { return };
        while let Some(job) = queue.between_steps(id, done) {
            worker::run(&queue, job);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.queue.lock().give_back(&self.client);
    }
}

/// An answer's share of the memory for answers; dropping it gives the share back.
pub(crate) struct Charge {
    queue: Arc<Queue>,
    bytes: AtomicU64,
}

impl Charge {
    /// Gives back what is more than `bytes`.
    pub(crate) fn shrink_to(&self, bytes: u64) {
        let before = self.bytes.fetch_min(bytes, Ordering::Relaxed);
        self.queue.lock().answer_bytes -= before.saturating_sub(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.queue.lock().answer_bytes -= *self.bytes.get_mut();
    }
}

/// Takes its job out of the queue when it is dropped, unless the job has ended.
struct Hold {
    id: u64,
    client: Client,
    queue: Arc<Queue>,
    cancel: Arc<AtomicBool>,
    ended: bool,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.ended {
            self.queue.abandon(&self.client, self.id, &self.cancel);
        }
    }
}

/// The right to one job's answer. Dropping it before the answer cancels the job.
pub(crate) struct Ticket {
    hold: Hold,
    receiver: oneshot::Receiver<Ended>,
    since: Instant,
    charge: Arc<Charge>,
    meter: Arc<Meter>,
    flops: u64,
}

impl Ticket {
    /// The job's number.
    pub(crate) fn id(&self) -> u64 {
        self.hold.id
    }

    /// To be held until the answer is sent.
    pub(crate) fn charge(&self) -> Arc<Charge> {
        Arc::clone(&self.charge)
    }

    /// How far the job has come.
    pub(crate) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// Floating-point operations of the job.
    pub(crate) fn flops(&self) -> u64 {
        self.flops
    }

    /// Waits for the job's end.
    pub(crate) async fn wait(mut self) -> Done {
        let ended = (&mut self.receiver).await.unwrap_or_else(|_| Ended {
            result: Err(JobError::Stopped),
            queued: self.since.elapsed(),
            engine: Duration::ZERO,
        });
        self.hold.ended = true;
        let Ended { result, queued, engine } = ended;
        Done { result, queued, engine }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
