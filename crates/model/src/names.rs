//! Tensor names: finds out how a checkpoint names its tensors and turns the names of diffusers, which the graphs are
//! written with, into those of the file.
//!
//! - **diffusers**: `decoder.up_blocks.0.resnets.1.conv1.weight`; files of 2022 name the attention layers `query`, `key`,
//!   `value` and `proj_attn`.
//! - **LDM** (also ComfyUI, A1111, BFL): `decoder.up.3.block.1.conv1.weight`, the levels of the decoder counted from the
//!   largest pictures; `mid.block_1`, `mid.attn_1.{norm,q,k,v,proj_out}`, `nin_shortcut`, `norm_out`. BFL's FLUX.2 files
//!   keep the quant convolutions inside the halves (`encoder.quant_conv`, `decoder.post_quant_conv`).
//! - **HunyuanVideo**: diffusers' names, which are Tencent's, or those of LDM, both with `.conv` at the end of each
//!   convolution, told in [`crate::detect_video`].
//! - **TAESD**: diffusers' `decoder.layers.3.conv.0.weight`, or bare numbers (`4.conv.0.weight`), where the decoder counts
//!   its clamp as layer 0; a file may hold one half alone.
//! - **Wan**: diffusers' and the original one, told in [`crate::detect_wan`].
//! - **AutoencoderDC**: diffusers' alone.
//!
//! All may have a prefix such as `first_stage_model.`, `vae.` or `model.vae.`, which is found by looking for the first
//! layers.

use std::collections::{BTreeMap, HashSet};

use crate::ModelError;
use crate::checkpoint::Checkpoint;
use crate::config::{Family, MAX_LEVELS};
use crate::detect_dc::DcNames;
use crate::detect_video;
use crate::detect_wan::WanNames;
use crate::graph::{BatchNorm, Graph, WeightSpec};
use crate::header::tensor_error;

/// Layer numbers of a TAESD sequence beyond this are not believed.
const MAX_TINY_LAYERS: usize = 2048;

/// The most prefixes that are looked at.
const MAX_TINY_PREFIXES: usize = 16;

/// The most usual prefixes, the first found wins; others follow by length.
const PREFIXES: [&str; 3] = ["", "first_stage_model.", "vae."];

/// One half of an autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    Decoder,
    Encoder,
}

impl Half {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Half::Decoder => "decoder",
            Half::Encoder => "encoder",
        }
    }
}

/// How a checkpoint names its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    Kl(KlNames),
    Tiny(TinyNames),
    HunyuanVideo(KlNames),
    Wan(WanNames),
    Dc(DcNames),
}

/// Naming of an `AutoencoderKL` or `AutoencoderKLFlux2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KlNames {
    pub prefix: String,
    pub style: KlStyle,
    pub halves: [bool; 2],
    /// Whether the file holds the batch-norm statistics that make it an `AutoencoderKLFlux2`.
    pub batch_norm: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KlStyle {
    Diffusers,
    Ldm {
        /// Levels of the decoder, which counts them the other way round.
        levels: usize,
    },
}

/// Naming of an `AutoencoderTiny`: each half has its own sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TinyNames {
    pub decoder: Option<Sequence>,
    pub encoder: Option<Sequence>,
}

/// A numbered sequence of layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sequence {
    /// What stands before the number.
    pub prefix: String,
    /// Added to diffusers' number.
    pub offset: usize,
}

impl Names {
    /// Finds the naming of a checkpoint; `None` when it holds nothing of the kinds that are run.
    pub(crate) fn detect(checkpoint: &Checkpoint) -> Option<Names> {
        DcNames::detect(checkpoint)
            .map(Names::Dc)
            .or_else(|| KlNames::detect(checkpoint).map(Names::Kl))
            .or_else(|| TinyNames::detect(checkpoint).map(Names::Tiny))
            .or_else(|| detect_video::hunyuan_names(checkpoint).map(Names::HunyuanVideo))
            .or_else(|| WanNames::detect(checkpoint).map(Names::Wan))
    }

    pub(crate) fn family(&self) -> Family {
        match self {
            Names::Kl(names) if names.batch_norm => Family::AutoencoderKlFlux2,
            Names::Kl(_) => Family::AutoencoderKl,
            Names::Tiny(_) => Family::AutoencoderTiny,
            Names::HunyuanVideo(_) => Family::AutoencoderKlHunyuanVideo,
            Names::Wan(_) => Family::AutoencoderKlWan,
            Names::Dc(_) => Family::AutoencoderDc,
        }
    }

    /// Whether the file holds this half.
    pub(crate) fn has(&self, half: Half) -> bool {
        match (self, half) {
            (Names::Kl(names) | Names::HunyuanVideo(names), half) => names.halves[half as usize],
            (Names::Wan(names), half) => names.halves[half as usize],
            (Names::Dc(names), half) => names.halves[half as usize],
            (Names::Tiny(names), Half::Decoder) => names.decoder.is_some(),
            (Names::Tiny(names), Half::Encoder) => names.encoder.is_some(),
        }
    }

    /// The name in the file of a tensor that diffusers calls `name`.
    pub(crate) fn find(&self, checkpoint: &Checkpoint, name: &str) -> Option<String> {
        self.candidates(name).into_iter().find(|candidate| checkpoint.shape(candidate).is_some())
    }

    /// Gives the weights of a graph their names in the file and checks their shapes and types.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] for the first that is absent or misshapen.
    pub(crate) fn resolve(&self, checkpoint: &Checkpoint, graph: &mut Graph) -> Result<(), ModelError> {
        for spec in &mut graph.weights {
            let mut candidates = self.candidates(&spec.name);
            let found = candidates.iter().position(|candidate| checkpoint.shape(candidate).is_some());
            let Some(found) = found else {
                let label = checkpoint.label();
                let message = format!(
                    "it is not in {label}, where its name would be {}; expected shape {:?}",
                    candidates.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or "),
                    spec.shape
                );
                return Err(tensor_error(&spec.name, message));
            };
            let name = candidates.swap_remove(found);
            let batch_norm = spec
                .batch_norm
                .clone()
                .map(|norm| BatchNorm { name: self.candidates(&norm.name).swap_remove(0), ..norm });
            let is_narrow = matches!(checkpoint.type_name(&name), Some("F16" | "BF16" | "F8_E4M3"));
            // Products with the norm's factors need more bits.
            let narrow = is_narrow && batch_norm.is_none();
            let resolved =
                WeightSpec { name, shape: spec.shape.clone(), narrow, part: spec.part, batch_norm };
            checkpoint.check(&resolved)?;
            *spec = resolved;
        }
        Ok(())
    }

    /// Checks that the graphs use every tensor of the halves that the file holds: one left over means that the model
    /// has more layers than its config says, and would decode to a wrong picture.
    ///
    /// # Errors
    /// [`ModelError::Tensor`] for the first tensor that no graph wants.
    pub(crate) fn check_all_used(
        &self,
        checkpoint: &Checkpoint,
        graphs: &[&Graph],
    ) -> Result<(), ModelError> {
        let weights = || graphs.iter().flat_map(|graph| &graph.weights);
        let used: HashSet<&str> = weights().map(|spec| spec.name.as_str()).collect();
        let norms: HashSet<&str> =
            weights().filter_map(|spec| spec.batch_norm.as_ref()).map(|norm| norm.name.as_str()).collect();
        let of_a_norm = |name: &str| {
            name.rsplit_once('.').is_some_and(|(norm, tensor)| {
                let is_known = BatchNorm::TENSORS.contains(&tensor) || tensor == "num_batches_tracked";
                is_known && norms.contains(norm)
            })
        };
        let unused =
            checkpoint.names().find(|name| self.is_own(name) && !used.contains(name) && !of_a_norm(name));
        match unused {
            None => Ok(()),
            Some(name) => {
                let shape = checkpoint.shape(name).unwrap_or_default();
                let message = format!(
                    "it is in {} with shape {shape:?}, but the model as configured has no such layer; expected a \
                     config with as many layers as the file has",
                    checkpoint.label()
                );
                Err(tensor_error(name, message))
            }
        }
    }

    /// Whether a tensor belongs to the autoencoder, and not to something else that is in the same file.
    fn is_own(&self, name: &str) -> bool {
        match self {
            Names::Kl(names) | Names::HunyuanVideo(names) => {
                name.strip_prefix(&names.prefix).is_some_and(|rest| {
                    ["decoder.", "encoder.", "quant_conv.", "post_quant_conv."]
                        .iter()
                        .any(|own| rest.starts_with(own))
                })
            }
            Names::Wan(names) => names.is_own(name),
            Names::Dc(names) => names.is_own(name),
            Names::Tiny(names) => {
                [&names.decoder, &names.encoder].into_iter().flatten().any(|Sequence { prefix, .. }| {
                    name.strip_prefix(prefix.as_str())
                        .and_then(|rest| rest.split_once('.'))
                        .is_some_and(|(number, _)| number.parse::<usize>().is_ok())
                })
            }
        }
    }

    /// The names that a tensor may have in the file, the usual first.
    fn candidates(&self, name: &str) -> Vec<String> {
        match self {
            Names::Kl(names) | Names::HunyuanVideo(names) => names.candidates(name),
            Names::Wan(names) => vec![names.candidate(name)],
            Names::Dc(names) => vec![format!("{}{name}", names.prefix)],
            Names::Tiny(names) => names.candidate(name).into_iter().collect(),
        }
    }
}

impl KlNames {
    fn detect(checkpoint: &Checkpoint) -> Option<Self> {
        let anchors = ["decoder.conv_in.weight", "encoder.conv_in.weight"];
        let mut prefixes: Vec<&str> = Vec::new();
        for name in checkpoint.names().filter(|name| checkpoint.shape(name).is_some_and(|s| s.len() == 4)) {
            for anchor in anchors {
                if let Some(prefix) = name.strip_suffix(anchor)
                    && (prefix.is_empty() || prefix.ends_with('.'))
                {
                    prefixes.push(prefix);
                }
            }
        }
        let rank =
            |prefix: &str| PREFIXES.iter().position(|usual| *usual == prefix).unwrap_or(PREFIXES.len());
        let prefix = prefixes.into_iter().min_by_key(|prefix| (rank(prefix), prefix.len(), *prefix))?;
        let has = |rest: &str| checkpoint.names_under(&format!("{prefix}{rest}")).next().is_some();
        let style = if has("decoder.up.") || has("encoder.down.") {
            let levels = (0..MAX_LEVELS).take_while(|level| has(&format!("decoder.up.{level}."))).count();
            KlStyle::Ldm { levels }
        } else {
            KlStyle::Diffusers
        };
        let halves = anchors.map(|anchor| checkpoint.shape(&format!("{prefix}{anchor}")).is_some());
        let batch_norm = has("bn.running_mean");
        Some(Self { prefix: prefix.to_owned(), style, halves, batch_norm })
    }

    fn candidates(&self, name: &str) -> Vec<String> {
        let prefix = &self.prefix;
        let mut candidates = Vec::with_capacity(2);
        match self.style {
            KlStyle::Diffusers => {
                candidates.push(format!("{prefix}{name}"));
                if name.contains(".attentions.") {
                    candidates.push(format!("{prefix}{}", replace_any(name, &OLD_ATTENTION)));
                }
            }
            KlStyle::Ldm { levels } => candidates.push(format!("{prefix}{}", ldm_name(name, levels))),
        }
        for (plain, half) in [("quant_conv.", "encoder."), ("post_quant_conv.", "decoder.")] {
            if name.starts_with(plain) {
                candidates.push(format!("{prefix}{half}{name}"));
            }
        }
        candidates
    }
}

const OLD_ATTENTION: [(&str, &str); 4] =
    [(".to_q.", ".query."), (".to_k.", ".key."), (".to_v.", ".value."), (".to_out.0.", ".proj_attn.")];

const LDM_ATTENTION: [(&str, &str); 5] = [
    (".group_norm.", ".norm."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".proj_out."),
];

const LDM_LAYERS: [(&str, &str); 8] = [
    (".conv_norm_out.", ".norm_out."),
    (".mid_block.resnets.0.", ".mid.block_1."),
    (".mid_block.resnets.1.", ".mid.block_2."),
    (".mid_block.attentions.0.", ".mid.attn_1."),
    (".conv_shortcut.", ".nin_shortcut."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    (".resnets.", ".block."),
];

/// The LDM name of a tensor in a decoder of `levels` levels.
fn ldm_name(name: &str, levels: usize) -> String {
    let mut text = name.to_owned();
    if name.contains(".attentions.") {
        text = replace_any(&text, &LDM_ATTENTION);
    }
    text =
        replace_any(&text, &LDM_LAYERS).replace(".attentions.", ".attn.").replace(".down_blocks.", ".down.");
    if let Some(rest) = text.strip_prefix("decoder.up_blocks.")
        && let Some((level, tail)) = rest.split_once('.')
        && let Some(reversed) = level.parse::<usize>().ok().and_then(|level| levels.checked_sub(level + 1))
    {
        text = format!("decoder.up.{reversed}.{tail}");
    }
    text
}

fn replace_any(text: &str, pairs: &[(&str, &str)]) -> String {
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replacen(from, to, 1))
}

/// What one layer of a TAESD sequence holds, by the shapes of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TinyLayer {
    /// A convolution `[out, in, kernel, kernel]`.
    Convolution { shape: [usize; 4], bias: bool },
    /// A block; the shape of its first convolution.
    Block { shape: [usize; 4], pool: bool },
    /// Something that no image TAESD has.
    Unknown,
}

impl TinyNames {
    fn detect(checkpoint: &Checkpoint) -> Option<Self> {
        let mut prefixes: Vec<&str> = checkpoint
            .names()
            .filter_map(|name| {
                let (prefix, _, rest) = split_number(name.strip_suffix(".conv.0.weight")?.len(), name)?;
                (rest == "conv.0.weight" && checkpoint.shape(name)?.len() == 4).then_some(prefix)
            })
            .collect();
        prefixes.sort_by_key(|prefix| (prefix.len(), *prefix));
        prefixes.dedup();
        let (mut decoder, mut encoder) = (None, None);
        for prefix in prefixes.into_iter().take(MAX_TINY_PREFIXES) {
            let layers = tiny_layers(checkpoint, prefix);
            let Some((&first, TinyLayer::Convolution { .. })) = layers.first_key_value() else { continue };
            // The decoder's clamp, if counted, is layer 0; its first convolution is followed by an activation
            // without weights, the encoder's by a block.
            let is_decoder = match (prefix.contains("decoder"), prefix.contains("encoder")) {
                (true, false) => true,
                (false, true) => false,
                _ => first == 1 || !layers.contains_key(&(first + 1)),
            };
            let half = if is_decoder { &mut decoder } else { &mut encoder };
            half.get_or_insert(Sequence { prefix: prefix.to_owned(), offset: first });
        }
        (decoder.is_some() || encoder.is_some()).then_some(Self { decoder, encoder })
    }

    pub(crate) fn half(&self, half: Half) -> Option<&Sequence> {
        match half {
            Half::Decoder => self.decoder.as_ref(),
            Half::Encoder => self.encoder.as_ref(),
        }
    }

    fn candidate(&self, name: &str) -> Option<String> {
        let (half, sequence) = match name.strip_prefix("decoder.layers.") {
            Some(rest) => (rest, self.decoder.as_ref()?),
            None => (name.strip_prefix("encoder.layers.")?, self.encoder.as_ref()?),
        };
        let (number, tail) = half.split_once('.')?;
        let number = number.parse::<usize>().ok()?;
        Some(format!("{}{}.{tail}", sequence.prefix, number + sequence.offset))
    }
}

/// The layers of the sequence `prefix`, by their numbers in the file.
pub(crate) fn tiny_layers(checkpoint: &Checkpoint, prefix: &str) -> BTreeMap<usize, TinyLayer> {
    let mut layers = BTreeMap::new();
    for name in checkpoint.names_under(prefix) {
        let Some((before, number, rest)) = split_number(prefix.len() + 1, name) else { continue };
        if before != prefix || number >= MAX_TINY_LAYERS {
            continue;
        }
        let shape = checkpoint.shape(name).and_then(|shape| <[usize; 4]>::try_from(shape).ok());
        let has = |tail: &str| checkpoint.shape(&format!("{prefix}{number}.{tail}")).is_some();
        match (rest, shape) {
            ("weight", Some(shape)) => {
                layers.insert(number, TinyLayer::Convolution { shape, bias: has("bias") });
            }
            ("conv.0.weight", Some(shape)) => {
                layers.insert(number, TinyLayer::Block { shape, pool: has("pool.0.weight") });
            }
            (
                "bias" | "conv.0.bias" | "conv.2.weight" | "conv.2.bias" | "conv.4.weight" | "conv.4.bias",
                _,
            ) => {}
            (rest, _) if rest.starts_with("pool.") => {}
            _ => {
                layers.insert(number, TinyLayer::Unknown);
            }
        }
    }
    layers
}

/// Splits a name at the number that ends before byte `near` or the next dot: what stands before it, the number, and
/// what follows its dot.
fn split_number(near: usize, name: &str) -> Option<(&str, usize, &str)> {
    let end = near + name.get(near..)?.find('.')?;
    let start = name[..end].rfind('.').map_or(0, |dot| dot + 1);
    let number = name[start..end].parse().ok()?;
    Some((&name[..start], number, &name[end + 1..]))
}
