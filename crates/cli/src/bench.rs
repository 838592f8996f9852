//! `remote-vae bench`: times the engine on random input: whole runs, and each kind of layer inside the same runs.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Result, bail};
use remote_vae_engine::{
    Autoencoder, Control, Delivery, Draw, Plan, PlanSummary, Precision, Windows, memory,
};
use remote_vae_wire::{Operation, Scaling};
use serde::Serialize;

use crate::arguments::{BenchOperation, BenchOptions};
use crate::{budgets, clips, load, local, plan};

#[derive(Serialize)]
struct Report {
    op: &'static str,
    /// Width x height in pixels.
    size: String,
    frames: u32,
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
    /// What a register loop of multiply-adds reaches on this machine, in f32 on these threads.
    peak_gflop_per_s: f64,
    /// Of that peak, in percent; more than 100 where fewer multiplications are done than the definition has.
    percent_of_peak: f64,
    isa: String,
    model: String,
    /// Of the result's values, as little-endian `f32`; the same in every run.
    result_sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernels: Option<Vec<Kernel>>,
}

/// Steps of one operation and shape, as one run did them.
#[derive(Clone, Serialize)]
struct Kernel {
    operation: String,
    /// `[channels, height, width]`
    output: [usize; 3],
    steps: usize,
    /// All of them together, the median over runs.
    ms: f64,
    gflop: f64,
    gflop_per_s: f64,
    percent_of_peak: f64,
}

pub(crate) fn run(options: &BenchOptions) -> Result<()> {
    if let Some(url) = &options.load.url {
        return load::run(options, url);
    }
    if let Some(given) = &options.budgets {
        return budgets::run(options, given);
    }
    let autoencoder = local::autoencoder(&options.model, &options.engine)?;
    // As a server does: only the first run of a size takes memory anew.
    autoencoder.engine().keep_spare();
    let report = measure(&autoencoder, options)?;
    let mut output = std::io::stdout().lock();
    if options.json {
        writeln!(output, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    writeln!(
        output,
        "{} {}{} of {}, {}, {} threads, {}",
        report.op,
        report.size,
        if report.frames > 1 { format!(", {} frames,", report.frames) } else { String::new() },
        report.model,
        report.precision,
        report.threads,
        report.isa
    )?;
    writeln!(
        output,
        "median {:.3} s (min {:.3}, max {:.3}, {} runs), {:.0} GFLOP at {:.0} GFLOP/s, {:.0} % of {:.0}",
        report.median_s,
        report.min_s,
        report.max_s,
        report.runs,
        report.gflop,
        report.gflop_per_s,
        report.percent_of_peak,
        report.peak_gflop_per_s,
    )?;
    let peak = report.peak_rss_mib.map_or("not known".to_owned(), |peak| format!("{peak:.0} MiB"));
    writeln!(output, "peak memory {peak}, planned {:.0} MiB", report.planned_peak_mib)?;
    let kernels = report.kernels.as_deref().unwrap_or_default();
    if !kernels.is_empty() {
        writeln!(
            output,
            "\n{:28}  {:>16}  {:>5}  {:>9}  {:>8}  {:>7}  {:>6}",
            "operation", "output", "steps", "ms", "GFLOP", "GFLOP/s", "% peak"
        )?;
    }
    for kernel in kernels {
        let [channels, height, width] = kernel.output;
        writeln!(
            output,
            "{:28}  {:>16}  {:>5}  {:>9.2}  {:>8.2}  {:>7.0}  {:>6.0}",
            kernel.operation,
            format!("{channels}x{height}x{width}"),
            kernel.steps,
            kernel.ms,
            kernel.gflop,
            kernel.gflop_per_s,
            kernel.percent_of_peak,
        )?;
    }
    Ok(())
}

/// What is timed.
pub(crate) struct Task {
    operation: Operation,
    precision: Precision,
    windows: Windows,
    /// `[batch, channels, frames, height, width]`
    shape: [usize; 5],
    takes_clips: bool,
    /// Of the whole, and how many parts that is cut into.
    pub summary: PlanSummary,
    parts: usize,
    /// Of the first part.
    plan: Arc<Plan>,
}

impl Task {
    pub(crate) fn new(autoencoder: &Autoencoder, options: &BenchOptions) -> Result<Task> {
        let operation = match options.op {
            BenchOperation::Decode => Operation::Decode,
            BenchOperation::Encode => Operation::Encode,
        };
        let precision = options.engine.precision();
        let (size, frames) = (options.size, options.frames as usize);
        let windows = clips::windows(autoencoder, &options.clips)?;
        let takes_clips = autoencoder.model().temporal_factor().is_some();
        if !takes_clips {
            plan::check_picture(frames)?;
        }
        if !takes_clips && windows.tiles.is_none() {
            let [batch, channels, height, width] = plan::shape(autoencoder, operation, size, 1)?;
            let plan = autoencoder.plan(operation, [batch, channels, height, width], precision)?;
            let (shape, summary) = ([batch, channels, 1, height, width], plan.summary());
            return Ok(Task { operation, precision, windows, shape, takes_clips, summary, parts: 1, plan });
        }
        let shape = plan::clip_shape(autoencoder, operation, plan::ClipSize { frames, size }, 1)?;
        let summary = plan::clip_summary(autoencoder, operation, shape, windows, precision)?;
        let plans = autoencoder.plan_clip_parts(operation, shape, windows, precision, Delivery::Whole)?;
        let parts = plans.iter().map(|(_, count)| count).sum();
        let Some((plan, _)) = plans.into_iter().next() else { bail!("there is nothing to do") };
        Ok(Task { operation, precision, windows, shape, takes_clips, summary, parts, plan })
    }

    /// The values of the result.
    fn run(&self, autoencoder: &Autoencoder, input: Vec<f32>, control: &Control) -> Result<Vec<f32>> {
        let Task { precision, windows, shape, .. } = *self;
        let [batch, channels, _, height, width] = shape;
        let (picture, scaling, draw) = ([batch, channels, height, width], Scaling::None, Draw::Mode);
        if let (false, Some(tiles)) = (self.takes_clips, windows.tiles) {
            return Ok(match self.operation {
                Operation::Decode => {
                    autoencoder.decode_in_tiles(input, picture, &scaling, tiles, precision, control)?.pixels
                }
                Operation::Encode => {
                    autoencoder
                        .encode_in_tiles(input, picture, &scaling, draw, tiles, precision, control)?
                        .values
                }
            });
        }
        Ok(match (self.operation, self.takes_clips) {
            (Operation::Decode, false) => {
                autoencoder.decode(input, picture, &scaling, precision, control)?.pixels
            }
            (Operation::Encode, false) => {
                autoencoder.encode(&input, picture, &scaling, draw, precision, control)?.values
            }
            (Operation::Decode, true) => {
                autoencoder.decode_clip(input, shape, &scaling, windows, precision, control)?.values
            }
            (Operation::Encode, true) => {
                autoencoder.encode_clip(input, shape, &scaling, draw, windows, precision, control)?.values
            }
        })
    }
}

fn measure(autoencoder: &Autoencoder, options: &BenchOptions) -> Result<Report> {
    let process = autoencoder.engine().process_bytes();
    let task = Task::new(autoencoder, options)?;
    if options.steps && task.parts > 1 {
        bail!(
            "--steps is for work in one part, this is cut into {} (--windows off, --tiling off)",
            task.parts
        );
    }
    if options.steps && options.runs == 0 {
        bail!("--steps times layers in the runs after the first: expected --runs of at least 1");
    }
    let need = task.summary.peak_bytes;
    let timed = |control: &Control| -> Result<(f64, Vec<f32>)> {
        let input = input(task.shape, 1);
        let start = Instant::now();
        let result = task.run(autoencoder, input, control)?;
        Ok((start.elapsed().as_secs_f64(), result))
    };
    let once = |control: &Control| Ok::<f64, anyhow::Error>(timed(control)?.0);
    let what = if options.runs > 0 { "first run, not counted" } else { "the only run" };
    let (first, result) = timed(&local::control(what))?;
    let (mut seconds, mut steps) = (vec![first], Vec::new());
    let result_sha256 = sha256(&result);
    drop(result);
    if options.runs > 0 {
        seconds.clear();
    }
    for run in 1..=options.runs {
        if options.steps {
            let watch = StepWatch::default();
            seconds.push(once(&watch.control())?);
            steps.push(watch.seconds());
        } else {
            seconds.push(once(&local::control(&format!("run {run} of {}", options.runs)))?);
        }
    }
    let peak_rss = memory::peak_resident_bytes();
    let peak = autoencoder.engine().peak_flops_per_second() / 1e9;
    let median_s = median(&mut seconds);
    let summary = task.summary;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let gflop = summary.flops as f64 / 1e9;
    Ok(Report {
        op: if task.operation == Operation::Decode { "decode" } else { "encode" },
        size: options.size.to_string(),
        frames: options.frames,
        precision: options.engine.precision().name(),
        threads: autoencoder.engine().threads(),
        runs: seconds.len(),
        median_s,
        min_s: seconds[0],
        max_s: seconds[seconds.len() - 1],
        peak_rss_mib: peak_rss.map(mib),
        planned_peak_mib: mib(process + need as u64),
        gflop,
        gflop_per_s: gflop / median_s,
        peak_gflop_per_s: peak,
        percent_of_peak: gflop / median_s / peak * 100.0,
        isa: autoencoder.engine().isa().to_owned(),
        model: autoencoder.model().label().to_owned(),
        result_sha256,
        kernels: options.steps.then(|| kernels(&task.plan, &steps, peak)),
    })
}

fn sha256(values: &[f32]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for some in values.chunks(1 << 12) {
        let bytes: Vec<u8> = some.iter().flat_map(|value| value.to_le_bytes()).collect();
        context.update(&bytes);
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The middle value, or the mean of the two in the middle; sorts them.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Notes when each step of a run ended. The first step's time has in it what comes before it: taking the activations'
/// memory and reordering the input.
#[derive(Default)]
struct StepWatch {
    ends: Arc<Mutex<Vec<Instant>>>,
}

impl StepWatch {
    /// A control for a run that starts now.
    fn control(&self) -> Control {
        let ends = Arc::clone(&self.ends);
        *ends.lock().unwrap_or_else(PoisonError::into_inner) = vec![Instant::now()];
        Control::with_progress(move |progress| {
            let mut ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
            // What is told inside a step ends none.
            if ends.len() <= progress.step {
                ends.push(Instant::now());
            }
        })
    }

    /// Seconds of each step.
    fn seconds(&self) -> Vec<f64> {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
    }
}

/// Steps of one operation and output shape together, those that take longest first.
fn kernels(plan: &Plan, runs: &[Vec<f64>], peak: f64) -> Vec<Kernel> {
    let mut kernels: Vec<Kernel> = Vec::new();
    for (index, step) in plan.steps.iter().enumerate() {
        let mut seconds: Vec<f64> = runs.iter().filter_map(|run| run.get(index).copied()).collect();
        let (ms, gflop) = (median(&mut seconds) * 1e3, step.flops as f64 / 1e9);
        let same = |kernel: &&mut Kernel| kernel.operation == step.operation && kernel.output == step.output;
        match kernels.iter_mut().find(same) {
            Some(kernel) => {
                kernel.steps += 1;
                kernel.ms += ms;
                kernel.gflop += gflop;
            }
            None => kernels.push(Kernel {
                operation: step.operation.clone(),
                output: step.output,
                steps: 1,
                ms,
                gflop,
                gflop_per_s: 0.0,
                percent_of_peak: 0.0,
            }),
        }
    }
    for kernel in &mut kernels {
        kernel.gflop_per_s = kernel.gflop / (kernel.ms / 1e3);
        kernel.percent_of_peak = kernel.gflop_per_s / peak * 100.0;
    }
    kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    kernels
}

/// Repeatable values in about -1..1 (a linear congruential generator's high bits).
pub(crate) fn input(shape: [usize; 5], seed: u64) -> Vec<f32> {
    let mut state = seed;
    (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}
