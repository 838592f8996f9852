//! The keys of config.json for `AutoencoderKLWan` and `AutoencoderKLQwenImage`; what holds for all of config.json is said in
//! [`crate::config`].

use serde::Serialize;

use crate::ModelError;
use crate::config::{ConfigFile, MAX_CHANNELS, MAX_LATENT_CHANNELS, MAX_LAYERS, invalid};
use crate::graph::Cell;

/// Config of an `AutoencoderKLWan` or `AutoencoderKLQwenImage`; the fields are diffusers' keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WanConfig {
    /// Channels of the encoder's first convolution: those of a patch of pixels.
    pub in_channels: usize,
    /// Channels of the decoder's last convolution: those of a patch of pixels.
    pub out_channels: usize,
    /// Width of the encoder's first convolution, which `dim_mult` multiplies.
    pub base_dim: usize,
    /// The same for the decoder.
    pub decoder_base_dim: usize,
    /// Channels of the latents.
    pub z_dim: usize,
    /// Width of each level, from the largest pictures to the smallest, in `base_dim`.
    pub dim_mult: Vec<usize>,
    /// ResNets per level of the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Between which levels of the encoder frames are halved.
    pub temperal_downsample: Vec<bool>,
    /// Whether levels add their input to their output (Wan 2.2's of 48 channels).
    pub is_residual: bool,
    /// Side of the patches of pixels that are put into channels; 1 for none.
    pub patch_size: usize,
    /// Mean of each latent channel.
    pub latents_mean: Vec<f64>,
    /// Standard deviation of each latent channel.
    pub latents_std: Vec<f64>,
}

impl WanConfig {
    /// Widths of the levels, from the largest pictures to the smallest.
    pub(crate) fn widths(&self, base: usize) -> Vec<usize> {
        self.dim_mult.iter().map(|factor| factor * base).collect()
    }

    /// Whether the decoder doubles the frames after `level`, counted from the smallest pictures.
    pub(crate) fn doubles_frames(&self, level: usize) -> bool {
        self.temperal_downsample.iter().rev().nth(level).copied().unwrap_or(false)
    }

    /// What a position of the outermost convolutions becomes.
    pub(crate) fn patch(&self) -> Cell {
        Cell { time: 1, space: self.patch_size, by_columns: true }
    }

    /// Pixels per latent, both ways.
    pub fn spatial_factor(&self) -> usize {
        self.patch_size << (self.dim_mult.len() - 1)
    }

    /// Frames per latent after the first.
    pub fn temporal_factor(&self) -> usize {
        1 << self.temperal_downsample.iter().filter(|halves| **halves).count()
    }
}

/// Mean and standard deviation of each channel of published latents of this many channels.
pub(crate) fn statistics(channels: usize) -> Option<[Vec<f64>; 2]> {
    match channels {
        16 => Some(WAN21.map(|values| values.to_vec())),
        48 => Some(WAN22.map(|values| values.to_vec())),
        _ => None,
    }
}

/// Of Wan 2.1's and Qwen-Image's latents.
const WAN21: [[f64; 16]; 2] = [
    [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
        -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ],
    [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
        1.6382, 1.1253, 2.8251, 1.9160,
    ],
];

/// Of the latents of Wan 2.2 TI2V 5B.
const WAN22: [[f64; 48]; 2] = [
    [
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158,
        0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649,
        0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548,
        -0.1681, -0.0667,
    ],
    [
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ],
];

impl ConfigFile {
    /// Reads the keys of an `AutoencoderKLWan` or `AutoencoderKLQwenImage`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value of the wrong type or out of bounds, or a layout that is not run.
    pub fn wan(&self) -> Result<WanConfig, ModelError> {
        let dim_mult = self.list("dim_mult", MAX_CHANNELS, 1)?.unwrap_or_else(|| vec![1, 2, 4, 4]);
        let base_dim = self.integer("base_dim", 96, 1, MAX_CHANNELS)?;
        let decoder_base_dim = self.integer("decoder_base_dim", base_dim, 1, MAX_CHANNELS)?;
        let z_dim = self.integer("z_dim", 16, 1, MAX_LATENT_CHANNELS)?;
        let temperal_downsample =
            self.flags("temperal_downsample")?.unwrap_or_else(|| vec![false, true, true]);
        if temperal_downsample.len() + 1 != dim_mult.len()
            || temperal_downsample.iter().filter(|halves| **halves).count() != 2
        {
            let expected =
                format!("one flag between each two of the {} levels, two of them true", dim_mult.len());
            return Err(self.unexpected("temperal_downsample", &expected));
        }
        if self.has_items("attn_scales") {
            return Err(self.unexpected("attn_scales", "an empty list, the only one that is run"));
        }
        let is_residual = self.boolean("is_residual", false)?;
        let patch_size = self.integer("patch_size", 1, 1, 8)?;
        // Qwen-Image has one key for both.
        let colours = self.integer("input_channels", 3, 1, MAX_CHANNELS)?;
        let [latents_mean, latents_std] = self.latent_statistics(z_dim)?;
        let config = WanConfig {
            in_channels: self.integer("in_channels", colours, 1, MAX_CHANNELS)?,
            out_channels: self.integer("out_channels", colours, 1, MAX_CHANNELS)?,
            base_dim,
            decoder_base_dim,
            z_dim,
            dim_mult,
            num_res_blocks: self.integer("num_res_blocks", 2, 1, MAX_LAYERS)?,
            temperal_downsample,
            is_residual,
            patch_size,
            latents_mean,
            latents_std,
        };
        check_widths(&config)?;
        Ok(config)
    }

    fn latent_statistics(&self, channels: usize) -> Result<[Vec<f64>; 2], ModelError> {
        let keys = ["latents_mean", "latents_std"];
        let [mean, std] = keys.map(|key| self.numbers(key, channels));
        match (mean?, std?) {
            (Some(mean), Some(std)) if std.iter().all(|value| *value != 0.0) => Ok([mean, std]),
            (Some(_), Some(_)) => Err(self.unexpected("latents_std", "numbers other than 0")),
            (None, None) if channels == 16 => Ok(WAN21.map(|values| values.to_vec())),
            (mean, _) => {
                let absent = keys[usize::from(mean.is_some())];
                Err(self.unexpected(absent, &format!("a list of {channels} numbers, one per latent channel")))
            }
        }
    }
}

/// Whether repeated and averaged channels come out even, and patches fill the channels.
///
/// # Errors
/// [`ModelError::Config`].
pub(crate) fn check_widths(config: &WanConfig) -> Result<(), ModelError> {
    let error = |key: &str, found: usize, expected: &str| Err(invalid(key, &found.into(), expected));
    let elements = config.patch().elements();
    for (key, channels) in [("in_channels", config.in_channels), ("out_channels", config.out_channels)] {
        if !channels.is_multiple_of(elements) {
            return error(key, channels, &format!("a multiple of the {elements} pixels of a patch"));
        }
    }
    for base in [config.base_dim, config.decoder_base_dim] {
        let widths = config.widths(base);
        if let Some(width) = widths.iter().find(|width| !(1..=MAX_CHANNELS).contains(*width)) {
            return error("dim_mult", *width, &format!("widths from 1 to {MAX_CHANNELS}"));
        }
        let halved = widths[1..].iter().find(|width| !config.is_residual && !width.is_multiple_of(2));
        if let Some(width) = halved {
            return error("dim_mult", *width, "even widths but at the first level");
        }
    }
    if config.is_residual {
        check_shortcuts(config)?;
    }
    Ok(())
}

fn check_shortcuts(config: &WanConfig) -> Result<(), ModelError> {
    let elements = |level: usize| match config.temperal_downsample.get(level) {
        Some(halves) => {
            if *halves {
                8
            } else {
                4
            }
        }
        None => 1,
    };
    let levels = config.dim_mult.len();
    let down = config.widths(config.base_dim);
    let even_down = (0..levels).all(|level| {
        let input = if level == 0 { config.base_dim } else { down[level - 1] };
        (input * elements(level)).is_multiple_of(down[level])
    });
    let up = config.widths(config.decoder_base_dim);
    let even_up = (1..levels).all(|level| {
        let input = up[(level + 1).min(levels - 1)];
        (up[level] * elements(level - 1)).is_multiple_of(input)
    });
    if even_down && even_up {
        return Ok(());
    }
    let expected = "widths that divide the pixels of the levels beside them, because `is_residual` is true";
    Err(invalid("dim_mult", &config.dim_mult.clone().into(), expected))
}
