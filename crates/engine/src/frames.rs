//! Frames of clips between the graph's words and the kernels': order in memory, time taps, weights.

use remote_vae_kernels::clip::{self, Clip};
use remote_vae_kernels::layout::{self, BLOCK, blocks};
use remote_vae_kernels::rearrange;
use remote_vae_model::{Cell, Edge, First, Start, Time};

use crate::EngineError;
use crate::cpu::zeroed;

/// How a convolution moves through `frames` of a clip, `before` of whose earlier frames are at hand.
pub(crate) fn clip(frames: usize, doubled: bool, time: &Time, start: Start, before: usize) -> Clip {
    let edge = match time.edge {
        Edge::Zero => clip::Edge::Zero,
        Edge::Replicate => clip::Edge::Replicate,
    };
    let first = match time.first {
        First::Ordinary => clip::First::Ordinary,
        First::Unmade => clip::First::Unmade,
        First::Unseen => clip::First::Unseen,
    };
    let continues = start == Start::Later;
    Clip { frames, taps: time.taps, stride: time.stride, doubled, edge, first, continues, before }
}

/// The kernels' word for a cell.
pub(crate) fn cell(cell: Cell) -> rearrange::Cell {
    rearrange::Cell { time: cell.time, space: cell.space, by_columns: cell.by_columns }
}

/// Which frame of the input, and which of its frames, frame `frame` is where each but the clip's first became `factor`:
/// the first became one, the last of its own.
pub(crate) fn origin(frame: usize, factor: usize, start: Start) -> [usize; 2] {
    let frame = match start {
        Start::Clip => frame + factor - 1,
        Start::Later => frame,
    };
    [frame / factor, frame % factor]
}

/// The frame of the input that is number `part` of those that frame `frame` is made of, where each but the clip's first
/// is made of `factor`; `None` before the clip.
pub(crate) fn source(frame: usize, part: usize, factor: usize, start: Start) -> Option<usize> {
    let place = frame * factor + part;
    match start {
        Start::Clip => place.checked_sub(factor - 1),
        Start::Later => Some(place),
    }
}

/// Weights `[out, in, taps, rows, columns]` as those of a 2-D convolution over the frames' channels,
/// `[out, taps · padded in, rows, columns]`.
pub(crate) fn taps_as_channels(weight: &[f32], shape: &[usize], taps: usize) -> Vec<f32> {
    let (outputs, inputs) = (shape[0], shape[1]);
    let area: usize = shape[3..].iter().product();
    let padded = blocks(inputs) * BLOCK;
    let mut out = vec![0.0; outputs * taps * padded * area];
    for output in 0..outputs {
        for input in 0..inputs {
            for tap in 0..taps {
                let from = ((output * inputs + input) * taps + tap) * area;
                let to = ((output * taps + tap) * padded + input) * area;
                out[to..to + area].copy_from_slice(&weight[from..from + area]);
            }
        }
    }
    out
}

/// Plain `[channels, frames, pixels]` as one blocked frame after the other.
pub(crate) fn to_blocked(
    plain: &[f32],
    [channels, frames, pixels]: [usize; 3],
    blocked: &mut [f32],
) -> Result<(), EngineError> {
    if frames == 1 {
        layout::to_blocked(plain, channels, pixels, blocked);
        return Ok(());
    }
    let mut picture = zeroed(channels * pixels)?;
    for (frame, to) in blocked.chunks_exact_mut(layout::blocked_len(channels, pixels)).enumerate() {
        for (channel, plane) in picture.chunks_exact_mut(pixels).enumerate() {
            plane.copy_from_slice(&plain[(channel * frames + frame) * pixels..][..pixels]);
        }
        layout::to_blocked(&picture, channels, pixels, to);
    }
    Ok(())
}

/// The reverse of [`to_blocked`].
pub(crate) fn from_blocked(
    blocked: &[f32],
    [channels, frames, pixels]: [usize; 3],
    plain: &mut [f32],
) -> Result<(), EngineError> {
    if frames == 1 {
        layout::from_blocked(blocked, channels, pixels, plain);
        return Ok(());
    }
    let mut picture = zeroed(channels * pixels)?;
    for (frame, from) in blocked.chunks_exact(layout::blocked_len(channels, pixels)).enumerate() {
        layout::from_blocked(from, channels, pixels, &mut picture);
        for (channel, plane) in picture.chunks_exact(pixels).enumerate() {
            plain[(channel * frames + frame) * pixels..][..pixels].copy_from_slice(plane);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_multiplied_and_merged_but_for_the_first() {
        let origins: Vec<_> = (0..5).map(|frame| origin(frame, 2, Start::Clip)).collect();
        assert_eq!(origins, [[0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]);
        assert_eq!([0, 1, 2].map(|frame| origin(frame, 2, Start::Later)), [[0, 0], [0, 1], [1, 0]]);
        let sources =
            |start| [[0, 0], [0, 1], [1, 0], [1, 1]].map(|[frame, part]| source(frame, part, 2, start));
        assert_eq!(sources(Start::Clip), [None, Some(0), Some(1), Some(2)]);
        assert_eq!(sources(Start::Later), [Some(0), Some(1), Some(2), Some(3)]);
    }
}
