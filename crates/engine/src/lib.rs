//! How a graph runs: an [`Engine`] turns a graph and an input shape into a [`Plan`] and runs it.
//!
//! The plan (fusion, one arena, cost) is made without touching a weight, so that peak memory and work are known before
//! a request is admitted. [`Autoencoder`] binds a model to an engine: latents in, pixels out, and back.
#![forbid(unsafe_code)]

mod arena;
mod attend;
mod autoencoder;
mod autoencoder_parts;
mod autoencoder_tiles;
mod autoencoder_video;
mod budget;
mod calibration;
mod control;
mod cpu;
mod delivery;
mod error;
mod frames;
mod fusion;
mod groups;
mod history;
mod layout;
pub mod memory;
mod plan;
mod plans;
mod precision;
mod shapes;
mod still;
mod strips;
mod tiles;
mod walk;
mod windows;

pub use autoencoder::{Autoencoder, Draw, Image, Latents, Released};
pub use autoencoder_video::{Clip, Frames};
pub use calibration::Calibration;
pub use control::{Control, Progress};
pub use cpu::{CpuEngine, EngineOptions, Rows};
pub use delivery::Delivery;
pub use error::EngineError;
pub use history::History;
pub use plan::{Beside, Plan, PlanRequest, PlanSummary, Step};
pub use precision::Precision;
pub use windows::Windows;

use std::sync::Arc;
use std::time::Duration;

use remote_vae_model::{Graph, WeightSource};

/// Something that runs graphs. The same suite of tests runs against every implementation.
pub trait Engine: Send + Sync {
    /// Device, instruction tier and precision, e.g. `cpu/avx512/exact`; answers under one name are equal to the byte.
    fn name(&self, precision: Precision) -> String;

    /// Instruction tier, e.g. `avx512`.
    fn isa(&self) -> &str;

    /// Worker threads.
    fn threads(&self) -> usize;

    /// Bytes that the process may hold at its peak, if that is limited. Plans keep within it.
    fn memory_budget(&self) -> Option<u64> {
        None
    }

    /// Bytes that the process holds beside any work: what it held before there was any, and what it takes once it works.
    fn process_bytes(&self) -> u64 {
        0
    }

    /// The process turned out to hold `bytes` beside any work: if these are more than [`Engine::process_bytes`], that becomes
    /// them, and plans that are made from now on leave room for them.
    fn note_process_bytes(&self, _bytes: u64) {}

    /// Bytes that work may hold: the budget less [`Engine::process_bytes`].
    fn work_budget(&self) -> Option<u64> {
        self.memory_budget().map(|budget| budget.saturating_sub(self.process_bytes()))
    }

    /// From now on the memory of a run that has ended stays for the next run of the same size, and goes when other work comes
    /// or it is [taken](Engine::take_spare). Until this is called every run gives back what it took.
    fn keep_spare(&self) {}

    /// Bytes that are kept so, no more than the plan of the run that left them.
    fn spare_bytes(&self) -> u64 {
        0
    }

    /// Takes that memory, if it has been kept for `age`.
    fn take_spare(&self, _age: Duration) -> Option<Spare> {
        None
    }

    /// Floating-point operations per second that the device reaches without memory, measured now; takes well below a
    /// second.
    fn peak_flops_per_second(&self) -> f64;

    /// How `graph` runs on pictures `[batch, channels, height, width]`; allocates nothing of that size.
    ///
    /// # Errors
    /// The shape does not fit the graph.
    fn plan(
        &self,
        graph: &Graph,
        [batch, channels, height, width]: [usize; 4],
        precision: Precision,
    ) -> Result<Plan, EngineError> {
        self.plan_clip(graph, [batch, channels, 1, height, width], precision)
    }

    /// How `graph` runs on clips `[batch, channels, frames, height, width]`; allocates nothing of that size.
    ///
    /// # Errors
    /// The shape does not fit the graph, or no plan fits the memory budget.
    fn plan_clip(&self, graph: &Graph, input: [usize; 5], precision: Precision) -> Result<Plan, EngineError> {
        self.plan_part(PlanRequest::whole(graph, input, precision))
    }

    /// As [`Engine::plan_clip`] for a part of a clip, the first or one that goes on, or for pictures that are given in rows.
    ///
    /// # Errors
    /// The shape does not fit the graph, or no plan fits the memory budget.
    fn plan_part(&self, request: PlanRequest<'_>) -> Result<Plan, EngineError>;

    /// Reads and lays out the weights of `graph`.
    ///
    /// # Errors
    /// A weight cannot be read or has the wrong shape.
    fn load(&self, graph: &Graph, weights: &dyn WeightSource) -> Result<Box<dyn Program>, EngineError>;

    /// A program for `graph` that holds no weights: each step reads those that it works with and lets them go. Its results
    /// have the bytes of [`Engine::load`]'s.
    fn load_by_steps(&self, graph: &Graph, weights: Arc<dyn WeightSource>) -> Box<dyn Program>;
}

/// Memory that nothing uses any more. It is free when this is dropped, which takes a while.
pub struct Spare {
    _memory: Box<dyn Send>,
}

impl Spare {
    /// What an engine kept.
    pub fn new(memory: Box<dyn Send>) -> Spare {
        Spare { _memory: memory }
    }
}

/// A graph with its weights, ready to run.
pub trait Program: Send + Sync {
    /// Does what the first run in `precision` would have to do first: `fast` is compared with `exact` on a probe, to see
    /// which layers need `f32`.
    ///
    /// # Errors
    /// Memory is refused.
    fn prepare(&self, precision: Precision) -> Result<(), EngineError>;

    /// Bytes of the weights that it holds, as they are laid out.
    fn weight_bytes(&self) -> usize;

    /// What the comparison found, once it was made.
    fn calibration(&self) -> Option<Arc<Calibration>>;

    /// Takes what the comparison found in another program of the same graph and engine, instead of making it again.
    fn adopt(&self, calibration: Arc<Calibration>);

    /// As [`Program::run`] for a part of one clip of a causal graph ([`Graph::is_causal`]): `history` is what the parts
    /// before it have left, empty before the first, and gets what this one leaves. A frame has the same bytes wherever a
    /// clip is cut.
    ///
    /// # Errors
    /// As [`Program::run`]; also when the plan is of several clips.
    fn run_part(
        &self,
        plan: &Plan,
        input: &[f32],
        history: &mut History,
        control: &Control,
    ) -> Result<Vec<f32>, EngineError>;

    /// Runs `plan`, made for the same graph by the same engine, on `input` (`[batch, channels, frames, height, width]`)
    /// in the plan's precision.
    ///
    /// A sample's bytes do not depend on the number of threads or on the other samples of its batch.
    ///
    /// # Errors
    /// The input's length is not that of the plan, memory is refused, or `control` was cancelled.
    fn run(&self, plan: &Plan, input: &[f32], control: &Control) -> Result<Vec<f32>, EngineError>;

    /// As [`Program::run`] for pictures, whose rows go to `sink` as they are finished: all of each sample, from the top, each
    /// once. They are never stored together. An error of `sink` ends the run.
    ///
    /// # Errors
    /// As [`Program::run`]; also when the plan is of a clip.
    fn run_rows(
        &self,
        plan: &Plan,
        input: &[f32],
        control: &Control,
        sink: &mut dyn FnMut(Rows<'_>) -> Result<(), EngineError>,
    ) -> Result<(), EngineError>;
}
