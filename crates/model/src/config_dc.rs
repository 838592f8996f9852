//! The keys of config.json for `AutoencoderDC`; what holds for all of config.json is said in [`crate::config`].

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::ModelError;
use crate::config::{
    ConfigFile, MAX_CHANNELS, MAX_LATENT_CHANNELS, MAX_LAYERS, MAX_LEVELS, bounded, invalid,
};
use crate::graph::Activation;

/// The largest side of a kernel of `encoder_qkv_multiscales` and `decoder_qkv_multiscales`.
const MAX_SCALE: usize = 31;
/// The most scales of a level.
const MAX_SCALES: usize = 8;

/// A kind of block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum DcBlock {
    /// Two convolutions.
    ResBlock,
    /// Linear attention and a gated convolution.
    #[serde(rename = "EfficientViTBlock")]
    EfficientVitBlock,
}

/// A kind of norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum DcNorm {
    /// Of each position.
    #[serde(rename = "rms_norm")]
    Rms,
    /// With statistics that training has left.
    #[serde(rename = "batch_norm")]
    Batch,
}

/// How sides change by two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resampling {
    /// Pixels become channels or channels pixels (`pixel_unshuffle`, `pixel_shuffle`).
    Pixels,
    /// A convolution of stride 2, or one after nearest upsampling (`conv`, `interpolate`).
    Convolution,
}

/// What a half's levels are, from the largest pictures to the smallest.
#[derive(Clone, Debug, PartialEq)]
pub struct DcHalf {
    /// Kind of each level's blocks.
    pub blocks: Vec<DcBlock>,
    /// Width of each level.
    pub widths: Vec<usize>,
    /// Blocks of each level; only the first may have none.
    pub layers: Vec<usize>,
    /// Sides of the depthwise kernels of each level's attention.
    pub scales: Vec<Vec<usize>>,
    /// Non-linearity of each level's ResBlocks.
    pub activations: Vec<Activation>,
    /// Norm of each level's ResBlocks and attention; gated convolutions have an RMS norm always.
    pub norms: Vec<DcNorm>,
    /// Between the levels.
    pub resampling: Resampling,
}

/// Config of an `AutoencoderDC`; it is serialised with diffusers' keys.
#[derive(Clone, Debug, PartialEq)]
pub struct DcConfig {
    /// Channels of pixels.
    pub in_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of a head of attention.
    pub attention_head_dim: usize,
    /// The encoder's levels.
    pub encoder: DcHalf,
    /// The decoder's levels, as many.
    pub decoder: DcHalf,
    /// Whether means of the last level's channels are added to the encoder's result.
    pub encoder_out_shortcut: bool,
    /// Whether the latents are added to the decoder's first convolution.
    pub decoder_in_shortcut: bool,
    /// Before the decoder's last convolution.
    pub decoder_conv_act_fn: Activation,
    /// The diffusion model's latents are the autoencoder's times this.
    pub scaling_factor: f64,
}

impl DcConfig {
    /// Pixels per latent, both ways.
    pub fn spatial_factor(&self) -> usize {
        1 << (self.encoder.widths.len() - 1)
    }
}

impl Serialize for DcConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("in_channels", &self.in_channels)?;
        map.serialize_entry("latent_channels", &self.latent_channels)?;
        map.serialize_entry("attention_head_dim", &self.attention_head_dim)?;
        for (name, half) in [("encoder", &self.encoder), ("decoder", &self.decoder)] {
            map.serialize_entry(&format!("{name}_block_types"), &half.blocks)?;
            map.serialize_entry(&format!("{name}_block_out_channels"), &half.widths)?;
            map.serialize_entry(&format!("{name}_layers_per_block"), &half.layers)?;
            map.serialize_entry(&format!("{name}_qkv_multiscales"), &half.scales)?;
        }
        let [up, down] = [["pixel_shuffle", "interpolate"], ["pixel_unshuffle", "conv"]];
        map.serialize_entry("upsample_block_type", up[self.decoder.resampling as usize])?;
        map.serialize_entry("downsample_block_type", down[self.encoder.resampling as usize])?;
        map.serialize_entry("decoder_act_fns", &self.decoder.activations)?;
        map.serialize_entry("decoder_norm_types", &self.decoder.norms)?;
        map.serialize_entry("encoder_out_shortcut", &self.encoder_out_shortcut)?;
        map.serialize_entry("decoder_in_shortcut", &self.decoder_in_shortcut)?;
        map.serialize_entry("decoder_conv_act_fn", &self.decoder_conv_act_fn)?;
        map.serialize_entry("scaling_factor", &self.scaling_factor)?;
        map.end()
    }
}

impl ConfigFile {
    /// Reads the keys of an `AutoencoderDC`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value of the wrong type or out of bounds, or a layout that is not run.
    pub fn dc(&self) -> Result<DcConfig, ModelError> {
        let scaling_factor = self.number("scaling_factor")?.unwrap_or(1.0);
        if scaling_factor == 0.0 {
            return Err(self.unexpected("scaling_factor", "a number other than 0"));
        }
        let activation = |value: &Value| match value.as_str() {
            Some("silu" | "swish") => Some(Activation::Silu),
            Some("relu") => Some(Activation::Relu),
            _ => None,
        };
        let decoder_conv_act_fn = match self.get("decoder_conv_act_fn") {
            None => Activation::Relu,
            Some(value) => activation(value)
                .ok_or_else(|| invalid("decoder_conv_act_fn", value, "\"silu\" or \"relu\""))?,
        };
        let mut encoder = self.dc_half("encoder", [2, 2, 2, 3, 3, 3])?;
        let mut decoder = self.dc_half("decoder", [3; 6])?;
        let levels = encoder.widths.len();
        if decoder.widths.len() != levels {
            return Err(self.length_error(
                "decoder_block_out_channels",
                "encoder_block_out_channels",
                levels,
            ));
        }
        encoder.resampling = self.resampling("downsample_block_type", ["pixel_unshuffle", "conv"])?;
        decoder.resampling = self.resampling("upsample_block_type", ["pixel_shuffle", "interpolate"])?;
        let norm = |value: &Value| match value.as_str() {
            Some("rms_norm") => Some(DcNorm::Rms),
            Some("batch_norm") => Some(DcNorm::Batch),
            _ => None,
        };
        let expected = "\"rms_norm\" or \"batch_norm\"";
        decoder.norms = self.per_level("decoder_norm_types", levels, DcNorm::Rms, expected, norm)?;
        decoder.activations =
            self.per_level("decoder_act_fns", levels, Activation::Silu, "\"silu\" or \"relu\"", activation)?;
        let config = DcConfig {
            in_channels: self.integer("in_channels", 3, 1, MAX_CHANNELS)?,
            latent_channels: self.integer("latent_channels", 32, 1, MAX_LATENT_CHANNELS)?,
            attention_head_dim: self.integer("attention_head_dim", 32, 1, MAX_CHANNELS)?,
            encoder,
            decoder,
            encoder_out_shortcut: self.boolean("encoder_out_shortcut", true)?,
            decoder_in_shortcut: self.boolean("decoder_in_shortcut", true)?,
            decoder_conv_act_fn,
            scaling_factor,
        };
        check(&config)?;
        Ok(config)
    }

    /// The levels of a half as its own keys have them.
    fn dc_half(&self, half: &str, default_layers: [usize; 6]) -> Result<DcHalf, ModelError> {
        let widths_key = format!("{half}_block_out_channels");
        let widths =
            self.list(&widths_key, MAX_CHANNELS, 1)?.unwrap_or_else(|| vec![128, 256, 512, 512, 1024, 1024]);
        let levels = widths.len();
        let layers_key = format!("{half}_layers_per_block");
        let layers = self.list(&layers_key, MAX_LAYERS, 0)?.unwrap_or_else(|| default_layers.to_vec());
        if layers.len() != levels {
            return Err(self.length_error(&layers_key, &widths_key, levels));
        }
        let kind = |value: &Value| match value.as_str() {
            Some("ResBlock") => Some(DcBlock::ResBlock),
            Some("EfficientViTBlock") => Some(DcBlock::EfficientVitBlock),
            _ => None,
        };
        let types_key = format!("{half}_block_types");
        let expected = "\"ResBlock\" or \"EfficientViTBlock\"";
        let blocks = self.per_level(&types_key, levels, DcBlock::ResBlock, expected, kind)?;
        let scales_key = format!("{half}_qkv_multiscales");
        let scales = match self.get(&scales_key) {
            None => (0..levels).map(|level| if level < 3 { vec![] } else { vec![5] }).collect(),
            Some(value) => scales(value, levels).ok_or_else(|| {
                let expected =
                    format!("{levels} lists of at most {MAX_SCALES} odd numbers up to {MAX_SCALE}");
                invalid(&scales_key, value, &expected)
            })?,
        };
        let (activations, norms) = (vec![Activation::Silu; levels], vec![DcNorm::Rms; levels]);
        Ok(DcHalf { blocks, widths, layers, scales, activations, norms, resampling: Resampling::Pixels })
    }

    /// A value for each level, which one value may state for all.
    fn per_level<V: Clone>(
        &self,
        key: &str,
        levels: usize,
        default: V,
        expected: &str,
        read: impl Fn(&Value) -> Option<V>,
    ) -> Result<Vec<V>, ModelError> {
        let read_all = |value: &Value| match value {
            Value::Array(items) if items.len() == levels => items.iter().map(&read).collect(),
            one => read(one).map(|one| vec![one; levels]),
        };
        match self.get(key) {
            None => Ok(vec![default; levels]),
            Some(value) => read_all(value)
                .ok_or_else(|| invalid(key, value, &format!("{expected}, or a list of {levels} of these"))),
        }
    }

    fn resampling(&self, key: &str, [pixels, convolution]: [&str; 2]) -> Result<Resampling, ModelError> {
        match self.get(key).map(Value::as_str) {
            None => Ok(Resampling::Pixels),
            Some(Some(name)) if name == pixels => Ok(Resampling::Pixels),
            Some(Some(name)) if name == convolution => Ok(Resampling::Convolution),
            Some(_) => Err(self.unexpected(key, &format!("\"{pixels}\" or \"{convolution}\""))),
        }
    }
}

fn scales(value: &Value, levels: usize) -> Option<Vec<Vec<usize>>> {
    let odd = |value: &Value| bounded(value, 1, MAX_SCALE).filter(|side| !side.is_multiple_of(2));
    let level = |value: &Value| -> Option<Vec<usize>> {
        let items = value.as_array().filter(|items| items.len() <= MAX_SCALES)?;
        items.iter().map(odd).collect()
    };
    value.as_array().filter(|items| items.len() == levels)?.iter().map(level).collect()
}

/// Whether there are levels enough, heads fill the widths, and repeated and averaged channels come out even.
///
/// # Errors
/// [`ModelError::Config`].
pub(crate) fn check(config: &DcConfig) -> Result<(), ModelError> {
    for (name, half) in [("encoder", &config.encoder), ("decoder", &config.decoder)] {
        let key = format!("{name}_block_out_channels");
        let error = |expected: String| Err(invalid(&key, &half.widths.clone().into(), &expected));
        let levels = half.widths.len();
        if !(2..=MAX_LEVELS).contains(&levels) {
            return error(format!("from 2 to {MAX_LEVELS} widths"));
        }
        if half.layers[1..].contains(&0) {
            let key = format!("{name}_layers_per_block");
            return Err(invalid(
                &key,
                &half.layers.clone().into(),
                "blocks in each level but perhaps the first",
            ));
        }
        let head = config.attention_head_dim;
        let attends =
            |level: &usize| half.blocks[*level] == DcBlock::EfficientVitBlock && half.layers[*level] > 0;
        if let Some(level) =
            (0..levels).filter(attends).find(|level| !half.widths[*level].is_multiple_of(head))
        {
            return error(format!(
                "widths of whole heads of {head} channels; {} is none",
                half.widths[level]
            ));
        }
        let first = usize::from(half.layers[0] == 0);
        for pair in half.widths[first..].windows(2) {
            let [large, small] = [pair[0], pair[1]];
            let even = match name {
                "encoder" if half.resampling == Resampling::Pixels => {
                    (large * 4).is_multiple_of(small) && small.is_multiple_of(4)
                }
                _ => (large * 4).is_multiple_of(small),
            };
            if !even {
                return error(format!(
                    "widths that divide four times the one before (for pixel_unshuffle by multiples of four); {large} and {small} do not"
                ));
            }
        }
        let (last, latents) = (half.widths[levels - 1], config.latent_channels);
        let shortcut =
            if name == "encoder" { config.encoder_out_shortcut } else { config.decoder_in_shortcut };
        if shortcut && !last.is_multiple_of(latents) {
            return error(format!("a last width that is a multiple of the {latents} latent channels"));
        }
    }
    Ok(())
}
