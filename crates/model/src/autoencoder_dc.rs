//! `AutoencoderDC`, the deep-compression autoencoder of Sana (Chen et al., 2024): sides by 32 or more, residual paths beside
//! every change of size (pixels to channels with means, channels to pixels with repeats), and at the small sizes blocks of
//! EfficientViT: linear attention over several scales, then a gated convolution. Its encoder is deterministic.

use crate::builder::{Convolution, GraphBuilder, Grouped};
use crate::config_dc::{DcBlock, DcConfig, DcHalf, Resampling};
use crate::graph::{Activation, Cell, Graph, Operation, Part, ValueId};

/// Of every norm.
const EPSILON: f32 = 1e-5;
/// Two pixels each way, row by row.
const PIXELS: Cell = Cell { time: 1, space: 2, by_columns: false };
/// A position that stays one.
const POSITION: Cell = Cell { time: 1, space: 1, by_columns: false };
/// How much wider the gated convolution is than its block, for each of gate and gated.
const EXPANSION: usize = 4;

/// Latents `[batch, latent, h, w]` in the model's own space to pixels of about ±1, `[batch, in, s·h, s·w]`, s being
/// [`DcConfig::spatial_factor`].
pub fn decoder(config: &DcConfig) -> Graph {
    let half = &config.decoder;
    let (mut build, latents) = GraphBuilder::new(config.latent_channels);
    let width = half.widths[half.widths.len() - 1];
    let shortcut = config.decoder_in_shortcut.then(|| {
        let repeat = Operation::Expand { cell: POSITION, repeats: width / config.latent_channels };
        build.rearrange("decoder.in_shortcut", repeat, latents, width)
    });
    let mut x = build.convolution("decoder.conv_in", latents, Convolution::square3(width));
    if let Some(shortcut) = shortcut {
        x = build.add("decoder.in_shortcut.add", x, shortcut);
    }
    for level in (0..half.widths.len()).rev() {
        let mut layer = 0;
        let mut name = || {
            layer += 1;
            format!("decoder.up_blocks.{level}.{}", layer - 1)
        };
        if level + 1 < half.widths.len() && half.layers[level] > 0 {
            x = up(&mut build, &name(), x, half.widths[level], half.resampling, true);
        }
        for _ in 0..half.layers[level] {
            x = block(&mut build, &name(), x, half, level, config.attention_head_dim);
        }
    }
    x = build.rms_norm_with_bias("decoder.norm_out", x, EPSILON);
    x = build.unary("decoder.conv_act", Operation::Activation(config.decoder_conv_act_fn), x);
    x = if half.layers[0] > 0 {
        build.convolution("decoder.conv_out", x, Convolution::square3(config.in_channels))
    } else {
        up(&mut build, "decoder.conv_out", x, config.in_channels, half.resampling, false)
    };
    build.finish(x)
}

/// Pixels `[batch, in, height, width]` in −1…1 to latents `[batch, latent, height/s, width/s]`, s being
/// [`DcConfig::spatial_factor`].
pub fn encoder(config: &DcConfig) -> Graph {
    let half = &config.encoder;
    let (mut build, mut x) = GraphBuilder::new(config.in_channels);
    x = if half.layers[0] > 0 {
        build.convolution("encoder.conv_in", x, Convolution::square3(half.widths[0]))
    } else {
        down(&mut build, "encoder.conv_in", x, half.widths[1], half.resampling, false)
    };
    for level in 0..half.widths.len() {
        for layer in 0..half.layers[level] {
            let name = format!("encoder.down_blocks.{level}.{layer}");
            x = block(&mut build, &name, x, half, level, config.attention_head_dim);
        }
        if level + 1 < half.widths.len() && half.layers[level] > 0 {
            let name = format!("encoder.down_blocks.{level}.{}", half.layers[level]);
            x = down(&mut build, &name, x, half.widths[level + 1], half.resampling, true);
        }
    }
    let shortcut = config.encoder_out_shortcut.then(|| {
        let mean = build.channels(x) / config.latent_channels;
        let collect = Operation::Collect { cell: POSITION, mean };
        build.rearrange("encoder.out_shortcut", collect, x, config.latent_channels)
    });
    x = build.convolution("encoder.conv_out", x, Convolution::square3(config.latent_channels));
    if let Some(shortcut) = shortcut {
        x = build.add("encoder.out_shortcut.add", x, shortcut);
    }
    build.finish(x)
}

/// Doubles the sides and changes the width.
fn up(
    build: &mut GraphBuilder,
    name: &str,
    x: ValueId,
    width: usize,
    resampling: Resampling,
    has_shortcut: bool,
) -> ValueId {
    let shortcut = has_shortcut.then(|| {
        let repeats = width * PIXELS.elements() / build.channels(x);
        build.rearrange(&format!("{name}.shortcut"), Operation::Expand { cell: PIXELS, repeats }, x, width)
    });
    let conv = format!("{name}.conv");
    let made = match resampling {
        Resampling::Pixels => {
            let layer = Convolution::square3(width * PIXELS.elements());
            let wide = build.convolution(&conv, x, layer);
            let shuffle = Operation::Expand { cell: PIXELS, repeats: 1 };
            build.rearrange(&format!("{name}.shuffle"), shuffle, wide, width)
        }
        Resampling::Convolution => {
            let upsample = Operation::UpsampleNearest { factor: 2, doubles_frames: false };
            let large = build.unary(&format!("{name}.upsample"), upsample, x);
            build.convolution(&conv, large, Convolution::square3(width))
        }
    };
    match shortcut {
        Some(shortcut) => build.add(&format!("{name}.add"), made, shortcut),
        None => made,
    }
}

/// Halves the sides and changes the width.
fn down(
    build: &mut GraphBuilder,
    name: &str,
    x: ValueId,
    width: usize,
    resampling: Resampling,
    has_shortcut: bool,
) -> ValueId {
    let shortcut = has_shortcut.then(|| {
        let mean = build.channels(x) * PIXELS.elements() / width;
        build.rearrange(&format!("{name}.shortcut"), Operation::Collect { cell: PIXELS, mean }, x, width)
    });
    let conv = format!("{name}.conv");
    let made = match resampling {
        Resampling::Pixels => {
            let narrow = build.convolution(&conv, x, Convolution::square3(width / PIXELS.elements()));
            let collect = Operation::Collect { cell: PIXELS, mean: 1 };
            build.rearrange(&format!("{name}.unshuffle"), collect, narrow, width)
        }
        Resampling::Convolution => {
            build.convolution(&conv, x, Convolution { stride: 2, ..Convolution::square3(width) })
        }
    };
    match shortcut {
        Some(shortcut) => build.add(&format!("{name}.add"), made, shortcut),
        None => made,
    }
}

fn block(
    build: &mut GraphBuilder,
    name: &str,
    x: ValueId,
    half: &DcHalf,
    level: usize,
    head: usize,
) -> ValueId {
    match half.blocks[level] {
        DcBlock::ResBlock => resnet(build, name, x, half.activations[level]),
        DcBlock::EfficientVitBlock => {
            let x = attention(build, &format!("{name}.attn"), x, head, &half.scales[level]);
            gated(build, &format!("{name}.conv_out"), x)
        }
    }
}

/// Convolution, activation, convolution, norm, and the input added.
fn resnet(build: &mut GraphBuilder, name: &str, x: ValueId, activation: Activation) -> ValueId {
    let layer = Convolution::square3(build.channels(x));
    let mut h = build.convolution(&format!("{name}.conv1"), x, layer);
    h = build.unary(&format!("{name}.activation"), Operation::Activation(activation), h);
    h = build.convolution(&format!("{name}.conv2"), h, layer.without_bias());
    h = build.rms_norm_with_bias(&format!("{name}.norm"), h, EPSILON);
    build.add(&format!("{name}.add"), x, h)
}

/// Linear attention over queries, keys and values as they are and as a depthwise convolution of each size in `scales` makes
/// them, output projection, norm, and the input added. Heads do not follow the three: each takes 3·`head` channels in a row of
/// all queries, keys and values.
fn attention(build: &mut GraphBuilder, name: &str, x: ValueId, head: usize, scales: &[usize]) -> ValueId {
    let linear = Convolution::pointwise(build.channels(x)).without_bias();
    let own = ["to_q", "to_k", "to_v"].map(|part| build.convolution(&format!("{name}.{part}"), x, linear));
    let mut inputs = own.to_vec();
    for (scale, &kernel) in scales.iter().enumerate() {
        let name = format!("{name}.to_qkv_multiscale.{scale}");
        for (index, value) in own.into_iter().enumerate() {
            let part = Part { index, of: own.len() };
            let depthwise = Grouped { kernel, group: 1, bias: false, part };
            let wide = build.grouped(&format!("{name}.proj_in"), value, depthwise);
            let by_head = Grouped { kernel: 1, group: head, bias: false, part };
            inputs.push(build.grouped(&format!("{name}.proj_out"), wide, by_head));
        }
    }
    let mixed = build.linear_attention(&format!("{name}.attention"), head, &inputs);
    let mut h = build.convolution(&format!("{name}.to_out"), mixed, linear);
    h = build.rms_norm_with_bias(&format!("{name}.norm_out"), h, EPSILON);
    build.add(&format!("{name}.add"), x, h)
}

/// Two depthwise convolutions of a widened input, one multiplied by SiLU of the other, back to the width, norm, and the input
/// added (GLUMBConv).
fn gated(build: &mut GraphBuilder, name: &str, x: ValueId) -> ValueId {
    let width = build.channels(x);
    let [gated, gate] = [0, 1].map(|index| {
        let part = Part { index, of: 2 };
        let layer = Convolution { part, ..Convolution::pointwise(EXPANSION * width) };
        let mut h = build.convolution(&format!("{name}.conv_inverted"), x, layer);
        h = build.silu(&format!("{name}.conv_inverted.silu.{index}"), h);
        build.grouped(&format!("{name}.conv_depth"), h, Grouped { kernel: 3, group: 1, bias: true, part })
    });
    let gate = build.silu(&format!("{name}.gate"), gate);
    let mut h = build.multiply(&format!("{name}.multiply"), gated, gate);
    h = build.convolution(&format!("{name}.conv_point"), h, Convolution::pointwise(width).without_bias());
    h = build.rms_norm_with_bias(&format!("{name}.norm"), h, EPSILON);
    build.add(&format!("{name}.add"), x, h)
}
