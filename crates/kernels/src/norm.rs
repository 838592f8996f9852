//! GroupNorm in two halves: statistics of a tensor, turned into one factor and one summand for each channel, which the
//! next operation applies on its way in (or [`apply`] writes out).
//!
//! Statistics are safe for large tensors: chunks of a fixed number of pixels get their own mean and sum of squared
//! deviations in one pass, which are merged in `f64` in a fixed order (Chan, Golub and LeVeque, 1979).

use crate::elementwise::{Activation, activate};
use crate::half::widen_group;
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::math::multiply_add;
use crate::microkernel::Tile;
use crate::pool::Pool;
use crate::tensor::{Edit, SharedTensor, Tensor, TensorMut};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Pixels whose sums are kept in `f32`.
const CHUNK: usize = 128;
/// Pixels that one task treats.
const STRETCH: usize = 64 * CHUNK;

/// Count, mean and sum of squared deviations of some values.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    deviation: f64,
}

impl Moments {
    fn merge(self, other: Moments) -> Moments {
        if self.count == 0.0 {
            return other;
        }
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        Moments {
            count,
            mean: self.mean + delta * (other.count / count),
            deviation: self.deviation + other.deviation + delta * delta * (self.count * other.count / count),
        }
    }
}

/// GroupNorm's parameters for one tensor.
#[derive(Clone, Copy)]
pub struct GroupNorm<'a> {
    /// Channel groups that share statistics.
    pub groups: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// `[channels]`, factor after normalising.
    pub weight: &'a [f32],
    /// `[channels]`, summand after normalising.
    pub bias: &'a [f32],
}

/// Makes `scale` and `shift` (`[padded channels]` each, zero in the padding) so that `x · scale + shift` is the
/// normalised `input` (`[channels, pixels]`, blocked); the channels are those of `norm.weight`.
///
/// The variance is that of the group's own values, divided by their number.
///
/// # Panics
/// A length does not fit, or `groups` does not divide the channels.
pub fn statistics(
    isa: Isa,
    pool: &Pool,
    norm: GroupNorm<'_>,
    input: Tensor<'_>,
    pixels: usize,
    scale: &mut [f32],
    shift: &mut [f32],
) {
    clip_statistics(isa, pool, norm, input, [1, pixels], scale, shift);
}

/// As [`statistics`], over all frames of a clip together: `input` is `frames` times `[channels, pixels]`.
///
/// # Panics
/// As [`statistics`].
pub fn clip_statistics(
    isa: Isa,
    pool: &Pool,
    norm: GroupNorm<'_>,
    input: Tensor<'_>,
    [frames, pixels]: [usize; 2],
    scale: &mut [f32],
    shift: &mut [f32],
) {
    let frame = blocks(norm.weight.len()) * pixels;
    assert_eq!(input.groups(), frames * frame);
    let mut sums = Sums::new(norm.weight.len(), pixels);
    for index in 0..frames {
        sums.add(isa, pool, input.part(index * frame, frame), 0..pixels);
    }
    sums.table(norm, scale, shift);
}

/// Mean and squared deviations of each channel of a tensor that comes in parts: its pixels in order, one frame after the
/// other. How it is cut into parts changes no bit of what comes out.
pub struct Sums {
    /// Pixels of a frame.
    pixels: usize,
    /// Pixels of the current frame that were seen.
    seen: usize,
    /// Whole stretches, for each channel block.
    whole: Vec<[Moments; BLOCK]>,
    /// The stretch that has begun.
    begun: Vec<[Moments; BLOCK]>,
}

impl Sums {
    /// Parts end at multiples of this many pixels, or at a frame's end.
    pub const GRAIN: usize = CHUNK;

    /// Of frames `[channels, pixels]`.
    pub fn new(channels: usize, pixels: usize) -> Sums {
        let none = vec![[Moments::default(); BLOCK]; blocks(channels)];
        Sums { pixels, seen: 0, whole: none.clone(), begun: none }
    }

    /// Adds the next pixels `range` of a frame. Of each channel block, `input` holds as many pixels as it has room for:
    /// pixel `p` is at place `p` modulo that number (see [`crate::strip`]).
    ///
    /// # Panics
    /// The range does not begin where the last one ended, or does not end as [`Sums::GRAIN`] says.
    pub fn add(&mut self, isa: Isa, pool: &Pool, input: Tensor<'_>, range: Range<usize>) {
        assert!(range.start == self.seen && range.end <= self.pixels, "{range:?} after {}", self.seen);
        assert!(range.end == self.pixels || range.end.is_multiple_of(CHUNK), "{range:?} of {}", self.pixels);
        let kept = input.groups() / self.whole.len();
        assert_eq!(input.groups(), kept * self.whole.len());
        let first = range.start / STRETCH;
        let stretches = range.end.div_ceil(STRETCH) - first;
        let parts: Vec<Mutex<[Moments; BLOCK]>> =
            (0..stretches * self.whole.len()).map(|_| Mutex::default()).collect();
        pool.run(parts.len(), |index| {
            let (stretch, block) = (first + index / self.whole.len(), index % self.whole.len());
            let mut part = if stretch == first { self.begun[block] } else { Default::default() };
            let pixels = range.start.max(stretch * STRETCH)..range.end.min((stretch + 1) * STRETCH);
            let (values, out) = (input.part(block * kept, kept), &mut part);
            dispatch!(isa, moments(values: Tensor<'_>, pixels: Range<usize>, out: &mut [Moments; BLOCK]));
            *parts[index].lock().unwrap_or_else(PoisonError::into_inner) = part;
        });
        for (index, part) in parts.into_iter().enumerate() {
            let (stretch, block) = (first + index / self.whole.len(), index % self.whole.len());
            let part = part.into_inner().unwrap_or_else(PoisonError::into_inner);
            if (stretch + 1) * STRETCH <= range.end || range.end == self.pixels {
                for (whole, part) in self.whole[block].iter_mut().zip(part) {
                    *whole = whole.merge(part);
                }
                self.begun[block] = Default::default();
            } else {
                self.begun[block] = part;
            }
        }
        self.seen = if range.end == self.pixels { 0 } else { range.end };
    }

    /// As [`statistics`] of all that was added.
    ///
    /// # Panics
    /// A length does not fit, or `groups` does not divide the channels.
    pub fn table(&self, norm: GroupNorm<'_>, scale: &mut [f32], shift: &mut [f32]) {
        let channels = norm.weight.len();
        assert_eq!(norm.bias.len(), channels);
        assert!(channels.is_multiple_of(norm.groups), "{channels} channels in {} groups", norm.groups);
        assert!(scale.len() == self.whole.len() * BLOCK && shift.len() == scale.len());
        scale.fill(0.0);
        shift.fill(0.0);
        let moments = self.whole.as_flattened();
        let size = channels / norm.groups;
        for group in 0..norm.groups {
            let own = group * size..(group + 1) * size;
            let whole = moments[own.clone()].iter().fold(Moments::default(), |sum, next| sum.merge(*next));
            let inverse = 1.0 / (whole.deviation / whole.count + f64::from(norm.epsilon)).sqrt();
            for channel in own {
                let factor = f64::from(norm.weight[channel]) * inverse;
                scale[channel] = factor as f32;
                shift[channel] = (f64::from(norm.bias[channel]) - whole.mean * factor) as f32;
            }
        }
    }
}

/// Adds chunk after chunk of the pixels `range`, of which pixel `p` is at place `p` modulo those that `values` holds.
#[inline(always)]
unsafe fn moments<T: Tile>(values: Tensor<'_>, range: Range<usize>, out: &mut [Moments; BLOCK]) {
    let mut room = [[0.0; BLOCK]; CHUNK];
    for start in range.clone().step_by(CHUNK) {
        let count = CHUNK.min(range.end - start);
        let place = start % values.groups();
        let before = count.min(values.groups() - place);
        let chunk = if before == count {
            values.part(place, count)
        } else {
            let (head, tail) = room[..count].split_at_mut(before);
            // SAFETY: the caller vouches for the CPU.
            unsafe {
                values.part(place, before).read::<T>(head.as_flattened_mut());
                values.part(0, count - before).read::<T>(tail.as_flattened_mut());
            }
            Tensor::Float32(room[..count].as_flattened())
        };
        // SAFETY: the caller vouches for the CPU.
        unsafe { add_chunk::<T>(chunk, out) };
    }
}

/// Adds the pixels of a chunk in one pass, as their deviations from a number near the mean: the mean of what was there,
/// or the first of them (Chan, Golub and LeVeque, 1983).
#[inline(always)]
unsafe fn add_chunk<T: Tile>(chunk: Tensor<'_>, out: &mut [Moments; BLOCK]) {
    // SAFETY: the caller vouches for the CPU; a chunk has a pixel.
    let first = unsafe { chunk.group::<T>(0) };
    let mut center = [0.0f32; BLOCK];
    for lane in 0..BLOCK {
        center[lane] = if out[lane].count == 0.0 { first[lane] } else { out[lane].mean as f32 };
    }
    let [sum, squares] = match chunk {
        Tensor::Float32(values) => {
            let pixels = values.as_chunks::<BLOCK>().0;
            deviations::<T>(pixels.len(), &center, |index| pixels[index])
        }
        Tensor::Half(values, exponents) => {
            let exponents = &exponents[..values.len()];
            deviations::<T>(values.len(), &center, |index| {
                // SAFETY: the caller vouches for the CPU.
                unsafe { widen_group::<T::Vector>(&values[index], exponents[index]) }
            })
        }
    };
    let count = chunk.groups() as f64;
    for lane in 0..BLOCK {
        let (sum, squares) = (f64::from(sum[lane]), f64::from(squares[lane]));
        out[lane] = out[lane].merge(Moments {
            count,
            mean: f64::from(center[lane]) + sum / count,
            deviation: squares - sum * sum / count,
        });
    }
}

/// Sums, and sums of squares, of what `count` pixels deviate from `center`. Two chains of each, because one waits for
/// itself.
#[inline(always)]
fn deviations<T: Tile>(
    count: usize,
    center: &[f32; BLOCK],
    pixel: impl Fn(usize) -> [f32; BLOCK],
) -> [[f32; BLOCK]; 2] {
    let add = |[sum, squares]: &mut [[f32; BLOCK]; 2], pixel: [f32; BLOCK]| {
        for lane in 0..BLOCK {
            let deviation = pixel[lane] - center[lane];
            sum[lane] += deviation;
            squares[lane] = multiply_add::<T>(deviation, deviation, squares[lane]);
        }
    };
    let (mut even, mut odd) = ([[0.0; BLOCK]; 2], [[0.0; BLOCK]; 2]);
    for index in 0..count / 2 {
        add(&mut even, pixel(2 * index));
        add(&mut odd, pixel(2 * index + 1));
    }
    if !count.is_multiple_of(2) {
        add(&mut even, pixel(count - 1));
    }
    for (even, odd) in even.as_flattened_mut().iter_mut().zip(odd.as_flattened()) {
        *even += odd;
    }
    even
}

/// Writes `activation(input · scale + shift)` to `output`, per channel; all blocked `[channels, pixels]`.
///
/// # Panics
/// The lengths do not fit each other.
pub fn apply(
    isa: Isa,
    pool: &Pool,
    input: Tensor<'_>,
    pixels: usize,
    (scale, shift): (&[f32], &[f32]),
    activation: Activation,
    output: TensorMut<'_>,
) {
    assert_eq!(input.groups(), output.groups());
    assert_eq!(input.groups() * BLOCK, scale.len() * pixels);
    assert_eq!(scale.len(), shift.len());
    let stretches = pixels.div_ceil(STRETCH);
    let shared = SharedTensor::new(output);
    pool.run(scale.len() / BLOCK * stretches, |index| {
        let (block, stretch) = (index / stretches, index % stretches);
        let start = stretch * STRETCH;
        let place = [block * pixels + start, STRETCH.min(pixels - start)];
        let affine = (&scale[block * BLOCK..][..BLOCK], &shift[block * BLOCK..][..BLOCK]);
        let job = &Job { input, output: &shared, affine, activation };
        dispatch!(isa, apply_stretch(job: &Job<'_>, place: [usize; 2]));
    });
}

struct Job<'a> {
    input: Tensor<'a>,
    output: &'a SharedTensor<'a>,
    affine: (&'a [f32], &'a [f32]),
    activation: Activation,
}

#[inline(always)]
unsafe fn apply_stretch<T: Tile>(job: &Job<'_>, [start, groups]: [usize; 2]) {
    // SAFETY: the caller vouches for the CPU; stretches of different blocks and places do not overlap.
    unsafe { job.output.edit::<T>(start, groups, Some(job.input), job) }
}

impl Edit for Job<'_> {
    #[inline(always)]
    unsafe fn edit<T: Tile>(&self, _: usize, values: &mut [f32]) {
        let (scale, shift) = self.affine;
        for pixel in values.as_chunks_mut::<BLOCK>().0 {
            for lane in 0..BLOCK {
                pixel[lane] = multiply_add::<T>(pixel[lane], scale[lane], shift[lane]);
            }
        }
        activate::<T>(self.activation, values);
    }
}
