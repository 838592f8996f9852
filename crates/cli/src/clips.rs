//! Clips on the command line: how they are cut, and the files that hold their frames.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use remote_vae_engine::{Autoencoder, Frames, PlanSummary, Windows};
use remote_vae_media::{
    self as media, Mp4Encoder, Mp4Options, RgbImage, VideoLimits, WebpAnimation, decode_mp4_start,
};
use remote_vae_wire::TileSizes;

use crate::arguments::VideoArguments;
use crate::convert::{Written, numbered};
use crate::cuts::CutArguments;
use crate::local;
use crate::place::{self, write};
use crate::spool::Spool;

/// How clips are cut; a model of pictures refuses what it cannot do, and sizes of tiles need tiles.
pub(crate) fn windows(autoencoder: &Autoencoder, arguments: &CutArguments) -> Result<Windows> {
    let model = autoencoder.model();
    let sizes = TileSizes::from(arguments.tiles);
    if let (None, Some(name)) = (arguments.windows().tiles, sizes.first_given()) {
        bail!(
            "--{} is for tiles: expected --tiling diffusers with it, got --tiling off",
            name.replace('_', "-")
        );
    }
    if model.temporal_factor().is_some() {
        return Ok(arguments.windows());
    }
    if arguments.clips.windows.is_some_and(bool::from) {
        bail!("--windows on is for models of videos; {} is an {}", model.label(), model.family.name());
    }
    Ok(Windows { frames: false, ..arguments.windows() })
}

/// Latents as `[batch, channels, frames, height, width]`; four dimensions are single frames.
pub(crate) fn five_dimensional(shape: &[usize], channels: usize) -> Result<[usize; 5]> {
    match *shape {
        [batch, found, frames, height, width] if found == channels => {
            Ok([batch, found, frames, height, width])
        }
        [batch, found, height, width] if found == channels => Ok([batch, found, 1, height, width]),
        _ => bail!("expected latents [batch, {channels}, frames, height, width], got {shape:?}"),
    }
}

/// The first `count` frames of a video file, or all, with sides cut to multiples of `factor`.
pub(crate) fn read(file: &[u8], count: Option<usize>, factor: usize) -> Result<Vec<RgbImage>> {
    let limits = VideoLimits { frames: local::PICTURE_LIMITS, max_frames: 1 << 20 };
    let video = decode_mp4_start(file, count.unwrap_or(usize::MAX), &limits)?;
    if let Some(count) = count
        && video.frames.len() < count
    {
        bail!("it has {} frames, fewer than --frames {count}", video.frames.len());
    }
    let resized = video.frames.into_iter().map(|frame| media::resize_to_multiple(frame, factor));
    Ok(resized.collect::<Result<_, _>>()?)
}

/// A kind of file that holds frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Mp4,
    Webp,
    /// A folder of PNG files, one for each frame.
    Folder,
    Png,
    Jpeg,
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

/// A file whose head is known once all frames are there.
fn write_behind(path: &Path, head: &[u8], frames: Spool) -> Result<()> {
    place::write_with(path, |output| {
        output.write_all(head)?;
        Ok(frames.write_to(output)?)
    })
}

/// What a decode costs whose frames go into files. What is made of a frame at a time lies where activations have been; an
/// MP4 encoder stays beside them.
pub(crate) fn with_files(plan: PlanSummary, format: Format) -> PlanSummary {
    let [.., height, width] = plan.output;
    let kept = if format == Format::Mp4 { Mp4Encoder::kept_bytes(width, height) } else { 0 };
    PlanSummary { peak_bytes: plan.peak_bytes + kept, ..plan }
}

/// Writes clips of a batch, one after the other, as their frames come. None stay in memory.
pub(crate) struct Writer<'a> {
    output: &'a Path,
    format: Format,
    video: Mp4Options,
    /// `[batch, channels, frames, height, width]`
    shape: [usize; 5],
    sink: Option<Sink>,
    /// Frames of the clip that are written.
    written: usize,
    /// Clips that are whole.
    pub files: Vec<Written>,
}

enum Sink {
    Mp4(Box<Mp4Encoder>, Spool),
    Webp(WebpAnimation, Spool),
    Folder(PathBuf),
    Picture,
}

impl<'a> Writer<'a> {
    /// Finds out before the work whether `shape` can be written so.
    pub(crate) fn new(
        output: &'a Path,
        format: Format,
        arguments: &VideoArguments,
        shape: [usize; 5],
    ) -> Result<Self> {
        let [batch, channels, frames, height, width] = shape;
        place::one_result(output, batch)?;
        if channels != 3 {
            bail!(
                "the model gives {channels} channels, which are no picture; write a .safetensors file instead"
            );
        }
        if matches!(format, Format::Png | Format::Jpeg) && frames > 1 {
            bail!(
                "a picture file holds one frame, these latents give {frames}; write .mp4, .webp, .safetensors or a folder"
            );
        }
        let video = Mp4Options { fps: arguments.fps, crf: arguments.crf, ..Mp4Options::default() };
        match format {
            Format::Mp4 => video.check_size(width, height)?,
            Format::Webp => drop(WebpAnimation::new(width, height, video.fps)?),
            Format::Folder | Format::Png | Format::Jpeg => {}
        }
        Ok(Self { output, format, video, shape, sink: None, written: 0, files: Vec::new() })
    }

    /// Adds frames, all of one clip.
    pub(crate) fn add(&mut self, group: &Frames) -> Result<()> {
        let [channels, frames, height, width] = group.shape;
        let path = self.path(group.sample);
        let mut sink = match self.sink.take() {
            Some(sink) => sink,
            None => self.start(&path)?,
        };
        let plane = height * width;
        for frame in 0..frames {
            let channel =
                |channel| group.values[(channel * frames + frame) * plane..][..plane].iter().copied();
            let planes: Vec<f32> = (0..channels).flat_map(channel).collect();
            let rgb = media::to_uint8_channel_last(&planes, [1, channels, height, width]);
            match &mut sink {
                Sink::Mp4(encoder, spool) => {
                    encoder.push_rgb(&rgb)?;
                    spool.add(&encoder.take_frames()).with_context(|| cannot_write(&path))?;
                }
                Sink::Webp(animation, spool) => {
                    animation.push_rgb(&rgb)?;
                    spool.add(&animation.take_frames()).with_context(|| cannot_write(&path))?;
                }
                Sink::Folder(folder) => {
                    let name = format!("frame-{:04}.png", group.first + frame);
                    write(&folder.join(name), &media::encode_png(&rgb, width, height)?)?;
                }
                Sink::Picture if self.format == Format::Jpeg => {
                    write(&path, &media::encode_jpeg(&rgb, width, height)?)?;
                }
                Sink::Picture => write(&path, &media::encode_png(&rgb, width, height)?)?,
            }
        }
        self.written += frames;
        if self.written < self.shape[2] {
            self.sink = Some(sink);
            return Ok(());
        }
        self.written = 0;
        match sink {
            Sink::Mp4(encoder, spool) => write_behind(&path, &encoder.finish()?, spool)?,
            Sink::Webp(animation, spool) => write_behind(&path, &animation.finish()?, spool)?,
            Sink::Folder(_) | Sink::Picture => {}
        }
        self.files.push(Written { path, shape: vec![self.shape[2], height, width] });
        Ok(())
    }

    fn start(&self, path: &Path) -> Result<Sink> {
        let [.., height, width] = self.shape;
        Ok(match self.format {
            Format::Mp4 => {
                Sink::Mp4(Box::new(Mp4Encoder::new(width, height, &self.video)?), Spool::new(path))
            }
            Format::Webp => Sink::Webp(WebpAnimation::new(width, height, self.video.fps)?, Spool::new(path)),
            Format::Folder => {
                std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
                Sink::Folder(path.to_owned())
            }
            Format::Png | Format::Jpeg => Sink::Picture,
        })
    }

    fn path(&self, sample: usize) -> PathBuf {
        match (self.shape[0], self.format) {
            (1, _) => self.output.to_owned(),
            (_, Format::Folder) => self.output.join(format!("clip-{sample}")),
            _ => numbered(self.output, sample),
        }
    }
}
