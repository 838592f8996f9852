//! Finds out from the tensors alone what a checkpoint is, for files without a config.json.
//!
//! Everything that shapes tell is taken from them. What they cannot tell is chosen so:
//! - GroupNorm groups: 32 where it divides every width, otherwise the greatest common divisor of 32 and all widths.
//! - Scaling of 4 latent channels: 0.18215 (Stable Diffusion 1 and 2); SDXL's autoencoder has the same shapes. Of 16
//!   channels: 0.3611 with shift 0.1159 (Flux.1); that of Stable Diffusion 3 (1.5305, 0.0609) has the same shapes. Of any
//!   other number: 0.18215, diffusers' default. Where the file is a whole checkpoint, its other parts tell SDXL and
//!   Stable Diffusion 3 apart.
//!
//! Autoencoders of other kinds are recognised and refused by name.

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::config::{
    Family, KlConfig, MAX_CHANNELS, MAX_LATENT_CHANNELS, MAX_LAYERS, MAX_LEVELS, TinyConfig, VaeConfig,
};
use crate::detect_dc;
use crate::detect_video;
use crate::detect_wan;
use crate::header::tensor_error;
use crate::names::{Half, Names, TinyLayer, TinyNames, tiny_layers};

/// Finds the naming of a checkpoint and refuses what is of no architecture that is run.
///
/// # Errors
/// [`ModelError::Unsupported`], with the kind's name where it is known.
pub(crate) fn recognise(checkpoint: &Checkpoint) -> Result<Names, ModelError> {
    let names = Names::detect(checkpoint);
    let refused = match &names {
        Some(Names::Kl(names)) => other_with_flat_layers(checkpoint, &names.prefix),
        Some(Names::Tiny(names)) => tiny_video(checkpoint, names),
        Some(Names::HunyuanVideo(_) | Names::Wan(_) | Names::Dc(_)) => None,
        None => other(checkpoint),
    };
    if let Some(kind) = refused {
        let label = checkpoint.label();
        return Err(ModelError::Unsupported(format!(
            "{label}: this is {kind}, which this version does not run"
        )));
    }
    names.ok_or_else(|| {
        ModelError::Unsupported(format!(
            "{}: no autoencoder found in its {} tensors (expected names such as `decoder.conv_in.weight` or \
             `decoder.layers.0.weight`, with any prefix)",
            checkpoint.label(),
            checkpoint.names().count()
        ))
    })
}

/// The config of a recognised checkpoint.
///
/// # Errors
/// [`ModelError::Tensor`] and [`ModelError::Unsupported`] when the shapes do not make an autoencoder.
pub(crate) fn config(checkpoint: &Checkpoint, names: &Names) -> Result<VaeConfig, ModelError> {
    match names {
        Names::Kl(own) => {
            let mut config = kl_config(&Finder { checkpoint, names })?;
            config.batch_norm_eps = own.batch_norm.then_some(1e-4);
            Ok(VaeConfig::Kl(config))
        }
        Names::Tiny(tiny) => tiny_config(checkpoint, tiny).map(VaeConfig::Tiny),
        Names::HunyuanVideo(_) => {
            detect_video::hunyuan_config(checkpoint, names).map(VaeConfig::HunyuanVideo)
        }
        Names::Wan(own) => detect_wan::config(checkpoint, own).map(VaeConfig::Wan),
        Names::Dc(own) => detect_dc::config(checkpoint, own).map(VaeConfig::Dc),
    }
}

/// Whether the blocks at the smallest size of a tiny model have a pooling branch; no config.json says so.
pub(crate) fn has_pool(checkpoint: &Checkpoint, names: &TinyNames) -> bool {
    [Half::Decoder, Half::Encoder].into_iter().filter_map(|half| names.half(half)).any(|sequence| {
        tiny_layers(checkpoint, &sequence.prefix)
            .values()
            .any(|layer| matches!(layer, TinyLayer::Block { pool: true, .. }))
    })
}

fn other_with_flat_layers(checkpoint: &Checkpoint, prefix: &str) -> Option<&'static str> {
    let mut names = checkpoint.names_under(prefix).map(|name| &name[prefix.len()..]);
    names.find_map(|name| match name {
        "quantize.embedding.weight" => Some("a VQ autoencoder (VQModel)"),
        _ if name.contains(".time_stack.")
            || name.contains(".time_mix_conv.")
            || name.contains(".spatial_res_block.") =>
        {
            Some("a Stable Video Diffusion VAE (AutoencoderKLTemporalDecoder)")
        }
        _ if name.starts_with("decoder.condition_encoder.") => {
            Some("an asymmetric VAE (AsymmetricAutoencoderKL)")
        }
        _ if name.starts_with("decoder_unet.") => Some("a consistency decoder (ConsistencyDecoderVAE)"),
        _ => None,
    })
}

fn tiny_video(checkpoint: &Checkpoint, names: &TinyNames) -> Option<&'static str> {
    let halves = [Half::Decoder, Half::Encoder].into_iter().filter_map(|half| names.half(half));
    let mut layers = halves.flat_map(|sequence| tiny_layers(checkpoint, &sequence.prefix).into_values());
    let differs = |layer: &TinyLayer| match layer {
        TinyLayer::Block { shape, .. } => shape[0] != shape[1],
        TinyLayer::Convolution { .. } => false,
        TinyLayer::Unknown => true,
    };
    layers
        .any(|layer| differs(&layer))
        .then_some("a tiny autoencoder of another kind (perhaps for video, TAEHV)")
}

fn other(checkpoint: &Checkpoint) -> Option<&'static str> {
    let any = |part: &str| checkpoint.names().any(|name| name.contains(part));
    let rank = |suffix: &str| {
        let name = checkpoint.names().find(|name| name.ends_with(suffix))?;
        checkpoint.shape(name).map(<[usize]>::len)
    };
    if rank("decoder.conv_in.conv.weight") == Some(5) || rank("encoder.conv_in.conv.weight") == Some(5) {
        return Some(if any(".norm1.norm_layer.") || any(".conv_y.") {
            "a CogVideoX VAE"
        } else if any("timestep_scale_multiplier") || any("latents_mean") || any("per_channel_statistics") {
            "an LTX-Video VAE"
        } else if any(".gamma") {
            "a HunyuanVideo 1.5 VAE"
        } else {
            "a video VAE of causal 3-D convolutions"
        });
    }
    if any("decoder.conv_t1.weight_g") || any("decoder.block.0.conv_t1") || any("decoder.layers.0.weight_g") {
        return Some("an audio autoencoder (AutoencoderOobleck)");
    }
    if any(".op_list.") {
        return Some(
            "a deep-compression autoencoder (AutoencoderDC) with the tensor names of its original program",
        );
    }
    if any("lora_up.weight") || any("lora_A.weight") {
        return Some("a LoRA, not a VAE");
    }
    if any("diffusion_model.")
        || any("double_blocks.")
        || any("transformer_blocks.")
        || any("down_blocks.0.attentions.")
    {
        return Some("a diffusion model without a VAE in it");
    }
    None
}

/// Looks up shapes by diffusers' names.
struct Finder<'a> {
    checkpoint: &'a Checkpoint,
    names: &'a Names,
}

impl Finder<'_> {
    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let name = self.names.find(self.checkpoint, name)?;
        self.checkpoint.shape(&name).map(<[usize]>::to_vec)
    }

    fn has(&self, name: &str) -> bool {
        self.names.find(self.checkpoint, name).is_some()
    }

    /// One side of a tensor, within 1..=most.
    fn side(&self, name: &str, axis: usize, most: usize) -> Result<usize, ModelError> {
        let shape = self.shape(name).ok_or_else(|| tensor_error(name, "it is absent".into()))?;
        shape.get(axis).copied().filter(|side| (1..=most).contains(side)).ok_or_else(|| {
            tensor_error(name, format!("its shape is {shape:?}, expected side {axis} to be from 1 to {most}"))
        })
    }

    /// Widths of the levels of a half, in its own order, and which of them have attention.
    fn levels(&self, half: Half) -> Result<(Vec<usize>, Vec<bool>), ModelError> {
        let blocks = match half {
            Half::Decoder => "decoder.up_blocks",
            Half::Encoder => "encoder.down_blocks",
        };
        let (mut widths, mut attention) = (Vec::new(), Vec::new());
        while widths.len() < MAX_LEVELS
            && self.has(&format!("{blocks}.{}.resnets.0.conv1.weight", widths.len()))
        {
            let block = format!("{blocks}.{}", widths.len());
            widths.push(self.side(&format!("{block}.resnets.0.conv1.weight"), 0, MAX_CHANNELS)?);
            attention.push(self.has(&format!("{block}.attentions.0.to_q.weight")));
        }
        if widths.is_empty() {
            return Err(tensor_error(&format!("{blocks}.0.resnets.0.conv1.weight"), "it is absent".into()));
        }
        Ok((widths, attention))
    }

    fn layers(&self, block: &str) -> usize {
        (0..=MAX_LAYERS)
            .take_while(|layer| self.has(&format!("{block}.resnets.{layer}.conv1.weight")))
            .count()
    }
}

fn kl_config(finder: &Finder<'_>) -> Result<KlConfig, ModelError> {
    let names = finder.names;
    let (has_decoder, has_encoder) = (names.has(Half::Decoder), names.has(Half::Encoder));
    let decoder = if has_decoder { Some(finder.levels(Half::Decoder)?) } else { None };
    let encoder = if has_encoder { Some(finder.levels(Half::Encoder)?) } else { None };
    let decoder_widths = decoder.as_ref().map(|(widths, _)| widths.iter().rev().copied().collect::<Vec<_>>());
    let encoder_widths = encoder.as_ref().map(|(widths, _)| widths.clone());
    let Some(block_out_channels) = encoder_widths.clone().or_else(|| decoder_widths.clone()) else {
        return Err(ModelError::Unsupported("neither encoder nor decoder found".into()));
    };
    let levels = block_out_channels.len();
    if let Some(widths) = &decoder_widths
        && widths.len() != levels
    {
        return Err(ModelError::Unsupported(format!(
            "the encoder has {levels} levels and the decoder {}; they should have as many",
            widths.len()
        )));
    }
    let latent_channels = if has_decoder {
        finder.side("decoder.conv_in.weight", 1, MAX_LATENT_CHANNELS)?
    } else {
        finder.side("encoder.conv_out.weight", 0, 2 * MAX_LATENT_CHANNELS)?.div_ceil(2)
    };
    let layers = if has_encoder {
        finder.layers("encoder.down_blocks.0")
    } else {
        finder.layers("decoder.up_blocks.0").saturating_sub(1)
    };
    let widths = || block_out_channels.iter().chain(decoder_widths.iter().flatten());
    let (scaling_factor, shift_factor) = scaling(finder.checkpoint, latent_channels);
    let half = if has_decoder { "decoder" } else { "encoder" };
    Ok(KlConfig {
        in_channels: if has_encoder { finder.side("encoder.conv_in.weight", 1, MAX_CHANNELS)? } else { 3 },
        out_channels: if has_decoder { finder.side("decoder.conv_out.weight", 0, MAX_CHANNELS)? } else { 3 },
        latent_channels,
        down_block_attention: encoder.map_or(vec![false; levels], |(_, attention)| attention),
        up_block_attention: decoder.map_or(vec![false; levels], |(_, attention)| attention),
        layers_per_block: layers.clamp(1, MAX_LAYERS),
        norm_num_groups: widths().fold(32, |groups, &width| greatest_common_divisor(groups, width)),
        use_quant_conv: finder.has("quant_conv.weight"),
        use_post_quant_conv: finder.has("post_quant_conv.weight"),
        mid_block_add_attention: finder.has(&format!("{half}.mid_block.attentions.0.to_q.weight")),
        sample_size: 512,
        scaling_factor,
        shift_factor,
        latents_mean: None,
        latents_std: None,
        batch_norm_eps: None,
        decoder_block_out_channels: decoder_widths.filter(|widths| *widths != block_out_channels),
        block_out_channels,
    })
}

fn scaling(checkpoint: &Checkpoint, latent_channels: usize) -> (f64, Option<f64>) {
    let has = |prefix: &str| checkpoint.names_under(prefix).next().is_some();
    match latent_channels {
        4 if has("conditioner.embedders.1.") => (0.13025, None),
        16 if has("model.diffusion_model.joint_blocks.") => (1.5305, Some(0.0609)),
        16 => (0.3611, Some(0.1159)),
        _ => (0.18215, None),
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

fn tiny_config(checkpoint: &Checkpoint, names: &TinyNames) -> Result<TinyConfig, ModelError> {
    let decoder = names.half(Half::Decoder).map(|sequence| tiny_stages(checkpoint, &sequence.prefix, true));
    let encoder = names.half(Half::Encoder).map(|sequence| tiny_stages(checkpoint, &sequence.prefix, false));
    let (decoder, encoder) = (decoder.transpose()?, encoder.transpose()?);
    let Some(either) = decoder.as_ref().or(encoder.as_ref()) else {
        return Err(ModelError::Unsupported("neither encoder nor decoder found".into()));
    };
    let stages = either.widths.len();
    let blocks = |ends_with_one: bool| {
        let mut blocks = vec![3; stages];
        blocks[if ends_with_one { stages - 1 } else { 0 }] = 1;
        blocks
    };
    let absent = |ends_with_one| (vec![64; stages], blocks(ends_with_one));
    let (decoder_block_out_channels, num_decoder_blocks) =
        decoder.as_ref().map_or_else(|| absent(true), |half| (half.widths.clone(), half.blocks.clone()));
    let (encoder_block_out_channels, num_encoder_blocks) =
        encoder.as_ref().map_or_else(|| absent(false), |half| (half.widths.clone(), half.blocks.clone()));
    let latent_channels = match (&decoder, &encoder) {
        (Some(decoder), _) => decoder.input,
        (None, Some(encoder)) => encoder.output,
        (None, None) => 4,
    };
    let pixels = [decoder.as_ref().map(|half| half.output), encoder.as_ref().map(|half| half.input)];
    if pixels.iter().flatten().any(|&channels| channels != 3) || latent_channels > MAX_LATENT_CHANNELS {
        return Err(unknown_tiny(checkpoint));
    }
    Ok(TinyConfig {
        in_channels: 3,
        out_channels: 3,
        latent_channels,
        encoder_block_out_channels,
        decoder_block_out_channels,
        num_encoder_blocks,
        num_decoder_blocks,
        upsampling_scaling_factor: 2,
        midblock_pool: has_pool(checkpoint, names),
    })
}

/// What the layers of one half of a tiny model tell.
struct TinyStages {
    input: usize,
    output: usize,
    widths: Vec<usize>,
    blocks: Vec<usize>,
}

/// Reads a sequence: a convolution, then blocks; each further convolution begins a stage, the last one is the output.
/// The decoder has a layer without weights (activation, upsampling) before its blocks and before each convolution that
/// begins a stage; nothing else may be missing.
fn tiny_stages(checkpoint: &Checkpoint, prefix: &str, is_decoder: bool) -> Result<TinyStages, ModelError> {
    let layers = tiny_layers(checkpoint, prefix);
    let count = layers.len();
    let mut stages = TinyStages { input: 0, output: 0, widths: Vec::new(), blocks: Vec::new() };
    let mut expected = layers.keys().next().copied().unwrap_or(0);
    for (position, (&number, layer)) in layers.iter().enumerate() {
        let (first, last) = (position == 0, position + 1 == count);
        let is_stage_convolution = !first && !last && matches!(layer, TinyLayer::Convolution { .. });
        let gap = is_decoder && (is_stage_convolution || position == 1);
        if number != expected + usize::from(gap) {
            return Err(unknown_tiny(checkpoint));
        }
        expected = number + 1;
        match layer {
            TinyLayer::Convolution { shape, .. }
                if shape[0] == 0 || shape[0].max(shape[1]) > MAX_CHANNELS =>
            {
                return Err(unknown_tiny(checkpoint));
            }
            TinyLayer::Convolution { shape, bias: true } if first => {
                stages.input = shape[1];
                stages.widths.push(shape[0]);
                stages.blocks.push(0);
            }
            TinyLayer::Convolution { shape, bias: true } if last => stages.output = shape[0],
            TinyLayer::Convolution { shape, bias: false } if !first && !last => {
                stages.widths.push(shape[0]);
                stages.blocks.push(0);
            }
            TinyLayer::Block { .. } if !first && !last => {
                let blocks = stages.blocks.len() - 1;
                stages.blocks[blocks] += 1;
            }
            _ => return Err(unknown_tiny(checkpoint)),
        }
    }
    let bounded =
        stages.widths.len() <= MAX_LEVELS && stages.blocks.iter().all(|&blocks| blocks <= MAX_LAYERS);
    if count < 2 || stages.input == 0 || !bounded {
        return Err(unknown_tiny(checkpoint));
    }
    Ok(stages)
}

fn unknown_tiny(checkpoint: &Checkpoint) -> ModelError {
    ModelError::Unsupported(format!(
        "{}: this is a tiny autoencoder of an unknown layout, which this version does not run; its {} names do not \
         make the sequence of convolutions and blocks that AutoencoderTiny has",
        checkpoint.label(),
        checkpoint.names().count()
    ))
}

/// The error for a config.json whose class is not what the tensors are.
pub(crate) fn family_mismatch(checkpoint: &Checkpoint, stated: Family, found: Family) -> ModelError {
    ModelError::Unsupported(format!(
        "config.json says {}, but {} holds the tensors of an {}",
        stated.name(),
        checkpoint.label(),
        found.name()
    ))
}
