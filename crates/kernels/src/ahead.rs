//! Cache lines asked for before they are read, a few at a time beside the arithmetic: many at once would fill the
//! processor's queue of missing lines, and what is read next would wait behind them.

use crate::shared::{LINE, prefetch_lines};

/// Memory that is read later, asked for a few cache lines at a time.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    start: *const u8,
    /// Cache lines of each part.
    lines: usize,
    /// The same of other memory, for those who read two things.
    beside: (*const u8, usize),
}

impl Ahead {
    /// Nothing.
    pub(crate) const NONE: Ahead = Ahead { start: std::ptr::null(), lines: 0, beside: (std::ptr::null(), 0) };

    /// `len` values from `start` on, in parts; the last may reach beyond.
    #[inline(always)]
    pub(crate) fn new(start: *const f32, len: usize, parts: usize) -> Ahead {
        let lines = (len * size_of::<f32>()).div_ceil(LINE * parts.max(1));
        Ahead { start: start.cast(), lines, ..Ahead::NONE }
    }

    /// This, and each part of `other` with it.
    #[inline(always)]
    pub(crate) fn beside(self, other: Ahead) -> Ahead {
        Ahead { beside: (other.start, other.lines), ..self }
    }

    /// What begins `parts` later.
    #[inline(always)]
    pub(crate) fn skip(self, parts: usize) -> Ahead {
        let (start, lines) = self.beside;
        Ahead {
            start: self.start.wrapping_add(parts * self.lines * LINE),
            beside: (start.wrapping_add(parts * lines * LINE), lines),
            ..self
        }
    }

    /// Asks for the part `index`, a hint that reads nothing.
    #[inline(always)]
    pub(crate) fn ask(self, index: usize) {
        let Ahead { start, lines, beside } = self.skip(index);
        prefetch_lines(start, lines * LINE);
        prefetch_lines(beside.0, beside.1 * LINE);
    }
}

/// Pixels that are asked for at once: with many more lines than that, what is read next would wait for them.
const STRETCH: usize = 8;

/// Walks over the pixels of some channel blocks in stretches, evenly in a number of steps.
pub(crate) struct Sweep {
    size: [usize; 3],
    /// Block, row and column of the next stretch.
    at: [usize; 3],
    /// Stretches are due when this has come to `steps`.
    credit: usize,
    stretches: usize,
    steps: usize,
}

impl Sweep {
    /// Blocks, rows and columns.
    #[inline(always)]
    pub(crate) fn new(size: [usize; 3], steps: usize) -> Sweep {
        debug_assert!(steps > 0);
        Sweep { size, at: [0; 3], credit: 0, stretches: size[0] * size[1] * size[2].div_ceil(STRETCH), steps }
    }

    /// One step: calls `ask` with block, row and column, and how many columns, for each stretch that is due.
    #[inline(always)]
    pub(crate) fn step(&mut self, mut ask: impl FnMut(usize, [usize; 2], usize)) {
        self.credit += self.stretches;
        while self.credit >= self.steps {
            self.credit -= self.steps;
            let [block, row, column] = self.at;
            ask(block, [row, column], STRETCH.min(self.size[2] - column));
            self.at[2] += STRETCH;
            if self.at[2] >= self.size[2] {
                self.at = if row + 1 < self.size[1] { [block, row + 1, 0] } else { [block + 1, 0, 0] };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_asks_for_each_pixel_once() {
        for size in [[2, 3, 20], [1, 1, 8], [1, 5, 7], [0, 4, 8], [3, 0, 8], [1, 2, 0]] {
            for steps in [1, 2, 7, 100] {
                let (mut sweep, mut asked) = (Sweep::new(size, steps), Vec::new());
                for _ in 0..steps {
                    sweep.step(|block, [row, column], columns| {
                        asked.extend((column..column + columns).map(|column| [block, row, column]));
                    });
                }
                let [blocks, rows, columns] = size;
                let all = (0..blocks * rows * columns)
                    .map(|pixel| [pixel / (rows * columns), pixel / columns % rows, pixel % columns]);
                assert!(asked.into_iter().eq(all), "{size:?} in {steps} steps");
            }
        }
    }
}
