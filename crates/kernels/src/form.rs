//! How the factors of products lie in memory: a function of the instruction tier and the arithmetic.
//!
//! For attention and `tile_direct`. The other convolutions keep to `f32` and integers in every tier, and do not ask.

use crate::amx;
use crate::convolution::Arithmetic;
use crate::integers::PAIRS;
use crate::isa::Isa;
use crate::layout::BLOCK;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As they are.
    Float32,
    /// Pairs of 16-bit integers with scales, see `integers`.
    Integer16,
    /// Each the sum of so many bfloat16 numbers, see `amx`.
    Bfloat16(usize),
}

impl Form {
    pub(crate) fn new(isa: Isa, arithmetic: Arithmetic) -> Form {
        match (isa.has_tiles(), arithmetic) {
            (true, Arithmetic::Float32) => Form::Bfloat16(3),
            (true, Arithmetic::Integer16) => Form::Bfloat16(2),
            (false, Arithmetic::Float32) => Form::Float32,
            (false, Arithmetic::Integer16) => Form::Integer16,
        }
    }

    /// 32-bit words that hold the sixteen channels of a block.
    pub(crate) fn words_per_block(self) -> usize {
        match self {
            Form::Float32 => BLOCK,
            Form::Integer16 => PAIRS,
            Form::Bfloat16(parts) => parts * BLOCK / 2,
        }
    }

    /// Places for `blocks` channel blocks; those beyond hold zeros.
    pub(crate) fn padded(self, blocks: usize) -> usize {
        match self {
            Form::Float32 | Form::Integer16 => blocks,
            Form::Bfloat16(_) => blocks.next_multiple_of(amx::BLOCKS),
        }
    }
}
