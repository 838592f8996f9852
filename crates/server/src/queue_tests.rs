//! Bounds, cancellation, deadlines and faults of queue and worker together, with work that the tests control.

use std::sync::mpsc;

use remote_vae_engine::{EngineError, Progress};

use remote_vae_wire::Operation;

use super::*;
use crate::body::ByteBudget;
use crate::memory::Need;
use crate::worker;

fn tensor(value: f32) -> Output {
    Output::Latents(Tensor { values: vec![value], shape: [1, 1, 1, 1] })
}

fn client(name: &str) -> Client {
    Client::Key(name.into())
}

const COST: Cost = Cost { flops: 100, peak_bytes: 10, answer_bytes: 4, kept: false };

fn started(jobs: usize) -> (Arc<Queue>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let bounds = Bounds { jobs, answer_bytes: 1000, peak_bytes: Some(100) };
    let queue = Queue::new(bounds, Arc::clone(&metrics));
    worker::start(Arc::clone(&queue), Arc::clone(&metrics), || {}).unwrap();
    (queue, metrics)
}

fn submit(queue: &Arc<Queue>, name: &str, cost: Cost, work: Work) -> Ticket {
    queue.reserve(&client(name), None).unwrap().submit(cost, None, None, work).unwrap()
}

/// Occupies the engine until the sender is used or dropped.
fn block(queue: &Arc<Queue>) -> (mpsc::Sender<()>, Ticket) {
    let (sender, receiver) = mpsc::channel();
    let (begun_sender, begun) = mpsc::channel();
    let work: Work = Box::new(move |_| {
        begun_sender.send(()).unwrap();
        let _ = receiver.recv();
        Ok(tensor(-1.0))
    });
    let ticket = submit(queue, "blocker", COST, work);
    begun.recv().unwrap();
    (sender, ticket)
}

fn note(queue: &Arc<Queue>, name: &str, log: &Arc<Mutex<Vec<usize>>>, number: usize) -> Ticket {
    let log = Arc::clone(log);
    let work: Work = Box::new(move |_| {
        log.lock().unwrap().push(number);
        Ok(tensor(number as f32))
    });
    submit(queue, name, COST, work)
}

fn has(metrics: &Metrics, queue: &Queue, line: &str) -> bool {
    metrics.render(queue.occupancy(), 0).lines().any(|found| found == line)
}

#[tokio::test]
async fn jobs_run_in_order_and_who_leaves_frees_the_place() {
    let (queue, metrics) = started(5);
    let (release, first) = block(&queue);
    let log = Arc::default();
    let mut tickets: Vec<Ticket> = (0..4).map(|number| note(&queue, "a", &log, number)).collect();
    drop(tickets.remove(2));
    let occupancy = queue.occupancy();
    assert_eq!((occupancy.waiting, occupancy.running, occupancy.answer_bytes), (3, 1, 16));
    tickets.push(note(&queue, "a", &log, 4));
    release.send(()).unwrap();
    assert_eq!(first.wait().await.result.unwrap(), tensor(-1.0));
    for ticket in tickets {
        assert!(ticket.wait().await.result.is_ok());
    }
    assert_eq!(*log.lock().unwrap(), [0, 1, 3, 4]);
    assert!(has(&metrics, &queue, "rvae_cancelled_total{stage=\"queued\"} 1"));
    assert_eq!(queue.occupancy().answer_bytes, 0);
    queue.close();
}

#[tokio::test]
async fn places_are_bounded_and_the_last_are_for_those_who_have_none() {
    let (queue, _) = started(4);
    let (release, running) = block(&queue);
    let (a, b, c) = (client("a"), client("b"), client("c"));
    let places: Vec<Place> = (0..3).map(|_| queue.reserve(&a, None).unwrap()).collect();
    assert!(matches!(queue.reserve(&a, None), Err(NoPlace::Kept { .. })));
    let last = queue.reserve(&b, None).unwrap();
    assert!(matches!(queue.reserve(&c, None), Err(NoPlace::Full { .. })));
    drop(last);
    drop(places);
    let place = queue.reserve(&a, Some(1)).unwrap();
    assert!(matches!(queue.reserve(&a, Some(1)), Err(NoPlace::OwnLimit { limit: 1, .. })));
    drop((place, release));
    assert!(running.wait().await.result.is_ok() && queue.is_idle());
    queue.close();
}

#[tokio::test]
async fn answers_are_bounded_until_they_are_sent() {
    let (queue, _) = started(8);
    let cost = |answer_bytes| Cost { answer_bytes, ..COST };
    let work = || -> Work { Box::new(|_| Ok(tensor(0.0))) };
    let refused = |answer_bytes| {
        let place = queue.reserve(&client("a"), None).unwrap();
        // Nothing waits or runs that could make room.
        let refusal = place.submit(cost(answer_bytes), None, None, work()).err();
        refusal == Some(NoPlace::Answers { retry_after: None })
    };
    // Larger than the bound, but alone.
    let first = submit(&queue, "a", cost(5000), work());
    let charge = first.charge();
    assert!(first.wait().await.result.is_ok() && refused(1));
    charge.shrink_to(700);
    assert!(refused(301));
    let second = submit(&queue, "b", cost(300), work());
    drop(charge);
    assert_eq!(queue.occupancy().answer_bytes, 300);
    drop(second);
    assert_eq!(queue.occupancy().answer_bytes, 0);
    queue.close();
}

#[tokio::test]
async fn a_running_job_is_told_to_stop() {
    let (queue, metrics) = started(1);
    let (begun_sender, begun) = mpsc::channel();
    let (flag_sender, flag) = mpsc::channel::<Arc<AtomicBool>>();
    let (ended_sender, ended) = mpsc::channel();
    let work: Work = Box::new(move |control| {
        flag_sender.send(control.cancel_handle()).unwrap();
        begun_sender.send(()).unwrap();
        while !control.cancel_handle().load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        ended_sender.send(()).unwrap();
        Err(EngineError::Cancelled)
    });
    let ticket = submit(&queue, "a", COST, work);
    begun.recv().unwrap();
    drop(ticket);
    ended.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(flag.recv().unwrap().load(Ordering::Relaxed));
    assert!(has(&metrics, &queue, "rvae_cancelled_total{stage=\"running\"} 1"));
    // The queue is idle a moment before it is counted.
    let start = Instant::now();
    while !has(&metrics, &queue, "rvae_cancel_seconds_count 1") {
        assert!(start.elapsed() < Duration::from_secs(5));
        std::thread::yield_now();
    }
    assert!(queue.is_idle());
    queue.close();
}

#[tokio::test]
async fn expired_work_never_starts() {
    let (queue, _) = started(4);
    let (release, _running) = block(&queue);
    let ran = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ran);
    let work: Work = Box::new(move |_| {
        flag.store(true, Ordering::Relaxed);
        Ok(tensor(0.0))
    });
    let soon = Instant::now() + Duration::from_millis(20);
    let expired = queue.reserve(&client("a"), None).unwrap().submit(COST, Some(soon), None, work).unwrap();
    let after = note(&queue, "a", &Arc::default(), 1);
    std::thread::sleep(Duration::from_millis(25));
    drop(release);
    assert!(matches!(expired.wait().await.result, Err(JobError::Expired)));
    assert!(after.wait().await.result.is_ok() && !ran.load(Ordering::Relaxed));
    queue.close();
}

#[tokio::test]
async fn a_panic_costs_one_answer_and_the_engine_gets_a_new_thread() {
    let (queue, metrics) = started(4);
    let (sender, threads) = mpsc::channel();
    let named = || -> Work {
        let sender = sender.clone();
        Box::new(move |_| {
            sender.send(std::thread::current().id()).unwrap();
            Ok(tensor(0.0))
        })
    };
    assert!(submit(&queue, "a", COST, named()).wait().await.result.is_ok());
    let ticket = submit(&queue, "a", COST, Box::new(|_| panic!("on purpose")));
    assert!(matches!(ticket.wait().await.result, Err(JobError::Panicked)));
    assert!(submit(&queue, "a", COST, named()).wait().await.result.is_ok());
    assert_ne!(threads.recv().unwrap(), threads.recv().unwrap());
    assert!(has(&metrics, &queue, "rvae_worker_restarts_total 1"));
    queue.close();
}

#[tokio::test]
async fn closing_answers_those_who_wait() {
    let (queue, _) = started(4);
    let (release, running) = block(&queue);
    let waiting = note(&queue, "a", &Arc::default(), 1);
    queue.close();
    assert!(matches!(waiting.wait().await.result, Err(JobError::Stopped)));
    assert_eq!(queue.reserve(&client("a"), None).err(), Some(NoPlace::Closed));
    drop(release);
    assert!(running.wait().await.result.is_ok());
}

#[test]
fn the_wait_told_comes_from_the_work_ahead_and_the_rate_measured() {
    let bounds = Bounds { jobs: 4, answer_bytes: 1000, peak_bytes: None };
    let queue = Queue::new(bounds, Arc::new(Metrics::new()));
    queue.expect(1000, Duration::from_secs(10));
    let place = |name: &str, flops| {
        let place = queue.reserve(&client(name), None).unwrap();
        place.submit(Cost { flops, ..COST }, None, None, Box::new(|_| Ok(tensor(0.0)))).unwrap()
    };
    let tickets = [place("a", 400), place("b", 300), place("a", 500), place("c", 100)];
    // The engine takes c's; 100 operations at 100 a second.
    let job = queue.next().unwrap();
    let wait = |result: Result<Place, NoPlace>| match result.err().unwrap() {
        NoPlace::Full { retry_after } | NoPlace::Kept { retry_after } => retry_after.as_secs_f64(),
        NoPlace::OwnLimit { retry_after, .. } => retry_after.as_secs_f64(),
        other => panic!("{other:?}"),
    };
    assert_eq!(wait(queue.reserve(&client("a"), None)), 1.0);
    queue.lock().line.advance(job.id, 50);
    let fourth = place("d", 200);
    assert_eq!(wait(queue.reserve(&client("e"), None)), 0.5);
    // Until two have started the rest of the running one and d's have to be done.
    assert_eq!(wait(queue.reserve(&client("a"), None)), 2.5);
    assert_eq!(queue.occupancy().work_seconds, 14.5);
    drop((tickets, fourth, job));
}

#[test]
fn what_the_running_job_has_done_corrects_the_wait() {
    let bounds = Bounds { jobs: 4, answer_bytes: 1000, peak_bytes: None };
    let queue = Queue::new(bounds, Arc::new(Metrics::new()));
    // As if other programs had held up the first decode: a day for what takes no time.
    queue.expect(1, Duration::from_secs(10));
    let ticket = submit(&queue, "a", Cost { flops: 1_000_000, ..COST }, Box::new(|_| Ok(tensor(0.0))));
    let job = queue.next().unwrap();
    assert!(queue.until_done(job.id).unwrap() >= Duration::from_secs(86_400));
    job.meter.note(Progress { done_flops: 500_000, total_flops: 1_000_000, step: 1, steps: 2 });
    assert!(queue.until_done(job.id).unwrap() < Duration::from_secs(10_000));
    drop((ticket, job));
}

#[test]
fn who_finds_no_room_for_an_answer_is_told_when_jobs_will_have_made_it() {
    let bounds = Bounds { jobs: 8, answer_bytes: 1000, peak_bytes: None };
    let queue = Queue::new(bounds, Arc::new(Metrics::new()));
    queue.expect(100, Duration::from_secs(1));
    let submit = |name: &str, flops, answer_bytes, kept| {
        let place = queue.reserve(&client(name), None).unwrap();
        place.submit(Cost { flops, answer_bytes, kept, ..COST }, None, None, Box::new(|_| Ok(tensor(0.0))))
    };
    let wait = |answer_bytes| match submit("a", 1, answer_bytes, false).err().unwrap() {
        NoPlace::Answers { retry_after } => retry_after.map(|wait| wait.as_secs_f64()),
        other => panic!("{other:?}"),
    };
    let mut tickets = vec![submit("a", 100, 300, false).unwrap(), submit("a", 300, 200, true).unwrap()];
    tickets.push(submit("a", 200, 250, false).unwrap());
    // The first runs, then the third, then the second, whose answer stays.
    let running = queue.next().unwrap();
    assert_eq!((wait(250), wait(400), wait(600)), (Some(1.0), Some(3.0), None));
    drop((tickets, running));
}

#[test]
fn a_job_between_steps_has_room_and_counts_from_the_moment_it_is_chosen() {
    const MIB: u64 = 1 << 20;
    // Plans of 50 and 30 MiB; the first one's answer leaves too little for both, or just enough.
    for (answer, fits) in [(21 * MIB, false), (20 * MIB, true)] {
        let bounds = Bounds { jobs: 8, answer_bytes: 1000 * MIB, peak_bytes: None };
        let queue = Queue::new(bounds, Arc::new(Metrics::new()));
        let memory = Memory::new(Some(100 * MIB), &[], &ByteBudget::new(1000 * MIB), &queue);
        let admit = |name: &str, flops, bytes, answer_bytes| {
            let need = Need { model: 0, operation: Operation::Decode, frames: 1, bytes, body: 0 };
            let submit = |share| {
                let cost = Cost { flops, answer_bytes, ..COST };
                let place = queue.reserve(&client(name), None).unwrap();
                place.submit(cost, None, Some(share), Box::new(|_| Ok(tensor(0.0))))
            };
            memory.admit(need, answer_bytes, submit).unwrap().unwrap()
        };
        let long = admit("a", 1000, 50 * MIB, answer);
        let running = queue.next().unwrap();
        memory.begin(running.share.as_ref().unwrap());
        let short = admit("b", 10, 30 * MIB, 0);
        let room = |bytes| memory.take_for_body(bytes, || true);
        assert!(room(1));
        let between = queue.between_steps(running.id, 500);
        assert_eq!((between.is_some(), room(1)), (fits, !fits));
        drop(between);
        assert!(room(1));
        drop((running, long, short));
    }
}

#[test]
fn addresses_of_one_network_are_one_client() {
    let at = |text: &str| Client::at(text.parse().unwrap());
    assert_eq!(at("2001:db8::1"), at("2001:db8::ffff:1:2:3"));
    assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
    assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
    assert_ne!(at("10.0.0.2"), at("10.0.0.1"));
}
