//! Operations that look at one value at a time, and nearest upsampling.

use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::math::{multiply_add, silu, tanh};
use crate::microkernel::Tile;
use crate::pool::Pool;
use crate::tensor::{Edit, SharedTensor, Tensor, TensorMut};

/// A nonlinearity that other operations can carry in their prologue or epilogue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activation {
    /// `x`
    #[default]
    None,
    /// `x · sigmoid(x)`, for |x| below 1e30
    Silu,
    /// `max(x, 0)`; NaN stays NaN
    Relu,
}

/// What [`map`] does to each value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Map {
    /// A nonlinearity.
    Activation(Activation),
    /// `x · scale + shift`
    Affine {
        /// Factor.
        scale: f32,
        /// Summand.
        shift: f32,
    },
    /// `tanh(x / limit) · limit`
    SoftClamp {
        /// The bound that is approached.
        limit: f32,
    },
}

/// Groups that one task treats.
const CHUNK: usize = 1 << 12;

#[inline(always)]
pub(crate) fn activate<T: Tile>(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::Silu => {
            for value in values {
                *value = silu::<T>(*value);
            }
        }
        Activation::Relu => {
            for value in values {
                *value = if *value < 0.0 { 0.0 } else { *value };
            }
        }
    }
}

#[inline(always)]
fn map_chunk<T: Tile>(map: Map, values: &mut [f32]) {
    match map {
        Map::Activation(activation) => activate::<T>(activation, values),
        Map::Affine { scale, shift } => {
            for value in values {
                *value = multiply_add::<T>(*value, scale, shift);
            }
        }
        Map::SoftClamp { limit } => {
            for value in values {
                *value = tanh::<T>(*value / limit) * limit;
            }
        }
    }
}

/// Writes `map(value)` of each value of the `[channels, pixels]` tensor `input` to `output`; without an input, of what
/// `output` holds.
///
/// # Panics
/// The tensors do not have the groups of `channels` and `pixels`.
pub fn map(
    isa: Isa,
    pool: &Pool,
    map: Map,
    [channels, pixels]: [usize; 2],
    input: Option<Tensor<'_>>,
    output: TensorMut<'_>,
) {
    assert_eq!(output.groups(), blocks(channels) * pixels);
    in_chunks(isa, pool, input, output, Change::Map { map, channels, pixels });
}

/// `output = first + second`; without `first`, `output += second`.
///
/// # Panics
/// The tensors do not have equally many groups.
pub fn add(isa: Isa, pool: &Pool, first: Option<Tensor<'_>>, second: Tensor<'_>, output: TensorMut<'_>) {
    assert_eq!(second.groups(), output.groups());
    in_chunks(isa, pool, first, output, Change::Add(second));
}

/// `output = first · second`; without `first`, `output *= second`.
///
/// # Panics
/// The tensors do not have equally many groups.
pub fn multiply(isa: Isa, pool: &Pool, first: Option<Tensor<'_>>, second: Tensor<'_>, output: TensorMut<'_>) {
    assert_eq!(second.groups(), output.groups());
    in_chunks(isa, pool, first, output, Change::Multiply(second));
}

/// Repeats each pixel `factor` times in height and width.
///
/// `input` is `[channels, height, width]`, `output` `[channels, height · factor, width · factor]`, both blocked.
///
/// # Panics
/// The sizes do not fit the tensors.
pub fn upsample_nearest(
    isa: Isa,
    pool: &Pool,
    input: Tensor<'_>,
    [height, width]: [usize; 2],
    factor: usize,
    output: TensorMut<'_>,
) {
    assert_eq!(output.groups(), input.groups() * factor * factor);
    assert!(input.groups().is_multiple_of(height * width));
    let rows = output.groups() / (width * factor);
    let output = &SharedTensor::new(output);
    pool.run(rows, |row| {
        let source = input.part(row / factor * width, width);
        let place = [row, factor];
        dispatch!(isa, repeat(source: Tensor<'_>, place: [usize; 2], output: &SharedTensor<'_>));
    });
}

/// Writes the output row of index `row`, counted over all channel blocks.
#[inline(always)]
unsafe fn repeat<T: Tile>(source: Tensor<'_>, [row, factor]: [usize; 2], output: &SharedTensor<'_>) {
    let width = source.groups() * factor;
    for column in 0..width {
        // SAFETY: the caller vouches for the CPU; each task owns one row.
        unsafe { output.put::<T>(row * width + column, source.group::<T>(column / factor)) }
    }
}

/// What [`in_chunks`] does to the values it is given.
#[derive(Clone, Copy)]
enum Change<'a> {
    Map { map: Map, channels: usize, pixels: usize },
    Add(Tensor<'a>),
    Multiply(Tensor<'a>),
}

struct Job<'a> {
    input: Option<Tensor<'a>>,
    output: SharedTensor<'a>,
    change: Change<'a>,
}

fn in_chunks(isa: Isa, pool: &Pool, input: Option<Tensor<'_>>, output: TensorMut<'_>, change: Change<'_>) {
    let groups = output.groups();
    assert!(input.is_none_or(|input| input.groups() == groups));
    let job = &Job { input, output: SharedTensor::new(output), change };
    pool.run(groups.div_ceil(CHUNK), |index| {
        let place = [index * CHUNK, CHUNK.min(groups - index * CHUNK)];
        dispatch!(isa, change_chunk(job: &Job<'_>, place: [usize; 2]));
    });
}

#[inline(always)]
unsafe fn change_chunk<T: Tile>(job: &Job<'_>, [start, groups]: [usize; 2]) {
    // SAFETY: the caller vouches for the CPU; chunks of different indices do not overlap.
    unsafe { job.output.edit::<T>(start, groups, job.input, &job.change) }
}

impl Edit for Change<'_> {
    #[inline(always)]
    unsafe fn edit<T: Tile>(&self, first: usize, values: &mut [f32]) {
        match *self {
            Change::Map { map, channels, pixels } => {
                map_chunk::<T>(map, values);
                // Only a shift moves the padding, which the last block has.
                if matches!(map, Map::Affine { shift, .. } if shift != 0.0) && !channels.is_multiple_of(BLOCK)
                {
                    let whole = (channels / BLOCK * pixels).saturating_sub(first).min(values.len() / BLOCK);
                    for pixel in values[whole * BLOCK..].as_chunks_mut::<BLOCK>().0 {
                        pixel[channels % BLOCK..].fill(0.0);
                    }
                }
            }
            Change::Add(term) => {
                for (index, pixel) in values.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                    // SAFETY: the caller vouches for the CPU.
                    let term = unsafe { term.group::<T>(first + index) };
                    for lane in 0..BLOCK {
                        pixel[lane] += term[lane];
                    }
                }
            }
            Change::Multiply(factor) => {
                for (index, pixel) in values.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                    // SAFETY: the caller vouches for the CPU.
                    let factor = unsafe { factor.group::<T>(first + index) };
                    for lane in 0..BLOCK {
                        pixel[lane] *= factor[lane];
                    }
                }
            }
        }
    }
}
