//! Times one convolution shape: `throughput INPUT_CHANNELS OUTPUT_CHANNELS SIZE [TIER]`.

use remote_vae_kernels::convolution::{Convolution, Epilogue, Geometry, Prologue};
use remote_vae_kernels::layout::blocked_len;
use remote_vae_kernels::{Isa, Pool};
use std::time::Instant;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number =
        |at: usize, default: usize| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (input_channels, output_channels, size) = (number(1, 128), number(2, 128), number(3, 256));
    let isa = arguments.get(4).map_or_else(Isa::detect, |name| Isa::by_name(name).expect("tier"));
    let geometry = Geometry { input_channels, output_channels, kernel: [3, 3], stride: 1, padding: [1; 4] };
    let pool = Pool::new(None).expect("threads");
    let weight = vec![0.01; output_channels * input_channels * 9];
    let convolution = Convolution::new(isa, geometry, &weight, None);
    let input = vec![0.5; blocked_len(input_channels, size * size)];
    let mut output = vec![0.0; blocked_len(output_channels, size * size)];
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let start = Instant::now();
        convolution.run(&pool, &input, [size; 2], Prologue::default(), Epilogue::default(), &mut output);
        best = best.min(start.elapsed().as_secs_f64());
    }
    let flops = 2.0 * 9.0 * (input_channels * output_channels * size * size) as f64;
    eprintln!(
        "{} {input_channels}->{output_channels} {size}x{size}: {:.1} ms, {:.0} GFLOP/s",
        isa.name(),
        best * 1e3,
        flops / best / 1e9
    );
}
