//! The precisions a plan can have.

use remote_vae_kernels::Storage;
use remote_vae_kernels::convolution::Arithmetic;

/// How numbers are kept and multiplied while a graph runs. Its input and its result are `f32` in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// `f32` throughout.
    #[default]
    Exact,
    /// 16 bits for what lies in memory between steps and for the factors of most convolutions; norms, softmax and all
    /// sums have 32 or more.
    Fast,
}

impl Precision {
    /// All there are, the default first.
    pub const ALL: [Precision; 2] = [Precision::Exact, Precision::Fast];

    /// `exact` or `fast`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Exact => "exact",
            Precision::Fast => "fast",
        }
    }

    /// The precision called `name`.
    pub fn by_name(name: &str) -> Option<Precision> {
        Precision::ALL.into_iter().find(|precision| precision.name() == name)
    }

    /// What a convolution or attention may be computed in; the first is preferred.
    pub(crate) fn arithmetics(self) -> &'static [Arithmetic] {
        match self {
            Precision::Exact => &[Arithmetic::Float32],
            Precision::Fast => &[Arithmetic::Integer16, Arithmetic::Float32],
        }
    }

    /// How tensors between steps are stored.
    pub(crate) fn storage(self) -> Storage {
        match self {
            Precision::Exact => Storage::Float32,
            Precision::Fast => Storage::Half,
        }
    }
}
