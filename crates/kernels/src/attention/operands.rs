//! The operands of the two products of attention, as `f32` or rounded to integers.

use super::QUERIES;
use crate::convolution::Arithmetic;
use crate::integers::{self, MOST_POINTS, PAIRS, SPLIT, Sources, words, words_mut};
use crate::isa::{Isa, dispatch};
use crate::layout::BLOCK;
use crate::microkernel::{PairRows, Rows, Tile};
use crate::pool::{Pool, carve, whole_lines};
use crate::shared::SharedOutput;

/// Blocks of rows that are multiplied as `f32` before the sums are put down: their panel stays in the first-level cache
/// while the queries pass by.
const PASS: usize = 16;

/// How a right operand lies: `[group of lanes columns][block of rows][16][lanes]`, or rounded
/// `[group][block][pair][lanes]` and behind that, what undoes the scales, `[group][split][lanes]`.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub groups: usize,
    /// Of sixteen rows.
    pub blocks: usize,
    pub isa: Isa,
    pub arithmetic: Arithmetic,
}

impl Panels {
    /// `f32` of memory.
    pub(super) fn len(&self) -> usize {
        self.words() + self.factors()
    }

    /// Columns of a group.
    pub(super) fn lanes(&self) -> usize {
        self.isa.lanes()
    }

    fn words(&self) -> usize {
        let rows = match self.arithmetic {
            Arithmetic::Float32 => BLOCK,
            Arithmetic::Integer16 => PAIRS,
        };
        self.groups * self.blocks * rows * self.lanes()
    }

    fn factors(&self) -> usize {
        match self.arithmetic {
            Arithmetic::Float32 => 0,
            Arithmetic::Integer16 => self.groups * self.splits() * self.lanes(),
        }
    }

    fn splits(&self) -> usize {
        self.blocks.div_ceil(SPLIT)
    }

    /// Fills `packed`.
    pub(super) fn pack<F: Fill>(&self, pool: &Pool, packed: &mut [f32], fill: &F) {
        let room = match self.arithmetic {
            Arithmetic::Float32 => 0,
            Arithmetic::Integer16 => SPLIT * BLOCK * self.lanes(),
        };
        let packing = &Packing { panels: *self, fill, packed: SharedOutput::new(&mut packed[..self.len()]) };
        pool.run_in_room(self.groups * self.splits(), room, |room, index| {
            dispatch!(self.isa, pack::<F: Fill>(packing: &Packing<'_, F>, room: &mut [f32], index: usize));
        });
    }

    /// Adds to `sums`, `[query][lanes]`, the products of `left` with `count` blocks of a group from `first`, the first
    /// of a split.
    ///
    /// # Safety
    /// The CPU has the tier.
    #[inline(always)]
    pub(super) unsafe fn multiply<T: Tile>(
        &self,
        packed: &[f32],
        (group, first, count): (usize, usize, usize),
        left: &Left<'_>,
        sums: &mut [f32],
    ) {
        let start = group * self.blocks + first;
        match self.arithmetic {
            Arithmetic::Float32 => {
                let panels = &packed[start * BLOCK * T::LANES..][..count * BLOCK * T::LANES];
                for (pass, panels) in panels.chunks(PASS * BLOCK * T::LANES).enumerate() {
                    for query in (0..QUERIES).step_by(T::PIXELS) {
                        let rows = Rows {
                            patch: left.values,
                            start: (pass * PASS * QUERIES + query) * BLOCK,
                            row_stride: BLOCK,
                            block_stride: QUERIES * BLOCK,
                            taps: &[0],
                        };
                        // SAFETY: the caller vouches for the CPU.
                        unsafe { T::accumulate(&rows, panels, &mut sums[query * T::LANES..]) };
                    }
                }
            }
            Arithmetic::Integer16 => {
                let panels = &words(packed)[start * PAIRS * T::LANES..][..count * PAIRS * T::LANES];
                for (split, panels) in panels.chunks(SPLIT * PAIRS * T::LANES).enumerate() {
                    let factors = (group * self.splits() + first / SPLIT + split) * T::LANES;
                    let factors = &packed[self.words() + factors..][..T::LANES];
                    for query in (0..QUERIES).step_by(T::PIXELS) {
                        let place = left.place::<T>(query, split);
                        let rows = PairRows {
                            words: &words(left.words)[place..],
                            factors: &left.factors[split * QUERIES + query..],
                        };
                        // SAFETY: the caller vouches for the CPU.
                        unsafe {
                            T::accumulate_pairs(&rows, panels, factors, &mut sums[query * T::LANES..]);
                        }
                    }
                }
            }
        }
    }
}

/// Where the numbers of a right operand come from.
pub(super) trait Fill: Sync {
    /// Fills the rows of a block of a group, `[16][lanes]`, which are zeros.
    ///
    /// # Safety
    /// The CPU has the tier.
    unsafe fn fill<T: Tile>(&self, group: usize, block: usize, rows: &mut [f32]);
}

struct Packing<'a, F> {
    panels: Panels,
    fill: &'a F,
    packed: SharedOutput<'a>,
}

/// Packs one split of a group.
#[inline(always)]
unsafe fn pack<T: Tile, F: Fill>(packing: &Packing<'_, F>, room: &mut [f32], index: usize) {
    let Packing { panels, fill, packed } = packing;
    let block_len = BLOCK * T::LANES;
    let (group, first) = (index / panels.splits(), index % panels.splits() * SPLIT);
    let (start, count) = (group * panels.blocks + first, SPLIT.min(panels.blocks - first));
    // SAFETY: the caller vouches for the CPU; each task owns the blocks, words and factors of one split.
    unsafe {
        let values = match panels.arithmetic {
            Arithmetic::Float32 => packed.part(start * block_len, count * block_len),
            Arithmetic::Integer16 => &mut room[..count * block_len],
        };
        values.fill(0.0);
        for (block, rows) in values.chunks_exact_mut(block_len).enumerate() {
            fill.fill::<T>(group, first + block, rows);
        }
        if panels.arithmetic == Arithmetic::Integer16 {
            let words = packed.part(start * block_len / 2, count * block_len / 2);
            let factors = packed.part(panels.words() + index * T::LANES, T::LANES);
            integers::quantize_weights::<T>(values, words_mut(words), factors);
        }
    }
}

/// A left operand: rows of a tile of [`QUERIES`].
pub(super) struct Left<'a> {
    /// `[block][query][16]`
    pub(super) values: &'a mut [f32],
    /// With integers: rounded, `[query / pixels][block][query % pixels][pair]`.
    words: &'a mut [f32],
    /// With integers: what undoes the scales, `[split][query]`.
    factors: &'a mut [f32],
    blocks: usize,
}

impl<'a> Left<'a> {
    /// `f32` of memory for rows of so many blocks.
    pub(super) fn floats(blocks: usize, arithmetic: Arithmetic) -> usize {
        Left::lens(blocks, arithmetic).map(whole_lines).iter().sum()
    }

    fn lens(blocks: usize, arithmetic: Arithmetic) -> [usize; 3] {
        let values = blocks * BLOCK * QUERIES;
        match arithmetic {
            Arithmetic::Float32 => [values, 0, 0],
            Arithmetic::Integer16 => [values, values / 2, blocks.div_ceil(SPLIT) * QUERIES],
        }
    }

    /// Takes its memory from `room`.
    pub(super) fn new(blocks: usize, arithmetic: Arithmetic, room: &mut &'a mut [f32]) -> Left<'a> {
        let [values, words, factors] = Left::lens(blocks, arithmetic).map(|len| carve(room, len));
        Left { values, words, factors, blocks }
    }

    fn place<T: Tile>(&self, query: usize, split: usize) -> usize {
        (query * self.blocks + split * SPLIT * T::PIXELS) * PAIRS
    }

    /// Rounds the first `count` blocks of `values`, if they are to be multiplied as integers.
    ///
    /// # Safety
    /// The CPU has the tier.
    #[inline(always)]
    pub(super) unsafe fn round<T: Tile>(&mut self, count: usize) {
        const { assert!(T::PIXELS <= MOST_POINTS && QUERIES.is_multiple_of(T::PIXELS)) };
        if self.words.is_empty() {
            return;
        }
        for split in 0..count.div_ceil(SPLIT) {
            for query in (0..QUERIES).step_by(T::PIXELS) {
                let values = Sources {
                    values: &self.values[(split * SPLIT * QUERIES + query) * BLOCK..],
                    strides: [BLOCK, QUERIES * BLOCK],
                    blocks: SPLIT.min(count - split * SPLIT),
                };
                let place = self.place::<T>(query, split);
                let factors = &mut self.factors[split * QUERIES + query..][..T::PIXELS];
                let words = &mut words_mut(self.words)[place..];
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    integers::quantize_sources::<T::Vector>(
                        values,
                        factors,
                        words,
                        [PAIRS, T::PIXELS * PAIRS],
                    );
                }
            }
        }
    }
}
