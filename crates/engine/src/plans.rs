//! Plans that were made before. Who asks for the same size again waits for no search; nor does work that was admitted by a
//! plan and holds it until it runs by it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use remote_vae_model::Start;
use remote_vae_wire::Operation;

use crate::{Delivery, EngineError, Plan, Precision};

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
    /// Bytes that work might hold.
    pub work_budget: Option<u64>,
}

/// The fields of [`EngineError::Budget`].
#[derive(Clone, Copy)]
struct Shortage {
    need: usize,
    budget: usize,
    smallest: usize,
    largest: Option<[usize; 2]>,
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

    /// Whether the plan, or that there is none, is known.
    pub(crate) fn knows(&self, key: &Key) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|(known, _)| known == key)
    }

    /// The plan for `key`, made by `make` unless it is known. What no budget can hold is remembered too; other errors are
    /// found quickly and are not.
    pub(crate) fn get_or_make(
        &self,
        key: Key,
        make: impl FnOnce() -> Result<Plan, EngineError>,
    ) -> Result<Arc<Plan>, EngineError> {
        if let Some(outcome) = self.latest(&key) {
            return outcome.map_err(EngineError::from);
        }
        // Not under the lock: others need not wait for a search.
        let outcome = match make() {
            Ok(plan) => Ok(Arc::new(plan)),
            Err(EngineError::Budget { need, budget, smallest, largest }) => {
                Err(Shortage { need, budget, smallest, largest })
            }
            Err(error) => return Err(error),
        };
        self.keep(key, outcome.clone());
        outcome.map_err(EngineError::from)
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

impl From<Shortage> for EngineError {
    fn from(Shortage { need, budget, smallest, largest }: Shortage) -> EngineError {
        EngineError::Budget { need, budget, smallest, largest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(side: usize) -> Key {
        let input = [1, 4, 1, side, side];
        let (operation, start, precision) = (Operation::Decode, Start::Clip, Precision::Exact);
        let delivery = Delivery::Whole;
        Key { operation, still: false, input, start, precision, delivery, work_budget: None }
    }

    fn refused(plans: &Plans, side: usize, made: &mut usize) {
        let outcome = plans.get_or_make(key(side), || {
            *made += 1;
            Err(EngineError::Budget { need: side, budget: 1, smallest: 2, largest: None })
        });
        assert!(matches!(outcome, Err(EngineError::Budget { need, .. }) if need == side));
    }

    #[test]
    fn the_latest_are_kept() {
        let (plans, mut made) = (Plans::default(), 0);
        for side in 0..Plans::MOST {
            refused(&plans, side, &mut made);
        }
        refused(&plans, 0, &mut made);
        assert_eq!(made, Plans::MOST);
        refused(&plans, Plans::MOST, &mut made);
        assert!(plans.knows(&key(0)) && !plans.knows(&key(1)));
        refused(&plans, 1, &mut made);
        assert_eq!(made, Plans::MOST + 2);
        assert_eq!(plans.known.lock().unwrap().len(), Plans::MOST);
    }

    #[test]
    fn errors_that_are_found_quickly_are_not_kept() {
        let plans = Plans::default();
        assert!(plans.get_or_make(key(1), || Err(EngineError::Cancelled)).is_err());
        assert!(!plans.knows(&key(1)));
    }
}
