//! What each tensor of a run is like: its sides, and how it is stored.

use remote_vae_kernels::convolution::Geometry;
use remote_vae_kernels::layout::{BLOCK, blocks};
use remote_vae_kernels::norm::Patches;
use remote_vae_kernels::{Isa, Storage, attention};
use remote_vae_model::{Edge, First, Graph, Node, Operation, Reach, Start};

use crate::attend::Attend;
use crate::fusion::{Fused, FusedStep, Value};
use crate::{Precision, frames};

/// A graph on an input of one shape.
#[derive(Clone, Copy)]
pub(crate) struct Shapes<'a> {
    pub graph: &'a Graph,
    /// `[frames, height, width]` of each node's value.
    pub sizes: &'a [[usize; 3]],
    /// How each node's value is cut for norm statistics.
    pub patches: &'a [Patches],
    /// Whether the input begins a clip.
    pub start: Start,
    pub precision: Precision,
    pub isa: Isa,
}

impl Shapes<'_> {
    /// What the outside hands over and takes is plain `f32`; so are tables.
    pub(crate) fn storage(&self, value: Value) -> Storage {
        match value {
            Value::Node(node) | Value::Copy(node) if node != 0 && node != self.graph.output.0 => {
                self.precision.storage()
            }
            _ => Storage::Float32,
        }
    }

    pub(crate) fn blocks(&self, node: usize) -> usize {
        blocks(self.graph.nodes[node].channels)
    }

    pub(crate) fn pixels(&self, node: usize) -> usize {
        self.sizes[node][1] * self.sizes[node][2]
    }

    pub(crate) fn height(&self, node: usize) -> usize {
        self.sizes[node][1]
    }

    /// Rows of the whole tensor; a table has none to speak of.
    pub(crate) fn value_height(&self, value: Value) -> usize {
        match value {
            Value::Node(node) | Value::Copy(node) => self.height(node),
            Value::Table(_) => 1,
        }
    }

    pub(crate) fn width(&self, node: usize) -> usize {
        self.sizes[node][2]
    }

    /// Groups of the whole tensor.
    pub(crate) fn groups(&self, value: Value) -> usize {
        match value {
            Value::Node(node) | Value::Copy(node) => {
                self.blocks(node) * self.sizes[node].iter().product::<usize>()
            }
            Value::Table(node) => 2 * self.blocks(node),
        }
    }

    /// The geometry of a convolution node.
    ///
    /// # Panics
    /// The node is none.
    pub(crate) fn geometry(&self, node: usize) -> Geometry {
        geometry(self.graph, &self.graph.nodes[node]).expect("a convolution node has a geometry")
    }

    /// The geometries in which a convolution node runs: where taps read zeros before a clip, it reads fewer channels.
    ///
    /// # Panics
    /// The node is none.
    pub(crate) fn geometries(&self, node: usize) -> Vec<Geometry> {
        let geometry = self.geometry(node);
        let taps = match self.graph.nodes[node].operation {
            Operation::Convolution { time, .. } if time.edge == Edge::Zero => time.taps,
            _ => 1,
        };
        (0..taps).map(|zero_taps| geometry.without_taps(zero_taps, taps)).collect()
    }

    /// Whether a step takes the moments of its result, one frame after the other, as it makes it.
    pub(crate) fn takes_moments(&self, step: &FusedStep) -> bool {
        match &step.operation {
            Fused::Convolution { node, source, .. } => {
                // Nothing else leaves out a clip's first frame.
                let is_made = match self.graph.nodes[*node].operation {
                    Operation::Convolution { time, .. } => time.first == First::Ordinary,
                    _ => false,
                };
                is_made && self.geometry(*node).patches(self.isa, source.upsample).is_some()
            }
            _ => false,
        }
    }

    /// What attention may run on, for each arithmetic.
    pub(crate) fn attentions(&self, reach: Reach, query: usize) -> impl Iterator<Item = attention::Shape> {
        let (channels, size) = (self.graph.nodes[query].channels, self.sizes[query]);
        let of = move |arithmetic: &_| Attend::new(reach, channels, size, *arithmetic).shape;
        self.precision.arithmetics().iter().map(of)
    }

    /// Bytes of the frames that convolutions over time read again in the next part of a clip; 0 where clips cannot come in
    /// parts.
    pub(crate) fn history_bytes(&self) -> usize {
        if !self.graph.is_causal() {
            return 0;
        }
        let of = |node: &Node| {
            let Operation::Convolution { time, .. } = node.operation else { return 0 };
            let input = node.inputs[0].0;
            let storage = self.storage(Value::Node(input));
            let frames = frames::clip(1, false, &time, Start::Clip, 0).history();
            frames * storage.len(self.blocks(input) * self.pixels(input)) * size_of::<f32>()
        };
        self.graph.nodes.iter().map(of).sum()
    }

    /// Whether a step makes the graph's result, and can hand on rows of it as they are finished.
    pub(crate) fn leaves_by_rows(&self, step: &FusedStep) -> bool {
        let result = self.graph.output;
        let is_read = || self.graph.nodes.iter().any(|node| node.inputs.contains(&result));
        match &step.operation {
            Fused::Convolution { node, .. } => {
                step.output == Value::Node(result.0) && self.is_flat(*node) && !is_read()
            }
            _ => false,
        }
    }

    /// Whether a convolution node makes a picture from a picture alone.
    pub(crate) fn is_flat(&self, node: usize) -> bool {
        let flat = |node: usize| self.sizes[node][0] == 1;
        match &self.graph.nodes[node].operation {
            Operation::Convolution { time, kernel, padding, .. } => {
                // Else a row beyond the edge would stand for one that its strip does not hold.
                let near = time.edge == Edge::Zero || padding.top.max(padding.bottom) < kernel[0];
                time.taps == 1 && near && flat(node) && flat(self.graph.nodes[node].inputs[0].0)
            }
            _ => false,
        }
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
