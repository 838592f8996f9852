//! The graph of an autoencoder half: which operation follows which, on how many channels, with which weights.
//! It says nothing about speed or memory; how it is run is the engine's business. Shapes are
//! `[batch, channels, frames, height, width]`; a picture is a clip of one frame, and where only pictures are meant the
//! frames are left out.

use serde::Serialize;

use crate::ModelError;

/// Index of a value in [`Graph::nodes`]: the output of that node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub usize);

/// Index of a weight tensor in [`Graph::weights`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub usize);

/// A weight tensor that a graph needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Its name in the checkpoint file.
    pub name: String,
    /// The shape the graph wants: `[out, in, kernel height, kernel width]` for convolutions, `[channels]` for
    /// biases and norms. The file may hold a 1×1 convolution as `[out, in]`.
    pub shape: Vec<usize>,
    /// Whether the checkpoint holds it in 16 bits an element or fewer, so that it can be kept so without loss.
    pub narrow: bool,
    /// Where the checkpoint holds several weights in one tensor, one after the other along its first axis.
    pub part: Part,
    /// The batch norm that is folded into it.
    pub batch_norm: Option<BatchNorm>,
}

impl WeightSpec {
    /// The tensor `name` as it is in the checkpoint.
    pub fn whole(name: String, shape: Vec<usize>) -> WeightSpec {
        WeightSpec { name, shape, narrow: false, part: Part::WHOLE, batch_norm: None }
    }
}

/// A batch norm with fixed statistics behind a convolution without a bias. Channel x becomes x · factor + offset with
/// factor = weight / √(running_var + [`BATCH_NORM_EPSILON`]) and offset = bias − running_mean · factor (Ioffe and Szegedy,
/// 2015), so the two are one convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchNorm {
    /// What stands before the names of its tensors, e.g. `decoder.up_blocks.1.1.norm`.
    pub name: String,
    /// What the weight becomes.
    pub becomes: Folded,
}

/// Added to the variance of every batch norm that is folded.
pub const BATCH_NORM_EPSILON: f32 = 1e-5;

/// What a weight becomes when a batch norm is folded into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folded {
    /// The convolution's weight: itself times the factor of each output channel.
    Weight,
    /// The norm's bias: the offset of each channel.
    Offset,
}

impl BatchNorm {
    /// The tensors that it is computed from.
    pub const TENSORS: [&str; 4] = ["weight", "bias", "running_mean", "running_var"];

    /// The name of one of its tensors.
    pub fn tensor(&self, tensor: &str) -> String {
        format!("{}.{tensor}", self.name)
    }
}

/// One of equal parts of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which one.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Part {
    /// The tensor itself.
    pub const WHOLE: Part = Part { index: 0, of: 1 };
}

/// One step of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Where it stands in the model, e.g. `decoder.up_blocks.0.resnets.1.conv1`.
    pub name: String,
    /// What it does.
    pub operation: Operation,
    /// The values it reads, all of earlier nodes.
    pub inputs: Vec<ValueId>,
    /// Channels of its output.
    pub channels: usize,
}

/// Rows and columns around a convolution's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// No padding.
    pub const NONE: Padding = Padding { top: 0, bottom: 0, left: 0, right: 0 };

    /// The same number of rows and columns on all four sides.
    pub const fn same(size: usize) -> Padding {
        Padding { top: size, bottom: size, left: size, right: size }
    }
}

/// How a convolution moves through time. Its last tap reads the frame itself, the others the frames before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Time {
    /// Frames that an output reads.
    pub taps: usize,
    /// Step between outputs.
    pub stride: usize,
    /// What stands for frames before the first, and for pixels of the padding.
    pub edge: Edge,
    /// What becomes of the clip's first frame.
    pub first: First,
}

impl Time {
    /// Each frame by itself, with zeros around it.
    pub const NONE: Time = Time { taps: 1, stride: 1, edge: Edge::Zero, first: First::Ordinary };
}

/// What a convolution makes of the first frame of a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum First {
    /// What it makes of any other.
    Ordinary,
    /// Nothing that may be used.
    Unmade,
    /// Nothing that may be used, and for the other frames it lies outside the clip.
    Unseen,
}

/// What one position becomes when channels are turned into positions: `time` frames of `space` × `space` pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Frames.
    pub time: usize,
    /// Rows and columns.
    pub space: usize,
    /// Whether the pixels of a frame are numbered column by column and not row by row.
    pub by_columns: bool,
}

impl Cell {
    /// How many pixels it has in all frames.
    pub fn elements(&self) -> usize {
        self.time * self.space * self.space
    }
}

/// Which positions one attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Those of its own frame.
    Frame,
    /// Those of its own frame and of all frames before.
    Past,
}

/// What stands for values outside a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Edge {
    /// Zeros.
    Zero,
    /// The nearest value inside.
    Replicate,
}

/// Element-wise non-linearities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// max(x, 0).
    Relu,
}

/// What a node does with its inputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// The graph's input; only node 0.
    Input,
    /// Convolution (cross-correlation), causal in time. Linear layers over channels are 1×1 convolutions.
    Convolution {
        /// `[out, in, kernel height, kernel width]`, or `[out, in, taps, kernel height, kernel width]`.
        weight: WeightId,
        /// `[out]`.
        bias: Option<WeightId>,
        /// Height and width of the kernel.
        kernel: [usize; 2],
        /// Step between outputs, both ways.
        stride: usize,
        /// Rows and columns around the input.
        padding: Padding,
        /// How it moves through time.
        time: Time,
    },
    /// Normalisation over groups of channels and all positions and frames of a sample, then a per-channel scale and offset.
    GroupNorm {
        /// Number of groups; divides the channels.
        groups: usize,
        /// Added to the variance.
        epsilon: f32,
        /// Scale, `[channels]`.
        weight: WeightId,
        /// Offset, `[channels]`.
        bias: WeightId,
    },
    /// Convolution of each picture in groups of channels: an output channel reads the channels of its own group only. Stride
    /// 1, zeros around, sides kept, as many channels as its input.
    GroupedConvolution {
        /// `[channels, group, kernel, kernel]`.
        weight: WeightId,
        /// `[channels]`.
        bias: Option<WeightId>,
        /// Side of the kernel, odd.
        kernel: usize,
        /// Channels of a group; divides the channels.
        group: usize,
    },
    /// x / √(‖x‖² / channels + epsilon) · weight + bias, where x are the channels of one position.
    RmsNorm {
        /// Scale, `[channels]`.
        weight: WeightId,
        /// Offset, `[channels]`.
        bias: Option<WeightId>,
        /// Added to the mean of the squares. Where it is 0, lengths ‖x‖ below 1e-12 count as that instead.
        epsilon: f32,
    },
    /// An element-wise non-linearity.
    Activation(Activation),
    /// tanh(x / limit) · limit.
    SoftClamp {
        /// The bound that the output approaches.
        limit: f32,
    },
    /// x · scale + shift, the same for all elements.
    Affine {
        /// Factor.
        scale: f32,
        /// Summand.
        shift: f32,
    },
    /// Repeats every pixel `factor` times both ways.
    UpsampleNearest {
        /// Factor of height and of width.
        factor: usize,
        /// Whether each frame but the first is repeated too.
        doubles_frames: bool,
    },
    /// Inputs query, key, value of one shape: one head over all positions, softmax(query · key / √channels) · value.
    Attention(Reach),
    /// Attention in heads over the positions of each frame, with max(x, 0) of queries and keys in place of softmax: position
    /// i gets Σⱼ (qᵢ·kⱼ) vⱼ / (Σⱼ qᵢ·kⱼ + 1e-15). The channels of the inputs, which have one shape, are one after the other
    /// for each head its queries, its keys and its values, `head` channels each.
    LinearAttention {
        /// Channels of a head.
        head: usize,
    },
    /// The clip's first frame of the first input, all others of the second, which have one shape.
    FirstFrame,
    /// The clip's first frame of the first input; for each further frame those of the second and of the third input, one
    /// after the other. All have one shape.
    DoubleFrames,
    /// Channels to positions: element e of the cell of output channel c is input channel (c · elements + e) / repeats.
    /// The first position of a clip becomes the last frame of its cell only.
    Expand {
        /// What a position becomes.
        cell: Cell,
        /// How many neighbouring elements are one input channel.
        repeats: usize,
    },
    /// The reverse, with means: of the elements of the cells of all channels in one row, `(channel, element)`, each
    /// output channel is the mean of `mean` neighbours. The last frame of the clip's first cell is its first frame, those
    /// before it are zeros.
    Collect {
        /// What becomes a position.
        cell: Cell,
        /// How many neighbouring elements are averaged.
        mean: usize,
    },
    /// Sum of two inputs of equal shape.
    Add,
    /// Product of two inputs of equal shape, element by element.
    Multiply,
}

/// Where an input of a graph begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Start {
    /// At the first frame of a clip, which is never merged with others and never becomes several.
    #[default]
    Clip,
    /// After earlier frames.
    Later,
}

impl Start {
    /// How many frames stand alone.
    fn first_frames(self) -> usize {
        match self {
            Start::Clip => 1,
            Start::Later => 0,
        }
    }

    /// Frames after each but the first became `factor`.
    fn multiplied(self, frames: usize, factor: usize) -> usize {
        let first = self.first_frames();
        (frames - first).saturating_mul(factor).saturating_add(first)
    }

    /// Frames after `factor` became one.
    fn merged(self, frames: usize, factor: usize) -> usize {
        let first = self.first_frames();
        (frames - first) / factor + first
    }
}

/// A half of an autoencoder (decoder or encoder).
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// In an order in which they can be run; node 0 is the input.
    pub nodes: Vec<Node>,
    /// The weights that the nodes refer to, each once.
    pub weights: Vec<WeightSpec>,
    /// The result.
    pub output: ValueId,
}

impl Graph {
    /// Channels of the input.
    pub fn input_channels(&self) -> usize {
        self.nodes.first().map_or(0, |node| node.channels)
    }

    /// Channels of the result.
    pub fn output_channels(&self) -> usize {
        self.nodes.get(self.output.0).map_or(0, |node| node.channels)
    }

    /// Number of parameters, all weights together.
    pub fn parameters(&self) -> u64 {
        let elements = |spec: &WeightSpec| spec.shape.iter().map(|&side| side as u64).product::<u64>();
        self.weights.iter().map(elements).sum()
    }

    /// The shape of every node's output for pictures `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// As [`Graph::clip_shapes`].
    pub fn shapes(
        &self,
        [batch, channels, height, width]: [usize; 4],
    ) -> Result<Vec<[usize; 4]>, ModelError> {
        let shapes = self.clip_shapes([batch, channels, 1, height, width], Start::Clip)?;
        Ok(shapes.into_iter().map(|[b, c, _, h, w]| [b, c, h, w]).collect())
    }

    /// The shape of every node's output for an input `[batch, channels, frames, height, width]`, a clip or a part of one.
    ///
    /// # Errors
    /// [`ModelError::Shape`] when the input has the wrong channels, a side is zero or too small for a layer, the frames do
    /// not fit, or a tensor's element count does not fit in 63 bits.
    pub fn clip_shapes(&self, input: [usize; 5], start: Start) -> Result<Vec<[usize; 5]>, ModelError> {
        let mut shapes: Vec<[usize; 5]> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let of = |index: usize| {
                let value = node.inputs.get(index).and_then(|value| shapes.get(value.0));
                value.copied().ok_or_else(|| {
                    shape_error(node, format!("input {index} is not the output of an earlier node"))
                })
            };
            let shape = match &node.operation {
                Operation::Input => checked_input(node, input)?,
                Operation::Convolution { kernel, stride, padding, time, .. } => {
                    let [batch, _, frames, height, width] = of(0)?;
                    let side = |length: usize, before: usize, after: usize, kernel: usize| {
                        let padded = length.checked_add(before + after)?;
                        Some(padded.checked_sub(kernel)? / (*stride).max(1) + 1)
                    };
                    let height_out = side(height, padding.top, padding.bottom, kernel[0]);
                    let width_out = side(width, padding.left, padding.right, kernel[1]);
                    let (Some(height_out), Some(width_out)) = (height_out, width_out) else {
                        return Err(shape_error(
                            node,
                            format!("{height}x{width} is too small for its kernel"),
                        ));
                    };
                    let frames = start.merged(frames, time.stride.max(1));
                    [batch, node.channels, frames, height_out, width_out]
                }
                Operation::UpsampleNearest { factor, doubles_frames } => {
                    let [batch, channels, frames, height, width] = of(0)?;
                    let sides = height.checked_mul(*factor).zip(width.checked_mul(*factor));
                    let (height, width) = sides.ok_or_else(|| shape_error(node, "sides overflow".into()))?;
                    let frames = if *doubles_frames { start.multiplied(frames, 2) } else { frames };
                    [batch, channels, frames, height, width]
                }
                Operation::FirstFrame => {
                    let (first, others) = (of(0)?, of(1)?);
                    if (first[1], &first[3..]) != (others[1], &others[3..]) {
                        let message = format!("frames differ: those of {first:?} and {others:?}");
                        return Err(shape_error(node, message));
                    }
                    others
                }
                Operation::Add
                | Operation::Multiply
                | Operation::Attention(_)
                | Operation::LinearAttention { .. }
                | Operation::DoubleFrames => {
                    let mut shape = of(0)?;
                    for index in 1..node.inputs.len() {
                        if of(index)? != shape {
                            let message = format!("inputs differ: {shape:?} and {:?}", of(index)?);
                            return Err(shape_error(node, message));
                        }
                    }
                    match node.operation {
                        Operation::DoubleFrames => shape[2] = start.multiplied(shape[2], 2),
                        Operation::LinearAttention { .. } => shape[1] = node.channels,
                        _ => {}
                    }
                    shape
                }
                Operation::Expand { cell, .. } => {
                    let [batch, _, frames, height, width] = of(0)?;
                    let sides = height.checked_mul(cell.space).zip(width.checked_mul(cell.space));
                    let (height, width) = sides.ok_or_else(|| shape_error(node, "sides overflow".into()))?;
                    [batch, node.channels, start.multiplied(frames, cell.time), height, width]
                }
                Operation::Collect { cell, .. } => {
                    let [batch, _, frames, height, width] = of(0)?;
                    if !height.is_multiple_of(cell.space) || !width.is_multiple_of(cell.space) {
                        let message = format!("{height}x{width} is not a multiple of {}", cell.space);
                        return Err(shape_error(node, message));
                    }
                    if frames % cell.time != start.first_frames() % cell.time {
                        let message = format!("{frames} frames do not make whole cells of {}", cell.time);
                        return Err(shape_error(node, message));
                    }
                    let [height, width] = [height, width].map(|side| side / cell.space);
                    [batch, node.channels, start.merged(frames, cell.time), height, width]
                }
                Operation::GroupedConvolution { .. }
                | Operation::GroupNorm { .. }
                | Operation::RmsNorm { .. }
                | Operation::Activation(_)
                | Operation::SoftClamp { .. }
                | Operation::Affine { .. } => of(0)?,
            };
            let elements = shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
            if elements.is_none_or(|count| count > (i64::MAX as usize) / 4) {
                return Err(shape_error(node, format!("the tensor {shape:?} has too many elements")));
            }
            shapes.push(shape);
        }
        Ok(shapes)
    }
}

impl Graph {
    /// Whether frames depend on earlier ones only, and on these through convolutions alone: then what follows a part of a
    /// clip can be computed with the frames that the convolutions read again.
    pub fn is_causal(&self) -> bool {
        self.nodes.iter().all(|node| match &node.operation {
            Operation::GroupNorm { .. } | Operation::Attention(Reach::Past) => false,
            Operation::Convolution { time, .. } => time.taps == 1 || time.edge == Edge::Zero,
            Operation::UpsampleNearest { doubles_frames, .. } => !doubles_frames,
            _ => true,
        })
    }

    /// Whether a frame depends on others.
    pub fn has_time(&self) -> bool {
        self.nodes
            .iter()
            .any(|node| matches!(&node.operation, Operation::Convolution { time, .. } if time.taps > 1))
    }
}

fn checked_input(node: &Node, input: [usize; 5]) -> Result<[usize; 5], ModelError> {
    if input[1] != node.channels {
        let message = format!("expected {} channels, got {} in shape {input:?}", node.channels, input[1]);
        return Err(shape_error(node, message));
    }
    if input.contains(&0) {
        return Err(shape_error(node, format!("shape {input:?} has an empty side")));
    }
    Ok(input)
}

fn shape_error(node: &Node, message: String) -> ModelError {
    ModelError::Shape { place: node.name.clone(), message }
}
