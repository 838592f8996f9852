//! The CPU engine: plans run on the kernels, one sample at a time, with all threads in each step.

mod layers;
mod operations;
mod output;
mod workspace;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use remote_vae_kernels::{Isa, Pool};
use remote_vae_model::{Graph, WeightSource};

use crate::arena::Region;
use crate::budget::Shortage;
use crate::calibration::{Calibration, Probe};
use crate::plan::{Plan, Step, Task, weight_bytes};
use crate::{
    Control, Engine, EngineError, History, PlanRequest, Precision, Program, Progress, Spare, budget, frames,
    memory,
};
pub(crate) use layers::Layers;
use layers::{Layer, layer};
#[cfg(test)]
pub(crate) use operations::ROWS_READ;
pub(crate) use operations::{Moments, Run};
pub(crate) use output::Output;
pub use output::Rows;
use workspace::Workspace;

/// How a [`CpuEngine`] is made.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Worker threads; `None` takes one for each processor that this process may use.
    pub threads: Option<usize>,
    /// Instruction tier by name (`amx`, `avx512vnni`, `avx512`, `avx2`, `generic`); `None` takes the best this CPU has.
    pub isa: Option<String>,
    /// Bytes that this process may hold at its peak; `None` means as many as the straight plan needs.
    pub memory_budget: Option<u64>,
}

/// Runs graphs on the processor.
pub struct CpuEngine {
    pool: Arc<Pool>,
    workspace: Arc<Workspace>,
    isa: Isa,
    memory_budget: Option<u64>,
    process_bytes: AtomicU64,
}

/// What a process takes once it works, beside what is planned: code and tables that are read from the program's file when
/// they are first used, the model's graph and the index of its file, the threads' stacks, and the allocator's own.
const WORKING_BYTES: u64 = 8 << 20;

impl CpuEngine {
    /// An engine with threads of its own.
    ///
    /// # Errors
    /// The instruction tier is not there, or the threads cannot be started.
    pub fn new(options: EngineOptions) -> Result<CpuEngine, EngineError> {
        let isa = options.isa.as_deref().map_or_else(|| Ok(Isa::detect()), Isa::by_name)?;
        let pool = Arc::new(Pool::new(options.threads).map_err(EngineError::Threads)?);
        let process_bytes = memory::resident_bytes().map_or(0, |held| held + WORKING_BYTES);
        let process_bytes = AtomicU64::new(process_bytes);
        let workspace = Arc::new(Workspace::new(Arc::clone(&pool)));
        Ok(CpuEngine { pool, workspace, isa, memory_budget: options.memory_budget, process_bytes })
    }
}

impl Engine for CpuEngine {
    fn name(&self, precision: Precision) -> String {
        format!("cpu/{}/{}", self.isa.name(), precision.name())
    }

    fn isa(&self) -> &str {
        self.isa.name()
    }

    fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn peak_flops_per_second(&self) -> f64 {
        remote_vae_kernels::peak::flops_per_second(self.isa, &self.pool, 5)
    }

    fn plan_part(&self, request: PlanRequest<'_>) -> Result<Plan, EngineError> {
        let (isa, threads, graph) = (self.isa, self.pool.threads(), request.graph);
        let probe_bytes = match request.precision {
            Precision::Exact => 0,
            Precision::Fast => Probe::new(graph, isa, threads)?.bytes(graph, isa),
        };
        let task = |input: [usize; 5]| {
            // What lies beside a smaller picture is smaller too.
            let area = |[.., height, width]: [usize; 5]| (height * width) as f64;
            let share = area(input) / area(request.input).max(1.0);
            let beside = request.beside.map(|beside| beside.of_share(share));
            let request = PlanRequest { input, beside, ..request };
            Ok(Task::new(request, isa, threads)?.after_probe(probe_bytes))
        };
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let available = self.work_budget().map(bytes);
        let process = self.process_bytes() as usize;
        budget::plan(&task(request.input)?, available).map_err(|Shortage { need, smallest, means }| {
            let room = available.unwrap_or(usize::MAX);
            let largest = || budget::largest(&task, request.input, room, &means);
            let largest = request.seeks_largest.then(largest).flatten();
            let budget = self.memory_budget.map_or(usize::MAX, bytes);
            EngineError::Budget { need: need + process, budget, smallest: smallest + process, largest }
        })
    }

    fn memory_budget(&self) -> Option<u64> {
        self.memory_budget
    }

    fn process_bytes(&self) -> u64 {
        self.process_bytes.load(Ordering::Relaxed)
    }

    fn note_process_bytes(&self, bytes: u64) {
        self.process_bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    fn keep_spare(&self) {
        self.workspace.keep_spare();
    }

    fn spare_bytes(&self) -> u64 {
        self.workspace.spare_bytes()
    }

    fn take_spare(&self, age: Duration) -> Option<Spare> {
        self.workspace.take_spare(age).map(|spare| Spare::new(Box::new(spare)))
    }

    fn load(&self, graph: &Graph, weights: &dyn WeightSource) -> Result<Box<dyn Program>, EngineError> {
        // Whose plans do not count it.
        drop(self.workspace.take_spare(Duration::ZERO));
        let layers = (0..graph.nodes.len()).map(|node| layer(self.isa, &self.pool, graph, node, weights));
        Ok(Box::new(self.program(graph, Weights::Held(layers.collect::<Result<_, _>>()?))))
    }

    fn load_by_steps(&self, graph: &Graph, weights: Arc<dyn WeightSource>) -> Box<dyn Program> {
        Box::new(self.program(graph, Weights::ByStep(weights)))
    }
}

impl CpuEngine {
    fn program(&self, graph: &Graph, weights: Weights) -> CpuProgram {
        let (pool, workspace) = (Arc::clone(&self.pool), Arc::clone(&self.workspace));
        let (isa, graph) = (self.isa, graph.clone());
        CpuProgram { pool, workspace, isa, graph, weights, calibration: Mutex::default() }
    }
}

enum Weights {
    /// One layer for each graph node.
    Held(Vec<Layer>),
    /// Read for each step that works with them.
    ByStep(Arc<dyn WeightSource>),
}

pub(crate) struct CpuProgram {
    pub(crate) pool: Arc<Pool>,
    workspace: Arc<Workspace>,
    pub(crate) isa: Isa,
    pub(crate) graph: Graph,
    weights: Weights,
    /// Made when `fast` is first used.
    calibration: Mutex<Option<Arc<Calibration>>>,
}

impl Program for CpuProgram {
    fn run(&self, plan: &Plan, input: &[f32], control: &Control) -> Result<Vec<f32>, EngineError> {
        self.run_kept(plan, input, None, control)
    }

    fn run_rows(
        &self,
        plan: &Plan,
        input: &[f32],
        control: &Control,
        sink: &mut dyn FnMut(Rows<'_>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        if let [_, frames @ (0 | 2..)] = plan.frames {
            return Err(EngineError::RowsOfClip { frames });
        }
        let calibration = self.calibration_for(plan.precision)?;
        let mut work = self.workspace.begin(plan)?;
        let output = Output::Rows(Vec::new(), sink);
        self.run_into(plan, calibration.as_deref(), input, None, control, &mut work, output)?;
        work.done();
        Ok(())
    }

    fn run_part(
        &self,
        plan: &Plan,
        input: &[f32],
        history: &mut History,
        control: &Control,
    ) -> Result<Vec<f32>, EngineError> {
        if plan.input[0] != 1 {
            return Err(EngineError::OneClip { found: plan.input[0] });
        }
        self.run_kept(plan, input, Some(history), control)
    }

    fn prepare(&self, precision: Precision) -> Result<(), EngineError> {
        self.calibration_for(precision)?;
        Ok(())
    }

    fn weight_bytes(&self) -> usize {
        match self.weights {
            Weights::Held(_) => weight_bytes(&self.graph, self.isa),
            Weights::ByStep(_) => 0,
        }
    }

    fn calibration(&self) -> Option<Arc<Calibration>> {
        self.calibration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn adopt(&self, calibration: Arc<Calibration>) {
        *self.calibration.lock().unwrap_or_else(PoisonError::into_inner) = Some(calibration);
    }
}

/// Gives back the workers' scratch when a comparison ends, also by a panic: what comes next asks for other sizes.
struct Emptied<'a>(&'a Pool);

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        self.0.release();
    }
}

impl CpuProgram {
    /// The layers that `step` works with, read now unless they are held.
    pub(crate) fn layers(&self, step: &Step) -> Result<Layers<'_>, EngineError> {
        match &self.weights {
            Weights::Held(layers) => Ok(Layers::Held(layers)),
            Weights::ByStep(source) => Layers::read(self.isa, &self.pool, &self.graph, step, &**source),
        }
    }

    /// Makes the workers' scratch of a plan, so that no step has to ask for memory.
    pub(crate) fn reserve(&self, plan: &Plan) -> Result<(), EngineError> {
        if self.pool.reserve(plan.worker_len()) {
            return Ok(());
        }
        let bytes = plan.worker_len().saturating_mul(size_of::<f32>() * self.pool.threads());
        Err(EngineError::Memory { bytes })
    }

    /// Tells how far a run is. Another may run meanwhile and give back the scratch at its end.
    pub(crate) fn report(
        &self,
        plan: &Plan,
        control: &Control,
        progress: Progress,
    ) -> Result<(), EngineError> {
        control.report(progress);
        self.reserve(plan)
    }

    fn calibration_for(&self, precision: Precision) -> Result<Option<Arc<Calibration>>, EngineError> {
        match precision {
            Precision::Exact => Ok(None),
            Precision::Fast => self.calibrated().map(Some),
        }
    }

    fn calibrated(&self) -> Result<Arc<Calibration>, EngineError> {
        let mut calibration = self.calibration.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = &*calibration {
            return Ok(Arc::clone(made));
        }
        drop(self.workspace.take_spare(Duration::ZERO));
        let emptied = Emptied(&self.pool);
        let made = Arc::new(Calibration::new(self)?);
        drop(emptied);
        memory::give_back_freed();
        *calibration = Some(Arc::clone(&made));
        Ok(made)
    }

    /// As [`Program::run`], or with a history as [`Program::run_part`].
    fn run_kept(
        &self,
        plan: &Plan,
        input: &[f32],
        history: Option<&mut History>,
        control: &Control,
    ) -> Result<Vec<f32>, EngineError> {
        let calibration = self.calibration_for(plan.precision)?;
        let mut work = self.workspace.begin(plan)?;
        let output = self.run_calibrated(plan, calibration.as_deref(), input, history, control, &mut work)?;
        work.done();
        Ok(output)
    }

    /// The same in `arena`, which holds anything; without a calibration every layer computes in `f32`.
    pub(crate) fn run_calibrated(
        &self,
        plan: &Plan,
        calibration: Option<&Calibration>,
        input: &[f32],
        history: Option<&mut History>,
        control: &Control,
        arena: &mut [f32],
    ) -> Result<Vec<f32>, EngineError> {
        let mut output = zeroed(plan.output.iter().product::<usize>() * plan.frames[1])?;
        self.run_into(plan, calibration, input, history, control, arena, Output::Whole(&mut output))?;
        Ok(output)
    }

    #[allow(clippy::too_many_arguments)] // what to run, and what it reads, works in and fills
    fn run_into(
        &self,
        plan: &Plan,
        calibration: Option<&Calibration>,
        input: &[f32],
        mut history: Option<&mut History>,
        control: &Control,
        arena: &mut [f32],
        mut output: Output<'_>,
    ) -> Result<(), EngineError> {
        let [batch, channels, height, width] = plan.input;
        let frames = plan.frames[0];
        let expected = batch * channels * frames * height * width;
        if input.len() != expected {
            return Err(EngineError::InputLength { shape: plan.input, found: input.len(), expected });
        }
        let len = channels * frames * height * width;
        self.reserve(plan)?;
        let mut progress = Progress {
            done_flops: 0,
            total_flops: plan.summary().flops,
            step: 0,
            steps: plan.steps.len() * batch,
        };
        let mut moments = Moments::new();
        for (sample, from) in input.chunks_exact(len).enumerate() {
            let input = place(arena, plan.input_place);
            frames::to_blocked(from, [channels, frames, height * width], input)?;
            for step in &plan.steps {
                let layers = &self.layers(step)?;
                let run = Run { plan, sample, layers, calibration, control, progress };
                self.step(run, step, history.as_deref_mut(), &mut moments, arena, &mut output)?;
                progress.step += 1;
                progress.done_flops = progress.done_flops.saturating_add(step.flops);
                self.report(plan, control, progress)?;
            }
            if let Some(region) = plan.output_place {
                output.take_whole(plan, sample, place(arena, region))?;
            }
        }
        Ok(())
    }
}

pub(crate) fn place(arena: &mut [f32], region: Region) -> &mut [f32] {
    &mut arena[region.values.offset..][..region.values.len]
}

/// Zeros, or an error where `vec!` would end the process.
pub(crate) fn zeroed(len: usize) -> Result<Vec<f32>, EngineError> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(len)
        .map_err(|_| EngineError::Memory { bytes: len.saturating_mul(size_of::<f32>()) })?;
    values.resize(len, 0.0);
    Ok(values)
}
