//! Convolution with what comes before and after it: geometry, weights, and the choice of the algorithm.
//!
//! A convolution reads its input through a *prologue* (norm, activation, nearest upsampling, zero padding) and finishes
//! each value in an *epilogue* (bias, residual, activation, and in tiles the moments for a norm's statistics), whatever
//! computes the sums in between: the direct path (`direct`, `pointwise` for kernels of one pixel, `shift_add` for few output
//! channels), F(4×4, 3×3) or F(6×6, 3×3) (`winograd`), their like for strides of two (`strided`), or the fold of nearest
//! upsampling into the weights (`upsample_fold`).

use crate::clip::{Clip, Edge, MAX_TAPS};
use crate::epilogue::Target;
use crate::isa::Isa;
use crate::layout::{BLOCK, blocks};
use crate::moments::Patches;
use crate::pool::Pool;
use crate::prologue::Source;
use crate::shared::SharedOutput;
use crate::strided::WinogradStrided;
use crate::strip::Strip;
use crate::tensor::{SharedTensor, Tensor, TensorMut};
use crate::upsample_fold::UpsampleFold;
use crate::weights::{Compact, Span, panels};
use crate::winograd::{Winograd4, Winograd6};
use crate::{direct, pointwise, shift_add, tile_direct, transformed};
use std::ops::Range;

pub use crate::epilogue::{Epilogue, Residual};
pub use crate::prologue::Prologue;

/// Convolutions with no more pairs of channels use tiles of 6×6 outputs: beyond, making and reading the transformed
/// weights, which are larger then, costs more than is saved.
const MOST_FOR_LARGE_TILES: usize = 512 * 256;

/// Geometry of a convolution in height and width; what it is padded with, [`crate::clip::Edge`] says. The input
/// channels of one with several time taps are those of all frames it reads, each padded to whole blocks.
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

/// What computes the sums of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// One product for each weight and output.
    Direct,
    /// The same for kernels of one pixel: a matrix product.
    Pointwise,
    /// The same for few output channels, whose taps share a register.
    ShiftAdd,
    /// F(4×4, 3×3): a quarter of the products.
    Winograd4,
    /// F(6×6, 3×3): less than a fifth of the products.
    Winograd6,
    /// One product for each weight and output, in tile registers.
    TileDirect,
    /// 3×3 kernel of stride 2 in tiles of 3×3 outputs: three fifths of the products.
    WinogradStrided,
    /// Nearest upsampling by two folded into a 3×3 kernel: less than a fifth of the products.
    UpsampleFold,
}

impl Algorithm {
    /// `direct`, `pointwise`, `shift add`, `tile direct`, `winograd 4x4`, `winograd 6x6`,
    /// `winograd 3x3 of stride 2` or `upsample fold`.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Direct => "direct",
            Algorithm::Pointwise => "pointwise",
            Algorithm::ShiftAdd => "shift add",
            Algorithm::TileDirect => "tile direct",
            Algorithm::Winograd4 => "winograd 4x4",
            Algorithm::Winograd6 => "winograd 6x6",
            Algorithm::WinogradStrided => "winograd 3x3 of stride 2",
            Algorithm::UpsampleFold => "upsample fold",
        }
    }

    /// How many products it takes for one of the definition's.
    pub fn products(self) -> f64 {
        match self {
            Algorithm::Direct | Algorithm::Pointwise | Algorithm::ShiftAdd | Algorithm::TileDirect => 1.0,
            Algorithm::Winograd4 => 36.0 / 144.0,
            Algorithm::Winograd6 => 64.0 / 324.0,
            Algorithm::WinogradStrided => 49.0 / 81.0,
            Algorithm::UpsampleFold => 25.0 / 144.0,
        }
    }
}

/// What the sums of a convolution are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// 32-bit floating point.
    #[default]
    Float32,
    /// 16-bit integers with scales taken from the numbers themselves, about twice as fast.
    Integer16,
}

impl Arithmetic {
    /// `float32` or `integer16`.
    pub fn name(self) -> &'static str {
        match self {
            Arithmetic::Float32 => "float32",
            Arithmetic::Integer16 => "integer16",
        }
    }
}

impl Geometry {
    /// The output's `[height, width]` for an input of `size` (after upsampling); `None` when the kernel does not fit.
    pub fn output_size(&self, [height, width]: [usize; 2]) -> Option<[usize; 2]> {
        let [top, bottom, left, right] = self.padding;
        let rows = (height + top + bottom).checked_sub(self.kernel[0])?;
        let columns = (width + left + right).checked_sub(self.kernel[1])?;
        Some([rows / self.stride + 1, columns / self.stride + 1])
    }

    /// What computes this convolution after nearest upsampling by `upsample`. It depends on nothing else but the tier, so that the
    /// same layer rounds in the same way in every picture.
    pub fn algorithm(&self, isa: Isa, upsample: usize) -> Algorithm {
        if shift_add::fits(self) {
            Algorithm::ShiftAdd
        } else if !self.is_transformable(isa) && isa.has_tiles() {
            Algorithm::TileDirect
        } else if pointwise::fits(self) && upsample <= 1 {
            Algorithm::Pointwise
        } else if !self.is_transformable(isa) {
            Algorithm::Direct
        } else if self.stride == 2 {
            Algorithm::WinogradStrided
        } else if upsample == 2 && self.padding == [1; 4] {
            Algorithm::UpsampleFold
        } else if self.input_channels.saturating_mul(self.output_channels) <= MOST_FOR_LARGE_TILES {
            Algorithm::Winograd6
        } else {
            Algorithm::Winograd4
        }
    }

    /// The geometry of frames for which the first `zero_taps` of `taps` time taps read zeros.
    pub fn without_taps(self, zero_taps: usize, taps: usize) -> Geometry {
        Geometry { input_channels: self.input_channels - self.input_channels / taps * zero_taps, ..self }
    }

    /// Where strips of the output may begin and end after nearest upsampling by `upsample`: at rows `n · step − skip` and
    /// at the picture's last. Gives `[step, skip]`.
    pub fn strip_grid(&self, isa: Isa, upsample: usize) -> [usize; 2] {
        match self.algorithm(isa, upsample) {
            Algorithm::Direct | Algorithm::Pointwise | Algorithm::ShiftAdd | Algorithm::TileDirect => [1, 0],
            Algorithm::Winograd4 => transformed::strip_grid::<Winograd4>(),
            Algorithm::Winograd6 => transformed::strip_grid::<Winograd6>(),
            Algorithm::WinogradStrided => transformed::strip_grid::<WinogradStrided>(),
            Algorithm::UpsampleFold => transformed::strip_grid::<UpsampleFold>(),
        }
    }

    /// How the output after nearest upsampling by `upsample` is cut where norm statistics of it are taken as it is
    /// finished; `None` where they are taken afterwards.
    pub fn patches(&self, isa: Isa, upsample: usize) -> Option<Patches> {
        match self.algorithm(isa, upsample) {
            Algorithm::Direct | Algorithm::Pointwise | Algorithm::ShiftAdd | Algorithm::TileDirect => None,
            Algorithm::Winograd4 => Some(transformed::patches::<Winograd4>()),
            Algorithm::Winograd6 => Some(transformed::patches::<Winograd6>()),
            Algorithm::WinogradStrided => Some(transformed::patches::<WinogradStrided>()),
            Algorithm::UpsampleFold => Some(transformed::patches::<UpsampleFold>()),
        }
    }

    /// Rows of an input of `height` (before nearest upsampling by `upsample`) that the output rows `rows` are made of. The
    /// last ones look at all that is left, also at a row that a stride leaves over: it may lie in a tile.
    pub fn rows_read(&self, rows: &Range<usize>, upsample: usize, height: usize) -> Range<usize> {
        let (factor, [top, bottom, ..]) = (upsample.max(1), self.padding);
        let start = (rows.start * self.stride).saturating_sub(top) / factor;
        let is_last = rows.end * self.stride + self.kernel[0] > height * factor + top + bottom;
        let end = (rows.end.saturating_sub(1) * self.stride + self.kernel[0]).saturating_sub(top);
        let end = if is_last { height } else { end.div_ceil(factor).min(height) };
        start.min(height)..end
    }

    /// Whether its weights are kept for a transform. Strided convolutions of few channels are faster without, in tile registers
    /// also those of more; input channels must not decide, because [`Geometry::without_taps`] has fewer.
    fn is_transformable(&self, isa: Isa) -> bool {
        let least = if isa.has_tiles() { 256 } else { 64 };
        let strided = self.stride == 2 && self.output_channels >= least;
        self.kernel == [3, 3] && (self.stride == 1 || strided) && !shift_add::fits(self)
    }
}

/// The frames that a convolution reads, each blocked and of one size.
#[derive(Clone, Copy)]
pub struct Frames<'a> {
    /// How it moves through them.
    pub clip: Clip,
    /// `clip.frames` frames, one after the other.
    pub input: Tensor<'a>,
    /// The `clip.before` frames before them, the earliest first.
    pub history: &'a [Tensor<'a>],
}

/// Where a convolution writes.
pub struct Destination<'a> {
    /// The result, blocked.
    pub output: TensorMut<'a>,
    /// Takes the moments of the result for norm statistics: for each frame a table as [`Patches::table_len`] says, of the patches
    /// that [`Geometry::patches`] says.
    pub moments: Option<&'a mut [f32]>,
}

impl<'a> From<TensorMut<'a>> for Destination<'a> {
    fn from(output: TensorMut<'a>) -> Self {
        Destination { output, moments: None }
    }
}

/// A convolution with its weights laid out for one instruction tier.
pub struct Convolution {
    isa: Isa,
    geometry: Geometry,
    weights: Weights,
    /// `[groups · lanes]`
    bias: Vec<f32>,
}

enum Weights {
    /// As the micro-kernel reads them: `[group of lanes][input block][tap][16][lanes]`, or as [`shift_add::panels`].
    Direct(Vec<f32>),
    /// The same, as a transform reads them for each run.
    Transformed(Compact),
}

impl Convolution {
    /// Lays out `weight` (`[output, input, kernel height, kernel width]`) and `bias` (`[output]`).
    ///
    /// # Panics
    /// A length does not fit the geometry.
    pub fn new(
        isa: Isa,
        pool: &Pool,
        geometry: Geometry,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Convolution {
        let weights = if geometry.is_transformable(isa) {
            Weights::Transformed(Compact::new(isa, pool, &geometry, weight))
        } else if shift_add::fits(&geometry) {
            Weights::Direct(shift_add::panels(isa, pool, &geometry, weight))
        } else {
            Weights::Direct(panels(isa, pool, &geometry, weight, |value| value))
        };
        let mut padded_bias = vec![0.0; geometry.output_channels.next_multiple_of(isa.lanes())];
        if let Some(bias) = bias {
            assert_eq!(bias.len(), geometry.output_channels);
            padded_bias[..geometry.output_channels].copy_from_slice(bias);
        }
        Convolution { isa, geometry, weights, bias: padded_bias }
    }

    /// Bytes that the laid-out weights of a convolution of this geometry take, at most; `narrow` says that all weights
    /// are finite 16-bit numbers, which are kept as such where a transform widens them anyway.
    pub fn weight_bytes(isa: Isa, geometry: &Geometry, narrow: bool) -> usize {
        let columns = geometry.output_channels.next_multiple_of(isa.lanes());
        if shift_add::fits(geometry) {
            return shift_add::weight_bytes(isa, geometry) + columns * size_of::<f32>();
        }
        let rows = blocks(geometry.input_channels) * geometry.kernel[0] * geometry.kernel[1] * BLOCK;
        let each = if narrow && geometry.is_transformable(isa) { size_of::<u16>() } else { size_of::<f32>() };
        columns * (rows * each + size_of::<f32>())
    }

    /// `f32` of `scratch` that [`Convolution::run`] needs after nearest upsampling by `upsample`: the transformed
    /// weights, which live no longer than the call.
    pub fn scratch_len(isa: Isa, geometry: &Geometry, upsample: usize, arithmetic: Arithmetic) -> usize {
        match geometry.algorithm(isa, upsample) {
            Algorithm::Direct => direct::Rounded::new(isa, geometry, arithmetic).len(),
            Algorithm::Pointwise => pointwise::weights_len(isa, geometry, arithmetic),
            Algorithm::ShiftAdd => 0,
            Algorithm::TileDirect => tile_direct::weights_len(geometry, arithmetic),
            Algorithm::Winograd4 => transformed::weights_len::<Winograd4>(isa, geometry, arithmetic),
            Algorithm::Winograd6 => transformed::weights_len::<Winograd6>(isa, geometry, arithmetic),
            Algorithm::WinogradStrided => {
                transformed::weights_len::<WinogradStrided>(isa, geometry, arithmetic)
            }
            Algorithm::UpsampleFold => transformed::weights_len::<UpsampleFold>(isa, geometry, arithmetic),
        }
    }

    /// Bytes of scratch that each of `threads` workers takes beside that while the rows `rows` of an output of `size` are made.
    pub fn worker_bytes(
        isa: Isa,
        geometry: &Geometry,
        rows: Range<usize>,
        size: [usize; 2],
        upsample: usize,
        arithmetic: Arithmetic,
        threads: usize,
    ) -> usize {
        match geometry.algorithm(isa, upsample) {
            Algorithm::Direct => direct::worker_bytes(isa, geometry, rows, size[1], arithmetic),
            Algorithm::Pointwise => pointwise::worker_bytes(isa, geometry, arithmetic),
            Algorithm::ShiftAdd => shift_add::worker_bytes(isa, geometry, size[1]),
            Algorithm::TileDirect => tile_direct::worker_bytes(geometry, arithmetic),
            Algorithm::Winograd4 => {
                transformed::worker_bytes::<Winograd4>(isa, geometry, rows, size[1], arithmetic, threads)
            }
            Algorithm::Winograd6 => {
                transformed::worker_bytes::<Winograd6>(isa, geometry, rows, size[1], arithmetic, threads)
            }
            Algorithm::WinogradStrided => transformed::worker_bytes::<WinogradStrided>(
                isa, geometry, rows, size[1], arithmetic, threads,
            ),
            Algorithm::UpsampleFold => {
                transformed::worker_bytes::<UpsampleFold>(isa, geometry, rows, size[1], arithmetic, threads)
            }
        }
    }

    /// Convolves `input` (blocked, `size` = its `[height, width]` before upsampling) into `output` (blocked).
    ///
    /// Values that are not finite reach the outputs whose kernel covers them, and with transformed weights they may
    /// reach any other of the tiles (3×3, 4×4 or 6×6) whose inputs hold them; [`Arithmetic::Integer16`] makes NaN of infinities too.
    ///
    /// # Panics
    /// A length does not fit the geometry, `scratch` is not [`Convolution::scratch_len`] long, or the kernel does not
    /// fit the padded input.
    #[allow(clippy::too_many_arguments)] // input, output and what happens on the way between them
    pub fn run(
        &self,
        pool: &Pool,
        arithmetic: Arithmetic,
        input: Tensor<'_>,
        size: [usize; 2],
        prologue: Prologue<'_>,
        epilogue: Epilogue<'_>,
        scratch: &mut [f32],
        output: TensorMut<'_>,
    ) {
        let input = Frames { clip: Clip::PICTURE, input, history: &[] };
        self.run_clip(pool, arithmetic, input, size, prologue, epilogue, scratch, output.into());
    }

    /// As [`Convolution::run`], for all frames of a clip or of a part of one: `output` and a residual have
    /// [`Clip::output_frames`]. Input channels are `(tap, channel of a frame)`. What a tap reads as zeros before the clip
    /// is not multiplied.
    ///
    /// # Panics
    /// As [`Convolution::run`]; also when the channels are not whole blocks for each of several taps, or moments are wanted
    /// of a result that has none, or in a table of another length.
    #[allow(clippy::too_many_arguments)] // input, output and what happens on the way between them
    pub fn run_clip(
        &self,
        pool: &Pool,
        arithmetic: Arithmetic,
        frames: Frames<'_>,
        size: [usize; 2],
        prologue: Prologue<'_>,
        epilogue: Epilogue<'_>,
        scratch: &mut [f32],
        destination: Destination<'_>,
    ) {
        let output_height = self.output_size(size, prologue)[0];
        let strip = Strip::whole(size[0], output_height);
        self.run_rows(pool, arithmetic, frames, size, prologue, epilogue, &strip, scratch, destination);
    }

    /// As [`Convolution::run_clip`], for some rows of a picture; `size` stays that of the whole input. The rows of the input
    /// that [`Geometry::rows_read`] names must be in memory (where edges are repeated, the padding above and below is less
    /// than the kernel), and `strip.rows` begin and end as
    /// [`Geometry::strip_grid`] says.
    ///
    /// # Panics
    /// As [`Convolution::run`]; also when the strip begins or ends inside a tile, or with [`Residual::InPlace`] for
    /// other rows than the output's.
    #[allow(clippy::too_many_arguments)] // input, output and what happens on the way between them
    pub fn run_strip(
        &self,
        pool: &Pool,
        arithmetic: Arithmetic,
        picture: Frames<'_>,
        size: [usize; 2],
        prologue: Prologue<'_>,
        epilogue: Epilogue<'_>,
        strip: &Strip,
        scratch: &mut [f32],
        destination: Destination<'_>,
    ) {
        let height = self.output_size(size, prologue)[0];
        let [step, skip] = self.geometry.strip_grid(self.isa, prologue.upsample);
        let between = |row: usize| row == 0 || row == height || (row + skip).is_multiple_of(step);
        assert!(between(strip.rows.start) && between(strip.rows.end) && strip.rows.end <= height);
        assert!(picture.clip.frames == 1 && picture.clip.taps == 1);
        self.run_rows(pool, arithmetic, picture, size, prologue, epilogue, strip, scratch, destination);
    }

    fn output_size(&self, size: [usize; 2], prologue: Prologue<'_>) -> [usize; 2] {
        let factor = prologue.upsample.max(1);
        self.geometry.output_size(size.map(|side| side * factor)).expect("the kernel fits the input")
    }

    #[allow(clippy::too_many_arguments)] // as its callers
    fn run_rows(
        &self,
        pool: &Pool,
        arithmetic: Arithmetic,
        Frames { clip, input, history }: Frames<'_>,
        size: [usize; 2],
        prologue: Prologue<'_>,
        epilogue: Epilogue<'_>,
        strip: &Strip,
        scratch: &mut [f32],
        destination: Destination<'_>,
    ) {
        let Destination { output, moments } = destination;
        let geometry = self.geometry;
        let factor = prologue.upsample.max(1);
        let all_blocks = blocks(geometry.input_channels);
        assert!((1..=MAX_TAPS).contains(&clip.taps) && all_blocks.is_multiple_of(clip.taps));
        let frame_blocks = all_blocks / clip.taps;
        let frame_groups = frame_blocks * strip.input_rows * size[1];
        assert_eq!(input.groups(), clip.frames * frame_groups);
        assert_eq!(history.len(), clip.before);
        assert!(history.iter().all(|frame| frame.groups() == frame_groups));
        let output_size = self.output_size(size, prologue);
        let groups_of = |rows: usize| blocks(geometry.output_channels) * rows * output_size[1];
        let (output_groups, residual_groups) = (groups_of(strip.output_rows), groups_of(strip.residual_rows));
        assert_eq!(output.groups(), clip.output_frames() * output_groups);
        if let Residual::Tensor(residual) = epilogue.residual {
            assert_eq!(residual.groups(), clip.output_frames() * residual_groups);
        }
        assert_eq!(scratch.len(), Convolution::scratch_len(self.isa, &geometry, factor, arithmetic));
        let [top, _, left, _] = geometry.padding;
        let patches = moments.is_some().then(|| geometry.patches(self.isa, factor).expect("tiles are there"));
        let table_len = patches.map_or(0, |patches| {
            patches.table_len(geometry.output_channels, strip.rows.clone(), output_size[1])
        });
        let moments = moments.unwrap_or_default();
        assert_eq!(moments.len(), clip.output_frames() * table_len);
        let mut tables = moments.chunks_exact_mut(table_len.max(1));
        // The fold reads the picture as it was before upsampling.
        let algorithm = geometry.algorithm(self.isa, factor);
        let factor = if algorithm == Algorithm::UpsampleFold { 1 } else { factor };
        let mut frames: [Vec<(Source<'_>, Target<'_>)>; MAX_TAPS] = Default::default();
        for (frame, output) in output.parts(output_groups).into_iter().enumerate() {
            let zero_taps = clip.zero_taps(frame);
            let table = tables.next();
            if zero_taps == clip.taps {
                assert!(table.is_none(), "of frames that nobody makes there are no moments");
                continue;
            }
            let mut taps = clip.sources(frame);
            taps.rotate_left(zero_taps);
            let source = Source {
                input,
                history,
                frames: taps,
                frame_blocks,
                replicate: clip.edge == Edge::Replicate,
                size,
                rows: strip.input_rows,
                prologue,
                factor,
                padding: [top, left],
            };
            let residual = match epilogue.residual {
                Residual::Tensor(residual) => {
                    Residual::Tensor(residual.part(frame * residual_groups, residual_groups))
                }
                other => other,
            };
            let target = Target {
                output: SharedTensor::new(output),
                size: output_size,
                rows: strip.rows.clone(),
                stored_rows: [strip.output_rows, strip.residual_rows],
                channels: geometry.output_channels,
                epilogue: Epilogue { residual, ..epilogue },
                moments: patches.zip(table.map(SharedOutput::new)),
            };
            frames[zero_taps].push((source, target));
        }
        for (zero_taps, frames) in frames.into_iter().enumerate() {
            let span = Span { first: zero_taps * frame_blocks, all: all_blocks };
            let geometry = geometry.without_taps(zero_taps, clip.taps);
            let layer = (geometry, arithmetic);
            let (isa, bias, ready) = (self.isa, self.bias.as_slice(), strip.weights_ready);
            match &self.weights {
                Weights::Direct(panels) if algorithm == Algorithm::TileDirect => {
                    let weights = (panels.as_slice(), span, bias);
                    tile_direct::run(isa, pool, layer, weights, frames, scratch, ready);
                }
                Weights::Direct(panels) if algorithm == Algorithm::Pointwise => {
                    pointwise::run(isa, pool, layer, (panels, span, bias), frames, scratch, ready);
                }
                Weights::Direct(panels) if algorithm == Algorithm::ShiftAdd => {
                    shift_add::run(isa, pool, geometry, (panels, span, bias), frames);
                }
                Weights::Direct(panels) => {
                    direct::run(isa, pool, layer, span, [panels, bias], frames, scratch, ready);
                }
                Weights::Transformed(weights) => {
                    let weights = (weights, span, bias);
                    let run = match algorithm {
                        Algorithm::UpsampleFold => transformed::run::<UpsampleFold>,
                        Algorithm::Winograd6 => transformed::run::<Winograd6>,
                        Algorithm::WinogradStrided => transformed::run::<WinogradStrided>,
                        _ => transformed::run::<Winograd4>,
                    };
                    run(isa, pool, layer, weights, frames, scratch, ready);
                }
            }
        }
    }
}
