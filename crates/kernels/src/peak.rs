//! What the processor could do at most: multiply-adds between registers, without memory, on all threads of a pool. A
//! measure for the speed of the kernels, not a part of them.

use std::hint::black_box;
use std::time::Instant;

use crate::isa::{Isa, dispatch};
use crate::microkernel::Tile;
use crate::pool::Pool;
use crate::vector::Vector;

/// Sums that are kept at a time: enough to hide the latency of a multiply-add, few enough for the registers.
const SUMS: usize = 12;
/// Multiply-adds of each sum in one run.
const STEPS: usize = 1 << 20;
/// Tasks of each thread, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;

/// The most floating-point operations per second that a register loop of this tier reached in `runs` runs; a
/// multiplication with its addition counts two. In `f32`, on all threads of `pool`.
pub fn flops_per_second(isa: Isa, pool: &Pool, runs: usize) -> f64 {
    let tasks = pool.threads() * TASKS_PER_THREAD;
    let once = || {
        let start = Instant::now();
        pool.run(tasks, |index| {
            let seed = black_box(index as f32);
            dispatch!(isa, spin(seed: f32));
        });
        (tasks * SUMS * STEPS * lanes(isa) * 2) as f64 / start.elapsed().as_secs_f64()
    };
    (0..runs.max(1)).map(|_| once()).fold(0.0, f64::max)
}

/// `f32` lanes of one register of a tier.
fn lanes(isa: Isa) -> usize {
    fn of<T: Tile>(lanes: &mut usize) {
        *lanes = T::Vector::LANES;
    }
    let mut count = 0;
    let lanes = &mut count;
    dispatch!(isa, of(lanes: &mut usize));
    count
}

/// Adds `seed` times a vector to each sum, [`STEPS`] times.
///
/// # Safety
/// The CPU has the tier.
#[inline(always)]
unsafe fn spin<T: Tile>(seed: f32) {
    // SAFETY: the caller's contract; each slice is 16 long, as the longest register.
    unsafe {
        let factor = T::Vector::splat(black_box(0.5));
        let mut sums = [T::Vector::splat(seed); SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = sum.add_scaled(0.5, factor);
            }
        }
        let mut room = [0.0; 16];
        for sum in sums {
            sum.store(&mut room);
            black_box(&room);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_a_plausible_speed_on_one_thread_and_on_two() {
        let one = flops_per_second(Isa::detect(), &Pool::new(Some(1)).unwrap(), 3);
        let two = flops_per_second(Isa::detect(), &Pool::new(Some(2)).unwrap(), 3);
        // A scalar multiply-add a microsecond would be 2e6.
        assert!(one > 2e8 && two > one / 3.0, "{one} {two}");
    }
}
