//! Convolutions by fewer multiplications: input, weights and output are transformed by short fixed linear maps, and
//! what is left between them is a set of independent matrix products.
//!
//! A [`Transform`] says which maps, in one direction; they are applied in both. The picture is cut into tiles of 4×4
//! outputs that begin at its origin, and tiles into blocks. A task gathers the inputs of one block, channel block by
//! channel block, transforms them, and then, for each group of output channels, multiplies all points and transforms
//! back while the products are still in the cache.
//!
//! Every value is computed in the same way wherever a block ends and whichever task treats it: the sum over input
//! channels is one chain in order, and tiles do not look at each other.

use crate::buffer::{self, Buffer};
use crate::convolution::Geometry;
use crate::epilogue::Target;
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::microkernel::{Rows, Tile};
use crate::pool::Pool;
use crate::prologue::Source;
use crate::shared::SharedOutput;
use crate::vector::Vector;
use crate::weights::Compact;

/// Outputs of a tile in one direction.
const OUTPUTS: usize = 4;
/// Taps of the kernel in one direction.
const TAPS: usize = 3;
/// Points lie this many `f32` further apart than they are long: one cache line, lest all fall into one cache set.
const SKEW: usize = 16;
/// The transformed inputs of a block are kept near this many `f32`, within these numbers of tiles.
const SOURCES_BUDGET: usize = 384 * 1024;
const TILES: [usize; 2] = [32, 96];
/// Input channel blocks whose weights are multiplied before the products are put down: their panel stays in the
/// first-level cache while all tiles of a block pass by.
const PASS: usize = 16;
/// Tasks for each thread, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;

/// The maps of a fast convolution with three taps and four outputs, in one direction; arrays of six are filled as far
/// as the map reaches.
pub(crate) trait Transform {
    /// Inputs of a tile.
    const INPUTS: usize;
    /// Inputs from one tile to the next.
    const STEP: usize;
    /// Transformed inputs.
    const SOURCES: usize;
    /// Products.
    const PRODUCTS: usize;
    /// The transformed input of each product.
    const SOURCE_OF: [usize; 6];
    /// Outputs of the first tile that lie before the picture.
    const SKIP: usize;

    /// Inputs → transformed inputs.
    ///
    /// # Safety
    /// The CPU has the instruction set of `V`.
    unsafe fn input<V: Vector>(inputs: [V; 6]) -> [V; 6];

    /// Weights → factors of the products.
    ///
    /// # Safety
    /// The CPU has the instruction set of `V`.
    unsafe fn weight<V: Vector>(weights: [V; TAPS]) -> [V; 6];

    /// Products → outputs.
    ///
    /// # Safety
    /// The CPU has the instruction set of `V`.
    unsafe fn output<V: Vector>(products: [V; 6]) -> [V; OUTPUTS];
}

/// How the tiles of an output are cut into blocks; a function of shape and tier alone.
#[derive(Clone, Copy)]
struct Grid {
    /// Tiles down and across.
    tiles: [usize; 2],
    /// Tiles of a block.
    block: [usize; 2],
    /// Blocks down and across.
    count: [usize; 2],
    /// Distances between points.
    source_stride: usize,
    product_stride: usize,
}

impl Grid {
    fn new<W: Transform>(isa: Isa, geometry: &Geometry, size: [usize; 2]) -> Grid {
        let tiles = size.map(|side| (side + W::SKIP).div_ceil(OUTPUTS));
        let tile_len = W::SOURCES * W::SOURCES * blocks(geometry.input_channels) * BLOCK;
        let most = (SOURCES_BUDGET / tile_len).clamp(TILES[0], TILES[1]);
        let mut best = ([1, 1], usize::MAX);
        for rows in 1..=most.min(tiles[0]) {
            for columns in 1..=(most / rows).min(tiles[1]) {
                let cost = block_cost::<W>(tiles, [rows, columns], isa.pixels());
                if cost < best.1 {
                    best = ([rows, columns], cost);
                }
            }
        }
        let block = best.0;
        let room = (block[0] * block[1]).next_multiple_of(isa.pixels());
        Grid {
            tiles,
            block,
            count: [0, 1].map(|axis| tiles[axis].div_ceil(block[axis])),
            source_stride: blocks(geometry.input_channels) * room * BLOCK + SKEW,
            product_stride: room * isa.lanes() + SKEW,
        }
    }

    fn blocks(&self) -> usize {
        self.count[0] * self.count[1]
    }

    /// `f32` of the parts of [`Scratch`].
    fn scratch<W: Transform>(&self) -> [usize; 3] {
        let patch = self.block.map(|tiles| patch_side::<W>(tiles));
        [
            patch[0] * patch[1] * BLOCK,
            W::SOURCES * W::SOURCES * self.source_stride,
            W::PRODUCTS * W::PRODUCTS * self.product_stride,
        ]
    }
}

/// Inputs of `tiles` neighbouring tiles.
const fn patch_side<W: Transform>(tiles: usize) -> usize {
    (tiles - 1) * W::STEP + W::INPUTS
}

/// What cutting `tiles` into blocks of `block` costs beside the products themselves: places of the micro-kernel that
/// no tile fills, inputs read by two blocks, and the weights' way through the cache for each block. The unit is a tenth
/// of a tile's products; an input pixel and a block count about as much as was measured.
fn block_cost<W: Transform>(tiles: [usize; 2], block: [usize; 2], pixels: usize) -> usize {
    let mut cost = 0;
    let parts = [0, 1].map(|axis| {
        let rest = tiles[axis] % block[axis];
        [(block[axis], tiles[axis] / block[axis]), (rest, usize::from(rest > 0))]
    });
    for (rows, vertical) in parts[0] {
        for (columns, horizontal) in parts[1] {
            if vertical * horizontal > 0 {
                let products = (rows * columns).next_multiple_of(pixels) * 10;
                let inputs = patch_side::<W>(rows) * patch_side::<W>(columns) / 10;
                cost += vertical * horizontal * (products + inputs + 80);
            }
        }
    }
    cost
}

/// `f32` that the transformed weights take, and what [`transform_weights`] needs.
pub(crate) fn weights_len<W: Transform>(isa: Isa, geometry: &Geometry) -> usize {
    let groups = geometry.output_channels.div_ceil(isa.lanes());
    groups * W::PRODUCTS * W::PRODUCTS * panel_stride(isa, geometry)
}

fn panel_stride(isa: Isa, geometry: &Geometry) -> usize {
    blocks(geometry.input_channels) * BLOCK * isa.lanes() + SKEW
}

/// Bytes of scratch that each worker takes for an output of `size`.
pub(crate) fn worker_bytes<W: Transform>(isa: Isa, geometry: &Geometry, size: [usize; 2]) -> usize {
    let grid = Grid::new::<W>(isa, geometry, size);
    let weights = TAPS * TAPS * BLOCK * isa.lanes();
    grid.scratch::<W>().iter().sum::<usize>().max(weights) * size_of::<f32>()
}

/// Convolves `source` with `weights` (`[group of lanes][input block][tap][16][lanes]`) into `target`; the transformed
/// weights are made in `scratch`, [`weights_len`] long.
pub(crate) fn run<W: Transform>(
    isa: Isa,
    pool: &Pool,
    geometry: Geometry,
    (weights, bias): (&Compact, &[f32]),
    source: Source<'_>,
    target: Target<'_>,
    scratch: &mut [f32],
) {
    transform_weights::<W>(isa, pool, &geometry, weights, scratch);
    let grid = Grid::new::<W>(isa, &geometry, target.size);
    let groups = geometry.output_channels.div_ceil(isa.lanes());
    // Each part transforms the inputs anew, so a block is cut no finer than the threads need.
    let parts = (pool.threads() * TASKS_PER_THREAD).div_ceil(grid.blocks()).min(groups);
    let groups_per_task = groups.div_ceil(parts);
    let job = Job { geometry, panels: scratch, bias, source, target, grid, groups, groups_per_task };
    let [patch, sources, products] = grid.scratch::<W>();
    pool.run(
        grid.blocks() * groups.div_ceil(groups_per_task),
        || Scratch {
            patch: buffer::worker(patch),
            sources: buffer::worker(sources),
            products: buffer::worker(products),
            tile: [0.0; OUTPUTS * OUTPUTS * BLOCK],
        },
        |scratch, index| {
            let job = &job;
            dispatch!(isa, block::<W: Transform>(job: &Job<'_>, scratch: &mut Scratch, index: usize));
        },
    );
}

struct Job<'a> {
    geometry: Geometry,
    /// Transformed weights: `[group][point][input block][16][lanes]`, points skewed.
    panels: &'a [f32],
    bias: &'a [f32],
    source: Source<'a>,
    target: Target<'a>,
    grid: Grid,
    groups: usize,
    groups_per_task: usize,
}

struct Scratch {
    /// One channel block of a block's inputs, `[row][column][16]`.
    patch: Buffer,
    /// Transformed inputs, `[point][tile / pixels][input block][tile % pixels][16]`, points skewed: the micro-kernel
    /// reads them from front to back.
    sources: Buffer,
    /// Products of one group, `[point][tile][lanes]`, points skewed.
    products: Buffer,
    /// Outputs of one tile, `[row][column][16]`.
    tile: [f32; OUTPUTS * OUTPUTS * BLOCK],
}

/// Makes [`Job::panels`].
fn transform_weights<W: Transform>(
    isa: Isa,
    pool: &Pool,
    geometry: &Geometry,
    weights: &Compact,
    panels: &mut [f32],
) {
    let stride = panel_stride(isa, geometry);
    let input_blocks = blocks(geometry.input_channels);
    let panels = SharedOutput::new(panels);
    pool.run(
        geometry.output_channels.div_ceil(isa.lanes()) * input_blocks,
        || buffer::worker(TAPS * TAPS * BLOCK * isa.lanes()),
        |room, index| {
            let (group, block) = (index / input_blocks, index % input_blocks);
            let job = &WeightJob { weights, panels: &panels, stride, group, block, index };
            dispatch!(isa, weight_panel::<W: Transform>(job: &WeightJob<'_>, room: &mut [f32]));
        },
    );
}

struct WeightJob<'a> {
    weights: &'a Compact,
    panels: &'a SharedOutput<'a>,
    stride: usize,
    group: usize,
    block: usize,
    index: usize,
}

/// Transforms the weights between sixteen input channels and one group of output channels.
#[inline(always)]
unsafe fn weight_panel<T: Tile, W: Transform>(job: &WeightJob<'_>, room: &mut [f32]) {
    let len = TAPS * TAPS * BLOCK * T::LANES;
    let taps = job.weights.widen(job.index * len, len, room);
    let points = W::PRODUCTS * W::PRODUCTS;
    for row in (0..BLOCK * T::LANES).step_by(<T::Vector as Vector>::LANES) {
        // SAFETY: the caller vouches for the CPU; each task owns the parts of its group and input block.
        unsafe {
            let mut half = [[T::Vector::splat(0.0); TAPS]; 6];
            for column in 0..TAPS {
                let mut w = [T::Vector::splat(0.0); TAPS];
                for (y, w) in w.iter_mut().enumerate() {
                    let from = (y * TAPS + column) * BLOCK * T::LANES + row;
                    *w = T::Vector::load(&taps[from..][..<T::Vector as Vector>::LANES]);
                }
                let factors = W::weight(w);
                for (half, factor) in half.iter_mut().zip(factors) {
                    half[column] = factor;
                }
            }
            for (y, half) in half.into_iter().enumerate().take(W::PRODUCTS) {
                for (x, factor) in W::weight(half).into_iter().enumerate().take(W::PRODUCTS) {
                    let point = job.group * points + y * W::PRODUCTS + x;
                    let offset = point * job.stride + job.block * BLOCK * T::LANES + row;
                    factor.store(job.panels.part(offset, <T::Vector as Vector>::LANES));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn block<T: Tile, W: Transform>(job: &Job<'_>, scratch: &mut Scratch, index: usize) {
    let grid = &job.grid;
    let (part, position) = (index / grid.blocks(), index % grid.blocks());
    let origin = [position / grid.count[1] * grid.block[0], position % grid.count[1] * grid.block[1]];
    let size = [0, 1].map(|axis| grid.block[axis].min(grid.tiles[axis] - origin[axis]));
    let first = part * job.groups_per_task;
    // SAFETY: the caller vouches for the CPU; each block and group belongs to one task.
    unsafe {
        transform_inputs::<T, W>(job, scratch, origin, size);
        for group in first..(first + job.groups_per_task).min(job.groups) {
            multiply::<T, W>(job, scratch, origin, size, group);
            transform_outputs::<T, W>(job, scratch, origin, size, group);
        }
    }
}

#[inline(always)]
unsafe fn transform_inputs<T: Tile, W: Transform>(
    job: &Job<'_>,
    scratch: &mut Scratch,
    origin: [usize; 2],
    [rows, columns]: [usize; 2],
) {
    let corner = origin.map(|tile| tile * W::STEP);
    let patch_columns = patch_side::<W>(columns);
    let patch = &mut scratch.patch[..patch_side::<W>(rows) * patch_columns * BLOCK];
    let input_blocks = blocks(job.geometry.input_channels);
    for block in 0..input_blocks {
        if block + 1 < input_blocks {
            job.source.prefetch(block + 1, corner, [patch_side::<W>(rows), patch_columns]);
        }
        // SAFETY: the caller vouches for the CPU.
        unsafe { job.source.gather::<T>(block, corner, patch_columns, patch) };
        for row in 0..rows {
            for column in 0..columns {
                let inputs = &patch[(row * patch_columns + column) * W::STEP * BLOCK..];
                let tile = row * columns + column;
                let (chunk, place) = (tile / T::PIXELS, tile % T::PIXELS);
                let offset = ((chunk * input_blocks + block) * T::PIXELS + place) * BLOCK;
                let out = &mut scratch.sources[offset..];
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    transform_input::<T::Vector, W>(
                        inputs,
                        patch_columns * BLOCK,
                        out,
                        job.grid.source_stride,
                    );
                }
            }
        }
    }
}

/// One tile and channel block: `inputs` with rows `row_stride` apart → points `stride` apart.
#[inline(always)]
unsafe fn transform_input<V: Vector, W: Transform>(
    inputs: &[f32],
    row_stride: usize,
    out: &mut [f32],
    stride: usize,
) {
    for lane in (0..BLOCK).step_by(V::LANES) {
        // SAFETY: the caller vouches for the CPU; slices are cut to the length that is read or written.
        unsafe {
            let mut half = [[V::splat(0.0); 6]; 6];
            for x in 0..W::INPUTS {
                let mut d = [V::splat(0.0); 6];
                for y in 0..W::INPUTS {
                    d[y] = V::load(&inputs[y * row_stride + x * BLOCK + lane..][..V::LANES]);
                }
                let d = W::input(d);
                for y in 0..W::SOURCES {
                    half[y][x] = d[y];
                }
            }
            for y in 0..W::SOURCES {
                let d = W::input(half[y]);
                for x in 0..W::SOURCES {
                    d[x].store(&mut out[(y * W::SOURCES + x) * stride + lane..][..V::LANES]);
                }
            }
        }
    }
}

/// All products of one block and one group of output channels.
#[inline(always)]
unsafe fn multiply<T: Tile, W: Transform>(
    job: &Job<'_>,
    scratch: &mut Scratch,
    origin: [usize; 2],
    [rows, columns]: [usize; 2],
    group: usize,
) {
    let grid = &job.grid;
    let tiles = rows * columns;
    let input_blocks = blocks(job.geometry.input_channels);
    let panel_len = input_blocks * BLOCK * T::LANES;
    for y in 0..W::PRODUCTS {
        for x in 0..W::PRODUCTS {
            let point = y * W::PRODUCTS + x;
            prefetch_outputs::<T, W>(job, origin, [rows, columns], group, point);
            let source = W::SOURCE_OF[y] * W::SOURCES + W::SOURCE_OF[x];
            let panel =
                &job.panels[(group * W::PRODUCTS * W::PRODUCTS + point) * (panel_len + SKEW)..][..panel_len];
            let products = &mut scratch.products[point * grid.product_stride..];
            for (pass, panel) in panel.chunks(PASS * BLOCK * T::LANES).enumerate() {
                for tile in (0..tiles).step_by(T::PIXELS) {
                    let left = Rows {
                        patch: &scratch.sources,
                        start: source * grid.source_stride
                            + (tile * input_blocks + pass * PASS * T::PIXELS) * BLOCK,
                        row_stride: BLOCK,
                        block_stride: T::PIXELS * BLOCK,
                        taps: &[0],
                    };
                    let products = &mut products[tile * T::LANES..];
                    // SAFETY: the caller vouches for the CPU.
                    unsafe {
                        if pass == 0 {
                            T::product(&left, panel, products);
                        } else {
                            T::accumulate(&left, panel, products);
                        }
                    }
                }
            }
        }
    }
}

/// Asks for one point's share of the output rows that this block and group will write.
#[inline(always)]
fn prefetch_outputs<T: Tile, W: Transform>(
    job: &Job<'_>,
    origin: [usize; 2],
    [rows, columns]: [usize; 2],
    group: usize,
    point: usize,
) {
    let (points, height) = (W::PRODUCTS * W::PRODUCTS, rows * OUTPUTS);
    let lines = height * (T::LANES / BLOCK);
    let corner = origin.map(|tile| (tile * OUTPUTS).saturating_sub(W::SKIP));
    for line in point * lines / points..(point + 1) * lines / points {
        let block = group * (T::LANES / BLOCK) + line / height;
        job.target.prefetch(block, [corner[0] + line % height, corner[1]], columns * OUTPUTS);
    }
}

#[inline(always)]
unsafe fn transform_outputs<T: Tile, W: Transform>(
    job: &Job<'_>,
    scratch: &mut Scratch,
    origin: [usize; 2],
    [rows, columns]: [usize; 2],
    group: usize,
) {
    let first = group * (T::LANES / BLOCK);
    for block in first..(first + T::LANES / BLOCK).min(blocks(job.geometry.output_channels)) {
        let bias = &job.bias[block * BLOCK..][..BLOCK];
        for row in 0..rows {
            for column in 0..columns {
                let tile = (row * columns + column) * T::LANES + (block - first) * BLOCK;
                // SAFETY: the caller vouches for the CPU and for this block's and group's output.
                unsafe {
                    transform_output::<T::Vector, W>(
                        &scratch.products[tile..],
                        job.grid.product_stride,
                        bias,
                        &mut scratch.tile,
                    );
                    store::<T, W>(job, block, [origin[0] + row, origin[1] + column], &scratch.tile);
                }
            }
        }
    }
}

/// One tile and channel block: points `stride` apart → `[row][column][16]` with bias.
#[inline(always)]
unsafe fn transform_output<V: Vector, W: Transform>(
    products: &[f32],
    stride: usize,
    bias: &[f32],
    out: &mut [f32; OUTPUTS * OUTPUTS * BLOCK],
) {
    for lane in (0..BLOCK).step_by(V::LANES) {
        // SAFETY: the caller vouches for the CPU; slices are cut to the length that is read or written.
        unsafe {
            let bias = V::load(&bias[lane..][..V::LANES]);
            let mut half = [[V::splat(0.0); 6]; OUTPUTS];
            for y in 0..W::PRODUCTS {
                let mut m = [V::splat(0.0); 6];
                for x in 0..W::PRODUCTS {
                    m[x] = V::load(&products[(y * W::PRODUCTS + x) * stride + lane..][..V::LANES]);
                }
                let m = W::output(m);
                for x in 0..OUTPUTS {
                    half[x][y] = m[x];
                }
            }
            for x in 0..OUTPUTS {
                let outputs = W::output(half[x]);
                for y in 0..OUTPUTS {
                    let place = &mut out[(y * OUTPUTS + x) * BLOCK + lane..][..V::LANES];
                    outputs[y].plus(bias).store(place);
                }
            }
        }
    }
}

/// Writes what of a tile lies inside the picture.
///
/// # Safety
/// No other task treats this tile and channel block.
#[inline(always)]
unsafe fn store<T: Tile, W: Transform>(job: &Job<'_>, block: usize, tile: [usize; 2], values: &[f32]) {
    let range = |axis: usize| {
        let start = (tile[axis] * OUTPUTS).saturating_sub(W::SKIP);
        let end = (tile[axis] * OUTPUTS + OUTPUTS - W::SKIP).min(job.target.size[axis]);
        // How many of the tile's outputs come before the picture.
        (start, end, start + W::SKIP - tile[axis] * OUTPUTS)
    };
    let ((top, bottom, above), (left, right, before)) = (range(0), range(1));
    for row in top..bottom {
        let values = &values[((row - top + above) * OUTPUTS + before) * BLOCK..];
        // SAFETY: the caller's contract.
        unsafe { job.target.finish::<T>(block, [row, left], right - left, values, BLOCK) };
    }
}
