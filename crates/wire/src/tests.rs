//! Tests of the whole crate, by module.

mod answers;
mod requests;
mod tensors;
