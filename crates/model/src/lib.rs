//! What a VAE is: its config, its checkpoint file, the names of its tensors, its latent space and its graph, one file
//! per architecture. How a graph is run lies outside.
#![forbid(unsafe_code)]

pub mod autoencoder_dc;
pub mod autoencoder_kl;
pub mod autoencoder_tiny;
mod builder;
pub mod checkpoint;
pub mod config;
pub mod config_dc;
pub mod config_video;
pub mod config_wan;
mod detect;
mod detect_dc;
mod detect_video;
mod detect_wan;
pub mod distribution;
mod embedded;
pub mod error;
pub mod graph;
mod header;
pub mod hunyuan_video;
pub mod latent_space;
pub mod model;
mod names;
pub mod packing;
mod preview;
pub mod random;
mod source;
pub mod wan;

pub use checkpoint::{Checkpoint, WeightSource};
pub use config::{Family, KlConfig, TinyConfig, VaeConfig};
pub use config_dc::{DcBlock, DcConfig, DcHalf, DcNorm, Resampling};
pub use config_video::HunyuanVideoConfig;
pub use config_wan::WanConfig;
pub use error::ModelError;
pub use graph::{
    Activation, Cell, Edge, First, Graph, Node, Operation, Padding, Part, Reach, Start, Time, ValueId,
    WeightId, WeightSpec,
};
pub use latent_space::{Factors, LatentSpace, Normalisation};
pub use model::{Description, Model};
pub use packing::{Layout, Packing};
