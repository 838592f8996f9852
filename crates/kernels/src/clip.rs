//! Frames: which of them a convolution over time reads for each frame it makes.
//!
//! A clip is one frame after the other, each `[channel block][height][width][16]`. A convolution with several time taps
//! is a 2-D convolution whose input channels are those of the frames it reads, one after another, each padded to whole
//! blocks; the arithmetic of a frame is therefore that of the 2-D algorithms. Time is causal: the last tap reads the
//! frame itself. A clip may come in parts, each with as many earlier frames as its convolution reads; a frame's values
//! do not depend on where it is cut. Batches are not known here.

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

/// What becomes of the first frame of a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum First {
    /// It is read and made like any other.
    #[default]
    Ordinary,
    /// Nothing is made for it: its place in the output is left as it was.
    Unmade,
    /// Nothing is made for it, and the others read what lies outside the clip in its place.
    Unseen,
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
    /// What becomes of the clip's first frame.
    pub first: First,
    /// Whether these frames go on from earlier ones. The first of them is then not the clip's first, and the first
    /// output reads up to the frame `stride - 1`.
    pub continues: bool,
    /// Earlier frames that are at hand, at most [`Clip::history`]; those before them lie outside the clip.
    pub before: usize,
}

impl Clip {
    /// A single picture with zeros around it.
    pub const PICTURE: Clip = Clip {
        frames: 1,
        taps: 1,
        stride: 1,
        doubled: false,
        edge: Edge::Zero,
        first: First::Ordinary,
        continues: false,
        before: 0,
    };

    /// Frames that the convolution makes.
    pub fn output_frames(&self) -> usize {
        let read = match (self.doubled, self.continues) {
            (false, _) => self.frames,
            (true, false) => (2 * self.frames).saturating_sub(1),
            (true, true) => 2 * self.frames,
        };
        if self.continues { read / self.stride } else { read.saturating_sub(1) / self.stride + 1 }
    }

    /// How many of the frames before it the next part of a clip reads.
    pub fn history(&self) -> usize {
        self.taps.saturating_sub(self.stride)
    }

    /// The frame of each tap for output frame `output`, counted from the earliest at hand; `None` stands for zeros.
    pub(crate) fn sources(&self, output: usize) -> [Option<usize>; MAX_TAPS] {
        let mut sources = [None; MAX_TAPS];
        if output == 0 && !self.continues && self.first != First::Ordinary {
            return sources;
        }
        let last = output * self.stride + if self.continues { self.stride - 1 } else { 0 };
        for (tap, source) in sources.iter_mut().enumerate().take(self.taps) {
            // Counted from the earliest frame at hand.
            let frame = (self.before + last + tap).checked_sub(self.taps - 1);
            let unseen = self.first == First::Unseen && !self.continues && frame == Some(0);
            if self.edge == Edge::Zero && (frame.is_none() || unseen) {
                continue;
            }
            let frame = frame.unwrap_or(0);
            *source = Some(if self.doubled { frame.div_ceil(2) } else { frame });
        }
        sources
    }

    /// How many of the first taps read zeros for output frame `output`.
    pub fn zero_taps(&self, output: usize) -> usize {
        self.sources(output)[..self.taps].iter().take_while(|source| source.is_none()).count()
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

    #[test]
    fn parts_of_a_clip_read_what_the_whole_reads() {
        for (taps, stride, first) in
            [(3, 1, First::Ordinary), (3, 1, First::Unseen), (3, 2, First::Unmade), (1, 1, First::Ordinary)]
        {
            let whole = Clip { frames: 9, taps, stride, first, ..Clip::PICTURE };
            let mut made = 0;
            for (start, frames) in [(0, 1), (1, 2), (3, 2), (5, 4)] {
                let seen = start - usize::from(first == First::Unseen && start > 0);
                let part = Clip { frames, continues: start > 0, before: seen.min(whole.history()), ..whole };
                for output in 0..part.output_frames() {
                    let of_whole = part.sources(output).map(|at| at.map(|at| start + at - part.before));
                    assert_eq!(of_whole, whole.sources(made), "{part:?}, output {output}");
                    made += 1;
                }
            }
            assert_eq!(made, whole.output_frames());
        }
        let clip = Clip { frames: 3, taps: 3, first: First::Unseen, ..Clip::PICTURE };
        assert_eq!([0, 1, 2].map(|output| clip.zero_taps(output)), [3, 2, 1]);
    }
}
