//! Where a run's result goes: into one tensor, or to whoever takes rows as they are finished.

use std::ops::Range;

use remote_vae_kernels::strip::rows_from_blocked;

use super::zeroed;
use crate::plan::Plan;
use crate::{EngineError, frames};

/// Some rows of a sample of the result.
#[derive(Debug)]
pub struct Rows<'a> {
    /// Which one of the batch.
    pub sample: usize,
    /// The first of the rows, counted from the top.
    pub first: usize,
    /// `[channels, rows, width]`, as plain as the whole result would be.
    pub values: &'a mut [f32],
    /// The three sides.
    pub shape: [usize; 3],
}

/// Where the result of a run goes.
pub(crate) enum Output<'a> {
    /// Plain `[batch, channels, frames, height, width]`.
    Whole(&'a mut [f32]),
    /// In a buffer for one strip.
    Rows(Vec<f32>, &'a mut dyn FnMut(Rows<'_>) -> Result<(), EngineError>),
}

impl Output<'_> {
    /// Takes finished rows out of a blocked ring of `kept` rows.
    pub(crate) fn take(
        &mut self,
        plan: &Plan,
        sample: usize,
        (ring, kept): (&[f32], usize),
        rows: Range<usize>,
    ) -> Result<(), EngineError> {
        let [_, channels, height, width] = plan.output;
        match self {
            Output::Whole(result) => {
                let len = channels * height * width;
                let plain = (&mut result[sample * len..][..len], 0..height);
                rows_from_blocked((ring, kept), [channels, width], rows, plain);
                Ok(())
            }
            Output::Rows(buffer, sink) => {
                let len = channels * rows.len() * width;
                if buffer.len() < len {
                    *buffer = zeroed(channels * plan.strip_rows().max(rows.len()) * width)?;
                }
                let values = &mut buffer[..len];
                rows_from_blocked((ring, kept), [channels, width], rows.clone(), (values, rows.clone()));
                sink(Rows { sample, first: rows.start, values, shape: [channels, rows.len(), width] })
            }
        }
    }

    /// Takes a sample that lies in memory as a whole, blocked.
    pub(crate) fn take_whole(
        &mut self,
        plan: &Plan,
        sample: usize,
        blocked: &[f32],
    ) -> Result<(), EngineError> {
        let ([_, channels, height, width], [_, frames]) = (plan.output, plan.frames);
        if let Output::Whole(result) = self {
            let len = channels * frames * height * width;
            let plain = &mut result[sample * len..][..len];
            return frames::from_blocked(blocked, [channels, frames, height * width], plain);
        }
        let strip = plan.strip_rows();
        for first in (0..height).step_by(strip) {
            self.take(plan, sample, (blocked, height), first..(first + strip).min(height))?;
        }
        Ok(())
    }
}
