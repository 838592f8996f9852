//! The Rust client of a Remote VAE endpoint: latents out, pictures back, and the other way round.
//!
//! It speaks the protocol of Hugging Face's "Remote VAE" endpoints and works with any server of it. What the Python
//! client lacks is here: timeouts, retries that honour `Retry-After`, keys, whole batches, progress, a bounded queue, and
//! errors that carry the server's words. Examples that run: `examples/` of the crate.
//!
//! ```no_run
//! use remote_vae_client::{Client, DecodeOptions, Output, Tensor};
//! use remote_vae_wire::Dtype;
//!
//! # async fn example(latents: Vec<f32>) -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("http://127.0.0.1:8080")?;
//! let latents = Tensor::from_f32(vec![1, 4, 64, 64], Dtype::Float16, &latents)?;
//! let options = DecodeOptions::new(Output::Png).scaled_by_model();
//! let picture = client.decode(&latents, &options).await?;
//! std::fs::write("picture.png", picture.file()?)?;
//! # Ok(())
//! # }
//! ```
//!
//! Without an async runtime, [`blocking::Client`] has the same methods:
//!
//! ```no_run
//! use remote_vae_client::{EncodeOptions, Source, blocking::Client};
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::new("http://127.0.0.1:8080")?;
//! let latents = client.encode(Source::file(std::fs::read("photo.jpg")?), &EncodeOptions::default())?;
//! println!("{:?}", latents.tensor()?.shape); // [1, 4, height / 8, width / 8]
//! # Ok(())
//! # }
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | [`tensor`] | what travels: [`Tensor`] |
//! | [`options`] | what a decode or an encode is asked for |
//! | [`progress`] | how far a request is |
//! | [`queue`] | several decodes under way while the next latents are made |
//! | [`reply`] | what came back, with the server's timings |
//! | [`blocking`] | the same client without an async runtime |
#![forbid(unsafe_code)]

pub mod blocking;
mod client;
mod connect;
mod error;
pub mod options;
pub mod progress;
pub mod queue;
pub mod reply;
mod retry;
pub mod tensor;

pub use client::{Client, ClientBuilder};
pub use error::ClientError;
pub use options::{Cuts, DecodeOptions, EncodeOptions, Output, Source};
pub use progress::{Progress, Stage};
pub use queue::DecodeQueue;
pub use reply::{Content, Reply, Timing};
pub use tensor::Tensor;
