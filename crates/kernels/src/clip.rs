//! Frames: which of them a convolution over time reads for each frame it makes.
//!
//! A clip is one frame after the other, each `[channel block][height][width][16]`. A convolution with several time taps
//! is a 2-D convolution whose input channels are those of the frames it reads, one after another, each padded to whole
//! blocks; the arithmetic of a frame is therefore that of the 2-D algorithms. Time is causal: the last tap reads the
//! frame itself. Batches and caches of frames are not known here.

/// The most time taps of a convolution.
pub const MAX_TAPS: usize = 3;

/// What lies outside a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Edge {
    /// Zeros around the picture and before the first frame.
    #[default]
    Zero,
    /// The nearest pixel of the picture, and the first frame again before it.
    Replicate,
}

/// How a convolution moves through time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clip {
    /// Frames of the input, before their doubling.
    pub frames: usize,
    /// Frames that an output frame reads, 1 to [`MAX_TAPS`].
    pub taps: usize,
    /// Frames from one output to the next, at least 1.
    pub stride: usize,
    /// Whether each frame but the first counts twice (nearest upsampling in time).
    pub doubled: bool,
    /// What the taps read before the first frame, and the kernel around each frame.
    pub edge: Edge,
}

impl Clip {
    /// A single picture with zeros around it.
    pub const PICTURE: Clip = Clip { frames: 1, taps: 1, stride: 1, doubled: false, edge: Edge::Zero };

    /// Frames that the convolution makes.
    pub fn output_frames(&self) -> usize {
        let read = if self.doubled { (2 * self.frames).saturating_sub(1) } else { self.frames };
        read.saturating_sub(1) / self.stride + 1
    }

    /// The input frame of each tap for output frame `output`; `None` stands for zeros.
    pub(crate) fn sources(&self, output: usize) -> [Option<usize>; MAX_TAPS] {
        let mut sources = [None; MAX_TAPS];
        for (tap, source) in sources.iter_mut().enumerate().take(self.taps) {
            let frame = match (output * self.stride + tap).checked_sub(self.taps - 1) {
                None if self.edge == Edge::Zero => continue,
                frame => frame.unwrap_or(0),
            };
            *source = Some(if self.doubled { frame.div_ceil(2) } else { frame });
        }
        sources
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubling_keeps_the_first_frame_single() {
        let clip = Clip { frames: 3, taps: 3, doubled: true, edge: Edge::Replicate, ..Clip::PICTURE };
        let last: Vec<_> = (0..clip.output_frames()).map(|frame| clip.sources(frame)[2]).collect();
        assert_eq!(last, [Some(0), Some(1), Some(1), Some(2), Some(2)]);
        assert_eq!(clip.sources(0), [Some(0); 3]);
        assert_eq!(clip.sources(3), [Some(1), Some(1), Some(2)]);
    }

    #[test]
    fn strides_and_zeros_before_the_first_frame() {
        let clip = Clip { frames: 5, taps: 3, stride: 2, ..Clip::PICTURE };
        assert_eq!(clip.output_frames(), 3);
        assert_eq!(clip.sources(0), [None, None, Some(0)]);
        assert_eq!(clip.sources(2), [Some(2), Some(3), Some(4)]);
    }
}
