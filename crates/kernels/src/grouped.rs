//! Convolution in groups of channels: an output channel reads the channels of its own group and no others. Groups of one
//! channel make it depthwise. Stride 1, zeros around the picture, sides kept.

use crate::clip::MAX_TAPS;
use crate::elementwise::Activation;
use crate::epilogue::{Epilogue, Residual, Target};
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocks};
use crate::math::multiply_add;
use crate::microkernel::Tile;
use crate::pool::Pool;
use crate::prologue::{Prologue, Source};
use crate::tensor::{SharedTensor, Tensor, TensorMut};

/// Rows and columns of the output that one task makes.
const TILE: [usize; 2] = [8, 32];

/// A grouped convolution with its weights laid out; as many channels come out as go in.
pub struct GroupedConvolution {
    channels: usize,
    /// Channels of a group.
    group: usize,
    /// Side of the kernel, odd.
    kernel: usize,
    /// `[output block][tap][channel of the group][16]`
    weights: Vec<f32>,
    /// `[padded channels]`
    bias: Vec<f32>,
}

impl GroupedConvolution {
    /// Lays out `weight` (`[channels, group, kernel, kernel]`) and `bias` (`[channels]`).
    ///
    /// # Panics
    /// The group does not divide the channels, the kernel is even, or a length does not fit.
    pub fn new(
        channels: usize,
        group: usize,
        kernel: usize,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> GroupedConvolution {
        let taps = kernel * kernel;
        assert!(group > 0 && channels.is_multiple_of(group) && !kernel.is_multiple_of(2));
        assert_eq!(weight.len(), channels * group * taps);
        let mut weights = vec![0.0; blocks(channels) * taps * group * BLOCK];
        for (index, value) in weight.iter().enumerate() {
            let (channel, inner, tap) = (index / taps / group, index / taps % group, index % taps);
            let row = (channel / BLOCK * taps + tap) * group + inner;
            weights[row * BLOCK + channel % BLOCK] = *value;
        }
        let mut padded_bias = vec![0.0; blocks(channels) * BLOCK];
        if let Some(bias) = bias {
            assert_eq!(bias.len(), channels);
            padded_bias[..channels].copy_from_slice(bias);
        }
        GroupedConvolution { channels, group, kernel, weights, bias: padded_bias }
    }

    /// Bytes that the laid-out weights take.
    pub fn weight_bytes(channels: usize, group: usize, kernel: usize) -> usize {
        blocks(channels) * BLOCK * (kernel * kernel * group + 1) * size_of::<f32>()
    }

    /// Bytes of scratch that each worker takes.
    pub fn worker_bytes(channels: usize, group: usize, kernel: usize) -> usize {
        let read = (0..blocks(channels)).map(|block| blocks_read(channels, group, block)[1]).max();
        patch_len(kernel, read.unwrap_or(0)) * size_of::<f32>()
    }

    /// Writes `activation(bias + sums)` of `input` to `output`, both blocked `[channels, height, width]`.
    ///
    /// # Panics
    /// A length does not fit, or the system refuses the workers' scratch.
    pub fn run(
        &self,
        isa: Isa,
        pool: &Pool,
        input: Tensor<'_>,
        size: [usize; 2],
        activation: Activation,
        output: TensorMut<'_>,
    ) {
        let [height, width] = size;
        assert_eq!(input.groups(), blocks(self.channels) * height * width);
        assert_eq!(input.groups(), output.groups());
        let mut frames = [None; MAX_TAPS];
        frames[0] = Some(0);
        let source = Source {
            input,
            history: &[],
            frames,
            frame_blocks: blocks(self.channels),
            replicate: false,
            size,
            rows: height,
            prologue: Prologue::default(),
            factor: 1,
            padding: [self.kernel / 2; 2],
        };
        let target = Target {
            output: SharedTensor::new(output),
            size,
            rows: 0..height,
            stored_rows: [height; 2],
            channels: self.channels,
            epilogue: Epilogue { residual: Residual::None, activation },
            moments: None,
        };
        let tiles = [height.div_ceil(TILE[0]), width.div_ceil(TILE[1])];
        let job = &Job { layer: self, source, target, tiles };
        let tasks = blocks(self.channels) * tiles[0] * tiles[1];
        let floats =
            GroupedConvolution::worker_bytes(self.channels, self.group, self.kernel) / size_of::<f32>();
        pool.run_in_room(tasks, floats, |patch, index| {
            dispatch!(isa, tile(job: &Job<'_>, patch: &mut [f32], index: usize));
        });
    }
}

/// The first of the input blocks that an output block reads, and how many they are.
fn blocks_read(channels: usize, group: usize, block: usize) -> [usize; 2] {
    let last = ((block + 1) * BLOCK).min(channels) - 1;
    let first = block * BLOCK / group * group / BLOCK;
    [first, (last / group * group + group).div_ceil(BLOCK) - first]
}

/// `f32` of the input of a tile of so many blocks.
fn patch_len(kernel: usize, blocks: usize) -> usize {
    blocks * TILE.map(|side| side + kernel - 1).iter().product::<usize>() * BLOCK
}

struct Job<'a> {
    layer: &'a GroupedConvolution,
    source: Source<'a>,
    target: Target<'a>,
    /// Down and across.
    tiles: [usize; 2],
}

/// The input of a tile, `[block][rows][columns][16]`.
#[derive(Clone, Copy)]
struct Patch<'a> {
    values: &'a [f32],
    /// The first block's number.
    first: usize,
    columns: usize,
    /// Values of a block.
    plane: usize,
}

impl Patch<'_> {
    /// The sixteen values of `block` at a pixel.
    #[inline(always)]
    fn group(&self, block: usize, pixel: usize) -> &[f32; BLOCK] {
        let start = (block - self.first) * self.plane + pixel * BLOCK;
        self.values[start..].first_chunk().expect("a group has sixteen values")
    }
}

#[inline(always)]
unsafe fn tile<T: Tile>(job: &Job<'_>, patch: &mut [f32], index: usize) {
    let GroupedConvolution { channels, group, kernel, .. } = *job.layer;
    let tiles = job.tiles[0] * job.tiles[1];
    let (block, position) = (index / tiles, index % tiles);
    let origin = [position / job.tiles[1] * TILE[0], position % job.tiles[1] * TILE[1]];
    let [rows, columns] = [0, 1].map(|axis| TILE[axis].min(job.target.size[axis] - origin[axis]));
    let patch_columns = columns + kernel - 1;
    let plane = (rows + kernel - 1) * patch_columns * BLOCK;
    let [first, count] = blocks_read(channels, group, block);
    let values = &mut patch[..count * plane];
    for (read, values) in values.chunks_exact_mut(plane).enumerate() {
        // SAFETY: the caller vouches for the CPU.
        unsafe { job.source.gather::<T>(first + read, origin, patch_columns, values, None) };
    }
    let patch = Patch { values, first, columns: patch_columns, plane };
    let mut sums = [[0.0f32; BLOCK]; TILE[1]];
    for row in 0..rows {
        for (column, sum) in sums.iter_mut().enumerate().take(columns) {
            *sum = pixel::<T>(job.layer, patch, block, row * patch_columns + column);
        }
        // SAFETY: the caller vouches for the CPU; tiles and blocks partition the output.
        unsafe {
            let place = [origin[0] + row, origin[1]];
            job.target.finish::<T>(block, place, columns, sums.as_flattened(), BLOCK);
        }
    }
}

/// The sums of one output block at the pixel whose kernel begins at `corner` of the patch: taps in their order, in each the
/// channels of the group.
#[inline(always)]
fn pixel<T: Tile>(layer: &GroupedConvolution, patch: Patch<'_>, block: usize, corner: usize) -> [f32; BLOCK] {
    let GroupedConvolution { channels, group, kernel, .. } = *layer;
    let taps = kernel * kernel;
    let mut sum: [f32; BLOCK] = *layer.bias[block * BLOCK..].first_chunk().expect("padded to whole blocks");
    let weights = layer.weights[block * taps * group * BLOCK..].as_chunks::<BLOCK>().0;
    for tap in 0..taps {
        let place = corner + tap / kernel * patch.columns + tap % kernel;
        let weights = &weights[tap * group..][..group];
        if group == 1 {
            let values = patch.group(block, place);
            for lane in 0..BLOCK {
                sum[lane] = multiply_add::<T>(values[lane], weights[0][lane], sum[lane]);
            }
        } else if group.is_multiple_of(BLOCK) {
            // All sixteen channels are of one group.
            let start = block * BLOCK / group * group / BLOCK;
            for (part, weights) in weights.as_chunks::<BLOCK>().0.iter().enumerate() {
                for (value, weights) in patch.group(start + part, place).iter().zip(weights) {
                    for lane in 0..BLOCK {
                        sum[lane] = multiply_add::<T>(*value, weights[lane], sum[lane]);
                    }
                }
            }
        } else {
            for (inner, weights) in weights.iter().enumerate() {
                for lane in 0..BLOCK.min(channels - block * BLOCK) {
                    let channel = (block * BLOCK + lane) / group * group + inner;
                    let value = patch.group(channel / BLOCK, place)[channel % BLOCK];
                    sum[lane] = multiply_add::<T>(value, weights[lane], sum[lane]);
                }
            }
        }
    }
    sum
}
