//! The CPU engine: plans run on the kernels, one sample at a time, with all threads in each step.

use remote_vae_kernels::attention::attention;
use remote_vae_kernels::convolution::{Convolution, Epilogue, Prologue, Residual};
use remote_vae_kernels::layout::{from_blocked, to_blocked};
use remote_vae_kernels::norm::{self, GroupNorm};
use remote_vae_kernels::{Activation, Buffer, Isa, Pool, elementwise};
use remote_vae_model::{Graph, Operation, WeightId, WeightSource};
use std::sync::Arc;

use crate::arena::{Region, Views};
use crate::fusion::Fused;
use crate::plan::{Plan, Step, geometry};
use crate::{Control, Engine, EngineError, Program, Progress};

/// How a [`CpuEngine`] is made.
#[derive(Clone, Debug, Default)]
pub struct EngineOptions {
    /// Worker threads; `None` takes one for each processor that this process may use.
    pub threads: Option<usize>,
    /// Instruction tier by name (`avx512`, `avx2`, `generic`); `None` takes the best this CPU has.
    pub isa: Option<String>,
}

/// Runs graphs in `f32` on the processor.
pub struct CpuEngine {
    pool: Arc<Pool>,
    isa: Isa,
}

impl CpuEngine {
    /// An engine with threads of its own.
    ///
    /// # Errors
    /// The instruction tier is not there, or the threads cannot be started.
    pub fn new(options: EngineOptions) -> Result<CpuEngine, EngineError> {
        let isa = options.isa.as_deref().map_or_else(|| Ok(Isa::detect()), Isa::by_name)?;
        let pool = Arc::new(Pool::new(options.threads).map_err(EngineError::Threads)?);
        Ok(CpuEngine { pool, isa })
    }
}

impl Engine for CpuEngine {
    fn name(&self) -> String {
        format!("cpu/{}/exact", self.isa.name())
    }

    fn isa(&self) -> &str {
        self.isa.name()
    }

    fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn peak_flops_per_second(&self) -> f64 {
        remote_vae_kernels::peak::flops_per_second(self.isa, &self.pool, 5)
    }

    fn plan(&self, graph: &Graph, input: [usize; 4]) -> Result<Plan, EngineError> {
        Plan::new(graph, input, self.isa, self.pool.threads())
    }

    fn load(&self, graph: &Graph, weights: &dyn WeightSource) -> Result<Box<dyn Program>, EngineError> {
        let layers = (0..graph.nodes.len()).map(|node| self.layer(graph, node, weights));
        Ok(Box::new(CpuProgram {
            pool: Arc::clone(&self.pool),
            isa: self.isa,
            layers: layers.collect::<Result<_, _>>()?,
        }))
    }
}

impl CpuEngine {
    fn layer(&self, graph: &Graph, node: usize, source: &dyn WeightSource) -> Result<Layer, EngineError> {
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
            Operation::Convolution { weight, bias, .. } => {
                let Some(geometry) = geometry(graph, node) else {
                    unreachable!("convolution nodes have a geometry")
                };
                let bias = bias.map(read).transpose()?;
                Layer::Convolution(Convolution::new(self.isa, geometry, &read(*weight)?, bias.as_deref()))
            }
            Operation::GroupNorm { groups, epsilon, weight, bias } => {
                Layer::Norm { groups: *groups, epsilon: *epsilon, weight: read(*weight)?, bias: read(*bias)? }
            }
            _ => Layer::Weightless,
        })
    }
}

/// What a graph node needs at run time.
enum Layer {
    Convolution(Convolution),
    Norm { groups: usize, epsilon: f32, weight: Vec<f32>, bias: Vec<f32> },
    Weightless,
}

struct CpuProgram {
    pool: Arc<Pool>,
    isa: Isa,
    /// One for each graph node.
    layers: Vec<Layer>,
}

impl Program for CpuProgram {
    fn run(&self, plan: &Plan, input: &[f32], control: &Control) -> Result<Vec<f32>, EngineError> {
        let [batch, channels, height, width] = plan.input;
        let expected = batch * channels * height * width;
        if input.len() != expected {
            return Err(EngineError::InputLength { shape: plan.input, found: input.len(), expected });
        }
        let [_, output_channels, output_height, output_width] = plan.output;
        let sample = channels * height * width;
        let output_sample = output_channels * output_height * output_width;
        let mut output = zeroed(batch * output_sample)?;
        let mut arena = Buffer::zeroed(plan.arena_len)
            .ok_or(EngineError::Memory { bytes: plan.arena_len.saturating_mul(size_of::<f32>()) })?;
        let mut progress = Progress {
            done_flops: 0,
            total_flops: plan.summary().flops,
            step: 0,
            steps: plan.steps.len() * batch,
        };
        for (from, to) in input.chunks_exact(sample).zip(output.chunks_exact_mut(output_sample)) {
            to_blocked(from, channels, height * width, place(&mut arena, plan.input_place));
            for step in &plan.steps {
                control.check()?;
                self.step(plan, step, &mut arena);
                progress.step += 1;
                progress.done_flops += step.flops;
                control.report(progress);
            }
            let result = place(&mut arena, plan.output_place);
            from_blocked(result, output_channels, output_height * output_width, to);
        }
        Ok(output)
    }
}

fn place(arena: &mut [f32], region: Region) -> &mut [f32] {
    &mut arena[region.offset..][..region.len]
}

/// Zeros, or an error where `vec!` would end the process.
fn zeroed(len: usize) -> Result<Vec<f32>, EngineError> {
    let mut values = Vec::new();
    values
        .try_reserve_exact(len)
        .map_err(|_| EngineError::Memory { bytes: len.saturating_mul(size_of::<f32>()) })?;
    values.resize(len, 0.0);
    Ok(values)
}

impl CpuProgram {
    fn step(&self, plan: &Plan, step: &Step, arena: &mut [f32]) {
        let (pool, isa) = (&*self.pool, self.isa);
        let places = &step.places;
        let mut regions = places.reads.clone();
        regions.extend([places.output, places.scratch]);
        let mut views = Views::new(arena, regions);
        let output = views.take(places.output);
        let pixels = |node: usize| plan.sizes[node][0] * plan.sizes[node][1];
        match &step.fused {
            Fused::Convolution { node, source, residual, activation } => {
                let Layer::Convolution(convolution) = &self.layers[*node] else {
                    unreachable!("the plan belongs to another graph")
                };
                let in_place = |region: Region| region == places.output;
                let scratch = if places.scratch.len > 0 { views.take(places.scratch) } else { &mut [] };
                let mut reads = places.reads.iter().copied();
                let input = views.read(reads.next().unwrap_or_default());
                let affine = source.norm.and_then(|_| reads.next()).map(|table| halves(views.read(table)));
                let residual = match residual.and_then(|_| reads.next()) {
                    None => Residual::None,
                    Some(region) if in_place(region) => Residual::InPlace,
                    Some(region) => Residual::Tensor(views.read(region)),
                };
                let prologue = Prologue { affine, activation: source.activation, upsample: source.upsample };
                let epilogue = Epilogue { residual, activation: *activation };
                let size = plan.sizes[source.base];
                convolution.run(pool, input, size, prologue, epilogue, scratch, output);
            }
            Fused::NormStatistics { node, input } => {
                let Layer::Norm { groups, epsilon, weight, bias } = &self.layers[*node] else {
                    unreachable!("the plan belongs to another graph")
                };
                let norm = GroupNorm { groups: *groups, epsilon: *epsilon, weight, bias };
                let (scale, shift) = output.split_at_mut(output.len() / 2);
                norm::statistics(isa, pool, norm, views.read(places.reads[0]), pixels(*input), scale, shift);
            }
            Fused::NormApply { input, .. } => {
                let table = halves(views.read(places.reads[1]));
                let values = views.read(places.reads[0]);
                norm::apply(isa, pool, values, pixels(*input), table, Activation::None, output);
            }
            Fused::Attention { inputs } => {
                let scratch = views.take(places.scratch);
                let [query, key, value] = [0, 1, 2].map(|index| views.read(places.reads[index]));
                let channels = plan.channels[inputs[0]];
                attention(isa, pool, [query, key, value], channels, pixels(inputs[0]), scratch, output);
            }
            Fused::Map { map, input } => {
                if places.reads[0] != places.output {
                    output.copy_from_slice(views.read(places.reads[0]));
                }
                elementwise::map(isa, pool, *map, plan.channels[*input], pixels(*input), output);
            }
            Fused::Upsample { factor, input } => {
                let values = views.read(places.reads[0]);
                elementwise::upsample_nearest(pool, values, plan.sizes[*input], *factor, output);
            }
            Fused::Add { .. } => {
                let [first, second] = [places.reads[0], places.reads[1]];
                if second == places.output {
                    elementwise::add(pool, views.read(first), output);
                } else {
                    if first != places.output {
                        output.copy_from_slice(views.read(first));
                    }
                    elementwise::add(pool, views.read(second), output);
                }
            }
        }
    }
}

fn halves(table: &[f32]) -> (&[f32], &[f32]) {
    table.split_at(table.len() / 2)
}
