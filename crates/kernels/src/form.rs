//! How the factors of products lie in memory: a function of the instruction tier and the arithmetic.

use crate::convolution::Arithmetic;
use crate::integers::PAIRS;
use crate::isa::Isa;
use crate::layout::BLOCK;
use crate::{amx, bytes};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As they are.
    Float32,
    /// Pairs of 16-bit integers with scales, see `integers`.
    Pairs,
    /// The two bytes of 16-bit integers with scales, see `bytes`.
    Bytes,
    /// Each the sum of three bfloat16 numbers, see `amx`.
    Bfloat16,
}

impl Form {
    /// For transformed convolutions.
    pub(crate) fn of_transformed(isa: Isa, arithmetic: Arithmetic) -> Form {
        match (isa.has_tiles(), arithmetic) {
            (_, Arithmetic::Float32) => Form::Float32,
            (true, Arithmetic::Integer16) => Form::Bytes,
            (false, Arithmetic::Integer16) => Form::Pairs,
        }
    }

    /// For attention.
    pub(crate) fn of_attention(isa: Isa, arithmetic: Arithmetic) -> Form {
        match Form::of_transformed(isa, arithmetic) {
            Form::Float32 if isa.has_tiles() => Form::Bfloat16,
            form => form,
        }
    }

    /// Whether there are scales.
    pub(crate) fn is_integers(self) -> bool {
        matches!(self, Form::Pairs | Form::Bytes)
    }

    /// 32-bit words that hold the sixteen channels of a block.
    pub(crate) fn words_per_block(self) -> usize {
        match self {
            Form::Float32 => BLOCK,
            Form::Pairs | Form::Bytes => PAIRS,
            Form::Bfloat16 => amx::EXACT_PARTS * BLOCK / 2,
        }
    }

    /// Places for `blocks` channel blocks; those beyond hold zeros.
    pub(crate) fn padded(self, blocks: usize) -> usize {
        match self {
            Form::Float32 | Form::Pairs => blocks,
            Form::Bytes => blocks.next_multiple_of(bytes::BLOCKS),
            Form::Bfloat16 => blocks.next_multiple_of(amx::BLOCKS),
        }
    }
}
