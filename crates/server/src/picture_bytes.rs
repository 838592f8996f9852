//! From finished rows of pictures to the bytes of an answer. Rows become bytes, or planes of floats, on the engine's thread;
//! a thread beside it makes files of them, so that the engine waits for no file.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use remote_vae_engine::{EngineError, Rows};
use remote_vae_media::{self as media, MediaError};
use remote_vae_wire::{Answer, Dtype, Encoding, Negotiated, TensorHeader, bytes_from_elements};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;

use crate::growing::{self, Chunk};

/// Bytes of pixels from which on an answer leaves as it is made. Below, a copy is small, and an answer that comes whole has its
/// length, its times, and a status for whatever goes wrong.
const LARGE: usize = 4 << 20;
/// Bytes of a file that leave together.
const PIECE: usize = 64 << 10;

/// What is to be made of pictures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe {
    answer: Answer,
    /// Element type, where the answer is a tensor of floats.
    float: Dtype,
    /// `[batch, channels, height, width]`
    output: [usize; 4],
    streams: bool,
}

impl Recipe {
    /// `sees_end` is whether the client sees that an answer of unknown length broke off.
    pub(crate) fn new(
        Negotiated { answer, encoding, float }: Negotiated,
        output: [usize; 4],
        sees_end: bool,
    ) -> Self {
        let mut recipe = Self { answer, float, output, streams: false };
        let can_leave_early = match answer {
            Answer::Png | Answer::Jpeg => sees_end,
            answer => answer == Answer::PartialTensor,
        };
        recipe.streams = can_leave_early && encoding == Encoding::Binary && recipe.given_bytes() >= LARGE;
        recipe
    }

    /// Whether bytes leave before the last row is there.
    pub(crate) fn streams(&self) -> bool {
        self.streams
    }

    /// The tensor's header, if the answer is one.
    pub(crate) fn header(&self) -> Option<TensorHeader> {
        let [batch, channels, height, width] = self.output;
        let (shape, dtype) = match self.answer {
            Answer::Tensor | Answer::UnitTensor => (self.output.to_vec(), self.float),
            Answer::PartialTensor => (vec![batch, height, width, channels], Dtype::Uint8),
            Answer::Png | Answer::Jpeg | Answer::Webp | Answer::Mp4 => return None,
        };
        Some(TensorHeader { shape, dtype })
    }

    /// Bytes that are made of rows: of a tensor all, for a file those of the first picture's pixels.
    fn given_bytes(&self) -> usize {
        let [batch, sides @ ..] = self.output;
        let picture = sides.iter().fold(1_usize, |product, &side| product.saturating_mul(side));
        match self.answer {
            Answer::Tensor | Answer::UnitTensor => {
                picture.saturating_mul(batch).saturating_mul(self.float.size())
            }
            Answer::PartialTensor => picture.saturating_mul(batch),
            Answer::Png | Answer::Jpeg | Answer::Webp | Answer::Mp4 => picture,
        }
    }

    /// Bytes that the answer takes at most, from its first row until it is sent.
    pub(crate) fn bytes(&self) -> u64 {
        /// Beside the pixels, the writer of WebP files has them with a fourth channel, and the file twice.
        const WEBP: u64 = 4;
        let bytes = self.given_bytes() as u64;
        // What is made of a PNG or JPEG file takes the place of the rows that it was made of.
        if self.answer == Answer::Webp { bytes.saturating_mul(WEBP) } else { bytes }
    }
}

/// The engine's end of an answer.
pub(crate) struct Writer {
    recipe: Recipe,
    /// Where channels come before rows, nothing is whole before the end.
    planes: Vec<u8>,
    parts: Sender<Vec<u8>>,
}

impl Writer {
    /// Starts the thread that makes the answer's bytes; it takes one of `permits` for a file that is made when all rows are
    /// there.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        recipe: Recipe,
        permits: (Arc<Semaphore>, Handle),
        chunks: UnboundedSender<Chunk>,
    ) -> Result<Self, EngineError> {
        let (parts, given) = channel();
        growing::make(chunks, move |chunks| make(recipe, given, permits, chunks))
            .map_err(EngineError::Threads)?;
        Ok(Self { recipe, planes: Vec::new(), parts })
    }

    /// Takes rows as the engine gives them.
    ///
    /// # Errors
    /// Memory is refused, or nobody waits for the answer any more.
    pub(crate) fn add(&mut self, Rows { sample, first, values, shape }: Rows<'_>) -> Result<(), EngineError> {
        let [channels, rows, width] = shape;
        let is_unit = match self.recipe.answer {
            Answer::Tensor => false,
            Answer::UnitTensor => true,
            // A file is of the first picture.
            answer if answer != Answer::PartialTensor && sample > 0 => return Ok(()),
            _ => return self.give(media::to_uint8_channel_last(values, [1, channels, rows, width])),
        };
        let bytes = self.recipe.given_bytes();
        if self.planes.is_empty() {
            self.planes.try_reserve_exact(bytes).map_err(|_| EngineError::Memory { bytes })?;
            self.planes.resize(bytes, 0);
        }
        let (float, height) = (self.recipe.float, self.recipe.output[2]);
        for (channel, values) in values.chunks_exact(rows * width).enumerate() {
            let unit = is_unit.then(|| media::to_unit_interval(values));
            let values = bytes_from_elements(float, unit.as_deref().unwrap_or(values));
            let start = ((sample * channels + channel) * height + first) * width * float.size();
            self.planes[start..][..values.len()].copy_from_slice(&values);
        }
        Ok(())
    }

    /// All rows were there.
    ///
    /// # Errors
    /// Nobody waits for the answer any more.
    pub(crate) fn finish(mut self) -> Result<(), EngineError> {
        let planes = std::mem::take(&mut self.planes);
        if planes.is_empty() { Ok(()) } else { self.give(planes) }
    }

    fn give(&self, part: Vec<u8>) -> Result<(), EngineError> {
        self.parts.send(part).map_err(|_| EngineError::Cancelled)
    }
}

/// Makes the answer's bytes. Gives the time that took, without that in which nothing was there; none when the engine or the
/// client has given up.
fn make(
    recipe: Recipe,
    given: Receiver<Vec<u8>>,
    permits: (Arc<Semaphore>, Handle),
    chunks: &UnboundedSender<Chunk>,
) -> Result<Option<Duration>, MediaError> {
    let [_, _, height, width] = recipe.output;
    let start = Instant::now();
    let mut parts =
        Parts { given, chunks, left: recipe.given_bytes(), has_ended: false, waited: Duration::ZERO };
    let mut file = Leaving { chunks, held: Vec::new(), streams: recipe.streams };
    let made = match recipe.answer {
        Answer::Png => {
            file.expect(parts.left / 2);
            media::write_png(&mut file, width, height, &mut parts)
        }
        Answer::Jpeg => {
            file.expect(parts.left / 8);
            media::write_jpeg(&mut file, width, height, &mut parts)
        }
        Answer::Webp => {
            let mut rgb = Vec::with_capacity(parts.left);
            parts.by_ref().for_each(|part| rgb.extend(part));
            let (permits, runtime) = permits;
            let before = Instant::now();
            let permit = runtime.block_on(async {
                tokio::select! {
                    permit = permits.acquire_owned() => permit.ok(),
                    () = chunks.closed() => None,
                }
            });
            parts.waited += before.elapsed();
            if permit.is_none() || parts.has_ended {
                return Ok(None);
            }
            media::encode_webp(&rgb, width, height).map(|bytes| file.held = bytes)
        }
        Answer::Tensor | Answer::UnitTensor | Answer::PartialTensor | Answer::Mp4 => {
            let whole = parts.left;
            parts.by_ref().try_for_each(|part| file.give(part, whole)).map_err(unsent)
        }
    };
    // A writer that had all it asked for fails by its own fault; one that had not says no more than that.
    if parts.has_ended || chunks.is_closed() {
        return Ok(None);
    }
    made?;
    file.leave().map_err(unsent)?;
    Ok(Some(start.elapsed().saturating_sub(parts.waited)))
}

fn unsent(error: io::Error) -> MediaError {
    MediaError::Unwritable { format: "answer's", reason: error.to_string() }
}

/// Rows as they come; no more when all have come, or the engine or the client has given up.
struct Parts<'a> {
    given: Receiver<Vec<u8>>,
    chunks: &'a UnboundedSender<Chunk>,
    /// Bytes that are still to come.
    left: usize,
    /// Whether rows were wanted that never came.
    has_ended: bool,
    waited: Duration,
}

impl Iterator for Parts<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        if self.left == 0 {
            return None;
        }
        let start = Instant::now();
        let part = self.given.recv().ok().filter(|_| !self.chunks.is_closed());
        self.waited += start.elapsed();
        self.has_ended = part.is_none();
        let part = part?;
        self.left = self.left.saturating_sub(part.len());
        Some(part)
    }
}

/// Bytes on their way to the client: in pieces, or together at the end.
struct Leaving<'a> {
    chunks: &'a UnboundedSender<Chunk>,
    held: Vec<u8>,
    streams: bool,
}

impl Leaving<'_> {
    /// Makes room for about as many bytes as are held at one time.
    fn expect(&mut self, bytes: usize) {
        self.held.reserve(if self.streams { 2 * PIECE } else { bytes + 1024 });
    }

    /// One part of an answer of `whole` bytes as it is.
    fn give(&mut self, part: Vec<u8>, whole: usize) -> io::Result<()> {
        if self.streams || part.len() == whole {
            self.held = part;
            return self.leave();
        }
        self.held.reserve_exact(whole - self.held.len());
        self.held.extend(part);
        Ok(())
    }

    fn leave(&mut self) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.held);
        // What leaves counts by its length, and a slow client keeps it long.
        bytes.shrink_to_fit();
        if bytes.is_empty() || self.chunks.send(Chunk::Bytes(bytes.into())).is_ok() {
            return Ok(());
        }
        Err(io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Leaving<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.held.extend_from_slice(bytes);
        if self.streams && self.held.len() >= PIECE {
            self.leave()?;
            self.expect(0);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
