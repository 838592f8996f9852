//! The plan: steps with places in one arena, and what they cost, known before anything runs. Which steps run in strips
//! is decided in [`crate::budget`].

mod describe;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use remote_vae_kernels::Isa;
use remote_vae_kernels::convolution::Convolution;
use remote_vae_kernels::grouped::GroupedConvolution;
use remote_vae_kernels::layout::{BLOCK, blocks};
use remote_vae_kernels::linear_attention;
use remote_vae_kernels::norm::Patches;
use remote_vae_model::{Graph, Node, Operation, Start};

use crate::arena::Region;
use crate::budget::STRIP_PIXELS;
use crate::fusion::{Fused, FusedStep, Value, fuse};
use crate::groups::{Group, Means, Schedules, WorkerBytes, groups};
use crate::layout::{Layout, Places, most};
use crate::shapes::{Shapes, geometry};
use crate::strips::Slice;
use crate::{Delivery, EngineError, Precision};

/// One step of a plan: an operation on a whole tensor, or several together in strips of rows.
#[derive(Clone, Debug)]
pub struct Step {
    /// The graph node it starts from, e.g. `decoder.up_blocks.0.resnets.1.conv1`; of several the last.
    pub name: String,
    /// What it does and how, e.g. `convolution 3x3, winograd 4x4`.
    pub operation: String,
    /// Shape of a frame of its result, `[channels, height, width]`; a norm's statistics have `[2, channels, 1]`.
    pub output: [usize; 3],
    /// Floating-point operations of the definition, whatever the algorithm saves; a multiplication with its addition
    /// counts two. Norms and maps count as none. What is computed anew counts anew.
    pub flops: u64,
    /// About how long it takes, in the time of one floating-point operation of a matrix product.
    pub(crate) work: u64,
    /// What runs together in strips, in order: name and operation of each layer. Empty where there is only one.
    pub layers: Vec<[String; 2]>,
    output_len: usize,
    pub(crate) operations: Vec<PlacedOperation>,
    /// In which order the operations make their rows; `None` where the only one runs as a whole.
    pub(crate) slices: Option<Arc<[Slice]>>,
}

/// An operation with the places of what it reads and makes.
#[derive(Clone, Debug)]
pub(crate) struct PlacedOperation {
    pub fused: Fused,
    pub places: Places,
}

impl Step {
    /// Bytes of its result as it lies in memory, channels padded.
    pub fn output_bytes(&self) -> usize {
        self.output_len * size_of::<f32>()
    }

    /// Bytes that it needs beside its operands, without the workers' own: transformed weights, packed keys and values,
    /// moments for a norm's statistics, and rows of what is made and read in strips.
    pub fn scratch_bytes(&self) -> usize {
        let mut spans: BTreeMap<usize, usize> = BTreeMap::new();
        for PlacedOperation { places, .. } in &self.operations {
            spans.insert(places.scratch.values.offset, places.scratch.len());
        }
        let rings: usize = match &self.slices {
            Some(_) => self.operations.iter().map(|operation| operation.places.output.len()).sum(),
            None => self.output_len,
        };
        (spans.values().sum::<usize>() + rings - self.output_len) * size_of::<f32>()
    }

    /// Bytes of the tensors it reads.
    pub fn read_bytes(&self) -> usize {
        let made: Vec<Region> = self.operations.iter().map(|operation| operation.places.output).collect();
        let mut read: Vec<Region> = Vec::new();
        for (region, _) in self.operations.iter().flat_map(|operation| &operation.places.reads) {
            let ours = self.operations.len() > 1 && made.contains(region);
            if !ours && !read.contains(region) {
                read.push(*region);
            }
        }
        read.iter().map(Region::len).sum::<usize>() * size_of::<f32>()
    }
}

/// What is to be planned.
#[derive(Clone, Copy)]
pub struct PlanRequest<'a> {
    /// What runs.
    pub graph: &'a Graph,
    /// `[batch, channels, frames, height, width]`; of pictures one frame.
    pub input: [usize; 5],
    /// Whether the input begins a clip or goes on with one.
    pub start: Start,
    /// How numbers are kept and multiplied.
    pub precision: Precision,
    /// How the result is given; that of clips is given as a whole.
    pub delivery: Delivery,
    /// What lies beside it, where it is a part of something larger.
    pub beside: Option<Beside>,
    /// Whether a refusal names the largest picture that fits, for which it takes longer.
    pub seeks_largest: bool,
}

/// What is in memory beside a part of a clip or of a picture, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// From the beginning to the end, without weights and the part's own input.
    pub always: usize,
    /// While the part runs, beside that.
    pub running: usize,
    /// While no part runs, at most, beside what is there always.
    pub between: usize,
    /// Whether the part leaves frames for the next ([`PlanSummary::history_bytes`]).
    pub continues: bool,
}

impl<'a> PlanRequest<'a> {
    /// Whole clips, `[batch, channels, frames, height, width]`, whose result is one tensor.
    pub fn whole(graph: &'a Graph, input: [usize; 5], precision: Precision) -> PlanRequest<'a> {
        let (start, delivery) = (Start::Clip, Delivery::Whole);
        PlanRequest { graph, input, start, precision, delivery, beside: None, seeks_largest: true }
    }
}

impl Beside {
    /// What lies beside a picture of a `share` of the pixels.
    pub(crate) fn of_share(self, share: f64) -> Beside {
        let of = |bytes: usize| (bytes as f64 * share).ceil() as usize;
        let Beside { always, running, between, continues } = self;
        Beside { always: of(always), running: of(running), between: of(between), continues }
    }
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
    /// How its result is given.
    pub delivery: Delivery,
    /// In order; the same for each sample of the batch.
    pub steps: Vec<Step>,
    pub(crate) arena_len: usize,
    pub(crate) input_place: Region,
    /// `None` where rows of the result are handed on as they are finished.
    pub(crate) output_place: Option<Region>,
    /// The nodes whose values are stored during the step in which most memory is in use.
    pub(crate) stored: Vec<usize>,
    /// `[frames, height, width]` of each graph node's value.
    pub(crate) sizes: Vec<[usize; 3]>,
    /// How each of them is cut for norm statistics.
    pub(crate) patches: Vec<Patches>,
    pub(crate) channels: Vec<usize>,
    /// Whether each step reads the weights that it works with and lets them go, so that they are never all in memory.
    pub(crate) reads_weights: bool,
    weight_bytes: usize,
    /// Bytes of the weights that one step works with, at most.
    pub(crate) step_weight_bytes: usize,
    /// Bytes of the weights that all steps work with: more than there are, where several work with the same.
    pub(crate) used_weight_bytes: usize,
    load_bytes: usize,
    /// Of all workers.
    worker_bytes: usize,
    pub(crate) threads: usize,
    history_bytes: usize,
    probe_bytes: usize,
}

/// What a plan costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// Whether weights are read anew for each step, and let go after it.
    pub reads_weights: bool,
    /// Bytes of weights as they are laid out: all of them, or where they are read anew those of one step, at most.
    pub weight_bytes: usize,
    /// Bytes of activations and of the workers' scratch while one sample runs.
    pub activation_bytes: usize,
    /// Bytes beside the weights laid out so far while weights are read, at most: the largest one as it was read and in
    /// its layout. They are free afterwards, but allocators keep blocks of that size.
    pub load_bytes: usize,
    /// Bytes of the frames that a part of a clip leaves for the next; 0 where the graph's clips cannot come in parts.
    pub history_bytes: usize,
    /// Bytes that comparing `fast` with `exact` takes beside the weights and the input before the first run; 0 in `exact`.
    pub probe_bytes: usize,
    /// Bytes at the peak: weights and what reading them took, activations, input and output (or the rows of it that are handed
    /// on together), or what is compared before the first run, if that is more. What the process holds beside that (program,
    /// threads, the caller's own copies, what is kept of the rows) is not in it.
    pub peak_bytes: usize,
}

impl Plan {
    /// The plan that saves memory by `means`.
    pub(crate) fn new(task: &Task<'_>, means: &Means) -> Plan {
        Plan::remembering(task, means, &mut Schedules::default())
    }

    /// As [`Plan::new`], among many plans of one task.
    pub(crate) fn remembering(task: &Task<'_>, means: &Means, schedules: &mut Schedules) -> Plan {
        let groups = groups(&task.shapes(), &task.fused, means, schedules);
        task.plan(groups, means, &mut schedules.worker_bytes)
    }

    /// `f32` of scratch that each worker takes at most.
    pub(crate) fn worker_len(&self) -> usize {
        self.worker_bytes / self.threads.max(1) / size_of::<f32>()
    }

    /// Rows of the result that are handed on together, at most, where it is given in rows.
    pub(crate) fn strip_rows(&self) -> usize {
        let [.., height, width] = self.output;
        if self.output_place.is_some() {
            return (STRIP_PIXELS[0] / width.max(1)).clamp(1, height.max(1));
        }
        let leaves = |step: &&Step| step.operations.iter().any(|operation| operation.places.leaves);
        let steps = self.steps.iter().filter(leaves);
        let slices = steps.filter_map(|step| Some((step, step.slices.as_deref()?)));
        let leaving = slices.flat_map(|(step, slices)| {
            slices.iter().filter(|slice| step.operations[slice.member].places.leaves)
        });
        leaving.map(|slice| slice.rows.len()).max().unwrap_or(0)
    }

    /// `f32` of weights that are transformed once more than once a step, strip by strip, in one sample.
    pub(crate) fn transformed_anew(&self) -> u64 {
        let of = |step: &Step| {
            let slices = step.slices.iter().flat_map(|slices| slices.iter());
            let shared = slices.filter(|slice| !slice.recalled);
            let shared = shared.map(|slice| &step.operations[slice.member].places);
            shared.filter(|places| !places.own_scratch).map(|places| places.transformed as u64).sum::<u64>()
        };
        let shares = |step: &&Step| step.operations.iter().any(|operation| !operation.places.own_scratch);
        self.steps.iter().filter(shares).map(of).sum()
    }

    /// The sum of what `of` says of each step, for the whole batch.
    pub(crate) fn in_all(&self, of: impl Fn(&Step) -> u64) -> u64 {
        let sum = self.steps.iter().fold(0u64, |sum, step| sum.saturating_add(of(step)));
        sum.saturating_mul(self.input[0] as u64)
    }

    /// What it costs.
    pub fn summary(&self) -> PlanSummary {
        PlanSummary {
            input: self.input,
            output: self.output,
            frames: self.frames,
            flops: self.in_all(|step| step.flops),
            steps: self.steps.len(),
            reads_weights: self.reads_weights,
            weight_bytes: self.weight_bytes(self.reads_weights),
            activation_bytes: self.activation_bytes(),
            load_bytes: self.load_bytes,
            history_bytes: self.history_bytes,
            probe_bytes: self.probe_bytes,
            peak_bytes: self.weight_bytes(self.reads_weights)
                + self.load_bytes
                + self.input_bytes()
                + self.probe_bytes.max(self.activation_bytes() + self.output_bytes()),
        }
    }

    /// Bytes at the peak of the work that this is a part of, as far as it is this part's: with what lies `beside` it, and with
    /// the weights held, or read for each step.
    pub(crate) fn peak_beside(&self, beside: Beside, reads_weights: bool) -> usize {
        let Beside { always, running, between, continues } = beside;
        let left = if continues { self.history_bytes } else { 0 };
        let here = self.activation_bytes() + self.output_bytes();
        let at_most = here.saturating_add(running).max(between).saturating_add(left).max(self.probe_bytes);
        // Weights that are held are read before anything runs.
        let at_most = match reads_weights {
            true => at_most.saturating_add(self.load_bytes),
            false => at_most.max(self.load_bytes),
        };
        let there = self.weight_bytes(reads_weights) + self.input_bytes();
        there.saturating_add(always).saturating_add(at_most)
    }

    /// As [`Plan::peak_beside`] at most: where another part has no room for weights, this one's are read for each step too.
    pub(crate) fn most_beside(&self, beside: Beside) -> usize {
        let held = if self.reads_weights { 0 } else { self.peak_beside(beside, false) };
        held.max(self.peak_beside(beside, true))
    }

    /// Bytes of the weights that are in memory, all of them or those of one step at most.
    pub(crate) fn weight_bytes(&self, reads_weights: bool) -> usize {
        if reads_weights { self.step_weight_bytes } else { self.weight_bytes }
    }

    fn activation_bytes(&self) -> usize {
        self.arena_len * size_of::<f32>() + self.worker_bytes
    }

    fn input_bytes(&self) -> usize {
        bytes(self.input, self.frames[0])
    }

    /// Of the result, or of the rows of it that are handed on together.
    fn output_bytes(&self) -> usize {
        let [_, channels, _, width] = self.output;
        match self.delivery {
            Delivery::Whole => bytes(self.output, self.frames[1]),
            Delivery::Rows { .. } => bytes([1, channels, self.strip_rows(), width], 1),
        }
    }
}

/// Bytes of so many frames of `[batch, channels, height, width]` in `f32`.
fn bytes(shape: [usize; 4], frames: usize) -> usize {
    shape.iter().product::<usize>() * frames * size_of::<f32>()
}

/// What is to be planned: a graph on an input of one shape, and what runs it.
pub(crate) struct Task<'a> {
    graph: &'a Graph,
    /// `[batch, channels, frames, height, width]`
    input: [usize; 5],
    output: [usize; 5],
    start: Start,
    precision: Precision,
    delivery: Delivery,
    beside: Option<Beside>,
    isa: Isa,
    threads: usize,
    probe_bytes: usize,
    /// `[frames, height, width]` of each node's value.
    sizes: Vec<[usize; 3]>,
    /// How each node's value is cut for norm statistics.
    patches: Vec<Patches>,
    pub fused: Vec<FusedStep>,
}

impl<'a> Task<'a> {
    pub(crate) fn new(
        PlanRequest { graph, input, start, precision, delivery, beside, .. }: PlanRequest<'a>,
        isa: Isa,
        threads: usize,
    ) -> Result<Task<'a>, EngineError> {
        let shapes = graph.clip_shapes(input, start)?;
        check_addressable(&shapes)?;
        let sizes: Vec<[usize; 3]> = shapes.iter().map(|shape| [shape[2], shape[3], shape[4]]).collect();
        let output = shapes[graph.output.0];
        let fused = fuse(graph);
        Ok(Task {
            graph,
            input,
            output,
            start,
            precision,
            delivery,
            beside,
            isa,
            threads,
            probe_bytes: 0,
            sizes,
            patches: patches(graph, &fused, isa),
            fused,
        })
    }

    /// Beside weights and input there must be room for so much before the first run.
    pub(crate) fn after_probe(self, probe_bytes: usize) -> Task<'a> {
        Task { probe_bytes, ..self }
    }

    /// Bytes at the peak of `plan`, and of what lies or is kept beside it.
    pub(crate) fn peak_bytes(&self, plan: &Plan) -> usize {
        let alone = || plan.summary().peak_bytes;
        let peak = self.beside.map_or_else(alone, |beside| plan.most_beside(beside));
        peak.saturating_add(self.delivery.kept_bytes(self.output[3], self.output[4]))
    }

    /// How many pixels of the input become one of the output, in one direction; 1 where it is the other way round.
    pub(crate) fn encoder_factor(&self) -> usize {
        (self.input[3] / self.output[3].max(1)).max(1)
    }

    /// Height and width of the picture: the larger of input and output.
    pub(crate) fn pixels(&self) -> [usize; 2] {
        [3, 4].map(|axis| self.input[axis].max(self.output[axis]))
    }

    pub(crate) fn shapes(&self) -> Shapes<'_> {
        let Task { graph, start, ref sizes, ref patches, precision, .. } = *self;
        Shapes { graph, sizes, patches, start, precision, isa: self.isa }
    }

    fn plan(&self, groups: Vec<Group>, means: &Means, known: &mut WorkerBytes) -> Plan {
        let shapes = self.shapes();
        let picture = |[batch, channels, _, height, width]: [usize; 5]| [batch, channels, height, width];
        let layout = Layout::new(shapes, &groups, means.shares_scratch, self.isa);
        let worker_bytes = worker_bytes(&shapes, &groups, self.isa, self.threads, known);
        let used = groups.iter().map(|group| group_weight_bytes(self.graph, group, self.isa));
        let (step_weight_bytes, used_weight_bytes) =
            used.fold((0, 0), |(most, all), bytes| (most.max(bytes), all + bytes));
        let steps = groups
            .into_iter()
            .zip(layout.places)
            .map(|(group, places)| describe::describe(&shapes, group, places))
            .collect();
        Plan {
            input: picture(self.input),
            output: picture(self.output),
            frames: [self.input[2], self.output[2]],
            start: self.start,
            precision: self.precision,
            delivery: self.delivery,
            steps,
            arena_len: layout.arena_len,
            input_place: layout.input,
            output_place: layout.output,
            stored: layout.stored,
            channels: self.graph.nodes.iter().map(|node| node.channels).collect(),
            sizes: self.sizes.clone(),
            patches: self.patches.clone(),
            reads_weights: means.reads_weights,
            weight_bytes: weight_bytes(self.graph, self.isa),
            step_weight_bytes,
            used_weight_bytes,
            load_bytes: load_bytes(self.graph),
            worker_bytes: worker_bytes * self.threads,
            threads: self.threads,
            history_bytes: shapes.history_bytes(),
            probe_bytes: self.probe_bytes,
        }
    }
}

/// How the value of each node of `graph` is cut for norm statistics: as the convolution works that makes it.
fn patches(graph: &Graph, fused: &[FusedStep], isa: Isa) -> Vec<Patches> {
    let mut patches = vec![Patches::PLAIN; graph.nodes.len()];
    for FusedStep { operation, output } in fused {
        if let (Fused::Convolution { node, source, .. }, Value::Node(value)) = (operation, output)
            && let Some(geometry) = geometry(graph, &graph.nodes[*node])
        {
            patches[*value] = geometry.patches(isa, source.upsample).unwrap_or(Patches::PLAIN);
        }
    }
    patches
}

/// `[batch, channels, frames, height, width]` of what `graph` makes of an input of such a shape.
///
/// # Errors
/// The shape does not fit the graph, or is beyond what can be counted.
pub(crate) fn output_shape(
    graph: &Graph,
    input: [usize; 5],
    start: Start,
) -> Result<[usize; 5], EngineError> {
    let shapes = graph.clip_shapes(input, start)?;
    check_addressable(&shapes)?;
    Ok(shapes[graph.output.0])
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

/// Bytes of all weights of `graph` as they are laid out.
pub(crate) fn weight_bytes(graph: &Graph, isa: Isa) -> usize {
    graph.nodes.iter().map(|node| node_weight_bytes(graph, node, isa)).sum()
}

/// Bytes of the weights that the members of `group` work with.
fn group_weight_bytes(graph: &Graph, group: &Group, isa: Isa) -> usize {
    let nodes: BTreeSet<usize> =
        group.members.iter().filter_map(|member| member.operation.weighted_node()).collect();
    nodes.into_iter().map(|node| node_weight_bytes(graph, &graph.nodes[node], isa)).sum()
}

fn node_weight_bytes(graph: &Graph, node: &Node, isa: Isa) -> usize {
    match (geometry(graph, node), &node.operation) {
        (Some(geometry), Operation::Convolution { weight, .. }) => {
            Convolution::weight_bytes(isa, &geometry, graph.weights[weight.0].narrow)
        }
        (_, Operation::GroupNorm { .. }) => 2 * node.channels * size_of::<f32>(),
        (_, Operation::RmsNorm { bias, .. }) => {
            (1 + usize::from(bias.is_some())) * node.channels * size_of::<f32>()
        }
        (_, Operation::GroupedConvolution { kernel, group, .. }) => {
            GroupedConvolution::weight_bytes(node.channels, *group, *kernel)
        }
        _ => 0,
    }
}

/// What reading one weight takes beside its final layout: its values as stored and as laid out by frames.
fn load_bytes(graph: &Graph) -> usize {
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
            (values + by_frames) * size_of::<f32>()
        }
        _ => 0,
    };
    graph.nodes.iter().map(of).max().unwrap_or(0)
}

/// Bytes of scratch that each of `threads` workers takes, at most; `known` remembers those of convolutions.
fn worker_bytes(
    shapes: &Shapes<'_>,
    groups: &[Group],
    isa: Isa,
    threads: usize,
    known: &mut WorkerBytes,
) -> usize {
    let of_rows = |node: usize, upsample: usize, rows: Range<usize>| {
        let [_, height, width] = shapes.sizes[node];
        most(shapes.precision, &shapes.geometries(node), |geometry, arithmetic| {
            let (rows, size) = (rows.clone(), [height, width]);
            Convolution::worker_bytes(isa, geometry, rows, size, upsample, arithmetic, threads)
        })
    };
    let mut of = |member: &FusedStep, rows: Option<&Range<usize>>| match &member.operation {
        Fused::Convolution { node, source, .. } => {
            let rows = rows.cloned().unwrap_or(0..shapes.height(*node));
            let upsample = source.upsample;
            *known.entry((*node, rows.clone())).or_insert_with(|| of_rows(*node, upsample, rows))
        }
        Fused::Attention { reach, inputs, .. } => {
            shapes.attentions(*reach, inputs[0]).map(|shape| shape.worker_bytes(isa)).max().unwrap_or(0)
        }
        Fused::GroupedConvolution { node, .. } => match &shapes.graph.nodes[*node] {
            Node { operation: Operation::GroupedConvolution { kernel, group, .. }, channels, .. } => {
                GroupedConvolution::worker_bytes(*channels, *group, *kernel)
            }
            _ => unreachable!("a grouped step starts from a grouped node"),
        },
        Fused::LinearAttention { head, .. } => linear_attention::worker_bytes(*head),
        _ => 0,
    };
    let mut most = 0;
    for group in groups {
        let Some(schedule) = &group.strips else {
            most = group.members.iter().map(|member| of(member, None)).fold(most, usize::max);
            continue;
        };
        for Slice { member, rows, .. } in &schedule.kinds {
            most = most.max(of(&group.members[*member], Some(rows)));
        }
    }
    most
}
