//! `remote-vae doctor`: what this machine has, whether the model opens, whether a small decode comes out right, how fast
//! it is, and what to do about what is not as it should be.

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use remote_vae_client::{Client, ClientError, blocking};
use remote_vae_engine::{Autoencoder, CpuEngine, EngineError, EngineOptions, Precision, memory};
use remote_vae_hub::{ALIASES, Hub, Settings};
use remote_vae_model::random;
use remote_vae_wire::{Operation, Scaling};
use serde::Serialize;

use crate::arguments::DoctorOptions;
use crate::{golden, local};

/// Between instruction tiers, for numbers of about one.
const ACROSS_TIERS: f32 = 2e-5;
/// Sides of the latents that both tiers decode, and of those that are timed.
const SMALL: usize = 8;
const TIMED: usize = 32;
/// Sides in pixels of the picture whose memory is told.
const USUAL: usize = 1024;
/// The slowest decode of a picture of `8·TIMED` that is not remarked on, in seconds.
const PATIENCE: f64 = 10.0;

/// What was found; the keys of `--json`.
#[derive(Serialize)]
struct Findings {
    version: &'static str,
    processor: Option<String>,
    /// Processors of the machine, where more than the engine uses.
    processors: usize,
    engine: String,
    isa: String,
    threads: usize,
    memory_limit_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    model: Described,
    port: Port,
    probe: Probe,
    /// What to do, most pressing first; nothing if all is well.
    advice: Vec<String>,
}

#[derive(Serialize)]
struct Described {
    source: String,
    family: &'static str,
    latent_channels: usize,
    /// Of the decode of a picture of `USUAL` times `USUAL` pixels.
    decode_1024_bytes: u64,
    /// Aliases whose files are in the cache already.
    downloaded: Vec<&'static str>,
}

#[derive(Serialize)]
struct Port {
    number: u16,
    free: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Version of the remote-vae that is running there.
    #[serde(skip_serializing_if = "Option::is_none")]
    running: Option<String>,
}

#[derive(Serialize)]
struct Probe {
    width: usize,
    height: usize,
    seconds: f64,
    gflop_per_s: f64,
    plan_bytes: u64,
    /// Largest relative difference from the portable code.
    difference: f32,
}

pub(crate) fn run(options: &DoctorOptions) -> Result<()> {
    let autoencoder = local::autoencoder(&options.model, &options.engine)?;
    let precision = options.engine.precision();
    if let Some(file) = &options.golden {
        describe(&mut std::io::stdout().lock(), &machine(), &autoencoder, precision)?;
        return golden::run(&autoencoder, precision, file.as_deref(), options.class.as_deref());
    }
    let machine = machine();
    let mut output = std::io::stdout().lock();
    if !options.json {
        describe(&mut output, &machine, &autoencoder, precision)?;
    }
    let probe = probe(&autoencoder, precision, &options.model)?;
    let findings = findings(options, machine, &autoencoder, precision, probe)?;
    if options.json {
        writeln!(output, "{}", serde_json::to_string_pretty(&findings)?)?;
        return Ok(());
    }
    tell(&mut output, &findings)
}

/// What the system says of itself.
struct Machine {
    processor: Option<String>,
    processors: usize,
}

fn machine() -> Machine {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = text.lines().find(|line| line.starts_with("model name")).and_then(|line| {
        let (_, name) = line.split_once(':')?;
        Some(name.trim().to_owned())
    });
    Machine { processor, processors: text.lines().filter(|line| line.starts_with("processor")).count() }
}

fn describe(
    output: &mut impl Write,
    machine: &Machine,
    autoencoder: &Autoencoder,
    precision: Precision,
) -> Result<()> {
    let (engine, model) = (autoencoder.engine(), autoencoder.model());
    let unknown = || "not known".to_owned();
    writeln!(output, "program    remote-vae {}", env!("CARGO_PKG_VERSION"))?;
    writeln!(output, "processor  {}", machine.processor.clone().unwrap_or_else(unknown))?;
    writeln!(output, "engine     {}, {} threads", engine.name(precision), engine.threads())?;
    let gib = |bytes: Option<u64>| bytes.map_or_else(unknown, gibibytes);
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

fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

/// What follows the description, and the advice.
fn tell(output: &mut impl Write, findings: &Findings) -> Result<()> {
    let Findings { probe, port, model, advice, .. } = findings;
    writeln!(output, "arithmetic {:.1e} from the portable code", probe.difference)?;
    writeln!(
        output,
        "speed      {}x{} in {:.3} s, {:.0} GFLOP/s, {} MiB",
        probe.width,
        probe.height,
        probe.seconds,
        probe.gflop_per_s,
        probe.plan_bytes >> 20
    )?;
    writeln!(output, "size       a decode of {USUAL}x{USUAL} needs {}", gibibytes(model.decode_1024_bytes))?;
    let downloaded = if model.downloaded.is_empty() { "none".into() } else { model.downloaded.join(", ") };
    writeln!(output, "downloaded {downloaded}")?;
    let state = port.reason.as_deref().unwrap_or("free");
    writeln!(output, "port       {}: {state}", port.number)?;
    if advice.is_empty() {
        writeln!(output, "\nEverything is as it should be.")?;
    }
    for (index, line) in advice.iter().enumerate() {
        writeln!(output, "{}fix        {line}", if index == 0 { "\n" } else { "" })?;
    }
    Ok(())
}

fn findings(
    options: &DoctorOptions,
    machine: Machine,
    autoencoder: &Autoencoder,
    precision: Precision,
    probe: Probe,
) -> Result<Findings> {
    let (engine, model) = (autoencoder.engine(), autoencoder.model());
    let side = USUAL.div_ceil(model.spatial_factor());
    let planned = if model.temporal_factor().is_some() {
        let shape = [1, model.latent_channels(), 1, side, side];
        autoencoder.plan_decode_clip(shape, remote_vae_engine::Windows::default(), precision)
    } else {
        autoencoder.plan_decode([1, model.latent_channels(), side, side], precision)
    };
    let (decode_1024_bytes, refusal) = match planned {
        Ok(plan) => (plan.peak_bytes as u64, None),
        Err(error @ EngineError::Budget { need, .. }) => (need as u64, Some(error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let mut findings = Findings {
        version: env!("CARGO_PKG_VERSION"),
        processor: machine.processor,
        processors: machine.processors,
        engine: engine.name(precision),
        isa: engine.isa().to_owned(),
        threads: engine.threads(),
        memory_limit_bytes: memory::limit_bytes(),
        memory_available_bytes: memory::available_bytes(),
        model: Described {
            source: model.label().to_owned(),
            family: model.family.name(),
            latent_channels: model.latent_channels(),
            decode_1024_bytes,
            downloaded: downloaded(),
        },
        port: port(options.port),
        probe,
        advice: Vec::new(),
    };
    findings.advice = advice(&findings, refusal, options, precision);
    Ok(findings)
}

/// Aliases that can be used without the network.
fn downloaded() -> Vec<&'static str> {
    let hub = Hub::new(Settings { offline: true, ..Settings::from_environment() });
    ALIASES
        .iter()
        .filter(|alias| hub.fetch(&alias.repository(None)).is_ok())
        .map(|alias| alias.name)
        .collect()
}

/// Whether `serve` could listen there.
fn port(number: u16) -> Port {
    let (reason, running) = match TcpListener::bind((Ipv4Addr::LOCALHOST, number)) {
        Ok(_) => (None, None),
        Err(error) if error.kind() == ErrorKind::AddrInUse => user(number),
        Err(error) => (Some(error.to_string()), None),
    };
    Port { number, free: reason.is_none(), reason, running }
}

/// Who uses this port of this machine, and the version that a remote-vae there tells of itself.
fn user(number: u16) -> (Option<String>, Option<String>) {
    const PATIENCE: Duration = Duration::from_secs(3);
    let builder = Client::builder(format!("http://{}:{number}", Ipv4Addr::LOCALHOST)).timeout(PATIENCE);
    let answer = blocking::Client::from_builder(builder.retries(0)).and_then(|client| client.info());
    let reason = match answer {
        Ok(info) if info["name"] == "remote-vae" => {
            let version = info["version"].as_str().unwrap_or("of an unknown version").to_owned();
            return (Some(format!("remote-vae {version} is already running there")), Some(version));
        }
        Err(ClientError::Scheme { .. }) => "in use by a server of HTTPS, perhaps remote-vae with --tls-cert",
        Err(ClientError::Refused { status: 401, .. }) => {
            "in use by a server that wants a key, perhaps remote-vae with --private-info"
        }
        _ => "in use by another program",
    };
    (Some(reason.to_owned()), None)
}

/// What to do about what was found.
fn advice(
    findings: &Findings,
    refusal: Option<String>,
    options: &DoctorOptions,
    precision: Precision,
) -> Vec<String> {
    let mut advice = Vec::new();
    let need = findings.model.decode_1024_bytes;
    let smaller = if precision == Precision::Exact { "`--precision fast`, or " } else { "" };
    if let Some(refusal) = refusal {
        advice.push(format!("a decode of {USUAL}x{USUAL} does not fit: {refusal}"));
    } else if findings.memory_available_bytes.is_some_and(|free| need > free) {
        advice.push(format!(
            "a decode of {USUAL}x{USUAL} does not fit into the free memory: close other programs, or use {smaller}smaller \
             pictures"
        ));
    }
    if !findings.port.free && findings.port.running.is_none() {
        advice.push(format!(
            "port {} cannot be used: write `serve --port N` with another one",
            findings.port.number
        ));
    }
    if findings.isa == "generic" && options.engine.isa.is_none() {
        advice.push(
            "this processor has neither AVX2 nor AVX-512: decodes take several times longer".to_owned(),
        );
    }
    if findings.threads < findings.processors && options.engine.threads.is_none() {
        advice.push(format!(
            "this process may use {} of {} processors: a container's or a task's limit can be raised",
            findings.threads, findings.processors
        ));
    }
    if findings.probe.seconds > PATIENCE {
        advice.push(
            "the probe was slow: stop other programs, use `--precision fast`, or a tiny model (`taesd`)"
                .to_owned(),
        );
    }
    advice
}

/// Decodes small latents here and by the portable code, and times larger ones.
fn probe(autoencoder: &Autoencoder, precision: Precision, source: &str) -> Result<Probe> {
    let portable = EngineOptions { isa: Some("generic".to_owned()), ..EngineOptions::default() };
    let portable = Autoencoder::new(local::model(source)?, Arc::new(CpuEngine::new(portable)?));
    let (here, there) =
        (decode(autoencoder, SMALL, Precision::Exact)?, decode(&portable, SMALL, Precision::Exact)?);
    if let Some(index) = here.iter().position(|value| !value.is_finite()) {
        bail!("the decode gives {} at {index}: the model is damaged", here[index]);
    }
    let relative = |(a, b): (&f32, &f32)| (a - b).abs() / b.abs().max(1.0);
    let difference = here.iter().zip(&there).map(relative).fold(0.0, f32::max);
    if difference > ACROSS_TIERS {
        bail!(
            "{} and the portable code differ by {difference:.1e}; at most {ACROSS_TIERS:.0e} was expected. \
             Use --isa generic, and report this processor.",
            autoencoder.engine().name(Precision::Exact)
        );
    }
    autoencoder.warm(Operation::Decode, precision)?;
    let shape = shape(autoencoder, TIMED);
    let plan = autoencoder.plan_decode(shape, precision).context("cannot plan the probe")?;
    let start = Instant::now();
    decode(autoencoder, TIMED, precision)?;
    let seconds = start.elapsed().as_secs_f64();
    let [_, _, height, width] = plan.output;
    Ok(Probe {
        width,
        height,
        seconds,
        gflop_per_s: plan.flops as f64 / 1e9 / seconds,
        plan_bytes: plan.peak_bytes as u64,
        difference,
    })
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
