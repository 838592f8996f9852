//! The order in which jobs are served: fair between clients, small before large, and nobody waits for ever.
//!
//! No clock and no thread here: costs are whole numbers (floating-point operations of the plan), so the order is the same
//! on every machine. The policy, with what it guarantees, is in `docs/reliability.md`:
//!
//! - **Between clients**: self-clocked fair queueing (Golestani, 1994). Every client has a tag, the virtual time up to
//!   which it was served. The client goes next whose tag plus the cost of its next job is smallest; its tag grows by that
//!   cost. A client that comes back starts at the present virtual time: idling saves up nothing.
//! - **Among one client's jobs**: the smallest `work served to the client when the job came + the job's cost` goes next.
//!   A job can be passed only by jobs that cost less and came before the client was served as much work as the job costs.
//! - **Between the steps of a running job** another job may run whose turn has come by the virtual time that the running
//!   job has used up, if it costs at most a quarter of what is left of the running one.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// A running job lets only jobs pass that cost at most this fraction of what is left of it.
const INTERLUDE_SHARE: u64 = 4;

/// A job that is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due<C, T> {
    pub(crate) client: C,
    pub(crate) id: u64,
    pub(crate) cost: u64,
    pub(crate) job: T,
}

#[derive(Debug)]
struct Waiting<T> {
    cost: u64,
    job: T,
}

/// One client's jobs and account.
#[derive(Debug)]
struct Flow<T> {
    /// Virtual time up to which the client was served, or will have been once its running job ends.
    tag: u128,
    /// Cost of all its finished jobs: the clock of its own line.
    work: u128,
    /// By `work` on arrival plus cost, then in order of arrival.
    jobs: BTreeMap<(u128, u64), Waiting<T>>,
}

impl<T> Flow<T> {
    fn best(&self) -> Option<((u128, u64), u64)> {
        self.jobs.first_key_value().map(|(&key, waiting)| (key, waiting.cost))
    }
}

/// A job that was taken and has not ended.
#[derive(Debug)]
struct Running<C> {
    client: C,
    id: u64,
    cost: u64,
    done: u64,
    /// The client's tag before this job.
    start: u128,
}

/// Jobs in line. `C` names a client, `T` is the job.
#[derive(Debug)]
pub(crate) struct Line<C, T> {
    flows: HashMap<C, Flow<T>>,
    /// Never goes back.
    virtual_time: u128,
    /// The last one runs between steps of those before it.
    running: Vec<Running<C>>,
    waiting: usize,
}

impl<C, T> Default for Line<C, T> {
    fn default() -> Self {
        Self { flows: HashMap::new(), virtual_time: 0, running: Vec::new(), waiting: 0 }
    }
}

impl<C: Clone + Eq + Hash + Ord, T> Line<C, T> {
    /// Jobs that wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    /// Jobs of one client that wait.
    pub(crate) fn len_of(&self, client: &C) -> usize {
        self.flows.get(client).map_or(0, |flow| flow.jobs.len())
    }

    /// Puts a job in line. `id` is larger than those of all jobs before it.
    pub(crate) fn push(&mut self, client: C, id: u64, cost: u64, job: T) {
        let (now, done) = (self.virtual_time, self.running_work_of(&client));
        let flow =
            self.flows.entry(client).or_insert_with(|| Flow { tag: now, work: 0, jobs: BTreeMap::new() });
        if flow.jobs.is_empty() {
            flow.tag = flow.tag.max(now);
        }
        let cost = cost.max(1);
        flow.jobs.insert((flow.work + u128::from(done) + u128::from(cost), id), Waiting { cost, job });
        self.waiting += 1;
    }

    /// Takes a job out of the line, as if it had never come.
    pub(crate) fn remove(&mut self, client: &C, id: u64) -> Option<T> {
        let flow = self.flows.get_mut(client)?;
        let key = *flow.jobs.keys().find(|(_, found)| *found == id)?;
        let waiting = flow.jobs.remove(&key)?;
        self.waiting -= 1;
        Some(waiting.job)
    }

    /// Takes all jobs out.
    pub(crate) fn clear(&mut self) -> Vec<T> {
        self.waiting = 0;
        let flows = std::mem::take(&mut self.flows);
        flows.into_values().flat_map(|flow| flow.jobs.into_values().map(|waiting| waiting.job)).collect()
    }

    /// The client whose next job ends first by virtual time, and when that is.
    fn first(&self) -> Option<(u128, &C)> {
        let finishes = self.flows.iter().filter_map(|(client, flow)| {
            // Of equal ones the job that came first.
            let ((_, id), cost) = flow.best()?;
            Some((flow.tag + u128::from(cost), id, client))
        });
        finishes.min().map(|(finish, _, client)| (finish, client))
    }

    /// The next job, which is running from now on. Nothing else may be running.
    pub(crate) fn next(&mut self) -> Option<Due<C, T>> {
        self.forget_idle();
        let client = self.first()?.1.clone();
        self.take(client)
    }

    /// A job that may run before the next step of the running one, and is running from now on; `fits` tells whether
    /// there is room for it beside the running one.
    pub(crate) fn next_between_steps(&mut self, fits: impl Fn(&T) -> bool) -> Option<Due<C, T>> {
        let [running] = &self.running[..] else { return None };
        let left = running.cost.saturating_sub(running.done);
        let own = self.flows.get(&running.client).and_then(|flow| {
            let ((key, _), _) = flow.best()?;
            let clock = flow.work + u128::from(running.done);
            (key <= clock).then(|| running.client.clone())
        });
        let other =
            self.first().filter(|(finish, _)| *finish <= self.virtual_time).map(|(_, client)| client.clone());
        let client = [other, own].into_iter().flatten().find(|client| {
            let best = self.flows.get(client).and_then(|flow| flow.jobs.values().next());
            best.is_some_and(|waiting| waiting.cost <= left / INTERLUDE_SHARE && fits(&waiting.job))
        })?;
        self.take(client)
    }

    fn take(&mut self, client: C) -> Option<Due<C, T>> {
        let flow = self.flows.get_mut(&client)?;
        let ((_, id), Waiting { cost, job }) = flow.jobs.pop_first()?;
        self.waiting -= 1;
        let start = flow.tag;
        flow.tag += u128::from(cost);
        self.running.push(Running { client: client.clone(), id, cost, done: 0, start });
        self.pass(start);
        Some(Due { client, id, cost, job })
    }

    /// The running job has come to `done` of its cost.
    pub(crate) fn advance(&mut self, id: u64, done: u64) {
        let Some(running) = self.running.iter_mut().find(|running| running.id == id) else { return };
        running.done = done.clamp(running.done, running.cost);
        let time = running.start + u128::from(running.done);
        self.pass(time);
    }

    /// The running job ended; `whole` if it was not given up. What was not done is not charged.
    pub(crate) fn finish(&mut self, id: u64, whole: bool) {
        let Some(index) = self.running.iter().position(|running| running.id == id) else { return };
        let Running { client, cost, done, start, .. } = self.running.remove(index);
        let spent = if whole { cost } else { done };
        // What runs between the steps of a job of the same client must not bring the turn of more of it nearer: else two
        // streams of small jobs could keep the large one from its next step for ever.
        let own_interlude = self.running.iter().any(|below| below.client == client);
        if let Some(flow) = self.flows.get_mut(&client) {
            if !own_interlude {
                flow.work += u128::from(spent);
            }
            flow.tag = flow.tag.saturating_sub(u128::from(cost - spent));
        }
        self.pass(start + u128::from(spent));
    }

    fn pass(&mut self, time: u128) {
        self.virtual_time = self.virtual_time.max(time);
    }

    /// Forgets clients whose account says no more than a new one's would.
    fn forget_idle(&mut self) {
        let (now, running) = (self.virtual_time, &self.running);
        self.flows.retain(|client, flow| {
            !flow.jobs.is_empty() || flow.tag > now || running.iter().any(|running| running.client == *client)
        });
    }

    fn running_work_of(&self, client: &C) -> u64 {
        self.running.iter().find(|running| running.client == *client).map_or(0, |running| running.done)
    }

    /// The cost of all waiting jobs.
    pub(crate) fn total(&self) -> u64 {
        let jobs = self.flows.values().flat_map(|flow| flow.jobs.values());
        jobs.fold(0, |sum, waiting| sum.saturating_add(waiting.cost))
    }

    /// What is left of the running jobs.
    pub(crate) fn left(&self) -> u64 {
        self.running.iter().fold(0, |sum, running| sum.saturating_add(running.cost - running.done))
    }

    /// The first `count` of the waiting jobs, in the order in which they will be served if no other comes, each with what
    /// `tell` says of it.
    pub(crate) fn forecast<U>(&self, count: usize, tell: impl Fn(&T) -> U) -> Vec<Due<C, U>> {
        let told = |flow: &Flow<T>| flow.told(&tell);
        let mut copy: Line<C, U> = Line {
            flows: self.flows.iter().map(|(client, flow)| (client.clone(), told(flow))).collect(),
            virtual_time: self.virtual_time,
            running: Vec::new(),
            waiting: self.waiting,
        };
        let next = || {
            let due = copy.next()?;
            copy.finish(due.id, true);
            Some(due)
        };
        std::iter::from_fn(next).take(count).collect()
    }
}

impl<T> Flow<T> {
    fn told<U>(&self, tell: impl Fn(&T) -> U) -> Flow<U> {
        let told = |waiting: &Waiting<T>| Waiting { cost: waiting.cost, job: tell(&waiting.job) };
        Flow {
            tag: self.tag,
            work: self.work,
            jobs: self.jobs.iter().map(|(&key, waiting)| (key, told(waiting))).collect(),
        }
    }
}

#[cfg(test)]
#[path = "fair_tests.rs"]
mod tests;
