//! Operations that look at one value at a time, in place, and nearest upsampling.

use crate::isa::{Isa, dispatch};
use crate::layout::BLOCK;
use crate::math::{multiply_add, silu, tanh};
use crate::microkernel::Tile;
use crate::pool::Pool;
use crate::shared::SharedOutput;

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

/// Elements that one task treats: a multiple of [`BLOCK`].
const CHUNK: usize = 1 << 16;

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

/// Applies `map` to each value of the `[channels, pixels]` tensor `values`, in place.
///
/// # Panics
/// `values` does not have the blocked length of `channels` and `pixels`.
pub fn map(isa: Isa, pool: &Pool, map: Map, channels: usize, pixels: usize, values: &mut [f32]) {
    assert_eq!(values.len(), crate::layout::blocked_len(channels, pixels));
    let padding_moves =
        matches!(map, Map::Affine { shift, .. } if shift != 0.0) && !channels.is_multiple_of(BLOCK);
    let len = values.len();
    in_chunks(pool, values, |_, part| {
        dispatch!(isa, map_chunk(map: Map, part: &mut [f32]));
    });
    if padding_moves {
        for pixel in values[len - pixels * BLOCK..].chunks_exact_mut(BLOCK) {
            pixel[channels % BLOCK..].fill(0.0);
        }
    }
}

/// `sum[i] += term[i]`.
///
/// # Panics
/// The lengths differ.
pub fn add(pool: &Pool, term: &[f32], sum: &mut [f32]) {
    assert_eq!(term.len(), sum.len());
    in_chunks(pool, sum, |start, part| {
        for (value, other) in part.iter_mut().zip(&term[start..]) {
            *value += other;
        }
    });
}

/// Repeats each pixel `factor` times in height and width.
///
/// `input` is `[channels, height, width]`, `output` `[channels, height · factor, width · factor]`, both blocked.
///
/// # Panics
/// The lengths do not fit the sizes.
pub fn upsample_nearest(
    pool: &Pool,
    input: &[f32],
    [height, width]: [usize; 2],
    factor: usize,
    output: &mut [f32],
) {
    assert_eq!(output.len(), input.len() * factor * factor);
    assert!(input.len().is_multiple_of(height * width * BLOCK));
    let row = width * factor * BLOCK;
    let shared = SharedOutput::new(output);
    pool.run(
        input.len() / (width * BLOCK),
        || (),
        |(), index| {
            let source = &input[index * width * BLOCK..][..width * BLOCK];
            // SAFETY: each task owns the `factor` output rows made from its own input row.
            let rows = unsafe { shared.part(index * factor * row, factor * row) };
            for out in rows.chunks_exact_mut(row) {
                for (group, pixel) in out.chunks_exact_mut(factor * BLOCK).zip(source.chunks_exact(BLOCK)) {
                    for copy in group.chunks_exact_mut(BLOCK) {
                        copy.copy_from_slice(pixel);
                    }
                }
            }
        },
    );
}

fn in_chunks(pool: &Pool, values: &mut [f32], task: impl Fn(usize, &mut [f32]) + Sync) {
    let len = values.len();
    let shared = SharedOutput::new(values);
    pool.run(
        len.div_ceil(CHUNK),
        || (),
        |(), index| {
            let start = index * CHUNK;
            // SAFETY: chunks of different indices do not overlap.
            let part = unsafe { shared.part(start, CHUNK.min(len - start)) };
            task(start, part);
        },
    );
}
