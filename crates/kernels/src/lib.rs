//! The numbers of a VAE on a CPU: one file per operation, thin wrappers per instruction set. Convolution has eight
//! algorithms, everything else one.
//!
//! The crate knows nothing of models or graphs. Activations lie in the *blocked* layout of [`layout`],
//! `[channel block][height][width][16]`, in either [`Storage`], one sample at a time. Every operation takes a [`Pool`] and writes the same
//! bytes for any number of threads: what may round (tiles, chunks, the order of sums) depends on shapes alone.

mod ahead;
pub mod allocator;
mod amx;
pub mod attention;
mod buffer;
mod bytes;
pub mod clip;
pub mod convolution;
mod direct;
pub mod elementwise;
mod epilogue;
mod form;
pub mod grouped;
mod half;
mod integers;
mod isa;
pub mod layout;
pub mod linear_attention;
mod math;
mod microkernel;
mod moments;
pub mod norm;
mod pairs;
pub mod peak;
mod pointwise;
mod pool;
mod prologue;
pub mod rearrange;
mod reduce;
pub mod rms_norm;
mod shared;
mod shift_add;
mod strided;
pub mod strip;
mod tensor;
mod tile_direct;
mod transformed;
mod upsample_fold;
mod vector;
mod weights;
mod winograd;

pub use buffer::Buffer;
pub use elementwise::Activation;
pub use isa::{Isa, IsaError};
pub use pool::Pool;
pub use tensor::{Storage, Tensor, TensorMut};
