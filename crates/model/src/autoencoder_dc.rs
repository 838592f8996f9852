//! `AutoencoderDC`, the deep-compression autoencoder of Sana (Chen et al., 2024): sides by 32 or more, residual paths beside
//! every change of size (pixels to channels with means, channels to pixels with repeats), and at the small sizes blocks of
//! EfficientViT: linear attention over several scales, then a gated convolution. Its encoder is deterministic.

use crate::builder::{Convolution, GraphBuilder, Grouped};
use crate::config_dc::{DcBlock, DcConfig, DcHalf, DcNorm, Resampling};
use crate::graph::{Activation, Cell, Graph, Operation, Part, ValueId};

/// Of every RMS norm.
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
    let repeat = Operation::Expand { cell: POSITION, repeats: width / config.latent_channels };
    let repeat = config.decoder_in_shortcut.then_some(repeat);
    let mut x = beside(&mut build, "decoder.in_shortcut", repeat, latents, width, |build| {
        build.convolution("decoder.conv_in", latents, Convolution::square3(width))
    });
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
    let collect = Operation::Collect { cell: POSITION, mean: build.channels(x) / config.latent_channels };
    let collect = config.encoder_out_shortcut.then_some(collect);
    let latents = beside(&mut build, "encoder.out_shortcut", collect, x, config.latent_channels, |build| {
        build.convolution("encoder.conv_out", x, Convolution::square3(config.latent_channels))
    });
    build.finish(latents)
}

/// What `make` makes, with `width` channels, and the input rearranged to the same shape added, where there is such a path.
fn beside(
    build: &mut GraphBuilder,
    name: &str,
    path: Option<Operation>,
    x: ValueId,
    width: usize,
    make: impl FnOnce(&mut GraphBuilder) -> ValueId,
) -> ValueId {
    let path = path.map(|operation| build.rearrange(name, operation, x, width));
    let made = make(build);
    match path {
        Some(path) => build.add(&format!("{name}.add"), made, path),
        None => made,
    }
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
    let repeats = width * PIXELS.elements() / build.channels(x);
    let path = has_shortcut.then_some(Operation::Expand { cell: PIXELS, repeats });
    let conv = format!("{name}.conv");
    beside(build, &format!("{name}.shortcut"), path, x, width, |build| match resampling {
        Resampling::Pixels => {
            let wide = build.convolution(&conv, x, Convolution::square3(width * PIXELS.elements()));
            let shuffle = Operation::Expand { cell: PIXELS, repeats: 1 };
            build.rearrange(&format!("{name}.shuffle"), shuffle, wide, width)
        }
        Resampling::Convolution => {
            let upsample = Operation::UpsampleNearest { factor: 2, doubles_frames: false };
            let large = build.unary(&format!("{name}.upsample"), upsample, x);
            build.convolution(&conv, large, Convolution::square3(width))
        }
    })
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
    let mean = build.channels(x) * PIXELS.elements() / width;
    let path = has_shortcut.then_some(Operation::Collect { cell: PIXELS, mean });
    let conv = format!("{name}.conv");
    beside(build, &format!("{name}.shortcut"), path, x, width, |build| match resampling {
        Resampling::Pixels => {
            let narrow = build.convolution(&conv, x, Convolution::square3(width / PIXELS.elements()));
            let collect = Operation::Collect { cell: PIXELS, mean: 1 };
            build.rearrange(&format!("{name}.unshuffle"), collect, narrow, width)
        }
        Resampling::Convolution => {
            build.convolution(&conv, x, Convolution { stride: 2, ..Convolution::square3(width) })
        }
    })
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
        DcBlock::ResBlock => resnet(build, name, x, half.activations[level], half.norms[level]),
        DcBlock::EfficientVitBlock => {
            let (scales, norm) = (&half.scales[level], half.norms[level]);
            let x = attention(build, &format!("{name}.attn"), x, head, scales, norm);
            gated(build, &format!("{name}.conv_out"), x)
        }
    }
}

/// Convolution, activation, convolution, norm, and the input added.
fn resnet(build: &mut GraphBuilder, name: &str, x: ValueId, activation: Activation, norm: DcNorm) -> ValueId {
    let layer = Convolution::square3(build.channels(x));
    let mut h = build.convolution(&format!("{name}.conv1"), x, layer);
    h = build.unary(&format!("{name}.activation"), Operation::Activation(activation), h);
    h = normed(build, [&format!("{name}.conv2"), &format!("{name}.norm")], h, layer, norm);
    build.add(&format!("{name}.add"), x, h)
}

/// A convolution without a bias, and a norm.
fn normed(
    build: &mut GraphBuilder,
    [conv, name]: [&str; 2],
    x: ValueId,
    layer: Convolution,
    norm: DcNorm,
) -> ValueId {
    match norm {
        DcNorm::Rms => {
            let h = build.convolution(conv, x, layer.without_bias());
            build.rms_norm_with_bias(name, h, EPSILON)
        }
        DcNorm::Batch => build.convolution_and_batch_norm(conv, name, x, layer),
    }
}

/// Linear attention over queries, keys and values as they are and as a depthwise convolution of each size in `scales` makes
/// them, output projection, norm, and the input added. Heads do not follow the three: each takes 3·`head` channels in a row of
/// all queries, keys and values.
fn attention(
    build: &mut GraphBuilder,
    name: &str,
    x: ValueId,
    head: usize,
    scales: &[usize],
    norm: DcNorm,
) -> ValueId {
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
    let h = normed(build, [&format!("{name}.to_out"), &format!("{name}.norm_out")], mixed, linear, norm);
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
