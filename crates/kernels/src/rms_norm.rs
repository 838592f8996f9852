//! RMS norm: each pixel's channels divided by their root mean square, then a factor and a summand for each channel.

use crate::elementwise::{Activation, activate};
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::math::multiply_add;
use crate::microkernel::Tile;
use crate::pool::Pool;
use crate::tensor::{Edit, SharedTensor, Tensor, TensorMut};

/// Neighbouring pixels that are treated together.
const PIXELS: usize = 64;
/// Lengths below this count as this one.
const LEAST_LENGTH: f32 = 1e-12;

/// The numbers of an RMS norm.
#[derive(Clone, Copy)]
pub struct RmsNorm<'a> {
    /// Factor of each channel.
    pub weight: &'a [f32],
    /// Summand of each channel.
    pub bias: Option<&'a [f32]>,
    /// Added to the mean of the squares. Where it is 0, lengths below 1e-12 count as that instead.
    pub epsilon: f32,
}

/// Writes `activation(x / √(‖x‖₂² / channels + ε) · weight + bias)` to `output`, where x are the channels of one pixel. The
/// channels are those of the weight; `input` and `output` are blocked `[channels, pixels]`.
///
/// # Panics
/// The tensors do not have the groups of the channels and `pixels`.
pub fn rms_norm(
    isa: Isa,
    pool: &Pool,
    input: Tensor<'_>,
    pixels: usize,
    norm: RmsNorm<'_>,
    activation: Activation,
    output: TensorMut<'_>,
) {
    let RmsNorm { weight, bias, epsilon } = norm;
    let channels = weight.len();
    assert_eq!(input.groups(), blocks(channels) * pixels);
    assert_eq!(input.groups(), output.groups());
    assert!(bias.is_none_or(|bias| bias.len() == channels));
    let padded = |values: &[f32]| {
        let mut values = values.to_vec();
        values.resize(blocks(channels) * BLOCK, 0.0);
        values
    };
    let (factors, summands) = (padded(weight), bias.map(padded));
    let (factors, summands) = (factors.as_slice(), summands.as_deref());
    let output = &SharedTensor::new(output);
    let job =
        &Job { input, pixels, factors, summands, channels: channels as f32, epsilon, activation, output };
    pool.run(pixels.div_ceil(PIXELS), |index| {
        dispatch!(isa, stretch(job: &Job<'_>, index: usize));
    });
}

struct Job<'a> {
    input: Tensor<'a>,
    pixels: usize,
    /// `[padded channels]`
    factors: &'a [f32],
    /// `[padded channels]`
    summands: Option<&'a [f32]>,
    channels: f32,
    epsilon: f32,
    activation: Activation,
    output: &'a SharedTensor<'a>,
}

#[inline(always)]
unsafe fn stretch<T: Tile>(job: &Job<'_>, index: usize) {
    let start = index * PIXELS;
    let count = PIXELS.min(job.pixels - start);
    let mut squares = [[0.0f32; BLOCK]; PIXELS];
    let mut room = [[0.0f32; BLOCK]; PIXELS];
    for block in 0..job.factors.len() / BLOCK {
        let part = job.input.part(block * job.pixels + start, count);
        let values = match part {
            Tensor::Float32(values) => values.as_chunks::<BLOCK>().0,
            Tensor::Half(..) => {
                // SAFETY: the caller vouches for the CPU.
                unsafe { part.read::<T>(room[..count].as_flattened_mut()) };
                &room[..count]
            }
        };
        for (sum, pixel) in squares.iter_mut().zip(values) {
            for lane in 0..BLOCK {
                sum[lane] = multiply_add::<T>(pixel[lane], pixel[lane], sum[lane]);
            }
        }
    }
    let mut scales = [0.0f32; PIXELS];
    for (scale, sum) in scales.iter_mut().zip(&squares) {
        let mut sum = *sum;
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                sum[lane] += sum[lane + half];
            }
        }
        // Written so that a length that is not a number stays one.
        *scale = if job.epsilon > 0.0 {
            1.0 / (sum[0] / job.channels + job.epsilon).sqrt()
        } else {
            let length = sum[0].sqrt();
            job.channels.sqrt() / if length < LEAST_LENGTH { LEAST_LENGTH } else { length }
        };
    }
    for (block, factors) in job.factors.as_chunks::<BLOCK>().0.iter().enumerate() {
        let first = block * job.pixels + start;
        let summands: Option<&[f32; BLOCK]> =
            job.summands.and_then(|summands| summands[block * BLOCK..].first_chunk());
        let change = Scaled { first, scales: &scales, factors, summands, activation: job.activation };
        // SAFETY: the caller vouches for the CPU; stretches of different blocks and places do not overlap.
        unsafe { job.output.edit::<T>(first, count, Some(job.input), &change) }
    }
}

/// What becomes of a channel block of a stretch once the lengths of its pixels are known.
struct Scaled<'a> {
    /// Index of the stretch's first group.
    first: usize,
    /// Of each pixel.
    scales: &'a [f32],
    factors: &'a [f32; BLOCK],
    summands: Option<&'a [f32; BLOCK]>,
    activation: Activation,
}

impl Edit for Scaled<'_> {
    #[inline(always)]
    unsafe fn edit<T: Tile>(&self, from: usize, values: &mut [f32]) {
        let scales = &self.scales[from - self.first..];
        for (pixel, scale) in values.as_chunks_mut::<BLOCK>().0.iter_mut().zip(scales) {
            for (value, factor) in pixel.iter_mut().zip(self.factors) {
                *value *= scale * factor;
            }
            if let Some(summands) = self.summands {
                for (value, summand) in pixel.iter_mut().zip(summands) {
                    *value += summand;
                }
            }
        }
        activate::<T>(self.activation, values);
    }
}
