//! Graph → steps: norms and activations move into the next convolution's input, nearest upsampling into
//! the convolution that follows, residual sums and activations into a convolution's output.
//!
//! What a step computes does not depend on where its operands lie; [`crate::plan`] gives them places.

use remote_vae_kernels::Activation;
use remote_vae_kernels::elementwise::Map;
use remote_vae_model::{Cell, Graph, Node, Operation, Reach};

/// A tensor that exists in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Value {
    /// The output of a graph node, blocked `[channels, height, width]`.
    Node(usize),
    /// Scale and shift of a norm node, one after the other, `[padded channels]` each.
    Table(usize),
    /// Rows of a node's output, kept beside it while others are written over it.
    Copy(usize),
}

impl Value {
    /// The graph node that it is of.
    pub(crate) fn node(self) -> usize {
        match self {
            Value::Node(node) | Value::Table(node) | Value::Copy(node) => node,
        }
    }
}

/// How a convolution reads its input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Source {
    /// The tensor in memory (a node index).
    pub base: usize,
    /// The norm node whose table is applied.
    pub norm: Option<usize>,
    pub activation: Activation,
    pub upsample: usize,
    /// Whether each frame but the first is read twice.
    pub doubles_frames: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fused {
    Convolution {
        node: usize,
        source: Source,
        residual: Option<usize>,
        activation: Activation,
    },
    NormStatistics {
        node: usize,
        input: usize,
    },
    NormApply {
        node: usize,
        input: usize,
    },
    RmsNorm {
        node: usize,
        input: usize,
        activation: Activation,
    },
    GroupedConvolution {
        node: usize,
        input: usize,
        activation: Activation,
    },
    Attention {
        node: usize,
        reach: Reach,
        inputs: [usize; 3],
    },
    LinearAttention {
        head: usize,
        inputs: Vec<usize>,
    },
    Map {
        map: Map,
        input: usize,
    },
    Upsample {
        factor: usize,
        doubles_frames: bool,
        input: usize,
    },
    FirstFrame {
        inputs: [usize; 2],
    },
    DoubleFrames {
        inputs: [usize; 3],
    },
    Expand {
        cell: Cell,
        repeats: usize,
        input: usize,
    },
    Collect {
        cell: Cell,
        mean: usize,
        input: usize,
    },
    Add {
        inputs: [usize; 2],
    },
    Multiply {
        inputs: [usize; 2],
    },
    /// Only in strips: keeps rows that others are about to write over.
    Copy {
        input: usize,
    },
}

impl Fused {
    /// The tensors it reads.
    pub(crate) fn reads(&self) -> Vec<Value> {
        match self {
            Fused::Convolution { source, residual, .. } => [Some(Value::Node(source.base))]
                .into_iter()
                .chain([source.norm.map(Value::Table), residual.map(Value::Node)])
                .flatten()
                .collect(),
            Fused::NormApply { node, input } => vec![Value::Node(*input), Value::Table(*node)],
            Fused::NormStatistics { input, .. }
            | Fused::RmsNorm { input, .. }
            | Fused::GroupedConvolution { input, .. }
            | Fused::Map { input, .. }
            | Fused::Expand { input, .. }
            | Fused::Collect { input, .. }
            | Fused::Upsample { input, .. }
            | Fused::Copy { input } => vec![Value::Node(*input)],
            Fused::Attention { inputs, .. } | Fused::DoubleFrames { inputs } => {
                inputs.iter().copied().map(Value::Node).collect()
            }
            Fused::LinearAttention { inputs, .. } => inputs.iter().copied().map(Value::Node).collect(),
            Fused::Add { inputs } | Fused::Multiply { inputs } | Fused::FirstFrame { inputs } => {
                inputs.iter().copied().map(Value::Node).collect()
            }
        }
    }

    /// The graph node whose weights it works with.
    pub(crate) fn weighted_node(&self) -> Option<usize> {
        match self {
            Fused::Convolution { node, .. }
            | Fused::NormStatistics { node, .. }
            | Fused::RmsNorm { node, .. }
            | Fused::GroupedConvolution { node, .. } => Some(*node),
            _ => None,
        }
    }

    /// The tensor that it adds to a convolution's sums.
    pub(crate) fn residual(&self) -> Option<Value> {
        match self {
            Fused::Convolution { residual, .. } => residual.map(Value::Node),
            _ => None,
        }
    }

    /// The tensors over which it may write its result, if nobody needs them afterwards.
    pub(crate) fn may_overwrite(&self) -> Vec<Value> {
        match self {
            // A tile looks at its neighbours' input, so only the residual can be written over.
            Fused::Convolution { source, residual: Some(residual), .. } if *residual != source.base => {
                vec![Value::Node(*residual)]
            }
            Fused::Map { input, .. } => vec![Value::Node(*input)],
            Fused::FirstFrame { inputs } if inputs[0] != inputs[1] => vec![Value::Node(inputs[1])],
            Fused::Add { inputs } | Fused::Multiply { inputs } if inputs[0] != inputs[1] => {
                inputs.map(Value::Node).to_vec()
            }
            _ => Vec::new(),
        }
    }
}

/// A step and the tensor it makes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FusedStep {
    pub operation: Fused,
    pub output: Value,
}

/// The steps of `graph`, in an order in which they can run.
pub(crate) fn fuse(graph: &Graph) -> Vec<FusedStep> {
    let consumers = consumers(graph);
    let tails = tails(graph, &consumers);
    let lazy = lazy(graph, &consumers, &tails);
    let mut steps = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let input = |at: usize| node.inputs[at].0;
        let mut push = |operation, output| steps.push(FusedStep { operation, output });
        match &node.operation {
            Operation::Input => {}
            Operation::Convolution { .. } => {
                let tail = tails.of[index];
                let source = source(graph, &lazy, input(0));
                let operation = Fused::Convolution {
                    node: index,
                    source,
                    residual: tail.residual,
                    activation: tail.activation,
                };
                push(operation, Value::Node(tail.last));
            }
            Operation::GroupNorm { .. } => {
                push(Fused::NormStatistics { node: index, input: input(0) }, Value::Table(index));
                if !lazy[index] {
                    push(Fused::NormApply { node: index, input: input(0) }, Value::Node(index));
                }
            }
            Operation::RmsNorm { .. } => {
                let tail = tails.of[index];
                let operation = Fused::RmsNorm { node: index, input: input(0), activation: tail.activation };
                push(operation, Value::Node(tail.last));
            }
            Operation::GroupedConvolution { .. } => {
                let tail = tails.of[index];
                let (input, activation) = (input(0), tail.activation);
                let operation = Fused::GroupedConvolution { node: index, input, activation };
                push(operation, Value::Node(tail.last));
            }
            _ if lazy[index] || tails.absorbed[index] => {}
            Operation::Activation(kind) => {
                let map = Map::Activation(activation(*kind));
                push(Fused::Map { map, input: input(0) }, Value::Node(index));
            }
            Operation::SoftClamp { limit } => {
                push(
                    Fused::Map { map: Map::SoftClamp { limit: *limit }, input: input(0) },
                    Value::Node(index),
                );
            }
            Operation::Affine { scale, shift } => {
                let map = Map::Affine { scale: *scale, shift: *shift };
                push(Fused::Map { map, input: input(0) }, Value::Node(index));
            }
            Operation::UpsampleNearest { factor, doubles_frames } => {
                let (factor, doubles_frames) = (*factor, *doubles_frames);
                push(Fused::Upsample { factor, doubles_frames, input: input(0) }, Value::Node(index));
            }
            Operation::Attention(reach) => {
                let inputs = [input(0), input(1), input(2)];
                push(Fused::Attention { node: index, reach: *reach, inputs }, Value::Node(index));
            }
            Operation::LinearAttention { head } => {
                let inputs = node.inputs.iter().map(|input| input.0).collect();
                push(Fused::LinearAttention { head: *head, inputs }, Value::Node(index));
            }
            Operation::FirstFrame => {
                push(Fused::FirstFrame { inputs: [input(0), input(1)] }, Value::Node(index));
            }
            Operation::DoubleFrames => {
                push(Fused::DoubleFrames { inputs: [input(0), input(1), input(2)] }, Value::Node(index));
            }
            Operation::Expand { cell, repeats } => {
                let (cell, repeats) = (*cell, *repeats);
                push(Fused::Expand { cell, repeats, input: input(0) }, Value::Node(index));
            }
            Operation::Collect { cell, mean } => {
                push(Fused::Collect { cell: *cell, mean: *mean, input: input(0) }, Value::Node(index));
            }
            Operation::Add => push(Fused::Add { inputs: [input(0), input(1)] }, Value::Node(index)),
            Operation::Multiply => {
                push(Fused::Multiply { inputs: [input(0), input(1)] }, Value::Node(index));
            }
        }
    }
    steps
}

fn activation(kind: remote_vae_model::Activation) -> Activation {
    match kind {
        remote_vae_model::Activation::Silu => Activation::Silu,
        remote_vae_model::Activation::Relu => Activation::Relu,
    }
}

fn consumers(graph: &Graph) -> Vec<Vec<usize>> {
    let mut consumers = vec![Vec::new(); graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate() {
        for input in &node.inputs {
            consumers[input.0].push(index);
        }
    }
    // The outside is a consumer too, one that nothing can be folded into.
    consumers[graph.output.0].push(usize::MAX);
    consumers
}

/// What follows a convolution, grouped or not, or an RMS norm and is done on its way out.
#[derive(Clone, Copy, Default)]
struct Tail {
    residual: Option<usize>,
    activation: Activation,
    /// The node whose value the step makes.
    last: usize,
}

struct Tails {
    of: Vec<Tail>,
    absorbed: Vec<bool>,
}

fn tails(graph: &Graph, consumers: &[Vec<usize>]) -> Tails {
    let only_consumer = |index: usize| match consumers[index][..] {
        [one] if one != usize::MAX => Some((one, &graph.nodes[one])),
        _ => None,
    };
    let mut tails = Tails { of: Vec::new(), absorbed: vec![false; graph.nodes.len()] };
    for (index, node) in graph.nodes.iter().enumerate() {
        let mut tail = Tail { last: index, ..Tail::default() };
        if matches!(node.operation, Operation::Convolution { .. })
            && let Some((sum, Node { operation: Operation::Add, inputs, .. })) = only_consumer(index)
        {
            let other = if inputs[0].0 == index { inputs[1].0 } else { inputs[0].0 };
            // The other summand must exist already, and only the later of two convolutions takes the sum.
            if other < index && !tails.absorbed[sum] {
                tails.absorbed[sum] = true;
                tail.residual = Some(other);
                tail.last = sum;
            }
        }
        let finishes = matches!(
            node.operation,
            Operation::Convolution { .. } | Operation::GroupedConvolution { .. } | Operation::RmsNorm { .. }
        );
        if finishes
            && let Some((next, Node { operation: Operation::Activation(kind), .. })) =
                only_consumer(tail.last)
        {
            tails.absorbed[next] = true;
            tail.activation = activation(*kind);
            tail.last = next;
        }
        tails.of.push(tail);
    }
    tails
}

/// The order in which a convolution's gather applies what it absorbs; others cannot be absorbed.
fn gather_order(operation: &Operation) -> Option<usize> {
    match operation {
        Operation::GroupNorm { .. } => Some(0),
        Operation::Activation(_) => Some(1),
        Operation::UpsampleNearest { .. } => Some(2),
        _ => None,
    }
}

/// Which nodes never exist in memory, because every consumer applies them while it reads.
fn lazy(graph: &Graph, consumers: &[Vec<usize>], tails: &Tails) -> Vec<bool> {
    let mut lazy = vec![false; graph.nodes.len()];
    for (index, node) in graph.nodes.iter().enumerate().rev() {
        let Some(own) = gather_order(&node.operation) else { continue };
        if tails.absorbed[index] {
            continue;
        }
        lazy[index] = consumers[index].iter().all(|&consumer| {
            graph.nodes.get(consumer).is_some_and(|next| match next.operation {
                Operation::Convolution { .. } => true,
                _ => lazy[consumer] && gather_order(&next.operation) > Some(own),
            })
        });
    }
    lazy
}

/// How a convolution that reads the value of node `from` gets at it.
fn source(graph: &Graph, lazy: &[bool], mut from: usize) -> Source {
    let mut source =
        Source { base: from, norm: None, activation: Activation::None, upsample: 1, doubles_frames: false };
    while lazy[from] {
        let node = &graph.nodes[from];
        match &node.operation {
            Operation::GroupNorm { .. } => source.norm = Some(from),
            Operation::Activation(kind) => source.activation = activation(*kind),
            Operation::UpsampleNearest { factor, doubles_frames } => {
                source.upsample = *factor;
                source.doubles_frames = *doubles_frames;
            }
            _ => unreachable!("only what a gather applies is lazy"),
        }
        from = node.inputs[0].0;
        source.base = from;
    }
    source
}
