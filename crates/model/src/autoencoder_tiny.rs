//! `AutoencoderTiny`: the TAESD family of small distilled autoencoders (TAESD, TAESDXL, TAESD3, TAEF1) and the FLUX.2
//! variant TAEF2, whose blocks at the smallest size begin with a pooling branch.
//!
//! Their latents are the diffusion model's own (no scaling), the encoder is deterministic, and inside they work on
//! pixels in 0…1; the graphs take and give −1…1 like every other model here.

use crate::builder::{Convolution, GraphBuilder};
use crate::config::TinyConfig;
use crate::graph::{Graph, Operation, ValueId};

/// Latents are softly limited to ±3 before the decoder's first layer.
const LATENT_LIMIT: f32 = 3.0;

/// Latents `[batch, latent, h, w]` to pixels of about ±1.
pub fn decoder(config: &TinyConfig) -> Graph {
    let widths = &config.decoder_block_out_channels;
    let (mut build, mut x) = GraphBuilder::new(config.latent_channels);
    let mut layers = Layers::new("decoder.layers");
    x = build.unary("decoder.clamp", Operation::SoftClamp { limit: LATENT_LIMIT }, x);
    x = build.convolution(&layers.next(), x, Convolution::square3(widths[0]));
    x = build.relu(&layers.next(), x);
    for (stage, &blocks) in config.num_decoder_blocks.iter().enumerate() {
        for _ in 0..blocks {
            x = block(&mut build, &layers.next(), x, config.midblock_pool && stage == 0);
        }
        if stage + 1 < widths.len() {
            let factor = config.upsampling_scaling_factor;
            x = build.unary(&layers.next(), Operation::UpsampleNearest { factor, doubles_frames: false }, x);
            x = build.convolution(&layers.next(), x, Convolution::square3(widths[stage + 1]).without_bias());
        }
    }
    x = build.convolution(&layers.next(), x, Convolution::square3(config.out_channels));
    x = build.unary("decoder.to_signed", Operation::Affine { scale: 2.0, shift: -1.0 }, x);
    build.finish(x)
}

/// Pixels `[batch, in, height, width]` in −1…1 to latents `[batch, latent, height/2^(stages-1), …]`.
pub fn encoder(config: &TinyConfig) -> Graph {
    let widths = &config.encoder_block_out_channels;
    let last = widths.len() - 1;
    let (mut build, mut x) = GraphBuilder::new(config.in_channels);
    let mut layers = Layers::new("encoder.layers");
    x = build.unary("encoder.to_unit", Operation::Affine { scale: 0.5, shift: 0.5 }, x);
    for (stage, (&blocks, &width)) in config.num_encoder_blocks.iter().zip(widths).enumerate() {
        let layer = if stage == 0 {
            Convolution::square3(width)
        } else {
            Convolution { stride: 2, ..Convolution::square3(width).without_bias() }
        };
        x = build.convolution(&layers.next(), x, layer);
        for _ in 0..blocks {
            x = block(&mut build, &layers.next(), x, config.midblock_pool && stage == last);
        }
    }
    x = build.convolution(&layers.next(), x, Convolution::square3(config.latent_channels));
    build.finish(x)
}

/// relu(conv(relu(conv(relu(conv(x))))) + x), after x + pool(x) where there is a pooling branch: 1×1 convolution to
/// four times the width, GroupNorm of 4 groups, ReLU, 1×1 convolution back, both without bias.
fn block(build: &mut GraphBuilder, name: &str, x: ValueId, pool: bool) -> ValueId {
    let width = build.channels(x);
    let mut x = x;
    if pool {
        let wide = Convolution::pointwise(4 * width).without_bias();
        let mut p = build.convolution(&format!("{name}.pool.0"), x, wide);
        p = build.group_norm(&format!("{name}.pool.1"), p, 4, 1e-5);
        p = build.relu(&format!("{name}.pool.2"), p);
        p = build.convolution(&format!("{name}.pool.3"), p, Convolution::pointwise(width).without_bias());
        x = build.add(&format!("{name}.pool.add"), x, p);
    }
    let mut h = build.convolution(&format!("{name}.conv.0"), x, Convolution::square3(width));
    h = build.relu(&format!("{name}.conv.1"), h);
    h = build.convolution(&format!("{name}.conv.2"), h, Convolution::square3(width));
    h = build.relu(&format!("{name}.conv.3"), h);
    h = build.convolution(&format!("{name}.conv.4"), h, Convolution::square3(width));
    let sum = build.add(&format!("{name}.add"), h, x);
    build.relu(&format!("{name}.fuse"), sum)
}

/// Counts the layers of one sequence; those without weights count too.
struct Layers {
    sequence: &'static str,
    count: usize,
}

impl Layers {
    fn new(sequence: &'static str) -> Self {
        Self { sequence, count: 0 }
    }

    fn next(&mut self) -> String {
        self.count += 1;
        format!("{}.{}", self.sequence, self.count - 1)
    }
}
