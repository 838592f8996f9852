//! Finds out from the tensors alone what a video checkpoint is; what shapes cannot tell is HunyuanVideo's own: 32 groups
//! (or what divides them and all widths), sides by 8, frames by 4, scaling 0.476986. See [`crate::detect`] for pictures.

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::config::{MAX_CHANNELS, MAX_LAYERS, MAX_LEVELS};
use crate::config_video::HunyuanVideoConfig;
use crate::header::tensor_error;
use crate::names::{Half, KlNames, KlStyle, Names};

/// The naming of a HunyuanVideo checkpoint, diffusers' (which is Tencent's) or ComfyUI's, if it is one.
pub(crate) fn hunyuan_names(checkpoint: &Checkpoint) -> Option<KlNames> {
    let anchors = ["decoder.conv_in.conv.weight", "encoder.conv_in.conv.weight"];
    let prefix = checkpoint.names().find_map(|name| {
        let prefix = anchors.iter().find_map(|anchor| name.strip_suffix(anchor))?;
        let usable = prefix.is_empty() || prefix.ends_with('.');
        (usable && checkpoint.shape(name).is_some_and(|shape| shape.len() == 5)).then(|| prefix.to_owned())
    })?;
    let has = |name: &str| checkpoint.shape(&format!("{prefix}{name}")).is_some();
    // ComfyUI renames the tensors to those of its LDM autoencoder with convolutions in three dimensions.
    let levels =
        (0..MAX_LEVELS).take_while(|level| has(&format!("decoder.up.{level}.block.0.norm1.weight"))).count();
    let is_ldm = levels > 0 || has("encoder.down.0.block.0.norm1.weight");
    let (style, norm_out, middle) = if is_ldm {
        (KlStyle::Ldm { levels }, "norm_out", "mid.block_1")
    } else {
        (KlStyle::Diffusers, "conv_norm_out", "mid_block.resnets.0")
    };
    let halves = ["decoder", "encoder"].map(|half| {
        has(&format!("{half}.conv_in.conv.weight"))
            && has(&format!("{half}.{norm_out}.weight"))
            && has(&format!("{half}.{middle}.norm1.weight"))
    });
    halves.contains(&true).then_some(KlNames { prefix, style, halves, batch_norm: false })
}

/// The config of a recognised HunyuanVideo checkpoint.
///
/// # Errors
/// [`ModelError::Tensor`] when the shapes do not make one.
pub(crate) fn hunyuan_config(
    checkpoint: &Checkpoint,
    names: &Names,
) -> Result<HunyuanVideoConfig, ModelError> {
    let shape = |name: &str| {
        let name = names.find(checkpoint, name)?;
        checkpoint.shape(&name).map(<[usize]>::to_vec)
    };
    let side = |name: &str, axis: usize| {
        let side = shape(name).and_then(|shape| shape.get(axis).copied());
        side.filter(|side| (1..=2 * MAX_CHANNELS).contains(side))
            .ok_or_else(|| tensor_error(name, format!("it is absent or its side {axis} is out of bounds")))
    };
    let (has_decoder, has_encoder) = (names.has(Half::Decoder), names.has(Half::Encoder));
    let (half, blocks) =
        if has_decoder { ("decoder", "decoder.up_blocks") } else { ("encoder", "encoder.down_blocks") };
    let width = |level: usize| format!("{blocks}.{level}.resnets.0.conv1.conv.weight");
    let mut block_out_channels = (0..MAX_LEVELS)
        .take_while(|level| shape(&width(*level)).is_some())
        .map(|level| side(&width(level), 0))
        .collect::<Result<Vec<usize>, _>>()?;
    if has_decoder {
        block_out_channels.reverse();
    }
    if block_out_channels.len() < 3 {
        return Err(tensor_error(
            &width(block_out_channels.len()),
            "it is absent; expected three levels".into(),
        ));
    }
    let layer = |layer: usize| format!("{blocks}.0.resnets.{layer}.conv1.conv.weight");
    let layers = (0..=MAX_LAYERS).take_while(|index| shape(&layer(*index)).is_some()).count();
    Ok(HunyuanVideoConfig {
        in_channels: if has_encoder { side("encoder.conv_in.conv.weight", 1)? } else { 3 },
        out_channels: if has_decoder { side("decoder.conv_out.conv.weight", 0)? } else { 3 },
        latent_channels: if has_decoder {
            side("decoder.conv_in.conv.weight", 1)?
        } else {
            side("encoder.conv_out.conv.weight", 0)?.div_ceil(2)
        },
        layers_per_block: if has_decoder { layers.saturating_sub(1) } else { layers }.clamp(1, MAX_LAYERS),
        norm_num_groups: block_out_channels.iter().fold(32, |groups, width| divisor(groups, *width)),
        mid_block_add_attention: shape(&format!("{half}.mid_block.attentions.0.to_q.weight")).is_some(),
        spatial_compression_ratio: 1 << (block_out_channels.len() - 1).min(3),
        temporal_compression_ratio: 4,
        scaling_factor: 0.476986,
        block_out_channels,
    })
}

fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}
