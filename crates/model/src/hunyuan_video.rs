//! `AutoencoderKLHunyuanVideo`: `AutoencoderKL` with causal 3-D convolutions, for clips of 4·(T−1) + 1 frames.
//!
//! Each convolution repeats the edges of the picture and the first frame. Levels change the sides by two while the
//! spatial factor lasts, counted from the largest pictures, and the frames while the temporal factor does, counted from
//! the smallest. The first frame stands alone: it is never doubled and never merged with others. How clips are cut into
//! windows is not said here.

use crate::autoencoder_kl::{Blocks, norm_silu};
use crate::builder::{Convolution, GraphBuilder};
use crate::config_video::HunyuanVideoConfig;
use crate::graph::{Edge, First, Graph, Operation, Time};

/// Latents `[batch, latent, T, h, w]` in the model's own space to pixels of about ±1, `[batch, out, 4·(T−1) + 1, 8·h, 8·w]`.
pub fn decoder(config: &HunyuanVideoConfig) -> Graph {
    let (widths, groups) = (&config.block_out_channels, config.norm_num_groups);
    let blocks = Blocks { groups, causal: true };
    let (mut build, mut x) = GraphBuilder::new(config.latent_channels);
    x = build.convolution("post_quant_conv", x, Convolution::pointwise3d(config.latent_channels));
    x = build.convolution("decoder.conv_in.conv", x, Convolution::causal3(widths[widths.len() - 1]));
    x = blocks.middle(&mut build, "decoder.mid_block", x, config.mid_block_add_attention);
    for (level, &width) in widths.iter().rev().enumerate() {
        let block = format!("decoder.up_blocks.{level}");
        for layer in 0..config.layers_per_block + 1 {
            x = blocks.resnet(&mut build, &format!("{block}.resnets.{layer}"), x, width);
        }
        let [space, time] = config.halvings(level);
        if space || time {
            let name = format!("{block}.upsamplers.0");
            let factor = if space { 2 } else { 1 };
            x = build.unary(&name, Operation::UpsampleNearest { factor, doubles_frames: time }, x);
            x = build.convolution(&format!("{name}.conv.conv"), x, Convolution::causal3(width));
        }
    }
    x = norm_silu(&mut build, "decoder.conv_norm_out", x, groups);
    x = build.convolution("decoder.conv_out.conv", x, Convolution::causal3(config.out_channels));
    build.finish(x)
}

/// Pixels `[batch, in, 4·(T−1) + 1, height, width]` in −1…1 to moments `[batch, 2·latent, T, height/8, width/8]`.
pub fn encoder(config: &HunyuanVideoConfig) -> Graph {
    let groups = config.norm_num_groups;
    let blocks = Blocks { groups, causal: true };
    let (mut build, mut x) = GraphBuilder::new(config.in_channels);
    x = build.convolution("encoder.conv_in.conv", x, Convolution::causal3(config.block_out_channels[0]));
    for (level, &width) in config.block_out_channels.iter().enumerate() {
        let block = format!("encoder.down_blocks.{level}");
        for layer in 0..config.layers_per_block {
            x = blocks.resnet(&mut build, &format!("{block}.resnets.{layer}"), x, width);
        }
        let [space, time] = config.halvings(level);
        if space || time {
            let factor = |halves: bool| if halves { 2 } else { 1 };
            let time = Time { taps: 3, stride: factor(time), edge: Edge::Replicate, first: First::Ordinary };
            let layer =
                Convolution { stride: factor(space), time: Some(time), ..Convolution::causal3(width) };
            x = build.convolution(&format!("{block}.downsamplers.0.conv.conv"), x, layer);
        }
    }
    x = blocks.middle(&mut build, "encoder.mid_block", x, config.mid_block_add_attention);
    x = norm_silu(&mut build, "encoder.conv_norm_out", x, groups);
    x = build.convolution("encoder.conv_out.conv", x, Convolution::causal3(2 * config.latent_channels));
    x = build.convolution("quant_conv", x, Convolution::pointwise3d(2 * config.latent_channels));
    build.finish(x)
}
