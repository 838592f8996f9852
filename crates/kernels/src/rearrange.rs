//! Channels to positions in space and time, and back: pixel shuffling, with channels repeated or averaged on the way.
//!
//! A *cell* is what one position becomes: `time` frames of `space` × `space` pixels. The elements of a cell are numbered
//! frame by frame and row by row, or column by column.

use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::microkernel::Tile;
use crate::pool::Pool;
use crate::tensor::{SharedTensor, Tensor, TensorMut};

/// A cell and the order of its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Frames.
    pub time: usize,
    /// Rows and columns.
    pub space: usize,
    /// Whether the elements of a frame are numbered column by column.
    pub by_columns: bool,
}

impl Cell {
    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.time * self.space * self.space
    }

    /// The number of an element.
    fn element(&self, frame: usize, row: usize, column: usize) -> usize {
        let (outer, inner) = if self.by_columns { (column, row) } else { (row, column) };
        (frame * self.space + outer) * self.space + inner
    }

    /// Frame, row and column of an element.
    fn place(&self, element: usize) -> [usize; 3] {
        let (outer, inner) = (element / self.space % self.space, element % self.space);
        let [row, column] = if self.by_columns { [inner, outer] } else { [outer, inner] };
        [element / (self.space * self.space), row, column]
    }
}

/// Frame `frame` of the cells that the positions of `input` become: output channel `c` of element `e` is input channel
/// (c · elements + e) / `repeats`.
///
/// `input` is `[channels · elements / repeats, height, width]`, `output` `[channels, height · space, width · space]`, both
/// blocked.
///
/// # Panics
/// The sizes do not fit the tensors.
#[allow(clippy::too_many_arguments)] // the tensors, their sizes and how they relate
pub fn expand(
    isa: Isa,
    pool: &Pool,
    cell: Cell,
    frame: usize,
    repeats: usize,
    input: Tensor<'_>,
    channels: usize,
    [height, width]: [usize; 2],
    output: TensorMut<'_>,
) {
    assert_eq!(output.groups(), blocks(channels) * height * width * cell.space * cell.space);
    assert_eq!(input.groups(), blocks((channels * cell.elements()).div_ceil(repeats)) * height * width);
    let rows = blocks(channels) * height * cell.space;
    let job = &Expand { cell, frame, repeats, input, channels, size: [height, width] };
    let output = &SharedTensor::new(output);
    pool.run(rows, |row| {
        dispatch!(isa, expand_row(job: &Expand<'_>, row: usize, output: &SharedTensor<'_>));
    });
}

struct Expand<'a> {
    cell: Cell,
    frame: usize,
    repeats: usize,
    input: Tensor<'a>,
    channels: usize,
    size: [usize; 2],
}

/// Writes the output row of index `row`, counted over all channel blocks.
#[inline(always)]
unsafe fn expand_row<T: Tile>(job: &Expand<'_>, row: usize, output: &SharedTensor<'_>) {
    let [height, width] = job.size;
    let space = job.cell.space;
    let (block, y) = (row / (height * space), row % (height * space));
    let lanes = BLOCK.min(job.channels - block * BLOCK);
    let columns = width * space;
    for x in 0..columns {
        let element = job.cell.element(job.frame, y % space, x % space);
        let mut values = [0.0; BLOCK];
        for (lane, value) in values.iter_mut().enumerate().take(lanes) {
            let channel = ((block * BLOCK + lane) * job.cell.elements() + element) / job.repeats;
            let place = (channel / BLOCK * height + y / space) * width + x / space;
            // SAFETY: the caller vouches for the CPU.
            *value = unsafe { job.input.group::<T>(place) }[channel % BLOCK];
        }
        // SAFETY: the caller vouches for the CPU; each task owns one row.
        unsafe { output.put::<T>(row * columns + x, values) }
    }
}

/// The reverse of [`expand`], with means: the elements of the cells of all channels in one row, `(channel, element)`, each
/// output channel is the mean of `mean` neighbours.
///
/// `frames` are the `cell.time` frames of the cells, `[channels, height · space, width · space]`, `None` for zeros;
/// `output` is `[channels · elements / mean, height, width]`, all blocked; `[height, width]` are those of the output.
///
/// # Panics
/// The sizes do not fit the tensors.
#[allow(clippy::too_many_arguments)] // the tensors, their sizes and how they relate
pub fn collect(
    isa: Isa,
    pool: &Pool,
    cell: Cell,
    mean: usize,
    frames: &[Option<Tensor<'_>>],
    channels: usize,
    [height, width]: [usize; 2],
    output: TensorMut<'_>,
) {
    let made = channels * cell.elements() / mean;
    assert_eq!(frames.len(), cell.time);
    assert_eq!(output.groups(), blocks(made) * height * width);
    for frame in frames.iter().flatten() {
        assert_eq!(frame.groups(), blocks(channels) * height * width * cell.space * cell.space);
    }
    let job = &Collect { cell, mean, frames, made, size: [height, width] };
    let output = &SharedTensor::new(output);
    pool.run(blocks(made) * height, |row| {
        dispatch!(isa, collect_row(job: &Collect<'_>, row: usize, output: &SharedTensor<'_>));
    });
}

struct Collect<'a> {
    cell: Cell,
    mean: usize,
    frames: &'a [Option<Tensor<'a>>],
    /// Channels of the output.
    made: usize,
    size: [usize; 2],
}

/// Writes the output row of index `row`, counted over all channel blocks.
#[inline(always)]
unsafe fn collect_row<T: Tile>(job: &Collect<'_>, row: usize, output: &SharedTensor<'_>) {
    let [height, width] = job.size;
    let Cell { space, .. } = job.cell;
    let (block, y) = (row / height, row % height);
    let lanes = BLOCK.min(job.made - block * BLOCK);
    for x in 0..width {
        let mut values = [0.0; BLOCK];
        for (lane, value) in values.iter_mut().enumerate().take(lanes) {
            let first = (block * BLOCK + lane) * job.mean;
            let mut sum = 0.0;
            for index in first..first + job.mean {
                let channel = index / job.cell.elements();
                let [frame, dy, dx] = job.cell.place(index % job.cell.elements());
                let Some(from) = job.frames[frame] else { continue };
                let rows = channel / BLOCK * height * space + y * space + dy;
                let place = rows * width * space + x * space + dx;
                // SAFETY: the caller vouches for the CPU.
                sum += unsafe { from.group::<T>(place) }[channel % BLOCK];
            }
            *value = sum / job.mean as f32;
        }
        // SAFETY: the caller vouches for the CPU; each task owns one row.
        unsafe { output.put::<T>(row * width + x, values) }
    }
}
