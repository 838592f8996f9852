//! Times candle's `AutoencoderKL` of SD 1.5's shape in f32: `remote-vae-peer-candle FOLDER decode|encode SIDE RUNS`.
//!
//! Prints seconds of each run, after one that is not counted, and the process's VmHWM as JSON.
#![forbid(unsafe_code)]

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, op, side, runs] = &arguments[..] else {
        candle_core::bail!("usage: remote-vae-peer-candle FOLDER decode|encode SIDE RUNS");
    };
    let number = |text: &str| text.parse::<usize>().map_err(candle_core::Error::wrap);
    let (side, runs) = (number(side)?, number(runs)?);
    let config = AutoEncoderKLConfig {
        block_out_channels: vec![128, 256, 512, 512],
        layers_per_block: 2,
        latent_channels: 4,
        norm_num_groups: 32,
        use_quant_conv: true,
        use_post_quant_conv: true,
    };
    let bytes = std::fs::read(format!("{folder}/diffusion_pytorch_model.safetensors"))?;
    let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu)?;
    let model = AutoEncoderKL::new(weights, 3, 3, config)?;
    let decode = op == "decode";
    let shape = if decode { (1, 4, side / 8, side / 8) } else { (1, 3, side, side) };
    let input = Tensor::randn(0f32, 1f32, shape, &Device::Cpu)?;
    let mut seconds = Vec::new();
    for _ in 0..=runs {
        let start = Instant::now();
        let output = if decode { model.decode(&input)? } else { model.encode(&input)?.sample()? };
        seconds.push(start.elapsed().as_secs_f64());
        drop(output);
    }
    let status = std::fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    println!(
        "{{\"seconds\": {:?}, \"peak_rss_mib\": {:.1}}}",
        &seconds[1..],
        peak.unwrap_or(f64::NAN) / 1024.0
    );
    Ok(())
}
