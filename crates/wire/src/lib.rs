//! What travels between clients and server: parameters, headers, element types, tensors as bytes, errors as JSON.
//!
//! The protocol is that of Hugging Face's "Remote VAE" endpoints: every parameter is a query parameter and the body
//! is the bare tensor (or picture file). This crate is pure: it reads and writes bytes and strings, performs no I/O
//! and knows neither HTTP libraries nor models. Packed latents and latent statistics belong to the model crate.
//!
//! | module | what it holds |
//! |---|---|
//! | [`dtype`] | element types and their little-endian bytes |
//! | [`header`] | the `shape` and `dtype` of a tensor, with every length check |
//! | [`parameters`] | the parameters of a request, and what they say about scaling |
//! | [`query`] | query strings in and out |
//! | [`body`] | kinds of request body, and telling decode from encode |
//! | [`mod@negotiate`] | what kind of answer a request asks for |
//! | [`json`], `members` | the JSON bodies of the oldest clients, base64 answers, error bodies |
#![forbid(unsafe_code)]

pub mod body;
pub mod dtype;
pub mod error;
pub mod header;
pub mod json;
mod members;
pub mod negotiate;
pub mod parameters;
pub mod query;

#[cfg(test)]
mod tests;

pub use body::{
    BodyKind, ImageKind, Operation, classify, image_body, image_signature, video_body, video_signature,
};
pub use dtype::{Dtype, bytes_from_elements, elements_from_bytes};
pub use error::{WireError, shortened};
pub use header::{HEADER_DTYPE, HEADER_SHAPE, MAX_DIMENSIONS, TensorHeader};
pub use json::{
    base64_file, base64_tensor, error_body, error_message, parse_base64_tensor, unwrap_json_body,
};
pub use negotiate::{Answer, Encoding, Negotiated, content_type, negotiate, negotiate_encode};
pub use parameters::{ImageFormat, OutputType, Parameters, Scaling, TileSizes};
