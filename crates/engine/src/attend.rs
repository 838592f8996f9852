//! Attention among the frames of a clip: how often the kernel runs, and on which shape.

use remote_vae_kernels::attention::{Shape, stoppable_attention};
use remote_vae_kernels::convolution::Arithmetic;
use remote_vae_kernels::{Isa, Pool, Tensor, TensorMut};
use remote_vae_model::Reach;

use crate::Control;

/// An attention node on tensors of one size.
pub(crate) struct Attend {
    /// Frames that attend to themselves alone are clips of their own.
    clips: usize,
    /// Of one clip.
    pub shape: Shape,
}

impl Attend {
    /// Of tensors of `channels` and `[frames, height, width]`.
    pub(crate) fn new(
        reach: Reach,
        channels: usize,
        [frames, height, width]: [usize; 3],
        arithmetic: Arithmetic,
    ) -> Attend {
        let [clips, frames] = match reach {
            Reach::Frame => [frames, 1],
            Reach::Past => [1, frames],
        };
        Attend { clips, shape: Shape { channels, frames, tokens: height * width, arithmetic } }
    }

    /// Attention of query, key and value. Ends early, with a result that means nothing, when the run is cancelled.
    pub(crate) fn run(
        &self,
        isa: Isa,
        pool: &Pool,
        operands: [Tensor<'_>; 3],
        scratch: &mut [f32],
        output: TensorMut<'_>,
        control: &Control,
    ) {
        let len = operands[0].groups() / self.clips;
        for (clip, output) in output.parts(len).into_iter().enumerate() {
            let operands = operands.map(|operand| operand.part(clip * len, len));
            stoppable_attention(isa, pool, operands, self.shape, scratch, output, control.flag());
        }
    }
}
