//! What lies in memory while a clip or a picture is run in parts: [`crate::windows::run`] walked through without values.

use std::collections::HashMap;

use remote_vae_model::Start;

use crate::Windows;
use crate::tiles::Tiles;
use crate::windows::{COLUMNS, Cut, Cutting, FRAMES, ROWS, Scale, window_frames, window_starts};

/// What becomes of the frames that are handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// They have gone when their receiver returns.
    AtOnce,
    /// They are there until the next ones are handed on.
    WhileOthersRun,
}

/// Bytes that are held on the way, beside the inputs as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Walked {
    /// Most of what is held when each part begins to run, with its input where that is cut out.
    pub beside: HashMap<Cut, usize>,
    /// Most of what is held while no part runs.
    pub between: usize,
}

/// What is held while clips of `shape` (`[batch, channels, frames, height, width]`) are run, one after the other; `channels`
/// are the output's, and `output` knows the bytes that each part of [`crate::windows::parts`] makes.
pub(crate) fn walk(
    shape: [usize; 5],
    windows: Windows,
    scale: Scale,
    channels: usize,
    taken: Taken,
    output: &dyn Fn(Cut) -> usize,
) -> Walked {
    let [batch, sides @ ..] = shape;
    let shape = [1, sides[0], sides[1], sides[2], sides[3]];
    let cutting = windows.cutting(shape, scale);
    let tiles = scale.cut_pictures(shape);
    let walked = Walked::default();
    let mut walk = Walk { scale, channels, cutting, output, taken, held: 0, handed: 0, walked };
    // What the last frames of one clip are to the next is the same for all that follow.
    for _ in 0..batch.min(2) {
        match (cutting, tiles) {
            (Cutting::Parts, None) => walk.streamed(shape),
            (Cutting::Windows, _) => walk.windowed(shape, tiles),
            _ => {
                let result = walk.picture(shape, tiles);
                walk.hand_on(result);
            }
        }
    }
    walk.walked
}

struct Walk<'a> {
    scale: Scale,
    channels: usize,
    cutting: Cutting,
    output: &'a dyn Fn(Cut) -> usize,
    taken: Taken,
    held: usize,
    /// Bytes of frames that their receiver still has.
    handed: usize,
    walked: Walked,
}

impl Walk<'_> {
    fn take(&mut self, bytes: usize) -> usize {
        self.held = self.held.saturating_add(bytes);
        self.walked.between = self.walked.between.max(self.held);
        bytes
    }

    fn free(&mut self, bytes: usize) {
        self.held -= bytes;
    }

    fn hand_on(&mut self, bytes: usize) {
        self.free(self.handed);
        self.handed = bytes;
        if self.taken == Taken::AtOnce {
            self.free(bytes);
            self.handed = 0;
        }
    }

    /// Runs a part; its output stays.
    fn one(&mut self, cut: Cut) -> usize {
        let beside = self.walked.beside.entry(cut).or_default();
        *beside = self.held.max(*beside);
        self.take((self.output)(cut))
    }

    /// As [`Walk::one`] with an input that is cut out and goes with it.
    fn cut_out(&mut self, (shape, start): Cut) -> usize {
        let input = self.take(bytes(shape));
        let output = self.one((shape, start));
        self.free(input);
        output
    }

    /// Bytes of `frames` of the output of an input of `shape`.
    fn frames_of(&self, shape: [usize; 5], frames: usize) -> usize {
        let [height, width] = [ROWS, COLUMNS].map(|axis| self.scale.output(shape[axis], axis));
        bytes([1, self.channels, frames, height, width])
    }

    fn picture(&mut self, shape: [usize; 5], tiles: Option<Tiles>) -> usize {
        match tiles {
            None => self.one((shape, Start::Clip)),
            Some(tiles) => self.tiled(shape, tiles),
        }
    }

    fn tiled(&mut self, shape: [usize; 5], tiles: Tiles) -> usize {
        let [rows, columns]: [Vec<usize>; 2] =
            [ROWS, COLUMNS].map(|axis| tiles.lengths(shape[axis]).collect());
        let (mut whole, mut above) = (0, Vec::new());
        for (down, &height) in rows.iter().enumerate() {
            // Rows of tiles that are like the two before find the same beside them.
            if down > 1 && rows[down - 2..down] == [height; 2] {
                continue;
            }
            for (across, &width) in columns.iter().enumerate() {
                let mut part = shape;
                (part[ROWS], part[COLUMNS]) = (height, width);
                let tile = match self.cutting {
                    Cutting::Parts => self.joined(part),
                    _ => self.cut_out((part, Start::Clip)),
                };
                if whole == 0 {
                    whole = self.take(self.frames_of(shape, self.scale.output(shape[FRAMES], FRAMES)));
                }
                if !tiles.keeps_row() {
                    self.free(tile);
                } else if down == 0 {
                    above.push(tile);
                } else {
                    self.free(std::mem::replace(&mut above[across], tile));
                }
            }
        }
        self.free(above.iter().sum());
        whole
    }

    /// A tile's clip, one part after the other, and then put together.
    fn joined(&mut self, shape: [usize; 5]) -> usize {
        let input = self.take(bytes(shape));
        let parts: Vec<usize> = self.scale.cuts(shape).map(|cut| self.cut_out(cut)).collect();
        let whole = self.take(self.frames_of(shape, self.scale.output(shape[FRAMES], FRAMES)));
        let copy = self.take(parts.iter().copied().max().unwrap_or(0));
        self.free(copy + parts.iter().sum::<usize>() + input);
        whole
    }

    fn streamed(&mut self, shape: [usize; 5]) {
        for cut in self.scale.cuts(shape) {
            let part = self.cut_out(cut);
            self.hand_on(part);
        }
    }

    fn windowed(&mut self, shape: [usize; 5], tiles: Option<Tiles>) {
        let [size, step, keep] = window_frames(self.scale);
        let (mut left, mut before) = (self.scale.output(shape[FRAMES], FRAMES), None);
        for start in window_starts(shape[FRAMES], step) {
            let mut window = shape;
            window[FRAMES] = (size + 1).min(shape[FRAMES] - start);
            let frames = self.scale.output(window[FRAMES], FRAMES);
            let input = self.take(bytes(window));
            let mut part = self.picture(window, tiles);
            self.free(input);
            let mut kept = (keep + 1).min(frames);
            if before.is_some() {
                // A copy without the first frame takes its place.
                let copy = self.take(self.frames_of(shape, frames - 1));
                self.free(std::mem::replace(&mut part, copy));
                kept = keep.min(frames - 1);
            }
            kept = kept.min(left);
            left -= kept;
            let done = self.take(self.frames_of(shape, kept));
            self.free(before.replace(part).unwrap_or(0));
            self.hand_on(done);
        }
        self.free(before.unwrap_or(0));
    }
}

fn bytes(shape: [usize; 5]) -> usize {
    shape.iter().product::<usize>().saturating_mul(size_of::<f32>())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use remote_vae_model::Model;
    use remote_vae_wire::{Operation, TileSizes};

    use super::*;

    const WORK: usize = 4000;

    fn scale(model: &str, tiles: Option<TileSizes>, streams: bool) -> Scale {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(model);
        let model = Model::open(&path).unwrap();
        let time = model.temporal_factor().unwrap_or(1);
        let operation = Operation::Decode;
        let scale = Scale { operation, space: 8, time, streams, patch: 1, tiles: None };
        Scale { tiles: tiles.map(|sizes| Tiles::new(&model, scale, sizes).unwrap()), ..scale }
    }

    /// The peak in `f32` of one channel, where a part's work is `work` for each of its latents.
    fn walked(shape: [usize; 5], windows: Windows, scale: Scale, taken: Taken, work: usize) -> usize {
        let output = |(input, start): Cut| {
            let [_, _, frames, height, width] = input;
            let frames =
                if start == Start::Clip { scale.output(frames, FRAMES) } else { frames * scale.time };
            4 * frames * height * width * 64
        };
        let Walked { beside, between } = walk(shape, windows, scale, 1, taken, &output);
        let running = beside.iter().map(|(cut, beside)| {
            let ([_, _, _, height, width], _) = cut;
            beside + 4 * work * height * width + output(*cut)
        });
        running.max().unwrap().max(between) / 4
    }

    #[test]
    fn a_clip_in_tiles_is_fullest_at_its_largest_tile_that_others_precede() {
        let windows = Windows { frames: true, tiles: Some(TileSizes::default()) };
        let scale = scale("golden_video/hunyuan", windows.tiles, false);
        let pixels = |height: usize, width: usize| 9 * height * width * 64;
        // 32 latents every 24: two tiles and half of one across, one and half of one down. The second has one before it.
        let (shape, tile) = ([1, 1, 3, 40, 64], pixels(32, 32));
        let second = 3 * 32 * 32 + WORK * 32 * 32 + pixels(40, 64) + 2 * tile;
        assert_eq!(walked(shape, windows, scale, Taken::AtOnce, WORK), second);
        // Lower ones have all of the row above.
        let shape = [1, 1, 3, 64, 64];
        let in_second_row = 3 * 32 * 32 + WORK * 32 * 32 + pixels(64, 64) + 2 * tile + tile / 2 + tile;
        assert_eq!(walked(shape, windows, scale, Taken::AtOnce, WORK), in_second_row);
        // Rows between the first and the last are alike.
        let high = walked([1, 1, 3, 640, 64], windows, scale, Taken::AtOnce, WORK);
        assert_eq!(high - in_second_row, pixels(640 - 64, 64));
    }

    #[test]
    fn windows_of_frames_have_the_one_before_beside_them() {
        let windows = Windows { frames: true, tiles: None };
        let scale = scale("golden_video/hunyuan", None, false);
        let (plane, work) = (8 * 8 * 64, 8 * 8 * WORK);
        // 5 latents every 3, so 17 frames of which 13 are done after the first window.
        let of = |frames, taken| walked([1, 1, frames, 8, 8], windows, scale, taken, WORK);
        assert_eq!(of(4, Taken::AtOnce), work + 13 * plane);
        assert_eq!(of(16, Taken::AtOnce), 5 * 8 * 8 + work + (17 + 17) * plane);
        assert_eq!(of(16, Taken::WhileOthersRun), 5 * 8 * 8 + work + (17 + 17 + 13) * plane);
        // Without work it is fullest when the second window loses its first frame.
        assert_eq!(walked([1, 1, 16, 8, 8], windows, scale, Taken::AtOnce, 0), (17 + 17 + 16) * plane);
    }

    #[test]
    fn parts_of_a_tile_are_there_until_they_are_joined() {
        let windows = Windows { frames: true, tiles: Some(TileSizes::default()) };
        let scale = scale("golden_video/wan", windows.tiles, true);
        let plane = |height: usize, width: usize| height * width * 64;
        // The last part of the first tile runs beside the two before it.
        let (tile, area) = (plane(32, 8), 32 * 8);
        let running = 3 * area + area + WORK * area + 9 * tile;
        assert_eq!(walked([1, 1, 3, 33, 8], windows, scale, Taken::AtOnce, WORK), running);
        // Without work it is fullest when those of the second are joined, beside the first and the picture.
        let joining = 3 * 9 * 8 + (9 + 9 + 4) * plane(9, 8) + 9 * (plane(33, 8) + plane(32, 8));
        assert_eq!(walked([1, 1, 3, 33, 8], windows, scale, Taken::AtOnce, 0), joining);
        let streamed = Windows { frames: true, tiles: None };
        let alone = |batch, taken| walked([batch, 1, 3, 8, 8], streamed, scale, taken, WORK);
        let part = 8 * 8 + WORK * 64 + 4 * plane(8, 8);
        assert_eq!(alone(1, Taken::AtOnce), part);
        assert_eq!(alone(1, Taken::WhileOthersRun), part + 4 * plane(8, 8));
    }

    #[test]
    fn the_receiver_of_one_clip_is_at_work_while_the_next_runs() {
        let windows = Windows { frames: false, tiles: None };
        let scale = scale("golden_video/hunyuan", None, false);
        let of = |batch, taken| walked([batch, 1, 3, 8, 8], windows, scale, taken, WORK);
        assert_eq!(of(1, Taken::WhileOthersRun), of(3, Taken::AtOnce));
        assert_eq!(of(3, Taken::WhileOthersRun), of(1, Taken::AtOnce) + 9 * 64 * 64);
    }
}
