//! What each tensor of a run is like: its sides, and how it is stored.

use remote_vae_kernels::Storage;
use remote_vae_kernels::convolution::Geometry;
use remote_vae_kernels::layout::{BLOCK, blocks};
use remote_vae_model::{Edge, Graph, Node, Operation};

use crate::Precision;
use crate::fusion::Value;

/// A graph on an input of one shape.
#[derive(Clone, Copy)]
pub(crate) struct Shapes<'a> {
    pub graph: &'a Graph,
    /// `[frames, height, width]` of each node's value.
    pub sizes: &'a [[usize; 3]],
    pub precision: Precision,
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

    /// Whether a convolution node makes a picture from a picture, with zeros around it.
    pub(crate) fn is_flat(&self, node: usize) -> bool {
        let flat = |node: usize| self.sizes[node][0] == 1;
        match &self.graph.nodes[node].operation {
            Operation::Convolution { time, .. } => {
                time.taps == 1
                    && time.edge == Edge::Zero
                    && flat(node)
                    && flat(self.graph.nodes[node].inputs[0].0)
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
