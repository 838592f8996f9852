//! Files of pictures, written as their rows come: of a PNG or JPEG file no more than a few strips are there at one time.
//! What a decode writes beside pictures is in [`crate::convert`].

use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow, bail};
use remote_vae_engine::{Image, Rows};
use remote_vae_media as media;

use crate::clips::Format;
use crate::convert::{Written, numbered};
use crate::place;

/// Strips that wait for the thread that makes a file of them.
const WAITING: usize = 2;

/// Bytes that the writer of such files keeps for each pixel of one picture.
pub(crate) fn kept_per_pixel(format: Format) -> usize {
    match format {
        // All pixels, those with a fourth channel, and the file twice.
        Format::Webp => 13,
        _ => 0,
    }
}

/// Writes the pictures of a batch, one after the other.
pub(crate) struct Pictures<'a> {
    output: &'a Path,
    format: Format,
    /// `[batch, 3, height, width]` of the values that rows are of.
    shape: [usize; 4],
    making: Option<Making>,
    /// Those that are whole.
    pub files: Vec<Written>,
}

/// A file that is being made.
enum Making {
    /// By a thread, of the rows that it is sent.
    ByRows { rows: SyncSender<Vec<u8>>, thread: JoinHandle<Result<()>> },
    /// When all pixels have come.
    Whole(Vec<u8>),
}

impl<'a> Pictures<'a> {
    /// Finds out before the work whether pictures of `shape` can be written so.
    pub(crate) fn new(output: &'a Path, format: Format, shape: [usize; 4]) -> Result<Self> {
        let [batch, channels, height, width] = shape;
        if channels != 3 {
            bail!(
                "the model gives {channels} channels, which are no picture; write a .safetensors file instead"
            );
        }
        if matches!(format, Format::Mp4 | Format::Folder) {
            bail!("{} is for clips; these are pictures: write .png, .jpg or .webp", output.display());
        }
        match format {
            Format::Jpeg => media::check_jpeg_sides(width, height)?,
            Format::Webp => media::check_webp_sides(width, height)?,
            _ => {}
        }
        place::one_result(output, batch)?;
        Ok(Self { output, format, shape, making: None, files: Vec::with_capacity(batch) })
    }

    /// Takes the next rows: all of each picture, from the top.
    pub(crate) fn add(&mut self, Rows { sample, first, values, shape }: &Rows<'_>) -> Result<()> {
        let [channels, rows, width] = *shape;
        let rgb = media::to_uint8_channel_last(values, [1, channels, rows, width]);
        let mut making = match self.making.take() {
            Some(making) => making,
            None => self.start(*sample)?,
        };
        let has_ended = match &mut making {
            Making::ByRows { rows, .. } => rows.send(rgb).is_err(),
            Making::Whole(pixels) => {
                pixels.extend(rgb);
                false
            }
        };
        if !has_ended && first + rows < self.shape[2] {
            self.making = Some(making);
            return Ok(());
        }
        self.finish(making, *sample)
    }

    /// All rows of pictures that are there as a whole.
    pub(crate) fn add_whole(&mut self, image: &Image) -> Result<()> {
        const ROWS: usize = 64;
        let [_, channels, height, width] = image.shape;
        for (sample, values) in image.pixels.chunks_exact(channels * height * width).enumerate() {
            for first in (0..height).step_by(ROWS) {
                let count = ROWS.min(height - first);
                let planes = values.chunks_exact(height * width);
                let mut part: Vec<f32> =
                    planes.flat_map(|plane| &plane[first * width..][..count * width]).copied().collect();
                self.add(&Rows { sample, first, values: &mut part, shape: [channels, count, width] })?;
            }
        }
        Ok(())
    }

    fn path(&self, sample: usize) -> std::path::PathBuf {
        if self.shape[0] == 1 { self.output.to_owned() } else { numbered(self.output, sample) }
    }

    fn start(&self, sample: usize) -> Result<Making> {
        let ([_, _, height, width], path, format) = (self.shape, self.path(sample), self.format);
        if format == Format::Webp {
            return Ok(Making::Whole(Vec::with_capacity(3 * height * width)));
        }
        let (rows, given) = sync_channel::<Vec<u8>>(WAITING);
        let make = move || {
            place::write_with(&path, |file| {
                let made = match format {
                    Format::Jpeg => media::write_jpeg(file, width, height, given.into_iter()),
                    _ => media::write_png(file, width, height, given.into_iter()),
                };
                made.map_err(Into::into)
            })
        };
        let thread = std::thread::Builder::new().name("file".to_owned()).spawn(make)?;
        Ok(Making::ByRows { rows, thread })
    }

    fn finish(&mut self, making: Making, sample: usize) -> Result<()> {
        let ([_, _, height, width], path) = (self.shape, self.path(sample));
        match making {
            Making::ByRows { rows, thread } => {
                drop(rows);
                thread.join().unwrap_or_else(|_| Err(anyhow!("cannot write {}", path.display())))?;
            }
            Making::Whole(pixels) => {
                let file = media::encode_webp(&pixels, width, height)?;
                drop(pixels);
                place::write(&path, &file)?;
            }
        }
        self.files.push(Written { path, shape: vec![height, width] });
        Ok(())
    }
}

/// A file that was begun and lacks rows goes before the process does.
impl Drop for Pictures<'_> {
    fn drop(&mut self) {
        if let Some(Making::ByRows { rows, thread }) = self.making.take() {
            drop(rows);
            // That rows are missing is known to whoever has not sent them.
            let _ = thread.join();
        }
    }
}
