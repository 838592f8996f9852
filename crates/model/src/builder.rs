//! A small builder that the architecture files write their graphs with: each call appends one node and returns its
//! value. Weight names are those of diffusers; [`crate::names`] turns them into the names in the file.

use crate::graph::{
    Activation, BatchNorm, Edge, First, Folded, Graph, Node, Operation, Padding, Part, Reach, Time, ValueId,
    WeightId, WeightSpec,
};

/// A convolution to be appended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Convolution {
    /// Channels of the output.
    pub output: usize,
    /// Side of the square kernel.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Rows and columns around the input.
    pub padding: Padding,
    /// How it moves through time; the weights have an axis for it, even if there is one tap.
    pub time: Option<Time>,
    /// Whether it has a bias.
    pub bias: bool,
    /// Which part of the tensors of this name it is.
    pub part: Part,
}

impl Convolution {
    /// 3×3, stride 1, sides kept.
    pub(crate) fn square3(output: usize) -> Self {
        Self {
            output,
            kernel: 3,
            stride: 1,
            padding: Padding::same(1),
            time: None,
            bias: true,
            part: Part::WHOLE,
        }
    }

    /// 1×1.
    pub(crate) fn pointwise(output: usize) -> Self {
        Self {
            output,
            kernel: 1,
            stride: 1,
            padding: Padding::NONE,
            time: None,
            bias: true,
            part: Part::WHOLE,
        }
    }

    /// 3×3×3, causal in time, first frame and edges repeated.
    pub(crate) fn causal3(output: usize) -> Self {
        let time = Time { taps: 3, stride: 1, edge: Edge::Replicate, first: First::Ordinary };
        Self { time: Some(time), ..Self::square3(output) }
    }

    /// 1×1×1.
    pub(crate) fn pointwise3d(output: usize) -> Self {
        Self { time: Some(Time::NONE), ..Self::pointwise(output) }
    }

    /// The same without a bias.
    pub(crate) fn without_bias(self) -> Self {
        Self { bias: false, ..self }
    }
}

/// A convolution in groups to be appended; sides are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grouped {
    /// Side of the square kernel, odd.
    pub kernel: usize,
    /// Channels of a group.
    pub group: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// Which part of the tensors of this name it is.
    pub part: Part,
}

/// Appends nodes to a graph.
pub(crate) struct GraphBuilder {
    nodes: Vec<Node>,
    weights: Vec<WeightSpec>,
}

impl GraphBuilder {
    /// A graph with only its input; also returns the input's value.
    pub(crate) fn new(input_channels: usize) -> (Self, ValueId) {
        let node = Node {
            name: "input".into(),
            operation: Operation::Input,
            inputs: Vec::new(),
            channels: input_channels,
        };
        (Self { nodes: vec![node], weights: Vec::new() }, ValueId(0))
    }

    /// The finished graph.
    pub(crate) fn finish(self, output: ValueId) -> Graph {
        Graph { nodes: self.nodes, weights: self.weights, output }
    }

    /// Channels of a value.
    pub(crate) fn channels(&self, value: ValueId) -> usize {
        self.nodes[value.0].channels
    }

    pub(crate) fn convolution(&mut self, name: &str, input: ValueId, layer: Convolution) -> ValueId {
        let weight = self.weight_part(format!("{name}.weight"), self.kernel_shape(input, layer), layer.part);
        let bias =
            layer.bias.then(|| self.weight_part(format!("{name}.bias"), vec![layer.output], layer.part));
        self.convolution_of(name, input, layer, weight, bias)
    }

    /// A convolution, whose own bias does not count, and the batch norm `norm` behind it.
    pub(crate) fn convolution_and_batch_norm(
        &mut self,
        name: &str,
        norm: &str,
        input: ValueId,
        layer: Convolution,
    ) -> ValueId {
        let shape = self.kernel_shape(input, layer);
        let mut folded = |name: String, shape: Vec<usize>, becomes: Folded| {
            let batch_norm = Some(BatchNorm { name: norm.to_owned(), becomes });
            self.push_weight(WeightSpec { batch_norm, ..WeightSpec::whole(name, shape) })
        };
        let weight = folded(format!("{name}.weight"), shape, Folded::Weight);
        let offset = folded(format!("{norm}.bias"), vec![layer.output], Folded::Offset);
        self.convolution_of(name, input, layer, weight, Some(offset))
    }

    fn kernel_shape(&self, input: ValueId, layer: Convolution) -> Vec<usize> {
        let mut shape = vec![layer.output, self.channels(input), layer.kernel, layer.kernel];
        if let Some(time) = layer.time {
            shape.insert(2, time.taps);
        }
        shape
    }

    fn convolution_of(
        &mut self,
        name: &str,
        input: ValueId,
        layer: Convolution,
        weight: WeightId,
        bias: Option<WeightId>,
    ) -> ValueId {
        let kernel = [layer.kernel; 2];
        let (stride, padding, time) = (layer.stride, layer.padding, layer.time.unwrap_or(Time::NONE));
        let operation = Operation::Convolution { weight, bias, kernel, stride, padding, time };
        self.node(name, operation, vec![input], layer.output)
    }

    pub(crate) fn grouped(&mut self, name: &str, input: ValueId, layer: Grouped) -> ValueId {
        let channels = self.channels(input);
        let Grouped { kernel, group, bias, part } = layer;
        let shape = vec![channels, group, kernel, kernel];
        let weight = self.weight_part(format!("{name}.weight"), shape, part);
        let bias = bias.then(|| self.weight_part(format!("{name}.bias"), vec![channels], part));
        let operation = Operation::GroupedConvolution { weight, bias, kernel, group };
        self.node(name, operation, vec![input], channels)
    }

    pub(crate) fn group_norm(&mut self, name: &str, input: ValueId, groups: usize, epsilon: f32) -> ValueId {
        let channels = self.channels(input);
        let weight = self.weight(format!("{name}.weight"), vec![channels]);
        let bias = self.weight(format!("{name}.bias"), vec![channels]);
        self.node(name, Operation::GroupNorm { groups, epsilon, weight, bias }, vec![input], channels)
    }

    pub(crate) fn rms_norm(&mut self, name: &str, input: ValueId) -> ValueId {
        let channels = self.channels(input);
        let weight = self.weight(format!("{name}.gamma"), vec![channels]);
        self.node(name, Operation::RmsNorm { weight, bias: None, epsilon: 0.0 }, vec![input], channels)
    }

    /// RMS norm as diffusers' `RMSNorm` has it, with a bias.
    pub(crate) fn rms_norm_with_bias(&mut self, name: &str, input: ValueId, epsilon: f32) -> ValueId {
        let channels = self.channels(input);
        let weight = self.weight(format!("{name}.weight"), vec![channels]);
        let bias = Some(self.weight(format!("{name}.bias"), vec![channels]));
        self.node(name, Operation::RmsNorm { weight, bias, epsilon }, vec![input], channels)
    }

    pub(crate) fn silu(&mut self, name: &str, input: ValueId) -> ValueId {
        self.unary(name, Operation::Activation(Activation::Silu), input)
    }

    pub(crate) fn relu(&mut self, name: &str, input: ValueId) -> ValueId {
        self.unary(name, Operation::Activation(Activation::Relu), input)
    }

    /// An operation with one input that keeps the channels and has no weights.
    pub(crate) fn unary(&mut self, name: &str, operation: Operation, input: ValueId) -> ValueId {
        let channels = self.channels(input);
        self.node(name, operation, vec![input], channels)
    }

    pub(crate) fn attention(&mut self, name: &str, reach: Reach, inputs: [ValueId; 3]) -> ValueId {
        let channels = self.channels(inputs[2]);
        self.node(name, Operation::Attention(reach), inputs.to_vec(), channels)
    }

    /// Over `inputs` of one shape, a third of whose channels comes out.
    pub(crate) fn linear_attention(&mut self, name: &str, head: usize, inputs: &[ValueId]) -> ValueId {
        let channels = inputs.iter().map(|input| self.channels(*input)).sum::<usize>() / 3;
        self.node(name, Operation::LinearAttention { head }, inputs.to_vec(), channels)
    }

    /// An operation on values of as many channels as its result has.
    pub(crate) fn frames(&mut self, name: &str, operation: Operation, inputs: &[ValueId]) -> ValueId {
        let channels = self.channels(inputs[0]);
        self.node(name, operation, inputs.to_vec(), channels)
    }

    /// [`Operation::Expand`] or [`Operation::Collect`] to `channels`.
    pub(crate) fn rearrange(
        &mut self,
        name: &str,
        operation: Operation,
        input: ValueId,
        channels: usize,
    ) -> ValueId {
        self.node(name, operation, vec![input], channels)
    }

    pub(crate) fn add(&mut self, name: &str, left: ValueId, right: ValueId) -> ValueId {
        let channels = self.channels(left);
        self.node(name, Operation::Add, vec![left, right], channels)
    }

    pub(crate) fn multiply(&mut self, name: &str, left: ValueId, right: ValueId) -> ValueId {
        let channels = self.channels(left);
        self.node(name, Operation::Multiply, vec![left, right], channels)
    }

    fn weight(&mut self, name: String, shape: Vec<usize>) -> WeightId {
        self.weight_part(name, shape, Part::WHOLE)
    }

    fn weight_part(&mut self, name: String, shape: Vec<usize>, part: Part) -> WeightId {
        self.push_weight(WeightSpec { part, ..WeightSpec::whole(name, shape) })
    }

    fn push_weight(&mut self, spec: WeightSpec) -> WeightId {
        self.weights.push(spec);
        WeightId(self.weights.len() - 1)
    }

    fn node(&mut self, name: &str, operation: Operation, inputs: Vec<ValueId>, channels: usize) -> ValueId {
        self.nodes.push(Node { name: name.to_owned(), operation, inputs, channels });
        ValueId(self.nodes.len() - 1)
    }
}
