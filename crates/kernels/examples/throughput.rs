//! Times one convolution as a decoder runs it (norm, SiLU, convolution, residual):
//! `throughput INPUT_CHANNELS OUTPUT_CHANNELS SIZE [UPSAMPLE [TIER [RUNS [ARITHMETIC [STORAGE [KERNEL [INPUT [STRIDE]]]]]]]]`.
//!
//! SIZE is the input's side; ARITHMETIC is `float32` or `integer16`, STORAGE `float32` or `half`, KERNEL the kernel's
//! side (3), INPUT `norm` or `plain`, which leaves norm and SiLU out, STRIDE 1 or 2. The rate counts the multiplications of the
//! definition, whatever the algorithm does.

use remote_vae_kernels::convolution::{Arithmetic, Convolution, Epilogue, Geometry, Prologue, Residual};
use remote_vae_kernels::elementwise::{Map, map};
use remote_vae_kernels::layout::{BLOCK, blocked_len, blocks};
use remote_vae_kernels::{Activation, Buffer, Isa, Pool, Storage, Tensor, TensorMut};
use std::time::Instant;

/// The same numbers between -1 and 1 each time.
fn noise(index: usize) -> f32 {
    let mixed = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number =
        |at: usize, default: usize| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (input_channels, output_channels, size) = (number(1, 128), number(2, 128), number(3, 256));
    let upsample = number(4, 1);
    let isa = arguments.get(5).map_or_else(Isa::detect, |name| Isa::by_name(name).expect("tier"));
    let arithmetic = match arguments.get(7).map(String::as_str) {
        None | Some("float32") => Arithmetic::Float32,
        Some("integer16") => Arithmetic::Integer16,
        Some(other) => panic!("arithmetic {other:?} is neither float32 nor integer16"),
    };
    let (kernel, stride) = (number(9, 3), number(11, 1));
    let geometry =
        Geometry { input_channels, output_channels, kernel: [kernel; 2], stride, padding: [kernel / 2; 4] };
    let pool = Pool::new(None).expect("threads");
    let spread = (3.0 / (kernel * kernel * input_channels) as f32).sqrt();
    let weight: Vec<f32> =
        (0..output_channels * input_channels * kernel * kernel).map(|i| noise(i) * spread).collect();
    let convolution = Convolution::new(isa, &pool, geometry, &weight, None);
    let [side, _] = geometry.output_size([size * upsample; 2]).expect("the kernel fits");
    let values: Vec<f32> = (0..blocked_len(input_channels, size * size)).map(|i| noise(i) * 2.0).collect();
    let storage = match arguments.get(8).map(String::as_str) {
        Some("half") => Storage::Half,
        _ => Storage::Float32,
    };
    let groups = values.len() / BLOCK;
    let mut input = vec![0.0; storage.len(groups)];
    let stored = TensorMut::new(storage, &mut input);
    let same = Map::Activation(Activation::None);
    map(isa, &pool, same, [input_channels, size * size], Some(values.as_slice().into()), stored);
    let table = vec![0.7; blocks(input_channels) * BLOCK];
    let mut output = Buffer::zeroed(storage.len(blocks(output_channels) * side * side)).expect("memory");
    let scratch_len = Convolution::scratch_len(isa, &geometry, upsample, arithmetic);
    let mut scratch = Buffer::zeroed(scratch_len).expect("memory");
    let prologue = match arguments.get(10).map(String::as_str) {
        Some("plain") => Prologue { upsample, ..Prologue::default() },
        None | Some("norm") => {
            Prologue { affine: Some((&table, &table)), activation: Activation::Silu, upsample }
        }
        Some(other) => panic!("input {other:?} is neither norm nor plain"),
    };
    let epilogue = Epilogue { residual: Residual::InPlace, activation: Activation::None };
    let mut times: Vec<f64> = (0..number(6, 7))
        .map(|_| {
            let start = Instant::now();
            let (input, output) = (Tensor::new(storage, &input), TensorMut::new(storage, &mut output));
            convolution.run(&pool, arithmetic, input, [size; 2], prologue, epilogue, &mut scratch, output);
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let flops = 2.0 * (kernel * kernel) as f64 * (input_channels * output_channels * side * side) as f64;
    let (best, median) = (times[0], times[times.len() / 2]);
    eprintln!(
        "{} {} {} {input_channels}->{output_channels} {size}x{size} to {side}x{side}: best {:.1} ms, median {:.1} ms, \
         {:.0} GFLOP/s",
        isa.name(),
        arithmetic.name(),
        geometry.algorithm(isa, upsample).name(),
        best * 1e3,
        median * 1e3,
        flops / best / 1e9
    );
}
