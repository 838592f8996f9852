//! Single pictures through a model of clips, for a third of the work.
//!
//! A convolution that stands the first frame in for those before it reads that one frame with each of its taps, so the taps
//! can be added up first. What is left is a graph of pictures, with weights of its own.

use remote_vae_model::{Edge, Graph, ModelError, Operation, WeightSource, WeightSpec};

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

/// The weights of a still graph, from those of the graph of clips.
pub(crate) struct SummedTaps<'a> {
    pub weights: &'a dyn WeightSource,
    pub clip: &'a Graph,
}

impl WeightSource for SummedTaps<'_> {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>, ModelError> {
        let is_whole = |own: &&WeightSpec| own.name == spec.name && own.shape.len() == spec.shape.len() + 1;
        let Some(whole) = self.clip.weights.iter().find(is_whole) else { return self.weights.read(spec) };
        let values = self.weights.read(whole)?;
        let (taps, area) = (whole.shape[TAPS], whole.shape[TAPS + 1..].iter().product::<usize>());
        let mut sums = Vec::with_capacity(values.len() / taps);
        for kernel in values.chunks_exact(taps * area) {
            let sum = |at: usize| (0..taps).map(|tap| f64::from(kernel[tap * area + at])).sum::<f64>();
            sums.extend((0..area).map(|at| sum(at) as f32));
        }
        Ok(sums)
    }
}
