//! Convolutions to few output channels as shifted sums (kn2row: Vasudevan, Anderson and Gregg, 2017).
//!
//! Where output channels alone would leave most lanes of a register empty, the kernel's taps share the lanes with them:
//! each input pixel is multiplied once with the weights of all taps, and an output is the sum of what the pixels under
//! its kernel have for it. Three channels of a 3×3 kernel fill 27 of 32 lanes.
//!
//! A task goes down a band of the picture row by row. A pixel's products are summed over input channels in one order, and
//! an output's taps are added in their order, so bands and their columns change no byte. The products are `f32` in
//! either arithmetic: there are too few to repay the rounding of inputs.

use crate::ahead::Ahead;
use crate::convolution::Geometry;
use crate::epilogue::Target;
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::microkernel::{Rows, Tile};
use crate::pool::{Pool, carve, whole_lines};
use crate::prologue::Source;
use crate::weights::{self, Span};
use std::ops::Range;

/// Output channels, at most; sums are kept in as many lanes.
const MOST_CHANNELS: usize = 4;
/// Columns of a band, at most.
const MOST_COLUMNS: usize = 128;
/// `f32` of a band's input row, about, so that it stays in a core's second-level cache.
const ROW_BUDGET: usize = 64 * 1024;
/// Input channel blocks whose weights are multiplied before the sums are put down: their panel stays in the first-level
/// cache while a row passes by.
const PASS: usize = 8;
/// Tasks for each thread, so that none waits long for the last.
const TASKS_PER_THREAD: usize = 4;
/// Rows of a band, at least: each band reads the rows above and below it again.
const LEAST_ROWS: usize = 4;

/// Whether a convolution is computed here; pointwise ones have a path of their own.
pub(crate) fn fits(geometry: &Geometry) -> bool {
    (1..=MOST_CHANNELS).contains(&geometry.output_channels)
        && geometry.stride == 1
        && geometry.kernel != [1, 1]
}

/// Where taps lie: `[group of lanes][tap][output channel]`, no tap in two groups.
#[derive(Clone, Copy)]
struct Shape {
    kernel: [usize; 2],
    channels: usize,
    input_blocks: usize,
    lanes: usize,
    /// Columns of a band.
    columns: usize,
    /// Columns of its input, in whole passes of the micro-kernel.
    input_columns: usize,
}

impl Shape {
    fn new(isa: Isa, geometry: &Geometry, width: usize) -> Shape {
        let input_blocks = blocks(geometry.input_channels);
        let most = (ROW_BUDGET / (input_blocks * BLOCK)).clamp(isa.pixels(), MOST_COLUMNS);
        let columns = width.div_ceil(width.div_ceil(most).max(1));
        Shape {
            kernel: geometry.kernel,
            channels: geometry.output_channels,
            input_blocks,
            lanes: isa.lanes(),
            columns,
            input_columns: (columns + geometry.kernel[1] - 1).next_multiple_of(isa.pixels()),
        }
    }

    /// Taps in the lanes of a group.
    fn taps_per_group(&self) -> usize {
        self.lanes / self.channels
    }

    fn groups(&self) -> usize {
        (self.kernel[0] * self.kernel[1]).div_ceil(self.taps_per_group())
    }

    /// The group of a tap, and its first lane there.
    fn place(&self, tap: usize) -> [usize; 2] {
        [tap / self.taps_per_group(), tap % self.taps_per_group() * self.channels]
    }

    /// From one channel block of an input row to the next: one cache line more than it is long, lest all fall into few
    /// cache sets.
    fn block_stride(&self) -> usize {
        (self.input_columns + 1) * BLOCK
    }

    /// From one row of sums to the next: the epilogue looks at sixteen values for each pixel.
    fn sums_stride(&self) -> usize {
        self.columns * MOST_CHANNELS + BLOCK
    }

    /// `f32` of the parts of [`Scratch`].
    fn worker_lens(&self) -> [usize; 3] {
        [
            self.input_blocks * self.block_stride(),
            // Whole pixels are read from any lane on.
            (self.groups() * self.input_columns + 1) * self.lanes,
            self.kernel[0] * self.sums_stride(),
        ]
    }
}

/// Bytes of scratch that each worker takes for an output of `width`.
pub(crate) fn worker_bytes(isa: Isa, geometry: &Geometry, width: usize) -> usize {
    Shape::new(isa, geometry, width).worker_lens().map(whole_lines).iter().sum::<usize>() * size_of::<f32>()
}

/// Bytes of the laid-out weights.
pub(crate) fn weight_bytes(isa: Isa, geometry: &Geometry) -> usize {
    let shape = Shape::new(isa, geometry, 1);
    shape.groups() * shape.input_blocks * BLOCK * shape.lanes * size_of::<f32>()
}

/// `weight` (`[output, input, taps]`) as `[group][input block][16][lanes]`, zero in lanes without a tap.
pub(crate) fn panels(isa: Isa, pool: &Pool, geometry: &Geometry, weight: &[f32]) -> Vec<f32> {
    let shape = Shape::new(isa, geometry, 1);
    let taps = geometry.kernel[0] * geometry.kernel[1];
    let Geometry { input_channels, output_channels, .. } = *geometry;
    assert_eq!(weight.len(), output_channels * input_channels * taps);
    let lanes = shape.groups() * shape.lanes;
    let mut rows = vec![0.0; lanes * input_channels];
    for tap in 0..taps {
        let [group, lane] = shape.place(tap);
        for output in 0..output_channels {
            let row = group * shape.lanes + lane + output;
            for input in 0..input_channels {
                rows[row * input_channels + input] = weight[(output * input_channels + input) * taps + tap];
            }
        }
    }
    let pointwise = Geometry { kernel: [1, 1], output_channels: lanes, ..*geometry };
    weights::panels(isa, pool, &pointwise, &rows, |value| value)
}

/// Convolves each frame's source with the input blocks `span` of `panels` (see [`panels`]) into its target, all of one
/// size.
pub(crate) fn run(
    isa: Isa,
    pool: &Pool,
    geometry: Geometry,
    (panels, span, bias): (&[f32], Span, &[f32]),
    frames: Vec<(Source<'_>, Target<'_>)>,
) {
    let Some((_, target)) = frames.first() else { return };
    let (rows, width) = (target.rows.clone(), target.size[1]);
    let shape = Shape::new(isa, &geometry, width);
    let jobs: Vec<Job<'_>> = frames
        .into_iter()
        .map(|(source, target)| Job { shape, span, panels, bias, source, target })
        .collect();
    let across = width.div_ceil(shape.columns);
    let wanted = (pool.threads() * TASKS_PER_THREAD).div_ceil(across * jobs.len());
    let band = rows.len().div_ceil(wanted).max(LEAST_ROWS);
    let tasks = across * rows.len().div_ceil(band);
    let lens = shape.worker_lens();
    pool.run_in_room(jobs.len() * tasks, lens.map(whole_lines).iter().sum(), |mut room, index| {
        let (job, index) = (&jobs[index / tasks], index % tasks);
        let [patch, products, sums] = lens.map(|len| carve(&mut room, len));
        let scratch = &mut Scratch { patch, products, sums };
        let first = rows.start + index / across * band;
        let rows = first..(first + band).min(rows.end);
        let left = index % across * shape.columns;
        let columns = left..(left + shape.columns).min(width);
        dispatch!(
            isa,
            task(job: &Job<'_>, scratch: &mut Scratch<'_>, rows: Range<usize>, columns: Range<usize>)
        );
    });
}

struct Job<'a> {
    shape: Shape,
    span: Span,
    panels: &'a [f32],
    bias: &'a [f32],
    source: Source<'a>,
    target: Target<'a>,
}

struct Scratch<'a> {
    /// One row of the input, `[input block][column][16]`, blocks [`Shape::block_stride`] apart.
    patch: &'a mut [f32],
    /// Its products with all weights, `[group][column][lanes]`.
    products: &'a mut [f32],
    /// Output rows that have begun, `[row % kernel height][column][MOST_CHANNELS]`, rows [`Shape::sums_stride`] apart.
    sums: &'a mut [f32],
}

/// The output rows `rows`, from the first to the last, of the columns `columns`.
#[inline(always)]
unsafe fn task<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, rows: Range<usize>, columns: Range<usize>) {
    let shape = &job.shape;
    let [kernel_rows, kernel_columns] = shape.kernel;
    let read = columns.len() + kernel_columns - 1;
    for plane in scratch.patch.chunks_exact_mut(shape.block_stride()) {
        // The micro-kernel's last pass goes beyond what is read.
        plane[read * BLOCK..].fill(0.0);
    }
    for row in rows.start..rows.end + kernel_rows - 1 {
        let corner = [row, columns.start];
        for (block, plane) in scratch.patch.chunks_exact_mut(shape.block_stride()).enumerate() {
            // SAFETY: the caller vouches for the CPU.
            unsafe { job.source.gather::<T>(block, corner, read, &mut plane[..read * BLOCK], None) };
            job.source.prefetch_row(block, [row + 1, columns.start], read);
        }
        // SAFETY: the caller vouches for the CPU.
        unsafe { multiply::<T>(job, scratch, read) };
        for tap_row in 0..kernel_rows {
            // The output row above which this row of the input lies by so much.
            let Some(output_row) = row.checked_sub(tap_row).filter(|row| rows.contains(row)) else {
                continue;
            };
            let stride = shape.sums_stride();
            let sums = &mut scratch.sums[output_row % kernel_rows * stride..][..stride];
            if tap_row == 0 {
                let bias: [f32; MOST_CHANNELS] = *job.bias.first_chunk().expect("padded to whole registers");
                sums.as_chunks_mut().0.fill(bias);
            }
            add_taps::<T>(shape, tap_row, scratch.products, &mut sums[..columns.len() * MOST_CHANNELS]);
            if tap_row + 1 == kernel_rows {
                let start = [output_row, columns.start];
                // SAFETY: the caller vouches for the CPU; bands partition the output, and each belongs to one task.
                unsafe { job.target.finish::<T>(0, start, columns.len(), sums, MOST_CHANNELS) };
            }
        }
    }
}

/// The products of the patch's first `columns` columns with all weights.
#[inline(always)]
unsafe fn multiply<T: Tile>(job: &Job<'_>, scratch: &mut Scratch<'_>, columns: usize) {
    let shape = &job.shape;
    let panel_len = shape.input_blocks * BLOCK * T::LANES;
    for group in 0..shape.groups() {
        let start = (group * job.span.all + job.span.first) * BLOCK * T::LANES;
        let panels = &job.panels[start..][..panel_len];
        for (pass, panel) in panels.chunks(PASS * BLOCK * T::LANES).enumerate() {
            for column in (0..columns).step_by(T::PIXELS) {
                let left = Rows {
                    ahead: Ahead::NONE,
                    patch: scratch.patch,
                    start: pass * PASS * shape.block_stride() + column * BLOCK,
                    row_stride: BLOCK,
                    block_stride: shape.block_stride(),
                    taps: &[0],
                };
                let products = &mut scratch.products[(group * shape.input_columns + column) * T::LANES..];
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

/// Adds what one row of the input has for the output row that sees it in the kernel's row `tap_row`. Lanes beyond the
/// output channels get what is no sum of theirs, which the epilogue drops.
#[inline(always)]
fn add_taps<T: Tile>(shape: &Shape, tap_row: usize, products: &[f32], sums: &mut [f32]) {
    for tap_column in 0..shape.kernel[1] {
        let [group, lane] = shape.place(tap_row * shape.kernel[1] + tap_column);
        let start = (group * shape.input_columns + tap_column) * T::LANES + lane;
        let pixels = products[start..].chunks_exact(T::LANES);
        for (sums, products) in sums.as_chunks_mut::<MOST_CHANNELS>().0.iter_mut().zip(pixels) {
            for lane in 0..MOST_CHANNELS {
                sums[lane] += products[lane];
            }
        }
    }
}
