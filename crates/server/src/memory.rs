//! One account of the memory that a server may hold: weights, the work that runs, bodies that wait and answers that are
//! not yet sent.
//!
//! Bodies, answers and the largest plan of all jobs in line must fit together, whatever is loaded; so the job whose turn
//! comes always has room, and nobody waits for a body that waits for it. Weights of models without work fill what is
//! left, and go when others need it, the least recently used first; before them the memory that the latest work has left
//! for the next.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use remote_vae_engine::{Autoencoder, Engine, Released, Spare, memory};
use remote_vae_wire::Operation;

use crate::body::ByteBudget;
use crate::queue::{Job, Queue};
use crate::state::ModelEntry;

/// What a job holds while it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    /// Index of the model.
    pub(crate) model: usize,
    pub(crate) operation: Operation,
    /// Frames of the input; of a picture one.
    pub(crate) frames: usize,
    /// Bytes of the plan at its peak, without what counts as an answer.
    pub(crate) bytes: u64,
    /// Bytes of the body that waits with the job, and goes when it begins.
    pub(crate) body: u64,
}

/// What there is room for whatever the budget: requests that are small enough to be told what they would need.
const LEAST: u64 = 1 << 20;

/// Work of more bytes begins with what earlier work has left given back: its largest blocks are new ones in any case, as
/// allocators keep none so large. Smaller work is quicker with what is there.
const KEPT: u64 = 32 << 20;

/// How long what work has left waits for the next work of its size.
const SPARE_FOR: Duration = Duration::from_secs(30);

/// Why a job is not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// It could not even run alone.
    Never { need: u64, limit: u64 },
    /// Others hold too much now.
    Now { limit: u64 },
}

/// A job's part of the account, for as long as the job waits or runs.
pub(crate) struct Share {
    need: Need,
    /// Bytes of its answer, which are there once it runs.
    answer: u64,
    is_running: AtomicBool,
}

/// The account of one server.
pub(crate) struct Memory {
    /// `u64::MAX` if nothing limits the server.
    limit: AtomicU64,
    models: Vec<Arc<Autoencoder>>,
    bodies: Arc<ByteBudget>,
    queue: Arc<Queue>,
    state: Mutex<State>,
    /// The most that was counted as in memory at one time.
    peak: AtomicU64,
}

struct State {
    shares: Vec<Weak<Share>>,
    /// When a job of each model began last.
    used: Vec<Option<Instant>>,
}

/// What the account consists of at one moment.
struct Now {
    shares: Vec<Arc<Share>>,
    held: u64,
}

impl Memory {
    /// The account of a server with `limit` bytes beside what the process holds without work.
    pub(crate) fn new(
        limit: Option<u64>,
        models: &[ModelEntry],
        bodies: &Arc<ByteBudget>,
        queue: &Arc<Queue>,
    ) -> Arc<Memory> {
        let state = State { shares: Vec::new(), used: vec![None; models.len()] };
        let memory = Arc::new(Memory {
            limit: AtomicU64::new(limit.map_or(u64::MAX, |limit| limit.max(LEAST))),
            models: models.iter().map(|entry| Arc::clone(&entry.autoencoder)).collect(),
            bodies: Arc::clone(bodies),
            queue: Arc::clone(queue),
            state: Mutex::new(state),
            peak: AtomicU64::new(0),
        });
        bodies.count_in(&memory);
        queue.count_in(&memory);
        memory
    }

    /// No code that can panic runs under the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job of `need` with an answer of `answer` bytes into the account; `submit` puts it in line.
    pub(crate) fn admit<T>(
        &self,
        need: Need,
        answer: u64,
        submit: impl FnOnce(Arc<Share>) -> T,
    ) -> Result<T, NoRoom> {
        let mut state = self.lock();
        let share = Arc::new(Share { need, answer, is_running: AtomicBool::new(false) });
        if let Some(limit) = self.limit() {
            let alone = need.bytes.max(need.body).saturating_add(answer);
            if alone > limit {
                return Err(NoRoom::Never { need: alone, limit });
            }
            let mut now = self.now(&mut state);
            now.shares.push(Arc::clone(&share));
            if now.committed().saturating_add(answer) > limit {
                return Err(NoRoom::Now { limit });
            }
        }
        state.shares.retain(|share| share.strong_count() > 0);
        state.shares.push(Arc::downgrade(&share));
        Ok(submit(share))
    }

    /// Takes `bytes` of a body by `take`, if there is room.
    pub(crate) fn take_for_body(&self, bytes: u64, take: impl FnOnce() -> bool) -> bool {
        let limit = self.limit().unwrap_or(u64::MAX);
        let mut state = self.lock();
        let now = self.now(&mut state);
        if now.committed().saturating_add(bytes) > limit || !take() {
            return false;
        }
        let released = self.make_room(&state, &now, bytes, limit);
        drop(state);
        released.drop_beside();
        true
    }

    /// Lets go what work has left, where no other came for a while.
    pub(crate) fn upkeep(&self) {
        self.release_spare(SPARE_FOR);
    }

    /// Lets go what work has left, if that was `age` ago.
    pub(crate) fn release_spare(&self, age: Duration) {
        let spare = self.engines().filter_map(|engine| engine.take_spare(age)).collect();
        Freed { spare, weights: Vec::new() }.drop_beside();
    }

    /// Each engine once.
    fn engines(&self) -> impl Iterator<Item = &dyn Engine> {
        let engine = |model: &Arc<Autoencoder>| std::ptr::from_ref(model.engine()).cast::<()>();
        let is_first = move |index: usize| {
            self.models[..index].iter().all(|other| engine(other) != engine(&self.models[index]))
        };
        self.models
            .iter()
            .enumerate()
            .filter(move |(index, _)| is_first(*index))
            .map(|(_, model)| model.engine())
    }

    /// Lets `choose` take a job that is to run beside those that run, and counts it as running at once. What says whether
    /// a job fits beside them, when answers hold so many bytes, is handed to it; meanwhile nobody else takes any.
    pub(crate) fn choose_beside(
        &self,
        choose: impl FnOnce(&dyn Fn(&Share, u64) -> bool) -> Option<Job>,
    ) -> Option<Job> {
        let state = self.lock();
        let running = running_bytes(state.shares.iter().filter_map(Weak::upgrade));
        let held = running.saturating_add(self.bodies.held());
        let fits = |share: &Share, answers: u64| {
            let together = held.saturating_add(answers).saturating_add(share.need.bytes);
            self.limit().is_none_or(|limit| together <= limit)
        };
        let job = choose(&fits)?;
        job.share.iter().for_each(|share| share.is_running.store(true, Ordering::Relaxed));
        Some(job)
    }

    /// The job of `share` begins: weights that it leaves no room for go.
    pub(crate) fn begin(&self, share: &Share) {
        let mut state = self.lock();
        share.is_running.store(true, Ordering::Relaxed);
        if let Some(used) = state.used.get_mut(share.need.model) {
            *used = Some(Instant::now());
        }
        let now = self.now(&mut state);
        let released = self.make_room(&state, &now, 0, self.limit().unwrap_or(u64::MAX));
        drop(state);
        // Here: the job takes their memory next.
        let has_released = !released.weights.is_empty();
        drop(released);
        if has_released || share.need.bytes > KEPT {
            memory::give_back_freed();
        }
    }

    /// Bytes that work may hold; none if nothing limits the server.
    pub(crate) fn limit(&self) -> Option<u64> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit < u64::MAX)
    }

    /// From now on work may hold at most `bytes`.
    pub(crate) fn limit_to(&self, bytes: u64) {
        self.limit.fetch_min(bytes.max(LEAST), Ordering::Relaxed);
    }

    /// The most bytes that were counted as in memory at one time: weights, bodies, plans that ran, and answers whose work
    /// had begun. What the process held before any work is not in it.
    pub(crate) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    fn now(&self, state: &mut State) -> Now {
        state.shares.retain(|share| share.strong_count() > 0);
        let shares = state.shares.iter().filter_map(Weak::upgrade).collect();
        Now { shares, held: self.bodies.held().saturating_add(self.queue.occupancy().answer_bytes) }
    }

    /// Takes out what earlier work has left, and then weights, until all that is in memory, with `more` to come, is at most
    /// `limit`: first weights of models without a job, then of models whose job waits, those used least recently first; of a
    /// model that runs only what its jobs do not use.
    /// To free them takes a while, which is the caller's, without the lock.
    fn make_room(&self, state: &State, now: &Now, more: u64, limit: u64) -> Freed {
        let except = |model: usize| -> Vec<(Operation, usize)> {
            let running = now.running().filter(|need| need.model == model);
            running.map(|need| (need.operation, need.frames)).collect()
        };
        let in_memory = |model: usize| self.models[model].weight_bytes_in_memory(&except(model)) as u64;
        let mut total = now.held.saturating_add(now.running_bytes()).saturating_add(more);
        total = (0..self.models.len()).fold(total, |sum, model| sum.saturating_add(in_memory(model)));
        // It goes no sooner than work has unpacked its input, and not at all if that is of its size.
        let mut left: u64 = self.engines().map(|engine| engine.spare_bytes()).sum();
        let mut all = Freed::default();
        if total.saturating_add(left) > limit {
            all.spare = self.engines().filter_map(|engine| engine.take_spare(Duration::ZERO)).collect();
            left = 0;
        }
        let mut order: Vec<usize> = (0..self.models.len()).collect();
        let waits = |model: usize| now.shares.iter().any(|share| share.need.model == model);
        order.sort_by_key(|&model| (!except(model).is_empty(), waits(model), state.used[model]));
        for model in order {
            if total <= limit {
                break;
            }
            let released = self.models[model].release_weights(&except(model));
            let bytes = released.bytes() as u64;
            if bytes > 0 {
                tracing::info!(model, bytes, "weights left memory to make room");
                total = total.saturating_sub(bytes);
                all.weights.push(released);
            }
        }
        let held = total.saturating_sub(now.promised());
        // Work takes its place.
        let beside = if now.running_bytes() == 0 { left } else { 0 };
        self.peak.fetch_max(held.saturating_add(beside), Ordering::Relaxed);
        all
    }
}

/// What is no longer needed. To drop it takes a while.
#[derive(Default)]
struct Freed {
    spare: Vec<Spare>,
    weights: Vec<Released>,
}

impl Freed {
    /// Drops it beside the event loop, if this is its thread.
    fn drop_beside(self) {
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.spare.is_empty() || !self.weights.is_empty() => {
                drop(runtime.spawn_blocking(move || {
                    drop(self);
                    // What comes instead asks for other sizes.
                    memory::give_back_freed();
                }));
            }
            _ => {}
        }
    }
}

/// Bytes of those that run.
fn running_bytes(shares: impl Iterator<Item = Arc<Share>>) -> u64 {
    let running = shares.filter(|share| share.is_running.load(Ordering::Relaxed));
    running.fold(0, |sum: u64, share| sum.saturating_add(share.need.bytes))
}

impl Now {
    fn running(&self) -> impl Iterator<Item = &Need> {
        let running = self.shares.iter().filter(|share| share.is_running.load(Ordering::Relaxed));
        running.map(|share| &share.need)
    }

    fn running_bytes(&self) -> u64 {
        running_bytes(self.shares.iter().cloned())
    }

    /// Bytes of answers whose work has not begun.
    fn promised(&self) -> u64 {
        let waiting = self.shares.iter().filter(|share| !share.is_running.load(Ordering::Relaxed));
        waiting.fold(0, |sum: u64, share| sum.saturating_add(share.answer))
    }

    /// What must have room whatever is loaded: bodies, answers, and the jobs that run or the one that needs most.
    fn committed(&self) -> u64 {
        let needs = self.shares.iter().map(|share| share.need.bytes.saturating_sub(share.need.body));
        self.held.saturating_add(needs.max().unwrap_or(0).max(self.running_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use remote_vae_engine::{Control, CpuEngine, EngineOptions, Precision};
    use remote_vae_model::Model;
    use remote_vae_wire::Scaling;

    use super::*;
    use crate::metrics::Metrics;
    use crate::queue::Bounds;

    const MIB: u64 = 1 << 20;

    fn account(limit: u64) -> (Arc<Memory>, Arc<ByteBudget>) {
        account_with(limit, &[])
    }

    fn account_with(limit: u64, models: &[ModelEntry]) -> (Arc<Memory>, Arc<ByteBudget>) {
        let bounds = Bounds { jobs: 8, answer_bytes: 1000 * MIB, peak_bytes: Some(limit) };
        let queue = Queue::new(bounds, Arc::new(Metrics::new()));
        let bodies = ByteBudget::new(1000 * MIB);
        (Memory::new(Some(limit), models, &bodies, &queue), bodies)
    }

    fn need(bytes: u64, body: u64) -> Need {
        let (bytes, body) = (bytes * MIB, body * MIB);
        Need { model: 0, operation: Operation::Decode, frames: 1, bytes, body }
    }

    fn taken(memory: &Memory, bytes: u64) -> bool {
        memory.take_for_body(bytes * MIB, || true)
    }

    #[test]
    fn what_can_never_fit_is_told_apart_from_what_must_wait() {
        let (memory, _) = account(100 * MIB);
        let refused = |need, answer| memory.admit(need, answer * MIB, |_| ()).unwrap_err();
        assert_eq!(refused(need(90, 0), 11), NoRoom::Never { need: 101 * MIB, limit: 100 * MIB });
        let first = memory.admit(need(90, 0), 10 * MIB, |share| share).unwrap();
        memory.begin(&first);
        assert_eq!(refused(need(50, 0), 11), NoRoom::Now { limit: 100 * MIB });
        drop(first);
        assert!(memory.admit(need(90, 0), 10 * MIB, |_| ()).is_ok());
    }

    #[test]
    fn bodies_leave_the_largest_waiting_plan_its_room() {
        let (memory, _) = account(100 * MIB);
        let waiting = memory.admit(need(60, 20), 0, |share| share).unwrap();
        // Its own body is part of what is held until it begins.
        assert!(taken(&memory, 60) && !taken(&memory, 61));
        memory.begin(&waiting);
        assert!(taken(&memory, 40) && !taken(&memory, 41));
        drop(waiting);
        assert!(taken(&memory, 100) && !taken(&memory, 101));
    }

    /// Two models with one engine, and work that leaves more than `need` bytes.
    fn models() -> (Vec<ModelEntry>, impl Fn() -> u64) {
        let engine =
            Arc::new(CpuEngine::new(EngineOptions { threads: Some(1), ..Default::default() }).unwrap());
        engine.keep_spare();
        let model = || Arc::new(Autoencoder::new(Model::embedded().unwrap(), engine.clone()));
        let models =
            ["first", "second"].map(|name| ModelEntry { name: name.to_owned(), autoencoder: model() });
        let first = Arc::clone(&models[0].autoencoder);
        let leave = move || {
            let (shape, control) = ([1, 4, 32, 32], Control::new());
            first.decode(vec![0.0; 4096], shape, &Scaling::None, Precision::Exact, &control).unwrap();
            engine.spare_bytes()
        };
        (models.into(), leave)
    }

    #[test]
    fn what_work_has_left_goes_before_weights() {
        let (models, leave) = models();
        let spare = leave();
        let (first, engine) = (&models[0].autoencoder, models[0].autoencoder.engine());
        let weights = first.weight_bytes_in_memory(&[]) as u64;
        assert!(spare > MIB && weights > 0);
        let (memory, _) = account_with(spare + weights + 10 * MIB, &models);
        assert!(taken(&memory, 10) && engine.spare_bytes() == spare);
        assert!(memory.take_for_body(10 * MIB + 1, || true) && engine.spare_bytes() == 0);
        assert_eq!(first.weight_bytes_in_memory(&[]) as u64, weights);
        // Work takes the place of what there is.
        assert_eq!(leave(), spare);
        let (memory, _) = account_with(spare + weights + 10 * MIB, &models);
        let share = memory.admit(need(10, 0), 0, |share| share).unwrap();
        memory.begin(&share);
        assert_eq!(engine.spare_bytes(), spare);
        assert!(memory.peak() <= spare + weights);
        memory.upkeep();
        assert_eq!(engine.spare_bytes(), spare);
        memory.release_spare(Duration::ZERO);
        assert_eq!(engine.spare_bytes(), 0);
    }

    #[test]
    fn jobs_between_steps_add_up() {
        let (memory, _) = account(100 * MIB);
        let shares: Vec<_> =
            [50, 30].map(|bytes| memory.admit(need(bytes, 0), 0, |share| share).unwrap()).into();
        assert!(taken(&memory, 50));
        shares.iter().for_each(|share| memory.begin(share));
        assert!(taken(&memory, 20) && !taken(&memory, 21));
    }
}
