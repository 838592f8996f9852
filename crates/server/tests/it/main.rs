//! Real servers on free ports, spoken to over real sockets, with small random models.

mod decode;
mod encode;
mod errors;
mod log;
mod raw;
mod service;
mod support;
