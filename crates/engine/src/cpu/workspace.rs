//! The memory that a run works in: taken when it begins, given back when it ends, or kept for the next run of its size.
//!
//! Fresh pages are cleared when they are first touched, and on a virtual machine the host may have to find them first:
//! `docs/performance.md` has what that took of whole pictures.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use remote_vae_kernels::{Buffer, Pool};

use crate::EngineError;
use crate::plan::Plan;

/// What the runs of an engine share.
pub(crate) struct Workspace {
    pool: Arc<Pool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Whether memory is kept at all.
    keeps: bool,
    /// How many runs go on.
    runs: usize,
    spare: Option<Spare>,
}

/// Memory that a run has left. The workers' scratch lies in the pool.
struct Spare {
    arena: Buffer,
    /// As [`Plan::worker_len`].
    worker_len: usize,
    since: Instant,
}

impl Workspace {
    pub(crate) fn new(pool: Arc<Pool>) -> Workspace {
        Workspace { pool, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`crate::Engine::keep_spare`].
    pub(crate) fn keep_spare(&self) {
        self.lock().keeps = true;
    }

    /// As [`crate::Engine::spare_bytes`].
    pub(crate) fn spare_bytes(&self) -> u64 {
        let workers = |spare: &Spare| spare.worker_len.saturating_mul(self.pool.threads());
        let len = |spare: &Spare| spare.arena.len().saturating_add(workers(spare));
        self.lock().spare.as_ref().map_or(0, |spare| len(spare).saturating_mul(size_of::<f32>()) as u64)
    }

    /// As [`crate::Engine::take_spare`].
    pub(crate) fn take_spare(&self, age: Duration) -> Option<Buffer> {
        let mut state = self.lock();
        let spare = state.spare.take_if(|spare| spare.since.elapsed() >= age)?;
        self.pool.release();
        Some(spare.arena)
    }

    /// The arena of a run of `plan`, whose numbers may be anything. What was kept of runs of other sizes has gone before.
    pub(crate) fn begin(&self, plan: &Plan) -> Result<Work<'_>, EngineError> {
        let (arena_len, worker_len) = (plan.arena_len, plan.worker_len());
        let spare = {
            let mut state = self.lock();
            state.runs += 1;
            state.spare.take()
        };
        let mut work = Work { workspace: self, worker_len, arena: None, is_done: false };
        match spare {
            Some(spare) if spare.arena.len() == arena_len && spare.worker_len == worker_len => {
                work.arena = Some(spare.arena);
            }
            other => {
                if other.is_some() {
                    self.pool.release();
                }
                drop(other);
                let bytes = arena_len.saturating_mul(size_of::<f32>());
                work.arena = Some(Buffer::zeroed(arena_len).ok_or(EngineError::Memory { bytes })?);
            }
        }
        Ok(work)
    }
}

/// The arena of a run that goes on.
pub(crate) struct Work<'a> {
    workspace: &'a Workspace,
    worker_len: usize,
    arena: Option<Buffer>,
    is_done: bool,
}

impl Work<'_> {
    /// The run has ended well. What others leave, by errors and panics too, is not kept.
    pub(crate) fn done(mut self) {
        self.is_done = true;
    }
}

impl Deref for Work<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.arena.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Work<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.arena.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        let Work { workspace, worker_len, is_done, .. } = *self;
        let arena = self.arena.take();
        let mut state = workspace.lock();
        state.runs -= 1;
        // What others work in is counted by what they need.
        match arena {
            Some(arena) if state.keeps && is_done && state.runs == 0 => {
                state.spare = Some(Spare { arena, worker_len, since: Instant::now() });
            }
            other => {
                drop(state);
                // What it holds is one request's own.
                workspace.pool.release();
                drop(other);
            }
        }
    }
}
