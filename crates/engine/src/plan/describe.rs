//! What a step says of itself: names, operations, shapes, and how many floating-point operations it takes.

use std::collections::BTreeSet;
use std::sync::Arc;

use remote_vae_kernels::convolution::Geometry;
use remote_vae_model::{Operation, Reach};

use super::{PlacedOperation, Step};
use crate::frames;
use crate::fusion::{Fused, FusedStep, Value};
use crate::groups::Group;
use crate::layout::Places;
use crate::shapes::Shapes;
use crate::strips::Head;

/// Reading, changing, transforming and writing a convolution's number takes about as long as this many operations of a product: more in
/// `fast`, less in `exact`.
const ELEMENT: u64 = 200;
/// The same of a number that is read for a norm's statistics, whose moments nobody took as it was made.
const READ: u64 = 40;

/// The step that `group` is, its operations at `places`. `taken` are the nodes of whose values moments are there; it is
/// brought up to date.
pub(super) fn describe(
    shapes: &Shapes<'_>,
    group: Group,
    places: Vec<Places>,
    taken: &mut BTreeSet<usize>,
) -> Step {
    let mut described: Vec<Described> =
        group.members.iter().map(|member| describe_one(shapes, member)).collect();
    if let Some(schedule) = &group.strips {
        // Rows that are recalled, or left out because what they are needed for is, cost nothing.
        for (described, computed) in described.iter_mut().zip(&schedule.computed) {
            let computed = *computed as u64;
            let height = (described.output[1] as u64).max(1);
            described.flops = described.flops / height * computed;
            described.work = (u128::from(described.work) * u128::from(computed) / u128::from(height)) as u64;
        }
    }
    for (at, (described, places)) in described.iter_mut().zip(&places).enumerate() {
        taken.extend(places.moments);
        if let Fused::NormStatistics { input, .. } = group.members[at].operation {
            let rows = if taken.remove(&input) { recalled(&group, input) } else { shapes.height(input) };
            let [frames, _, width] = shapes.sizes[input];
            let numbers = (shapes.graph.nodes[input].channels * frames * rows * width) as u64;
            described.work = READ.saturating_mul(numbers);
        }
    }
    for Head { member, rows, recalled } in &group.heads {
        let how = if *recalled { "kept before" } else { "kept" };
        described[*member].operation += &format!(", {rows} rows {how}");
    }
    let last = group.sinks.last().map_or(0, |sink| *sink);
    let stored = group.sinks.iter().map(|sink| places[*sink].output.len()).sum();
    let flops = described.iter().fold(0u64, |sum, one| sum.saturating_add(one.flops));
    let work = described.iter().fold(0u64, |sum, one| sum.saturating_add(one.work));
    let layers: Vec<[String; 2]> = match &group.strips {
        Some(_) if described.len() > 1 => {
            described.iter().map(|one| [one.name.clone(), one.operation.clone()]).collect()
        }
        _ => Vec::new(),
    };
    let operation = match &group.strips {
        None => described[last].operation.clone(),
        Some(_) if layers.is_empty() => format!("{} in strips", described[last].operation),
        Some(_) => format!("{} layers in strips", layers.len()),
    };
    let operations = group.members.into_iter().zip(places);
    Step {
        name: described[last].name.clone(),
        operation,
        output: described[last].output,
        flops,
        work,
        layers,
        output_len: stored,
        operations: operations
            .map(|(member, places)| PlacedOperation { fused: member.operation, places })
            .collect(),
        slices: group.strips.map(|schedule| Arc::clone(&schedule.slices)),
    }
}

/// Rows of the value of `node` that `group` does not make but takes from where an earlier one kept them.
fn recalled(group: &Group, node: usize) -> usize {
    let is_of = |head: &&Head| head.recalled && group.members[head.member].output == Value::Node(node);
    group.heads.iter().find(is_of).map_or(0, |head| head.rows)
}

struct Described {
    name: String,
    operation: String,
    output: [usize; 3],
    flops: u64,
    work: u64,
}

fn describe_one(shapes: &Shapes<'_>, step: &FusedStep) -> Described {
    let graph = shapes.graph;
    let of = |node: usize| {
        let [_, height, width] = shapes.sizes[node];
        [graph.nodes[node].channels, height, width]
    };
    let (node, output) = match (&step.operation, step.output) {
        (Fused::Convolution { node, .. } | Fused::GroupedConvolution { node, .. }, Value::Node(last)) => {
            (*node, of(last))
        }
        (_, Value::Node(node) | Value::Copy(node)) => (node, of(node)),
        (_, Value::Table(node)) => (node, [2, graph.nodes[node].channels, 1]),
    };
    let made_frames = match step.output {
        Value::Node(last) => shapes.sizes[last][0],
        Value::Table(_) | Value::Copy(_) => 1,
    };
    let mut work = None;
    let (operation, flops) = match &step.operation {
        Fused::Convolution { node, source, .. } => {
            let geometry = shapes.geometry(*node);
            let node = &graph.nodes[*node];
            let Geometry { kernel: [rows, columns], .. } = geometry;
            let Operation::Convolution { time, .. } = node.operation else {
                unreachable!("a convolution step starts from a convolution node")
            };
            // Taps that read zeros before the clip are not multiplied.
            let input_frames = shapes.sizes[source.base][0];
            let mut clip = frames::clip(input_frames, source.doubles_frames, &time, shapes.start, 0);
            clip.before = if clip.continues { clip.history() } else { 0 };
            let read: usize = (0..made_frames).map(|frame| time.taps - clip.zero_taps(frame)).sum();
            let taps = (graph.nodes[node.inputs[0].0].channels * rows * columns) as u64;
            let frame = output.iter().map(|side| *side as u64).product::<u64>();
            let outputs = frame.saturating_mul(read as u64);
            let algorithm = geometry.algorithm(shapes.isa, source.upsample);
            let depth = if time.taps > 1 { format!("{}x", time.taps) } else { String::new() };
            let flops = outputs.saturating_mul(2 * taps);
            let products = (flops as f64 * algorithm.products()) as u64;
            let channels = (geometry.input_channels / time.taps * read) as u64;
            let inputs = channels.saturating_mul(shapes.pixels(source.base) as u64);
            let elements = inputs.saturating_add(frame.saturating_mul(made_frames as u64));
            work = Some(products.saturating_add(ELEMENT.saturating_mul(elements)));
            (format!("convolution {depth}{rows}x{columns}, {}", algorithm.name()), flops)
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
        Fused::GroupedConvolution { node, .. } => {
            let Operation::GroupedConvolution { kernel, group, .. } = graph.nodes[*node].operation else {
                unreachable!("a grouped step starts from a grouped node")
            };
            let outputs = output.iter().product::<usize>() as u64;
            let outputs = outputs.saturating_mul(made_frames as u64);
            let taps = (kernel * kernel * group) as u64;
            let kind = if group == 1 { "depthwise".to_owned() } else { format!("in groups of {group}") };
            (format!("convolution {kernel}x{kernel}, {kind}"), outputs.saturating_mul(2 * taps))
        }
        Fused::LinearAttention { head, .. } => {
            let outputs = output.iter().product::<usize>() as u64;
            let products = outputs.saturating_mul(made_frames as u64).saturating_mul(*head as u64);
            ("linear attention".into(), products.saturating_mul(4))
        }
        Fused::NormStatistics { .. } => ("norm statistics".into(), 0),
        Fused::NormApply { .. } | Fused::RmsNorm { .. } => ("norm".into(), 0),
        Fused::Map { .. } => ("map".into(), 0),
        Fused::Upsample { .. } => ("upsample".into(), 0),
        Fused::FirstFrame { .. } | Fused::DoubleFrames { .. } => ("frames".into(), 0),
        Fused::Expand { .. } | Fused::Collect { .. } => ("rearrange".into(), 0),
        Fused::Add { .. } => ("add".into(), 0),
        Fused::Multiply { .. } => ("multiply".into(), 0),
        Fused::Copy { .. } => ("kept rows".into(), 0),
    };
    Described { name: graph.nodes[node].name.clone(), operation, output, flops, work: work.unwrap_or(flops) }
}
