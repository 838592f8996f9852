//! The plan that fits a budget: no more is computed anew than memory demands.
//!
//! The *straight* plan stores every tensor once; only where a tensor is read by several convolutions at the fullest point
//! are their results written over it. If that is too much, tensors that lie in memory at the fullest point are streamed or
//! overwritten, one after the other, until the rest fits; then what turned out not to be needed is taken back. Nothing
//! here changes a bit of what a plan computes (see [`crate::groups`]).

use std::collections::BTreeSet;

use crate::EngineError;
use crate::fusion::{Fused, Value};
use crate::groups::{Choices, Means};
use crate::plan::{Plan, Task};

/// Pixels of a strip: enough that its steps feed many threads, or less where memory is short, down to a row of tiles.
pub(crate) const STRIP_PIXELS: [usize; 3] = [1 << 15, 1 << 13, 1];
/// No plan does more work than this many straight ones.
const MOST_WORK: u64 = 3;
/// Tensors that are streamed in the hope that it helps later.
const PATIENCE: usize = 8;

/// A plan and how it came about.
struct Found {
    means: Means,
    plan: Plan,
    peak: usize,
    flops: u64,
}

/// What the smallest plan needs where none fits.
pub(crate) struct Shortage {
    /// Bytes at the peak of the straight plan.
    pub need: usize,
    /// Bytes at the peak of the smallest one.
    pub smallest: usize,
}

/// The straight plan if its peak is within `budget` bytes, or else one that is.
pub(crate) fn plan(task: &Task<'_>, budget: Option<usize>) -> Result<Plan, Shortage> {
    let search = Search::new(task);
    let straight = search.straight();
    let Some(budget) = budget.filter(|budget| straight.peak > *budget) else { return Ok(straight.plan) };
    let need = straight.peak;
    search.within(straight, budget).map_err(|smallest| Shortage { need, smallest })
}

struct Search<'a> {
    task: &'a Task<'a>,
    streamable: BTreeSet<usize>,
    /// Nodes whose values several convolutions read.
    shared: BTreeSet<usize>,
}

impl<'a> Search<'a> {
    fn new(task: &'a Task<'a>) -> Search<'a> {
        let readers = |node: usize| {
            task.fused
                .iter()
                .filter(|step| matches!(&step.operation, Fused::Convolution { source, .. } if source.base == node))
                .count()
        };
        let made = task.fused.iter().filter_map(|step| match step.output {
            Value::Node(node) => Some(node),
            Value::Table(_) | Value::Copy(_) => None,
        });
        let shared = made.filter(|node| readers(*node) > 1).collect();
        Search { task, streamable: Choices::new(&task.shapes(), &task.fused).streamable, shared }
    }

    fn found(&self, means: Means) -> Found {
        let plan = Plan::new(self.task, &means);
        let summary = plan.summary();
        Found { means, plan, peak: summary.peak_bytes, flops: summary.flops }
    }

    fn straight(&self) -> Found {
        self.overwritten(self.found(Means::default()), |node| self.shared.contains(&node))
    }

    /// Overwrites tensors that `may` be, as long as that lowers the peak.
    fn overwritten(&self, mut found: Found, may: impl Fn(usize) -> bool) -> Found {
        loop {
            let candidates = found.plan.stored.iter().filter(|node| {
                may(**node) && !found.means.overwritten.contains(node) && !found.means.streamed.contains(node)
            });
            let tried = candidates.map(|node| {
                let mut means = found.means.clone();
                means.overwritten.insert(*node);
                self.found(means)
            });
            match tried.filter(|tried| tried.peak < found.peak).min_by_key(|tried| tried.peak) {
                Some(better) => found = better,
                None => return found,
            }
        }
    }

    /// The plan within `budget` with the least work, or the bytes of the smallest plan.
    fn within(&self, straight: Found, budget: usize) -> Result<Plan, usize> {
        let mut smallest = straight.peak;
        let mut best: Option<Found> = None;
        for strip_pixels in STRIP_PIXELS {
            match self.in_strips(&straight, strip_pixels, budget) {
                Ok(found) if best.as_ref().is_none_or(|best| found.flops < best.flops) => best = Some(found),
                Ok(_) => {}
                Err(peak) => smallest = smallest.min(peak),
            }
        }
        best.map(|best| best.plan).ok_or(smallest)
    }

    fn in_strips(&self, straight: &Found, strip_pixels: usize, budget: usize) -> Result<Found, usize> {
        let start = self.found(Means { strip_pixels, ..straight.means.clone() });
        let mut found = self.overwritten(start, |_| true);
        let (mut smallest, mut waited) = (found.peak, 0);
        while found.peak > budget {
            let most = straight.flops.saturating_mul(MOST_WORK);
            found = self.streamed(&found, budget, most).filter(|_| waited < PATIENCE).ok_or(smallest)?;
            waited = if found.peak < smallest { 0 } else { waited + 1 };
            smallest = smallest.min(found.peak);
        }
        Ok(self.pruned(found, budget))
    }

    /// With one more tensor streamed, the one that helps most.
    fn streamed(&self, found: &Found, budget: usize, most_flops: u64) -> Option<Found> {
        let candidates = found
            .plan
            .stored
            .iter()
            .filter(|node| self.streamable.contains(node) && !found.means.streamed.contains(node));
        let tried = candidates.map(|node| {
            let mut means = found.means.clone();
            means.streamed.insert(*node);
            means.overwritten.remove(node);
            self.overwritten(self.found(means), |_| true)
        });
        let tried = tried.filter(|tried| tried.flops <= most_flops);
        tried.min_by_key(|tried| (tried.peak.max(budget), tried.flops))
    }

    /// Without what the budget does not demand.
    fn pruned(&self, mut found: Found, budget: usize) -> Found {
        type Change = Box<dyn Fn(&mut Means)>;
        let mut fewer: Vec<Change> = Vec::new();
        for node in found.means.streamed.clone() {
            fewer.push(Box::new(move |means| {
                means.streamed.remove(&node);
            }));
        }
        for node in found.means.overwritten.clone() {
            fewer.push(Box::new(move |means| {
                means.overwritten.remove(&node);
            }));
        }
        for change in fewer {
            let mut means = found.means.clone();
            change(&mut means);
            let tried = self.found(means);
            if tried.peak <= budget && tried.flops <= found.flops {
                found = tried;
            }
        }
        found
    }
}

/// Height and width in pixels of the largest picture with the proportions of `input` whose smallest plan needs at most
/// `budget` bytes, a few percent short of it; `smallest` is what the whole input needs.
pub(crate) fn largest<'a>(
    task: &impl Fn([usize; 5]) -> Result<Task<'a>, EngineError>,
    input: [usize; 5],
    budget: usize,
    smallest: usize,
) -> Option<[usize; 2]> {
    let [batch, channels, frames, height, width] = input;
    let whole = task(input).ok()?;
    let factor = whole.encoder_factor();
    let scaled = |share: f64| {
        let side = |side: usize| (side as f64 * share.sqrt()) as usize / factor * factor;
        [batch, channels, frames, side(height), side(width)]
    };
    let need = |input: [usize; 5]| {
        let task = task(input).ok()?;
        match plan(&task, Some(0)) {
            Ok(_) => None,
            Err(Shortage { smallest, .. }) => Some((smallest, task.pixels())),
        }
    };
    // Memory is nearly linear in the number of pixels.
    let (half, _) = need(scaled(0.5))?;
    let each = smallest.saturating_sub(half).max(1) as f64 / 0.5;
    let mut share = 1.0 - smallest.saturating_sub(budget) as f64 / each;
    for _ in 0..8 {
        match need(scaled(share.max(0.0))) {
            Some((bytes, pixels)) if bytes <= budget => return Some(pixels),
            _ => share *= 0.9,
        }
    }
    None
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
