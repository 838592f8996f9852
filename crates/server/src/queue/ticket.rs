//! What a request holds of the queue: its place before the job is there, the job's ticket after, and its share of the
//! memory for answers until the answer is sent. Each gives back what it stands for when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use remote_vae_engine::{Control, Progress};
use tokio::sync::oneshot;

use super::job::{Client, Cost, Done, Ended, Job, JobError, Meter, Work};
use super::{NoPlace, Queue};
use crate::memory::Share;
use crate::worker;

/// A place in the line that is not yet filled; dropping it gives it back.
pub(crate) struct Place {
    pub(super) queue: Arc<Queue>,
    pub(super) client: Client,
}

impl Place {
    /// Puts the job in line, unless there is no room for its answer. The answer comes through the ticket.
    pub(crate) fn submit(
        self,
        cost: Cost,
        deadline: Option<Instant>,
        share: Option<Arc<Share>>,
        work: Work,
    ) -> Result<Ticket, NoPlace> {
        let (queue, client) = (Arc::clone(&self.queue), self.client.clone());
        let mut state = queue.lock();
        if state.closed {
            return Err(NoPlace::Closed);
        }
        if let Err(excess) = state.answers.take(&client, cost.answer_bytes, queue.bounds.answer_bytes) {
            return Err(NoPlace::Answers { retry_after: state.until_freed(excess) });
        }
        let bytes = cost.answer_bytes.into();
        let charge = Arc::new(Charge { queue: Arc::clone(&queue), client: client.clone(), bytes });
        let id = state.next_id;
        state.next_id += 1;
        let (meter, flops) = (Arc::new(Meter::default()), cost.flops);
        let control = Control::with_progress(reporter(&queue, id, &meter));
        let cancel = control.cancel_handle();
        let (answer, receiver) = oneshot::channel();
        let since = Instant::now();
        let job = Job { id, control, work, since, meter: Arc::clone(&meter), cost, answer, deadline, share };
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
    client: Client,
    bytes: AtomicU64,
}

impl Charge {
    /// Gives back what is more than `bytes`.
    pub(crate) fn shrink_to(&self, bytes: u64) {
        let before = self.bytes.fetch_min(bytes, Ordering::Relaxed);
        self.queue.lock().answers.give_back(&self.client, before.saturating_sub(bytes));
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.queue.lock().answers.give_back(&self.client, *self.bytes.get_mut());
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
