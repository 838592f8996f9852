//! The CPU engine: plans run on the kernels, one sample at a time, with all threads in each step.

use remote_vae_kernels::convolution::{
    Arithmetic, Convolution, Epilogue, Frames, Geometry, Prologue, Residual,
};
use remote_vae_kernels::grouped::GroupedConvolution;
use remote_vae_kernels::layout::blocks;
use remote_vae_kernels::linear_attention::linear_attention;
use remote_vae_kernels::norm::{self, GroupNorm, Sums};
use remote_vae_kernels::rearrange;
use remote_vae_kernels::rms_norm::{RmsNorm, rms_norm};
use remote_vae_kernels::strip::{Strip, copy_rows, rows_from_blocked};
use remote_vae_kernels::{Activation, Buffer, Isa, Pool, Tensor, TensorMut, elementwise};
use remote_vae_model::{Graph, Operation, Start, Time, WeightId, WeightSource};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::arena::{Region, Views};
use crate::attend::Attend;
use crate::budget::Shortage;
use crate::calibration::Calibration;
use crate::fusion::Fused;
use crate::plan::{PlacedOperation, Plan, Step, Task};
use crate::shapes::geometry;
use crate::strips::Slice;
use crate::{
    Control, Engine, EngineError, History, Precision, Program, Progress, budget, frames, memory, strips,
};

/// How a [`CpuEngine`] is made.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Worker threads; `None` takes one for each processor that this process may use.
    pub threads: Option<usize>,
    /// Instruction tier by name (`avx512vnni`, `avx512`, `avx2`, `generic`); `None` takes the best this CPU has.
    pub isa: Option<String>,
    /// Bytes that this process may hold at its peak; `None` means as many as the straight plan needs.
    pub memory_budget: Option<u64>,
}

/// Runs graphs on the processor.
pub struct CpuEngine {
    pool: Arc<Pool>,
    isa: Isa,
    memory_budget: Option<u64>,
    /// What the process held before this engine did anything.
    process_bytes: u64,
}

impl CpuEngine {
    /// An engine with threads of its own.
    ///
    /// # Errors
    /// The instruction tier is not there, or the threads cannot be started.
    pub fn new(options: EngineOptions) -> Result<CpuEngine, EngineError> {
        let isa = options.isa.as_deref().map_or_else(|| Ok(Isa::detect()), Isa::by_name)?;
        let pool = Arc::new(Pool::new(options.threads).map_err(EngineError::Threads)?);
        let process_bytes = memory::resident_bytes().unwrap_or(0);
        Ok(CpuEngine { pool, isa, memory_budget: options.memory_budget, process_bytes })
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

    fn plan_part(
        &self,
        graph: &Graph,
        input: [usize; 5],
        start: Start,
        precision: Precision,
    ) -> Result<Plan, EngineError> {
        let task = |input| Task::new(graph, input, start, precision, self.isa, self.pool.threads());
        let available = self
            .memory_budget
            .map(|budget| usize::try_from(budget.saturating_sub(self.process_bytes)).unwrap_or(usize::MAX));
        let process = self.process_bytes as usize;
        budget::plan(&task(input)?, available).map_err(|Shortage { need, smallest, means }| {
            let budget = available.unwrap_or(usize::MAX);
            let largest = budget::largest(&task, input, budget, &means);
            EngineError::Budget {
                need: need + process,
                budget: budget + process,
                smallest: smallest + process,
                largest,
            }
        })
    }

    fn memory_budget(&self) -> Option<u64> {
        self.memory_budget
    }

    fn load(&self, graph: &Graph, weights: &dyn WeightSource) -> Result<Box<dyn Program>, EngineError> {
        let layers = (0..graph.nodes.len()).map(|node| self.layer(graph, node, weights));
        Ok(Box::new(CpuProgram {
            pool: Arc::clone(&self.pool),
            isa: self.isa,
            layers: layers.collect::<Result<_, _>>()?,
            graph: graph.clone(),
            calibration: Mutex::default(),
        }))
    }
}

impl CpuEngine {
    fn layer(&self, graph: &Graph, node: usize, source: &dyn WeightSource) -> Result<Layer, EngineError> {
        let read = |id: WeightId| -> Result<Vec<f32>, EngineError> {
            let spec = &graph.weights[id.0];
            let values = source.read(spec)?;
            let expected = spec.shape.iter().product();
            if values.len() != expected {
                let (name, shape, found) = (spec.name.clone(), spec.shape.clone(), values.len());
                return Err(EngineError::WeightLength { name, shape, found, expected });
            }
            Ok(values)
        };
        let node = &graph.nodes[node];
        Ok(match &node.operation {
            Operation::Convolution { weight, bias, time, .. } => {
                let Some(geometry) = geometry(graph, node) else {
                    unreachable!("convolution nodes have a geometry")
                };
                let bias = bias.map(read).transpose()?;
                let weight = match time.taps {
                    1 => read(*weight)?,
                    taps => frames::taps_as_channels(&read(*weight)?, &graph.weights[weight.0].shape, taps),
                };
                let convolution = Convolution::new(self.isa, geometry, &weight, bias.as_deref());
                Layer::Convolution { convolution, time: *time }
            }
            Operation::GroupNorm { groups, epsilon, weight, bias } => {
                Layer::Norm { groups: *groups, epsilon: *epsilon, weight: read(*weight)?, bias: read(*bias)? }
            }
            Operation::RmsNorm { weight, bias, epsilon } => {
                let bias = bias.map(read).transpose()?;
                Layer::RmsNorm { weight: read(*weight)?, bias, epsilon: *epsilon }
            }
            Operation::GroupedConvolution { weight, bias, kernel, group } => {
                let (weight, bias) = (read(*weight)?, bias.map(read).transpose()?);
                let (channels, bias) = (node.channels, bias.as_deref());
                Layer::Grouped(GroupedConvolution::new(channels, *group, *kernel, &weight, bias))
            }
            _ => Layer::Weightless,
        })
    }
}

/// What a graph node needs at run time.
enum Layer {
    Convolution { convolution: Convolution, time: Time },
    Norm { groups: usize, epsilon: f32, weight: Vec<f32>, bias: Vec<f32> },
    RmsNorm { weight: Vec<f32>, bias: Option<Vec<f32>>, epsilon: f32 },
    Grouped(GroupedConvolution),
    Weightless,
}

pub(crate) struct CpuProgram {
    pub(crate) pool: Arc<Pool>,
    pub(crate) isa: Isa,
    pub(crate) graph: Graph,
    /// One for each graph node.
    layers: Vec<Layer>,
    /// Made when `fast` is first used.
    calibration: Mutex<Option<Arc<Calibration>>>,
}

impl Program for CpuProgram {
    fn run(&self, plan: &Plan, input: &[f32], control: &Control) -> Result<Vec<f32>, EngineError> {
        let calibration = self.calibration_for(plan.precision)?;
        let result = self.run_calibrated(plan, calibration.as_deref(), input, None, control);
        // What the scratch holds is this request's own.
        self.pool.release();
        result
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
        let calibration = self.calibration_for(plan.precision)?;
        let result = self.run_calibrated(plan, calibration.as_deref(), input, Some(history), control);
        self.pool.release();
        result
    }

    fn prepare(&self, precision: Precision) -> Result<(), EngineError> {
        if precision == Precision::Fast {
            self.calibrated()?;
            self.pool.release();
        }
        Ok(())
    }

    fn calibration(&self) -> Option<Arc<Calibration>> {
        self.calibration.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl CpuProgram {
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
        let made = Arc::new(Calibration::new(self)?);
        *calibration = Some(Arc::clone(&made));
        Ok(made)
    }

    /// As [`Program::run`], or with a history as [`Program::run_part`]; without a calibration every layer computes in
    /// `f32`.
    pub(crate) fn run_calibrated(
        &self,
        plan: &Plan,
        calibration: Option<&Calibration>,
        input: &[f32],
        mut history: Option<&mut History>,
        control: &Control,
    ) -> Result<Vec<f32>, EngineError> {
        let [batch, channels, height, width] = plan.input;
        let [frames, output_frames] = plan.frames;
        let expected = batch * channels * frames * height * width;
        if input.len() != expected {
            return Err(EngineError::InputLength { shape: plan.input, found: input.len(), expected });
        }
        let [_, output_channels, output_height, output_width] = plan.output;
        let sample = channels * frames * height * width;
        let output_sample = output_channels * output_frames * output_height * output_width;
        let mut output = zeroed(batch * output_sample)?;
        let mut arena = Buffer::zeroed(plan.arena_len)
            .ok_or(EngineError::Memory { bytes: plan.arena_len.saturating_mul(size_of::<f32>()) })?;
        let mut progress = Progress {
            done_flops: 0,
            total_flops: plan.summary().flops,
            step: 0,
            steps: plan.steps.len() * batch,
        };
        for (from, to) in input.chunks_exact(sample).zip(output.chunks_exact_mut(output_sample)) {
            let input = place(&mut arena, plan.input_place);
            frames::to_blocked(from, [channels, frames, height * width], input)?;
            for step in &plan.steps {
                let history = history.as_deref_mut();
                self.step(plan, step, calibration, history, &mut arena, Some(&mut *to), control)?;
                progress.step += 1;
                progress.done_flops = progress.done_flops.saturating_add(step.flops);
                control.report(progress);
            }
            if let Some(region) = plan.output_place {
                let shape = [output_channels, output_frames, output_height * output_width];
                frames::from_blocked(place(&mut arena, region), shape, to)?;
            }
        }
        Ok(output)
    }
}

/// What all operations of a run have in common.
#[derive(Clone, Copy)]
struct Run<'a> {
    plan: &'a Plan,
    calibration: Option<&'a Calibration>,
    control: &'a Control,
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

impl CpuProgram {
    /// What the convolution of `operation` reads, with the frames `history` before its input.
    pub(crate) fn operands<'a>(
        &'a self,
        plan: &Plan,
        operation: &PlacedOperation,
        views: &'a Views<'_>,
        history: &'a [Tensor<'a>],
    ) -> Operands<'a> {
        let (Fused::Convolution { node, source, .. }, reads) = (&operation.fused, &operation.places.reads)
        else {
            unreachable!("only convolutions have these operands")
        };
        let Layer::Convolution { convolution, time } = &self.layers[*node] else {
            unreachable!("the plan belongs to another graph")
        };
        let Some(geometry) = geometry(&self.graph, &self.graph.nodes[*node]) else {
            unreachable!("convolution nodes have a geometry")
        };
        let affine = source.norm.map(|_| halves(views.read(reads[1].0)));
        let prologue = Prologue { affine, activation: source.activation, upsample: source.upsample };
        let [frames, height, width] = plan.sizes[source.base];
        let clip = frames::clip(frames, source.doubles_frames, time, plan.start, history.len());
        let frames = Frames { clip, input: views.tensor(reads[0].0), history };
        Operands { isa: self.isa, geometry, convolution, frames, size: [height, width], prologue }
    }

    /// Runs one step. Rows of the graph's result that it finishes go to `result`, plain `[channels, height, width]`.
    #[allow(clippy::too_many_arguments)] // a run's own state, which its steps share
    pub(crate) fn step(
        &self,
        plan: &Plan,
        step: &Step,
        calibration: Option<&Calibration>,
        history: Option<&mut History>,
        arena: &mut [f32],
        mut result: Option<&mut [f32]>,
        control: &Control,
    ) -> Result<(), EngineError> {
        let run = Run { plan, calibration, control };
        let Some(slices) = &step.slices else {
            control.check()?;
            self.operation(run, &step.operations[0], None, history, arena)?;
            return control.check();
        };
        let mut sums: Vec<Option<Sums>> = step.operations.iter().map(|_| None).collect();
        for Slice { member, rows } in slices.iter() {
            control.check()?;
            let strip = (rows, &mut sums[*member]);
            let operation = &step.operations[*member];
            self.operation(run, operation, Some(strip), None, arena)?;
            if let (true, Some(result)) = (operation.places.leaves, result.as_deref_mut()) {
                let [_, channels, height, width] = plan.output;
                let ring = (&*place(arena, operation.places.output), operation.places.output_rows);
                rows_from_blocked(ring, [channels, height, width], rows.clone(), result);
            }
        }
        control.check()
    }

    /// Runs one operation, as a whole or some rows of it; statistics of rows are summed up in what comes with these.
    fn operation(
        &self,
        Run { plan, calibration, control }: Run<'_>,
        operation: &PlacedOperation,
        strip: Option<(&Range<usize>, &mut Option<Sums>)>,
        history: Option<&mut History>,
        arena: &mut [f32],
    ) -> Result<(), EngineError> {
        let (pool, isa) = (&*self.pool, self.isa);
        let places = &operation.places;
        let reads: Vec<Region> = places.reads.iter().map(|(region, _)| *region).collect();
        let mut views = Views::new(arena, &[&reads[..], &[places.output, places.scratch]].concat());
        let in_place = |region: Region| region == places.output;
        let elsewhere = |region: Region| (!in_place(region)).then_some(region);
        let pixels = |node: usize| plan.sizes[node][1] * plan.sizes[node][2];
        let frames = |node: usize| plan.sizes[node][0];
        let frame_groups = |node: usize| blocks(plan.channels[node]) * pixels(node);
        match &operation.fused {
            Fused::Convolution { node, residual, activation, .. } => {
                let scratch = views.take(places.scratch);
                let output = views.take_tensor(places.output);
                let before = history.as_deref().map(|history| history.of(*node)).unwrap_or_default();
                let operands = self.operands(plan, operation, &views, &before);
                let (residual, residual_rows) = match residual.and_then(|_| places.reads.last().copied()) {
                    None => (Residual::None, places.output_rows),
                    Some((region, rows)) if in_place(region) => (Residual::InPlace, rows),
                    Some((region, rows)) => (Residual::Tensor(views.tensor(region)), rows),
                };
                let epilogue = Epilogue { residual, activation: *activation };
                let arithmetic = calibration.map_or(Arithmetic::Float32, |found| found.arithmetic(*node));
                match strip {
                    None => operands.run(pool, arithmetic, epilogue, scratch, output),
                    Some((rows, _)) => {
                        let strip = Strip {
                            rows: rows.clone(),
                            input_rows: places.reads[0].1,
                            output_rows: places.output_rows,
                            residual_rows,
                            weights_ready: places.own_scratch && rows.start > 0,
                        };
                        operands.run_strip(pool, arithmetic, epilogue, &strip, scratch, output);
                    }
                }
                let clip = operands.frames.clip;
                if let Some(history) = history {
                    history.keep(*node, &clip, views.tensor(reads[0]))?;
                }
            }
            Fused::NormStatistics { node, input } => {
                let Layer::Norm { groups, epsilon, weight, bias } = &self.layers[*node] else {
                    unreachable!("the plan belongs to another graph")
                };
                let norm = GroupNorm { groups: *groups, epsilon: *epsilon, weight, bias };
                let (scale, shift) = views.take(places.output).split_at_mut(places.output.len() / 2);
                let values = views.tensor(reads[0]);
                let Some((rows, sums)) = strip else {
                    let shape = [frames(*input), pixels(*input)];
                    norm::clip_statistics(isa, pool, norm, values, shape, scale, shift);
                    return Ok(());
                };
                let sums = sums.get_or_insert_with(|| Sums::new(plan.channels[*input], pixels(*input)));
                let [_, height, width] = plan.sizes[*input];
                let taken = |rows| strips::pixels_taken(rows, height, width);
                sums.add(isa, pool, values, taken(rows.start)..taken(rows.end));
                if rows.end == height {
                    sums.table(norm, scale, shift);
                }
            }
            Fused::Copy { input } => {
                let Some((rows, _)) = strip else { unreachable!("rows are kept in strips only") };
                let width = plan.sizes[*input][2];
                let output = (views.take_tensor(places.output), places.output_rows);
                copy_rows(pool, (views.tensor(reads[0]), places.reads[0].1), output, width, rows.clone());
            }
            Fused::NormApply { input, .. } => {
                let output = views.take_tensor(places.output);
                let table = halves(views.read(reads[1]));
                let values = views.tensor(reads[0]);
                let len = frame_groups(*input);
                for (frame, output) in output.parts(len).into_iter().enumerate() {
                    let values = values.part(frame * len, len);
                    norm::apply(isa, pool, values, pixels(*input), table, Activation::None, output);
                }
            }
            Fused::RmsNorm { node, input, activation } => {
                let Layer::RmsNorm { weight, bias, epsilon } = &self.layers[*node] else {
                    unreachable!("the plan belongs to another graph")
                };
                let norm = RmsNorm { weight, bias: bias.as_deref(), epsilon: *epsilon };
                let output = views.take_tensor(places.output);
                let values = views.tensor(reads[0]);
                let len = frame_groups(*input);
                for (frame, output) in output.parts(len).into_iter().enumerate() {
                    let values = values.part(frame * len, len);
                    rms_norm(isa, pool, values, pixels(*input), norm, *activation, output);
                }
            }
            Fused::GroupedConvolution { node, input, activation } => {
                let Layer::Grouped(convolution) = &self.layers[*node] else {
                    unreachable!("the plan belongs to another graph")
                };
                let output = views.take_tensor(places.output);
                let values = views.tensor(reads[0]);
                let ([_, height, width], len) = (plan.sizes[*input], frame_groups(*input));
                for (frame, output) in output.parts(len).into_iter().enumerate() {
                    let values = values.part(frame * len, len);
                    convolution.run(isa, pool, values, [height, width], *activation, output);
                }
            }
            Fused::LinearAttention { head, inputs } => {
                let output = views.take_tensor(places.output);
                let (channels, pixels, len) =
                    (plan.channels[inputs[0]], pixels(inputs[0]), frame_groups(inputs[0]));
                let made = blocks(channels * inputs.len() / 3) * pixels;
                for (frame, output) in output.parts(made).into_iter().enumerate() {
                    let operands: Vec<Tensor<'_>> =
                        reads.iter().map(|read| views.tensor(*read).part(frame * len, len)).collect();
                    linear_attention(isa, pool, &operands, channels, *head, pixels, output);
                }
            }
            Fused::Attention { node, reach, inputs } => {
                let (scratch, output) = (views.take(places.scratch), views.take_tensor(places.output));
                let operands = [0, 1, 2].map(|index| views.tensor(reads[index]));
                let arithmetic = calibration.map_or(Arithmetic::Float32, |found| found.arithmetic(*node));
                let (channels, size) = (plan.channels[inputs[0]], plan.sizes[inputs[0]]);
                let attend = Attend::new(*reach, channels, size, arithmetic);
                attend.run(isa, pool, operands, scratch, output, control);
            }
            Fused::Map { map, input } => {
                let output = views.take_tensor(places.output);
                let values = elsewhere(reads[0]).map(|region| views.tensor(region));
                let (shape, len) = ([plan.channels[*input], pixels(*input)], frame_groups(*input));
                for (frame, output) in output.parts(len).into_iter().enumerate() {
                    let values = values.map(|values| values.part(frame * len, len));
                    elementwise::map(isa, pool, *map, shape, values, output);
                }
            }
            Fused::Upsample { factor, doubles_frames, input } => {
                let output = views.take_tensor(places.output);
                let values = views.tensor(reads[0]);
                let ([_, height, width], len) = (plan.sizes[*input], frame_groups(*input));
                for (frame, output) in output.parts(len * factor * factor).into_iter().enumerate() {
                    let from = if *doubles_frames { frame.div_ceil(2) } else { frame };
                    let values = values.part(from * len, len);
                    elementwise::upsample_nearest(isa, pool, values, [height, width], *factor, output);
                }
            }
            Fused::FirstFrame { inputs } => {
                let output = views.take_tensor(places.output);
                let [first, others] = [reads[0], reads[1]];
                let len = frame_groups(inputs[0]);
                for (frame, mut output) in output.parts(len).into_iter().enumerate() {
                    if frame == 0 && plan.start == Start::Clip {
                        output.copy_from(views.tensor(first).part(0, len));
                    } else if let Some(others) = elsewhere(others) {
                        output.copy_from(views.tensor(others).part(frame * len, len));
                    }
                }
            }
            Fused::DoubleFrames { inputs } => {
                let output = views.take_tensor(places.output);
                let operands = [0, 1, 2].map(|index| views.tensor(reads[index]));
                let len = frame_groups(inputs[0]);
                for (frame, mut output) in output.parts(len).into_iter().enumerate() {
                    let [from, half] = frames::origin(frame, 2, plan.start);
                    let is_first = frame == 0 && plan.start == Start::Clip;
                    let operand = operands[if is_first { 0 } else { half + 1 }];
                    output.copy_from(operand.part(from * len, len));
                }
            }
            Fused::Expand { cell, repeats, input } => {
                let output = views.take_tensor(places.output);
                let values = views.tensor(reads[0]);
                let ([_, height, width], len) = (plan.sizes[*input], frame_groups(*input));
                let channels = plan.channels[*input] * repeats / cell.elements();
                let made = blocks(channels) * height * width * cell.space * cell.space;
                for (frame, output) in output.parts(made).into_iter().enumerate() {
                    let [from, part] = frames::origin(frame, cell.time, plan.start);
                    let values = values.part(from * len, len);
                    let (cell, size) = (frames::cell(*cell), [height, width]);
                    rearrange::expand(isa, pool, cell, part, *repeats, values, channels, size, output);
                }
            }
            Fused::Collect { cell, mean, input } => {
                let output = views.take_tensor(places.output);
                let values = views.tensor(reads[0]);
                let ([_, height, width], len) = (plan.sizes[*input], frame_groups(*input));
                let (channels, size) = (plan.channels[*input], [height / cell.space, width / cell.space]);
                let made = blocks(channels * cell.elements() / mean) * size[0] * size[1];
                for (frame, output) in output.parts(made).into_iter().enumerate() {
                    let source = |part| frames::source(frame, part, cell.time, plan.start);
                    let frames: Vec<_> = (0..cell.time)
                        .map(|part| source(part).map(|from| values.part(from * len, len)))
                        .collect();
                    rearrange::collect(
                        isa,
                        pool,
                        frames::cell(*cell),
                        *mean,
                        &frames,
                        channels,
                        size,
                        output,
                    );
                }
            }
            Fused::Add { .. } | Fused::Multiply { .. } => {
                let output = views.take_tensor(places.output);
                let (first, second) =
                    if in_place(reads[1]) { (reads[1], reads[0]) } else { (reads[0], reads[1]) };
                let first = elsewhere(first).map(|region| views.tensor(region));
                let is_sum = matches!(&operation.fused, Fused::Add { .. });
                let combine = if is_sum { elementwise::add } else { elementwise::multiply };
                combine(isa, pool, first, views.tensor(second), output);
            }
        }
        Ok(())
    }
}

/// What a convolution reads, beside a residual.
pub(crate) struct Operands<'a> {
    isa: Isa,
    pub(crate) geometry: Geometry,
    convolution: &'a Convolution,
    frames: Frames<'a>,
    size: [usize; 2],
    prologue: Prologue<'a>,
}

impl Operands<'_> {
    /// Computes into `output`; `scratch` may be longer than needed.
    pub(crate) fn run(
        &self,
        pool: &Pool,
        arithmetic: Arithmetic,
        epilogue: Epilogue<'_>,
        scratch: &mut [f32],
        output: TensorMut<'_>,
    ) {
        let Operands { convolution, frames, size, prologue, .. } = *self;
        let scratch =
            &mut scratch[..Convolution::scratch_len(self.isa, &self.geometry, prologue.upsample, arithmetic)];
        convolution.run_clip(pool, arithmetic, frames, size, prologue, epilogue, scratch, output);
    }

    /// As [`Operands::run`], for some rows.
    fn run_strip(
        &self,
        pool: &Pool,
        arithmetic: Arithmetic,
        epilogue: Epilogue<'_>,
        strip: &Strip,
        scratch: &mut [f32],
        output: TensorMut<'_>,
    ) {
        let Operands { convolution, frames, size, prologue, .. } = *self;
        let scratch =
            &mut scratch[..Convolution::scratch_len(self.isa, &self.geometry, prologue.upsample, arithmetic)];
        convolution.run_strip(
            pool,
            arithmetic,
            frames.input,
            size,
            prologue,
            epilogue,
            strip,
            scratch,
            output,
        );
    }
}

fn halves(table: &[f32]) -> (&[f32], &[f32]) {
    table.split_at(table.len() / 2)
}
