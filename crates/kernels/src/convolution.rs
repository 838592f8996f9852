//! Direct 2-D convolution as an implicit matrix product over tiles of the picture.
//!
//! A task gathers the input patch of one output tile once (the *prologue*: norm, activation, nearest upsampling and
//! zero padding happen on the way), multiplies it with every output channel of its group, and finishes each value on
//! the way out (the *epilogue*: bias, residual, activation). Linear layers are 1×1 convolutions.

use crate::elementwise::{Activation, activate};
use crate::isa::{Isa, dispatch};
use crate::layout::{BLOCK, blocked_len, blocks};
use crate::math::multiply_add;
use crate::microkernel::{Rows, Tile};
use crate::pool::Pool;
use crate::shared::SharedOutput;

/// A patch is kept below this many `f32`, so that it stays in a core's second-level cache.
const PATCH_BUDGET: usize = 192 * 1024;
/// Input channel blocks whose weights are multiplied before the sums are put down.
const BLOCKS_PER_PASS: usize = 4;
/// A picture with fewer tiles than this is also split over output channels.
const ENOUGH_TASKS: usize = 64;

/// What happens to an input value on its way into the convolution, in this order: norm, activation, upsampling.
#[derive(Clone, Copy, Default)]
pub struct Prologue<'a> {
    /// Per-channel factor and summand (`[padded channels]` each), as [`crate::norm`] makes them.
    pub affine: Option<(&'a [f32], &'a [f32])>,
    /// Nonlinearity after the norm.
    pub activation: Activation,
    /// Nearest upsampling by this factor in both directions; 0 and 1 mean none.
    pub upsample: usize,
}

/// What is added to the result before the last activation.
#[derive(Clone, Copy, Default)]
pub enum Residual<'a> {
    /// Nothing.
    #[default]
    None,
    /// Another tensor of the output's shape.
    Tensor(&'a [f32]),
    /// What the output held before.
    InPlace,
}

/// What happens to a result on its way out: bias (the convolution's own), residual, activation.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Summand.
    pub residual: Residual<'a>,
    /// Nonlinearity of the sum.
    pub activation: Activation,
}

/// Geometry of a convolution; padding is with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Input channels.
    pub input_channels: usize,
    /// Output channels.
    pub output_channels: usize,
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Step in both directions.
    pub stride: usize,
    /// Rows above, rows below, columns left, columns right.
    pub padding: [usize; 4],
}

impl Geometry {
    /// The output's `[height, width]` for an input of `size` (after upsampling); `None` when the kernel does not fit.
    pub fn output_size(&self, [height, width]: [usize; 2]) -> Option<[usize; 2]> {
        let [top, bottom, left, right] = self.padding;
        let rows = (height + top + bottom).checked_sub(self.kernel[0])?;
        let columns = (width + left + right).checked_sub(self.kernel[1])?;
        Some([rows / self.stride + 1, columns / self.stride + 1])
    }

    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == 1 && self.padding == [0; 4]
    }
}

/// A convolution with its weights laid out for one instruction tier.
pub struct Convolution {
    isa: Isa,
    geometry: Geometry,
    /// `[group of lanes][input block][tap][16][lanes]`
    panels: Vec<f32>,
    /// `[groups · lanes]`
    bias: Vec<f32>,
}

impl Convolution {
    /// Lays out `weight` (`[output, input, kernel height, kernel width]`) and `bias` (`[output]`).
    ///
    /// # Panics
    /// A length does not fit the geometry.
    pub fn new(isa: Isa, geometry: Geometry, weight: &[f32], bias: Option<&[f32]>) -> Convolution {
        let Geometry { input_channels, output_channels, kernel, .. } = geometry;
        let taps = kernel[0] * kernel[1];
        assert_eq!(weight.len(), output_channels * input_channels * taps);
        let lanes = isa.lanes();
        let groups = output_channels.div_ceil(lanes);
        let group_len = blocks(input_channels) * taps * BLOCK * lanes;
        let mut panels = vec![0.0; groups * group_len];
        for output in 0..output_channels {
            let group = &mut panels[output / lanes * group_len..][..group_len];
            for input in 0..input_channels {
                let source = &weight[(output * input_channels + input) * taps..][..taps];
                for (tap, value) in source.iter().enumerate() {
                    let row = (input / BLOCK * taps + tap) * BLOCK + input % BLOCK;
                    group[row * lanes + output % lanes] = *value;
                }
            }
        }
        let mut padded_bias = vec![0.0; groups * lanes];
        if let Some(bias) = bias {
            assert_eq!(bias.len(), output_channels);
            padded_bias[..output_channels].copy_from_slice(bias);
        }
        Convolution { isa, geometry, panels, bias: padded_bias }
    }

    /// Its geometry.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Bytes that the laid-out weights of a convolution of this geometry take.
    pub fn weight_bytes(isa: Isa, geometry: &Geometry) -> usize {
        let columns = geometry.output_channels.div_ceil(isa.lanes()) * isa.lanes();
        let rows = blocks(geometry.input_channels) * geometry.kernel[0] * geometry.kernel[1] * BLOCK;
        columns * (rows + 1) * size_of::<f32>()
    }

    /// Convolves `input` (blocked, `size` = its `[height, width]` before upsampling) into `output` (blocked).
    ///
    /// # Panics
    /// A length does not fit the geometry, or the kernel does not fit the padded input.
    pub fn run(
        &self,
        pool: &Pool,
        input: &[f32],
        size: [usize; 2],
        prologue: Prologue<'_>,
        epilogue: Epilogue<'_>,
        output: &mut [f32],
    ) {
        let factor = prologue.upsample.max(1);
        assert_eq!(input.len(), blocked_len(self.geometry.input_channels, size[0] * size[1]));
        let [height, width] = self
            .geometry
            .output_size([size[0] * factor, size[1] * factor])
            .expect("the kernel fits the padded input");
        assert_eq!(output.len(), blocked_len(self.geometry.output_channels, height * width));
        if let Residual::Tensor(residual) = epilogue.residual {
            assert_eq!(residual.len(), output.len());
        }
        // A pointwise product does not care about rows: one long row makes fuller tiles.
        let (size, output_size) = if self.geometry.is_pointwise() && factor == 1 {
            ([1, size[0] * size[1]], [1, height * width])
        } else {
            (size, [height, width])
        };
        let tiling = Tiling::new(self.isa, &self.geometry, output_size);
        let job = Job {
            convolution: self,
            input,
            size,
            output_size,
            prologue: Prologue { upsample: factor, ..prologue },
            epilogue,
            tiling,
            taps: self.tap_offsets(tiling),
            output: SharedOutput::new(output),
        };
        let isa = self.isa;
        pool.run(
            tiling.tasks(),
            || Scratch {
                patch: vec![0.0; tiling.patch_len],
                sums: vec![0.0; tiling.tile[0] * tiling.tile[1] * isa.lanes()],
            },
            |scratch, index| {
                let job = &job;
                dispatch!(isa, tile(job: &Job<'_>, scratch: &mut Scratch, index: usize));
            },
        );
    }

    /// Bytes of scratch that each worker takes while [`Convolution::run`] makes an output of `size`.
    pub fn scratch_bytes(isa: Isa, geometry: &Geometry, [height, width]: [usize; 2]) -> usize {
        let size = if geometry.is_pointwise() { [1, height * width] } else { [height, width] };
        let tiling = Tiling::new(isa, geometry, size);
        (tiling.patch_len + tiling.tile[0] * tiling.tile[1] * isa.lanes()) * size_of::<f32>()
    }

    fn tap_offsets(&self, tiling: Tiling) -> Vec<usize> {
        let [rows, columns] = self.geometry.kernel;
        (0..rows).flat_map(|y| (0..columns).map(move |x| (y * tiling.patch[1] + x) * BLOCK)).collect()
    }
}

/// How an output is cut into tiles; a function of shape and tier alone.
#[derive(Clone, Copy)]
struct Tiling {
    /// Output rows and columns of a tile.
    tile: [usize; 2],
    /// Tiles down and across.
    count: [usize; 2],
    /// Input rows and columns of a tile.
    patch: [usize; 2],
    patch_len: usize,
    /// Output channel groups in all, and how many a task treats.
    groups: usize,
    groups_per_task: usize,
}

impl Tiling {
    fn new(isa: Isa, geometry: &Geometry, [height, width]: [usize; 2]) -> Tiling {
        let pixels = isa.pixels();
        let whole = |columns: usize| columns.div_ceil(pixels) * pixels;
        let widest = if height == 1 { 256 } else { 32 };
        let mut tile = [height.min(8), whole(width.min(widest / pixels * pixels))];
        let patch_of =
            |tile: [usize; 2]| [0, 1].map(|axis| (tile[axis] - 1) * geometry.stride + geometry.kernel[axis]);
        let len_of = |[rows, columns]: [usize; 2]| blocks(geometry.input_channels) * rows * columns * BLOCK;
        while len_of(patch_of(tile)) > PATCH_BUDGET && tile != [1, pixels] {
            if tile[0] > 1 {
                tile[0] /= 2;
            } else {
                tile[1] = whole(tile[1] / 2);
            }
        }
        let count = [height.div_ceil(tile[0]), width.div_ceil(tile[1])];
        let groups = geometry.output_channels.div_ceil(isa.lanes());
        let wanted = ENOUGH_TASKS.div_ceil(count[0] * count[1]).min(groups);
        let patch = patch_of(tile);
        Tiling {
            tile,
            count,
            patch,
            patch_len: len_of(patch),
            groups,
            groups_per_task: groups.div_ceil(wanted),
        }
    }

    fn tasks(&self) -> usize {
        self.count[0] * self.count[1] * self.groups.div_ceil(self.groups_per_task)
    }
}

struct Job<'a> {
    convolution: &'a Convolution,
    input: &'a [f32],
    size: [usize; 2],
    output_size: [usize; 2],
    prologue: Prologue<'a>,
    epilogue: Epilogue<'a>,
    tiling: Tiling,
    taps: Vec<usize>,
    output: SharedOutput<'a>,
}

struct Scratch {
    patch: Vec<f32>,
    sums: Vec<f32>,
}

#[inline(always)]
unsafe fn tile<T: Tile>(job: &Job<'_>, scratch: &mut Scratch, index: usize) {
    let tiling = &job.tiling;
    let tiles = tiling.count[0] * tiling.count[1];
    let (group_task, position) = (index / tiles, index % tiles);
    let origin = [position / tiling.count[1] * tiling.tile[0], position % tiling.count[1] * tiling.tile[1]];
    gather::<T>(job, origin, &mut scratch.patch);
    let first = group_task * tiling.groups_per_task;
    for group in first..(first + tiling.groups_per_task).min(tiling.groups) {
        // SAFETY: the caller vouches for the CPU.
        unsafe { multiply::<T>(job, &scratch.patch, origin, group, &mut scratch.sums) };
        store::<T>(job, origin, group, &scratch.sums);
    }
}

/// Fills `patch` (`[input block][patch row][patch column][16]`) with what the tile at `origin` looks at.
#[inline(always)]
fn gather<T: Tile>(job: &Job<'_>, origin: [usize; 2], patch: &mut [f32]) {
    let Geometry { stride, padding: [top, _, left, _], .. } = job.convolution.geometry;
    let factor = job.prologue.upsample;
    let [height, width] = job.size;
    let [patch_rows, patch_columns] = job.tiling.patch;
    for (block, plane) in patch.chunks_exact_mut(patch_rows * patch_columns * BLOCK).enumerate() {
        let source_plane = &job.input[block * height * width * BLOCK..][..height * width * BLOCK];
        for (row, out) in plane.chunks_exact_mut(patch_columns * BLOCK).enumerate() {
            let y = origin[0] * stride + row;
            if y < top || y - top >= height * factor {
                out.fill(0.0);
                continue;
            }
            let source = &source_plane[(y - top) / factor * width * BLOCK..][..width * BLOCK];
            // Columns `before..after` of the patch lie inside the picture.
            let x = origin[1] * stride;
            let before = left.saturating_sub(x).min(patch_columns);
            let after = (width * factor + left).saturating_sub(x).clamp(before, patch_columns);
            out[..before * BLOCK].fill(0.0);
            out[after * BLOCK..].fill(0.0);
            let inside = &mut out[before * BLOCK..after * BLOCK];
            if factor == 1 {
                inside.copy_from_slice(&source[(x + before).saturating_sub(left) * BLOCK..][..inside.len()]);
            } else {
                for (column, pixel) in inside.chunks_exact_mut(BLOCK).enumerate() {
                    let from = (x + before + column - left) / factor;
                    pixel.copy_from_slice(&source[from * BLOCK..][..BLOCK]);
                }
            }
            if let Some((scale, shift)) = job.prologue.affine {
                let scale: &[f32; BLOCK] =
                    scale[block * BLOCK..].first_chunk().expect("padded to whole blocks");
                let shift: &[f32; BLOCK] =
                    shift[block * BLOCK..].first_chunk().expect("padded to whole blocks");
                for pixel in inside.as_chunks_mut::<BLOCK>().0 {
                    for lane in 0..BLOCK {
                        pixel[lane] = multiply_add::<T>(pixel[lane], scale[lane], shift[lane]);
                    }
                }
            }
            activate::<T>(job.prologue.activation, inside);
        }
    }
}

/// `sums[pixel of the tile][lane]` = bias + patch · weights, for the output channels of `group`.
#[inline(always)]
unsafe fn multiply<T: Tile>(
    job: &Job<'_>,
    patch: &[f32],
    origin: [usize; 2],
    group: usize,
    sums: &mut [f32],
) {
    let Geometry { input_channels, stride, .. } = job.convolution.geometry;
    let [tile_rows, tile_columns] = job.tiling.tile;
    let rows = tile_rows.min(job.output_size[0] - origin[0]);
    let columns = tile_columns.min(job.output_size[1] - origin[1]);
    let [patch_rows, patch_columns] = job.tiling.patch;
    let block_stride = patch_rows * patch_columns * BLOCK;
    let panel_len = job.taps.len() * BLOCK * T::LANES;
    let group_panels = &job.convolution.panels[group * blocks(input_channels) * panel_len..]
        [..blocks(input_channels) * panel_len];
    let bias = &job.convolution.bias[group * T::LANES..][..T::LANES];
    for sum in sums.chunks_exact_mut(T::LANES) {
        sum.copy_from_slice(bias);
    }
    for (pass, panels) in group_panels.chunks(BLOCKS_PER_PASS * panel_len).enumerate() {
        for row in 0..rows {
            for column in (0..columns).step_by(T::PIXELS) {
                let left = Rows {
                    patch,
                    start: pass * BLOCKS_PER_PASS * block_stride
                        + (row * stride * patch_columns + column * stride) * BLOCK,
                    row_stride: stride * BLOCK,
                    block_stride,
                    taps: &job.taps,
                };
                // SAFETY: the caller vouches for the CPU.
                unsafe {
                    T::accumulate(&left, panels, &mut sums[(row * tile_columns + column) * T::LANES..])
                };
            }
        }
    }
}

/// Writes the tile's values of `group` with residual and activation.
#[inline(always)]
fn store<T: Tile>(job: &Job<'_>, origin: [usize; 2], group: usize, sums: &[f32]) {
    let [height, width] = job.output_size;
    let [tile_rows, tile_columns] = job.tiling.tile;
    let rows = tile_rows.min(height - origin[0]);
    let columns = tile_columns.min(width - origin[1]);
    let output_blocks = blocks(job.convolution.geometry.output_channels);
    let first = group * (T::LANES / BLOCK);
    for block in first..(first + T::LANES / BLOCK).min(output_blocks) {
        let lane = (block - first) * BLOCK;
        // Zero weights alone do not keep the padding at zero: 0 · NaN is NaN.
        let used = (job.convolution.geometry.output_channels - block * BLOCK).min(BLOCK);
        for row in 0..rows {
            let offset = ((block * height + origin[0] + row) * width + origin[1]) * BLOCK;
            // SAFETY: tiles and groups partition the output, and each belongs to one task.
            let out = unsafe { job.output.part(offset, columns * BLOCK) };
            for (column, pixel) in out.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
                let sum: &[f32; BLOCK] = sums[(row * tile_columns + column) * T::LANES + lane..]
                    .first_chunk()
                    .expect("one sum for each lane");
                match job.epilogue.residual {
                    Residual::None => *pixel = *sum,
                    Residual::Tensor(residual) => {
                        let other = &residual[offset + column * BLOCK..][..BLOCK];
                        for lane in 0..BLOCK {
                            pixel[lane] = sum[lane] + other[lane];
                        }
                    }
                    Residual::InPlace => {
                        for lane in 0..BLOCK {
                            pixel[lane] += sum[lane];
                        }
                    }
                }
            }
            activate::<T>(job.epilogue.activation, out);
            if used < BLOCK {
                for pixel in out.as_chunks_mut::<BLOCK>().0 {
                    pixel[used..].fill(0.0);
                }
            }
        }
    }
}
