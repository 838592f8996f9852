//! Where `fast` may use integers: each convolution and attention is compared with itself in `f32` on a small made-up input, and then
//! the whole graph with `exact`. What comes out depends on the weights and the instruction tier alone.

use remote_vae_kernels::convolution::{Arithmetic, Convolution, Epilogue, Geometry};
use remote_vae_kernels::layout::blocked_len;
use remote_vae_kernels::{Buffer, Isa, Storage, TensorMut};
use remote_vae_model::{Graph, random};

use crate::arena::Views;
use crate::attend::Attend;
use crate::cpu::{CpuProgram, Layers, Moments, Output, Run, place, zeroed};
use crate::fusion::Fused;
use crate::groups::Means;
use crate::layout::most;
use crate::plan::{PlacedOperation, Plan, Task};
use crate::shapes::geometry;
use crate::{Control, EngineError, PlanRequest, Precision, Progress, frames};

/// A layer whose sums in integers differ more than this from those in `f32` (root mean square, relative) computes in
/// `f32`. White noise through the largest tiles differs by half of it, as sums of numbers in bfloat16 would. Rounding to
/// halves, which `fast` does between layers, differs by 2⁻¹² and is not counted.
const LARGEST_LAYER_ERROR: f64 = 1.0 / 256.0;
/// Below this many dB no layer uses integers.
const LEAST_PSNR: f64 = 54.0;
/// Sides of the probe: as latents, and as a picture where the graph makes it smaller, the first that it takes.
const SIDES: [usize; 3] = [8, 64, 256];
/// Frames of the probe of a graph that knows time: as latents, and as a clip where the graph makes it smaller. They
/// differ, so that what a convolution reads of the frames before does too.
const FRAMES: [usize; 3] = [3, 9, 9];

/// The comparison's small input as either precision runs it. Always by the straight plan: what is found depends on no budget.
pub(crate) struct Probe {
    exact: Plan,
    fast: Plan,
}

impl Probe {
    /// Of `graph`, on the first of the inputs that it takes.
    ///
    /// # Errors
    /// It takes none of them.
    pub(crate) fn new(graph: &Graph, isa: Isa, threads: usize) -> Result<Probe, EngineError> {
        let plan = |precision| {
            let plan = |size: usize| {
                let frames = if graph.has_time() { FRAMES[size] } else { 1 };
                let shape = [1, graph.input_channels(), frames, SIDES[size], SIDES[size]];
                let task = Task::new(PlanRequest::whole(graph, shape, precision), isa, threads)?;
                Ok::<_, EngineError>(Plan::new(&task, &Means::default()))
            };
            match plan(0) {
                Ok(small) if small.output[2] >= small.input[2] => Ok(small),
                _ => plan(1).or_else(|_| plan(2)),
            }
        };
        Ok(Probe { exact: plan(Precision::Exact)?, fast: plan(Precision::Fast)? })
    }

    /// Bytes that the comparison takes beside the weights, at most.
    pub(crate) fn bytes(&self, graph: &Graph, isa: Isa) -> usize {
        let Probe { exact, fast } = self;
        let (runs, compared) = (exact.summary(), self.compared_len(graph, isa) * size_of::<f32>());
        let layers = exact.arena_len * size_of::<f32>() + compared;
        let workers = exact.worker_len().max(fast.worker_len()) * exact.threads * size_of::<f32>();
        let activations = layers.max(fast.arena_len * size_of::<f32>()) + workers;
        // The result of either, beside the other.
        let values = |shape: [usize; 4], frames: usize| shape.iter().product::<usize>() * frames;
        let [input, output] = [values(runs.input, runs.frames[0]), values(runs.output, runs.frames[1])];
        activations + (input + 2 * output) * size_of::<f32>()
    }

    /// `f32` that comparing one layer with itself takes beside the arena, at most.
    fn compared_len(&self, graph: &Graph, isa: Isa) -> usize {
        let of = |operation: &PlacedOperation| match &operation.fused {
            Fused::Convolution { node, source, .. } => {
                let Some(geometry) = geometry(graph, &graph.nodes[*node]) else { return 0 };
                let scratch = most(Precision::Fast, &[geometry], |geometry, arithmetic| {
                    Convolution::scratch_len(isa, geometry, source.upsample, arithmetic)
                });
                2 * sums_len(&self.exact, *node, &geometry) + beyond(operation, scratch)
            }
            Fused::Attention { reach, inputs, .. } => {
                let (channels, size) = (self.exact.channels[inputs[0]], self.exact.sizes[inputs[0]]);
                let scratch = |arithmetic: &Arithmetic| {
                    Attend::new(*reach, channels, size, *arithmetic).shape.scratch_len(isa)
                };
                let scratch = Precision::Fast.arithmetics().iter().map(scratch).max().unwrap_or(0);
                2 * Storage::Float32.len(operation.places.reads[0].0.groups) + beyond(operation, scratch)
            }
            _ => 0,
        };
        self.exact.steps.iter().flat_map(|step| &step.operations).map(of).max().unwrap_or(0)
    }
}

/// `f32` of a convolution's sums.
fn sums_len(plan: &Plan, node: usize, geometry: &Geometry) -> usize {
    let [frames, height, width] = plan.sizes[node];
    frames * blocked_len(geometry.output_channels, height * width)
}

/// `f32` of a scratch of `len` that has no room in the step's own.
fn beyond(operation: &PlacedOperation, len: usize) -> usize {
    if len > operation.places.scratch.len() { len } else { 0 }
}

/// How `fast` compares with `exact` on the probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Peak signal-to-noise ratio of the result in dB, the peak being the range of the values of `exact`.
    pub psnr: f64,
    /// Largest difference of two values of the result.
    pub largest_error: f32,
    /// Names of the layers that could use integers but compute in `f32`.
    pub float32_layers: Vec<String>,
    /// Layers that use integers.
    pub integer16_layers: usize,
    /// For each graph node.
    arithmetic: Vec<Arithmetic>,
}

impl Calibration {
    /// Runs the probe.
    pub(crate) fn new(program: &CpuProgram) -> Result<Calibration, EngineError> {
        let graph = &program.graph;
        let Probe { exact, fast } = Probe::new(graph, program.isa, program.pool.threads())?;
        let input = random::normal(0, exact.input.iter().product::<usize>() * exact.frames[0]);
        let expected = program.run_calibrated(
            &exact,
            None,
            &input,
            None,
            &Control::new(),
            &mut buffer(exact.arena_len)?,
        )?;
        program.reserve(&fast)?;
        let errors = layer_errors(program, &exact, &input)?;
        let mut calibration = Calibration {
            psnr: 0.0,
            largest_error: 0.0,
            float32_layers: Vec::new(),
            integer16_layers: 0,
            arithmetic: vec![Arithmetic::Float32; graph.nodes.len()],
        };
        for (node, error) in &errors {
            // Written so that an error that is not a number keeps the layer in `f32`.
            if *error <= LARGEST_LAYER_ERROR {
                calibration.arithmetic[*node] = Arithmetic::Integer16;
            }
        }
        calibration.compare(program, &fast, &input, &expected)?;
        let close = calibration.psnr >= LEAST_PSNR;
        if !close && calibration.arithmetic.contains(&Arithmetic::Integer16) {
            calibration.arithmetic.fill(Arithmetic::Float32);
            calibration.compare(program, &fast, &input, &expected)?;
        }
        for (node, _) in errors {
            match calibration.arithmetic[node] {
                Arithmetic::Float32 => calibration.float32_layers.push(graph.nodes[node].name.clone()),
                Arithmetic::Integer16 => calibration.integer16_layers += 1,
            }
        }
        tracing::info!(
            psnr_db = calibration.psnr,
            largest_error = calibration.largest_error,
            integer16_layers = calibration.integer16_layers,
            float32_layers = calibration.float32_layers.join(" "),
            "compared fast with exact"
        );
        Ok(calibration)
    }

    /// What a node computes in.
    pub(crate) fn arithmetic(&self, node: usize) -> Arithmetic {
        self.arithmetic[node]
    }

    fn compare(
        &mut self,
        program: &CpuProgram,
        fast: &Plan,
        input: &[f32],
        expected: &[f32],
    ) -> Result<(), EngineError> {
        let found = program.run_calibrated(
            fast,
            Some(self),
            input,
            None,
            &Control::new(),
            &mut buffer(fast.arena_len)?,
        )?;
        (self.psnr, self.largest_error) = difference(&found, expected);
        Ok(())
    }
}

/// Peak signal-to-noise ratio of `found` in dB, the peak being the range of `expected`, and their largest difference;
/// neither is a number if one of the values is none.
fn difference(found: &[f32], expected: &[f32]) -> (f64, f32) {
    let (mut squares, mut lowest, mut highest) = (0.0f64, f32::INFINITY, f32::NEG_INFINITY);
    let mut largest = 0.0f32;
    for (found, expected) in found.iter().zip(expected) {
        let error = (found - expected).abs();
        squares += f64::from(error) * f64::from(error);
        // `max` would drop NaN, here and below.
        if error > largest || error.is_nan() {
            largest = error;
        }
        (lowest, highest) = (lowest.min(*expected), highest.max(*expected));
    }
    let range = f64::from(highest) - f64::from(lowest);
    let mean = squares / expected.len() as f64;
    let mean = if mean == 0.0 { f64::MIN_POSITIVE } else { mean };
    (10.0 * (range * range / mean).log10(), largest)
}

/// The error of each convolution and attention, by node: root mean square over that of its sums.
fn layer_errors(program: &CpuProgram, plan: &Plan, input: &[f32]) -> Result<Vec<(usize, f64)>, EngineError> {
    let [_, channels, height, width] = plan.input;
    let mut arena = buffer(plan.arena_len)?;
    let shape = [channels, plan.frames[0], height * width];
    frames::to_blocked(input, shape, place(&mut arena, plan.input_place))?;
    let mut result = zeroed(plan.frames[1] * plan.output[1..].iter().product::<usize>())?;
    let (control, progress) = (Control::new(), Progress::default());
    let (mut errors, mut moments) = (Vec::new(), Moments::new());
    for step in &plan.steps {
        let layers = &program.layers(step)?;
        for operation in &step.operations {
            let error = match &operation.fused {
                Fused::Convolution { node, .. } => {
                    Some((*node, convolution_error(program, plan, layers, operation, &mut arena)?))
                }
                Fused::Attention { node, .. } => {
                    Some((*node, attention_error(program, plan, operation, &mut arena)?))
                }
                _ => None,
            };
            errors.extend(error);
        }
        let run = Run { plan, sample: 0, layers, calibration: None, control: &control, progress };
        program.step(run, step, None, &mut moments, &mut arena, &mut Output::Whole(&mut result))?;
    }
    Ok(errors)
}

fn convolution_error(
    program: &CpuProgram,
    plan: &Plan,
    layers: &Layers<'_>,
    operation: &PlacedOperation,
    arena: &mut [f32],
) -> Result<f64, EngineError> {
    let Fused::Convolution { node, source, .. } = &operation.fused else {
        unreachable!("called for convolutions alone")
    };
    let Some(geometry) = geometry(&program.graph, &program.graph.nodes[*node]) else {
        unreachable!("convolution nodes have a geometry")
    };
    let (views, own) = lent(operation, arena);
    let operands = program.operands(plan, layers, operation, &views, &[]);
    let mut sums = |arithmetic| -> Result<Buffer, EngineError> {
        let mut sums = buffer(sums_len(plan, *node, &geometry))?;
        let len = Convolution::scratch_len(program.isa, &geometry, source.upsample, arithmetic);
        let mut more = buffer(beyond(operation, len))?;
        let scratch = if more.is_empty() { &mut *own } else { &mut more[..] };
        let output: TensorMut<'_> = (&mut sums[..]).into();
        operands.run(&program.pool, arithmetic, Epilogue::default(), scratch, output.into());
        Ok(sums)
    };
    let (expected, found) = (sums(Arithmetic::Float32)?, sums(Arithmetic::Integer16)?);
    Ok(relative_error(&found, &expected))
}

fn attention_error(
    program: &CpuProgram,
    plan: &Plan,
    operation: &PlacedOperation,
    arena: &mut [f32],
) -> Result<f64, EngineError> {
    let Fused::Attention { reach, inputs, .. } = &operation.fused else {
        unreachable!("called for attention alone")
    };
    let (views, own) = lent(operation, arena);
    let operands = [0, 1, 2].map(|index| views.tensor(operation.places.reads[index].0));
    let (channels, size) = (plan.channels[inputs[0]], plan.sizes[inputs[0]]);
    let mut result = |arithmetic| -> Result<Buffer, EngineError> {
        let attend = Attend::new(*reach, channels, size, arithmetic);
        let mut result = buffer(Storage::Float32.len(operands[0].groups()))?;
        let mut more = buffer(beyond(operation, attend.shape.scratch_len(program.isa)))?;
        let scratch = if more.is_empty() { &mut *own } else { &mut more[..] };
        let output = (&mut result[..]).into();
        attend.run(program.isa, &program.pool, operands, scratch, output, &Control::new());
        Ok(result)
    };
    let (expected, found) = (result(Arithmetic::Float32)?, result(Arithmetic::Integer16)?);
    Ok(relative_error(&found, &expected))
}

/// What the operation reads, and its scratch: nothing lies there until it runs.
fn lent<'a>(operation: &PlacedOperation, arena: &'a mut [f32]) -> (Views<'a>, &'a mut [f32]) {
    let places = &operation.places;
    let reads = places.reads.iter().map(|(region, _)| *region);
    let mut views = Views::new(arena, &reads.chain([places.scratch]).collect::<Vec<_>>());
    let scratch = views.take(places.scratch);
    (views, scratch)
}

/// Root mean square of the difference, over that of `expected`.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value) * f64::from(value);
    let error: f64 = found.iter().zip(expected).map(|(found, expected)| square(found - expected)).sum();
    let size: f64 = expected.iter().map(|value| square(*value)).sum();
    if error == 0.0 { 0.0 } else { (error / size).sqrt() }
}

fn buffer(len: usize) -> Result<Buffer, EngineError> {
    Buffer::zeroed(len).ok_or(EngineError::Memory { bytes: len.saturating_mul(size_of::<f32>()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_is_not_close() {
        let expected = [-1.0, 0.0, 1.0, 0.5];
        let (psnr, largest) = difference(&[-1.0, 0.0, 1.0, 0.52], &expected);
        assert!((psnr - 46.02).abs() < 0.01 && (largest - 0.02).abs() < 1e-6, "{psnr} dB, {largest}");
        assert!(difference(&expected, &expected).0 >= LEAST_PSNR);
        for at in 0..4 {
            for wrong in [f32::NAN, f32::INFINITY] {
                let mut found = expected;
                found[at] = wrong;
                let (psnr, largest) = difference(&found, &expected);
                let close = psnr >= LEAST_PSNR;
                assert!(!close && !largest.is_finite(), "{psnr} dB, {largest}");
            }
        }
    }
}
