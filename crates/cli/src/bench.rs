//! `remote-vae bench`: times the engine on random input.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, bail};
use remote_vae_engine::{Autoencoder, Control, Draw, PlanSummary};
use remote_vae_wire::{Operation, Scaling};
use serde::Serialize;

use crate::arguments::{BenchOperation, BenchOptions};
use crate::{local, memory};

#[derive(Serialize)]
struct Report {
    op: &'static str,
    /// Width x height in pixels.
    size: String,
    precision: &'static str,
    threads: usize,
    runs: usize,
    median_s: f64,
    min_s: f64,
    max_s: f64,
    peak_rss_mib: Option<f64>,
    planned_peak_mib: f64,
    gflop: f64,
    gflop_per_s: f64,
    isa: String,
    model: String,
}

pub(crate) fn run(options: &BenchOptions) -> Result<()> {
    let autoencoder = local::autoencoder(&options.model, &options.engine)?;
    let report = measure(&autoencoder, options)?;
    let mut output = std::io::stdout().lock();
    if options.json {
        writeln!(output, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    writeln!(
        output,
        "{} {} of {}, {}, {} threads, {}",
        report.op, report.size, report.model, report.precision, report.threads, report.isa
    )?;
    writeln!(
        output,
        "median {:.3} s (min {:.3}, max {:.3}, {} runs), {:.0} GFLOP at {:.0} GFLOP/s",
        report.median_s, report.min_s, report.max_s, report.runs, report.gflop, report.gflop_per_s
    )?;
    let peak = report.peak_rss_mib.map_or("not known".to_owned(), |peak| format!("{peak:.0} MiB"));
    writeln!(output, "peak memory {peak}, planned {:.0} MiB", report.planned_peak_mib)?;
    Ok(())
}

fn measure(autoencoder: &Autoencoder, options: &BenchOptions) -> Result<Report> {
    let (factor, size) = (autoencoder.model().spatial_factor(), options.size);
    if !size.width.is_multiple_of(factor) || !size.height.is_multiple_of(factor) {
        bail!("--size {size}: both sides must be multiples of {factor}");
    }
    let precision = options.engine.precision();
    let (op, shape, plan) = match options.op {
        BenchOperation::Decode => {
            let channels = autoencoder.model().latent_channels();
            let shape = [1, channels, size.height / factor, size.width / factor];
            ("decode", shape, autoencoder.plan_decode(shape, precision)?)
        }
        BenchOperation::Encode => {
            let shape = [1, 3, size.height, size.width];
            ("encode", shape, autoencoder.plan_encode(shape, precision)?)
        }
    };
    if let Some(total) = memory::total_bytes()
        && plan.peak_bytes as u64 > total
    {
        bail!("--size {size} needs {} MiB; this machine has {} MiB", plan.peak_bytes >> 20, total >> 20);
    }
    let input = input(shape);
    let once = |control: &Control| -> Result<f64> {
        let input = input.clone();
        let start = Instant::now();
        match options.op {
            BenchOperation::Decode => {
                autoencoder.decode(input, shape, &Scaling::None, precision, control)?;
            }
            BenchOperation::Encode => {
                autoencoder.encode(&input, shape, &Scaling::None, Draw::Mode, precision, control)?;
            }
        }
        Ok(start.elapsed().as_secs_f64())
    };
    autoencoder.warm(if op == "decode" { Operation::Decode } else { Operation::Encode }, precision)?;
    once(&local::control("first run, not counted"))?;
    let mut seconds = (1..=options.runs)
        .map(|run| once(&local::control(&format!("run {run} of {}", options.runs))))
        .collect::<Result<Vec<f64>>>()?;
    seconds.sort_by(f64::total_cmp);
    Ok(report(autoencoder, options, op, &plan, &seconds))
}

fn report(
    autoencoder: &Autoencoder,
    options: &BenchOptions,
    op: &'static str,
    plan: &PlanSummary,
    sorted: &[f64],
) -> Report {
    let middle = sorted.len() / 2;
    let median =
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
    let gflop = plan.flops as f64 / 1e9;
    Report {
        op,
        size: options.size.to_string(),
        precision: options.engine.precision().name(),
        threads: autoencoder.engine().threads(),
        runs: sorted.len(),
        median_s: median,
        min_s: sorted[0],
        max_s: sorted[sorted.len() - 1],
        peak_rss_mib: memory::peak_rss_mib(),
        planned_peak_mib: plan.peak_bytes as f64 / (1 << 20) as f64,
        gflop,
        gflop_per_s: gflop / median,
        isa: autoencoder.engine().isa().to_owned(),
        model: autoencoder.model().label().to_owned(),
    }
}

/// Repeatable values in about -1..1 (a linear congruential generator's high bits).
fn input(shape: [usize; 4]) -> Vec<f32> {
    let mut state = 1u64;
    (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
