//! Order, bounds, cancellation and faults of queue and worker together, with work that the tests control.

use std::sync::mpsc;

use super::*;
use crate::worker;

fn tensor(value: f32) -> Tensor {
    Tensor { values: vec![value], shape: [1, 1, 1, 1] }
}

fn started(capacity: usize) -> (Arc<Queue>, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let queue = Queue::new(capacity, Arc::clone(&metrics));
    worker::start(Arc::clone(&queue), || {}).unwrap();
    (queue, metrics)
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
    let ticket = queue.reserve().unwrap().submit(Control::new(), work);
    begun.recv().unwrap();
    (sender, ticket)
}

fn note(queue: &Arc<Queue>, log: &Arc<Mutex<Vec<usize>>>, number: usize) -> Ticket {
    let log = Arc::clone(log);
    let work: Work = Box::new(move |_| {
        log.lock().unwrap().push(number);
        Ok(tensor(number as f32))
    });
    queue.reserve().unwrap().submit(Control::new(), work)
}

#[tokio::test]
async fn jobs_run_in_order_and_who_leaves_frees_the_place() {
    let (queue, metrics) = started(4);
    let (release, first) = block(&queue);
    let log = Arc::default();
    let mut tickets: Vec<Ticket> = (0..4).map(|number| note(&queue, &log, number)).collect();
    assert!(matches!(queue.reserve(), Err(NoPlace::Full { .. })));
    drop(tickets.remove(2));
    assert_eq!(queue.occupancy(), Occupancy { waiting: 3, running: 1, capacity: 4 });
    tickets.push(note(&queue, &log, 4));
    release.send(()).unwrap();
    assert_eq!(first.wait().await.result.unwrap(), tensor(-1.0));
    for ticket in tickets {
        assert!(ticket.wait().await.result.is_ok());
    }
    assert_eq!(*log.lock().unwrap(), [0, 1, 3, 4]);
    assert!(metrics.render(queue.occupancy(), 0).contains("rvae_cancelled_total{stage=\"queued\"} 1"));
    queue.close();
}

#[tokio::test]
async fn a_reserved_place_counts_and_comes_back() {
    let (queue, _) = started(1);
    let place = queue.reserve().unwrap();
    assert!(matches!(queue.reserve(), Err(NoPlace::Full { .. })));
    drop(place);
    assert!(queue.reserve().is_ok() && queue.is_idle());
    queue.close();
}

#[tokio::test]
async fn a_running_job_is_told_to_stop() {
    let (queue, metrics) = started(1);
    let (begun_sender, begun) = mpsc::channel();
    let (ended_sender, ended) = mpsc::channel();
    let control = Control::new();
    let flag = control.cancel_handle();
    let work: Work = Box::new(move |_| {
        begun_sender.send(()).unwrap();
        while !flag.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        ended_sender.send(()).unwrap();
        Err(EngineError::Cancelled)
    });
    let ticket = queue.reserve().unwrap().submit(control, work);
    begun.recv().unwrap();
    drop(ticket);
    ended.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(metrics.render(queue.occupancy(), 0).contains("rvae_cancelled_total{stage=\"running\"} 1"));
    queue.close();
}

#[tokio::test]
async fn a_panic_costs_one_answer() {
    let (queue, _) = started(4);
    let ticket = queue.reserve().unwrap().submit(Control::new(), Box::new(|_| panic!("on purpose")));
    assert!(matches!(ticket.wait().await.result, Err(JobError::Panicked)));
    let log = Arc::default();
    assert!(note(&queue, &log, 1).wait().await.result.is_ok());
    queue.close();
}

#[tokio::test]
async fn closing_answers_those_who_wait() {
    let (queue, _) = started(4);
    let (release, running) = block(&queue);
    let waiting = note(&queue, &Arc::default(), 1);
    queue.close();
    assert!(matches!(waiting.wait().await.result, Err(JobError::Stopped)));
    assert_eq!(queue.reserve().err(), Some(NoPlace::Closed));
    drop(release);
    assert!(running.wait().await.result.is_ok());
}

#[test]
fn the_wait_told_is_the_rest_of_the_running_job() {
    let mut state = State { mean_seconds: Some(8.0), ..State::default() };
    assert_eq!(state.expected_wait(), Duration::from_secs(8));
    let since = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
    state.running = Some(Running { id: 0, since, cancel: Arc::default() });
    let wait = state.expected_wait().as_secs_f64();
    assert!((2.0..=3.0).contains(&wait), "{wait}");
}
