//! The plan that fits a budget: no more is computed anew than memory demands.
//!
//! The *straight* plan stores every tensor once; only where a tensor is read by several convolutions at the fullest point
//! are their results written over it. If that is too much, tensors that lie in memory at the fullest point are streamed or
//! overwritten, one after the other, until the rest fits; then what turned out not to be needed is taken back. Nothing
//! here changes a bit of what a plan computes (see [`crate::groups`]).

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use crate::EngineError;
use crate::fusion::{Fused, Value};
use crate::groups::{Choices, Means, Schedules};
use crate::plan::{Plan, Task};

/// Pixels of a strip: enough that its steps feed many threads, or less where memory is short, down to a row of tiles.
pub(crate) const STRIP_PIXELS: [usize; 3] = [1 << 15, 1 << 13, 1];
/// How often the number of rows that are kept is halved in search of the most.
const HEAD_HALVINGS: usize = 6;
/// No plan computes longer than this many straight ones.
const MOST_WORK: u64 = 3;
/// Floating-point operations of a product that take as long as reading a byte of weights anew, about.
const READ_FLOPS: u64 = 600;
/// Floating-point operations of a product that take as long as transforming weights into one `f32` anew, about.
const TRANSFORM_FLOPS: u64 = 30;
/// Tensors that are streamed in the hope that it helps later.
const PATIENCE: usize = 8;

/// What a plan costs, and how it comes about.
#[derive(Clone)]
struct Found {
    means: Means,
    cost: Rc<Cost>,
}

struct Cost {
    peak: usize,
    /// As [`crate::plan::Step::work`], of all steps.
    computing: u64,
    /// The same with reading and transforming weights anew.
    work: u64,
    /// As [`Plan::stored`].
    stored: Vec<usize>,
    /// Numbers of the steps that run in strips.
    in_strips: Vec<usize>,
}

/// What the smallest plan needs where none fits.
pub(crate) struct Shortage {
    /// Bytes at the peak of the straight plan.
    pub need: usize,
    /// Bytes at the peak of the smallest one.
    pub smallest: usize,
    /// How the smallest one comes about.
    pub means: Box<Means>,
}

/// The straight plan if its peak is within `budget` bytes, or else one that is.
pub(crate) fn plan(task: &Task<'_>, budget: Option<usize>) -> Result<Plan, Shortage> {
    let search = Search::new(task);
    let straight = search.straight();
    let need = straight.cost.peak;
    let found = match budget.filter(|budget| need > *budget) {
        None => Ok(straight),
        Some(budget) => search.within(&straight, budget),
    };
    match found {
        Ok(found) => Ok(Plan::remembering(task, &found.means, &mut search.schedules.borrow_mut())),
        Err(Found { means, cost }) => Err(Shortage { need, smallest: cost.peak, means: Box::new(means) }),
    }
}

struct Search<'a> {
    task: &'a Task<'a>,
    schedules: RefCell<Schedules>,
    /// What was tried before.
    known: RefCell<HashMap<Means, Rc<Cost>>>,
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
        let streamable = Choices::new(&task.shapes(), &task.fused).streamable;
        Search { task, schedules: RefCell::default(), known: RefCell::default(), streamable, shared }
    }

    fn found(&self, means: Means) -> Found {
        if let Some(cost) = self.known.borrow().get(&means) {
            return Found { cost: Rc::clone(cost), means };
        }
        let plan = Plan::remembering(self.task, &means, &mut self.schedules.borrow_mut());
        let (peak, computing, work) = (self.task.peak_bytes(&plan), computing(&plan), work(&plan));
        let in_strips = (0..plan.steps.len()).filter(|step| plan.steps[*step].slices.is_some()).collect();
        let cost = Rc::new(Cost { peak, computing, work, stored: plan.stored, in_strips });
        self.known.borrow_mut().insert(means.clone(), Rc::clone(&cost));
        Found { means, cost }
    }

    fn straight(&self) -> Found {
        self.overwritten(self.found(Means::default()), |node| self.shared.contains(&node))
    }

    /// Overwrites tensors that `may` be, as long as that lowers the peak.
    fn overwritten(&self, mut found: Found, may: impl Fn(usize) -> bool) -> Found {
        loop {
            let candidates = found.cost.stored.iter().filter(|node| {
                may(**node) && !found.means.overwritten.contains(node) && !found.means.streamed.contains(node)
            });
            let tried = candidates.map(|node| {
                let mut means = found.means.clone();
                means.overwritten.insert(*node);
                self.found(means)
            });
            let smaller = tried.filter(|tried| tried.cost.peak < found.cost.peak);
            match smaller.min_by_key(|tried| tried.cost.peak) {
                Some(better) => found = better,
                None => return found,
            }
        }
    }

    /// The plan within `budget` with the least work, or else the smallest plan.
    fn within(&self, straight: &Found, budget: usize) -> Result<Found, Found> {
        let mut smallest = straight.clone();
        let mut best: Option<Found> = None;
        for means in variants(straight) {
            if means.shares_scratch && best.is_some() {
                break;
            }
            let found = self.from(straight, means, budget).map(|found| self.with_head(found, budget));
            match found.map(|found| self.with_taller_strips(found, budget)) {
                Ok(found) if best.as_ref().is_none_or(|best| found.cost.work < best.cost.work) => {
                    best = Some(found);
                }
                Ok(_) => {}
                Err(found) if found.cost.peak < smallest.cost.peak => smallest = found,
                Err(_) => {}
            }
        }
        best.ok_or(smallest)
    }

    /// With rows kept of the streamed tensor of which they save most work for their memory, as many as there is room for.
    fn with_head(&self, found: Found, budget: usize) -> Found {
        let shapes = self.task.shapes();
        let with = |node: usize, rows: usize| {
            let mut means = found.means.clone();
            means.heads.insert(node, rows);
            self.found(means)
        };
        let saved_for_a_byte = |node: usize| {
            let rows = shapes.height(node) / 2;
            let bytes =
                shapes.storage(Value::Node(node)).len(shapes.blocks(node) * rows * shapes.width(node));
            found.cost.work.saturating_sub(with(node, rows).cost.work) / (bytes as u64).max(1)
        };
        let streamed = found.means.streamed.iter().map(|node| (saved_for_a_byte(*node), *node));
        let Some((1.., node)) = streamed.max() else { return found };
        let (mut best, mut above) = (found.clone(), shapes.height(node));
        let mut rows = 0;
        for _ in 0..HEAD_HALVINGS {
            let middle = usize::midpoint(rows, above);
            let tried = with(node, middle);
            if tried.cost.peak > budget {
                above = middle;
                continue;
            }
            rows = middle;
            if tried.cost.work < best.cost.work {
                best = tried;
            }
        }
        self.with_later_heads(best, budget)
    }

    /// With as many rows kept of others too, where that helps: what is made of kept rows takes their place once they are no
    /// longer recalled.
    fn with_later_heads(&self, mut found: Found, budget: usize) -> Found {
        let Some(rows) = found.means.heads.values().next().copied() else { return found };
        for node in found.means.streamed.clone() {
            let mut means = found.means.clone();
            means.heads.entry(node).or_insert(rows);
            let tried = self.found(means);
            if tried.cost.peak <= budget && tried.cost.work < found.cost.work {
                found = tried;
            }
        }
        found
    }

    /// With strips as tall as there is room for, each step's by itself.
    fn with_taller_strips(&self, mut found: Found, budget: usize) -> Found {
        for step in found.cost.in_strips.clone() {
            for pixels in STRIP_PIXELS.into_iter().filter(|pixels| *pixels > found.means.strip_pixels) {
                let mut means = found.means.clone();
                means.strip_pixels_of.insert(step, pixels);
                let tried = self.found(means);
                if tried.cost.peak <= budget && tried.cost.work <= found.cost.work {
                    found = tried;
                    break;
                }
            }
        }
        found
    }

    /// Whether there is a plan within `budget`; found sooner than the one with the least work.
    fn fits(&self, budget: usize) -> bool {
        let straight = self.straight();
        let mut variants: Vec<Means> = variants(&straight).collect();
        variants.reverse();
        straight.cost.peak <= budget
            || variants.into_iter().any(|means| self.unpruned(&straight, means, budget).is_ok())
    }

    /// As [`Search::within`], with what `means` say and more streamed and overwritten.
    fn from(&self, straight: &Found, means: Means, budget: usize) -> Result<Found, Found> {
        Ok(self.pruned(self.unpruned(straight, means, budget)?, budget))
    }

    fn unpruned(&self, straight: &Found, means: Means, budget: usize) -> Result<Found, Found> {
        let start = self.found(means);
        let most = straight.cost.computing.saturating_mul(MOST_WORK);
        let mut found = self.overwritten(start, |_| true);
        let (mut smallest, mut waited) = (found.clone(), 0);
        while found.cost.peak > budget {
            match self.streamed(&found, budget, most).filter(|_| waited < PATIENCE) {
                Some(next) => found = next,
                None => return Err(smallest),
            }
            if found.cost.peak < smallest.cost.peak {
                (smallest, waited) = (found.clone(), 0);
            } else {
                waited += 1;
            }
        }
        Ok(found)
    }

    /// With one more tensor streamed, the one that helps most.
    fn streamed(&self, found: &Found, budget: usize, most: u64) -> Option<Found> {
        let candidates = found
            .cost
            .stored
            .iter()
            .filter(|node| self.streamable.contains(node) && !found.means.streamed.contains(node));
        let tried = candidates.map(|node| {
            let mut means = found.means.clone();
            means.streamed.insert(*node);
            means.overwritten.remove(node);
            self.overwritten(self.found(means), |_| true)
        });
        let tried = tried.filter(|tried| tried.cost.computing <= most);
        tried.min_by_key(|tried| (tried.cost.peak.max(budget), tried.cost.computing))
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
            if tried.cost.peak <= budget && tried.cost.computing <= found.cost.computing {
                found = tried;
            }
        }
        found
    }
}

/// The ways to begin a search, beside what `straight` does; the smallest plans come from the last ones.
fn variants(straight: &Found) -> impl Iterator<Item = Means> {
    let usual =
        [false, true].into_iter().flat_map(|reads| STRIP_PIXELS.map(move |pixels| (false, reads, pixels)));
    // Transforming weights for each strip is a last resort.
    usual.chain([(true, false, 1), (true, true, 1)]).map(|(shares_scratch, reads_weights, strip_pixels)| {
        Means { strip_pixels, reads_weights, shares_scratch, ..straight.means.clone() }
    })
}

/// How long `plan` computes, as [`crate::plan::Step::work`].
fn computing(plan: &Plan) -> u64 {
    plan.in_all(|step| step.work)
}

/// The same with reading and transforming weights anew.
fn work(plan: &Plan) -> u64 {
    let read = if plan.reads_weights { plan.used_weight_bytes } else { 0 };
    let reading = (read as u64).saturating_mul(READ_FLOPS);
    let transforming = plan.transformed_anew().saturating_mul(TRANSFORM_FLOPS);
    let more = reading.saturating_add(transforming).saturating_mul(plan.input[0] as u64);
    computing(plan).saturating_add(more)
}

/// Height and width in pixels of the largest picture with the proportions of `input` for which a plan needs at most
/// `budget` bytes, a few percent short of it; `means` are those of the smallest plan for the whole input.
pub(crate) fn largest<'a>(
    task: &impl Fn([usize; 5]) -> Result<Task<'a>, EngineError>,
    input: [usize; 5],
    budget: usize,
    means: &Means,
) -> Option<[usize; 2]> {
    const HALVINGS: usize = 7;
    const CHECKS: usize = 4;
    let [batch, channels, frames, height, width] = input;
    let factor = task(input).ok()?.encoder_factor();
    let at = |share: f64| {
        let side = |side: usize| (side as f64 * share.sqrt()) as usize / factor * factor;
        task([batch, channels, frames, side(height), side(width)]).ok()
    };
    // What makes the whole input smallest makes smaller ones about as small: one plan each instead of a search.
    let (mut share, mut above) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(share, above);
        let peak = |task: &Task<'_>| task.peak_bytes(&Plan::new(task, means));
        let fits = at(middle).is_some_and(|task| peak(&task) <= budget);
        *(if fits { &mut share } else { &mut above }) = middle;
    }
    for _ in 0..CHECKS {
        let task = at(share)?;
        if Search::new(&task).fits(budget) {
            return Some(task.pixels());
        }
        share *= 0.95;
    }
    None
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
