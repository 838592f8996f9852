//! `remote-vae bench --budgets`: time against memory. Each budget is timed in a process of its own, whose peak is measured.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use remote_vae_engine::{EngineError, memory};
use serde::{Deserialize, Serialize};

use crate::arguments::{BenchOptions, EngineArguments};
use crate::bench::Task;
use crate::cuts::CutArguments;
use crate::local;

/// Budgets that are timed where none are given, from the smallest on.
const BUDGETS: u64 = 6;
const MIB: u64 = 1 << 20;
/// What a process may hold before any work beyond what this one holds.
const PROCESS_MARGIN: u64 = 2 * MIB;

/// What of a run's report matters here.
#[derive(Deserialize)]
struct Run {
    median_s: f64,
    peak_rss_mib: Option<f64>,
    planned_peak_mib: f64,
    gflop: f64,
    result_sha256: String,
}

#[derive(Serialize)]
struct Row {
    /// `None` where no budget is given.
    budget_mib: Option<f64>,
    planned_peak_mib: f64,
    peak_rss_mib: Option<f64>,
    gflop: f64,
    seconds: f64,
    /// Seconds over those without a budget.
    ratio: f64,
    has_same_bytes: bool,
}

/// Times `given` budgets in bytes, or some that are chosen where there are none. Rows of the table are told as they are
/// measured, those in JSON together.
pub(crate) fn run(options: &BenchOptions, given: &[u64]) -> Result<()> {
    let budgets = if given.is_empty() { chosen(options)? } else { given.to_vec() };
    let mut output = std::io::stdout().lock();
    let straight = timed(options, None)?;
    let mut rows = Vec::new();
    for budget in std::iter::once(None).chain(budgets.into_iter().map(Some)) {
        let row = match budget {
            None => row(&straight, None, &straight),
            Some(_) => row(&straight, budget, &timed(options, budget)?),
        };
        if !options.json {
            if rows.is_empty() {
                output.write_all(HEAD.as_bytes())?;
            }
            print(&mut output, &row)?;
            output.flush()?;
        }
        rows.push(row);
    }
    if options.json {
        writeln!(output, "{}", serde_json::to_string(&rows)?)?;
    }
    if rows.iter().any(|row| !row.has_same_bytes) {
        bail!("a budget changed the result");
    }
    Ok(())
}

fn row(straight: &Run, budget: Option<u64>, run: &Run) -> Row {
    Row {
        budget_mib: budget.map(|bytes| bytes as f64 / MIB as f64),
        planned_peak_mib: run.planned_peak_mib,
        peak_rss_mib: run.peak_rss_mib,
        gflop: run.gflop,
        seconds: run.median_s,
        ratio: run.median_s / straight.median_s,
        has_same_bytes: run.result_sha256 == straight.result_sha256,
    }
}

/// Budgets from what is needed without one down to the smallest, evenly.
fn chosen(options: &BenchOptions) -> Result<Vec<u64>> {
    let resident = || memory::resident_bytes().unwrap_or(0);
    let begin = resident();
    // What a process holds at its peak if it has `budget`. This one holds more each time, which another does not.
    let planned = |budget: u64| -> Result<u64> {
        let more = resident().saturating_sub(begin);
        let memory_budget = Some(budget.saturating_add(more));
        let engine = EngineArguments { memory_budget, ..options.engine.clone() };
        let autoencoder = local::autoencoder(&options.model, &engine)?;
        let need = Task::new(&autoencoder, options)?.summary.peak_bytes as u64;
        Ok((need + autoencoder.engine().process_bytes()).saturating_sub(more))
    };
    let error = planned(1).err().ok_or_else(|| anyhow!("--size {}: nothing to save", options.size))?;
    let Some(EngineError::Budget { smallest, .. }) = error.downcast_ref() else { return Err(error) };
    let (need, smallest) = (planned(u64::MAX)?, *smallest as u64 + PROCESS_MARGIN);
    let budgets = (0..BUDGETS).rev().map(|index| smallest + need.saturating_sub(smallest) * index / BUDGETS);
    let mut budgets: Vec<u64> = budgets.map(|bytes| bytes.next_multiple_of(MIB)).collect();
    budgets.dedup();
    Ok(budgets)
}

/// As it is written on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// `bench` with the same options in another process.
fn timed(options: &BenchOptions, budget: Option<u64>) -> Result<Run> {
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let mut command = Command::new(program);
    command.arg("bench").arg("--json");
    // What a budget in the environment would say is said here or not at all.
    command.env_remove("REMOTE_VAE_MEMORY_BUDGET").stdout(Stdio::piped());
    command.args(["--model", &options.model, "--size", &options.size.to_string()]);
    command.args(["--frames", &options.frames.to_string(), "--runs", &options.runs.to_string()]);
    command.args(["--op", &name(options.op), "--precision", options.engine.precision().name()]);
    let CutArguments { clips, tiles } = &options.clips;
    command.args(clips.windows.iter().flat_map(|switch| ["--windows".to_owned(), name(*switch)]));
    command.args(clips.tiling.iter().flat_map(|switch| ["--tiling".to_owned(), name(*switch)]));
    for (flag, value) in [
        ("--tile-sample-min-size", tiles.tile_sample_min_size.map(f64::from)),
        ("--tile-latent-min-size", tiles.tile_latent_min_size.map(f64::from)),
        ("--tile-overlap-factor", tiles.tile_overlap_factor),
    ] {
        command.args(value.iter().flat_map(|value| [flag.to_owned(), value.to_string()]));
    }
    if let Some(threads) = options.engine.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    if let Some(isa) = &options.engine.isa {
        command.args(["--isa", isa]);
    }
    if let Some(budget) = budget {
        command.args(["--memory-budget", &budget.to_string()]);
    }
    let output = command.spawn().and_then(|child| child.wait_with_output()).context("cannot start a run")?;
    if !output.status.success() {
        bail!(
            "the run within {} failed",
            budget.map_or("no budget".into(), |bytes| format!("{} MiB", bytes / MIB))
        );
    }
    serde_json::from_slice(&output.stdout).context("a run's report cannot be read")
}

/// The table's head.
const HEAD: &str = "\
| budget MiB | expected MiB | measured MiB | GFLOP | s | of straight | bytes |
|---|---|---|---|---|---|---|
";

fn print(output: &mut impl Write, row: &Row) -> std::io::Result<()> {
    let budget = row.budget_mib.map_or("none".to_owned(), |mib| format!("{mib:.0}"));
    let measured = row.peak_rss_mib.map_or("not known".to_owned(), |mib| format!("{mib:.0}"));
    let bytes = if row.has_same_bytes { "the same" } else { "others" };
    writeln!(
        output,
        "| {budget} | {:.0} | {measured} | {:.0} | {:.2} | {:.2} | {bytes} |",
        row.planned_peak_mib, row.gflop, row.seconds, row.ratio
    )
}
