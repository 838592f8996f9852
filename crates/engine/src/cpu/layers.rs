//! The weights of a graph's nodes as the kernels take them: held, or read for each step that works with them.

use std::collections::BTreeMap;

use remote_vae_kernels::convolution::Convolution;
use remote_vae_kernels::grouped::GroupedConvolution;
use remote_vae_kernels::{Isa, Pool};
use remote_vae_model::{Graph, Operation, Time, WeightId, WeightSource};

use crate::plan::Step;
use crate::shapes::geometry;
use crate::{EngineError, frames};

/// What a graph node needs at run time.
pub(crate) enum Layer {
    Convolution { convolution: Convolution, time: Time },
    Norm { groups: usize, epsilon: f32, weight: Vec<f32>, bias: Vec<f32> },
    RmsNorm { weight: Vec<f32>, bias: Option<Vec<f32>>, epsilon: f32 },
    Grouped(GroupedConvolution),
    Weightless,
}

/// The layers that a step works with.
pub(crate) enum Layers<'a> {
    /// Those of the whole graph, one for each node.
    Held(&'a [Layer]),
    /// By node.
    Read(BTreeMap<usize, Layer>),
}

impl Layers<'_> {
    /// Reads what `step` needs.
    pub(crate) fn read(
        isa: Isa,
        pool: &Pool,
        graph: &Graph,
        step: &Step,
        source: &dyn WeightSource,
    ) -> Result<Layers<'static>, EngineError> {
        let nodes = step.operations.iter().filter_map(|operation| operation.fused.weighted_node());
        nodes
            .map(|node| Ok((node, layer(isa, pool, graph, node, source)?)))
            .collect::<Result<_, _>>()
            .map(Layers::Read)
    }

    /// The layer of a node that the step works with.
    pub(crate) fn of(&self, node: usize) -> &Layer {
        match self {
            Layers::Held(layers) => &layers[node],
            Layers::Read(layers) => &layers[&node],
        }
    }
}

/// Reads the weights of `node` and lays them out.
pub(crate) fn layer(
    isa: Isa,
    pool: &Pool,
    graph: &Graph,
    node: usize,
    source: &dyn WeightSource,
) -> Result<Layer, EngineError> {
    let read = |id: WeightId| -> Result<Vec<f32>, EngineError> {
        let spec = &graph.weights[id.0];
        let values = source.read(spec)?;
        let expected = spec.shape.iter().product();
        if values.len() != expected {
            let (name, shape, found) = (spec.name.clone(), spec.shape.clone(), values.len());
            return Err(EngineError::WeightLength { name, shape, found, expected });
        }
        Ok(values)
    };
    let node = &graph.nodes[node];
    Ok(match &node.operation {
        Operation::Convolution { weight, bias, time, .. } => {
            let Some(geometry) = geometry(graph, node) else {
                unreachable!("convolution nodes have a geometry")
            };
            let bias = bias.map(read).transpose()?;
            let weight = match time.taps {
                1 => read(*weight)?,
                taps => frames::taps_as_channels(&read(*weight)?, &graph.weights[weight.0].shape, taps),
            };
            let convolution = Convolution::new(isa, pool, geometry, &weight, bias.as_deref());
            Layer::Convolution { convolution, time: *time }
        }
        Operation::GroupNorm { groups, epsilon, weight, bias } => {
            Layer::Norm { groups: *groups, epsilon: *epsilon, weight: read(*weight)?, bias: read(*bias)? }
        }
        Operation::RmsNorm { weight, bias, epsilon } => {
            let bias = bias.map(read).transpose()?;
            Layer::RmsNorm { weight: read(*weight)?, bias, epsilon: *epsilon }
        }
        Operation::GroupedConvolution { weight, bias, kernel, group } => {
            let (weight, bias) = (read(*weight)?, bias.map(read).transpose()?);
            let (channels, bias) = (node.channels, bias.as_deref());
            Layer::Grouped(GroupedConvolution::new(channels, *group, *kernel, &weight, bias))
        }
        _ => Layer::Weightless,
    })
}
