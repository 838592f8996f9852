//! How results are given.

/// How the result of a plan is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// As one tensor, which the plan counts.
    #[default]
    Whole,
    /// In rows as they are finished, of which the plan counts those of one strip.
    Rows {
        /// Bytes that whoever takes the rows keeps until a picture's last one, for each of its pixels. A budget has room for
        /// them beside the plan, whose peak does not count them.
        kept_per_pixel: usize,
    },
}

impl Delivery {
    /// As frames that their receiver does not keep.
    pub(crate) const FRAMES: Delivery = Delivery::Rows { kept_per_pixel: 0 };

    /// Bytes that whoever takes the result of `height` by `width` pixels keeps beside the plan.
    pub(crate) fn kept_bytes(self, height: usize, width: usize) -> usize {
        match self {
            Delivery::Whole => 0,
            Delivery::Rows { kept_per_pixel } => kept_per_pixel.saturating_mul(height).saturating_mul(width),
        }
    }

    /// As it is where nothing is kept.
    pub(crate) fn alone(self) -> Delivery {
        match self {
            Delivery::Whole => Delivery::Whole,
            Delivery::Rows { .. } => Delivery::Rows { kept_per_pixel: 0 },
        }
    }
}
