//! `remote-vae demo`: the main job once, end to end, over real HTTP.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use remote_vae_client::{Client, DecodeOptions, EncodeOptions, Output, Source};
use remote_vae_engine::{Autoencoder, Precision, memory};
use remote_vae_server::{ModelEntry, Server, ServerOptions};

use crate::arguments::DemoOptions;
use crate::{local, place, serve, signals};

/// The photograph that comes with the program; source and licence stand beside it.
const PHOTOGRAPH: &[u8] = include_bytes!("../assets/demo.png");

pub(crate) fn run(options: &DemoOptions) -> Result<()> {
    signals::discard_drafts();
    let autoencoder = Arc::new(local::autoencoder(&options.model, &options.engine)?);
    let file = match &options.image {
        Some(path) => std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => PHOTOGRAPH.to_vec(),
    };
    let picture = remote_vae_media::decode_image(&file, &local::PICTURE_LIMITS)
        .and_then(|picture| {
            remote_vae_media::resize_to_multiple(picture, autoencoder.model().spatial_factor())
        })
        .context("cannot use the photograph")?;
    let input = remote_vae_media::encode_png(&picture.pixels, picture.width, picture.height)?;
    std::fs::create_dir_all(&options.output)
        .with_context(|| format!("cannot make the folder {}", options.output.display()))?;
    place::write(&options.output.join("demo-input.png"), &input)?;

    let mut output = std::io::stdout();
    let precision = options.engine.precision();
    let round_trip = serve::runtime()?.block_on(round_trip(Arc::clone(&autoencoder), precision, input))?;
    let decoded = remote_vae_media::decode_image(&round_trip.png, &local::PICTURE_LIMITS)?;
    let psnr = remote_vae_media::psnr(&picture.pixels, &decoded.pixels);
    place::write(&options.output.join("demo.png"), &round_trip.png)?;

    let engine = autoencoder.engine();
    let seconds = |duration: Duration| format!("{:.2} s", duration.as_secs_f64());
    writeln!(output, "server    {} with the model {}", round_trip.url, autoencoder.model().label())?;
    writeln!(output, "engine    {}, {} threads", engine.name(precision), engine.threads())?;
    writeln!(
        output,
        "encode    {}x{} photograph -> latents {:?}, {}",
        picture.width,
        picture.height,
        round_trip.latents,
        seconds(round_trip.encode)
    )?;
    writeln!(
        output,
        "decode    latents -> {}x{} picture, {}",
        decoded.width,
        decoded.height,
        seconds(round_trip.decode)
    )?;
    writeln!(output, "quality   PSNR {psnr:.2} dB against the photograph")?;
    if let Some(peak) = memory::peak_resident_bytes() {
        writeln!(output, "memory    {} MiB at the peak, the whole process", peak >> 20)?;
    }
    writeln!(output, "written   {}", options.output.join("demo-input.png").display())?;
    writeln!(output, "          {}", options.output.join("demo.png").display())?;
    if options.model == "embedded" {
        writeln!(
            output,
            "\nThe embedded model is small, so the picture is soft. A real one, from the Hugging Face hub:"
        )?;
        writeln!(output, "  remote-vae serve --model sd-v1")?;
    }
    Ok(())
}

struct RoundTrip {
    url: String,
    latents: Vec<usize>,
    png: Vec<u8>,
    encode: Duration,
    decode: Duration,
}

/// Serves the model on a free port, and sends the photograph there and back.
async fn round_trip(
    autoencoder: Arc<Autoencoder>,
    precision: Precision,
    photograph: Vec<u8>,
) -> Result<RoundTrip> {
    let options = ServerOptions { port: 0, precision, ..ServerOptions::default() };
    let server = Server::bind(options, vec![ModelEntry { name: "demo".into(), autoencoder }]).await?;
    let (handle, url) = (server.shutdown_handle(), format!("http://{}", server.address()));
    let running = tokio::spawn(server.run());
    handle.ready().await;
    let client = Client::new(&url)?;
    let spinner = local::spinner("encoding the photograph");
    let start = Instant::now();
    let encoding = EncodeOptions::default().scaled_by_model();
    let latents = client.encode(Source::file(photograph), &encoding).await?.tensor()?;
    let encode = start.elapsed();
    spinner.set_message("decoding the latents");
    let start = Instant::now();
    let decoding = DecodeOptions::new(Output::Png).scaled_by_model();
    let png = client.decode(&latents, &decoding).await?.file()?;
    let decode = start.elapsed();
    spinner.finish_and_clear();
    handle.shutdown();
    running.await.context("the server stopped")??;
    Ok(RoundTrip { url, latents: latents.shape, png, encode, decode })
}
