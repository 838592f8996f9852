//! `AutoencoderKL`: the convolutional autoencoder of Stable Diffusion (1.x, 2.x, XL, 3), Flux.1 and their kin.
//!
//! The encoder halves the sides between its levels, the decoder doubles them; both have a middle of ResNet, attention,
//! ResNet at the smallest size. The encoder's output are the moments of a diagonal normal distribution: mean and
//! log-variance, `[batch, 2·latent, height, width]` (see [`crate::distribution`]).

use crate::builder::{Convolution, GraphBuilder};
use crate::config::KlConfig;
use crate::graph::{Graph, Operation, Padding, Reach, ValueId};

const EPSILON: f32 = 1e-6;

/// Latents `[batch, latent, h, w]` in the model's own space to pixels of about ±1,
/// `[batch, out, h·2^(levels-1), w·2^(levels-1)]`.
pub fn decoder(config: &KlConfig) -> Graph {
    let widths = config.decoder_block_out_channels();
    let (mut build, mut x) = GraphBuilder::new(config.latent_channels);
    if config.use_post_quant_conv {
        x = build.convolution("post_quant_conv", x, Convolution::pointwise(config.latent_channels));
    }
    let deepest = widths[widths.len() - 1];
    x = build.convolution("decoder.conv_in", x, Convolution::square3(deepest));
    let blocks = Blocks::of(config);
    x = blocks.middle(&mut build, "decoder.mid_block", x, config.mid_block_add_attention);
    for (level, &width) in widths.iter().rev().enumerate() {
        let block = format!("decoder.up_blocks.{level}");
        for layer in 0..config.layers_per_block + 1 {
            x = blocks.resnet(&mut build, &format!("{block}.resnets.{layer}"), x, width);
            if config.up_block_attention[level] {
                x = attention(&mut build, &format!("{block}.attentions.{layer}"), x, config.norm_num_groups);
            }
        }
        if level + 1 < widths.len() {
            let name = format!("{block}.upsamplers.0");
            x = build.unary(&name, Operation::UpsampleNearest { factor: 2, doubles_frames: false }, x);
            x = build.convolution(&format!("{name}.conv"), x, Convolution::square3(width));
        }
    }
    x = norm_silu(&mut build, "decoder.conv_norm_out", x, config.norm_num_groups);
    x = build.convolution("decoder.conv_out", x, Convolution::square3(config.out_channels));
    build.finish(x)
}

/// Pixels `[batch, in, height, width]` in −1…1 to moments `[batch, 2·latent, height/2^(levels-1), …]`.
pub fn encoder(config: &KlConfig) -> Graph {
    let (widths, blocks) = (&config.block_out_channels, Blocks::of(config));
    let (mut build, mut x) = GraphBuilder::new(config.in_channels);
    x = build.convolution("encoder.conv_in", x, Convolution::square3(widths[0]));
    for (level, &width) in widths.iter().enumerate() {
        let block = format!("encoder.down_blocks.{level}");
        for layer in 0..config.layers_per_block {
            x = blocks.resnet(&mut build, &format!("{block}.resnets.{layer}"), x, width);
            if config.down_block_attention[level] {
                x = attention(&mut build, &format!("{block}.attentions.{layer}"), x, config.norm_num_groups);
            }
        }
        if level + 1 < widths.len() {
            // Zeros below and to the right only.
            let padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };
            let layer = Convolution { stride: 2, padding, ..Convolution::square3(width) };
            x = build.convolution(&format!("{block}.downsamplers.0.conv"), x, layer);
        }
    }
    x = blocks.middle(&mut build, "encoder.mid_block", x, config.mid_block_add_attention);
    x = norm_silu(&mut build, "encoder.conv_norm_out", x, config.norm_num_groups);
    x = build.convolution("encoder.conv_out", x, Convolution::square3(2 * config.latent_channels));
    if config.use_quant_conv {
        x = build.convolution("quant_conv", x, Convolution::pointwise(2 * config.latent_channels));
    }
    build.finish(x)
}

/// The blocks that autoencoders of pictures and of clips have in common.
#[derive(Clone, Copy)]
pub(crate) struct Blocks {
    /// Of every norm.
    pub groups: usize,
    /// Whether convolutions reach through time; the checkpoint then has them one name deeper.
    pub causal: bool,
}

impl Blocks {
    /// Of a model of pictures.
    fn of(config: &KlConfig) -> Blocks {
        Blocks { groups: config.norm_num_groups, causal: false }
    }

    /// ResNet, attention if there is one, ResNet.
    pub(crate) fn middle(self, build: &mut GraphBuilder, name: &str, x: ValueId, attends: bool) -> ValueId {
        let width = build.channels(x);
        let mut x = self.resnet(build, &format!("{name}.resnets.0"), x, width);
        if attends {
            x = attention(build, &format!("{name}.attentions.0"), x, self.groups);
        }
        self.resnet(build, &format!("{name}.resnets.1"), x, width)
    }

    /// Two times norm, SiLU, convolution of 3 each way, and the input (through one of 1 if the width changes) added.
    pub(crate) fn resnet(self, build: &mut GraphBuilder, name: &str, x: ValueId, width: usize) -> ValueId {
        let (deeper, three, one) = if self.causal {
            (".conv", Convolution::causal3(width), Convolution::pointwise3d(width))
        } else {
            ("", Convolution::square3(width), Convolution::pointwise(width))
        };
        let shortcut = if build.channels(x) == width {
            x
        } else {
            build.convolution(&format!("{name}.conv_shortcut{deeper}"), x, one)
        };
        let mut h = norm_silu(build, &format!("{name}.norm1"), x, self.groups);
        h = build.convolution(&format!("{name}.conv1{deeper}"), h, three);
        h = norm_silu(build, &format!("{name}.norm2"), h, self.groups);
        h = build.convolution(&format!("{name}.conv2{deeper}"), h, three);
        build.add(&format!("{name}.add"), shortcut, h)
    }
}

/// Norm, one head of attention over all positions (of a clip: up to the own frame), output projection, and the input
/// added.
pub(crate) fn attention(build: &mut GraphBuilder, name: &str, x: ValueId, groups: usize) -> ValueId {
    let linear = Convolution::pointwise(build.channels(x));
    let h = build.group_norm(&format!("{name}.group_norm"), x, groups, EPSILON);
    let query = build.convolution(&format!("{name}.to_q"), h, linear);
    let key = build.convolution(&format!("{name}.to_k"), h, linear);
    let value = build.convolution(&format!("{name}.to_v"), h, linear);
    let mixed = build.attention(&format!("{name}.attention"), Reach::Past, [query, key, value]);
    let projected = build.convolution(&format!("{name}.to_out.0"), mixed, linear);
    build.add(&format!("{name}.add"), x, projected)
}

/// GroupNorm and SiLU.
pub(crate) fn norm_silu(build: &mut GraphBuilder, name: &str, x: ValueId, groups: usize) -> ValueId {
    let normed = build.group_norm(name, x, groups, EPSILON);
    build.silu(&format!("{name}.silu"), normed)
}
