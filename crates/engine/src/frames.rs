//! Frames of clips between the graph's words and the kernels': order in memory, time taps, weights.

use remote_vae_kernels::clip::{Clip, Edge};
use remote_vae_kernels::layout::{self, BLOCK, blocks};
use remote_vae_model::Time;

use crate::EngineError;
use crate::cpu::zeroed;

/// How a convolution moves through a clip of `frames`.
pub(crate) fn clip(frames: usize, doubled: bool, time: &Time) -> Clip {
    let edge = match time.edge {
        remote_vae_model::Edge::Zero => Edge::Zero,
        remote_vae_model::Edge::Replicate => Edge::Replicate,
    };
    Clip { frames, taps: time.taps, stride: time.stride, doubled, edge }
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
