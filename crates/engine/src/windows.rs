//! Clips cut into overlapping windows of frames, and put together again by linear blends: in the order and the arithmetic
//! of diffusers' video autoencoders, where each part is blended with its already blended neighbour. Tiles of pictures are
//! in [`crate::tiles`]. A layer above programs: what runs a part is the caller's.

use remote_vae_model::Start;
use remote_vae_wire::{Operation, TileSizes};

use crate::cpu::zeroed;
use crate::tiles::Tiles;
use crate::{EngineError, Frames};

/// How a clip is cut. Where norms and attention see all frames at once, windows overlap and are blended; where only
/// convolutions see other frames, a clip is computed in parts of one latent frame, to the very values of the whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Windows {
    /// Windows of frames, 17 frames of pixels every 12, as diffusers does by default, or parts; off, the whole clip at once.
    pub frames: bool,
    /// Tiles of pictures, as diffusers does after `enable_tiling()`: of models of videos 256 pixels every 192, of models of
    /// pictures as these sizes say.
    pub tiles: Option<TileSizes>,
}

impl Default for Windows {
    fn default() -> Windows {
        Windows { frames: true, tiles: None }
    }
}

/// Frames of a window without its first, and from one window to the next.
const WINDOW: [usize; 2] = [16, 12];

/// The way from an input to an output that is larger (decoding) or smaller (encoding) by whole factors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale {
    pub operation: Operation,
    pub space: usize,
    pub time: usize,
    /// Whether clips are computed in parts.
    pub streams: bool,
    /// Side of the patches of pixels that tiles and blends count in.
    pub patch: usize,
    /// The tiles that larger pictures are cut into.
    pub tiles: Option<Tiles>,
}

impl Scale {
    /// A number of pixels or frames of output, `[space, time]` factors applied, as input and output count it.
    pub(crate) fn pair(self, pixels: usize, axis: usize) -> [usize; 2] {
        let factor = if axis == FRAMES { self.time } else { self.space };
        match self.operation {
            Operation::Decode => [pixels / factor, pixels],
            Operation::Encode => [pixels, pixels / factor],
        }
    }

    /// Length of the output along `axis` for `length` of the input.
    pub(crate) fn output(self, length: usize, axis: usize) -> usize {
        match (self.operation, axis) {
            (Operation::Decode, FRAMES) => (length - 1) * self.time + 1,
            (Operation::Encode, FRAMES) => (length - 1) / self.time + 1,
            (Operation::Decode, _) => length * self.space,
            (Operation::Encode, _) => length / self.space,
        }
    }

    /// The tiles that pictures of `shape` are cut into.
    pub(crate) fn cut_pictures(self, shape: [usize; 5]) -> Option<Tiles> {
        self.tiles.filter(|tiles| tiles.cut(shape))
    }

    /// Each part of a clip of `shape`.
    pub(crate) fn cuts(self, shape: [usize; 5]) -> impl Iterator<Item = Cut> {
        self.parts(shape[FRAMES]).map(move |[start, frames]| {
            let [batch, channels, _, height, width] = shape;
            let at = if start == 0 { Start::Clip } else { Start::Later };
            ([batch, channels, frames, height, width], at)
        })
    }

    /// Frames of the input in each part of a clip.
    fn parts(self, frames: usize) -> impl Iterator<Item = [usize; 2]> {
        let step = if self.operation == Operation::Encode { self.time } else { 1 };
        std::iter::once([0, 1.min(frames)])
            .chain((1..frames).step_by(step).map(move |start| [start, step.min(frames - start)]))
    }
}

/// What is run at once: a shape, and whether it begins a clip.
pub(crate) type Cut = ([usize; 5], Start);

/// Runs a part that begins a clip, or goes on with the one that was begun last.
pub(crate) type Run<'a> = &'a mut dyn FnMut(&Part, Start) -> Result<Part, EngineError>;

pub(crate) const FRAMES: usize = 2;
pub(crate) const ROWS: usize = 3;
pub(crate) const COLUMNS: usize = 4;

/// A tensor `[batch, channels, frames, height, width]`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub values: Vec<f32>,
    pub shape: [usize; 5],
}

impl Part {
    /// Zeros.
    pub(crate) fn zeroed(shape: [usize; 5]) -> Result<Part, EngineError> {
        Ok(Part { values: zeroed(shape.iter().product())?, shape })
    }

    /// Writes frames where they belong.
    pub(crate) fn put_frames(&mut self, frames: &Frames) -> Result<(), EngineError> {
        let [_, channels, all, height, width] = self.shape;
        let (plane, count) = (height * width, frames.shape[1]);
        for (channel, from) in frames.values.chunks_exact((count * plane).max(1)).enumerate() {
            let start = ((frames.sample * channels + channel) * all + frames.first) * plane;
            self.values[start..start + from.len()].copy_from_slice(from);
        }
        Ok(())
    }

    /// `[outer, axis, inner]`
    fn strides(&self, axis: usize) -> [usize; 3] {
        let product = |sides: &[usize]| sides.iter().product();
        [product(&self.shape[..axis]), self.shape[axis], product(&self.shape[axis + 1..])]
    }

    /// The part from `start` of at most `len` along `axis`.
    fn cut(&self, axis: usize, start: usize, len: usize) -> Result<Part, EngineError> {
        let [outer, length, inner] = self.strides(axis);
        let start = start.min(length);
        let len = len.min(length - start);
        let mut values = zeroed(outer * len * inner)?;
        if len * inner > 0 {
            for (index, to) in values.chunks_exact_mut(len * inner).enumerate() {
                to.copy_from_slice(&self.values[(index * length + start) * inner..][..len * inner]);
            }
        }
        let mut shape = self.shape;
        shape[axis] = len;
        Ok(Part { values, shape })
    }

    /// Blends the first `extent` slices along `axis` with the last of `before`; `grain` neighbouring slices have one share.
    pub(crate) fn blend(&mut self, before: &Part, axis: usize, extent: usize, grain: usize) {
        let [outer, length, inner] = self.strides(axis);
        let [_, other, _] = before.strides(axis);
        let extent = extent.min(length).min(other);
        for index in 0..outer {
            for step in 0..extent {
                let share = (step / grain * grain) as f64 / extent as f64;
                let (fade, rise) = ((1.0 - share) as f32, share as f32);
                let from = &before.values[(index * other + other - extent + step) * inner..][..inner];
                let to = &mut self.values[(index * length + step) * inner..][..inner];
                for (value, previous) in to.iter_mut().zip(from) {
                    *value = previous * fade + *value * rise;
                }
            }
        }
    }
}

/// Writes `part` at `start` along `axis` of `whole`, as far as it fits, and gives where it ends.
fn put(whole: &mut Part, part: &Part, axis: usize, start: usize) -> usize {
    let [_, length, inner] = whole.strides(axis);
    let [outer, own, _] = part.strides(axis);
    let len = own.min(length - start.min(length));
    for index in 0..outer {
        let from = &part.values[index * own * inner..][..len * inner];
        whole.values[(index * length + start) * inner..][..len * inner].copy_from_slice(from);
    }
    start + len
}

/// Windows of frames: each is cut, run and blended with the one before, and what no later one changes goes to `emit`.
fn windowed(
    input: &Part,
    scale: Scale,
    run: Run<'_>,
    emit: &mut dyn FnMut(Part) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let ([size, step, keep], [_, whole_size]) = (window_frames(scale), scale.pair(WINDOW[0], FRAMES));
    let mut left = scale.output(input.shape[FRAMES], FRAMES);
    let mut before: Option<Part> = None;
    for start in window_starts(input.shape[FRAMES], step) {
        let mut part = run(&input.cut(FRAMES, start, size + 1)?, Start::Clip)?;
        let mut kept = keep + 1;
        if let Some(before) = &before {
            // The first frame of a later window stands alone where it should follow others.
            part = part.cut(FRAMES, 1, usize::MAX)?;
            part.blend(before, FRAMES, whole_size - keep, 1);
            kept = keep;
        }
        let done = part.cut(FRAMES, 0, kept.min(left))?;
        left -= done.shape[FRAMES];
        before = Some(part);
        emit(done)?;
    }
    Ok(())
}

/// One part of a clip after the other, each with what those before it have left.
fn streamed(
    input: &Part,
    scale: Scale,
    run: Run<'_>,
    emit: &mut dyn FnMut(Part) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    for [start, frames] in scale.parts(input.shape[FRAMES]) {
        let at = if start == 0 { Start::Clip } else { Start::Later };
        emit(run(&input.cut(FRAMES, start, frames)?, at)?)?;
    }
    Ok(())
}

/// All parts of a clip put together.
fn streamed_whole(input: &Part, scale: Scale, run: Run<'_>) -> Result<Part, EngineError> {
    let mut parts = Vec::new();
    streamed(input, scale, run, &mut |part| {
        parts.push(part);
        Ok(())
    })?;
    join(&parts, FRAMES, scale.output(input.shape[FRAMES], FRAMES), [usize::MAX; 2])
}

/// Frames of the input in a window without its first, and from one to the next, and how many of the output that are.
pub(crate) fn window_frames(scale: Scale) -> [usize; 3] {
    let [[size, _], [step, keep]] = WINDOW.map(|frames| scale.pair(frames, FRAMES));
    [size, step, keep]
}

/// Where windows begin. A last one of nothing but the frame that later windows drop is left out.
pub(crate) fn window_starts(length: usize, step: usize) -> impl Iterator<Item = usize> {
    (0..length).step_by(step).filter(move |start| *start == 0 || start + 1 < length)
}

/// How often [`run`] hands on frames.
pub(crate) fn groups(shape: [usize; 5], windows: Windows, scale: Scale) -> usize {
    let [step, _] = scale.pair(WINDOW[1], FRAMES);
    match windows.cutting(shape, scale) {
        Cutting::Windows => window_starts(shape[FRAMES], step).count(),
        Cutting::Parts if scale.cut_pictures(shape).is_none() => scale.parts(shape[FRAMES]).count(),
        _ => 1,
    }
}

/// Whether an input of `shape` is one clip whose result is handed on as a whole.
pub(crate) fn is_handed_on_at_once(shape: [usize; 5], windows: Windows, scale: Scale) -> bool {
    shape[0] == 1 && groups(shape, windows, scale) == 1
}

/// What is made of a clip's frames.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cutting {
    Whole,
    Windows,
    Parts,
}

impl Windows {
    /// How the frames of a clip of `shape` are cut.
    pub(crate) fn cutting(self, shape: [usize; 5], scale: Scale) -> Cutting {
        match (self.frames, scale.streams) {
            (true, true) if shape[FRAMES] > 1 => Cutting::Parts,
            (true, false) if shape[FRAMES] > scale.pair(WINDOW[0], FRAMES)[0] => Cutting::Windows,
            _ => Cutting::Whole,
        }
    }
}

/// `parts` one after the other along `axis`, of each only what is kept of the first and of the others.
fn join(parts: &[Part], axis: usize, length: usize, keep: [usize; 2]) -> Result<Part, EngineError> {
    let mut shape = parts.first().map_or([0; 5], |part| part.shape);
    shape[axis] = length;
    let mut whole = Part::zeroed(shape)?;
    let mut end = 0;
    for (index, part) in parts.iter().enumerate() {
        end = put(&mut whole, &part.cut(axis, 0, keep[usize::from(index > 0)])?, axis, end);
    }
    Ok(whole)
}

/// Runs `input` through `one` in the parts that `windows` says, and hands the frames of the result to `emit` in order, as
/// soon as nothing changes them any more.
pub(crate) fn run(
    input: &Part,
    windows: Windows,
    scale: Scale,
    one: Run<'_>,
    emit: &mut dyn FnMut(Part) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    let cutting = windows.cutting(input.shape, scale);
    let tiles = scale.cut_pictures(input.shape);
    if cutting == Cutting::Parts && tiles.is_none() {
        return streamed(input, scale, one, emit);
    }
    let mut space = |part: &Part, start: Start| match (tiles, cutting) {
        (None, _) => one(part, start),
        (Some(tiles), Cutting::Parts) => tiles.run(part, scale, &mut |tile| streamed_whole(tile, scale, one)),
        (Some(tiles), _) => tiles.run(part, scale, &mut |tile| one(tile, start)),
    };
    if cutting == Cutting::Windows {
        windowed(input, scale, &mut space, emit)
    } else {
        emit(space(input, Start::Clip)?)
    }
}

/// What [`run`] runs at once for an input of `shape`, and how often each.
pub(crate) fn parts(shape: [usize; 5], windows: Windows, scale: Scale) -> Vec<(Cut, usize)> {
    let frames = match windows.cutting(shape, scale) {
        Cutting::Whole => vec![(shape[FRAMES], Start::Clip)],
        Cutting::Windows => {
            let [size, step, _] = window_frames(scale);
            let starts = window_starts(shape[FRAMES], step);
            starts.map(|start| ((size + 1).min(shape[FRAMES] - start), Start::Clip)).collect()
        }
        Cutting::Parts => scale.cuts(shape).map(|(cut, start)| (cut[FRAMES], start)).collect(),
    };
    let tiles = scale.cut_pictures(shape);
    let [rows, columns] = [ROWS, COLUMNS]
        .map(|axis| counted(tiles.map_or(vec![shape[axis]], |tiles| tiles.lengths(shape[axis]).collect())));
    let mut parts: Vec<(Cut, usize)> = Vec::new();
    for ((frames, start), a) in counted(frames) {
        for &(height, b) in &rows {
            for &(width, c) in &columns {
                parts.push((([shape[0], shape[1], frames, height, width], start), a * b * c));
            }
        }
    }
    parts
}

/// Each length once, and how often it occurs.
fn counted<L: PartialEq>(lengths: Vec<L>) -> Vec<(L, usize)> {
    let mut counts: Vec<(L, usize)> = Vec::new();
    for length in lengths {
        match counts.iter_mut().find(|(other, _)| *other == length) {
            Some((_, count)) => *count += 1,
            None => counts.push((length, 1)),
        }
    }
    counts
}
