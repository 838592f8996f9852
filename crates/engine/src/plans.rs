//! Plans that were made before. Who asks for the same size again waits for no search; nor does work that was admitted by a
//! plan and holds it until it runs by it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use remote_vae_model::Start;
use remote_vae_wire::Operation;

use crate::{Beside, Delivery, EngineError, Plan, Precision};

/// What a plan of one model on one engine follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub operation: Operation,
    /// Whether it is for the graph of single pictures.
    pub still: bool,
    /// `[batch, channels, frames, height, width]`
    pub input: [usize; 5],
    pub start: Start,
    pub precision: Precision,
    pub delivery: Delivery,
    pub beside: Option<Beside>,
    /// Bytes that work might hold.
    pub work_budget: Option<u64>,
}

impl Key {
    /// As it is where nothing lies or is kept beside the plan.
    fn alone(&self) -> Key {
        Key { delivery: self.delivery.alone(), beside: None, ..*self }
    }

    /// Whether what came of [`Key::alone`] leaves room for what lies or is kept beside it. What a refusal says is true for its
    /// own key only.
    fn is_met_by(&self, outcome: &Outcome) -> bool {
        if *self == self.alone() {
            return true;
        }
        outcome.as_ref().is_ok_and(|plan| {
            let [.., height, width] = plan.output;
            let alone = || plan.summary().peak_bytes;
            let peak = self.beside.map_or_else(alone, |beside| plan.most_beside(beside));
            let need = peak.saturating_add(self.delivery.kept_bytes(height, width)) as u64;
            self.work_budget.is_none_or(|budget| need <= budget)
        })
    }
}

/// The fields of [`EngineError::Budget`].
#[derive(Clone, Copy)]
struct Shortage {
    need: usize,
    budget: usize,
    smallest: usize,
    largest: Option<[usize; 2]>,
    /// Whether `largest` was looked for.
    sought_largest: bool,
}

type Outcome = Result<Arc<Plan>, Shortage>;

/// The plans used last, the latest at the end, and those that are held elsewhere.
#[derive(Default)]
pub(crate) struct Plans {
    known: Mutex<VecDeque<(Key, Outcome)>>,
}

impl Plans {
    /// Plans that are kept: parts of a few clips, or the sizes of many pictures. Each takes some 100 kB at most.
    const MOST: usize = 64;

    /// Whether the plan, or that there is none, is known; `seeks_largest` as in [`Plans::get_or_make`].
    pub(crate) fn knows(&self, key: &Key, seeks_largest: bool) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let find = |key: &Key| {
            let found = known.iter().find(|(known, _)| known == key).map(|(_, outcome)| outcome);
            found.filter(|outcome| says_enough(outcome, seeks_largest))
        };
        find(key).or_else(|| find(&key.alone()).filter(|outcome| key.is_met_by(outcome))).is_some()
    }

    /// The plan for `key`, made by `make` unless it is known. Where there is room for what lies or is kept beside it, it is the
    /// plan beside nothing, so that all share that. What no budget can hold is remembered too; other errors
    /// are found quickly and are not.
    ///
    /// With `seeks_largest` a refusal names the largest picture that fits; `make` is told whether it has to find that.
    pub(crate) fn get_or_make(
        &self,
        key: Key,
        seeks_largest: bool,
        make: impl Fn(&Key, bool) -> Result<Plan, EngineError>,
    ) -> Result<Arc<Plan>, EngineError> {
        let alone = key.alone();
        // That there is one of its own says that the other has no room, also when that is known no more.
        let outcome = match self.latest(&key) {
            Some(_) => self.outcome(key, seeks_largest, &make)?,
            None => match self.outcome(alone, seeks_largest && key == alone, &make)? {
                outcome if key.is_met_by(&outcome) => outcome,
                _ => self.outcome(key, seeks_largest, &make)?,
            },
        };
        outcome.map_err(EngineError::from)
    }

    /// What is known or found for just this `key`.
    fn outcome(
        &self,
        key: Key,
        seeks_largest: bool,
        make: impl Fn(&Key, bool) -> Result<Plan, EngineError>,
    ) -> Result<Outcome, EngineError> {
        if let Some(outcome) = self.latest(&key).filter(|outcome| says_enough(outcome, seeks_largest)) {
            return Ok(outcome);
        }
        // Not under the lock: others need not wait for a search.
        let outcome = match make(&key, seeks_largest) {
            Ok(plan) => Ok(Arc::new(plan)),
            Err(EngineError::Budget { need, budget, smallest, largest }) => {
                Err(Shortage { need, budget, smallest, largest, sought_largest: seeks_largest })
            }
            Err(error) => return Err(error),
        };
        self.keep(key, outcome.clone());
        Ok(outcome)
    }

    /// What is known of `key`, which becomes the latest.
    fn latest(&self, key: &Key) -> Option<Outcome> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let index = known.iter().position(|(known, _)| known == key)?;
        let (key, outcome) = known.remove(index)?;
        known.push_back((key, outcome.clone()));
        Some(outcome)
    }

    fn keep(&self, key: Key, outcome: Outcome) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(known, _)| *known != key);
        let is_held = |outcome: &Outcome| outcome.as_ref().is_ok_and(|plan| Arc::strong_count(plan) > 1);
        while known.len() >= Self::MOST
            && let Some(oldest) = known.iter().position(|(_, outcome)| !is_held(outcome))
        {
            known.remove(oldest);
        }
        known.push_back((key, outcome));
    }
}

/// Whether a refusal names the largest picture that fits, where that is asked for.
fn says_enough(outcome: &Outcome, seeks_largest: bool) -> bool {
    !seeks_largest || outcome.as_ref().err().is_none_or(|shortage| shortage.sought_largest)
}

impl From<Shortage> for EngineError {
    fn from(Shortage { need, budget, smallest, largest, .. }: Shortage) -> EngineError {
        EngineError::Budget { need, budget, smallest, largest }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::path::Path;

    use remote_vae_model::Model;

    use super::*;
    use crate::{CpuEngine, Engine, EngineOptions, PlanRequest};

    fn key(side: usize) -> Key {
        let input = [1, 4, 1, side, side];
        let (operation, start, precision) = (Operation::Decode, Start::Clip, Precision::Exact);
        let delivery = Delivery::Whole;
        Key { operation, still: false, input, start, precision, delivery, beside: None, work_budget: None }
    }

    fn refused(plans: &Plans, side: usize, made: &Cell<usize>) {
        let outcome = plans.get_or_make(key(side), true, |_, _| {
            made.set(made.get() + 1);
            Err(EngineError::Budget { need: side, budget: 1, smallest: 2, largest: None })
        });
        assert!(matches!(outcome, Err(EngineError::Budget { need, .. }) if need == side));
    }

    #[test]
    fn the_latest_are_kept() {
        let (plans, made) = (Plans::default(), Cell::new(0));
        for side in 0..Plans::MOST {
            refused(&plans, side, &made);
        }
        refused(&plans, 0, &made);
        assert_eq!(made.get(), Plans::MOST);
        refused(&plans, Plans::MOST, &made);
        assert!(plans.knows(&key(0), true) && !plans.knows(&key(1), true));
        refused(&plans, 1, &made);
        assert_eq!(made.get(), Plans::MOST + 2);
        assert_eq!(plans.known.lock().unwrap().len(), Plans::MOST);
    }

    #[test]
    fn errors_that_are_found_quickly_are_not_kept() {
        let plans = Plans::default();
        assert!(plans.get_or_make(key(1), true, |_, _| Err(EngineError::Cancelled)).is_err());
        assert!(!plans.knows(&key(1), true));
    }

    #[test]
    fn those_who_keep_something_share_a_plan_that_has_room_for_it() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny");
        let model = Model::open(&path).unwrap();
        let engine = CpuEngine::new(EngineOptions { threads: Some(1), ..EngineOptions::default() }).unwrap();
        let made = RefCell::new(Vec::new());
        let rows = |kept_per_pixel| Delivery::Rows { kept_per_pixel };
        let make = |asked: &Key, _: bool| {
            made.borrow_mut().push(asked.delivery);
            let graph = model.require_decoder()?;
            engine.plan_part(PlanRequest {
                delivery: asked.delivery,
                ..PlanRequest::whole(graph, key(8).input, Precision::Exact)
            })
        };
        let plan = make(&Key { delivery: rows(0), ..key(8) }, true).unwrap();
        let ([.., height, width], peak) = (plan.output, plan.summary().peak_bytes);
        let room_for = |kept: usize| Some((peak + kept * height * width) as u64);
        let forms = |plans: &Plans, work_budget, all: &[usize]| {
            let key = |kept| Key { delivery: rows(kept), work_budget, ..key(8) };
            made.borrow_mut().clear();
            let get = |kept: &usize| {
                let plan = plans.get_or_make(key(*kept), true, make).unwrap();
                assert!(plans.knows(&key(*kept), true));
                plan
            };
            let found: Vec<_> = all.iter().map(get).collect();
            (found, made.take(), plans.known.lock().unwrap().len())
        };
        for budget in [None, room_for(12)] {
            let plans = Plans::default();
            let (found, made, known) = forms(&plans, budget, &[3, 12, 0, 6, 3]);
            assert!(found.iter().all(|plan| Arc::ptr_eq(plan, &found[0])));
            assert_eq!((made, known), (vec![rows(0)], 1));
        }
        let plans = Plans::default();
        let (found, made, known) = forms(&plans, room_for(6), &[12, 6, 12, 3]);
        assert!(Arc::ptr_eq(&found[0], &found[2]) && Arc::ptr_eq(&found[1], &found[3]));
        assert!(!Arc::ptr_eq(&found[0], &found[1]));
        assert_eq!((made, known), (vec![rows(0), rows(12)], 2));
        // Whoever holds a plan of its own runs by it when the other is forgotten.
        plans.known.lock().unwrap().retain(|(key, _)| key.delivery == rows(12));
        let (found, made, _) = forms(&plans, room_for(6), &[12]);
        assert!(Arc::strong_count(&found[0]) > 1 && made.is_empty());
    }

    #[test]
    fn a_refusal_beside_what_is_kept_is_its_own() {
        let (plans, rows) = (Plans::default(), |kept_per_pixel| Delivery::Rows { kept_per_pixel });
        let key = |kept| Key { delivery: rows(kept), work_budget: Some(1), ..key(8) };
        let made = Cell::new(0);
        let need = |kept: usize| {
            let make = |asked: &Key, _: bool| {
                made.set(made.get() + 1);
                let need = 100 + asked.delivery.kept_bytes(1, 1);
                Err(EngineError::Budget { need, budget: 1, smallest: 2, largest: None })
            };
            match plans.get_or_make(key(kept), true, make) {
                Err(EngineError::Budget { need, .. }) => need,
                other => panic!("{other:?}"),
            }
        };
        assert!(!plans.knows(&key(3), true));
        assert_eq!([3, 0, 3, 12].map(need), [103, 100, 103, 112]);
        // That of what keeps nothing first without the largest picture, which nobody had asked for.
        assert_eq!(made.get(), 4);
        assert!([0, 3, 12].iter().all(|kept| plans.knows(&key(*kept), true)) && !plans.knows(&key(6), true));
    }

    #[test]
    fn the_largest_picture_is_looked_for_only_where_it_is_asked_for() {
        let (plans, sought) = (Plans::default(), RefCell::new(Vec::new()));
        let largest = |key: Key, seeks_largest: bool| {
            let outcome = plans.get_or_make(key, seeks_largest, |_, seeks| {
                sought.borrow_mut().push(seeks);
                let largest = seeks.then_some([8, 8]);
                Err(EngineError::Budget { need: 3, budget: 1, smallest: 2, largest })
            });
            match outcome {
                Err(EngineError::Budget { largest, .. }) => (largest, sought.take()),
                other => panic!("{other:?}"),
            }
        };
        let beside = Some(Beside { always: 1, ..Beside::default() });
        let part = Key { beside, work_budget: Some(1), ..key(8) };
        // Of that beside nothing only whether there is a plan counts.
        assert_eq!(largest(part, false), (None, vec![false, false]));
        assert!(plans.knows(&part, false) && !plans.knows(&part, true));
        assert_eq!(largest(part, true), (Some([8, 8]), vec![true]));
        for seeks in [true, false] {
            assert!(plans.knows(&part, seeks));
            assert_eq!(largest(part, seeks), (Some([8, 8]), vec![]));
        }
        assert_eq!(largest(part.alone(), true), (Some([8, 8]), vec![true]));
    }
}
