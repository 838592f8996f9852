//! The plan: steps with places in one arena, and what they cost, known before anything runs.

use std::collections::HashMap;

use remote_vae_kernels::attention;
use remote_vae_kernels::convolution::{Arithmetic, Convolution, Geometry};
use remote_vae_kernels::layout::{BLOCK, blocks};
use remote_vae_kernels::{Isa, Storage};
use remote_vae_model::{Edge, Graph, Node, Operation, Reach, Start};

use crate::arena::{Lifetime, Region, place};
use crate::fusion::{Fused, FusedStep, Value, fuse};
use crate::{EngineError, Precision, frames};

/// One step of a plan.
#[derive(Clone, Debug)]
pub struct Step {
    /// The graph node it starts from, e.g. `decoder.up_blocks.0.resnets.1.conv1`.
    pub name: String,
    /// What it does and how, e.g. `convolution 3x3, winograd`.
    pub operation: String,
    /// Shape of a frame of its result, `[channels, height, width]`; a norm's statistics have `[2, channels, 1]`.
    pub output: [usize; 3],
    /// Floating-point operations of the definition, whatever the algorithm saves; a multiplication with its addition
    /// counts two. Norms and maps count as none.
    pub flops: u64,
    pub(crate) fused: Fused,
    pub(crate) places: Places,
}

impl Step {
    /// Bytes of its result as it lies in memory, channels padded.
    pub fn output_bytes(&self) -> usize {
        self.places.output.len * size_of::<f32>()
    }

    /// Bytes that it needs beside its operands, without the workers' own: transformed weights, packed keys and values.
    pub fn scratch_bytes(&self) -> usize {
        self.places.scratch.len * size_of::<f32>()
    }

    /// Bytes of the tensors it reads.
    pub fn read_bytes(&self) -> usize {
        self.places.reads.iter().map(|region| region.len * size_of::<f32>()).sum()
    }
}

/// Where a step's operands lie.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub output: Region,
    pub scratch: Region,
    /// Places of [`Fused::reads`], in that order.
    pub reads: Vec<Region>,
}

/// How a graph runs on an input of one shape.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `[batch, channels, height, width]`
    pub input: [usize; 4],
    /// `[batch, channels, height, width]`
    pub output: [usize; 4],
    /// Frames of input and output; both 1 for pictures.
    pub frames: [usize; 2],
    /// Whether the input begins a clip.
    pub start: Start,
    /// How numbers are kept and multiplied.
    pub precision: Precision,
    /// In order; the same for each sample of the batch.
    pub steps: Vec<Step>,
    pub(crate) arena_len: usize,
    pub(crate) input_place: Region,
    pub(crate) output_place: Region,
    /// `[frames, height, width]` of each graph node's value.
    pub(crate) sizes: Vec<[usize; 3]>,
    pub(crate) channels: Vec<usize>,
    weight_bytes: usize,
    load_bytes: usize,
    worker_bytes: usize,
    history_bytes: usize,
}

/// What a plan costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanSummary {
    /// Input `[batch, channels, height, width]`.
    pub input: [usize; 4],
    /// Output `[batch, channels, height, width]`.
    pub output: [usize; 4],
    /// Frames of input and output; both 1 for pictures.
    pub frames: [usize; 2],
    /// Floating-point operations of the whole batch.
    pub flops: u64,
    /// Steps of one sample.
    pub steps: usize,
    /// Bytes of weights as they are laid out.
    pub weight_bytes: usize,
    /// Bytes of activations and of the workers' scratch while one sample runs.
    pub activation_bytes: usize,
    /// Bytes beside the weights laid out so far while weights are read, at most: the largest one as it was read and in
    /// its layout. They are free afterwards, but allocators keep blocks of that size.
    pub load_bytes: usize,
    /// Bytes of the frames that a part of a clip leaves for the next; 0 where the graph's clips cannot come in parts.
    pub history_bytes: usize,
    /// Bytes at the peak: weights and what reading them took, activations, input and output. What the process holds
    /// beside that (program, threads, the caller's own copies) is not in it.
    pub peak_bytes: usize,
}

impl Plan {
    pub(crate) fn new(
        graph: &Graph,
        input: [usize; 5],
        start: Start,
        precision: Precision,
        isa: Isa,
        threads: usize,
    ) -> Result<Plan, EngineError> {
        let shapes = graph.clip_shapes(input, start)?;
        check_addressable(&shapes)?;
        let sizes: Vec<[usize; 3]> = shapes.iter().map(|shape| [shape[2], shape[3], shape[4]]).collect();
        let output = shapes[graph.output.0];
        let picture = |[batch, channels, _, height, width]: [usize; 5]| [batch, channels, height, width];
        let channels: Vec<usize> = graph.nodes.iter().map(|node| node.channels).collect();
        let fused = fuse(graph);
        let layout = Layout::new(graph, &fused, &sizes, precision, isa);
        let mut worker_bytes = 0;
        let steps: Vec<Step> = fused
            .into_iter()
            .zip(layout.places)
            .map(|(step, places)| {
                worker_bytes = worker_bytes.max(worker_scratch(graph, &step, &sizes, precision, isa));
                describe(graph, step, places, &sizes, start)
            })
            .collect();
        let history_bytes = if graph.is_causal() { history_bytes(graph, &sizes, precision) } else { 0 };
        Ok(Plan {
            input: picture(input),
            output: picture(output),
            frames: [input[2], output[2]],
            start,
            precision,
            steps,
            arena_len: layout.arena_len,
            input_place: layout.input,
            output_place: layout.output,
            sizes,
            channels,
            weight_bytes: weight_bytes(graph, isa),
            load_bytes: load_bytes(graph, isa),
            worker_bytes: worker_bytes * threads,
            history_bytes,
        })
    }

    /// What it costs.
    pub fn summary(&self) -> PlanSummary {
        let bytes =
            |shape: [usize; 4], frames: usize| shape.iter().product::<usize>() * frames * size_of::<f32>();
        let activation_bytes = self.arena_len * size_of::<f32>() + self.worker_bytes;
        PlanSummary {
            input: self.input,
            output: self.output,
            frames: self.frames,
            flops: self
                .steps
                .iter()
                .fold(0u64, |sum, step| sum.saturating_add(step.flops))
                .saturating_mul(self.input[0] as u64),
            steps: self.steps.len(),
            weight_bytes: self.weight_bytes,
            activation_bytes,
            load_bytes: self.load_bytes,
            history_bytes: self.history_bytes,
            peak_bytes: self.weight_bytes
                + self.load_bytes
                + activation_bytes
                + bytes(self.input, self.frames[0])
                + bytes(self.output, self.frames[1]),
        }
    }
}

/// Refuses shapes whose plan could not be counted in machine words: all tensors together must stay far below them.
fn check_addressable(shapes: &[[usize; 5]]) -> Result<(), EngineError> {
    let bytes = shapes.iter().try_fold(0usize, |sum, [batch, channels, frames, height, width]| {
        let padded = batch
            .checked_mul(blocks(*channels) * BLOCK)?
            .checked_mul(*frames)?
            .checked_mul(*height)?
            .checked_mul(*width)?;
        sum.checked_add(padded.checked_mul(size_of::<f32>())?)
    });
    match bytes {
        Some(bytes) if bytes <= isize::MAX as usize / 16 => Ok(()),
        _ => Err(EngineError::Memory { bytes: bytes.unwrap_or(usize::MAX) }),
    }
}

/// The kernel's geometry of a convolution node; `None` for other nodes. The channels of the frames that several time
/// taps read are one after another, each padded to whole blocks.
pub(crate) fn geometry(graph: &Graph, node: &Node) -> Option<Geometry> {
    let Operation::Convolution { kernel, stride, padding, time, .. } = node.operation else { return None };
    let channels = graph.nodes[node.inputs[0].0].channels;
    Some(Geometry {
        input_channels: if time.taps > 1 { time.taps * blocks(channels) * BLOCK } else { channels },
        output_channels: node.channels,
        kernel,
        stride,
        padding: [padding.top, padding.bottom, padding.left, padding.right],
    })
}

fn weight_bytes(graph: &Graph, isa: Isa) -> usize {
    graph
        .nodes
        .iter()
        .map(|node| match (geometry(graph, node), &node.operation) {
            (Some(geometry), Operation::Convolution { weight, .. }) => {
                Convolution::weight_bytes(isa, &geometry, graph.weights[weight.0].narrow)
            }
            (_, Operation::GroupNorm { .. }) => 2 * node.channels * size_of::<f32>(),
            (_, Operation::RmsNorm { .. }) => node.channels * size_of::<f32>(),
            _ => 0,
        })
        .sum()
}

/// What reading one weight takes beside its final layout: its values as stored and as laid out by frames, and their
/// layout before they are narrowed.
fn load_bytes(graph: &Graph, isa: Isa) -> usize {
    let of = |node: &Node| match (geometry(graph, node), &node.operation) {
        (Some(geometry), Operation::Convolution { weight, time, .. }) => {
            let values: usize = graph.weights[weight.0].shape.iter().product();
            let by_frames = match time.taps {
                1 => 0,
                _ => {
                    geometry.output_channels
                        * geometry.input_channels
                        * geometry.kernel.iter().product::<usize>()
                }
            };
            (values + by_frames) * size_of::<f32>() + Convolution::weight_bytes(isa, &geometry, false)
        }
        _ => 0,
    };
    graph.nodes.iter().map(of).max().unwrap_or(0)
}

/// Bytes of the frames that convolutions over time read again in the next part of a clip.
fn history_bytes(graph: &Graph, sizes: &[[usize; 3]], precision: Precision) -> usize {
    let of = |node: &Node| {
        let Operation::Convolution { time, .. } = node.operation else { return 0 };
        let input = node.inputs[0].0;
        let [_, height, width] = sizes[input];
        let groups = blocks(graph.nodes[input].channels) * height * width;
        let storage = if input == 0 { Storage::Float32 } else { precision.storage() };
        frames::clip(1, false, &time, Start::Clip, 0).history() * storage.len(groups) * size_of::<f32>()
    };
    graph.nodes.iter().map(of).sum()
}

/// The geometries in which a convolution node runs: where taps read zeros before a clip, it reads fewer channels.
fn geometries(graph: &Graph, node: &Node) -> Vec<Geometry> {
    let Some(geometry) = geometry(graph, node) else { return Vec::new() };
    let taps = match node.operation {
        Operation::Convolution { time, .. } if time.edge == Edge::Zero => time.taps,
        _ => 1,
    };
    (0..taps).map(|zero_taps| geometry.without_taps(zero_taps, taps)).collect()
}

/// The largest `need` that a convolution can have in `precision`; which arithmetic it gets is known when its weights are.
fn most(
    precision: Precision,
    geometries: &[Geometry],
    need: impl Fn(&Geometry, Arithmetic) -> usize,
) -> usize {
    let of = |geometry: &Geometry| {
        precision.arithmetics().iter().map(|arithmetic| need(geometry, *arithmetic)).max().unwrap_or(0)
    };
    geometries.iter().map(of).max().unwrap_or(0)
}

fn worker_scratch(
    graph: &Graph,
    step: &FusedStep,
    sizes: &[[usize; 3]],
    precision: Precision,
    isa: Isa,
) -> usize {
    match &step.operation {
        Fused::Convolution { node, source, .. } => {
            let [_, height, width] = sizes[*node];
            most(precision, &geometries(graph, &graph.nodes[*node]), |geometry, arithmetic| {
                Convolution::worker_bytes(
                    isa,
                    geometry,
                    0..height,
                    [height, width],
                    source.upsample,
                    arithmetic,
                )
            })
        }
        Fused::Attention { inputs, .. } => attention::worker_bytes(isa, graph.nodes[inputs[0]].channels),
        _ => 0,
    }
}

/// `f32` that the step needs beside its tensors while it runs.
fn scratch_len(
    graph: &Graph,
    step: &FusedStep,
    sizes: &[[usize; 3]],
    precision: Precision,
    isa: Isa,
) -> usize {
    match &step.operation {
        Fused::Convolution { node, source, .. } => {
            most(precision, &geometries(graph, &graph.nodes[*node]), |geometry, arithmetic| {
                Convolution::scratch_len(isa, geometry, source.upsample, arithmetic)
            })
        }
        Fused::Attention { reach, inputs } => {
            let [frames, height, width] = sizes[inputs[0]];
            let frames = if *reach == Reach::Past { frames } else { 1 };
            attention::scratch_len(isa, graph.nodes[inputs[0]].channels, frames * height * width)
        }
        _ => 0,
    }
}

fn describe(graph: &Graph, step: FusedStep, places: Places, sizes: &[[usize; 3]], start: Start) -> Step {
    let of = |node: usize| {
        let [_, height, width] = sizes[node];
        [graph.nodes[node].channels, height, width]
    };
    let (node, output) = match (&step.operation, step.output) {
        (Fused::Convolution { node, .. }, Value::Node(last)) => (*node, of(last)),
        (_, Value::Node(node)) => (node, of(node)),
        (_, Value::Table(node)) => (node, [2, graph.nodes[node].channels, 1]),
    };
    let made_frames = match step.output {
        Value::Node(last) => sizes[last][0],
        Value::Table(_) => 1,
    };
    let (operation, flops) = match &step.operation {
        Fused::Convolution { node, source, .. } => {
            let node = &graph.nodes[*node];
            let Some(geometry) = geometry(graph, node) else {
                unreachable!("a convolution step starts from a convolution node")
            };
            let Geometry { kernel: [rows, columns], .. } = geometry;
            let Operation::Convolution { time, .. } = node.operation else {
                unreachable!("a convolution step starts from a convolution node")
            };
            // Taps that read zeros before the clip are not multiplied.
            let input_frames = sizes[source.base][0];
            let mut clip = frames::clip(input_frames, source.doubles_frames, &time, start, 0);
            clip.before = if clip.continues { clip.history() } else { 0 };
            let read: usize = (0..made_frames).map(|frame| time.taps - clip.zero_taps(frame)).sum();
            let taps = (graph.nodes[node.inputs[0].0].channels * rows * columns) as u64;
            let outputs = output.iter().map(|side| *side as u64).product::<u64>();
            let outputs = outputs.saturating_mul(read as u64);
            let algorithm = geometry.algorithm(source.upsample).name();
            let depth = if time.taps > 1 { format!("{}x", time.taps) } else { String::new() };
            (format!("convolution {depth}{rows}x{columns}, {algorithm}"), outputs.saturating_mul(2 * taps))
        }
        Fused::Attention { reach, .. } => {
            let (tokens, frames) = ((output[1] * output[2]) as u64, made_frames as u64);
            let seen = match reach {
                Reach::Frame => frames,
                // Frame n sees n frames.
                Reach::Past => frames.saturating_mul(frames + 1) / 2,
            };
            let products =
                tokens.saturating_mul(tokens).saturating_mul(output[0] as u64).saturating_mul(seen);
            ("attention".into(), products.saturating_mul(4))
        }
        Fused::NormStatistics { .. } => ("norm statistics".into(), 0),
        Fused::NormApply { .. } | Fused::RmsNorm { .. } => ("norm".into(), 0),
        Fused::Map { .. } => ("map".into(), 0),
        Fused::Upsample { .. } => ("upsample".into(), 0),
        Fused::FirstFrame { .. } | Fused::DoubleFrames { .. } => ("frames".into(), 0),
        Fused::Expand { .. } | Fused::Collect { .. } => ("rearrange".into(), 0),
        Fused::Add { .. } => ("add".into(), 0),
    };
    Step { name: graph.nodes[node].name.clone(), operation, output, flops, fused: step.operation, places }
}

/// Places of all tensors of the steps.
struct Layout {
    places: Vec<Places>,
    arena_len: usize,
    input: Region,
    output: Region,
}

impl Layout {
    fn new(
        graph: &Graph,
        steps: &[FusedStep],
        sizes: &[[usize; 3]],
        precision: Precision,
        isa: Isa,
    ) -> Layout {
        let last_reads = last_reads(graph, steps);
        // What the outside hands over and takes is plain `f32`; so are tables.
        let storage = |value: Value| match value {
            Value::Node(node) if node != 0 && node != graph.output.0 => precision.storage(),
            _ => Storage::Float32,
        };
        let len = |value: Value| match value {
            Value::Node(node) => {
                storage(value).len(blocks(graph.nodes[node].channels) * sizes[node].iter().product::<usize>())
            }
            Value::Table(node) => 2 * blocks(graph.nodes[node].channels) * BLOCK,
        };
        // Tensors that are written over one another share a buffer.
        let mut buffers = vec![Lifetime { len: len(Value::Node(0)), first: 0, last: 0 }];
        let mut buffer_of: HashMap<Value, usize> = HashMap::from([(Value::Node(0), 0)]);
        let mut scratch_of = vec![None; steps.len()];
        for (index, step) in steps.iter().enumerate() {
            for value in step.operation.reads() {
                let buffer = &mut buffers[buffer_of[&value]];
                buffer.last = buffer.last.max(index);
            }
            let scratch = scratch_len(graph, step, sizes, precision, isa);
            if scratch > 0 {
                scratch_of[index] = Some(buffers.len());
                buffers.push(Lifetime { len: scratch, first: index, last: index });
            }
            let alike =
                |value: Value| len(value) == len(step.output) && storage(value) == storage(step.output);
            let dies_here = |value: &Value| last_reads.get(value) == Some(&index) && alike(*value);
            let buffer = match step.operation.may_overwrite().into_iter().find(dies_here) {
                Some(value) => buffer_of[&value],
                None => {
                    buffers.push(Lifetime { len: len(step.output), first: index, last: index });
                    buffers.len() - 1
                }
            };
            buffers[buffer].last = index;
            buffer_of.insert(step.output, buffer);
        }
        let result = buffer_of[&Value::Node(graph.output.0)];
        buffers[result].last = steps.len();
        let (regions, arena_len) = place(&buffers);
        let region = |value: &Value| Region { storage: storage(*value), ..regions[buffer_of[value]] };
        let places = steps
            .iter()
            .zip(scratch_of)
            .map(|(step, scratch)| Places {
                output: region(&step.output),
                scratch: scratch.map(|buffer: usize| regions[buffer]).unwrap_or_default(),
                reads: step.operation.reads().iter().map(region).collect(),
            })
            .collect();
        Layout { places, arena_len, input: regions[0], output: regions[result] }
    }
}

/// The last step that reads each tensor; the result is read after all steps.
fn last_reads(graph: &Graph, steps: &[FusedStep]) -> HashMap<Value, usize> {
    let mut last = HashMap::new();
    for (index, step) in steps.iter().enumerate() {
        for value in step.operation.reads() {
            last.insert(value, index);
        }
    }
    last.insert(Value::Node(graph.output.0), steps.len());
    last
}
