//! Encodes a photograph on a server and decodes it again, with a line of progress:
//! `cargo run --release -p remote-vae-client --example round_trip -- http://127.0.0.1:8080 photo.png out.png`

use std::path::Path;
use std::time::Duration;

use remote_vae_client::{Client, DecodeOptions, EncodeOptions, Output, Source, blocking};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [url, input, output] => run(url, input.as_ref(), output.as_ref()),
        _ => Err("write: round_trip URL INPUT OUTPUT.png".into()),
    }
}

/// The test of the crate's public face calls this.
pub(crate) fn run(url: &str, input: &Path, output: &Path) -> Outcome {
    let builder = Client::builder(url).timeout(Duration::from_secs(300)).retries(3).on_progress(|progress| {
        eprintln!("{:?} {} of {} bytes", progress.stage, progress.done, progress.total)
    });
    let client = blocking::Client::from_builder(builder)?;
    let photograph = Source::file(std::fs::read(input)?);
    let latents = client.encode(photograph, &EncodeOptions::default().scaled_by_model())?.tensor()?;
    let reply = client.decode(&latents, &DecodeOptions::new(Output::Png).scaled_by_model())?;
    eprintln!("decoded in {:?} by {}", reply.timing.engine, reply.engine.as_deref().unwrap_or("a server"));
    std::fs::write(output, reply.file()?)?;
    Ok(())
}
