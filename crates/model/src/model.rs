//! A model: config, latent space, the graphs of its halves and the checkpoint that their weights come from. Opening one
//! reads the header of the file only, and checks every tensor that the graphs need.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::checkpoint::{Checkpoint, WeightSource};
use crate::config::{ConfigFile, Family, KlConfig, VaeConfig};
use crate::graph::{Graph, WeightSpec};
use crate::header::tensor_error;
use crate::latent_space::{LatentSpace, Normalisation};
use crate::names::{Half, KlNames, Names};
use crate::packing::Packing;
use crate::source::Source;
use crate::{ModelError, autoencoder_dc, autoencoder_kl, autoencoder_tiny, detect, hunyuan_video, wan};

/// An autoencoder, ready to be run by an engine. Cheap to clone: the checkpoint is shared, and no weights are in memory.
#[derive(Clone, Debug)]
pub struct Model {
    /// Which architecture it is.
    pub family: Family,
    /// Its config, read or detected.
    pub config: VaeConfig,
    /// Its latent space. May be replaced where the tensors cannot tell which one it is.
    pub latent_space: LatentSpace,
    decoder: Option<Graph>,
    encoder: Option<Graph>,
    checkpoint: Arc<Checkpoint>,
    label: String,
}

impl Model {
    /// Opens a model from a diffusers directory (or one with a `vae` folder in it) or a single safetensors file.
    ///
    /// # Errors
    /// See [`ModelError`]: the path, the config, the header, an unknown kind of model, or the first tensor that is
    /// absent or misshapen.
    pub fn open(path: &Path) -> Result<Model, ModelError> {
        let source = Source::find(path)?;
        let checkpoint = Checkpoint::open(&source.checkpoint)?;
        Self::from_checkpoint(checkpoint, source.config.as_deref(), &path.display().to_string())
    }

    /// The small model that is part of the program.
    ///
    /// # Errors
    /// None in a program that passed its tests.
    pub fn embedded() -> Result<Model, ModelError> {
        crate::embedded::open()
    }

    /// A model from an open checkpoint and, if there is one, the text of its config.json; `label` says where it came
    /// from.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn from_checkpoint(
        checkpoint: Checkpoint,
        config: Option<&str>,
        label: &str,
    ) -> Result<Model, ModelError> {
        let file = config.map(ConfigFile::parse).transpose()?;
        let file = file.as_ref();
        // A class that is not run is named before the tensors are looked at.
        let stated = file.map(ConfigFile::family).transpose()?.flatten();
        let names = detect::recognise(&checkpoint)?;
        let mut family = names.family();
        if (stated, family) == (Some(Family::AutoencoderKlQwenImage), Family::AutoencoderKlWan) {
            family = Family::AutoencoderKlQwenImage;
        }
        if let Some(stated) = stated
            && stated != family
        {
            return Err(detect::family_mismatch(&checkpoint, stated, family));
        }
        let config = match (file, &names) {
            (None, names) => detect::config(&checkpoint, names)?,
            (Some(file), Names::Kl(own)) => {
                VaeConfig::Kl(if own.batch_norm { file.flux2()? } else { file.kl()? })
            }
            (Some(file), Names::Tiny(tiny)) => {
                let mut config = file.tiny()?;
                config.midblock_pool |= detect::has_pool(&checkpoint, tiny);
                VaeConfig::Tiny(config)
            }
            (Some(file), Names::HunyuanVideo(_)) => VaeConfig::HunyuanVideo(file.hunyuan_video()?),
            (Some(file), Names::Wan(_)) => VaeConfig::Wan(file.wan()?),
            (Some(file), Names::Dc(_)) => VaeConfig::Dc(file.dc()?),
        };
        let half = |half: Half| {
            if !names.has(half) {
                return Ok(None);
            }
            let mut graph = match (&config, half) {
                (VaeConfig::Kl(config), Half::Decoder) => autoencoder_kl::decoder(config),
                (VaeConfig::Kl(config), Half::Encoder) => autoencoder_kl::encoder(config),
                (VaeConfig::Tiny(config), Half::Decoder) => autoencoder_tiny::decoder(config),
                (VaeConfig::Tiny(config), Half::Encoder) => autoencoder_tiny::encoder(config),
                (VaeConfig::HunyuanVideo(config), Half::Decoder) => hunyuan_video::decoder(config),
                (VaeConfig::HunyuanVideo(config), Half::Encoder) => hunyuan_video::encoder(config),
                (VaeConfig::Wan(config), Half::Decoder) => wan::decoder(config),
                (VaeConfig::Wan(config), Half::Encoder) => wan::encoder(config),
                (VaeConfig::Dc(config), Half::Decoder) => autoencoder_dc::decoder(config),
                (VaeConfig::Dc(config), Half::Encoder) => autoencoder_dc::encoder(config),
            };
            names.resolve(&checkpoint, &mut graph).map(|()| Some(graph))
        };
        let (decoder, encoder) = (half(Half::Decoder)?, half(Half::Encoder)?);
        let graphs: Vec<&Graph> = decoder.iter().chain(&encoder).collect();
        names.check_all_used(&checkpoint, &graphs)?;
        let mut latent_space = latent_space(&config, family);
        if let (VaeConfig::Kl(config), Names::Kl(names)) = (&config, &names)
            && let Some(epsilon) = config.batch_norm_eps
        {
            latent_space.normalisation = batch_norm(&checkpoint, names, config.latent_channels, epsilon)?;
            latent_space.packing = Packing::Patches2x2AndPlanes;
        }
        let (checkpoint, label) = (Arc::new(checkpoint), label.to_owned());
        Ok(Model { family, config, latent_space, decoder, encoder, checkpoint, label })
    }

    /// The decoder: latents `[batch, latent, h, w]` in the model's own space to pixels of about ±1. `None` when the file
    /// holds only an encoder.
    pub fn decoder(&self) -> Option<&Graph> {
        self.decoder.as_ref()
    }

    /// The encoder: pixels in −1…1 to moments ([`Model::encoder_yields_moments`]) or latents. `None` when the file holds
    /// only a decoder.
    pub fn encoder(&self) -> Option<&Graph> {
        self.encoder.as_ref()
    }

    /// The decoder, or an error that says that there is none.
    ///
    /// # Errors
    /// [`ModelError::MissingHalf`].
    pub fn require_decoder(&self) -> Result<&Graph, ModelError> {
        self.decoder().ok_or(ModelError::MissingHalf { half: Half::Decoder.name() })
    }

    /// The encoder, or an error that says that there is none.
    ///
    /// # Errors
    /// [`ModelError::MissingHalf`].
    pub fn require_encoder(&self) -> Result<&Graph, ModelError> {
        self.encoder().ok_or(ModelError::MissingHalf { half: Half::Encoder.name() })
    }

    /// Where the weights of both graphs come from.
    pub fn weights(&self) -> &dyn WeightSource {
        self.checkpoint.as_ref()
    }

    /// The open checkpoint.
    pub fn checkpoint(&self) -> &Arc<Checkpoint> {
        &self.checkpoint
    }

    /// Pixels per latent, both ways.
    pub fn spatial_factor(&self) -> usize {
        self.latent_space.spatial_factor
    }

    /// Frames per latent after the first, which is one frame; `None` for models of pictures.
    pub fn temporal_factor(&self) -> Option<usize> {
        match &self.config {
            VaeConfig::HunyuanVideo(config) => Some(config.temporal_compression_ratio),
            VaeConfig::Wan(config) => Some(config.temporal_factor()),
            VaeConfig::Kl(_) | VaeConfig::Tiny(_) | VaeConfig::Dc(_) => None,
        }
    }

    /// The largest magnitude that decoded pixels may have, where larger ones are clamped. Tiles are put together before, and
    /// those of Qwen-Image are not clamped: diffusers' `tiled_decode` does not.
    pub fn pixel_limit(&self, in_tiles: bool) -> Option<f32> {
        let unclamped = in_tiles && self.family == Family::AutoencoderKlQwenImage;
        (matches!(&self.config, VaeConfig::Wan(_)) && !unclamped).then_some(1.0)
    }

    /// Side of the patches of pixels that the outermost convolutions work on; 1 for single pixels.
    pub fn patch_size(&self) -> usize {
        match &self.config {
            VaeConfig::Wan(config) => config.patch_size,
            _ => 1,
        }
    }

    /// Channels of the latents.
    pub fn latent_channels(&self) -> usize {
        self.latent_space.channels
    }

    /// Whether the encoder gives the moments of a distribution (see [`crate::distribution`]) and not latents.
    pub fn encoder_yields_moments(&self) -> bool {
        !matches!(self.family, Family::AutoencoderTiny | Family::AutoencoderDc)
    }

    /// Where the model came from: its path, or `embedded`.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A summary for people and for `/info`.
    pub fn description(&self) -> Description {
        let first = self.decoder.as_ref().or(self.encoder.as_ref()).and_then(|graph| graph.weights.first());
        let dtype = first.and_then(|spec| self.checkpoint.type_name(&spec.name)).unwrap_or_default();
        Description {
            source: self.label.clone(),
            family: self.family,
            latent_channels: self.latent_channels(),
            spatial_factor: self.spatial_factor(),
            temporal_factor: self.temporal_factor(),
            config: self.config.clone(),
            scaling: self.latent_space.normalisation.clone(),
            packing: self.latent_space.packing,
            packed_token_size: (self.latent_space.packing != Packing::None)
                .then(|| self.latent_space.token_size()),
            decoder_parameters: self.decoder.as_ref().map(Graph::parameters),
            encoder_parameters: self.encoder.as_ref().map(Graph::parameters),
            dtype: dtype.to_owned(),
            file_bytes: self.checkpoint.bytes(),
        }
    }
}

/// What [`Model::description`] tells.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// Where it came from.
    pub source: String,
    /// Its architecture.
    pub family: Family,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Pixels per latent, both ways.
    pub spatial_factor: usize,
    /// Frames per latent after the first; `None` for models of pictures.
    pub temporal_factor: Option<usize>,
    /// The config in diffusers' words, as far as it shapes the model.
    pub config: VaeConfig,
    /// How the diffusion model's latents become the autoencoder's.
    pub scaling: Normalisation,
    /// How latents are packed into tokens.
    pub packing: Packing,
    /// Elements of a packed token, `None` where latents are never packed.
    pub packed_token_size: Option<usize>,
    /// Parameters of the decoder; `None` when there is none.
    pub decoder_parameters: Option<u64>,
    /// Parameters of the encoder; `None` when there is none.
    pub encoder_parameters: Option<u64>,
    /// Type of the first weight in the file, e.g. `F16`.
    pub dtype: String,
    /// Length of the checkpoint file.
    pub file_bytes: u64,
}

fn latent_space(config: &VaeConfig, family: Family) -> LatentSpace {
    let packing = Packing::Patches2x2;
    match config {
        VaeConfig::Kl(config) => LatentSpace {
            channels: config.latent_channels,
            spatial_factor: 1 << (config.block_out_channels.len() - 1),
            normalisation: kl_normalisation(config),
            packing,
        },
        VaeConfig::Tiny(config) => LatentSpace {
            channels: config.latent_channels,
            spatial_factor: config
                .upsampling_scaling_factor
                .saturating_pow(config.decoder_block_out_channels.len() as u32 - 1),
            normalisation: Normalisation::Identity { family: None },
            packing,
        },
        VaeConfig::HunyuanVideo(config) => LatentSpace {
            channels: config.latent_channels,
            spatial_factor: config.spatial_compression_ratio,
            normalisation: Normalisation::Scalar {
                scaling_factor: config.scaling_factor,
                shift_factor: None,
            },
            packing: Packing::None,
        },
        VaeConfig::Dc(config) => LatentSpace {
            channels: config.latent_channels,
            spatial_factor: config.spatial_factor(),
            normalisation: Normalisation::Scalar {
                scaling_factor: config.scaling_factor,
                shift_factor: None,
            },
            packing: Packing::None,
        },
        VaeConfig::Wan(config) => LatentSpace {
            channels: config.z_dim,
            spatial_factor: config.spatial_factor(),
            normalisation: Normalisation::PerChannel {
                mean: config.latents_mean.clone(),
                std: config.latents_std.clone(),
                scaling_factor: 1.0,
            },
            packing: match family {
                Family::AutoencoderKlQwenImage => packing,
                _ => Packing::None,
            },
        },
    }
}

/// The statistics of FLUX.2's batch norm. The deviation is rounded as PyTorch rounds it: the sum and its root in f32.
fn batch_norm(
    checkpoint: &Checkpoint,
    names: &KlNames,
    channels: usize,
    epsilon: f64,
) -> Result<Normalisation, ModelError> {
    let read = |statistic: &str| {
        let name = format!("{}bn.{statistic}", names.prefix);
        checkpoint.check(&WeightSpec::whole(name.clone(), vec![4 * channels]))?;
        let values = checkpoint.read_f32(&name)?;
        Ok::<_, ModelError>((name, values))
    };
    let (name, mean) = read("running_mean")?;
    if let Some(bad) = mean.iter().find(|value| !value.is_finite()) {
        return Err(tensor_error(&name, format!("it holds {bad}, expected finite numbers")));
    }
    let (name, variance) = read("running_var")?;
    let deviation: Vec<f32> = variance.iter().map(|value| (value + epsilon as f32).sqrt()).collect();
    if let Some(at) = deviation.iter().position(|value| !(value.is_finite() && *value > 0.0)) {
        let message = format!("it holds {}, expected finite numbers above -{epsilon}", variance[at]);
        return Err(tensor_error(&name, message));
    }
    let double = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
    Ok(Normalisation::PerPatchElement { mean: double(mean), std: double(deviation) })
}

fn kl_normalisation(config: &KlConfig) -> Normalisation {
    match (&config.latents_mean, &config.latents_std) {
        (Some(mean), Some(std)) => Normalisation::PerChannel {
            mean: mean.clone(),
            std: std.clone(),
            scaling_factor: config.scaling_factor,
        },
        _ => {
            Normalisation::Scalar { scaling_factor: config.scaling_factor, shift_factor: config.shift_factor }
        }
    }
}
