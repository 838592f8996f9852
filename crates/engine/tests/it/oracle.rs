//! A naive interpreter of graphs in `f64`: slow, obvious, and written from the operations' definitions alone.

use remote_vae_model::{Activation, Graph, Operation, Padding, WeightId, WeightSource};

pub(crate) struct Value {
    pub shape: [usize; 4],
    pub values: Vec<f64>,
}

impl Value {
    fn at(&self, [b, c, y, x]: [usize; 4]) -> f64 {
        let [_, channels, height, width] = self.shape;
        self.values[((b * channels + c) * height + y) * width + x]
    }

    fn from(shape: [usize; 4], mut of: impl FnMut([usize; 4]) -> f64) -> Value {
        let mut values = Vec::with_capacity(shape.iter().product());
        for b in 0..shape[0] {
            for c in 0..shape[1] {
                for y in 0..shape[2] {
                    for x in 0..shape[3] {
                        values.push(of([b, c, y, x]));
                    }
                }
            }
        }
        Value { shape, values }
    }

    fn map(&self, of: impl Fn(f64) -> f64) -> Value {
        Value { shape: self.shape, values: self.values.iter().map(|value| of(*value)).collect() }
    }
}

pub(crate) fn interpret(
    graph: &Graph,
    weights: &dyn WeightSource,
    shape: [usize; 4],
    input: &[f32],
) -> Value {
    let read = |id: WeightId| -> Vec<f64> {
        weights.read(&graph.weights[id.0]).unwrap().into_iter().map(f64::from).collect()
    };
    let mut made: Vec<Value> = Vec::new();
    for node in &graph.nodes {
        let value = |at: usize| &made[node.inputs[at].0];
        let result = match &node.operation {
            Operation::Input => {
                Value { shape, values: input.iter().map(|value| f64::from(*value)).collect() }
            }
            Operation::Convolution { weight, bias, kernel, stride, padding, .. } => {
                let bias = bias.map(read);
                convolve(value(0), &read(*weight), bias.as_deref(), node.channels, *kernel, *stride, *padding)
            }
            Operation::GroupNorm { groups, epsilon, weight, bias } => {
                normalise(value(0), *groups, f64::from(*epsilon), &read(*weight), &read(*bias))
            }
            Operation::Activation(Activation::Silu) => value(0).map(|x| x / (1.0 + (-x).exp())),
            Operation::Activation(Activation::Relu) => value(0).map(|x| x.max(0.0)),
            Operation::SoftClamp { limit } => {
                let limit = f64::from(*limit);
                value(0).map(|x| (x / limit).tanh() * limit)
            }
            Operation::Affine { scale, shift } => value(0).map(|x| x * f64::from(*scale) + f64::from(*shift)),
            Operation::UpsampleNearest { factor, .. } => {
                let from = value(0);
                let [b, c, h, w] = from.shape;
                Value::from([b, c, h * factor, w * factor], |[b, c, y, x]| {
                    from.at([b, c, y / factor, x / factor])
                })
            }
            Operation::Attention(_) => attend(value(0), value(1), value(2)),
            Operation::RmsNorm { weight, bias, epsilon } => {
                let (from, weight, bias) = (value(0), read(*weight), bias.map(read));
                let channels = from.shape[1];
                Value::from(from.shape, |[b, c, y, x]| {
                    let squares: f64 = (0..channels).map(|c| from.at([b, c, y, x]).powi(2)).sum();
                    let length = if *epsilon == 0.0 { squares.sqrt().max(1e-12) } else { squares.sqrt() };
                    let root = (length.powi(2) / channels as f64 + f64::from(*epsilon)).sqrt();
                    from.at([b, c, y, x]) / root * weight[c] + bias.as_ref().map_or(0.0, |bias| bias[c])
                })
            }
            Operation::GroupedConvolution { weight, bias, kernel, group } => {
                let (weight, bias) = (read(*weight), bias.map(read));
                group_by_group(value(0), &weight, bias.as_deref(), *kernel, *group)
            }
            Operation::LinearAttention { head } => {
                let inputs: Vec<&Value> = (0..node.inputs.len()).map(value).collect();
                attend_linearly(&inputs, *head)
            }
            Operation::Multiply => Value::from(value(0).shape, |at| value(0).at(at) * value(1).at(at)),
            // Of a picture there is only the first frame.
            Operation::FirstFrame | Operation::DoubleFrames => value(0).map(|x| x),
            Operation::Expand { cell, repeats } => {
                let (from, side) = (value(0), cell.space);
                let [b, _, h, w] = from.shape;
                Value::from([b, node.channels, h * side, w * side], |[b, c, y, x]| {
                    let (row, column) = (y % side, x % side);
                    let element = if cell.by_columns { column * side + row } else { row * side + column };
                    from.at([b, (c * side * side + element) / repeats, y / side, x / side])
                })
            }
            Operation::Collect { cell, mean } => {
                let (from, side) = (value(0), cell.space);
                let [b, _, h, w] = from.shape;
                Value::from([b, node.channels, h / side, w / side], |[b, c, y, x]| {
                    let one = |index: usize| {
                        let (outer, inner) = (index / side % side, index % side);
                        let [row, column] = if cell.by_columns { [inner, outer] } else { [outer, inner] };
                        from.at([b, index / (side * side), y * side + row, x * side + column])
                    };
                    (c * mean..(c + 1) * mean).map(one).sum::<f64>() / *mean as f64
                })
            }
            Operation::Add => Value::from(value(0).shape, |at| value(0).at(at) + value(1).at(at)),
        };
        made.push(result);
    }
    made.swap_remove(graph.output.0)
}

fn convolve(
    input: &Value,
    weight: &[f64],
    bias: Option<&[f64]>,
    outputs: usize,
    [rows, columns]: [usize; 2],
    stride: usize,
    padding: Padding,
) -> Value {
    let [batch, channels, height, width] = input.shape;
    let out_height = (height + padding.top + padding.bottom - rows) / stride + 1;
    let out_width = (width + padding.left + padding.right - columns) / stride + 1;
    Value::from([batch, outputs, out_height, out_width], |[b, o, y, x]| {
        let mut sum = bias.map_or(0.0, |bias| bias[o]);
        for c in 0..channels {
            for ky in 0..rows {
                for kx in 0..columns {
                    let (from_y, from_x) = (y * stride + ky, x * stride + kx);
                    if from_y < padding.top || from_x < padding.left {
                        continue;
                    }
                    let (from_y, from_x) = (from_y - padding.top, from_x - padding.left);
                    if from_y < height && from_x < width {
                        let weight = weight[((o * channels + c) * rows + ky) * columns + kx];
                        sum += weight * input.at([b, c, from_y, from_x]);
                    }
                }
            }
        }
        sum
    })
}

/// Each group of channels through a convolution of its own, which keeps the sides.
fn group_by_group(input: &Value, weight: &[f64], bias: Option<&[f64]>, kernel: usize, group: usize) -> Value {
    let [batch, channels, height, width] = input.shape;
    let parts: Vec<Value> = (0..channels / group)
        .map(|part| {
            let own = Value::from([batch, group, height, width], |[b, c, y, x]| {
                input.at([b, part * group + c, y, x])
            });
            let len = group * group * kernel * kernel;
            let bias = bias.map(|bias| &bias[part * group..][..group]);
            let padding = Padding::same(kernel / 2);
            convolve(&own, &weight[part * len..][..len], bias, group, [kernel; 2], 1, padding)
        })
        .collect();
    Value::from(input.shape, |[b, c, y, x]| parts[c / group].at([b, c % group, y, x]))
}

/// ReLU of queries and keys in place of softmax; the inputs' channels, one after the other, are queries, keys and values
/// head by head.
fn attend_linearly(inputs: &[&Value], head: usize) -> Value {
    let [batch, channels, height, width] = inputs[0].shape;
    let tokens = height * width;
    let at = |b: usize, c: usize, token: usize| {
        inputs[c / channels].at([b, c % channels, token / width, token % width])
    };
    let made = inputs.len() * channels / 3;
    Value::from([batch, made, height, width], |[b, c, y, x]| {
        let first = c / head * 3 * head;
        let product = |key: usize| -> f64 {
            let one =
                |c: usize| at(b, first + c, y * width + x).max(0.0) * at(b, first + head + c, key).max(0.0);
            (0..head).map(one).sum()
        };
        let products: Vec<f64> = (0..tokens).map(product).collect();
        let value = |key: usize| at(b, first + 2 * head + c % head, key);
        let sum: f64 = products.iter().enumerate().map(|(key, product)| product * value(key)).sum();
        sum / (products.iter().sum::<f64>() + 1e-15)
    })
}

fn normalise(input: &Value, groups: usize, epsilon: f64, weight: &[f64], bias: &[f64]) -> Value {
    let [_, channels, height, width] = input.shape;
    let size = channels / groups;
    let group_len = size * height * width;
    let statistics: Vec<(f64, f64)> = input
        .values
        .chunks_exact(group_len)
        .map(|group| {
            let mean = group.iter().sum::<f64>() / group_len as f64;
            (mean, group.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / group_len as f64)
        })
        .collect();
    Value::from(input.shape, |[b, c, y, x]| {
        let (mean, variance) = statistics[b * groups + c / size];
        (input.at([b, c, y, x]) - mean) / (variance + epsilon).sqrt() * weight[c] + bias[c]
    })
}

fn attend(query: &Value, key: &Value, value: &Value) -> Value {
    let [batch, channels, height, width] = query.shape;
    let at = |of: &Value, b: usize, c: usize, token: usize| of.at([b, c, token / width, token % width]);
    let tokens = height * width;
    let weights: Vec<Vec<f64>> = (0..batch * tokens)
        .map(|index| {
            let (b, q) = (index / tokens, index % tokens);
            let scores: Vec<f64> = (0..tokens)
                .map(|k| {
                    let sum: f64 = (0..channels).map(|c| at(query, b, c, q) * at(key, b, c, k)).sum();
                    sum / (channels as f64).sqrt()
                })
                .collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let raised: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
            let total: f64 = raised.iter().sum();
            raised.iter().map(|weight| weight / total).collect()
        })
        .collect();
    Value::from(query.shape, |[b, c, y, x]| {
        let row = &weights[b * tokens + y * width + x];
        row.iter().enumerate().map(|(k, weight)| weight * at(value, b, c, k)).sum()
    })
}
