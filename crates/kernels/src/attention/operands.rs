//! The operands of the two products of attention, as `f32`, rounded to integers, or split into parts.

use crate::ahead::Ahead;
use crate::form::Form;
use crate::integers::{self, MOST_POINTS, PAIRS, Sources, words, words_mut};
use crate::isa::{Isa, dispatch};
use crate::layout::BLOCK;
use crate::microkernel::{PairRows, Rows, Tile};
use crate::pool::{Pool, carve, whole_lines};
use crate::shared::SharedOutput;
use crate::{amx, bytes};

/// Blocks of rows that are multiplied as `f32` before the sums are put down: their panel stays in the first-level cache
/// while the queries pass by.
const PASS: usize = 8;

/// 32-bit words of a step of numbers in parts.
const STEP: usize = amx::EXACT_PARTS * amx::PART;

/// How a right operand lies: `[group of lanes columns][block of rows][16][lanes]`, or rounded
/// `[group][block][pair][lanes]` or `[group][step]` as `bytes` says, and behind that, what undoes the scales,
/// `[group][split][lanes]`; or split `[group][step]` as `amx` says.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub groups: usize,
    /// Of sixteen rows.
    pub blocks: usize,
    pub isa: Isa,
    pub form: Form,
    /// Rows of the left operand.
    pub queries: usize,
    /// Blocks of either operand that share scales.
    pub split: usize,
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
        self.groups * self.group_words()
    }

    fn group_words(&self) -> usize {
        self.form.padded(self.blocks) * self.form.words_per_block() * self.lanes()
    }

    fn factors(&self) -> usize {
        match self.form {
            Form::Float32 | Form::Bfloat16 => 0,
            Form::Pairs | Form::Bytes => self.groups * self.splits() * self.lanes(),
        }
    }

    fn splits(&self) -> usize {
        self.blocks.div_ceil(self.split)
    }

    /// What is multiplied after the `done` first of the `len` words from `panels` on: the rest, or the same rows of the
    /// next group.
    #[inline(always)]
    fn following(&self, panels: *const f32, len: usize, done: usize) -> *const f32 {
        panels.wrapping_add(if done < len { done } else { self.group_words() })
    }

    /// Fills `packed`.
    pub(super) fn pack<F: Fill>(&self, pool: &Pool, packed: &mut [f32], fill: &F) {
        let room = match self.form {
            Form::Float32 => 0,
            Form::Pairs | Form::Bytes | Form::Bfloat16 => self.split * BLOCK * self.lanes(),
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
        let queries = self.queries;
        match self.form {
            Form::Float32 => {
                let panels = &packed[start * BLOCK * T::LANES..][..count * BLOCK * T::LANES];
                for (pass, panel) in panels.chunks(PASS * BLOCK * T::LANES).enumerate() {
                    let blocks = panel.len() / (BLOCK * T::LANES);
                    let next =
                        self.following(panels.as_ptr(), panels.len(), (pass + 1) * PASS * BLOCK * T::LANES);
                    let ahead = Ahead::new(next, panel.len(), blocks * queries / T::PIXELS);
                    for query in (0..queries).step_by(T::PIXELS) {
                        let rows = Rows {
                            ahead: ahead.skip(query / T::PIXELS * blocks),
                            patch: left.values,
                            start: (pass * PASS * queries + query) * BLOCK,
                            row_stride: BLOCK,
                            block_stride: queries * BLOCK,
                            taps: &[0],
                        };
                        // SAFETY: the caller vouches for the CPU.
                        unsafe { T::accumulate(&rows, panel, &mut sums[query * T::LANES..]) };
                    }
                }
            }
            Form::Pairs => {
                let panels = &words(packed)[start * PAIRS * T::LANES..][..count * PAIRS * T::LANES];
                for (split, panel) in panels.chunks(self.split * PAIRS * T::LANES).enumerate() {
                    let blocks = panel.len() / (PAIRS * T::LANES);
                    let done = (split + 1) * self.split * PAIRS * T::LANES;
                    let next = self.following(panels.as_ptr().cast(), panels.len(), done);
                    let ahead = Ahead::new(next, panel.len(), blocks * queries / T::PIXELS);
                    let factors = (group * self.splits() + first / self.split + split) * T::LANES;
                    let factors = &packed[self.words() + factors..][..T::LANES];
                    for query in (0..queries).step_by(T::PIXELS) {
                        let place = left.place::<T>(query, split);
                        let rows = PairRows {
                            ahead: ahead.skip(query / T::PIXELS * blocks),
                            words: &words(left.words)[place..],
                            factors: &left.factors[split * queries + query..],
                        };
                        // SAFETY: the caller vouches for the CPU.
                        unsafe {
                            T::accumulate_pairs(&rows, panel, factors, &mut sums[query * T::LANES..]);
                        }
                    }
                }
            }
            Form::Bytes => {
                let registers = amx::Tiles::new(self.isa);
                let mut products = amx::Sums::zero();
                let [first_step, steps] =
                    [first, self.form.padded(count)].map(|blocks| blocks / bytes::BLOCKS);
                let panels = group * self.group_words() + first_step * bytes::COLUMN_WORDS;
                let panels = &words(packed)[panels..][..steps * bytes::COLUMN_WORDS];
                let split_words = self.split / bytes::BLOCKS * bytes::COLUMN_WORDS;
                for (split, panel) in panels.chunks(split_words).enumerate() {
                    let steps = panel.len() / bytes::COLUMN_WORDS;
                    let done = (split + 1) * split_words;
                    let next = self.following(panels.as_ptr().cast(), panels.len(), done);
                    let ahead = Ahead::new(next, panel.len(), steps * queries / bytes::ROWS);
                    let factors = (group * self.splits() + first / self.split + split) * bytes::COLUMNS;
                    let factors = &packed[self.words() + factors..][..bytes::COLUMNS];
                    for query in (0..queries).step_by(bytes::ROWS) {
                        let ahead = ahead.skip(query / bytes::ROWS * steps);
                        let rows = &words(left.words)[left.first_row(query, split)..];
                        registers.multiply_bytes(rows, panel, ahead, &mut products);
                        let row_factors = &left.factors[split * queries + query..];
                        let sums = &mut sums[query * bytes::COLUMNS..];
                        // SAFETY: the caller vouches for the CPU.
                        unsafe { amx::put_bytes::<true>(&products, row_factors, factors, sums) };
                    }
                }
            }
            Form::Bfloat16 => {
                let registers = amx::Tiles::new(self.isa);
                let [first, count] = [first, count].map(|blocks| blocks.div_ceil(amx::BLOCKS));
                let panels = &words(packed)[group * self.group_words() + first * STEP..][..count * STEP];
                for (pass, panel) in panels.chunks(amx::PASS * STEP).enumerate() {
                    let next =
                        self.following(panels.as_ptr().cast(), panels.len(), (pass + 1) * amx::PASS * STEP);
                    let steps = panel.len() / STEP;
                    let ahead = Ahead::new(next, panel.len(), steps * queries / amx::ROWS);
                    for query in (0..queries).step_by(amx::ROWS) {
                        let place = left.place_of_step(query, pass * amx::PASS);
                        let ahead = ahead.skip(query / amx::ROWS * steps);
                        let rows = amx::Rows::packed(&words(left.words)[place..], ahead);
                        let starts = (0..panel.len()).step_by(STEP);
                        let sums = &mut sums[query * amx::COLUMNS..];
                        amx::multiply(&registers, amx::EXACT_PARTS, rows, starts, panel, sums);
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
    let (group, first) = (index / panels.splits(), index % panels.splits() * panels.split);
    let (start, count) = (group * panels.blocks + first, panels.split.min(panels.blocks - first));
    // SAFETY: the caller vouches for the CPU; each task owns the blocks, words and factors of one split.
    unsafe {
        let values = match panels.form {
            Form::Float32 => packed.part(start * block_len, count * block_len),
            Form::Pairs | Form::Bytes | Form::Bfloat16 => &mut room[..panels.form.padded(count) * block_len],
        };
        values.fill(0.0);
        for (block, rows) in values.chunks_exact_mut(block_len).enumerate().take(count) {
            fill.fill::<T>(group, first + block, rows);
        }
        match panels.form {
            Form::Float32 => {}
            Form::Pairs => {
                let words = packed.part(start * block_len / 2, count * block_len / 2);
                let factors = packed.part(panels.words() + index * T::LANES, T::LANES);
                integers::quantize_weights::<T>(values, words_mut(words), factors);
            }
            Form::Bytes => {
                let start = group * panels.group_words() + first / bytes::BLOCKS * bytes::COLUMN_WORDS;
                let words = packed.part(start, values.len() / 2);
                let factors = packed.part(panels.words() + index * T::LANES, T::LANES);
                bytes::round_weights::<T>(values, words_mut(words), factors);
            }
            Form::Bfloat16 => {
                let start = group * panels.group_words() + first / amx::BLOCKS * STEP;
                for (index, pair) in values.chunks_exact(amx::BLOCKS * block_len).enumerate() {
                    let words = packed.part(start + index * STEP, STEP);
                    let (low, high) = pair.split_at(block_len);
                    amx::split_columns(amx::EXACT_PARTS, [low, high], words_mut(words));
                }
            }
        }
    }
}

/// A left operand: rows of a tile of queries.
pub(super) struct Left<'a> {
    /// `[block][query][16]`
    pub(super) values: &'a mut [f32],
    /// With integers: rounded, `[query / pixels][block][query % pixels][pair]`, or as `bytes` says, `[query / 16][step]`; with
    /// parts as `amx` says, `[query / 32][step]`.
    words: &'a mut [f32],
    /// With integers: what undoes the scales, `[split][query]`.
    factors: &'a mut [f32],
    blocks: usize,
    pub(super) queries: usize,
    form: Form,
    split: usize,
}

impl<'a> Left<'a> {
    /// `f32` of memory for rows of so many blocks, to be multiplied with `right`.
    pub(super) fn floats(blocks: usize, right: &Panels) -> usize {
        Left::lens(blocks, right).map(whole_lines).iter().sum()
    }

    fn lens(blocks: usize, &Panels { queries, form, split, .. }: &Panels) -> [usize; 3] {
        let values = blocks * BLOCK * queries;
        let words = form.padded(blocks) * form.words_per_block() * queries;
        match form {
            Form::Float32 => [values, 0, 0],
            Form::Pairs | Form::Bytes => [values, words, blocks.div_ceil(split) * queries],
            Form::Bfloat16 => [values, words, 0],
        }
    }

    /// Takes its memory from `room`.
    pub(super) fn new(blocks: usize, right: &Panels, room: &mut &'a mut [f32]) -> Left<'a> {
        let [values, words, factors] = Left::lens(blocks, right).map(|len| carve(room, len));
        let Panels { queries, form, split, .. } = *right;
        Left { values, words, factors, blocks, queries, form, split }
    }

    fn place<T: Tile>(&self, query: usize, split: usize) -> usize {
        (query * self.blocks + split * self.split * T::PIXELS) * PAIRS
    }

    /// Where, with bytes, a split begins, for the rows that `query` is one of.
    fn first_row(&self, query: usize, split: usize) -> usize {
        bytes::first_row(query, split * self.split, self.blocks)
    }

    /// Where the parts of a query's step begin.
    fn place_of_step(&self, query: usize, step: usize) -> usize {
        let steps = self.blocks.div_ceil(amx::BLOCKS);
        (query / amx::ROWS * steps + step) * STEP + query % amx::ROWS * amx::ROW
    }

    /// Brings the first `count` blocks of `values` into the form in which they are multiplied.
    ///
    /// # Safety
    /// The CPU has the tier.
    #[inline(always)]
    pub(super) unsafe fn prepare<T: Tile>(&mut self, count: usize) {
        // SAFETY: the caller vouches for the CPU.
        unsafe {
            match self.form {
                Form::Float32 => {}
                Form::Pairs | Form::Bytes => self.round::<T>(count),
                Form::Bfloat16 => self.split(count),
            }
        }
    }

    #[inline(always)]
    unsafe fn round<T: Tile>(&mut self, count: usize) {
        const { assert!(T::PIXELS <= MOST_POINTS && bytes::ROWS <= MOST_POINTS) };
        let rows = if self.form == Form::Bytes { bytes::ROWS } else { T::PIXELS };
        for split in 0..count.div_ceil(self.split) {
            for query in (0..self.queries).step_by(rows) {
                let values = Sources {
                    values: &self.values[(split * self.split * self.queries + query) * BLOCK..],
                    strides: [BLOCK, self.queries * BLOCK],
                    blocks: self.split.min(count - split * self.split),
                };
                let place = match self.form {
                    Form::Bytes => self.first_row(query, split),
                    _ => self.place::<T>(query, split),
                };
                let factors = &mut self.factors[split * self.queries + query..][..rows];
                let words = &mut words_mut(self.words)[place..];
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    if self.form == Form::Bytes {
                        bytes::round_sources::<T::Vector>(values, factors, words, bytes::ROW);
                    } else {
                        let strides = [PAIRS, T::PIXELS * PAIRS];
                        integers::quantize_sources::<T::Vector>(values, factors, words, strides);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn split(&mut self, count: usize) {
        for step in 0..count.div_ceil(amx::BLOCKS) {
            for query in 0..self.queries {
                let place = self.place_of_step(query, step);
                let block = |index: usize| {
                    self.values[(index * self.queries + query) * BLOCK..].first_chunk().expect("whole blocks")
                };
                let low = block(step * amx::BLOCKS);
                let last = step * amx::BLOCKS + 1;
                let high = if last < count { block(last) } else { &[0.0; BLOCK] };
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    amx::split_rows(
                        amx::EXACT_PARTS,
                        [low, high],
                        &mut words_mut(self.words)[place..],
                        amx::PART,
                    )
                };
            }
        }
    }
}
