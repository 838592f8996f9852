//! Graphs that no model has: whatever the planner folds, overwrites and places, the result is the interpreter's.

use crate::oracle::interpret;
use crate::support::{assert_close, engines, run, values};
use proptest::prelude::*;
use remote_vae_engine::Precision;
use remote_vae_model::{
    Activation, Cell, Graph, ModelError, Node, Operation, Padding, Reach, Time, ValueId, WeightId,
    WeightSource, WeightSpec,
};

/// Weights made from their own index, scaled so that values stay near one.
struct MadeUp;

impl WeightSource for MadeUp {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>, ModelError> {
        let inputs: usize = spec.shape.iter().skip(1).product();
        let scale = 1.5 / (inputs as f32).sqrt();
        let seed = spec.name.parse().expect("weights are named by their index");
        Ok(values(spec.shape.iter().product(), seed).iter().map(|value| value * scale).collect())
    }
}

#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    weights: Vec<WeightSpec>,
}

impl Builder {
    fn weight(&mut self, shape: Vec<usize>) -> WeightId {
        self.weights.push(WeightSpec::whole(self.weights.len().to_string(), shape));
        WeightId(self.weights.len() - 1)
    }

    fn push(&mut self, operation: Operation, inputs: Vec<usize>, channels: usize) {
        let name = format!("node.{}", self.nodes.len());
        self.nodes.push(Node {
            name,
            operation,
            inputs: inputs.into_iter().map(ValueId).collect(),
            channels,
        });
    }

    /// Appends the operation that `kind` stands for on values that `pick` chooses.
    fn grow(&mut self, kind: u8, pick: [usize; 3], shapes: &[[usize; 4]]) {
        let count = self.nodes.len();
        // Mostly the newest value, so that chains form.
        let input = if pick[0].is_multiple_of(3) { pick[0] % count } else { count - 1 };
        let channels = self.nodes[input].channels;
        let alike: Vec<usize> = (0..count).filter(|&other| shapes[other] == shapes[input]).collect();
        let other = |at: usize| alike[pick[at] % alike.len()];
        match kind {
            0..=3 => {
                let kernel = if kind == 0 { [1, 1] } else { [3, 3] };
                let outputs = [channels, 4, 12, 20][pick[1] % 4];
                let weight = self.weight(vec![outputs, channels, kernel[0], kernel[1]]);
                let bias = pick[2].is_multiple_of(2).then(|| self.weight(vec![outputs]));
                let stride = if kind == 3 && shapes[input][2] > 4 && shapes[input][3] > 4 { 2 } else { 1 };
                let padding = if kernel == [1, 1] { Padding::NONE } else { Padding::same(1) };
                self.push(
                    Operation::Convolution { weight, bias, kernel, stride, padding, time: Time::NONE },
                    vec![input],
                    outputs,
                );
            }
            4 | 5 => {
                let (weight, bias) = (self.weight(vec![channels]), self.weight(vec![channels]));
                self.push(
                    Operation::GroupNorm { groups: 4, epsilon: 1e-3, weight, bias },
                    vec![input],
                    channels,
                );
            }
            6 => self.push(Operation::Activation(Activation::Silu), vec![input], channels),
            7 => self.push(Operation::Activation(Activation::Relu), vec![input], channels),
            8 => self.push(Operation::SoftClamp { limit: 3.0 }, vec![input], channels),
            9 => self.push(Operation::Affine { scale: 0.5, shift: 0.25 }, vec![input], channels),
            10 if shapes[input][2] < 12 => self.push(
                Operation::UpsampleNearest { factor: 2, doubles_frames: false },
                vec![input],
                channels,
            ),
            11 => {
                let reach = [Reach::Frame, Reach::Past][pick[1] / 8 % 2];
                self.push(Operation::Attention(reach), vec![input, other(1), other(2)], channels);
            }
            12 => {
                let weight = self.weight(vec![channels]);
                let bias = pick[1].is_multiple_of(2).then(|| self.weight(vec![channels]));
                let epsilon = [0.0, 1e-3][pick[2] % 2];
                self.push(Operation::RmsNorm { weight, bias, epsilon }, vec![input], channels);
            }
            13 => self.push(Operation::FirstFrame, vec![input, other(1)], channels),
            14 => self.push(Operation::DoubleFrames, vec![input, other(1), other(2)], channels),
            15 if shapes[input][2] < 12 => {
                let cell = Cell { time: 1, space: 2, by_columns: pick[1].is_multiple_of(2) };
                self.push(Operation::Expand { cell, repeats: 4 }, vec![input], channels);
            }
            16 if shapes[input][2..].iter().all(|side| side.is_multiple_of(2)) => {
                let cell = Cell { time: 1, space: 2, by_columns: pick[1].is_multiple_of(2) };
                self.push(Operation::Collect { cell, mean: 4 }, vec![input], channels);
            }
            17 => {
                let (group, kernel) = ([1, 2, 4][pick[1] % 3], [1, 3, 5][pick[2] % 3]);
                let weight = self.weight(vec![channels, group, kernel, kernel]);
                let bias = pick[2].is_multiple_of(2).then(|| self.weight(vec![channels]));
                self.push(
                    Operation::GroupedConvolution { weight, bias, kernel, group },
                    vec![input],
                    channels,
                );
            }
            18 => {
                let inputs = vec![input, other(1), other(2)];
                let head = [2, 4][pick[1] / 8 % 2];
                self.push(Operation::LinearAttention { head }, inputs, channels);
            }
            19 => self.push(Operation::Multiply, vec![input, other(1)], channels),
            _ => self.push(Operation::Add, vec![input, other(1)], channels),
        }
    }
}

fn build(recipe: &[(u8, [usize; 3])], shape: [usize; 4]) -> Graph {
    let mut builder = Builder::default();
    builder.push(Operation::Input, vec![], shape[1]);
    for (kind, pick) in recipe {
        let output = ValueId(builder.nodes.len() - 1);
        let graph = Graph { nodes: builder.nodes.clone(), weights: builder.weights.clone(), output };
        builder.grow(*kind, *pick, &graph.shapes(shape).unwrap());
    }
    let output = ValueId(builder.nodes.len() - 1);
    Graph { nodes: builder.nodes, weights: builder.weights, output }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_graph_gives_what_the_interpreter_gives(
        recipe in prop::collection::vec((0u8..22, any::<[usize; 3]>()), 1..14),
        size in (3usize..9, 3usize..9), batch in 1usize..3,
    ) {
        let shape = [batch, 4, size.0, size.1];
        let graph = build(&recipe, shape);
        let input = values(shape.iter().product(), 77);
        let expected = interpret(&graph, &MadeUp, shape, &input);
        let expected_values: Vec<f32> = expected.values.iter().map(|value| *value as f32).collect();
        let largest = expected_values.iter().fold(1.0f32, |most, value| most.max(value.abs()));
        for engine in engines() {
            let (found, found_shape) = run(&*engine, &graph, &MadeUp, shape, &input);
            prop_assert_eq!(found_shape, expected.shape);
            // Norms of nearly constant values magnify rounding; epsilon bounds that to about 30 a norm.
            assert_close(&found, &expected_values, 2e-3 * largest, &engine.name(Precision::Exact));
        }
    }
}
