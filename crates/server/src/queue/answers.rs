//! The memory for answers, from admission until they are sent, and whose they are.

use std::collections::HashMap;

use super::job::Client;

/// Bytes of all answers, and of each client's.
#[derive(Debug, Default)]
pub(super) struct Answers {
    total: u64,
    of: HashMap<Client, u64>,
}

impl Answers {
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Takes room for an answer, or tells how many bytes would have to be given back first.
    ///
    /// The last quarter of `limit` is for clients that have no answer here, and for those that would not hold more than an
    /// equal share, one for each that holds something and one for the next to come. An answer that alone is larger than
    /// the limit is taken when there is no other: it could never be otherwise.
    pub(super) fn take(&mut self, client: &Client, bytes: u64, limit: u64) -> Result<(), u64> {
        let own = self.of.get(client).copied();
        let holders = (self.of.len() + usize::from(own.is_none())) as u64;
        let share = limit / (holders + 1);
        let is_modest = own.is_none_or(|own| own.saturating_add(bytes) <= share);
        let open = if is_modest { limit } else { limit - limit / 4 };
        let together = self.total.saturating_add(bytes);
        if self.total > 0 && together > open {
            return Err((together - open).min(self.total));
        }
        self.total = together;
        *self.of.entry(client.clone()).or_default() += bytes;
        Ok(())
    }

    pub(super) fn give_back(&mut self, client: &Client, bytes: u64) {
        self.total = self.total.saturating_sub(bytes);
        if let Some(own) = self.of.get_mut(client) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                self.of.remove(client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> Client {
        Client::Key(name.into())
    }

    #[test]
    fn one_client_cannot_have_all() {
        let (mut answers, limit) = (Answers::default(), 1000);
        let mut taken = 0;
        while answers.take(&client("greedy"), 50, limit).is_ok() {
            taken += 50;
        }
        assert_eq!(taken, 750);
        assert_eq!(answers.take(&client("greedy"), 100, limit), Err(100));
        // Two others share what is left, and the greedy one gets nothing of it.
        assert_eq!(answers.take(&client("a"), 100, limit), Ok(()));
        assert_eq!(answers.take(&client("a"), 100, limit), Ok(()));
        assert_eq!(answers.take(&client("b"), 50, limit), Ok(()));
        assert_eq!(answers.take(&client("b"), 1, limit), Err(1));
        assert_eq!((answers.total(), answers.take(&client("c"), 30, limit)), (1000, Err(30)));
        // Not until it is below three quarters again.
        answers.give_back(&client("greedy"), 250);
        assert_eq!(answers.take(&client("greedy"), 1, limit), Err(1));
        assert_eq!(answers.take(&client("c"), 200, limit), Ok(()));
    }

    #[test]
    fn the_largest_is_taken_alone() {
        let mut answers = Answers::default();
        assert_eq!(answers.take(&client("a"), 5000, 1000), Ok(()));
        assert_eq!(answers.take(&client("b"), 1, 1000), Err(4001));
        answers.give_back(&client("a"), 5000);
        assert_eq!((answers.total(), answers.of.len()), (0, 0));
    }
}
