//! Every kernel of every instruction tier this CPU has, against naive `f64` loops.

mod attention;
mod clip;
mod convolution;
mod elementwise;
mod grouped;
mod linear_attention;
mod norm;
mod rearrange;
mod rms_norm;
mod storage;
mod strip;
mod support;
