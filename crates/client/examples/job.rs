//! Encodes a photograph and decodes it again as a job, with a preview at once and a line of progress:
//! `cargo run --release -p remote-vae-client --example job -- http://127.0.0.1:8080 photo.png out.png`

use std::path::Path;

use remote_vae_client::{Client, DecodeOptions, EncodeOptions, JobEvent, Output, Source};

type Outcome = Result<(), Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [url, input, output] => run(url, input.as_ref(), output.as_ref()).await,
        _ => Err("write: job URL INPUT OUTPUT.png".into()),
    }
}

/// The test of the crate's public face calls this.
pub(crate) async fn run(url: &str, input: &Path, output: &Path) -> Outcome {
    let client = Client::new(url)?;
    let photograph = Source::file(std::fs::read(input)?);
    let latents = client.encode(photograph, &EncodeOptions::default().scaled_by_model()).await?.tensor()?;
    let options = DecodeOptions::new(Output::Png).scaled_by_model();
    let job = client.submit_decode(&latents, &options).await?;
    let mut events = job.events().await?;
    while let Some(event) = events.next().await {
        match event? {
            JobEvent::Preview(png) => std::fs::write(output.with_extension("preview.png"), png)?,
            JobEvent::Status(status) => {
                let left = status.time_left.map_or(0.0, |left| left.as_secs_f64());
                eprintln!("{:?} {:3.0} %, {left:.1} s left", status.state, 100.0 * status.progress);
            }
            _ => {}
        }
    }
    std::fs::write(output, job.result().await?.file()?)?;
    job.cancel().await?;
    Ok(())
}
