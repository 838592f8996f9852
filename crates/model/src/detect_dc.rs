//! Finds out from the tensors alone whether a checkpoint is an `AutoencoderDC`, and its config. What tensors cannot tell:
//! activations and shortcuts, which are those of the published models (ReLU in levels with batch norms), and the scaling factor,
//! which is Sana's (0.41407) for 32 latent channels without batch norms and 1 for others.

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::config::{MAX_CHANNELS, MAX_LATENT_CHANNELS, MAX_LAYERS, MAX_LEVELS};
use crate::config_dc::{DcBlock, DcConfig, DcHalf, DcNorm, Resampling, check};
use crate::graph::Activation;
use crate::header::tensor_error;

/// Where an `AutoencoderDC` is in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DcNames {
    pub prefix: String,
    pub halves: [bool; 2],
}

/// What holds the levels of the halves.
const LEVELS: [&str; 2] = ["decoder.up_blocks.", "encoder.down_blocks."];

impl DcNames {
    /// The naming of a checkpoint, if it is of this kind: its levels hold gated convolutions.
    pub(crate) fn detect(checkpoint: &Checkpoint) -> Option<DcNames> {
        let gated = checkpoint.names().filter(|name| name.ends_with(".conv_out.conv_inverted.weight"));
        let prefixes = gated
            .filter_map(|name| LEVELS.iter().find_map(|levels| name.find(levels).map(|at| &name[..at])))
            .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'));
        let prefix = prefixes.min_by_key(|prefix| prefix.len())?.to_owned();
        let halves =
            LEVELS.map(|levels| checkpoint.names_under(&format!("{prefix}{levels}")).next().is_some());
        Some(DcNames { prefix, halves })
    }

    /// Whether a tensor belongs to the autoencoder, and not to something else that is in the same file.
    pub(crate) fn is_own(&self, name: &str) -> bool {
        let rest = name.strip_prefix(&self.prefix);
        rest.is_some_and(|rest| rest.starts_with("decoder.") || rest.starts_with("encoder."))
    }
}

/// The config of a recognised checkpoint.
///
/// # Errors
/// [`ModelError::Tensor`], [`ModelError::Config`] or [`ModelError::Unsupported`] when the shapes do not make one that is run.
pub(crate) fn config(checkpoint: &Checkpoint, names: &DcNames) -> Result<DcConfig, ModelError> {
    let finder = Finder { checkpoint, prefix: &names.prefix };
    let [has_decoder, has_encoder] = names.halves;
    let half = |is_there: bool, name: &str| is_there.then(|| finder.half(name)).transpose();
    let (decoder, encoder) = (half(has_decoder, LEVELS[0])?, half(has_encoder, LEVELS[1])?);
    let (Some(own_decoder), Some(own_encoder)) = (decoder.clone().or(encoder.clone()), encoder.or(decoder))
    else {
        return Err(ModelError::Unsupported("neither encoder nor decoder found".into()));
    };
    if own_decoder.widths.len() != own_encoder.widths.len() {
        return Err(tensor_error(LEVELS[0], "the halves have different numbers of levels".into()));
    }
    let latent_channels = if has_decoder {
        finder.side("decoder.conv_in.weight", 1, MAX_LATENT_CHANNELS)?
    } else {
        finder.side("encoder.conv_out.weight", 0, MAX_LATENT_CHANNELS)?
    };
    let in_channels = if has_encoder {
        let name =
            if own_encoder.layers[0] > 0 { "encoder.conv_in.weight" } else { "encoder.conv_in.conv.weight" };
        finder.side(name, 1, MAX_CHANNELS)?
    } else if own_decoder.layers[0] > 0 {
        finder.side("decoder.conv_out.weight", 0, MAX_CHANNELS)?
    } else {
        let made = finder.side("decoder.conv_out.conv.weight", 0, MAX_CHANNELS)?;
        if own_decoder.resampling == Resampling::Pixels { (made / 4).max(1) } else { made }
    };
    let is_sana = latent_channels == 32 && !own_decoder.norms.contains(&DcNorm::Batch);
    let config = DcConfig {
        in_channels,
        latent_channels,
        attention_head_dim: finder.head(names)?,
        encoder: own_encoder,
        decoder: own_decoder,
        encoder_out_shortcut: true,
        decoder_in_shortcut: true,
        decoder_conv_act_fn: Activation::Relu,
        scaling_factor: if is_sana { 0.41407 } else { 1.0 },
    };
    check(&config)?;
    Ok(config)
}

/// Looks up shapes by diffusers' names.
struct Finder<'a> {
    checkpoint: &'a Checkpoint,
    prefix: &'a str,
}

impl Finder<'_> {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.checkpoint.shape(&format!("{}{name}", self.prefix))
    }

    /// One side of a tensor, within 1..=most.
    fn side(&self, name: &str, axis: usize, most: usize) -> Result<usize, ModelError> {
        let side = self.shape(name).and_then(|shape| shape.get(axis).copied());
        side.filter(|side| (1..=most).contains(side)).ok_or_else(|| {
            tensor_error(name, format!("it is absent or its side {axis} is not from 1 to {most}"))
        })
    }

    /// Channels of a head, which the grouped convolutions of the scales tell; 32 where there are none.
    fn head(&self, names: &DcNames) -> Result<usize, ModelError> {
        let own = self.checkpoint.names().filter(|name| names.is_own(name));
        let mut projections = own.filter(|name| name.ends_with(".proj_out.weight"));
        let Some(name) = projections.next() else { return Ok(32) };
        self.side(&name[self.prefix.len()..], 1, MAX_CHANNELS)
    }

    /// The levels of a half.
    fn half(&self, list: &str) -> Result<DcHalf, ModelError> {
        let is_decoder = list == LEVELS[0];
        let under = |level: usize| format!("{}{list}{level}.", self.prefix);
        let has = |level: usize| self.checkpoint.names_under(&under(level)).next().is_some();
        // The largest level may be empty.
        let levels = (0..MAX_LEVELS).rev().find(|level| has(*level)).map_or(0, |last| last + 1);
        let mut half = DcHalf {
            blocks: Vec::new(),
            widths: Vec::new(),
            layers: Vec::new(),
            scales: Vec::new(),
            activations: Vec::new(),
            norms: Vec::new(),
            resampling: Resampling::Convolution,
        };
        for level in 0..levels {
            let first = usize::from(is_decoder && level + 1 < levels);
            let kind = |layer: usize| {
                let name = format!("{list}{level}.{layer}");
                let width = |tensor: &str| self.shape(&format!("{name}.{tensor}")).map(|shape| shape[0]);
                let resnet = width("conv1.weight").map(|width| (DcBlock::ResBlock, width));
                resnet.or_else(|| {
                    width("conv_out.conv_point.weight").map(|width| (DcBlock::EfficientVitBlock, width))
                })
            };
            let layers = (first..=MAX_LAYERS).take_while(|layer| kind(*layer).is_some()).count();
            let (block, width) = kind(first).unwrap_or((DcBlock::ResBlock, 0));
            let kernel = |scale: usize| {
                let name = format!("{list}{level}.{first}.attn.to_qkv_multiscale.{scale}.proj_in.weight");
                self.shape(&name).and_then(|shape| shape.get(2).copied())
            };
            half.scales.push((0..MAX_LAYERS).map_while(kernel).collect());
            let is_batch_norm = ["norm", "attn.norm_out"]
                .iter()
                .any(|norm| self.shape(&format!("{list}{level}.{first}.{norm}.running_mean")).is_some());
            let (activation, norm) = match is_batch_norm {
                true => (Activation::Relu, DcNorm::Batch),
                false => (Activation::Silu, DcNorm::Rms),
            };
            half.activations.push(activation);
            half.norms.push(norm);
            half.blocks.push(block);
            half.widths.push(width);
            half.layers.push(layers);
        }
        if levels > 1 && half.layers[0] == 0 {
            half.widths[0] = half.widths[1];
        }
        if let Some(level) = half.widths.iter().position(|width| !(1..=MAX_CHANNELS).contains(width)) {
            return Err(tensor_error(&format!("{list}{level}"), "no known block is in this level".into()));
        }
        if levels > 2 {
            // Between levels 1 and 2, which all have blocks.
            let layer = if is_decoder { 0 } else { half.layers[1] };
            let made = self.side(&format!("{list}1.{layer}.conv.weight"), 0, 4 * MAX_CHANNELS)?;
            let wanted = if is_decoder { half.widths[1] } else { half.widths[2] };
            if made != wanted {
                half.resampling = Resampling::Pixels;
            }
        }
        Ok(half)
    }
}
