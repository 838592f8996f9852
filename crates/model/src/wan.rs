//! `AutoencoderKLWan` and `AutoencoderKLQwenImage`: causal 3-D convolutions with zeros before a clip and around its
//! pictures, and norms of single positions, so that a clip can be computed part by part. Clips have 4·(T−1) + 1 frames.
//!
//! The first frame of a clip stands alone. Where the decoder doubles the frames, a convolution over time makes two of
//! each of the others and does not see the first; where the encoder halves them, it makes one of each two of the others
//! and the frame before.
//!
//! Wan 2.2's of 48 channels ("residual") works on patches of 2×2 pixels and adds to each level its input, repeated or
//! averaged to the level's output.

use crate::builder::{Convolution, GraphBuilder};
use crate::config_wan::WanConfig;
use crate::graph::{Cell, Edge, First, Graph, Operation, Padding, Part, Reach, Time, ValueId};

/// Latents `[batch, latent, T, h, w]` in the model's own space to pixels of about ±1, which are then clamped to that,
/// `[batch, out, 4·(T−1) + 1, s·h, s·w]`, s being [`WanConfig::spatial_factor`].
pub fn decoder(config: &WanConfig) -> Graph {
    let widths = config.widths(config.decoder_base_dim);
    let (mut build, mut x) = GraphBuilder::new(config.z_dim);
    x = build.convolution("post_quant_conv", x, Convolution::pointwise3d(config.z_dim));
    x = build.convolution("decoder.conv_in", x, causal3(widths[widths.len() - 1]));
    x = middle(&mut build, "decoder.mid_block", x);
    for (level, &width) in widths.iter().rev().enumerate() {
        let block = format!("decoder.up_blocks.{level}");
        let input = x;
        for layer in 0..config.num_res_blocks + 1 {
            x = resnet(&mut build, &format!("{block}.resnets.{layer}"), x, width);
        }
        if level + 1 == widths.len() {
            continue;
        }
        let time = config.doubles_frames(level);
        if config.is_residual {
            x = upsample(&mut build, &format!("{block}.upsampler"), x, width, time);
            let cell = Cell { time: if time { 2 } else { 1 }, space: 2, by_columns: false };
            let repeats = width * cell.elements() / build.channels(input);
            let expand = Operation::Expand { cell, repeats };
            let shortcut = build.rearrange(&format!("{block}.avg_shortcut"), expand, input, width);
            x = build.add(&format!("{block}.add"), x, shortcut);
        } else {
            x = upsample(&mut build, &format!("{block}.upsamplers.0"), x, width / 2, time);
        }
    }
    x = norm_silu(&mut build, "decoder.norm_out", x);
    x = build.convolution("decoder.conv_out", x, causal3(config.out_channels));
    if config.patch_size > 1 {
        let channels = config.out_channels / config.patch().elements();
        x = build.rearrange(
            "unpatchify",
            Operation::Expand { cell: config.patch(), repeats: 1 },
            x,
            channels,
        );
    }
    build.finish(x)
}

/// Pixels `[batch, in, 4·(T−1) + 1, height, width]` in −1…1 to moments `[batch, 2·latent, T, height/s, width/s]`, s being
/// [`WanConfig::spatial_factor`].
pub fn encoder(config: &WanConfig) -> Graph {
    let widths = config.widths(config.base_dim);
    let (mut build, mut x) = GraphBuilder::new(config.in_channels / config.patch().elements());
    if config.patch_size > 1 {
        let collect = Operation::Collect { cell: config.patch(), mean: 1 };
        x = build.rearrange("patchify", collect, x, config.in_channels);
    }
    x = build.convolution("encoder.conv_in", x, causal3(config.base_dim));
    let mut blocks = 0;
    for (level, &width) in widths.iter().enumerate() {
        let input = x;
        // Wan 2.1 numbers what the levels hold one after the other.
        let mut name = |part: String| {
            blocks += 1;
            if config.is_residual {
                format!("encoder.down_blocks.{level}.{part}")
            } else {
                format!("encoder.down_blocks.{}", blocks - 1)
            }
        };
        for layer in 0..config.num_res_blocks {
            x = resnet(&mut build, &name(format!("resnets.{layer}")), x, width);
        }
        let shrinks = level + 1 < widths.len();
        let time = shrinks && config.temperal_downsample[level];
        if shrinks {
            x = downsample(&mut build, &name("downsampler".into()), x, time);
        }
        if config.is_residual {
            let [time, space] = [time, shrinks].map(|halves| if halves { 2 } else { 1 });
            let cell = Cell { time, space, by_columns: false };
            let mean = build.channels(input) * cell.elements() / width;
            let block = format!("encoder.down_blocks.{level}");
            let collect = Operation::Collect { cell, mean };
            let shortcut = build.rearrange(&format!("{block}.avg_shortcut"), collect, input, width);
            x = build.add(&format!("{block}.add"), x, shortcut);
        }
    }
    x = middle(&mut build, "encoder.mid_block", x);
    x = norm_silu(&mut build, "encoder.norm_out", x);
    x = build.convolution("encoder.conv_out", x, causal3(2 * config.z_dim));
    x = build.convolution("quant_conv", x, Convolution::pointwise3d(2 * config.z_dim));
    build.finish(x)
}

/// 3×3×3, causal in time, zeros around and before.
fn causal3(output: usize) -> Convolution {
    let time = Time { taps: 3, ..Time::NONE };
    Convolution { time: Some(time), ..Convolution::square3(output) }
}

/// 3×1×1, causal in time, zeros before.
fn over_time(output: usize, stride: usize, first: First) -> Convolution {
    let time = Time { taps: 3, stride, edge: Edge::Zero, first };
    Convolution { time: Some(time), ..Convolution::pointwise(output) }
}

fn middle(build: &mut GraphBuilder, name: &str, x: ValueId) -> ValueId {
    let width = build.channels(x);
    let mut x = resnet(build, &format!("{name}.resnets.0"), x, width);
    x = attention(build, &format!("{name}.attentions.0"), x);
    resnet(build, &format!("{name}.resnets.1"), x, width)
}

/// Two times norm, SiLU, 3×3×3 convolution, and the input (through a 1×1×1 convolution if the width changes) added.
fn resnet(build: &mut GraphBuilder, name: &str, x: ValueId, width: usize) -> ValueId {
    let mut h = norm_silu(build, &format!("{name}.norm1"), x);
    h = build.convolution(&format!("{name}.conv1"), h, causal3(width));
    h = norm_silu(build, &format!("{name}.norm2"), h);
    h = build.convolution(&format!("{name}.conv2"), h, causal3(width));
    let shortcut = if build.channels(x) == width {
        x
    } else {
        build.convolution(&format!("{name}.conv_shortcut"), x, Convolution::pointwise3d(width))
    };
    build.add(&format!("{name}.add"), shortcut, h)
}

/// Norm, one head of attention over the positions of each frame, output projection, and the input added.
fn attention(build: &mut GraphBuilder, name: &str, x: ValueId) -> ValueId {
    let linear = Convolution::pointwise(build.channels(x));
    let h = build.rms_norm(&format!("{name}.norm"), x);
    let inputs = [0, 1, 2].map(|index| {
        let part = Part { index, of: 3 };
        build.convolution(&format!("{name}.to_qkv"), h, Convolution { part, ..linear })
    });
    let mixed = build.attention(&format!("{name}.attention"), Reach::Frame, inputs);
    let projected = build.convolution(&format!("{name}.proj"), mixed, linear);
    build.add(&format!("{name}.add"), x, projected)
}

/// Doubles the frames if `time` says so, then the sides, and changes the width.
fn upsample(build: &mut GraphBuilder, name: &str, mut x: ValueId, width: usize, time: bool) -> ValueId {
    if time {
        let layer = over_time(build.channels(x), 1, First::Unseen);
        let [one, other] = [0, 1].map(|index| {
            let part = Part { index, of: 2 };
            build.convolution(&format!("{name}.time_conv"), x, Convolution { part, ..layer })
        });
        x = build.frames(&format!("{name}.frames"), Operation::DoubleFrames, &[x, one, other]);
    }
    x = build.unary(name, Operation::UpsampleNearest { factor: 2, doubles_frames: false }, x);
    build.convolution(&format!("{name}.resample.1"), x, Convolution::square3(width))
}

/// Halves the sides, then the frames if `time` says so.
fn downsample(build: &mut GraphBuilder, name: &str, x: ValueId, time: bool) -> ValueId {
    let width = build.channels(x);
    // Zeros below and to the right only.
    let padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };
    let layer = Convolution { stride: 2, padding, ..Convolution::square3(width) };
    let x = build.convolution(&format!("{name}.resample.1"), x, layer);
    if !time {
        return x;
    }
    let merged = build.convolution(&format!("{name}.time_conv"), x, over_time(width, 2, First::Unmade));
    build.frames(&format!("{name}.frames"), Operation::FirstFrame, &[x, merged])
}

/// RMS norm and SiLU.
fn norm_silu(build: &mut GraphBuilder, name: &str, x: ValueId) -> ValueId {
    let normed = build.rms_norm(name, x);
    build.silu(&format!("{name}.silu"), normed)
}
