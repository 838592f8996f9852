//! Convolutions by fewer multiplications: input, weights and output are transformed by short fixed linear maps, and
//! what is left between them is a set of independent matrix products.
//!
//! A [`Transform`] says which maps, in one direction; they are applied in both. The picture is cut into square tiles
//! of outputs that begin at its origin, and tiles into batches (`grid`). A task gathers the inputs of one batch, channel
//! block by channel block, transforms them (`inputs`), and then, for each chunk of output channels, multiplies all
//! points (`products`) and transforms back (`outputs`) while the products are still in the cache. Of a chunk's groups each
//! point is multiplied in turn, so that its inputs are read from the outer cache once for all. The weights are transformed
//! before (`weights`).
//!
//! The products are sums of `f32`, or exact sums of 16-bit integers with scales (`integers`, `bytes`).
//!
//! Every value is computed in the same way wherever a batch ends and whichever task treats it: the sum over input
//! channels goes in one order, and tiles do not look at each other, not even for their scales.

mod grid;
mod inputs;
mod outputs;
mod products;
mod weights;

use crate::convolution::{Arithmetic, Geometry};
use crate::epilogue::Target;
use crate::isa::{Isa, dispatch};
use crate::layout::BLOCK;
use crate::microkernel::Tile;
use crate::moments::Patches;
use crate::pool::{Pool, carve};
use crate::prologue::Source;
use crate::vector::Vector;
use crate::weights::{Compact, Span};
use grid::{Batch, Grid, groups_per_task};
use std::ops::Range;
use weights::Panels;

/// Inputs and products of a tile in one direction, at most.
pub(crate) const MOST: usize = 8;
/// Outputs of a tile in one direction, at most.
pub(crate) const MOST_OUTPUTS: usize = 6;
/// Taps of the kernel in one direction.
const TAPS: usize = 3;
/// Points lie this many 32-bit words further apart than they are long: one cache line, lest all fall into one cache set.
const SKEW: usize = 16;

/// The maps of a fast convolution with three taps, in one direction; arrays are filled as far as the map reaches.
pub(crate) trait Transform {
    /// Outputs of a tile.
    const OUTPUTS: usize;
    /// Inputs of a tile.
    const INPUTS: usize;
    /// Inputs from one tile to the next.
    const STEP: usize;
    /// Transformed inputs.
    const SOURCES: usize;
    /// Products.
    const PRODUCTS: usize;
    /// The transformed input of each product.
    const SOURCE_OF: [usize; MOST];
    /// Outputs of the first tile that lie before the picture.
    const SKIP: usize;

    /// Inputs → transformed inputs.
    ///
    /// # Safety
    /// The CPU has the instruction set of `V`.
    unsafe fn input<V: Vector>(inputs: [V; MOST]) -> [V; MOST];

    /// Weights → factors of the products.
    ///
    /// # Safety
    /// The CPU has the instruction set of `V`.
    unsafe fn weight<V: Vector>(weights: [V; TAPS]) -> [V; MOST];

    /// Products → outputs.
    ///
    /// # Safety
    /// The CPU has the instruction set of `V`.
    unsafe fn output<V: Vector>(products: [V; MOST]) -> [V; MOST_OUTPUTS];
}

/// `f32` that the transformed weights take.
pub(crate) fn weights_len<W: Transform>(isa: Isa, geometry: &Geometry, arithmetic: Arithmetic) -> usize {
    Panels::new::<W>(isa, geometry, arithmetic).total()
}

/// Strips of the output begin at rows `n · step − skip`; gives `[step, skip]`.
pub(crate) fn strip_grid<W: Transform>() -> [usize; 2] {
    [W::OUTPUTS, W::SKIP]
}

/// How the output is cut where its moments are taken.
pub(crate) fn patches<W: Transform>() -> Patches {
    Patches::of_tiles(W::OUTPUTS, W::SKIP)
}

/// Bytes of scratch that each of so many workers takes for the rows `rows` of an output of `width`.
pub(crate) fn worker_bytes<W: Transform>(
    isa: Isa,
    geometry: &Geometry,
    rows: Range<usize>,
    width: usize,
    arithmetic: Arithmetic,
    threads: usize,
) -> usize {
    let grid = Grid::new::<W>(isa, geometry, rows, width, arithmetic, threads);
    let weights = Panels::new::<W>(isa, geometry, arithmetic).worker_len();
    grid.scratch::<W>().sum().max(weights) * size_of::<f32>()
}

/// Convolves each frame's source with the input blocks `span` of `weights` (`[group of lanes][input block][tap][16][lanes]`)
/// into its target, all of one size; the transformed weights are made in `scratch`, at least [`weights_len`] long, unless
/// they are `ready` there.
pub(crate) fn run<W: Transform>(
    isa: Isa,
    pool: &Pool,
    (geometry, arithmetic): (Geometry, Arithmetic),
    (weights, span, bias): (&Compact, Span, &[f32]),
    frames: Vec<(Source<'_>, Target<'_>)>,
    scratch: &mut [f32],
    ready: bool,
) {
    let Some((_, first)) = frames.first() else { return };
    let panels = Panels::new::<W>(isa, &geometry, arithmetic);
    if !ready {
        weights::transform::<W>(isa, pool, panels, (weights, span), &mut scratch[..panels.total()]);
    }
    let grid = Grid::new::<W>(isa, &geometry, first.rows.clone(), first.size[1], arithmetic, pool.threads());
    let groups = geometry.output_channels.div_ceil(isa.lanes());
    let (groups_per_task, _) =
        groups_per_task(pool.threads(), grid.batches() * frames.len(), groups, grid.form);
    let weights = &*scratch;
    let jobs: Vec<Job<'_>> = frames
        .into_iter()
        .map(|(source, target)| Job {
            isa,
            geometry,
            panels,
            weights,
            bias,
            source,
            target,
            grid,
            groups,
            groups_per_task,
            threads: pool.threads(),
        })
        .collect();
    let tasks = grid.batches() * groups.div_ceil(groups_per_task);
    let lens = grid.scratch::<W>();
    pool.run_in_room(jobs.len() * tasks, lens.sum(), |room, index| {
        let (job, index) = (&jobs[index / tasks], index % tasks);
        let scratch = &mut Scratch::new(room, &lens);
        dispatch!(isa, task::<W: Transform>(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize));
    });
}

struct Job<'a> {
    isa: Isa,
    geometry: Geometry,
    panels: Panels,
    /// Transformed weights, laid out as `panels` says.
    weights: &'a [f32],
    bias: &'a [f32],
    source: Source<'a>,
    target: Target<'a>,
    grid: Grid,
    groups: usize,
    groups_per_task: usize,
    threads: usize,
}

struct Scratch<'a> {
    /// The inputs of a batch, `[channel block][row][column][16]`: one block, with integers those of a split.
    window: &'a mut [f32],
    /// With integers: one tile's transformed inputs before they are rounded, `[point][input block of the split][16]`.
    tile_sources: &'a mut [f32],
    /// Transformed inputs, `[point][tile / pixels][input block][tile % pixels][16]`, with integers a pair in each
    /// 32-bit word, or as `bytes` says, `[point][tile / 16][step]`; points skewed. The micro-kernel reads them from front to back.
    sources: &'a mut [f32],
    /// With integers: what undoes the scale, `[point][split][tile]`.
    source_factors: &'a mut [f32],
    /// Products of one chunk, `[group][point][tile][lanes]`, points skewed.
    products: &'a mut [f32],
    /// Outputs of one tile, `[row][column][16]`.
    tile: [f32; MOST_OUTPUTS * MOST_OUTPUTS * BLOCK],
}

impl<'a> Scratch<'a> {
    fn new(mut room: &'a mut [f32], lens: &grid::ScratchLens) -> Scratch<'a> {
        Scratch {
            window: carve(&mut room, lens.window),
            tile_sources: carve(&mut room, lens.tile_sources),
            sources: carve(&mut room, lens.sources),
            source_factors: carve(&mut room, lens.source_factors),
            products: carve(&mut room, lens.products),
            tile: [0.0; MOST_OUTPUTS * MOST_OUTPUTS * BLOCK],
        }
    }
}

#[inline(always)]
unsafe fn task<T: Tile, W: Transform>(job: &Job<'_>, scratch: &mut Scratch<'_>, index: usize) {
    let (part, batch) = (index / job.grid.batches(), job.grid.at(index % job.grid.batches()));
    let groups = part * job.groups_per_task..((part + 1) * job.groups_per_task).min(job.groups);
    // What this worker most likely does next.
    let next = index % job.grid.batches() + job.threads;
    let next = (next < job.grid.batches()).then(|| job.grid.at(next));
    // SAFETY: the caller vouches for the CPU; each batch and group belongs to one task.
    unsafe {
        inputs::transform::<T, W>(job, scratch, batch);
        let mut left = groups;
        while !left.is_empty() {
            let chunk = left.start..job.panels.chunk(left.start).end.min(left.end);
            left.start = chunk.end;
            products::multiply::<T, W>(job, scratch, batch, chunk.clone(), next.filter(|_| left.is_empty()));
            for (place, group) in chunk.enumerate() {
                outputs::transform::<T, W>(job, scratch, batch, group, place);
            }
        }
    }
}
