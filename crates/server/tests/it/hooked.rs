//! An engine that tells what it does, can be held there, and says that its work may hold so many bytes.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use remote_vae_engine::{
    Calibration, Control, CpuEngine, Engine, EngineError, History, Plan, PlanRequest, Precision, Program,
    Rows, Spare,
};
use remote_vae_model::{Graph, WeightSource};

use crate::support::engine;

/// What is called, on the engine's thread.
pub(crate) struct Hooks {
    pub(crate) before_run: Box<dyn Fn() + Send + Sync>,
    /// With the first row of each strip, before the strip is handed on.
    pub(crate) at_rows: Box<dyn Fn(usize) + Send + Sync>,
    /// Before weights are read that will be held. On any thread.
    pub(crate) before_load: Box<dyn Fn() + Send + Sync>,
    /// With the input `[batch, channels, frames, height, width]` that a plan is searched for. On any thread.
    pub(crate) at_search: Box<dyn Fn([usize; 5]) + Send + Sync>,
}

impl Default for Hooks {
    fn default() -> Self {
        Self {
            before_run: Box::new(|| ()),
            at_rows: Box::new(|_| ()),
            before_load: Box::new(|| ()),
            at_search: Box::new(|_| ()),
        }
    }
}

/// What runs must come through: anything while it is open, and otherwise one run for each time that one is let through.
#[derive(Default)]
pub(crate) struct Gate {
    /// None while it is open.
    passes: Mutex<Option<usize>>,
    changed: Condvar,
}

/// Opens the gate when it goes.
pub(crate) struct Closed(Arc<Gate>);

impl Gate {
    pub(crate) fn close(self: &Arc<Self>) -> Closed {
        self.set(Some(0));
        Closed(Arc::clone(self))
    }

    fn set(&self, passes: Option<usize>) {
        *self.passes.lock().unwrap() = passes;
        self.changed.notify_all();
    }

    fn enter(&self) {
        let passes = self.passes.lock().unwrap();
        let mut passes = self.changed.wait_while(passes, |passes| *passes == Some(0)).unwrap();
        *passes = passes.map(|passes| passes - 1);
    }
}

impl Closed {
    /// Lets one more run through.
    pub(crate) fn pass(&self) {
        if let Some(passes) = &mut *self.0.passes.lock().unwrap() {
            *passes += 1;
        }
        self.0.changed.notify_all();
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// An engine with hooks, which plans as it does without them.
pub(crate) struct Hooked {
    inner: Arc<CpuEngine>,
    hooks: Arc<Hooks>,
    work_budget: Option<u64>,
}

impl Hooked {
    /// The engine of all tests.
    pub(crate) fn new(hooks: Hooks) -> Arc<Self> {
        Arc::new(Self { inner: engine(), hooks: Arc::new(hooks), work_budget: None })
    }

    /// An engine that stops before each run while the gate is closed.
    pub(crate) fn behind(gate: &Arc<Gate>) -> Arc<Self> {
        let gate = Arc::clone(gate);
        let before_run = Box::new(move || gate.enter());
        Self::new(Hooks { before_run, ..Hooks::default() })
    }

    /// An engine that says that its work may hold `room` bytes, whatever the process holds.
    pub(crate) fn with_room(inner: Arc<CpuEngine>, room: u64, hooks: Hooks) -> Arc<Self> {
        Arc::new(Self { inner, hooks: Arc::new(hooks), work_budget: Some(room) })
    }
}

impl Engine for Hooked {
    fn name(&self, precision: Precision) -> String {
        self.inner.name(precision)
    }

    fn isa(&self) -> &str {
        self.inner.isa()
    }

    fn threads(&self) -> usize {
        self.inner.threads()
    }

    fn work_budget(&self) -> Option<u64> {
        self.work_budget
    }

    fn keep_spare(&self) {
        self.inner.keep_spare();
    }

    fn spare_bytes(&self) -> u64 {
        self.inner.spare_bytes()
    }

    fn take_spare(&self, age: Duration) -> Option<Spare> {
        self.inner.take_spare(age)
    }

    fn peak_flops_per_second(&self) -> f64 {
        self.inner.peak_flops_per_second()
    }

    fn plan_part(&self, request: PlanRequest<'_>) -> Result<Plan, EngineError> {
        (self.hooks.at_search)(request.input);
        self.inner.plan_part(request)
    }

    fn load(&self, graph: &Graph, weights: &dyn WeightSource) -> Result<Box<dyn Program>, EngineError> {
        (self.hooks.before_load)();
        let (inner, hooks) = (self.inner.load(graph, weights)?, Arc::clone(&self.hooks));
        Ok(Box::new(HookedProgram { inner, hooks }))
    }

    fn load_by_steps(&self, graph: &Graph, weights: Arc<dyn WeightSource>) -> Box<dyn Program> {
        let (inner, hooks) = (self.inner.load_by_steps(graph, weights), Arc::clone(&self.hooks));
        Box::new(HookedProgram { inner, hooks })
    }
}

struct HookedProgram {
    inner: Box<dyn Program>,
    hooks: Arc<Hooks>,
}

impl Program for HookedProgram {
    fn prepare(&self, precision: Precision) -> Result<(), EngineError> {
        self.inner.prepare(precision)
    }

    fn weight_bytes(&self) -> usize {
        self.inner.weight_bytes()
    }

    fn calibration(&self) -> Option<Arc<Calibration>> {
        self.inner.calibration()
    }

    fn adopt(&self, calibration: Arc<Calibration>) {
        self.inner.adopt(calibration);
    }

    fn run(&self, plan: &Plan, input: &[f32], control: &Control) -> Result<Vec<f32>, EngineError> {
        (self.hooks.before_run)();
        self.inner.run(plan, input, control)
    }

    fn run_rows(
        &self,
        plan: &Plan,
        input: &[f32],
        control: &Control,
        sink: &mut dyn FnMut(Rows<'_>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        (self.hooks.before_run)();
        self.inner.run_rows(plan, input, control, &mut |rows| {
            (self.hooks.at_rows)(rows.first);
            sink(rows)
        })
    }

    fn run_part(
        &self,
        plan: &Plan,
        input: &[f32],
        history: &mut History,
        control: &Control,
    ) -> Result<Vec<f32>, EngineError> {
        (self.hooks.before_run)();
        self.inner.run_part(plan, input, history, control)
    }
}
