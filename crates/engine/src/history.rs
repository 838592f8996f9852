//! What a part of a clip leaves for the next: the last frames that each convolution over time has read.

use std::collections::VecDeque;

use remote_vae_kernels::clip::{Clip, First};
use remote_vae_kernels::{Buffer, Storage, Tensor, TensorMut};

use crate::EngineError;

/// Frames of one clip that its convolutions read again. Empty before the clip's first part; each part reads those of the
/// part before and leaves its own. Belongs to one program and precision.
#[derive(Default)]
pub struct History {
    /// By graph node, the earliest first.
    nodes: Vec<VecDeque<Frame>>,
}

struct Frame {
    storage: Storage,
    memory: Buffer,
}

impl History {
    /// Before the first part of a clip.
    pub fn new() -> History {
        History::default()
    }

    /// What node `node` reads before the frames that it gets.
    pub(crate) fn of(&self, node: usize) -> Vec<Tensor<'_>> {
        let frames = self.nodes.get(node);
        frames.into_iter().flatten().map(|frame| Tensor::new(frame.storage, &frame.memory)).collect()
    }

    /// Keeps of the frames `input` those that `node` reads again.
    pub(crate) fn keep(&mut self, node: usize, clip: &Clip, input: Tensor<'_>) -> Result<(), EngineError> {
        let wanted = clip.history();
        if wanted == 0 {
            return Ok(());
        }
        if self.nodes.len() <= node {
            self.nodes.resize_with(node + 1, VecDeque::new);
        }
        let frames = &mut self.nodes[node];
        let groups = input.groups() / clip.frames;
        let storage = match input {
            Tensor::Float32(_) => Storage::Float32,
            Tensor::Half(..) => Storage::Half,
        };
        let unseen = usize::from(clip.first == First::Unseen && !clip.continues);
        for index in clip.frames.saturating_sub(wanted).max(unseen)..clip.frames {
            let oldest = if frames.len() == wanted { frames.pop_front() } else { None };
            let mut frame = match oldest {
                Some(frame) => frame,
                None => {
                    let len = storage.len(groups);
                    let memory = Buffer::zeroed(len)
                        .ok_or(EngineError::Memory { bytes: len.saturating_mul(size_of::<f32>()) })?;
                    Frame { storage, memory }
                }
            };
            TensorMut::new(storage, &mut frame.memory).copy_from(input.part(index * groups, groups));
            frames.push_back(frame);
        }
        Ok(())
    }
}
