//! The outside's hold on running work: cancel it, watch it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::EngineError;

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Floating-point operations done.
    pub done_flops: u64,
    /// Floating-point operations of the whole run, all samples.
    pub total_flops: u64,
    /// Steps done.
    pub step: usize,
    /// Steps of the whole run, all samples.
    pub steps: usize,
}

/// Handed to a run; cancelled through its flag, reports through its callback.
#[derive(Default)]
pub struct Control {
    cancelled: Arc<AtomicBool>,
    progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
}

impl Control {
    /// Nobody watches.
    pub fn new() -> Control {
        Control::default()
    }

    /// `report` is called after each step, on the thread that runs the plan.
    pub fn with_progress(report: impl Fn(Progress) + Send + Sync + 'static) -> Control {
        Control { progress: Some(Arc::new(report)), ..Control::default() }
    }

    /// Setting this flag ends the run before its next step or strip, and attention, whose steps may be long, within one.
    pub fn cancel_handle(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.cancelled
    }

    /// The control of one of several runs: `before` has what was done before it, and the totals of all.
    pub(crate) fn of_part(&self, before: Progress) -> Control {
        let progress = self.progress.clone().map(|report| -> Arc<dyn Fn(Progress) + Send + Sync> {
            Arc::new(move |part| {
                report(Progress {
                    done_flops: before.done_flops.saturating_add(part.done_flops),
                    step: before.step + part.step,
                    ..before
                })
            })
        });
        Control { cancelled: Arc::clone(&self.cancelled), progress }
    }

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        if self.cancelled.load(Ordering::Relaxed) { Err(EngineError::Cancelled) } else { Ok(()) }
    }

    pub(crate) fn report(&self, progress: Progress) {
        if let Some(report) = &self.progress {
            report(progress);
        }
    }
}
