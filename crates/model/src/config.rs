//! config.json of a VAE as diffusers writes it: absent keys take diffusers' defaults, unknown keys are ignored, and every
//! value is checked against bounds, so that no config can ask for unbounded work. Errors name key, value and what is
//! expected.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::ModelError;
use crate::config_dc::DcConfig;
use crate::config_video::HunyuanVideoConfig;
use crate::config_wan::WanConfig;

/// The most channels of any layer.
pub const MAX_CHANNELS: usize = 16384;
/// The most latent channels.
pub const MAX_LATENT_CHANNELS: usize = 4096;
/// The most levels (`block_out_channels` and the like).
pub const MAX_LEVELS: usize = 16;
/// The most layers or blocks in one level.
pub const MAX_LAYERS: usize = 64;

/// The config of a model, by family.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum VaeConfig {
    /// `AutoencoderKL` and `AutoencoderKLFlux2`.
    Kl(KlConfig),
    /// `AutoencoderTiny`.
    Tiny(TinyConfig),
    /// `AutoencoderKLHunyuanVideo`.
    HunyuanVideo(HunyuanVideoConfig),
    /// `AutoencoderKLWan` and `AutoencoderKLQwenImage`.
    Wan(WanConfig),
    /// `AutoencoderDC`.
    Dc(DcConfig),
}

/// Which architecture a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Family {
    /// Stable Diffusion, Flux.1 and their kin.
    #[serde(rename = "AutoencoderKL")]
    AutoencoderKl,
    /// FLUX.2: an `AutoencoderKL` with batch-norm statistics of patches of its latents.
    #[serde(rename = "AutoencoderKLFlux2")]
    AutoencoderKlFlux2,
    /// The TAESD family.
    AutoencoderTiny,
    /// HunyuanVideo.
    #[serde(rename = "AutoencoderKLHunyuanVideo")]
    AutoencoderKlHunyuanVideo,
    /// Wan 2.1 and 2.2.
    #[serde(rename = "AutoencoderKLWan")]
    AutoencoderKlWan,
    /// Qwen-Image: Wan 2.1's autoencoder with weights of its own, for pictures.
    #[serde(rename = "AutoencoderKLQwenImage")]
    AutoencoderKlQwenImage,
    /// Sana: deep compression, sides by 32.
    #[serde(rename = "AutoencoderDC")]
    AutoencoderDc,
}

impl Family {
    /// All there are.
    pub const ALL: [Family; 7] = [
        Family::AutoencoderKl,
        Family::AutoencoderKlFlux2,
        Family::AutoencoderTiny,
        Family::AutoencoderKlHunyuanVideo,
        Family::AutoencoderKlWan,
        Family::AutoencoderKlQwenImage,
        Family::AutoencoderDc,
    ];

    /// The class name in diffusers.
    pub fn name(self) -> &'static str {
        match self {
            Family::AutoencoderKl => "AutoencoderKL",
            Family::AutoencoderKlFlux2 => "AutoencoderKLFlux2",
            Family::AutoencoderTiny => "AutoencoderTiny",
            Family::AutoencoderKlHunyuanVideo => "AutoencoderKLHunyuanVideo",
            Family::AutoencoderKlWan => "AutoencoderKLWan",
            Family::AutoencoderKlQwenImage => "AutoencoderKLQwenImage",
            Family::AutoencoderDc => "AutoencoderDC",
        }
    }
}

/// Config of an `AutoencoderKL` or `AutoencoderKLFlux2`; the fields are diffusers' keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KlConfig {
    /// Channels of the pixels put in.
    pub in_channels: usize,
    /// Channels of the pixels that come out.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Width of each level, from the largest pictures to the smallest. At least one.
    pub block_out_channels: Vec<usize>,
    /// The same for the decoder where it differs from the encoder; as many levels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decoder_block_out_channels: Option<Vec<usize>>,
    /// Which levels of the encoder have attention after each ResNet (`AttnDownEncoderBlock2D`).
    pub down_block_attention: Vec<bool>,
    /// Which levels of the decoder do (`AttnUpDecoderBlock2D`), in the decoder's order: smallest pictures first.
    pub up_block_attention: Vec<bool>,
    /// ResNets per level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every GroupNorm; divides all widths.
    pub norm_num_groups: usize,
    /// A 1×1 convolution after the encoder.
    pub use_quant_conv: bool,
    /// A 1×1 convolution before the decoder.
    pub use_post_quant_conv: bool,
    /// Attention between the two ResNets of the middle.
    pub mid_block_add_attention: bool,
    /// Side in pixels that the model was trained at; tiles of diffusers have this side.
    pub sample_size: usize,
    /// The diffusion model's latents are the VAE's times this.
    pub scaling_factor: f64,
    /// Subtracted from the VAE's latents before scaling.
    pub shift_factor: Option<f64>,
    /// Mean of each latent channel.
    pub latents_mean: Option<Vec<f64>>,
    /// Standard deviation of each latent channel.
    pub latents_std: Option<Vec<f64>>,
    /// `AutoencoderKLFlux2` only: added to the variance of each element of a patch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_norm_eps: Option<f64>,
}

impl KlConfig {
    /// Widths of the decoder's levels, from the largest pictures to the smallest.
    pub fn decoder_block_out_channels(&self) -> &[usize] {
        self.decoder_block_out_channels.as_deref().unwrap_or(&self.block_out_channels)
    }
}

/// Config of an `AutoencoderTiny`; the fields are diffusers' keys.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TinyConfig {
    /// Channels of the pixels put in.
    pub in_channels: usize,
    /// Channels of the pixels that come out.
    pub out_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Width of each stage of the encoder.
    pub encoder_block_out_channels: Vec<usize>,
    /// Width of each stage of the decoder. Where it changes, the convolution after the upsampling changes it.
    pub decoder_block_out_channels: Vec<usize>,
    /// Blocks in each stage of the encoder.
    pub num_encoder_blocks: Vec<usize>,
    /// Blocks in each stage of the decoder.
    pub num_decoder_blocks: Vec<usize>,
    /// Factor of each upsampling in the decoder.
    pub upsampling_scaling_factor: usize,
    /// Whether the blocks at the smallest size have a pooling branch (TAEF2).
    pub midblock_pool: bool,
}

/// A parsed config.json, before it is known which family it is for.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    keys: Map<String, Value>,
}

impl ConfigFile {
    /// Parses the text of a config.json.
    ///
    /// # Errors
    /// [`ModelError::Config`] when it is not a JSON object.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        match serde_json::from_str(text) {
            Ok(Value::Object(keys)) => Ok(Self { keys }),
            Ok(other) => Err(invalid("(whole file)", &other, "a JSON object")),
            Err(error) => Err(ModelError::Config {
                key: "(whole file)".into(),
                found: format!("not JSON ({error})"),
                expected: "a JSON object".into(),
            }),
        }
    }

    /// The class named in `_class_name`, if any.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`] for a class that is not run, [`ModelError::Config`] when it is no string.
    pub fn family(&self) -> Result<Option<Family>, ModelError> {
        match self.get("_class_name") {
            None => Ok(None),
            Some(Value::String(name)) => {
                let family = Family::ALL.into_iter().find(|family| family.name() == name);
                family.map(Some).ok_or_else(|| {
                    let names = Family::ALL.map(Family::name);
                    let (last, others) = names.split_last().map_or(("", &[][..]), |(last, rest)| (last, rest));
                    ModelError::Unsupported(format!(
                        "config.json: `_class_name` is {}, which this version does not run (it runs {} and {last})",
                        shorten(name),
                        others.join(", ")
                    ))
                })
            }
            Some(other) => Err(invalid("_class_name", other, "the name of a class")),
        }
    }

    /// Reads the keys of an `AutoencoderKL`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value of the wrong type or out of bounds.
    pub fn kl(&self) -> Result<KlConfig, ModelError> {
        self.kl_with(&KlDefaults { widths: &[64], layers: 1, latent_channels: 4, sample_size: 32 })
    }

    /// Reads the keys of an `AutoencoderKLFlux2`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value of the wrong type or out of bounds, or another patch than 2×2.
    pub fn flux2(&self) -> Result<KlConfig, ModelError> {
        let widths = [128, 256, 512, 512];
        let defaults = KlDefaults { widths: &widths, layers: 2, latent_channels: 32, sample_size: 1024 };
        let epsilon = self.number("batch_norm_eps")?.unwrap_or(1e-4);
        if epsilon < 0.0 {
            return Err(invalid("batch_norm_eps", &Value::from(epsilon), "a number from 0"));
        }
        if let Some(patch) = self.get("patch_size")
            && *patch != serde_json::json!([2, 2])
        {
            return Err(invalid("patch_size", patch, "[2,2], the only one that is run"));
        }
        Ok(KlConfig { batch_norm_eps: Some(epsilon), ..self.kl_with(&defaults)? })
    }

    fn kl_with(&self, defaults: &KlDefaults<'_>) -> Result<KlConfig, ModelError> {
        let block_out_channels =
            self.list("block_out_channels", MAX_CHANNELS, 1)?.unwrap_or_else(|| defaults.widths.to_vec());
        let levels = block_out_channels.len();
        let decoder_block_out_channels = self.list("decoder_block_out_channels", MAX_CHANNELS, 1)?;
        if let Some(widths) = &decoder_block_out_channels
            && widths.len() != levels
        {
            return Err(self.length_error("decoder_block_out_channels", "block_out_channels", levels));
        }
        let latent_channels =
            self.integer("latent_channels", defaults.latent_channels, 1, MAX_LATENT_CHANNELS)?;
        let norm_num_groups = self.integer("norm_num_groups", 32, 1, MAX_CHANNELS)?;
        for &width in block_out_channels.iter().chain(decoder_block_out_channels.iter().flatten()) {
            if !width.is_multiple_of(norm_num_groups) {
                return Err(ModelError::Config {
                    key: "norm_num_groups".into(),
                    found: norm_num_groups.to_string(),
                    expected: format!(
                        "a divisor of every width in `block_out_channels`; {width} is not divisible"
                    ),
                });
            }
        }
        self.only("act_fn", &["silu", "swish"], "silu")?;
        let scaling_factor = self.number("scaling_factor")?.unwrap_or(0.18215);
        if scaling_factor == 0.0 {
            return Err(invalid("scaling_factor", &Value::from(0), "a number other than 0"));
        }
        let latents_mean = self.numbers("latents_mean", latent_channels)?;
        let latents_std = self.numbers("latents_std", latent_channels)?;
        if latents_mean.is_some() != latents_std.is_some() {
            let (absent, present) = match latents_mean {
                Some(_) => ("latents_std", "latents_mean"),
                None => ("latents_mean", "latents_std"),
            };
            return Err(invalid(absent, &Value::Null, &format!("a list, because `{present}` is one")));
        }
        if latents_std.iter().flatten().any(|&deviation| deviation == 0.0) {
            let found = self.get("latents_std").cloned().unwrap_or_default();
            return Err(invalid("latents_std", &found, "numbers other than 0"));
        }
        Ok(KlConfig {
            in_channels: self.integer("in_channels", 3, 1, MAX_CHANNELS)?,
            out_channels: self.integer("out_channels", 3, 1, MAX_CHANNELS)?,
            latent_channels,
            down_block_attention: self.block_types(
                "down_block_types",
                levels,
                ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            )?,
            up_block_attention: self.block_types(
                "up_block_types",
                levels,
                ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"],
            )?,
            block_out_channels,
            decoder_block_out_channels,
            layers_per_block: self.integer("layers_per_block", defaults.layers, 1, MAX_LAYERS)?,
            norm_num_groups,
            use_quant_conv: self.boolean("use_quant_conv", true)?,
            use_post_quant_conv: self.boolean("use_post_quant_conv", true)?,
            mid_block_add_attention: self.boolean("mid_block_add_attention", true)?,
            sample_size: self.sample_size(defaults.sample_size)?,
            scaling_factor,
            shift_factor: self.number("shift_factor")?,
            latents_mean,
            latents_std,
            batch_norm_eps: None,
        })
    }

    /// Reads the keys of an `AutoencoderTiny`. `use_midblock_gn` (not a key of diffusers) marks the FLUX.2 variant.
    ///
    /// # Errors
    /// [`ModelError::Config`] for a value of the wrong type or out of bounds.
    pub fn tiny(&self) -> Result<TinyConfig, ModelError> {
        let widths = |key: &str| Ok(self.list(key, MAX_CHANNELS, 1)?.unwrap_or_else(|| vec![64; 4]));
        let encoder_block_out_channels: Vec<usize> = widths("encoder_block_out_channels")?;
        let decoder_block_out_channels: Vec<usize> = widths("decoder_block_out_channels")?;
        let blocks = |key: &str, default: [usize; 4]| {
            Ok::<_, ModelError>(self.list(key, MAX_LAYERS, 0)?.unwrap_or_else(|| default.to_vec()))
        };
        let num_encoder_blocks = blocks("num_encoder_blocks", [1, 3, 3, 3])?;
        let num_decoder_blocks = blocks("num_decoder_blocks", [3, 3, 3, 1])?;
        if num_encoder_blocks.len() != encoder_block_out_channels.len() {
            let expected = encoder_block_out_channels.len();
            return Err(self.length_error("num_encoder_blocks", "encoder_block_out_channels", expected));
        }
        if num_decoder_blocks.len() != decoder_block_out_channels.len() {
            let expected = decoder_block_out_channels.len();
            return Err(self.length_error("num_decoder_blocks", "decoder_block_out_channels", expected));
        }
        self.only("act_fn", &["relu"], "relu")?;
        self.only("upsample_fn", &["nearest"], "nearest")?;
        Ok(TinyConfig {
            in_channels: self.integer("in_channels", 3, 1, MAX_CHANNELS)?,
            out_channels: self.integer("out_channels", 3, 1, MAX_CHANNELS)?,
            latent_channels: self.integer("latent_channels", 4, 1, MAX_LATENT_CHANNELS)?,
            encoder_block_out_channels,
            decoder_block_out_channels,
            num_encoder_blocks,
            num_decoder_blocks,
            upsampling_scaling_factor: self.integer("upsampling_scaling_factor", 2, 1, 8)?,
            midblock_pool: self.boolean("use_midblock_gn", false)?,
        })
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn integer(
        &self,
        key: &str,
        default: usize,
        least: usize,
        most: usize,
    ) -> Result<usize, ModelError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        bounded(value, least, most)
            .ok_or_else(|| invalid(key, value, &format!("an integer from {least} to {most}")))
    }

    pub(crate) fn boolean(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| invalid(key, value, "true or false"))
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|number| f32_sized(*number));
        number.map(Some).ok_or_else(|| invalid(key, value, "a finite number"))
    }

    pub(crate) fn numbers(&self, key: &str, length: usize) -> Result<Option<Vec<f64>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong =
            || invalid(key, value, &format!("a list of {length} finite numbers, one per latent channel"));
        let items = value.as_array().filter(|items| items.len() == length).ok_or_else(wrong)?;
        let numbers: Option<Vec<f64>> =
            items.iter().map(|item| item.as_f64().filter(|number| f32_sized(*number))).collect();
        numbers.map(Some).ok_or_else(wrong)
    }

    pub(crate) fn list(
        &self,
        key: &str,
        most: usize,
        least: usize,
    ) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong =
            || invalid(key, value, &format!("a list of 1 to {MAX_LEVELS} integers from {least} to {most}"));
        let items =
            value.as_array().filter(|items| (1..=MAX_LEVELS).contains(&items.len())).ok_or_else(wrong)?;
        let numbers: Option<Vec<usize>> = items.iter().map(|item| bounded(item, least, most)).collect();
        numbers.map(Some).ok_or_else(wrong)
    }

    /// A list of true and false.
    pub(crate) fn flags(&self, key: &str) -> Result<Option<Vec<bool>>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let items = value.as_array().filter(|items| items.len() <= MAX_LEVELS);
        let flags = items.and_then(|items| items.iter().map(Value::as_bool).collect::<Option<Vec<bool>>>());
        flags.map(Some).ok_or_else(|| {
            invalid(key, value, &format!("a list of at most {MAX_LEVELS} times true or false"))
        })
    }

    /// Whether a key is anything but absent or an empty list.
    pub(crate) fn has_items(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| value.as_array().is_none_or(|items| !items.is_empty()))
    }

    /// The error for a key whose value is not one of those expected.
    pub(crate) fn unexpected(&self, key: &str, expected: &str) -> ModelError {
        invalid(key, self.keys.get(key).unwrap_or(&Value::Null), expected)
    }

    /// Whether each block of a list is of the second, attending kind. Absent means plain.
    fn block_types(&self, key: &str, levels: usize, kinds: [&str; 2]) -> Result<Vec<bool>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(vec![false; levels]) };
        let wrong =
            || invalid(key, value, &format!("a list of {levels} names, each {} or {}", kinds[0], kinds[1]));
        let items = value.as_array().filter(|items| items.len() == levels).ok_or_else(wrong)?;
        let attending = |item: &Value| {
            let name = item.as_str()?;
            kinds.iter().position(|kind| *kind == name).map(|position| position == 1)
        };
        items.iter().map(attending).collect::<Option<Vec<bool>>>().ok_or_else(wrong)
    }

    pub(crate) fn only(&self, key: &str, accepted: &[&str], shown: &str) -> Result<(), ModelError> {
        match self.get(key) {
            None => Ok(()),
            Some(Value::String(name)) if accepted.contains(&name.as_str()) => Ok(()),
            Some(other) => Err(invalid(key, other, &format!("\"{shown}\", the only one that is run"))),
        }
    }

    /// An integer, or a pair of which the first counts.
    fn sample_size(&self, default: usize) -> Result<usize, ModelError> {
        let Some(value) = self.get("sample_size") else { return Ok(default) };
        let first = value.as_array().map_or(Some(value), |items| items.first());
        let size = first.and_then(|item| bounded(item, 1, 1 << 20));
        size.ok_or_else(|| invalid("sample_size", value, "an integer from 1 to 1048576"))
    }

    pub(crate) fn length_error(&self, key: &str, other: &str, expected: usize) -> ModelError {
        let found = self.get(key).map_or_else(|| "absent".to_owned(), |value| shorten(&value.to_string()));
        let expected = format!("a list of {expected} values, as many as `{other}` has");
        ModelError::Config { key: key.into(), found, expected }
    }
}

/// What absent keys of an `AutoencoderKL`-like config mean.
struct KlDefaults<'a> {
    widths: &'a [usize],
    layers: usize,
    latent_channels: usize,
    sample_size: usize,
}

pub(crate) fn bounded(value: &Value, least: usize, most: usize) -> Option<usize> {
    let integer = value.as_u64().and_then(|integer| usize::try_from(integer).ok());
    integer.filter(|integer| (least..=most).contains(integer))
}

/// Finite, and neither overflowing nor vanishing as f32.
fn f32_sized(number: f64) -> bool {
    let single = number as f32;
    single.is_finite() && (single != 0.0 || number == 0.0)
}

pub(crate) fn invalid(key: &str, value: &Value, expected: &str) -> ModelError {
    ModelError::Config { key: key.into(), found: shorten(&value.to_string()), expected: expected.into() }
}

/// At most 80 characters of a text that came from a file.
pub(crate) fn shorten(text: &str) -> String {
    if text.chars().count() <= 80 {
        return text.to_owned();
    }
    text.chars().take(77).chain("...".chars()).collect()
}
