//! The engine's thread: takes jobs in order, survives their panics, and never waits for anything but the next job.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::queue::{Done, Job, JobError, Queue};

/// Starts the thread. It ends when the queue is closed; `first` runs before the first job.
pub(crate) fn start(
    queue: Arc<Queue>,
    first: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("engine-queue".to_owned()).spawn(move || {
        first();
        while let Some(job) = queue.next() {
            run(&queue, job);
        }
    })
}

fn run(queue: &Queue, job: Job) {
    let Job { control, work, answer, since, .. } = job;
    let start = Instant::now();
    let queued = start - since;
    if answer.is_closed() {
        queue.finished_without_work();
        return;
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| work(&control)));
    let engine = start.elapsed();
    queue.finished(engine);
    let result = match outcome {
        Ok(Ok(tensor)) => Ok(tensor),
        Ok(Err(error)) => Err(JobError::Engine(error)),
        Err(_) => {
            tracing::error!("the engine panicked; the request is answered with 500 and the server goes on");
            Err(JobError::Panicked)
        }
    };
    // A receiver that is gone has its own record of the cancellation.
    let _ = answer.send(Done { result, queued, engine });
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
