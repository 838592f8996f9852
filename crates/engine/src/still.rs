//! Single pictures through a model of clips, for a third of the work.
//!
//! A convolution that stands the first frame in for those before it reads that one frame with each of its taps, so the taps
//! can be added up first. What is left is a graph of pictures, with weights of its own.

use std::sync::Arc;

use remote_vae_model::{Checkpoint, Edge, Graph, ModelError, Operation, Part, WeightSource, WeightSpec};

/// The graph for clips of one frame; `None` where it would be the same.
pub(crate) fn graph(clip: &Graph) -> Option<Graph> {
    let mut still = clip.clone();
    let mut is_other = false;
    for node in &mut still.nodes {
        if let Operation::Convolution { weight, time, .. } = &mut node.operation
            && time.taps > 1
            && time.edge == Edge::Replicate
        {
            time.taps = 1;
            let spec = &mut still.weights[weight.0];
            spec.shape.remove(TAPS);
            // Sums need more bits than their terms.
            spec.narrow = false;
            is_other = true;
        }
    }
    is_other.then_some(still)
}

/// Which side of `[out, in, taps, rows, columns]` the taps are.
const TAPS: usize = 2;
/// Values that are read at once, about: few enough that plans need not count them.
const PART_VALUES: usize = 1 << 14;

/// The weights of a still graph, from those of the graph of clips.
pub(crate) struct SummedTaps {
    pub weights: Arc<Checkpoint>,
    pub clip: Graph,
}

impl WeightSource for SummedTaps {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>, ModelError> {
        let is_whole = |own: &&WeightSpec| own.name == spec.name && own.shape.len() == spec.shape.len() + 1;
        let Some(whole) = self.clip.weights.iter().find(is_whole) else { return self.weights.read(spec) };
        let (taps, area) = (whole.shape[TAPS], whole.shape[TAPS + 1..].iter().product::<usize>());
        let mut sums = Vec::with_capacity(whole.shape.iter().product::<usize>() / taps);
        // Some outputs at a time: the terms of all would take three times the memory of the sums.
        let outputs = whole.shape[0];
        let fewest = (whole.shape.iter().product::<usize>() / PART_VALUES).clamp(1, outputs);
        let parts = (fewest..=outputs).find(|parts| outputs.is_multiple_of(*parts)).unwrap_or(outputs);
        for index in 0..parts {
            let mut some = whole.clone();
            some.shape[0] /= parts;
            some.part = Part { index: whole.part.index * parts + index, of: whole.part.of * parts };
            for kernel in self.weights.read(&some)?.chunks_exact(taps * area) {
                let sum = |at: usize| (0..taps).map(|tap| f64::from(kernel[tap * area + at])).sum::<f64>();
                sums.extend((0..area).map(|at| sum(at) as f32));
            }
        }
        Ok(sums)
    }
}
