//! The engine's own threads: one parallel region a layer, tasks handed out by a shared counter.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::buffer::Buffer;

/// A private set of worker threads.
pub struct Pool {
    threads: rayon::ThreadPool,
    /// Each worker's scratch, kept from one region to the next: fresh pages for each layer cost more than small layers.
    rooms: Vec<Mutex<Option<Buffer>>>,
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
        Ok(Pool { threads, rooms: (0..count).map(|_| Mutex::default()).collect() })
    }

    /// How many workers there are.
    pub fn threads(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Runs `task(index)` for each index below `count`, in no stated order, each exactly once.
    ///
    /// The call returns when all tasks are done.
    pub fn run(&self, count: usize, task: impl Fn(usize) + Sync) {
        self.run_in_room(count, 0, |_, index| task(index));
    }

    /// Whether `test` holds of each `len` of `values`.
    pub(crate) fn all<T: Sync>(&self, values: &[T], len: usize, test: impl Fn(&[T]) -> bool + Sync) -> bool {
        self.threads.install(|| values.par_chunks(len).all(&test))
    }

    /// Runs `fill(index, part)` for each `len` of `values`.
    pub(crate) fn fill<T: Send>(&self, values: &mut [T], len: usize, fill: impl Fn(usize, &mut [T]) + Sync) {
        self.threads
            .install(|| values.par_chunks_mut(len).enumerate().for_each(|(index, part)| fill(index, part)));
    }

    /// Makes `len` values of scratch ready for each worker, so that no region up to that length has to ask for memory.
    /// False where the system refuses it.
    #[must_use]
    pub fn reserve(&self, len: usize) -> bool {
        self.rooms.iter().all(|room| {
            let mut room = room.lock().unwrap_or_else(PoisonError::into_inner);
            if room.as_ref().is_none_or(|room| room.len() < len) {
                *room = None;
                *room = Buffer::zeroed(len);
            }
            room.is_some()
        })
    }

    /// As [`Pool::run`], with `len` values of scratch for each worker, which hold anything.
    ///
    /// # Panics
    /// The system refuses the memory, and it was not [reserved](Pool::reserve).
    pub(crate) fn run_in_room(&self, count: usize, len: usize, task: impl Fn(&mut [f32], usize) + Sync) {
        let next = AtomicUsize::new(0);
        self.threads.broadcast(|worker| {
            let mut index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                return;
            }
            let mut room = self.rooms[worker.index()].lock().unwrap_or_else(PoisonError::into_inner);
            if room.as_ref().is_none_or(|room| room.len() < len) {
                *room = None;
                *room = Some(Buffer::zeroed(len).expect("memory for a worker's scratch"));
            }
            let room = &mut room.as_mut().expect("made above")[..len];
            while index < count {
                task(room, index);
                index = next.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    /// Gives back the workers' scratch, with whatever it holds.
    pub fn release(&self) {
        for room in &self.rooms {
            *room.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// Takes the first `len` values off `room`, and what fills their last cache line.
pub(crate) fn carve<'a>(room: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (part, rest) = std::mem::take(room).split_at_mut(whole_lines(len));
    *room = rest;
    &mut part[..len]
}

/// Values that [`carve`] takes for `len`.
pub(crate) fn whole_lines(len: usize) -> usize {
    len.next_multiple_of(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_keep_their_room_until_it_is_released() {
        let pool = Pool::new(Some(1)).unwrap();
        pool.run_in_room(1, 48, |room, _| {
            let (first, second) = {
                let mut rest = room;
                (carve(&mut rest, 17), carve(&mut rest, 3))
            };
            assert_eq!((first.len(), second.len()), (17, 3));
            assert_eq!(second.as_ptr() as usize % 64, 0);
            second.fill(5.0);
        });
        pool.run_in_room(1, 35, |room, _| assert_eq!(room[32..], [5.0; 3]));
        pool.release();
        pool.run_in_room(1, 35, |room, _| assert_eq!(room, [0.0; 35]));
    }

    #[test]
    fn what_is_reserved_is_what_regions_use() {
        let pool = Pool::new(Some(2)).unwrap();
        assert!(!pool.reserve(usize::MAX / 16));
        assert!(pool.reserve(40));
        let places = |pool: &Pool| -> Vec<*const f32> {
            let start = |room: &Mutex<Option<Buffer>>| room.lock().unwrap().as_ref().unwrap().as_ptr();
            pool.rooms.iter().map(start).collect()
        };
        let before = places(&pool);
        pool.run_in_room(100, 40, |room, _| room.fill(1.0));
        assert!(pool.reserve(30));
        assert_eq!(before, places(&pool));
    }

    #[test]
    fn each_task_runs_exactly_once() {
        for threads in [1, 2, 7] {
            let pool = Pool::new(Some(threads)).unwrap();
            let counts: Vec<AtomicUsize> = (0..1000).map(|_| AtomicUsize::new(0)).collect();
            pool.run(counts.len(), |index| {
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }
}
