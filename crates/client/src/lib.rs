//! The Rust client of a Remote VAE endpoint: latents out, pictures back, and the other way round.
//!
//! It speaks the protocol of Hugging Face's "Remote VAE" endpoints and works with any server of it. What the Python
//! client lacks is here: timeouts, retries that honour `Retry-After`, keys, whole batches, progress, a bounded queue, and
//! errors that carry the server's words. Whole programs: `examples/` of the crate. The examples here and there run as tests,
//! against the real server.
//!
//! ```
//! use remote_vae_client::{Client, DecodeOptions, Output, Tensor};
//! use remote_vae_wire::Dtype;
//!
//! # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/serve.rs")); }
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (url, _handle) = support::serve(vec![]).await;
//! # let values = vec![0.5; 256];
//! let client = Client::new(url)?; // for instance "http://127.0.0.1:8080"
//! let latents = Tensor::from_f32(vec![1, 4, 8, 8], Dtype::Float16, &values)?;
//! let options = DecodeOptions::new(Output::Png).scaled_by_model();
//! let picture = client.decode(&latents, &options).await?.file()?;
//! # assert!(picture.starts_with(b"\x89PNG"));
//! # Ok(())
//! # }
//! ```
//!
//! Without an async runtime, [`blocking::Client`] has the same methods.
//!
//! | module | what it holds |
//! |---|---|
//! | [`tensor`] | what travels: [`Tensor`] |
//! | [`options`] | what a decode or an encode is asked for |
//! | [`progress`] | how far a request is |
//! | [`queue`] | several decodes under way while the next latents are made |
//! | [`jobs`] | work that is handed in now and fetched later: its state, events, preview and result |
//! | [`reply`] | what came back, with the server's timings |
//! | [`blocking`] | the same client without an async runtime |
#![forbid(unsafe_code)]

pub mod blocking;
mod client;
mod connect;
mod error;
pub mod jobs;
pub mod options;
pub mod progress;
pub mod queue;
pub mod reply;
mod retry;
pub mod tensor;

pub use client::{Client, ClientBuilder};
pub use error::ClientError;
pub use jobs::{Job, JobEvent, JobEvents, JobState, JobStatus};
pub use options::{Cuts, DecodeOptions, EncodeOptions, Output, Source};
pub use progress::{Progress, Stage};
pub use queue::DecodeQueue;
pub use reply::{Content, Reply, Timing};
pub use tensor::Tensor;
