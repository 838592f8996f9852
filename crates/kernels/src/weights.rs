//! Weights of a convolution as the micro-kernel reads them, in 16 bits where that loses nothing.

use crate::convolution::Geometry;
use crate::isa::Isa;
use crate::layout::{BLOCK, blocks};
use crate::pool::Pool;

/// Values that are looked at together, without a branch for each, and by one task.
const PART: usize = 1024;
const TASK: usize = 64 * PART;

/// Values in the narrowest type that holds each of them exactly.
pub(crate) enum Compact {
    Float32(Vec<f32>),
    Float16(Vec<u16>),
    BFloat16(Vec<u16>),
}

impl Compact {
    /// `weight` (`[output, input, taps]`) laid out as [`panels`] says.
    pub(crate) fn new(isa: Isa, pool: &Pool, geometry: &Geometry, weight: &[f32]) -> Compact {
        if are_all(pool, weight, |value| value.to_bits() & 0xffff == 0) {
            let upper = |value: f32| (value.to_bits() >> 16) as u16;
            return Compact::BFloat16(panels(isa, pool, geometry, weight, upper));
        }
        if are_all(pool, weight, |value| to_half(value).is_some()) {
            return Compact::Float16(panels(isa, pool, geometry, weight, half_bits));
        }
        Compact::Float32(panels(isa, pool, geometry, weight, |value| value))
    }

    /// The values `start..start + len`; `room` is used if they must be widened first.
    #[inline(always)]
    pub(crate) fn widen<'a>(&'a self, start: usize, len: usize, room: &'a mut [f32]) -> &'a [f32] {
        let room = match self {
            Compact::Float32(values) => return &values[start..start + len],
            Compact::Float16(values) => {
                for (wide, narrow) in room.iter_mut().zip(&values[start..start + len]) {
                    *wide = from_half(*narrow);
                }
                room
            }
            Compact::BFloat16(values) => {
                for (wide, narrow) in room.iter_mut().zip(&values[start..start + len]) {
                    *wide = f32::from_bits(u32::from(*narrow) << 16);
                }
                room
            }
        };
        &room[..len]
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        match self {
            Compact::Float32(values) => values.capacity() * size_of::<f32>(),
            Compact::Float16(values) | Compact::BFloat16(values) => values.capacity() * size_of::<u16>(),
        }
    }
}

/// Whether each value `is` something.
fn are_all(pool: &Pool, values: &[f32], is: impl Fn(f32) -> bool + Sync) -> bool {
    let part_is = |part: &[f32]| part.iter().fold(true, |all, value| all & is(*value));
    pool.all(values, TASK, |task| task.chunks(PART).all(part_is))
}

/// The half-precision number that equals `value`, if there is one. NaN has none: its payload could be lost.
fn to_half(value: f32) -> Option<u16> {
    let half = half_bits(value);
    (value.abs() <= 65504.0 && from_half(half) == value).then_some(half)
}

/// The half-precision number that equals `value`, which is one.
#[inline(always)]
fn half_bits(value: f32) -> u16 {
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    // Scaling by 2^-112 moves the exponent's bias from 127 to 15 and makes halves' subnormals those of `f32`.
    sign | ((value.abs() * f32::from_bits(15 << 23)).to_bits() >> 13) as u16
}

/// Exact. The argument is finite, as all that [`to_half`] makes.
#[inline(always)]
fn from_half(half: u16) -> f32 {
    let magnitude = f32::from_bits(u32::from(half & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(half & 0x8000) << 16)
}

/// Which of the input blocks of laid-out weights a run uses: all from `first` on.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub first: usize,
    /// How many there are in all.
    pub all: usize,
}

/// `weight` (`[output, input, taps]`) as `[group of lanes][input block][tap][16][lanes]`, zero in the padding; `store` says
/// what is kept of each value.
pub(crate) fn panels<T: Copy + Default + Send>(
    isa: Isa,
    pool: &Pool,
    geometry: &Geometry,
    weight: &[f32],
    store: impl Fn(f32) -> T + Sync,
) -> Vec<T> {
    let Geometry { input_channels, output_channels, kernel, .. } = *geometry;
    let taps = kernel[0] * kernel[1];
    assert_eq!(weight.len(), output_channels * input_channels * taps);
    let lanes = isa.lanes();
    let group_len = blocks(input_channels) * taps * BLOCK * lanes;
    let mut panels = vec![T::default(); output_channels.div_ceil(lanes) * group_len];
    let block_len = taps * BLOCK * lanes;
    pool.fill(&mut panels, group_len, |group, panel| {
        let outputs = group * lanes..((group + 1) * lanes).min(output_channels);
        // What is written meanwhile stays in the cache.
        for (block, panel) in panel.chunks_exact_mut(block_len).enumerate() {
            let inputs = block * BLOCK..((block + 1) * BLOCK).min(input_channels);
            for (lane, output) in outputs.clone().enumerate() {
                let sources = &weight[(output * input_channels + inputs.start) * taps..];
                for (input, source) in sources.chunks_exact(taps).take(inputs.len()).enumerate() {
                    for (tap, value) in source.iter().enumerate() {
                        panel[(tap * BLOCK + input) * lanes + lane] = store(*value);
                    }
                }
            }
        }
    });
    panels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_half_goes_there_and_back() {
        for half in (0..=u16::MAX).filter(|half| half & 0x7c00 != 0x7c00) {
            assert_eq!(to_half(from_half(half)), Some(half), "{half:#06x}");
        }
        for value in [65504.1, 1.0 + 1.0 / 4096.0, 1e-9, f32::INFINITY, f32::NAN, 1e30] {
            assert_eq!(to_half(value), None, "{value}");
        }
        assert_eq!((from_half(0x3c00), from_half(0xc000), from_half(1)), (1.0, -2.0, 2.0f32.powi(-24)));
    }

    #[test]
    fn values_come_back_to_the_bit() {
        let exact = [1.0, -0.0, 0.5, -3.25];
        let pool = Pool::new(Some(2)).unwrap();
        for (extra, size) in [(2.0, 2), (1.0 + 1.0 / 1024.0, 2), (0.1, 4), (1e30, 2), (f32::NAN, 2)] {
            let extra = if extra == 1e30 { f32::from_bits(0x7149_0000) } else { extra };
            let values = [&exact[..], &[extra]].concat();
            let isa = Isa::detect();
            let kernel = [1, 1];
            let geometry =
                Geometry { input_channels: 5, output_channels: 1, kernel, stride: 1, padding: [0; 4] };
            let compact = Compact::new(isa, &pool, &geometry, &values);
            assert_eq!(compact.bytes(), size * BLOCK * isa.lanes(), "{extra}");
            let mut room = [0.0; 1];
            for (row, value) in values.iter().enumerate() {
                let back = compact.widen(row * isa.lanes(), 1, &mut room)[0];
                assert_eq!(back.to_bits(), value.to_bits(), "{extra}");
            }
        }
    }
}
