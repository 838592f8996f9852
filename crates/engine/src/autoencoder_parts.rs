//! Work that an [`Autoencoder`] does in parts, as it is planned: each part within what the budget leaves beside the others.

use std::collections::HashMap;
use std::sync::Arc;

use remote_vae_wire::Operation;

use crate::autoencoder::Way;
use crate::plan::output_shape;
use crate::walk::{self, Taken};
use crate::windows::{self, COLUMNS, Cut, FRAMES, ROWS};
use crate::{Autoencoder, Beside, Delivery, EngineError, Plan, PlanSummary, Precision, Windows};

/// Shares of the estimated number of pixels at which the largest picture in tiles is looked for.
const LARGEST_CHECKS: [f64; 4] = [1.0, 0.9, 0.75, 0.5];

impl Autoencoder {
    /// The plans of the parts that clips of `shape` are cut into, and how many there are of each in one clip. Each leaves room
    /// for what lies beside it, which `delivery` decides too: in rows means that frames are handed on and not kept.
    ///
    /// # Errors
    /// The shape does not fit the model, or the model lacks that half.
    pub fn plan_clip_parts(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        precision: Precision,
        delivery: Delivery,
    ) -> Result<Vec<(Arc<Plan>, usize)>, EngineError> {
        let parts = self.planned_parts(operation, shape, windows, precision, delivery)?;
        Ok(parts.into_iter().map(|(plan, part)| (plan, part.count)).collect())
    }

    /// The plans of the parts of clips of `shape`, or one refusal for all of them.
    pub(crate) fn planned_parts(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        precision: Precision,
        delivery: Delivery,
    ) -> Result<Vec<(Arc<Plan>, PartOfWork)>, EngineError> {
        let (parts, scale) =
            (self.clip_parts(operation, shape, windows, delivery)?, self.scale(operation, windows)?);
        let tiles = scale.cut_pictures(shape);
        let way = |part: &PartOfWork| way_of(part, precision, tiles.is_none());
        let (refusal, beside) = match self.all_planned(operation, shape, &parts, way)? {
            Ok(plans) => return Ok(plans),
            Err(refused) => refused,
        };
        let Refusal { need, budget, smallest, mut largest } = refusal;
        if let Some(tiles) = tiles {
            // A smaller picture has tiles of the same size.
            let tile = smallest.saturating_sub(beside);
            let room = budget.saturating_sub(tile) as f64 / beside.max(1) as f64;
            let how = (precision, delivery);
            let uncut = tiles.uncut(shape, self.factor(operation));
            largest = self
                .largest_in_tiles(operation, shape, windows, how, room.min(1.0))
                .or_else(|| self.largest_uncut(operation, uncut, windows, how));
        }
        Err(EngineError::Budget { need, budget, smallest, largest })
    }

    /// Height and width in pixels of a picture with the proportions of `shape` that fits in tiles; `room` is the share of the
    /// pixels for which there is about as much memory.
    fn largest_in_tiles(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        (precision, delivery): (Precision, Delivery),
        room: f64,
    ) -> Option<[usize; 2]> {
        let scale = self.scale(operation, windows).ok()?;
        let smaller = LARGEST_CHECKS.map(|check| self.of_share(operation, shape, check * room));
        smaller.into_iter().take_while(|smaller| scale.cut_pictures(*smaller).is_some()).find_map(|smaller| {
            let parts = self.clip_parts(operation, smaller, windows, delivery).ok()?;
            let fits = |part: &PartOfWork| {
                self.planned(operation, smaller[FRAMES], part.cut, way_of(part, precision, false)).is_ok()
            };
            parts.iter().all(fits).then(|| self.pixels(operation, smaller)).flatten()
        })
    }

    /// The same of a picture that is not cut, of at most `shape`.
    fn largest_uncut(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        (precision, delivery): (Precision, Delivery),
    ) -> Option<[usize; 2]> {
        match self.plans(operation, shape, windows, precision, delivery) {
            Ok(_) => self.pixels(operation, shape),
            Err(EngineError::Budget { largest, .. }) => largest,
            Err(_) => None,
        }
    }

    /// Height and width in pixels of what `shape` is decoded to or encoded from.
    fn pixels(&self, operation: Operation, shape: [usize; 5]) -> Option<[usize; 2]> {
        let output = self.clip_output(operation, shape).ok()?;
        Some([ROWS, COLUMNS].map(|axis| shape[axis].max(output[axis])))
    }

    /// The plans of `parts`, or what all of them ask for where some are refused, and what lies beside the one that asks for
    /// most.
    fn all_planned(
        &self,
        operation: Operation,
        shape: [usize; 5],
        parts: &[PartOfWork],
        way: impl Fn(&PartOfWork) -> Way,
    ) -> Result<Planned, EngineError> {
        let (mut plans, mut refused): (_, Option<(Refusal, usize)>) = (Vec::new(), None);
        for part in parts {
            let PartOfWork { cut, beside, .. } = *part;
            match self.planned(operation, shape[FRAMES], cut, way(part)) {
                Ok(plan) => plans.push((plan, *part)),
                Err(EngineError::Budget { need, budget, smallest, largest }) => {
                    let own = Refusal { need, budget, smallest, largest };
                    let beside = beside.always.saturating_add(beside.running);
                    refused = Some(match refused {
                        Some((before, other)) if before.smallest >= smallest => (before.and(own), other),
                        Some((before, _)) => (own.and(before), beside),
                        None => (own, beside),
                    });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(refused.map_or(Ok(plans), Err))
    }

    /// `shape` with a `share` of its pixels, in the same proportions.
    fn of_share(&self, operation: Operation, mut shape: [usize; 5], share: f64) -> [usize; 5] {
        let factor = self.factor(operation);
        for side in &mut shape[ROWS..] {
            *side = (*side as f64 * share.sqrt()) as usize / factor * factor;
        }
        shape
    }

    /// What the sides of an input must be multiples of.
    fn factor(&self, operation: Operation) -> usize {
        if operation == Operation::Encode { self.model.spatial_factor() } else { 1 }
    }

    /// What clips of `shape` are cut into.
    pub(crate) fn clip_parts(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        delivery: Delivery,
    ) -> Result<Vec<PartOfWork>, EngineError> {
        let output = self.clip_output(operation, shape)?;
        let ([batch, channels, frames, height, width], scale) = (shape, self.scale(operation, windows)?);
        let cuts = windows::parts([1, channels, frames, height, width], windows, scale);
        let graph = self.graph(operation, frames)?;
        let mut outputs = HashMap::new();
        for (cut @ (shape, start), _) in &cuts {
            outputs.insert(*cut, bytes(output_shape(graph, *shape, *start)?));
        }
        // Of several clips one is copied out, and what cannot become the result as it is has a place from the beginning.
        let copied = if batch > 1 { bytes(shape) / batch } else { 0 };
        let (taken, place) = match delivery {
            Delivery::Rows { .. } => (Taken::WhileOthersRun, 0),
            Delivery::Whole if windows::is_handed_on_at_once(shape, windows, scale) => (Taken::AtOnce, 0),
            Delivery::Whole => (Taken::AtOnce, bytes(output)),
        };
        let there = bytes(shape).saturating_add(copied).saturating_add(place);
        let walked = walk::walk(shape, windows, scale, output[1], taken, &|cut| outputs[&cut]);
        let continues = scale.streams && windows.frames && frames > 1;
        let part = |(cut, count): (Cut, usize)| {
            let always = there.saturating_sub(bytes(cut.0));
            let running = walked.beside.get(&cut).copied().unwrap_or(0);
            PartOfWork { cut, count, beside: Beside { always, running, between: walked.between, continues } }
        };
        Ok(cuts.into_iter().map(part).collect())
    }

    /// What running an input of `shape` in parts costs.
    pub(crate) fn plan_parts(
        &self,
        operation: Operation,
        shape: [usize; 5],
        windows: Windows,
        precision: Precision,
        delivery: Delivery,
    ) -> Result<PlanSummary, EngineError> {
        let output = self.clip_output(operation, shape)?;
        let [batch, _, frames, ..] = shape;
        let picture = |[batch, channels, _, height, width]: [usize; 5]| [batch, channels, height, width];
        let mut whole = PlanSummary {
            input: picture(shape),
            output: picture(output),
            frames: [frames, output[2]],
            ..PlanSummary::default()
        };
        let plans = self.planned_parts(operation, shape, windows, precision, delivery)?;
        // What one part must do without, all do without: their plans leave room for that too.
        whole.reads_weights = plans.iter().any(|(plan, _)| plan.reads_weights);
        for (plan, PartOfWork { count, beside, .. }) in plans {
            let peak = plan.peak_beside(beside, whole.reads_weights);
            whole.peak_bytes = whole.peak_bytes.max(peak);
            whole.weight_bytes = whole.weight_bytes.max(plan.weight_bytes(whole.reads_weights));
            let plan = plan.summary();
            whole.flops = whole.flops.saturating_add(plan.flops.saturating_mul((count * batch) as u64));
            whole.steps += plan.steps * count;
            (whole.load_bytes, whole.probe_bytes) = (plan.load_bytes, plan.probe_bytes);
            // The part's own input comes and goes with it; what it leaves lies beside it if others follow.
            let [_, channels, height, width] = plan.input;
            let input = bytes([1, channels, plan.frames[0], height, width]);
            let left = if beside.continues { plan.history_bytes } else { 0 };
            whole.history_bytes = whole.history_bytes.max(plan.history_bytes);
            whole.activation_bytes = whole.activation_bytes.max(plan.activation_bytes + input + left);
        }
        Ok(whole)
    }
}

/// One of the parts that clips, or pictures, are cut into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PartOfWork {
    pub cut: Cut,
    /// How many there are of it in one clip.
    pub count: usize,
    pub beside: Beside,
}

/// How a part is planned: what it makes is one tensor, whatever becomes of that.
fn way_of(part: &PartOfWork, precision: Precision, seeks_largest: bool) -> Way {
    Way { precision, delivery: Delivery::Whole, beside: Some(part.beside), seeks_largest }
}

/// The plans of all parts, or a refusal with the bytes that lie beside the part that asks for most.
type Planned = Result<Vec<(Arc<Plan>, PartOfWork)>, (Refusal, usize)>;

/// The fields of [`EngineError::Budget`].
struct Refusal {
    need: usize,
    budget: usize,
    smallest: usize,
    largest: Option<[usize; 2]>,
}

impl Refusal {
    /// What both ask for.
    fn and(self, other: Refusal) -> Refusal {
        let area = |refusal: &Refusal| refusal.largest.map(|[height, width]| height * width);
        Refusal {
            need: self.need.max(other.need),
            budget: self.budget,
            smallest: self.smallest.max(other.smallest),
            largest: if area(&self) < area(&other) { self.largest } else { other.largest },
        }
    }
}

/// Bytes of a tensor in `f32`.
fn bytes(shape: [usize; 5]) -> usize {
    shape.iter().fold(size_of::<f32>(), |product, side| product.saturating_mul(*side))
}
