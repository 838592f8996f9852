//! Finds out from the tensors alone whether a checkpoint is of Wan's or Qwen-Image's kind, how it names its tensors, and
//! its config. What tensors cannot tell: mean and deviation of the latents, which are Wan 2.1's for 16 and Wan 2.2's for
//! 48 channels; and which of the two families it is: without a config.json it is Wan.
//!
//! Two namings are known: diffusers', and the original one, which ComfyUI's files have too.

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::config::{MAX_CHANNELS, MAX_LATENT_CHANNELS, MAX_LAYERS, MAX_LEVELS};
use crate::config_wan::{WanConfig, check_widths, statistics};
use crate::header::tensor_error;

/// How a checkpoint of this kind names its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WanNames {
    pub prefix: String,
    pub style: WanStyle,
    pub halves: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WanStyle {
    Diffusers,
    Original {
        /// ResNets of a level of the encoder.
        resnets: usize,
        /// Whether each level numbers its own layers (Wan 2.2), or all levels together.
        nested: bool,
    },
}

/// Diffusers' names of what stands outside the levels, and the original ones.
const OUTSIDE: [(&str, &str); 6] = [
    ("conv_in.", "conv1."),
    ("norm_out.", "head.0."),
    ("conv_out.", "head.2."),
    ("mid_block.resnets.0.", "middle.0."),
    ("mid_block.attentions.0.", "middle.1."),
    ("mid_block.resnets.1.", "middle.2."),
];

/// Diffusers' names of a ResNet's layers, and the original ones.
const LAYERS: [(&str, &str); 5] = [
    ("norm1.", "residual.0."),
    ("conv1.", "residual.2."),
    ("norm2.", "residual.3."),
    ("conv2.", "residual.6."),
    ("conv_shortcut.", "shortcut."),
];

/// What marks a half, by naming.
const ANCHORS: [[&str; 2]; 2] = [
    ["decoder.mid_block.attentions.0.norm.gamma", "encoder.mid_block.attentions.0.norm.gamma"],
    ["decoder.middle.1.norm.gamma", "encoder.middle.1.norm.gamma"],
];

/// The first convolution of each half, by naming.
const FIRSTS: [[&str; 2]; 2] =
    [["decoder.conv_in.weight", "encoder.conv_in.weight"], ["decoder.conv1.weight", "encoder.conv1.weight"]];

impl WanNames {
    /// The naming of a checkpoint, if it is of this kind.
    pub(crate) fn detect(checkpoint: &Checkpoint) -> Option<WanNames> {
        let (naming, prefix) = (0..ANCHORS.len()).find_map(|naming| {
            let prefixes = checkpoint
                .names()
                .filter_map(|name| ANCHORS[naming].iter().find_map(|anchor| name.strip_suffix(anchor)))
                .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
            Some((naming, prefixes.min_by_key(|prefix| prefix.len())?.to_owned()))
        })?;
        let halves = [0, 1].map(|half| {
            let shape = |name: &str| checkpoint.shape(&format!("{prefix}{name}"));
            shape(ANCHORS[naming][half]).is_some()
                && shape(FIRSTS[naming][half]).is_some_and(|shape| shape.len() == 5)
        });
        let style = if naming == 0 { WanStyle::Diffusers } else { original_style(checkpoint, &prefix)? };
        halves.contains(&true).then_some(WanNames { prefix, style, halves })
    }

    /// The name in the file of a tensor that diffusers calls `name`.
    pub(crate) fn candidate(&self, name: &str) -> String {
        match self.style {
            WanStyle::Diffusers => format!("{}{name}", self.prefix),
            WanStyle::Original { resnets, nested } => {
                format!("{}{}", self.prefix, original(name, resnets, nested))
            }
        }
    }

    /// Whether a tensor belongs to the autoencoder, and not to something else that is in the same file.
    pub(crate) fn is_own(&self, name: &str) -> bool {
        let own: &[&str] = match self.style {
            WanStyle::Diffusers => &["decoder.", "encoder.", "quant_conv.", "post_quant_conv."],
            WanStyle::Original { .. } => &["decoder.", "encoder.", "conv1.", "conv2."],
        };
        name.strip_prefix(&self.prefix).is_some_and(|rest| own.iter().any(|own| rest.starts_with(own)))
    }
}

/// How the original naming numbers its layers: the first level ends with what changes the sides.
fn original_style(checkpoint: &Checkpoint, prefix: &str) -> Option<WanStyle> {
    let places = [
        ("decoder.upsamples.0.upsamples.", 1, true),
        ("encoder.downsamples.0.downsamples.", 0, true),
        ("decoder.upsamples.", 1, false),
        ("encoder.downsamples.", 0, false),
    ];
    places.into_iter().find_map(|(list, more, nested)| {
        let last = (1..=MAX_LAYERS + 1)
            .find(|layer| checkpoint.shape(&format!("{prefix}{list}{layer}.resample.1.weight")).is_some())?;
        Some(WanStyle::Original { resnets: last - more, nested })
    })
}

/// The original name of a tensor.
fn original(name: &str, resnets: usize, nested: bool) -> String {
    let renamed = |pairs: &[(&str, &str)], text: &str| {
        pairs.iter().find_map(|(from, to)| text.strip_prefix(from).map(|rest| format!("{to}{rest}")))
    };
    let layer = |text: &str| renamed(&LAYERS, text).unwrap_or_else(|| text.to_owned());
    if let Some(outermost) = renamed(&[("quant_conv.", "conv1."), ("post_quant_conv.", "conv2.")], name) {
        return outermost;
    }
    let Some((half, rest)) = name.split_once('.') else { return name.to_owned() };
    if let Some((from, to)) = OUTSIDE.iter().find(|(from, _)| rest.starts_with(from)) {
        return format!("{half}.{to}{}", layer(&rest[from.len()..]));
    }
    let mut parts = rest.splitn(3, '.').skip(1);
    let (Some(level), Some(tail)) = (parts.next(), parts.next()) else { return name.to_owned() };
    let (list, resnets) =
        if half == "decoder" { ("upsamples", resnets + 1) } else { ("downsamples", resnets) };
    let changes_size = ["upsamplers.0.", "upsampler.", "downsampler."];
    let place = match tail.strip_prefix("resnets.").and_then(|rest| rest.split_once('.')) {
        Some((index, tail)) => index.parse().ok().map(|index: usize| (index, tail)),
        None => changes_size.iter().find_map(|from| tail.strip_prefix(from)).map(|tail| (resnets, tail)),
    };
    match (place, level.parse::<usize>()) {
        (Some((index, tail)), _) if nested => format!("{half}.{list}.{level}.{list}.{index}.{}", layer(tail)),
        (Some((index, tail)), Ok(level)) => {
            format!("{half}.{list}.{}.{}", level * (resnets + 1) + index, layer(tail))
        }
        _ => format!("{half}.{list}.{level}.{}", layer(tail)),
    }
}

/// The config of a recognised checkpoint.
///
/// # Errors
/// [`ModelError::Tensor`] or [`ModelError::Unsupported`] when the shapes do not make one.
pub(crate) fn config(checkpoint: &Checkpoint, names: &WanNames) -> Result<WanConfig, ModelError> {
    let finder = Finder { checkpoint, names };
    let [has_decoder, has_encoder] = names.halves;
    let is_residual = finder.is_residual();
    let (resnets, decoder, encoder) = finder.levels(is_residual);
    let widths = if has_encoder { &encoder } else { &decoder };
    if widths.len() < 2 || [&decoder, &encoder].iter().any(|own| !own.is_empty() && own.len() != widths.len())
    {
        return Err(tensor_error(
            "decoder.up_blocks",
            "the levels of the halves differ or are too few".into(),
        ));
    }
    let base_dim = if has_encoder { finder.side("encoder.conv_in.weight", 0)? } else { widths[0] };
    let dim_mult: Vec<usize> = widths.iter().map(|width| (width / base_dim).max(1)).collect();
    let decoder_base_dim = decoder.first().map_or(base_dim, |width| (width / dim_mult[0]).max(1));
    let z_dim = if has_decoder {
        finder.side("decoder.conv_in.weight", 1)?
    } else {
        finder.side("encoder.conv_out.weight", 0)?.div_ceil(2)
    };
    let Some([latents_mean, latents_std]) = statistics(z_dim) else {
        return Err(ModelError::Unsupported(format!(
            "{}: the mean and deviation of latents of {z_dim} channels are not known (expected 16 or 48, or a config.json \
             with `latents_mean` and `latents_std`)",
            checkpoint.label()
        )));
    };
    let (first, last) = ("encoder.conv_in.weight", "decoder.conv_out.weight");
    let channels = |here: bool, name: &str, axis| here.then(|| finder.side(name, axis)).transpose();
    let (read, made) = (channels(has_encoder, first, 1)?, channels(has_decoder, last, 0)?);
    let channels = read.or(made).unwrap_or(3);
    let config = WanConfig {
        in_channels: read.unwrap_or(channels),
        out_channels: made.unwrap_or(channels),
        base_dim,
        decoder_base_dim,
        z_dim,
        num_res_blocks: resnets.clamp(1, MAX_LAYERS),
        temperal_downsample: finder.halvings(is_residual, resnets, dim_mult.len()),
        dim_mult,
        is_residual,
        patch_size: (1..=8).find(|side| 3 * side * side == channels).unwrap_or(1),
        latents_mean,
        latents_std,
    };
    check_widths(&config)?;
    Ok(config)
}

/// Looks up shapes by diffusers' names.
struct Finder<'a> {
    checkpoint: &'a Checkpoint,
    names: &'a WanNames,
}

impl Finder<'_> {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.checkpoint.shape(&self.names.candidate(name))
    }

    fn side(&self, name: &str, axis: usize) -> Result<usize, ModelError> {
        let side = self.shape(name).and_then(|shape| shape.get(axis).copied());
        side.filter(|side| (1..=2 * MAX_LATENT_CHANNELS.max(MAX_CHANNELS)).contains(side))
            .ok_or_else(|| tensor_error(name, format!("it is absent or its side {axis} is out of bounds")))
    }

    fn is_residual(&self) -> bool {
        match self.names.style {
            WanStyle::Original { nested, .. } => nested,
            WanStyle::Diffusers => {
                ["decoder.up_blocks.0.upsampler.", "encoder.down_blocks.0.resnets.0."].iter().any(|part| {
                    let part = format!("{}{part}", self.names.prefix);
                    self.checkpoint.names_under(&part).next().is_some()
                })
            }
        }
    }

    /// ResNets of a level of the encoder, and the widths of both halves' levels, from the largest pictures to the smallest.
    fn levels(&self, is_residual: bool) -> (usize, Vec<usize>, Vec<usize>) {
        let width = |name: String| self.shape(&format!("{name}.conv1.weight")).map(|shape| shape[0]);
        let up = |level: usize, layer: usize| width(format!("decoder.up_blocks.{level}.resnets.{layer}"));
        let down = |level: usize, layer: usize, resnets: usize| {
            width(if is_residual {
                format!("encoder.down_blocks.{level}.resnets.{layer}")
            } else {
                format!("encoder.down_blocks.{}", level * (resnets + 1) + layer)
            })
        };
        let of_decoder = (0..=MAX_LAYERS).take_while(|layer| up(0, *layer).is_some()).count();
        let of_encoder = (0..=MAX_LAYERS).take_while(|layer| down(0, *layer, 0).is_some()).count();
        let resnets = if of_decoder > 0 { of_decoder - 1 } else { of_encoder };
        let mut decoder: Vec<usize> = (0..MAX_LEVELS).map_while(|level| up(level, 0)).collect();
        decoder.reverse();
        (resnets, decoder, (0..MAX_LEVELS).map_while(|level| down(level, 0, resnets)).collect())
    }

    /// Between which levels the encoder halves the frames.
    fn halvings(&self, is_residual: bool, resnets: usize, levels: usize) -> Vec<bool> {
        let has = |name: String| self.shape(&format!("{name}.time_conv.weight")).is_some();
        (0..levels - 1)
            .map(|level| {
                let up = format!("decoder.up_blocks.{}", levels - 2 - level);
                if is_residual {
                    has(format!("{up}.upsampler")) || has(format!("encoder.down_blocks.{level}.downsampler"))
                } else {
                    let down = level * (resnets + 1) + resnets;
                    has(format!("{up}.upsamplers.0")) || has(format!("encoder.down_blocks.{down}"))
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn original_names_are_found() {
        for (name, flat, nested) in [
            ("quant_conv.bias", "conv1.bias", "conv1.bias"),
            ("post_quant_conv.weight", "conv2.weight", "conv2.weight"),
            ("encoder.conv_in.weight", "encoder.conv1.weight", "encoder.conv1.weight"),
            ("decoder.norm_out.gamma", "decoder.head.0.gamma", "decoder.head.0.gamma"),
            (
                "decoder.mid_block.resnets.1.conv1.bias",
                "decoder.middle.2.residual.2.bias",
                "decoder.middle.2.residual.2.bias",
            ),
            (
                "encoder.mid_block.attentions.0.to_qkv.bias",
                "encoder.middle.1.to_qkv.bias",
                "encoder.middle.1.to_qkv.bias",
            ),
            (
                "decoder.up_blocks.1.resnets.0.conv_shortcut.bias",
                "decoder.upsamples.4.shortcut.bias",
                "decoder.upsamples.1.upsamples.0.shortcut.bias",
            ),
            (
                "decoder.up_blocks.3.resnets.2.norm2.gamma",
                "decoder.upsamples.14.residual.3.gamma",
                "decoder.upsamples.3.upsamples.2.residual.3.gamma",
            ),
        ] {
            assert_eq!(original(name, 2, false), flat);
            assert_eq!(original(name, 2, true), nested);
        }
        let flat = |name: &str| original(name, 2, false);
        assert_eq!(
            flat("decoder.up_blocks.1.upsamplers.0.time_conv.bias"),
            "decoder.upsamples.7.time_conv.bias"
        );
        assert_eq!(flat("encoder.down_blocks.3.conv_shortcut.bias"), "encoder.downsamples.3.shortcut.bias");
        assert_eq!(flat("encoder.down_blocks.8.time_conv.bias"), "encoder.downsamples.8.time_conv.bias");
        let nested = |name: &str| original(name, 2, true);
        assert_eq!(
            nested("decoder.up_blocks.0.upsampler.resample.1.bias"),
            "decoder.upsamples.0.upsamples.3.resample.1.bias"
        );
        assert_eq!(
            nested("encoder.down_blocks.1.downsampler.time_conv.bias"),
            "encoder.downsamples.1.downsamples.2.time_conv.bias"
        );
        assert_eq!(
            nested("encoder.down_blocks.3.resnets.1.conv2.weight"),
            "encoder.downsamples.3.downsamples.1.residual.6.weight"
        );
    }
}
