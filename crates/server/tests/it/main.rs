//! Real servers on free ports, spoken to over real sockets, with small random models.

mod attacks;
mod clip;
mod decode;
mod encode;
mod errors;
mod families;
mod hooked;
mod hostile;
mod http;
mod jobs;
mod limits;
mod log;
mod memory;
mod page;
mod preview;
mod raw;
mod recorded;
mod rows;
mod security;
mod service;
mod support;
mod tiles;
