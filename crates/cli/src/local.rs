//! Models and engines of this process.

use std::sync::Arc;

use anyhow::{Context, Result};
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

/// A control that draws a progress bar on a terminal's standard error.
pub(crate) fn control(what: &str) -> Control {
    let style =
        indicatif::ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3}% {elapsed}, {eta} left")
            .unwrap_or_else(|_| indicatif::ProgressStyle::default_bar());
    let bar = indicatif::ProgressBar::new(0).with_style(style).with_prefix(what.to_owned());
    Control::with_progress(move |progress| {
        bar.set_length(progress.total_flops);
        bar.set_position(progress.done_flops);
        if progress.step == progress.steps {
            bar.finish_and_clear();
        }
    })
}

/// A sign of life on a terminal's standard error, for work whose progress is not known.
pub(crate) fn spinner(what: &str) -> indicatif::ProgressBar {
    let spinner = indicatif::ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    spinner
}
