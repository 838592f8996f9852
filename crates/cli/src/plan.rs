//! `remote-vae plan`: what the work on a picture or a clip would cost, step by step, without doing it. Reads no weights.
//!
//! A decode is planned as `decode` does it for PNG and JPEG files or for clips, whose values are never all there; beside that
//! stands what one tensor of all values would take.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Result, bail};
use remote_vae_engine::{Autoencoder, Delivery, EngineError, Plan, PlanSummary, Precision, Step, Windows};
use remote_vae_wire::Operation;
use serde::Serialize;

use crate::arguments::PlanOptions;
use crate::values::Size;
use crate::{clips, local};

#[derive(Serialize)]
struct Report {
    model: String,
    engine: String,
    threads: usize,
    op: &'static str,
    /// `[batch, channels, height, width]`, or of clips `[batch, channels, frames, height, width]`
    input: Vec<usize>,
    output: Vec<usize>,
    /// Those of one sample; the samples of a batch run one after the other. Of a clip in parts those of its largest part.
    steps: Vec<StepReport>,
    /// The parts that a clip is cut into, or a picture in tiles.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<PartReport>,
    /// Of the whole batch.
    flops: u64,
    weight_bytes: usize,
    /// Whether `weight_bytes` are those of one step, read anew for each.
    reads_weights: bool,
    load_bytes: usize,
    activation_bytes: usize,
    plan_peak_bytes: usize,
    memory_budget_bytes: Option<u64>,
    /// What this process holds beside any work; `None` where the system does not tell.
    process_bytes: Option<u64>,
    expected_peak_bytes: Option<u64>,
    /// Of a decode that gives one tensor of all values, where that is another plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    tensor: Option<TensorReport>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum TensorReport {
    Fits { flops: u64, plan_peak_bytes: usize, expected_peak_bytes: Option<u64> },
    Refused { error: String },
}

#[derive(Serialize)]
struct PartReport {
    /// `[channels, frames, height, width]`
    input: [usize; 4],
    /// How many there are in one clip.
    count: usize,
    /// Of each.
    flops: u64,
}

#[derive(Serialize)]
struct StepReport {
    name: String,
    operation: String,
    /// `[channels, height, width]`
    output: [usize; 3],
    flops: u64,
    read_bytes: usize,
    output_bytes: usize,
    scratch_bytes: usize,
    /// Name and operation of what runs together in strips.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<[String; 2]>,
}

impl From<&Step> for StepReport {
    fn from(step: &Step) -> StepReport {
        StepReport {
            name: step.name.clone(),
            operation: step.operation.clone(),
            output: step.output,
            flops: step.flops,
            read_bytes: step.read_bytes(),
            output_bytes: step.output_bytes(),
            scratch_bytes: step.scratch_bytes(),
            layers: step.layers.clone(),
        }
    }
}

pub(crate) fn run(options: &PlanOptions) -> Result<()> {
    let autoencoder = local::autoencoder(&options.model, &options.engine)?;
    let operation = if options.encode { Operation::Encode } else { Operation::Decode };
    let precision = options.engine.precision();
    let size = ClipSize { frames: options.frames as usize, size: options.size };
    let windows = clips::windows(&autoencoder, &options.clips)?;
    let takes_clips = autoencoder.model().temporal_factor().is_some();
    if !takes_clips {
        check_picture(size.frames)?;
    }
    let report = if takes_clips || windows.tiles.is_some() {
        let shape = clip_shape(&autoencoder, operation, size, options.batch as usize)?;
        let whole = clip_summary(&autoencoder, operation, shape, windows, precision);
        let (summary, tensor, delivery) = if takes_clips && operation == Operation::Decode {
            // Of all kinds of files the one that takes most.
            let frames = autoencoder.plan_decode_frames(shape, windows, precision)?;
            let delivery = Delivery::Rows { kept_per_pixel: 0 };
            (clips::with_files(frames, clips::Format::Mp4), Some(whole), delivery)
        } else {
            (whole?, None, Delivery::Whole)
        };
        let parts = autoencoder.plan_clip_parts(operation, shape, windows, precision, delivery)?;
        let largest = parts.iter().max_by_key(|(plan, _)| plan.summary().flops);
        let steps = largest.map_or(&[][..], |(plan, _)| &plan.steps);
        let tensor = tensor.map(|tensor| tensor_report(&autoencoder, tensor));
        let report = report(&autoencoder, operation, precision, &summary, steps);
        Report { parts: part_reports(&parts), tensor, ..report }
    } else {
        let shape = shape(&autoencoder, operation, options.size, options.batch as usize)?;
        let whole = autoencoder.plan(operation, shape, precision);
        let (plan, tensor) = match operation {
            Operation::Encode => (whole?, None),
            Operation::Decode => {
                let whole = whole.map(|plan| plan.summary());
                let rows = autoencoder.plan_decode_rows(shape, precision, 0)?;
                (rows, Some(tensor_report(&autoencoder, whole)))
            }
        };
        Report { tensor, ..report(&autoencoder, operation, precision, &plan.summary(), &plan.steps) }
    };
    let mut output = std::io::stdout().lock();
    if options.json {
        writeln!(output, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    print(&mut output, &report)
}

/// The shape of the input that `size` in pixels stands for, `[batch, channels, height, width]`.
pub(crate) fn shape(
    autoencoder: &Autoencoder,
    operation: Operation,
    size: Size,
    batch: usize,
) -> Result<[usize; 4]> {
    let factor = autoencoder.model().spatial_factor();
    if !size.width.is_multiple_of(factor) || !size.height.is_multiple_of(factor) {
        bail!("--size {size}: both sides must be multiples of {factor}");
    }
    Ok(match operation {
        Operation::Decode => {
            [batch, autoencoder.model().latent_channels(), size.height / factor, size.width / factor]
        }
        Operation::Encode => [batch, 3, size.height, size.width],
    })
}

/// Pixels and frames of a clip.
#[derive(Clone, Copy)]
pub(crate) struct ClipSize {
    pub frames: usize,
    pub size: Size,
}

/// The shape of the input that a clip's size stands for, `[batch, channels, frames, height, width]`.
pub(crate) fn clip_shape(
    autoencoder: &Autoencoder,
    operation: Operation,
    ClipSize { frames, size }: ClipSize,
    batch: usize,
) -> Result<[usize; 5]> {
    let [batch, channels, height, width] = shape(autoencoder, operation, size, batch)?;
    let factor = autoencoder.model().temporal_factor().unwrap_or(1);
    if frames % factor != 1 % factor {
        bail!("--frames {frames}: expected 1 frame more than a multiple of {factor}");
    }
    let frames = match operation {
        Operation::Decode => (frames - 1) / factor + 1,
        Operation::Encode => frames,
    };
    Ok([batch, channels, frames, height, width])
}

/// What the work on a whole clip, or on a picture in tiles, costs.
pub(crate) fn clip_summary(
    autoencoder: &Autoencoder,
    operation: Operation,
    shape: [usize; 5],
    windows: Windows,
    precision: Precision,
) -> Result<PlanSummary, EngineError> {
    if let (None, Some(tiles)) = (autoencoder.model().temporal_factor(), windows.tiles) {
        let [batch, channels, _, height, width] = shape;
        return autoencoder.plan_in_tiles(operation, [batch, channels, height, width], tiles, precision);
    }
    match operation {
        Operation::Decode => autoencoder.plan_decode_clip(shape, windows, precision),
        Operation::Encode => autoencoder.plan_encode_clip(shape, windows, precision),
    }
}

pub(crate) fn check_picture(frames: usize) -> Result<()> {
    if frames != 1 {
        bail!("--frames {frames} is for models of videos; this one takes pictures");
    }
    Ok(())
}

fn tensor_report(autoencoder: &Autoencoder, whole: Result<PlanSummary, EngineError>) -> TensorReport {
    match whole {
        Ok(PlanSummary { flops, peak_bytes, .. }) => TensorReport::Fits {
            flops,
            plan_peak_bytes: peak_bytes,
            expected_peak_bytes: expected_peak(autoencoder, peak_bytes),
        },
        Err(error) => TensorReport::Refused { error: error.to_string() },
    }
}

/// Bytes of the process at its peak; `None` where the system does not tell what it holds.
fn expected_peak(autoencoder: &Autoencoder, plan_peak_bytes: usize) -> Option<u64> {
    let process_bytes = Some(autoencoder.engine().process_bytes()).filter(|bytes| *bytes > 0);
    process_bytes.map(|bytes| bytes + plan_peak_bytes as u64)
}

fn part_reports(parts: &[(Arc<Plan>, usize)]) -> Vec<PartReport> {
    let report = |(plan, count): &(Arc<Plan>, usize)| {
        let PlanSummary { input: [_, channels, height, width], frames, flops, .. } = plan.summary();
        PartReport { input: [channels, frames[0], height, width], count: *count, flops }
    };
    parts.iter().map(report).collect()
}

fn report(
    autoencoder: &Autoencoder,
    operation: Operation,
    precision: Precision,
    summary: &PlanSummary,
    steps: &[Step],
) -> Report {
    let takes_clips = autoencoder.model().temporal_factor().is_some();
    let sides = |[batch, channels, height, width]: [usize; 4], frames: usize| match takes_clips {
        true => vec![batch, channels, frames, height, width],
        false => vec![batch, channels, height, width],
    };
    let process_bytes = Some(autoencoder.engine().process_bytes()).filter(|bytes| *bytes > 0);
    Report {
        model: autoencoder.model().label().to_owned(),
        engine: autoencoder.engine().name(precision),
        threads: autoencoder.engine().threads(),
        op: if operation == Operation::Encode { "encode" } else { "decode" },
        input: sides(summary.input, summary.frames[0]),
        output: sides(summary.output, summary.frames[1]),
        steps: steps.iter().map(StepReport::from).collect(),
        parts: Vec::new(),
        flops: summary.flops,
        weight_bytes: summary.weight_bytes,
        reads_weights: summary.reads_weights,
        load_bytes: summary.load_bytes,
        activation_bytes: summary.activation_bytes,
        plan_peak_bytes: summary.peak_bytes,
        memory_budget_bytes: autoencoder.engine().memory_budget(),
        process_bytes,
        expected_peak_bytes: expected_peak(autoencoder, summary.peak_bytes),
        tensor: None,
    }
}

fn print(output: &mut impl Write, report: &Report) -> Result<()> {
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    writeln!(
        output,
        "{} of {}, {}, {} threads, {:?} to {:?}\n",
        report.op, report.model, report.engine, report.threads, report.input, report.output
    )?;
    for PartReport { input, count, flops } in &report.parts {
        let gflop = *flops as f64 / 1e9;
        writeln!(output, "{count} parts {input:?} (channels, frames, height, width), {gflop:.1} GFLOP each")?;
    }
    if report.parts.len() > 1 {
        writeln!(output, "\nsteps of the largest part:")?;
    }
    let names = report.steps.iter().map(|step| step.name.len()).max().unwrap_or(0).max(4);
    writeln!(
        output,
        "{:names$}  {:28}  {:>16}  {:>9}  {:>9}  {:>9}  {:>9}",
        "step", "operation", "output", "GFLOP", "read MiB", "out MiB", "scratch"
    )?;
    for step in &report.steps {
        let [channels, height, width] = step.output;
        writeln!(
            output,
            "{:names$}  {:28}  {:>16}  {:>9.2}  {:>9.2}  {:>9.2}  {:>9.2}",
            step.name,
            step.operation,
            format!("{channels}x{height}x{width}"),
            step.flops as f64 / 1e9,
            mib(step.read_bytes),
            mib(step.output_bytes),
            mib(step.scratch_bytes),
        )?;
        for [name, operation] in &step.layers {
            writeln!(output, "  {name:width$}  {operation}", width = names.saturating_sub(2))?;
        }
    }
    writeln!(
        output,
        "\n{} steps a sample, {:.1} GFLOP in all",
        report.steps.len(),
        report.flops as f64 / 1e9
    )?;
    writeln!(
        output,
        "weights {:.1} MiB{} and {:.1} MiB for reading them, activations and workers {:.1} MiB; peak with input and output {:.1} MiB",
        mib(report.weight_bytes),
        if report.reads_weights { ", those of one step, read anew for each," } else { "" },
        mib(report.load_bytes),
        mib(report.activation_bytes),
        mib(report.plan_peak_bytes),
    )?;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    if let (Some(process), Some(peak)) = (report.process_bytes, report.expected_peak_bytes) {
        let what = match &report.tensor {
            Some(_) if report.output.len() == 5 => ", for a file or folder of frames",
            Some(_) => ", for a PNG or JPEG file",
            None => "",
        };
        writeln!(
            output,
            "expected peak of the process{what} {:.1} MiB: {:.1} MiB for the program itself, and the plan",
            mib(peak),
            mib(process)
        )?;
    }
    match &report.tensor {
        Some(TensorReport::Fits { flops, plan_peak_bytes, expected_peak_bytes }) => {
            let (what, bytes) = match expected_peak_bytes {
                Some(bytes) => ("expected peak of the process", *bytes),
                None => ("peak", *plan_peak_bytes as u64),
            };
            let work = *flops as f64 / 1e9;
            writeln!(
                output,
                "{what} for one tensor (decode -o FILE.safetensors, bench) {:.1} MiB, {work:.1} GFLOP",
                mib(bytes)
            )?;
        }
        Some(TensorReport::Refused { error }) => {
            writeln!(output, "for one tensor (decode -o FILE.safetensors, bench) {error}")?;
        }
        None => {}
    }
    if let Some(budget) = report.memory_budget_bytes {
        writeln!(output, "memory budget {:.1} MiB", budget as f64 / f64::from(1 << 20))?;
    }
    Ok(())
}
