//! Turns at short work beside the engine, such as previews: a few at one time, in an order that is fair between clients as
//! the engine's is, and a bounded number that wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::fair::Line;
use crate::queue::{Client, NoPlace};

/// What a client is told that finds no place: these jobs take milliseconds.
const RETRY: Duration = Duration::from_secs(1);

/// Work under way and in line.
pub(crate) struct Turns {
    most_waiting: usize,
    state: Mutex<State>,
}

struct State {
    line: Line<Client, oneshot::Sender<()>>,
    free: usize,
    next_id: u64,
}

impl State {
    /// Whoever has left meanwhile gives the turn back as its [`Turn`] is dropped.
    fn hand_out(&mut self) {
        while self.free > 0 {
            let Some(due) = self.line.next() else { return };
            self.free -= 1;
            let _ = due.job.send(());
        }
    }
}

/// A turn, or a place in the line for one; dropping it lets the next one in.
pub(crate) struct Turn {
    turns: Arc<Turns>,
    client: Client,
    id: u64,
}

impl Turns {
    /// `at_once` are under way at one time, `most_waiting` may wait.
    pub(crate) fn new(at_once: usize, most_waiting: usize) -> Arc<Self> {
        let state = Mutex::new(State { line: Line::default(), free: at_once.max(1), next_id: 0 });
        Arc::new(Self { most_waiting, state })
    }

    /// No code that can panic runs under the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn at work of this cost. As in the queue, the last quarter of the places is for clients that have none,
    /// and `limit` is how many a client may have.
    pub(crate) async fn take(
        self: &Arc<Self>,
        client: &Client,
        limit: Option<usize>,
        cost: u64,
    ) -> Result<Turn, NoPlace> {
        let (sender, receiver) = oneshot::channel();
        let turn = {
            let mut state = self.lock();
            let (all, own, most) = (state.line.len(), state.line.len_of(client), self.most_waiting);
            if all >= most {
                return Err(NoPlace::Full { retry_after: RETRY });
            }
            if own > 0 && all >= most - most / 4 {
                return Err(NoPlace::Kept { retry_after: RETRY });
            }
            if let Some(limit) = limit.filter(|&limit| own >= limit) {
                return Err(NoPlace::OwnLimit { limit, retry_after: RETRY });
            }
            let id = state.next_id;
            state.next_id += 1;
            state.line.push(client.clone(), id, cost, sender);
            state.hand_out();
            Turn { turns: Arc::clone(self), client: client.clone(), id }
        };
        // The sender is dropped only once it was used.
        let _ = receiver.await;
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        if state.line.remove(&self.client, self.id).is_none() {
            state.line.finish(self.id, true);
            state.free += 1;
            state.hand_out();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> Client {
        Client::Key(name.into())
    }

    #[tokio::test]
    async fn clients_take_turns_and_places_are_bounded() {
        let turns = Turns::new(1, 8);
        let first = turns.take(&client("flood"), None, 10).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let waits = |name: &'static str| {
            let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
            tokio::spawn(async move {
                let turn = turns.take(&client(name), None, 10).await;
                order.lock().unwrap().push(name);
                turn.map(drop)
            })
        };
        let until = async |count: usize| {
            while turns.lock().line.len() < count {
                tokio::task::yield_now().await;
            }
        };
        let mut tasks = Vec::new();
        for count in 1..=6 {
            tasks.push(waits("flood"));
            until(count).await;
        }
        let refused = turns.take(&client("flood"), None, 10).await.err();
        assert_eq!(refused, Some(NoPlace::Kept { retry_after: RETRY }));
        let own = turns.take(&client("flood"), Some(2), 10).await.err();
        assert_eq!(own, Some(NoPlace::Kept { retry_after: RETRY }));
        tasks.push(waits("a"));
        until(7).await;
        let gone = waits("b");
        until(8).await;
        assert_eq!(
            turns.take(&client("c"), None, 10).await.err(),
            Some(NoPlace::Full { retry_after: RETRY })
        );
        // Whoever leaves the line frees the place.
        gone.abort();
        let _ = gone.await;
        assert_eq!(turns.lock().line.len(), 7);
        drop(first);
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let place = order.lock().unwrap().iter().position(|name| *name == "a").unwrap();
        assert!(place <= 1, "{order:?}");
        let state = turns.lock();
        assert_eq!((state.free, state.line.len()), (1, 0));
    }
}
