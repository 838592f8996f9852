//! Real servers on free ports, spoken to over real sockets, with small random models.

mod clip;
mod decode;
mod encode;
mod errors;
mod hostile;
mod http;
mod limits;
mod log;
mod page;
mod preview;
mod raw;
mod recorded;
mod service;
mod support;
