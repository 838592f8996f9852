//! The keys of config.json for video autoencoders; what holds for all of config.json is said in [`crate::config`].

use serde::Serialize;

use crate::ModelError;
use crate::config::{ConfigFile, MAX_CHANNELS, MAX_LATENT_CHANNELS, MAX_LAYERS, invalid};

/// Config of an `AutoencoderKLHunyuanVideo`; the fields are diffusers' keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HunyuanVideoConfig {
    /// Channels of the pixels put in.
    pub in_channels: usize,
    /// Channels of the pixels that come out.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Width of each level, from the largest pictures to the smallest.
    pub block_out_channels: Vec<usize>,
    /// ResNets per level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every GroupNorm; divides all widths.
    pub norm_num_groups: usize,
    /// Attention between the two ResNets of the middle.
    pub mid_block_add_attention: bool,
    /// Pixels per latent, both ways: a power of two.
    pub spatial_compression_ratio: usize,
    /// Frames per latent after the first: a power of two.
    pub temporal_compression_ratio: usize,
    /// The diffusion model's latents are the VAE's times this.
    pub scaling_factor: f64,
}

impl HunyuanVideoConfig {
    /// Whether sides and frames change by two between `level` and the next; the decoder (smallest pictures first) and
    /// the encoder (largest first) count their own levels.
    pub(crate) fn halvings(&self, level: usize) -> [bool; 2] {
        let last = self.block_out_channels.len() - 1;
        let space = level < self.spatial_compression_ratio.ilog2() as usize;
        let time = level + self.temporal_compression_ratio.ilog2() as usize >= last && level < last;
        [space, time]
    }
}

impl ConfigFile {
    /// Reads the keys of an `AutoencoderKLHunyuanVideo`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value of the wrong type or out of bounds.
    pub fn hunyuan_video(&self) -> Result<HunyuanVideoConfig, ModelError> {
        let block_out_channels =
            self.list("block_out_channels", MAX_CHANNELS, 1)?.unwrap_or_else(|| vec![128, 256, 512, 512]);
        let norm_num_groups = self.integer("norm_num_groups", 32, 1, MAX_CHANNELS)?;
        if let Some(width) = block_out_channels.iter().find(|width| !width.is_multiple_of(norm_num_groups)) {
            let expected =
                format!("a divisor of every width in `block_out_channels`; {width} is not divisible");
            return Err(invalid("norm_num_groups", &norm_num_groups.into(), &expected));
        }
        self.only("act_fn", &["silu", "swish"], "silu")?;
        let spatial_compression_ratio = self.integer("spatial_compression_ratio", 8, 1, 1 << 15)?;
        let temporal_compression_ratio = self.integer("temporal_compression_ratio", 4, 4, 4)?;
        let changes = block_out_channels.len() - 1;
        if !spatial_compression_ratio.is_power_of_two()
            || spatial_compression_ratio.ilog2() as usize > changes
            || changes < 2
        {
            let expected =
                format!("a power of two of at most {changes} doublings, and at least three levels");
            return Err(invalid("spatial_compression_ratio", &spatial_compression_ratio.into(), &expected));
        }
        let scaling_factor = self.number("scaling_factor")?.unwrap_or(0.476986);
        if scaling_factor == 0.0 {
            return Err(invalid("scaling_factor", &0.into(), "a number other than 0"));
        }
        Ok(HunyuanVideoConfig {
            in_channels: self.integer("in_channels", 3, 1, MAX_CHANNELS)?,
            out_channels: self.integer("out_channels", 3, 1, MAX_CHANNELS)?,
            latent_channels: self.integer("latent_channels", 16, 1, MAX_LATENT_CHANNELS)?,
            block_out_channels,
            layers_per_block: self.integer("layers_per_block", 2, 1, MAX_LAYERS)?,
            norm_num_groups,
            mid_block_add_attention: self.boolean("mid_block_add_attention", true)?,
            spatial_compression_ratio,
            temporal_compression_ratio,
            scaling_factor,
        })
    }
}
