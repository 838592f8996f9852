//! Order, shares and bounds of the line, without clock or threads: what `docs/reliability.md` promises.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

type Numbers = Line<u32, u64>;

/// Serves everything; the numbers in order.
fn drain(line: &mut Numbers) -> Vec<u64> {
    let next = || {
        let due = line.next()?;
        line.finish(due.id, true);
        Some(due.id)
    };
    std::iter::from_fn(next).collect()
}

fn line(jobs: &[(u32, u64)]) -> Numbers {
    let mut line = Numbers::default();
    for (id, &(client, cost)) in jobs.iter().enumerate() {
        line.push(client, id as u64, cost, id as u64);
    }
    line
}

#[test]
fn equal_jobs_are_served_in_order_of_arrival() {
    assert_eq!(drain(&mut line(&[(1, 5); 6])), [0, 1, 2, 3, 4, 5]);
    assert_eq!(drain(&mut line(&[(1, 5), (2, 5), (3, 5)])), [0, 1, 2]);
}

#[test]
fn a_flood_does_not_delay_others() {
    let mut jobs = vec![(1, 10); 50];
    jobs.extend([(2, 10), (3, 10), (2, 10)]);
    let order = drain(&mut line(&jobs));
    let place = |id: u64| order.iter().position(|&found| found == id).unwrap();
    assert!(place(50) <= 2 && place(51) <= 2 && place(52) <= 5, "{order:?}");
    assert_eq!(line(&jobs).forecast(usize::MAX, |_| ()).iter().map(|due| due.id).collect::<Vec<_>>(), order);
}

#[test]
fn small_work_passes_large_work_of_its_own_client_and_of_others() {
    assert_eq!(drain(&mut line(&[(1, 1000), (1, 3), (1, 3)])), [1, 2, 0]);
    assert_eq!(drain(&mut line(&[(1, 1000), (2, 3), (2, 3)])), [1, 2, 0]);
}

#[test]
fn a_large_job_is_served_however_many_small_ones_keep_coming() {
    for own in [true, false] {
        let mut line = line(&[(0, 1000)]);
        let (mut id, mut served) = (1, 0_u64);
        // Four clients, or one, of which each always has a small job waiting.
        loop {
            for client in if own { [0; 4] } else { [1, 2, 3, 4] } {
                if line.len_of(&client) < if own { 4 } else { 1 } {
                    line.push(client, id, 10, id);
                    id += 1;
                }
            }
            let due = line.next().unwrap();
            line.finish(due.id, true);
            if due.id == 0 {
                break;
            }
            served += due.cost;
        }
        assert!(served <= 4 * (1000 + 10) + 10, "{served}");
        assert!(served >= 900, "it was not passed at all: {served}");
    }
}

#[test]
fn a_leaver_is_not_charged() {
    let mut line = line(&[(1, 100), (1, 100), (2, 100), (2, 100)]);
    assert_eq!((line.remove(&1, 0), line.remove(&1, 7), line.len()), (Some(0), None, 3));
    assert_eq!(drain(&mut line), [1, 2, 3]);
    // One that ran and was given up pays for what was done.
    let mut line = Numbers::default();
    line.push(1, 0, 100, 0);
    assert_eq!(line.next().unwrap().id, 0);
    line.advance(0, 10);
    line.finish(0, false);
    line.push(1, 1, 10, 1);
    line.push(2, 2, 21, 2);
    assert_eq!(drain(&mut line), [1, 2]);
}

#[test]
fn idling_saves_up_nothing() {
    let mut line = line(&[(1, 10); 20]);
    for _ in 0..10 {
        let due = line.next().unwrap();
        line.finish(due.id, true);
    }
    for id in 100..110 {
        line.push(2, id, 10, id);
    }
    let order = drain(&mut line);
    let of_newcomer = order[..10].iter().filter(|&&id| id >= 100).count();
    assert!((4..=6).contains(&of_newcomer), "{order:?}");
}

#[test]
fn short_jobs_run_between_the_steps_of_a_long_one_at_its_own_pace() {
    for client in [1, 2] {
        let mut line = Numbers::default();
        line.push(1, 0, 1000, 0);
        assert_eq!(line.next().unwrap().id, 0);
        assert_eq!(line.next_between_steps(|_| true), None);
        line.push(client, 1, 50, 1);
        assert_eq!(line.next_between_steps(|_| true), None, "the long job has done nothing since");
        line.advance(0, 49);
        assert_eq!(line.next_between_steps(|_| true), None);
        line.advance(0, 50);
        assert_eq!(line.next_between_steps(|_| false), None, "there is no room");
        assert_eq!(line.next_between_steps(|_| true).unwrap().id, 1);
        line.push(client, 2, 1, 2);
        assert_eq!(line.next_between_steps(|_| true), None, "one at a time");
        line.finish(1, true);
        line.advance(0, 900);
        line.push(client, 3, 26, 3);
        line.advance(0, 950);
        assert_eq!(line.next_between_steps(|_| true).unwrap().id, 2);
        line.finish(2, true);
        assert_eq!(line.next_between_steps(|_| true), None, "more than a quarter of what is left");
        line.finish(0, true);
        assert_eq!(drain(&mut line), [3]);
    }
}

#[test]
fn a_running_job_keeps_its_share_against_a_stream_of_short_ones() {
    for clients in [[1, 1, 1], [2, 2, 2], [2, 3, 4]] {
        let mut line = Numbers::default();
        line.push(1, 0, 10_000, 0);
        line.next().unwrap();
        let (mut id, mut short) = (1, 0);
        for done in 1..7_000 {
            for client in clients {
                if line.len() < 3 {
                    line.push(client, id, 20, id);
                    id += 1;
                }
            }
            line.advance(0, done);
            while let Some(due) = line.next_between_steps(|_| true) {
                short += due.cost;
                line.finish(due.id, true);
                line.push(due.client, id, 20, id);
                id += 1;
                assert!(short <= 3 * (done + 20), "{short} of {done}");
            }
        }
        assert!(short >= 6_000, "short jobs hardly ran: {short}");
    }
}

#[test]
fn two_hundred_clients_of_different_sizes_get_the_same_work_done() {
    let mut line = Numbers::default();
    let cost = |client: u32| [1, 4, 9, 16][client as usize % 4];
    let mut id = 0;
    let mut push = |line: &mut Numbers, client: u32| {
        line.push(client, id, cost(client), id);
        id += 1;
    };
    (0..200).for_each(|client| push(&mut line, client));
    let mut work: HashMap<u32, u64> = HashMap::new();
    for _ in 0..100_000 {
        let due = line.next().unwrap();
        line.finish(due.id, true);
        *work.entry(due.client).or_default() += due.cost;
        push(&mut line, due.client);
    }
    let (least, most) = (work.values().min().unwrap(), work.values().max().unwrap());
    assert!(work.len() == 200 && *most as f64 / *least as f64 <= 1.05, "{least} to {most}");
}

/// What happens to a line.
#[derive(Debug, Clone)]
enum Event {
    Push(u32, u64),
    Serve,
    Leave(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let cost = prop_oneof![1_u64..20, 1_u64..1000];
    let event = prop_oneof![
        4 => (0_u32..6, cost).prop_map(|(client, cost)| Event::Push(client, cost)),
        3 => Just(Event::Serve),
    ];
    let withdrawal = prop_oneof![8 => event.clone(), 1 => (0_usize..50).prop_map(Event::Leave)];
    prop_oneof![proptest::collection::vec(event, 1..300), proptest::collection::vec(withdrawal, 1..300)]
}

/// A waiting job and what was served since it came.
struct Waiter {
    client: u32,
    id: u64,
    cost: u64,
    /// By client.
    served: HashMap<u32, u64>,
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Between its arrival and its turn no other client is served more than what the job's own client is served, with it,
    /// and one job more; two if jobs were withdrawn.
    #[test]
    fn nobody_waits_for_more_than_a_fair_share(events in events()) {
        const LARGEST: u64 = 1000;
        let withdrawn = events.iter().any(|event| matches!(event, Event::Leave(_)));
        let more = LARGEST * if withdrawn { 2 } else { 1 };
        let mut line = Numbers::default();
        let (mut waiters, mut next_id): (Vec<Waiter>, u64) = (Vec::new(), 0);
        let rest = std::iter::repeat_n(Event::Serve, 300);
        for event in events.into_iter().chain(rest) {
            match event {
                Event::Push(client, cost) => {
                    line.push(client, next_id, cost, next_id);
                    waiters.push(Waiter { client, id: next_id, cost, served: HashMap::new() });
                    next_id += 1;
                }
                Event::Leave(index) if index < waiters.len() => {
                    let Waiter { client, id, .. } = waiters.remove(index);
                    prop_assert_eq!(line.remove(&client, id), Some(id));
                }
                Event::Leave(_) => {}
                Event::Serve => {
                    let Some(due) = line.next() else {
                        prop_assert!(waiters.is_empty());
                        continue;
                    };
                    line.finish(due.id, true);
                    let served = waiters.remove(waiters.iter().position(|waiter| waiter.id == due.id).unwrap());
                    let own = served.served.get(&due.client).copied().unwrap_or(0) + served.cost;
                    for (client, work) in &served.served {
                        prop_assert!(*client == due.client || *work <= own + more, "{} of {}", work, own);
                    }
                    for waiter in &mut waiters {
                        *waiter.served.entry(due.client).or_default() += due.cost;
                    }
                }
            }
        }
        prop_assert!(waiters.is_empty() && line.len() == 0);
    }
}
