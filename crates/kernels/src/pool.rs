//! The engine's own threads: one parallel region a layer, tasks handed out by a shared counter.

use std::sync::atomic::{AtomicUsize, Ordering};

/// A private set of worker threads.
pub struct Pool {
    threads: rayon::ThreadPool,
}

impl Pool {
    /// `threads` workers; `None` takes one for each processor this process may use (affinity and cgroup respected).
    ///
    /// # Errors
    /// The operating system refuses the threads.
    pub fn new(threads: Option<usize>) -> Result<Pool, std::io::Error> {
        let count = match threads {
            Some(count) => count.max(1),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("engine-{index}"))
            .build()
            .map_err(std::io::Error::other)?;
        Ok(Pool { threads })
    }

    /// How many workers there are.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Runs `task(scratch, index)` for each index below `count`, in no stated order, each exactly once.
    ///
    /// Each worker makes its `scratch` once for the whole region. The call returns when all tasks are done.
    pub fn run<S>(&self, count: usize, scratch: impl Fn() -> S + Sync, task: impl Fn(&mut S, usize) + Sync) {
        let next = AtomicUsize::new(0);
        self.threads.broadcast(|_| {
            let mut index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let mut own = scratch();
            while index < count {
                task(&mut own, index);
                index = next.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_runs_exactly_once() {
        for threads in [1, 2, 7] {
            let pool = Pool::new(Some(threads)).unwrap();
            let counts: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            pool.run(
                counts.len(),
                || (),
                |(), index| {
                    counts[index].fetch_add(1, Ordering::Relaxed);
                },
            );
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}
