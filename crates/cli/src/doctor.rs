//! `remote-vae doctor`: what this machine has, whether the model opens, and whether a small decode comes out right.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use remote_vae_engine::{Autoencoder, CpuEngine, EngineOptions, Precision, memory};
use remote_vae_model::random;
use remote_vae_wire::{Operation, Scaling};

use crate::arguments::DoctorOptions;
use crate::{golden, local};

/// Between instruction tiers, for numbers of about one.
const ACROSS_TIERS: f32 = 2e-5;
/// Sides of the latents that both tiers decode, and of those that are timed.
const SMALL: usize = 8;
const TIMED: usize = 32;

pub(crate) fn run(options: &DoctorOptions) -> Result<()> {
    let autoencoder = local::autoencoder(&options.model, &options.engine)?;
    let precision = options.engine.precision();
    describe(&autoencoder, precision)?;
    match &options.golden {
        Some(file) => golden::run(&autoencoder, precision, file.as_deref(), options.class.as_deref()),
        None => probe(&autoencoder, precision, &options.model),
    }
}

fn describe(autoencoder: &Autoencoder, precision: Precision) -> Result<()> {
    let mut output = std::io::stdout().lock();
    let (engine, model) = (autoencoder.engine(), autoencoder.model());
    let unknown = || "not known".to_owned();
    writeln!(output, "program    remote-vae {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(output, "processor  {}", processor().unwrap_or_else(unknown))?;
    writeln!(output, "engine     {}, {} threads", engine.name(precision), engine.threads())?;
    let gib = |bytes: Option<u64>| {
        bytes.map_or_else(unknown, |bytes| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64))
    };
    writeln!(output, "memory     {}, {} free", gib(memory::limit_bytes()), gib(memory::available_bytes()))?;
    writeln!(
        output,
        "model      {}: {}, {} latent channels",
        model.label(),
        model.family.name(),
        model.latent_channels()
    )?;
    Ok(())
}

/// What the processor calls itself; `None` where the system does not tell.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, name) = text.lines().find(|line| line.starts_with("model name"))?.split_once(':')?;
    Some(name.trim().to_owned())
}

/// Decodes small latents here and by the portable code, and times larger ones.
fn probe(autoencoder: &Autoencoder, precision: Precision, source: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    let portable = EngineOptions { isa: Some("generic".to_owned()), ..EngineOptions::default() };
    let portable = Autoencoder::new(local::model(source)?, Arc::new(CpuEngine::new(portable)?));
    let (here, there) =
        (decode(autoencoder, SMALL, Precision::Exact)?, decode(&portable, SMALL, Precision::Exact)?);
    if let Some(index) = here.iter().position(|value| !value.is_finite()) {
        bail!("the decode gives {} at {index}: the model is damaged", here[index]);
    }
    let difference = |(a, b): (&f32, &f32)| (a - b).abs() / b.abs().max(1.0);
    let largest = here.iter().zip(&there).map(difference).fold(0.0, f32::max);
    writeln!(output, "arithmetic {largest:.1e} from the portable code")?;
    if largest > ACROSS_TIERS {
        bail!(
            "{} and the portable code differ by {largest:.1e}; at most {ACROSS_TIERS:.0e} was expected. \
             Use --isa generic, and report this processor.",
            autoencoder.engine().name(Precision::Exact)
        );
    }
    autoencoder.warm(Operation::Decode, precision)?;
    let shape = shape(autoencoder, TIMED);
    let plan = autoencoder.plan_decode(shape, precision)?;
    let start = Instant::now();
    decode(autoencoder, TIMED, precision)?;
    let seconds = start.elapsed().as_secs_f64();
    let [_, _, height, width] = plan.output;
    writeln!(
        output,
        "speed      {width}x{height} in {seconds:.3} s, {:.0} GFLOP/s, {} MiB",
        plan.flops as f64 / 1e9 / seconds,
        plan.peak_bytes >> 20
    )?;
    writeln!(output, "\nEverything is as it should be.")?;
    Ok(())
}

fn shape(autoencoder: &Autoencoder, side: usize) -> [usize; 4] {
    [1, autoencoder.model().latent_channels(), side, side]
}

fn decode(autoencoder: &Autoencoder, side: usize, precision: Precision) -> Result<Vec<f32>> {
    let shape = shape(autoencoder, side);
    let latents = random::normal(0, shape.iter().product());
    let control = local::control("a small decode");
    Ok(autoencoder.decode(latents, shape, &Scaling::None, precision, &control)?.pixels)
}
