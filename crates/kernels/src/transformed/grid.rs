//! How the tiles of an output are cut into batches, and how much memory one batch takes. Nothing here touches numbers.

use super::weights::Panels;
use super::{SKEW, Transform};
use crate::bytes;
use crate::convolution::{Arithmetic, Geometry};
use crate::form::Form;
use crate::integers::SPLIT;
use crate::isa::Isa;
use crate::layout::{BLOCK, blocks};
use crate::moments::PATCH_TILES;
use crate::pool::whole_lines;
use std::ops::Range;

/// The transformed inputs of a batch are kept near this many bytes, within these numbers of tiles.
const SOURCES_BUDGET: usize = 1536 * 1024;
const TILES: [usize; 2] = [32, 64];
/// The same of the form `Bytes`, whose products are so fast that the weights' way through the cache counts more.
const BUDGET_OF_BYTES: usize = 2 * SOURCES_BUDGET;
/// Those beside transformed weights of more than `LARGE_WEIGHTS` bytes, which come from the outer cache for each batch, where
/// the threads do not wait longer for each other for it; sizes at which that was measured to be faster.
const BUDGET_BESIDE_LARGE_WEIGHTS: usize = 4 * SOURCES_BUDGET;
const TILES_BESIDE_LARGE_WEIGHTS: usize = 128;
const LARGE_WEIGHTS: usize = 3 << 20;
/// The part of the time that threads may wait longer.
const SLACK: usize = 16;
/// Groups of output channels whose products are made point by point together, and input blocks from which on they are: where a
/// batch's transformed inputs fill the second-level cache, each point's are brought from the outer one once for all groups
/// of a chunk. Other forms, and fewer blocks, were not faster for it.
const CHUNK: usize = 2;
const BLOCKS_FOR_CHUNKS: usize = 16;
const BLOCKS_FOR_CHUNKS_OF_FLOATS: usize = 32;

/// Groups of output channels in a chunk.
pub(super) fn groups_of_chunk(form: Form, input_blocks: usize) -> usize {
    match form {
        Form::Bytes if input_blocks >= BLOCKS_FOR_CHUNKS => CHUNK,
        Form::Float32 if input_blocks >= BLOCKS_FOR_CHUNKS_OF_FLOATS => CHUNK,
        _ => 1,
    }
}

/// Tiles that are multiplied at once.
pub(super) fn rows_at_once(isa: Isa, form: Form) -> usize {
    if form == Form::Bytes { bytes::ROWS } else { isa.pixels() }
}

/// Neighbouring tiles that one task treats together.
#[derive(Clone, Copy)]
pub(super) struct Batch {
    /// Row and column of the first tile.
    pub origin: [usize; 2],
    /// Tiles down and across.
    pub size: [usize; 2],
}

/// How the tiles of some rows of an output are cut into batches.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub form: Form,
    /// Channel blocks of the input.
    pub input_blocks: usize,
    /// The first row of tiles.
    first: usize,
    /// Tiles down and across.
    tiles: [usize; 2],
    /// Tiles of a batch, down and across.
    batch: [usize; 2],
    /// Batches down and across.
    count: [usize; 2],
    /// Places for the tiles of a batch: whole passes of the micro-kernel.
    pub room: usize,
    /// 32-bit words from one point's transformed inputs to the next's.
    pub source_stride: usize,
    /// `f32` from one point's products to the next's.
    pub product_stride: usize,
    /// Groups of output channels whose products are there at the same time.
    groups_at_once: usize,
}

/// `f32` of the parts of a worker's scratch.
pub(super) struct ScratchLens {
    pub window: usize,
    pub tile_sources: usize,
    pub sources: usize,
    pub source_factors: usize,
    pub products: usize,
}

impl ScratchLens {
    /// `f32` of all.
    pub(super) fn sum(&self) -> usize {
        [self.window, self.tile_sources, self.sources, self.source_factors, self.products]
            .into_iter()
            .map(whole_lines)
            .sum()
    }
}

impl Grid {
    /// Of one frame.
    pub(super) fn new<W: Transform>(
        isa: Isa,
        geometry: &Geometry,
        rows: Range<usize>,
        width: usize,
        arithmetic: Arithmetic,
        threads: usize,
    ) -> Grid {
        let first = (rows.start + W::SKIP) / W::OUTPUTS;
        let tiles = [rows.end, width].map(|end| (end + W::SKIP).div_ceil(W::OUTPUTS));
        let tiles = [tiles[0] - first, tiles[1]];
        let input_blocks = blocks(geometry.input_channels);
        let form = Form::of_transformed(isa, arithmetic);
        let words = form.padded(input_blocks) * form.words_per_block();
        // With integers the inputs of a split lie beside the transformed ones; those of one block do not count.
        let split = if form.is_integers() { input_blocks.min(SPLIT) } else { 0 };
        let window = W::STEP * W::STEP * split * BLOCK;
        let tile_bytes = (W::SOURCES * W::SOURCES * words + window) * size_of::<f32>();
        let cut = |budget: usize, most: usize| {
            let most = (budget / tile_bytes).clamp(TILES[0], most);
            // Otherwise a batch might have room for no whole patch.
            const { assert!(TILES[0] >= PATCH_TILES) };
            let mut best = ([1, 1], usize::MAX);
            for rows in 1..=most.min(tiles[0]) {
                // A batch holds whole patches, of which moments may be taken.
                let whole = |columns: &usize| columns.is_multiple_of(PATCH_TILES) || *columns == tiles[1];
                for columns in (1..=(most / rows).min(tiles[1])).filter(whole) {
                    let cost = batch_cost::<W>(tiles, [rows, columns], rows_at_once(isa, form));
                    if cost < best.1 {
                        best = ([rows, columns], cost);
                    }
                }
            }
            best.0
        };
        let groups = geometry.output_channels.div_ceil(isa.lanes());
        let mut batch = cut(if form == Form::Bytes { BUDGET_OF_BYTES } else { SOURCES_BUDGET }, TILES[1]);
        let weights = Panels::new::<W>(isa, geometry, arithmetic).total() * size_of::<f32>();
        if form == Form::Bytes && weights > LARGE_WEIGHTS {
            let larger = cut(BUDGET_BESIDE_LARGE_WEIGHTS, TILES_BESIDE_LARGE_WEIGHTS);
            let [time, time_of_larger] =
                [batch, larger].map(|batch| time_of_batches(tiles, batch, threads, groups, form));
            if time_of_larger <= time + time / SLACK {
                batch = larger;
            }
        }
        let room = (batch[0] * batch[1]).next_multiple_of(rows_at_once(isa, form));
        Grid {
            form,
            input_blocks,
            first,
            tiles,
            batch,
            count: [0, 1].map(|axis| tiles[axis].div_ceil(batch[axis])),
            room,
            source_stride: words * room + SKEW,
            product_stride: room * isa.lanes() + SKEW,
            groups_at_once: groups_of_chunk(form, input_blocks).min(groups),
        }
    }

    /// How many batches there are.
    pub(super) fn batches(&self) -> usize {
        self.count[0] * self.count[1]
    }

    /// The batch `position` of [`Grid::batches`].
    pub(super) fn at(&self, position: usize) -> Batch {
        let place = [position / self.count[1], position % self.count[1]];
        let origin = [0, 1].map(|axis| place[axis] * self.batch[axis]);
        let size = [0, 1].map(|axis| self.batch[axis].min(self.tiles[axis] - origin[axis]));
        Batch { origin: [self.first + origin[0], origin[1]], size }
    }

    /// Splits of the input channels, each with scales of its own.
    pub(super) fn splits(&self) -> usize {
        self.input_blocks.div_ceil(SPLIT)
    }

    /// Where, with bytes, a point's transformed inputs of a split begin, for the rows that `tile` is one of.
    pub(super) fn first_row(&self, tile: usize, split: usize) -> usize {
        bytes::first_row(tile, split * SPLIT, self.input_blocks)
    }

    pub(super) fn scratch<W: Transform>(&self) -> ScratchLens {
        let points = W::SOURCES * W::SOURCES;
        let window = self.batch.map(window_side::<W>).iter().product::<usize>() * BLOCK;
        let [window_blocks, tile_sources, source_factors] = if self.form.is_integers() {
            let split = self.input_blocks.min(SPLIT);
            [split, points * SPLIT * BLOCK, points * self.splits() * self.room]
        } else {
            [1, 0, 0]
        };
        ScratchLens {
            window: window_blocks * window,
            tile_sources,
            sources: points * self.source_stride,
            source_factors,
            products: self.groups_at_once * W::PRODUCTS * W::PRODUCTS * self.product_stride,
        }
    }
}

/// How many groups of output channels a task treats: all of a batch's, unless the threads would wait for each other; and the
/// time that takes, in those of a group's products of a batch. Each task transforms the inputs of its batch, which takes as
/// long as the products of some groups.
pub(super) fn groups_per_task(threads: usize, batches: usize, groups: usize, form: Form) -> (usize, usize) {
    let inputs = match form {
        Form::Bytes => 6,
        Form::Pairs => 2,
        Form::Float32 | Form::Bfloat16 => 1,
    };
    let time = |each: usize| (batches * groups.div_ceil(each)).div_ceil(threads) * (inputs + each);
    // Of equals the one with the fewest tasks.
    (1..=groups).rev().map(|each| (each, time(each))).min_by_key(|(_, time)| *time).unwrap_or((1, 0))
}

/// How long `threads` take for `tiles` in batches of `batch`, in the time of a group's products of a tile.
fn time_of_batches(tiles: [usize; 2], batch: [usize; 2], threads: usize, groups: usize, form: Form) -> usize {
    let batches = tiles[0].div_ceil(batch[0]) * tiles[1].div_ceil(batch[1]);
    let (each, time) = groups_per_task(threads, batches, groups, form);
    let rounds = (batches * groups.div_ceil(each)).div_ceil(threads);
    // Batches at the edges are smaller, but the first may be the last that is finished.
    (time * tiles[0] * tiles[1] / batches).max(time / rounds * batch[0] * batch[1])
}

/// Inputs that `tiles` neighbouring tiles read, in one direction.
pub(super) const fn window_side<W: Transform>(tiles: usize) -> usize {
    (tiles - 1) * W::STEP + W::INPUTS
}

/// What cutting `tiles` into batches of `batch` costs beside the products themselves: places of the micro-kernel that
/// no tile fills, inputs read by two batches, and the weights' way through the cache for each batch. The unit is a
/// tenth of a tile's products; an input pixel and a batch count about as much as was measured.
fn batch_cost<W: Transform>(tiles: [usize; 2], batch: [usize; 2], pixels: usize) -> usize {
    let mut cost = 0;
    let parts = [0, 1].map(|axis| {
        let rest = tiles[axis] % batch[axis];
        [(batch[axis], tiles[axis] / batch[axis]), (rest, usize::from(rest > 0))]
    });
    for (rows, vertical) in parts[0] {
        for (columns, horizontal) in parts[1] {
            if vertical * horizontal > 0 {
                let products = (rows * columns).next_multiple_of(pixels) * 10;
                let inputs = window_side::<W>(rows) * window_side::<W>(columns) / 10;
                cost += vertical * horizontal * (products + inputs + 80);
            }
        }
    }
    cost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn larger_batches_are_weighed_against_waiting() {
        let time = |tiles, batch, threads| time_of_batches(tiles, batch, threads, 16, Form::Bytes);
        assert_eq!(time([16, 16], [8, 8], 2), time([16, 16], [16, 8], 2));
        assert!(time([16, 24], [8, 8], 2) < time([16, 24], [16, 8], 2));
        assert!(time([8, 17], [8, 8], 2) < time([8, 17], [8, 16], 2));
        assert_eq!(time([8, 17], [8, 8], 1) / 8, time([8, 17], [8, 16], 1) / 8);
    }

    #[test]
    fn a_batch_is_cut_where_threads_would_wait() {
        for form in [Form::Float32, Form::Pairs, Form::Bytes] {
            assert_eq!(groups_per_task(1, 5, 16, form).0, 16);
            assert_eq!(groups_per_task(2, 6, 4, form).0, 4);
            assert_eq!(groups_per_task(4, 1, 16, form).0, 4);
            assert_eq!(groups_per_task(64, 2, 16, form).0, 1);
            assert_eq!(groups_per_task(3, 7, 1, form).0, 1);
        }
    }
}
