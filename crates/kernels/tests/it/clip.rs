//! Convolution through time and attention over frames against their definitions.

use crate::support::{assert_close, blocked, each_tier, norm_table, plain, values};
use remote_vae_kernels::attention::{Shape, attention};
use remote_vae_kernels::clip::{Clip, Edge, First};
use remote_vae_kernels::convolution::{
    Arithmetic, Convolution, Destination, Epilogue, Frames, Geometry, Prologue, Residual,
};
use remote_vae_kernels::layout::blocked_len;
use remote_vae_kernels::norm::Sums;
use remote_vae_kernels::{Activation, Isa, Pool, TensorMut};

#[derive(Clone, Copy)]
struct Case {
    clip: Clip,
    channels: [usize; 2],
    kernel: usize,
    stride: usize,
    upsample: usize,
    size: [usize; 2],
}

impl Case {
    /// What a tap reads of frame `frame` (after doubling) at a place that may lie outside.
    fn read(&self, input: &[f32], channel: usize, frame: isize, [y, x]: [isize; 2]) -> f64 {
        let [height, width] = self.size.map(|side| (side * self.upsample) as isize);
        let outside = frame < 0 || y < 0 || x < 0 || y >= height || x >= width;
        if outside && self.clip.edge == Edge::Zero {
            return 0.0;
        }
        let frame = frame.max(0) as usize;
        let frame = if self.clip.doubled { frame.div_ceil(2) } else { frame };
        let (y, x) = (y.clamp(0, height - 1) as usize, x.clamp(0, width - 1) as usize);
        let place = (frame * self.channels[0] + channel) * self.size[0] * self.size[1];
        f64::from(input[place + y / self.upsample * self.size[1] + x / self.upsample]).max(0.0)
    }

    fn check(&self) {
        let Case { clip, channels: [inputs, outputs], kernel, stride, upsample, size } = *self;
        let padded = inputs.next_multiple_of(16);
        let area = kernel * kernel;
        let geometry = Geometry {
            input_channels: if clip.taps > 1 { clip.taps * padded } else { inputs },
            output_channels: outputs,
            kernel: [kernel; 2],
            stride,
            padding: [kernel / 2; 4],
        };
        let [height, width] = geometry.output_size(size.map(|side| side * upsample)).unwrap();
        let frames = clip.output_frames();
        let input = values(clip.frames * inputs * size[0] * size[1], 1);
        let weight = values(outputs * inputs * clip.taps * area, 2);
        let residual = values(frames * outputs * height * width, 3);
        let bias = values(outputs, 4);
        let mut expected = Vec::new();
        for frame in 0..frames {
            for o in 0..outputs {
                for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                    let mut sum = f64::from(bias[o]) + f64::from(residual[expected.len()]);
                    for (i, tap) in (0..inputs).flat_map(|i| (0..clip.taps).map(move |tap| (i, tap))) {
                        let from = (frame * clip.stride + tap) as isize - (clip.taps - 1) as isize;
                        for place in 0..area {
                            let at =
                                |out: usize, k: usize| (out * stride + k) as isize - (kernel / 2) as isize;
                            let at = [at(y, place / kernel), at(x, place % kernel)];
                            let weight = weight[((o * inputs + i) * clip.taps + tap) * area + place];
                            sum += f64::from(weight) * self.read(&input, i, from, at);
                        }
                    }
                    expected.push(sum);
                }
            }
        }
        let mut laid = vec![0.0; outputs * geometry.input_channels * area];
        for (o, i, tap) in (0..outputs)
            .flat_map(|o| (0..inputs).flat_map(move |i| (0..clip.taps).map(move |tap| (o, i, tap))))
        {
            let to = (o * geometry.input_channels + tap * padded + i) * area;
            let from = ((o * inputs + i) * clip.taps + tap) * area;
            laid[to..to + area].copy_from_slice(&weight[from..from + area]);
        }
        let cut = |plain: &[f32], channels: usize, pixels: usize| -> Vec<f32> {
            plain.chunks_exact(channels * pixels).flat_map(|frame| blocked(frame, channels, pixels)).collect()
        };
        let input = cut(&input, inputs, size[0] * size[1]);
        let residual = cut(&residual, outputs, height * width);
        let mut first = None;
        for threads in [1, 3] {
            for isa in Isa::available() {
                let pool = Pool::new(Some(threads)).unwrap();
                let convolution = Convolution::new(isa, &pool, geometry, &laid, Some(&bias));
                let mut output = vec![f32::NAN; residual.len()];
                let mut scratch =
                    vec![f32::NAN; Convolution::scratch_len(isa, &geometry, upsample, Arithmetic::Float32)];
                let prologue = Prologue { affine: None, activation: Activation::Relu, upsample };
                let epilogue = Epilogue {
                    residual: Residual::Tensor(residual.as_slice().into()),
                    activation: Activation::None,
                };
                let patches = geometry.patches(isa, upsample);
                let frame_table = patches.map(|patches| patches.table_len(outputs, 0..height, width));
                let made = clip.output_frames();
                let mut moments = frame_table.map(|len| vec![f32::NAN; made * len]);
                convolution.run_clip(
                    &pool,
                    Arithmetic::Float32,
                    Frames { clip, input: input.as_slice().into(), history: &[] },
                    size,
                    prologue,
                    epilogue,
                    &mut scratch,
                    Destination { output: output.as_mut_slice().into(), moments: moments.as_deref_mut() },
                );
                if let (Some(patches), Some(len), Some(moments)) = (patches, frame_table, moments) {
                    let mut sums = [(); 2].map(|()| Sums::new(outputs, [height, width], patches));
                    let frames = output.chunks_exact(blocked_len(outputs, height * width));
                    for (frame, table) in frames.zip(moments.chunks_exact(len)) {
                        sums[0].add(isa, &pool, frame.into(), 0..height);
                        sums[1].add_table(isa, &pool, table, 0..height);
                    }
                    let [found, taken] = sums.map(|sums| norm_table(&sums, outputs, outputs));
                    assert!(found == taken && found[0][0] != 0.0, "{} {clip:?}", isa.name());
                }
                let found: Vec<f32> = output
                    .chunks_exact(blocked_len(outputs, height * width))
                    .flat_map(|frame| plain(frame, outputs, height * width))
                    .collect();
                assert_close(&found, &expected, 1e-4, &format!("{} {clip:?}", isa.name()));
                if isa == Isa::detect() {
                    assert!(
                        *first.get_or_insert_with(|| output.clone()) == output,
                        "threads change {clip:?}"
                    );
                }
            }
        }
    }
}

#[test]
fn convolutions_through_time_agree_with_the_definition() {
    for edge in [Edge::Zero, Edge::Replicate] {
        for frames in [1, 2, 5] {
            let clip = Clip { frames, taps: 3, edge, ..Clip::PICTURE };
            let case = Case { clip, channels: [19, 5], kernel: 3, stride: 1, upsample: 1, size: [7, 10] };
            case.check();
            Case { clip: Clip { doubled: true, ..clip }, upsample: 2, ..case }.check();
            Case { clip: Clip { doubled: true, ..clip }, channels: [3, 20], ..case }.check();
            Case { clip: Clip { stride: 2, ..clip }, stride: 2, ..case }.check();
            Case { clip, kernel: 1, ..case }.check();
            Case { clip: Clip { taps: 1, ..clip }, ..case }.check();
        }
    }
}

/// All frames at once, or in parts with the frames before them at hand.
#[test]
fn a_clip_in_parts_gives_the_bytes_of_the_whole() {
    let (inputs, outputs, size) = (40, 20, [6, 9]);
    for (kernel, stride, first) in [(3, 1, First::Ordinary), (1, 1, First::Unseen), (1, 2, First::Unmade)] {
        let padded = blocked_len(inputs, 1);
        let geometry = Geometry {
            input_channels: 3 * padded,
            output_channels: outputs,
            kernel: [kernel; 2],
            stride: 1,
            padding: [kernel / 2; 4],
        };
        let weight = values(outputs * 3 * padded * kernel * kernel, 2);
        let frame_len = blocked_len(inputs, size[0] * size[1]);
        let input: Vec<f32> = (0..7)
            .flat_map(|frame| blocked(&values(inputs * size[0] * size[1], frame), inputs, size[0] * size[1]))
            .collect();
        let whole = Clip { frames: 7, taps: 3, stride, first, ..Clip::PICTURE };
        for arithmetic in [Arithmetic::Float32, Arithmetic::Integer16] {
            each_tier(|isa, pool| {
                let convolution = Convolution::new(isa, pool, geometry, &weight, None);
                let run = |clip: Clip, start: usize| {
                    let frame = |index: usize| &input[index * frame_len..][..frame_len];
                    let history: Vec<_> = (start - clip.before..start).map(|at| frame(at).into()).collect();
                    let part = &input[start * frame_len..][..clip.frames * frame_len];
                    let output_len = blocked_len(outputs, size[0] * size[1]);
                    let mut output = vec![0.0; clip.output_frames() * output_len];
                    let mut scratch = vec![f32::NAN; Convolution::scratch_len(isa, &geometry, 1, arithmetic)];
                    convolution.run_clip(
                        pool,
                        arithmetic,
                        Frames { clip, input: part.into(), history: &history },
                        size,
                        Prologue::default(),
                        Epilogue::default(),
                        &mut scratch,
                        TensorMut::from(output.as_mut_slice()).into(),
                    );
                    output
                };
                let expected = run(whole, 0);
                let mut found = Vec::new();
                for (start, frames) in [(0, 1), (1, 2), (3, 4)] {
                    let seen = start - usize::from(first == First::Unseen && start > 0);
                    let before = seen.min(whole.history());
                    found.extend(run(Clip { frames, continues: start > 0, before, ..whole }, start));
                }
                assert!(found == expected, "{} {arithmetic:?} {whole:?}", isa.name());
                assert!(expected.iter().any(|value| *value != 0.0));
            });
        }
    }
}

#[test]
fn a_frame_attends_to_itself_and_to_what_came_before() {
    let (channels, frames, tokens) = (20, 3, 37);
    let tensors = [1, 2, 3].map(|seed| values(frames * channels * tokens, seed));
    let at = |tensor: usize, frame: usize, channel: usize, token: usize| {
        f64::from(tensors[tensor][(frame * channels + channel) * tokens + token])
    };
    let mut expected = vec![0.0; frames * channels * tokens];
    for frame in 0..frames {
        for query in 0..tokens {
            let keys: Vec<_> =
                (0..=frame).flat_map(|frame| (0..tokens).map(move |token| (frame, token))).collect();
            let weights: Vec<f64> = keys
                .iter()
                .map(|&(of, token)| {
                    let score: f64 =
                        (0..channels).map(|c| at(0, frame, c, query) * at(1, of, c, token)).sum();
                    (score / (channels as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = weights.iter().sum();
            for c in 0..channels {
                let mixed: f64 = keys
                    .iter()
                    .zip(&weights)
                    .map(|(&(of, token), weight)| weight * at(2, of, c, token))
                    .sum();
                expected[(frame * channels + c) * tokens + query] = mixed / total;
            }
        }
    }
    let cut = tensors.each_ref().map(|tensor| -> Vec<f32> {
        tensor.chunks_exact(channels * tokens).flat_map(|frame| blocked(frame, channels, tokens)).collect()
    });
    each_tier(|isa, pool| {
        for (arithmetic, tolerance) in [(Arithmetic::Float32, 1e-5), (Arithmetic::Integer16, 2e-4)] {
            let found = attend(isa, pool, &cut, Shape { channels, frames, tokens, arithmetic });
            assert_close(&found, &expected, tolerance, isa.name());
        }
    });
}

#[test]
fn a_frame_does_not_depend_on_those_behind_it() {
    let (frames, channels, tokens) = (3, 20, 37);
    let len = blocked_len(channels, tokens);
    let tensors = [1, 2, 3].map(|seed| -> Vec<f32> {
        values(frames * channels * tokens, seed)
            .chunks_exact(channels * tokens)
            .flat_map(|frame| blocked(frame, channels, tokens))
            .collect()
    });
    let mut wrong = tensors.clone();
    for tensor in &mut wrong {
        tensor[2 * len..].fill(f32::NAN);
    }
    each_tier(|isa, pool| {
        for arithmetic in [Arithmetic::Float32, Arithmetic::Integer16] {
            let shape = Shape { channels, frames, tokens, arithmetic };
            let [before, after] = [&tensors, &wrong].map(|tensors| attend(isa, pool, tensors, shape));
            let kept = 2 * channels * tokens;
            assert_eq!(before[..kept], after[..kept], "{}", isa.name());
            assert!(after[kept..].iter().all(|value| value.is_nan()), "{}", isa.name());
        }
    });
}

/// Attention among frames `[frame][channels, tokens]`, blocked; the result is plain.
fn attend(isa: Isa, pool: &Pool, tensors: &[Vec<f32>; 3], shape: Shape) -> Vec<f32> {
    let Shape { channels, tokens, .. } = shape;
    let mut scratch = vec![f32::NAN; shape.scratch_len(isa)];
    let mut output = vec![f32::NAN; tensors[0].len()];
    let operands = tensors.each_ref().map(|values| values.as_slice().into());
    attention(isa, pool, operands, shape, &mut scratch, output.as_mut_slice().into());
    output
        .chunks_exact(blocked_len(channels, tokens))
        .flat_map(|frame| plain(frame, channels, tokens))
        .collect()
}
