//! What a request costs. Plans that are known are told at once; a search for one takes its turn on another thread, so that
//! no request can keep the event loop, or all processors, busy by asking for sizes that nobody asked for before.

use std::sync::Arc;

use remote_vae_engine::{Autoencoder, Delivery, EngineError, Plan, PlanSummary, Precision, Windows};
use remote_vae_wire::Operation;

use crate::error::Refusal;
use crate::metrics::Rejection;
use crate::request::engine_refusal;
use crate::state::Shared;

/// What is to be planned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) operation: Operation,
    /// `[batch, channels, frames, height, width]` of latents or pixels.
    pub(crate) shape: [usize; 5],
    pub(crate) windows: Windows,
    pub(crate) precision: Precision,
    /// Bytes of the answer for each pixel of one picture: a plan of whole pictures leaves room for them, and is told without
    /// them. Plans of tiles and of clips do not.
    pub(crate) answer_per_pixel: usize,
}

impl Asked {
    fn plan(self, autoencoder: &Autoencoder) -> Result<Planned, EngineError> {
        let Asked { operation, shape, windows, precision, .. } = self;
        let plans = autoencoder.plans(operation, shape, windows, precision, self.delivery(autoencoder))?;
        Ok(Planned { summary: self.cost(autoencoder)?, plans })
    }

    /// Decoded clips leave the engine in frames, whatever becomes of these, and pictures in rows, but those that may be cut into
    /// tiles.
    fn delivery(self, autoencoder: &Autoencoder) -> Delivery {
        let Asked { operation, windows, answer_per_pixel, .. } = self;
        let in_rows = autoencoder.model().temporal_factor().is_some() || windows.tiles.is_none();
        match operation {
            Operation::Decode if in_rows => Delivery::Rows { kept_per_pixel: answer_per_pixel },
            Operation::Decode | Operation::Encode => Delivery::Whole,
        }
    }

    /// What plans that are held cost.
    fn cost(self, autoencoder: &Autoencoder) -> Result<PlanSummary, EngineError> {
        let Asked { operation, shape, windows, precision, answer_per_pixel } = self;
        let [batch, channels, _, height, width] = shape;
        let picture = [batch, channels, height, width];
        let takes_clips = autoencoder.model().temporal_factor().is_some();
        if let (Some(tiles), false) = (windows.tiles, takes_clips) {
            return autoencoder.plan_in_tiles(operation, picture, tiles, precision);
        }
        match (operation, takes_clips) {
            (Operation::Decode, false) => {
                Ok(autoencoder.plan_decode_rows(picture, precision, answer_per_pixel)?.summary())
            }
            (Operation::Encode, false) => autoencoder.plan_encode(picture, precision),
            (Operation::Decode, true) => autoencoder.plan_decode_frames(shape, windows, precision),
            (Operation::Encode, true) => autoencoder.plan_encode_clip(shape, windows, precision),
        }
    }
}

/// What work costs, and the plans that it is to run by: it holds them, so that the engine never searches for them again.
pub(crate) struct Planned {
    pub(crate) summary: PlanSummary,
    pub(crate) plans: Vec<Arc<Plan>>,
}

/// What the work costs, or 413 for what memory can never hold.
pub(crate) async fn plan(
    shared: &Shared,
    autoencoder: &Arc<Autoencoder>,
    asked: Asked,
) -> Result<Planned, Refusal> {
    let Asked { operation, shape, windows, precision, .. } = asked;
    let plan = if autoencoder.is_planned(operation, shape, windows, precision, asked.delivery(autoencoder)) {
        asked.plan(autoencoder)
    } else {
        let autoencoder = Arc::clone(autoencoder);
        shared.searching(move || asked.plan(&autoencoder)).await?
    };
    let plan = plan.map_err(|error| {
        if matches!(error, EngineError::Budget { .. }) {
            shared.metrics.rejected(Rejection::Memory);
        }
        engine_refusal(error)
    })?;
    let need = plan.summary.peak_bytes as u64;
    match shared.options.limits.max_plan_bytes {
        Some(limit) if need > limit => {
            shared.metrics.rejected(Rejection::Memory);
            let message = format!("This request needs {need} bytes of memory; the server allows {limit}.");
            Err(Refusal::too_large(message))
        }
        _ => Ok(plan),
    }
}
