//! Strips: some rows of a picture at a time, in memory that need not hold them all.
//!
//! A tensor of which only some rows are kept is a ring: of each channel block `rows` rows lie in memory, and row `y` of the
//! picture is at place `y mod rows`. A tensor that is there as a whole is the ring of all its rows.
//!
//! Tiles lie on a grid fixed to the picture's origin and do not look at each other, so strips that begin and end between
//! tiles ([`crate::convolution::Geometry::strip_grid`]) hold the bytes that the whole picture would.

use std::ops::Range;

use crate::layout::{BLOCK, blocked_len};
use crate::pool::Pool;
use crate::shared::SharedOutput;
use crate::tensor::{Tensor, TensorMut};

/// Which rows of its output an operation makes, and how many rows of its tensors lie in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strip {
    /// Rows of the output.
    pub rows: Range<usize>,
    /// Rows of the input that lie in memory.
    pub input_rows: usize,
    /// Rows of the output that lie in memory.
    pub output_rows: usize,
    /// Rows of the residual that lie in memory, if it is a tensor of its own.
    pub residual_rows: usize,
    /// Whether the scratch still holds the transformed weights of an earlier strip of the same layer.
    pub weights_ready: bool,
}

impl Strip {
    /// All rows of an output of `output_rows` made from an input of `input_rows`, all in memory.
    pub fn whole(input_rows: usize, output_rows: usize) -> Strip {
        let residual_rows = output_rows;
        Strip { rows: 0..output_rows, input_rows, output_rows, residual_rows, weights_ready: false }
    }
}

/// Where row `y` lies if `rows` rows are kept.
#[inline(always)]
pub(crate) fn place(y: usize, rows: usize) -> usize {
    if y < rows { y } else { y % rows }
}

/// Copies the rows `rows` of each channel block, `width` groups each; the tensors keep `from_rows` and `to_rows` rows.
///
/// # Panics
/// The tensors do not have equally many channel blocks of `width`, or are stored differently.
pub fn copy_rows(
    pool: &Pool,
    (from, from_rows): (Tensor<'_>, usize),
    (to, to_rows): (TensorMut<'_>, usize),
    width: usize,
    rows: Range<usize>,
) {
    let blocks = from.groups() / (from_rows * width);
    assert_eq!(from.groups(), blocks * from_rows * width);
    assert_eq!(to.groups(), blocks * to_rows * width);
    match (from, to) {
        (Tensor::Float32(from), TensorMut::Float32(to)) => {
            let (from, to) = (from.as_chunks::<BLOCK>().0, to.as_chunks_mut::<BLOCK>().0);
            copy(pool, (from, from_rows), (to, to_rows), width, rows);
        }
        (Tensor::Half(values, exponents), TensorMut::Half(to_values, to_exponents)) => {
            copy(pool, (values, from_rows), (to_values, to_rows), width, rows.clone());
            copy(pool, (exponents, from_rows), (to_exponents, to_rows), width, rows);
        }
        _ => panic!("a copy is stored as the original is"),
    }
}

/// Copies the rows `rows` of a blocked ring of `kept` rows into `plain`, which holds the picture's rows `plain_rows`:
/// `[channels, plain rows, width]`.
///
/// # Panics
/// The slices do not have the lengths that `kept` and the shape say, or `plain` does not hold `rows`.
pub fn rows_from_blocked(
    (ring, kept): (&[f32], usize),
    [channels, width]: [usize; 2],
    rows: Range<usize>,
    (plain, plain_rows): (&mut [f32], Range<usize>),
) {
    assert_eq!(ring.len(), blocked_len(channels, kept * width));
    assert_eq!(plain.len(), channels * plain_rows.len() * width);
    for (channel, plane) in plain.chunks_exact_mut(plain_rows.len() * width).enumerate() {
        for row in rows.clone() {
            let start = (channel / BLOCK * kept + place(row, kept)) * width * BLOCK;
            let groups = ring[start..][..width * BLOCK].chunks_exact(BLOCK);
            let target = &mut plane[(row - plain_rows.start) * width..][..width];
            for (value, group) in target.iter_mut().zip(groups) {
                *value = group[channel % BLOCK];
            }
        }
    }
}

fn copy<E: Copy + Send + Sync>(
    pool: &Pool,
    (from, from_rows): (&[E], usize),
    (to, to_rows): (&mut [E], usize),
    width: usize,
    rows: Range<usize>,
) {
    let blocks = from.len() / (from_rows * width);
    let shared = SharedOutput::new(to);
    pool.run(blocks, |block| {
        for row in rows.clone() {
            let from = &from[(block * from_rows + place(row, from_rows)) * width..][..width];
            let start = (block * to_rows + place(row, to_rows)) * width;
            // SAFETY: each task owns one channel block, and the part ends before the next is made.
            unsafe { shared.part(start, width) }.copy_from_slice(from);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_and_the_whole_give_the_same_plain_rows() {
        let pool = Pool::new(Some(1)).unwrap();
        let (channels, height, width, kept) = (19, 7, 3, 4);
        let from: Vec<f32> = (0..blocked_len(channels, height * width)).map(|index| index as f32).collect();
        let mut expected = vec![0.0; channels * height * width];
        crate::layout::from_blocked(&from, channels, height * width, &mut expected);
        let mut ring = vec![0.0; blocked_len(channels, kept * width)];
        let mut found = vec![f32::NAN; expected.len()];
        for rows in [0..4, 4..6, 6..7] {
            let (from, to) = (from.as_slice().into(), ring.as_mut_slice().into());
            copy_rows(&pool, (from, height), (to, kept), width, rows.clone());
            rows_from_blocked((&ring, kept), [channels, width], rows.clone(), (&mut found, 0..height));
            let mut strip = vec![f32::NAN; channels * rows.len() * width];
            rows_from_blocked((&ring, kept), [channels, width], rows.clone(), (&mut strip, rows.clone()));
            for (channel, strip) in strip.chunks_exact(rows.len() * width).enumerate() {
                assert_eq!(strip, &expected[(channel * height + rows.start) * width..][..rows.len() * width]);
            }
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn rows_go_to_their_places() {
        let pool = Pool::new(Some(2)).unwrap();
        let (width, height, kept) = (3, 7, 4);
        let from: Vec<f32> = (0..2 * height * width * BLOCK).map(|index| index as f32).collect();
        let mut to = vec![0.0; 2 * kept * width * BLOCK];
        for rows in [0..3, 3..7] {
            copy_rows(&pool, (from.as_slice().into(), height), (to.as_mut_slice().into(), kept), width, rows);
        }
        let row = |block: usize, y: usize| &from[(block * height + y) * width * BLOCK..][..width * BLOCK];
        for block in 0..2 {
            for y in 3..7 {
                let found = &to[(block * kept + y % kept) * width * BLOCK..][..width * BLOCK];
                assert_eq!(found, row(block, y), "block {block}, row {y}");
            }
        }
    }
}
