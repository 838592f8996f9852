//! The engine's thread: takes jobs as the queue gives them, survives their panics, and never waits for anything but the
//! next job.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::metrics::Metrics;
use crate::queue::{Ended, Job, JobError, Queue};

/// Starts the thread that watches over the engine's thread, and that one; both end when the queue is closed. `first` runs
/// before the first job. After a panic the engine goes on with a new thread, of which nothing was seen by the old one.
pub(crate) fn start(
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
    first: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    Builder::new().name("engine-watch".to_owned()).spawn(move || {
        first();
        while engine_thread(&queue) == Ending::Panicked {
            metrics.worker_restarted();
        }
    })
}

/// How the engine's thread ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Closed,
    Panicked,
}

fn engine_thread(queue: &Arc<Queue>) -> Ending {
    let for_thread = Arc::clone(queue);
    match Builder::new().name("engine-queue".to_owned()).spawn(move || serve(&for_thread)) {
        Ok(thread) => thread.join().unwrap_or(Ending::Panicked),
        Err(error) => {
            tracing::error!(%error, "the engine gets no thread of its own; it goes on in the one that watches");
            serve(queue)
        }
    }
}

/// Works until the queue is closed or a job panics.
fn serve(queue: &Queue) -> Ending {
    while let Some(job) = queue.next() {
        run(queue, job);
        if queue.take_panic() {
            return Ending::Panicked;
        }
    }
    Ending::Closed
}

/// Runs a job that the queue has marked as running, and answers it.
pub(crate) fn run(queue: &Queue, job: Job) {
    let Job { id, control, work, answer, since, meter, cost, share, .. } = job;
    let start = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| work(&control)));
    drop(share);
    let whole = matches!(outcome, Ok(Ok(_)));
    let done = if whole { cost.flops } else { meter.done_flops() };
    let engine = queue.finished(id, start.elapsed(), whole, done);
    let result = match outcome {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(JobError::Engine(error)),
        Err(_) => {
            tracing::error!(
                "the engine panicked; the request is answered with 500 and the engine starts anew"
            );
            queue.note_panic();
            Err(JobError::Panicked)
        }
    };
    // A client that is gone has its own record of the cancellation.
    let _ = answer.send(Ended { result, queued: start - since, engine });
}

/// Longest time a stopping server waits for the engine's thread.
const JOIN_PATIENCE: Duration = Duration::from_secs(10);

/// Waits for the thread, but not for ever: a job between two steps may take long to see that it was cancelled.
pub(crate) async fn join(thread: JoinHandle<()>) {
    let start = Instant::now();
    while !thread.is_finished() && start.elapsed() < JOIN_PATIENCE {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    if thread.is_finished() {
        let _ = thread.join();
    } else {
        tracing::warn!("the engine is still at work; the server stops without waiting for it");
    }
}
