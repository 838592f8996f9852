//! What the queue knows of a job: whose it is, what it costs, how far it has come, what became of it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use remote_vae_engine::{Control, EngineError, Progress};
use tokio::sync::oneshot;

use crate::memory::Share;

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
    /// Whether the answer stays here until somebody fetches it.
    pub(crate) kept: bool,
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
    queued: OnceLock<Duration>,
    done: AtomicU64,
    /// What a run before the present one of the same job had done; clips take several.
    before: AtomicU64,
    last: AtomicU64,
}

impl Meter {
    /// How long the job waited for the engine; none until that has begun.
    pub(crate) fn queued(&self) -> Option<Duration> {
        self.queued.get().copied()
    }

    /// The engine begins, once.
    pub(super) fn begin(&self, queued: Duration) {
        let _ = self.queued.set(queued);
    }

    /// Floating-point operations done.
    pub(crate) fn done_flops(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(super) fn note(&self, progress: Progress) -> u64 {
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
    pub(super) deadline: Option<Instant>,
    /// Of the account of memory, as long as the job waits or runs.
    pub(crate) share: Option<Arc<Share>>,
}

/// What the engine's thread tells of a job.
pub(crate) struct Ended {
    pub(crate) result: Result<Tensor, JobError>,
    pub(crate) queued: Duration,
    pub(crate) engine: Duration,
}

/// A job that the engine works on.
pub(super) struct Running {
    pub(super) id: u64,
    pub(super) since: Instant,
    pub(super) meter: Arc<Meter>,
    pub(super) cost: Cost,
    pub(super) cancel: Arc<AtomicBool>,
    pub(super) cancelled: Option<Instant>,
    /// Time of jobs that ran between its steps.
    pub(super) paused: Duration,
}

impl Running {
    pub(super) fn of(job: &Job) -> Self {
        Self {
            id: job.id,
            since: Instant::now(),
            meter: Arc::clone(&job.meter),
            cost: job.cost,
            cancel: job.control.cancel_handle(),
            cancelled: None,
            paused: Duration::ZERO,
        }
    }

    /// Time until it should be done, by the pace of other jobs at first, and the more by its own the further it is: the
    /// geometric mean of both, weighted by the share that is left and the share that is done. None where the others'
    /// pace is not known.
    pub(super) fn left(&self, rate: &Rate) -> Option<Duration> {
        let done = self.meter.done_flops().min(self.cost.flops);
        let by_others = rate.time(self.cost.flops - done)?;
        let share = done as f64 / self.cost.flops.max(1) as f64;
        if share == 0.0 {
            return Some(by_others);
        }
        let by_own = self.since.elapsed().saturating_sub(self.paused).as_secs_f64() * (1.0 - share) / share;
        let left = by_others.as_secs_f64().powf(1.0 - share) * by_own.powf(share);
        Some(Duration::from_secs_f64(left.clamp(0.0, LONGEST)))
    }
}

/// Longest time that is foretold, in seconds.
const LONGEST: f64 = 86_400.0;

/// Operations and seconds of the last jobs, the latest counting most.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Rate {
    flops: f64,
    seconds: f64,
}

impl Rate {
    const MEMORY: f64 = 0.8;

    pub(super) fn note(&mut self, flops: u64, time: Duration) {
        self.flops = self.flops * Self::MEMORY + flops as f64;
        self.seconds = self.seconds * Self::MEMORY + time.as_secs_f64();
    }

    /// None before the first job.
    pub(super) fn time(&self, flops: u64) -> Option<Duration> {
        let seconds = flops as f64 * self.seconds / self.flops;
        seconds.is_finite().then(|| Duration::from_secs_f64(seconds.clamp(0.0, LONGEST)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_further_a_job_is_the_more_its_own_pace_counts() {
        let running = |flops: u64, done_flops: u64, elapsed: u64, paused: u64| {
            let cost = Cost { flops, peak_bytes: 0, answer_bytes: 0, kept: false };
            let meter = Meter::default();
            meter.note(Progress { step: 1, steps: 2, done_flops, total_flops: flops });
            let (since, paused) =
                (Instant::now() - Duration::from_secs(elapsed), Duration::from_secs(paused));
            let cancel = Arc::default();
            Running { id: 1, since, meter: Arc::new(meter), cost, cancel, cancelled: None, paused }
        };
        let mut rate = Rate::default();
        assert_eq!(running(100, 50, 10, 0).left(&rate), None);
        rate.note(100, Duration::from_secs(10));
        // Done, elapsed, paused, and what is left: others would need 10 s for all of it.
        for (done, elapsed, paused, expected) in [
            (0, 0, 0, 10.0),
            (50, 5, 0, 5.0),
            (50, 30, 0, 12.2),
            (50, 40, 10, 12.2),
            (90, 90, 0, 7.9),
            (120, 9, 0, 0.0),
        ] {
            let left = running(100, done, elapsed, paused).left(&rate).unwrap().as_secs_f64();
            assert!((left - expected).abs() < 0.1, "{done} of 100 after {elapsed} s: {left} s left");
        }
        // By its own pace alone it would take longer than a `Duration` can say.
        let left = running(u64::MAX, 1, 100, 0).left(&rate).unwrap().as_secs_f64();
        assert!((left - LONGEST).abs() < 0.1, "{left} s left");
    }
}
