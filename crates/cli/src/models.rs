//! `remote-vae models`.

use std::io::Write;

use anyhow::Result;
use remote_vae_model::Normalisation;

use crate::arguments::ModelsOptions;
use crate::local;

pub(crate) fn run(options: &ModelsOptions) -> Result<()> {
    let sources = std::iter::once("embedded").chain(options.sources.iter().map(String::as_str));
    let descriptions =
        sources.map(|source| Ok(local::model(source)?.description())).collect::<Result<Vec<_>>>()?;
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
        writeln!(output, "  architecture   {:?}", model.family)?;
        writeln!(
            output,
            "  latents        {} channels, 1/{f} of the picture's sides; packed [batch, tokens, {}]",
            model.latent_channels,
            model.packed_token_size,
            f = model.spatial_factor,
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
    writeln!(
        output,
        "\nServed: AutoencoderKL (SD 1.x, SD 2, SDXL, SD3, FLUX.1, Playground) and AutoencoderTiny (TAESD family)."
    )?;
    writeln!(output, "Use any of them with: remote-vae serve --model NAME=SOURCE")?;
    Ok(())
}

fn space(scaling: &Normalisation) -> String {
    match scaling {
        Normalisation::Identity => "the diffusion model's own; scaling factors are ignored".to_owned(),
        Normalisation::Scalar { scaling_factor, shift_factor: None } => {
            format!("model = latents / {scaling_factor}")
        }
        Normalisation::Scalar { scaling_factor, shift_factor: Some(shift) } => {
            format!("model = latents / {scaling_factor} + {shift}")
        }
        Normalisation::PerChannel { mean, std, scaling_factor } => {
            format!("model = latents * {std:?} / {scaling_factor} + {mean:?}")
        }
    }
}
