//! Models and engines of this process.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use remote_vae_engine::{Autoencoder, Control, CpuEngine, Engine, EngineOptions};
use remote_vae_hub::Settings;
use remote_vae_media::DecodeLimits;
use remote_vae_model::Model;

use crate::arguments::EngineArguments;

/// What a picture file on this machine may ask for: the user's own, so only a guard against a damaged one.
pub(crate) const PICTURE_LIMITS: DecodeLimits = DecodeLimits { max_pixels: 1 << 28, max_bytes: 1 << 31 };

/// The engine that the arguments ask for.
pub(crate) fn engine(arguments: &EngineArguments) -> Result<Arc<dyn Engine>> {
    let options = EngineOptions {
        threads: arguments.threads.map(usize::from),
        isa: arguments.isa.clone(),
        memory_budget: arguments.memory_budget(),
    };
    Ok(Arc::new(CpuEngine::new(options)?))
}

/// The model that SOURCE names, downloaded if need be. Blocks: not for asynchronous code.
pub(crate) fn model(source: &str) -> Result<Model> {
    remote_vae_hub::open(source, &Settings::from_environment()).context("cannot use the model")
}

/// SOURCE on an engine made from the arguments.
pub(crate) fn autoencoder(source: &str, arguments: &EngineArguments) -> Result<Autoencoder> {
    let engine = engine(arguments)?;
    Ok(Autoencoder::new(model(source)?, engine))
}

/// Refuses work that would hold more than the memory budget: plans keep within it, but `plan` has in it what files take beside
/// the work too.
pub(crate) fn check_budget(autoencoder: &Autoencoder, plan: &remote_vae_engine::PlanSummary) -> Result<()> {
    let engine = autoencoder.engine();
    let need = (plan.peak_bytes as u64).saturating_add(engine.process_bytes());
    match engine.memory_budget() {
        Some(budget) if need > budget => {
            let [need, budget] = [need, budget].map(|bytes| bytes >> 20);
            anyhow::bail!("this needs {need} MiB in these parts; the memory budget is {budget} MiB")
        }
        _ => Ok(()),
    }
}

/// All bars of this process, one below the other on a terminal's standard error.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes a line to standard error, above the bars.
pub(crate) fn say(line: &str) {
    BARS.suspend(|| eprintln!("{line}"));
}

/// A bar that counts files, with their rate and the time left.
pub(crate) fn files_bar(what: &str, files: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} files, {rate}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            // A line on a terminal: nothing is to be done where it cannot be written.
            let _ = write!(out, "{:.2} files/s", state.per_sec());
        });
    BARS.add(ProgressBar::new(files as u64).with_style(style).with_prefix(what.to_owned()))
}

/// A control that draws a progress bar.
pub(crate) fn control(what: &str) -> Control {
    let style =
        ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3}% {rate}, {elapsed} gone, {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .with_key("rate", |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                let _ = write!(out, "{:.0} GFLOP/s", state.per_sec() / 1e9);
            });
    let bar = BARS.add(ProgressBar::new(0).with_style(style).with_prefix(what.to_owned()));
    Control::with_progress(move |progress| {
        bar.set_length(progress.total_flops);
        bar.set_position(progress.done_flops);
        if progress.step == progress.steps {
            bar.finish_and_clear();
        }
    })
}

/// A bar without a length, below those that there are.
pub(crate) fn bar() -> ProgressBar {
    BARS.add(ProgressBar::new(0))
}

/// A sign of life on a terminal's standard error, for work whose progress is not known.
pub(crate) fn spinner(what: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
