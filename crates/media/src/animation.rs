//! Animated WebP files, lossless, written frame by frame. Reading pictures is `decode`, which takes the first frame.
//!
//! Every frame is a whole picture without alpha that replaces the one before; the animation repeats for ever.

use crate::encode::{LONGEST_WEBP, WEBP, encode_webp};
use crate::error::{MediaError, check_length};

/// What a chunk's 32-bit length can hold, less room for the header.
const LARGEST_FILE: usize = u32::MAX as usize - 64;

/// Writes one animation.
#[derive(Debug)]
pub struct WebpAnimation {
    width: usize,
    height: usize,
    fps: f64,
    count: u32,
    /// The frames' chunks that were not taken.
    frames: Vec<u8>,
    /// Bytes of all of them.
    length: usize,
}

fn unwritable(reason: impl std::fmt::Display) -> MediaError {
    MediaError::Unwritable { format: WEBP, reason: reason.to_string() }
}

fn u24(value: usize) -> [u8; 3] {
    let [a, b, c, ..] = value.to_le_bytes();
    [a, b, c]
}

/// Appends a chunk, with the zero that makes its length even.
fn push_chunk(file: &mut Vec<u8>, name: &[u8; 4], parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    file.extend(name);
    file.extend((length as u32).to_le_bytes());
    parts.iter().for_each(|part| file.extend(*part));
    file.extend(&[0][..length % 2]);
}

impl WebpAnimation {
    /// Starts an animation of `width` by `height` pixels. `fps` is 0.1 to 240 frames per second; a frame lasts whole
    /// milliseconds, rounded such that the animation as a whole keeps its time.
    ///
    /// # Errors
    /// [`MediaError::UnsupportedSize`] for an empty picture or a side above 16384, [`MediaError::OutOfRange`] for `fps`.
    pub fn new(width: usize, height: usize, fps: f64) -> Result<Self, MediaError> {
        if width == 0 || height == 0 || width > LONGEST_WEBP || height > LONGEST_WEBP {
            return Err(MediaError::UnsupportedSize { format: WEBP, width, height, limit: LONGEST_WEBP });
        }
        if !(0.1..=240.0).contains(&fps) {
            let range = "from 0.1 to 240".to_owned();
            return Err(MediaError::OutOfRange { name: "fps", range, found: fps.to_string() });
        }
        Ok(Self { width, height, fps, count: 0, frames: vec![], length: 0 })
    }

    /// Adds a frame of `height * width * 3` bytes, red first.
    ///
    /// # Errors
    /// [`MediaError::BufferLength`], [`MediaError::Unwritable`], also when the file would pass 4 GiB.
    pub fn push_rgb(&mut self, rgb: &[u8]) -> Result<(), MediaError> {
        check_length(&[self.height, self.width, 3], rgb.len())?;
        let picture = encode_webp(rgb, self.width, self.height)?;
        // What follows the header of a plain file is the one chunk that a frame holds.
        let chunk = match &picture[..] {
            [_, _, _, _, _, _, _, _, b'W', b'E', b'B', b'P', chunk @ ..] if chunk.starts_with(b"VP8L") => {
                chunk
            }
            _ => return Err(unwritable("the encoder gave no plain lossless picture")),
        };
        if self.length.saturating_add(chunk.len()) > LARGEST_FILE {
            return Err(unwritable("the file would be larger than 4 GiB"));
        }
        let milliseconds = |frame: u32| (f64::from(frame) * 1000.0 / self.fps).round();
        let duration = (milliseconds(self.count + 1) - milliseconds(self.count)) as usize;
        let place = [[0; 3], [0; 3], u24(self.width - 1), u24(self.height - 1), u24(duration)].concat();
        // Neither blended with the frame before nor wiped after.
        let before = self.frames.len();
        push_chunk(&mut self.frames, b"ANMF", &[&place, &[0b10], chunk]);
        self.length += self.frames.len() - before;
        self.count += 1;
        Ok(())
    }

    /// Takes what the frames so far have become out of memory: whoever does so writes it behind what [`finish`](Self::finish)
    /// returns, in order.
    pub fn take_frames(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.frames)
    }

    /// Ends the animation and returns the file, without the frames that were taken.
    ///
    /// # Errors
    /// [`MediaError::Unwritable`] when there was no frame.
    pub fn finish(self) -> Result<Vec<u8>, MediaError> {
        const ANIMATED: u8 = 0b10;
        const OPAQUE_BLACK: [u8; 4] = [0, 0, 0, 255];
        const FOR_EVER: [u8; 2] = [0, 0];
        if self.count == 0 {
            return Err(unwritable("an animation needs at least one frame"));
        }
        let mut head = b"WEBP".to_vec();
        let canvas = [u24(self.width - 1), u24(self.height - 1)].concat();
        push_chunk(&mut head, b"VP8X", &[&[ANIMATED, 0, 0, 0], &canvas]);
        push_chunk(&mut head, b"ANIM", &[&OPAQUE_BLACK, &FOR_EVER]);
        let mut file = Vec::with_capacity(8 + head.len() + self.frames.len());
        file.extend(b"RIFF");
        file.extend(((head.len() + self.length) as u32).to_le_bytes());
        file.extend(head);
        file.extend(self.frames);
        Ok(file)
    }
}
