//! What the tests of the engine share.

use remote_vae_engine::{Control, CpuEngine, Engine, EngineOptions, Precision};
use remote_vae_kernels::Isa;
use remote_vae_model::{Graph, WeightSource};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) fn engine(threads: usize, isa: &str) -> Arc<dyn Engine> {
    let options = EngineOptions { threads: Some(threads), isa: Some(isa.into()), ..EngineOptions::default() };
    Arc::new(CpuEngine::new(options).unwrap())
}

/// One engine for each instruction tier of this CPU. Whatever implements `Engine` belongs in this list.
pub(crate) fn engines() -> Vec<Arc<dyn Engine>> {
    Isa::available().into_iter().map(|isa| engine(2, isa.name())).collect()
}

pub(crate) fn run(
    engine: &dyn Engine,
    graph: &Graph,
    weights: &dyn WeightSource,
    shape: [usize; 4],
    input: &[f32],
) -> (Vec<f32>, [usize; 4]) {
    run_in(Precision::Exact, engine, graph, weights, shape, input)
}

pub(crate) fn run_in(
    precision: Precision,
    engine: &dyn Engine,
    graph: &Graph,
    weights: &dyn WeightSource,
    shape: [usize; 4],
    input: &[f32],
) -> (Vec<f32>, [usize; 4]) {
    let plan = engine.plan(graph, shape, precision).unwrap();
    let output = engine.load(graph, weights).unwrap().run(&plan, input, &Control::new()).unwrap();
    (output, plan.output)
}

/// Peak signal-to-noise ratio of values that reach from -1 to 1 (a peak of 2), in dB; NaN where a value is NaN.
pub(crate) fn psnr(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let error: f64 =
        a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>() / a.len() as f64;
    10.0 * (4.0 / (error + 1e-30)).log10()
}

pub(crate) fn golden_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

pub(crate) struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Tensor {
    pub(crate) fn shape4(&self) -> [usize; 4] {
        self.shape.as_slice().try_into().unwrap()
    }
}

/// All tensors of a safetensors file of `f32`, `f16` or `bf16`.
pub(crate) fn read_tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8], dtype| match dtype {
        safetensors::Dtype::F32 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        safetensors::Dtype::F16 => {
            data.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect()
        }
        safetensors::Dtype::BF16 => {
            data.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
        }
        other => panic!("{other:?} in {}", path.display()),
    };
    let tensor = |view: safetensors::tensor::TensorView| Tensor {
        shape: view.shape().to_vec(),
        values: values(view.data(), view.dtype()),
    };
    file.tensors().into_iter().map(|(name, view)| (name, tensor(view))).collect()
}

#[track_caller]
pub(crate) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = largest_difference(found, expected);
    assert!(worst <= tolerance, "{what}: differs by {worst:e}, allowed {tolerance:e}");
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    // `max` would drop NaN, which must count as the largest difference there is.
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst })
}

/// Repeatable values in about -1..1 (a linear congruential generator's high bits).
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
