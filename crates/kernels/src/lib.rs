//! The numbers of a VAE on a CPU: one file per operation, thin wrappers per instruction set. Convolution has three
//! algorithms, everything else one.
//!
//! The crate knows nothing of models or graphs. Activations are `f32` in the *blocked* layout of [`layout`]:
//! `[channel block][height][width][16]`, one sample at a time. Every operation takes a [`Pool`] and writes the same
//! bytes for any number of threads: what may round (tiles, chunks, the order of sums) depends on shapes alone.

pub mod attention;
mod buffer;
pub mod convolution;
mod direct;
pub mod elementwise;
mod epilogue;
mod isa;
pub mod layout;
mod math;
mod microkernel;
pub mod norm;
pub mod peak;
mod pool;
mod prologue;
mod shared;
mod transformed;
mod upsample_fold;
mod vector;
mod weights;
mod winograd;

pub use buffer::Buffer;
pub use elementwise::Activation;
pub use isa::{Isa, IsaError};
pub use pool::Pool;
