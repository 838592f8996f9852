//! `remote-vae models`.

use std::io::Write;

use anyhow::Result;
use remote_vae_hub::ALIASES;
use remote_vae_model::{Factors, Normalisation};

use crate::arguments::ModelsOptions;
use crate::local;

pub(crate) fn run(options: &ModelsOptions) -> Result<()> {
    let embedded = ["embedded".to_owned()];
    let sources = if options.sources.is_empty() { &embedded[..] } else { &options.sources };
    let descriptions =
        sources.iter().map(|source| Ok(local::model(source)?.description())).collect::<Result<Vec<_>>>()?;
    let mut output = std::io::stdout().lock();
    if options.json {
        writeln!(output, "{}", serde_json::to_string_pretty(&descriptions)?)?;
        return Ok(());
    }
    for model in descriptions {
        let millions = |count: Option<u64>| match count {
            Some(count) => format!("{:.2} M", count as f64 / 1e6),
            None => "none".to_owned(),
        };
        writeln!(output, "{}", model.source)?;
        writeln!(output, "  architecture   {}", model.family.name())?;
        let time = model
            .temporal_factor
            .map_or_else(String::new, |factor| format!(", T for {factor}*(T-1) + 1 frames"));
        let packed = model
            .packed_token_size
            .map_or_else(String::new, |size| format!("; packed [batch, tokens, {size}]"));
        writeln!(
            output,
            "  latents        {} channels, 1/{} of the picture's sides{time}{packed}",
            model.latent_channels, model.spatial_factor,
        )?;
        writeln!(output, "  latent space   {}", space(&model.scaling))?;
        writeln!(
            output,
            "  parameters     decoder {}, encoder {}, {}",
            millions(model.decoder_parameters),
            millions(model.encoder_parameters),
            model.dtype,
        )?;
        writeln!(output, "  file           {:.1} MB", model.file_bytes as f64 / 1e6)?;
    }
    if !options.sources.is_empty() {
        return Ok(());
    }
    writeln!(
        output,
        "\nServed: AutoencoderKL (SD 1.x, SD 2, SDXL, SD3, FLUX.1, Playground), AutoencoderKLFlux2 (FLUX.2), AutoencoderTiny \
         (TAESD family), AutoencoderDC (Sana); of videos AutoencoderKLHunyuanVideo, AutoencoderKLWan (Wan 2.1, Wan 2.2) and \
         AutoencoderKLQwenImage."
    )?;
    writeln!(output, "Use any of them with: remote-vae serve --model NAME=SOURCE")?;
    aliases(&mut output)?;
    Ok(())
}

/// The short names that can be a SOURCE.
fn aliases(output: &mut impl Write) -> Result<()> {
    let names: Vec<String> =
        ALIASES.iter().map(|alias| alias.names().collect::<Vec<_>>().join(", ")).collect();
    writeln!(
        output,
        "\nAliases of repositories of the hub (SOURCE is also owner/name[:folder][@revision]):"
    )?;
    for (alias, names) in ALIASES.iter().zip(&names) {
        let token = if alias.token { ", needs HF_TOKEN" } else { "" };
        writeln!(output, "  {names}")?;
        writeln!(
            output,
            "    {}, {}, {} channels, {}{token}",
            alias.repository(None),
            alias.architecture(),
            alias.space.channels(),
            alias.licence,
        )?;
    }
    Ok(())
}

/// The smallest and the largest value.
fn range(values: &[f64]) -> String {
    let smallest = values.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{smallest:.3} to {largest:.3}")
}

fn space(scaling: &Normalisation) -> String {
    match scaling {
        Normalisation::Identity { family: None } => {
            "the diffusion model's own; scaling factors are ignored".to_owned()
        }
        Normalisation::Identity { family: Some(Factors { scaling_factor, shift_factor }) } => format!(
            "the diffusion model's own; scaling factors are ignored, do_scaling=False undoes / {scaling_factor}{}",
            shift_factor.map_or_else(String::new, |shift| format!(" + {shift}"))
        ),
        Normalisation::Scalar { scaling_factor, shift_factor: None } => {
            format!("model = latents / {scaling_factor}")
        }
        Normalisation::Scalar { scaling_factor, shift_factor: Some(shift) } => {
            format!("model = latents / {scaling_factor} + {shift}")
        }
        Normalisation::PerPatchElement { mean, std } => format!(
            "model = latents * std + mean, for each of the {} elements of a 2x2 patch (std {}, mean {})",
            mean.len(),
            range(std),
            range(mean)
        ),
        Normalisation::PerChannel { mean, std, scaling_factor } => {
            format!("model = latents * {std:?} / {scaling_factor} + {mean:?}")
        }
    }
}
