//! The HTTP server: latents in, pictures out, and back, in the protocol of Hugging Face's "Remote VAE" endpoints.
//!
//! A request flows one way: `routes` finds the model, `request` reads body and parameters with the wire crate,
//! `decode` or `encode` checks everything that can be wrong and makes a job, `queue` holds it, `worker` runs it on the
//! engine's thread, `answer` makes the bytes on another thread while the engine goes on.
//!
//! | module | what it holds |
//! |---|---|
//! | `options` | what an operator can set |
//! | `lifecycle` | listening, warm-up, graceful shutdown |
//! | `connections`, `watched` | the open connections: how many, and how long each may be silent |
//! | `observe` | request ids, the access log, request metrics, and the last guard against panics |
//! | `auth`, `cors`, `tls`, `watch` | keys and their limits, origins, certificates, and files that change meanwhile |
//! | `plain_errors` | JSON in place of the empty answers that the HTTP library makes itself |
//! | `routes`, `info` | paths; health, information and metrics |
//! | `typed`, `jobs`, `tensor_file` | the API below `/v1`: described by OpenAPI, asynchronous jobs, safetensors bodies |
//! | `request`, `body`, `decode`, `encode`, `answer` | the way of one request |
//! | `planning`, `memory` | what a request costs, before it is taken; the account of all that memory holds |
//! | `growing`, `picture_bytes` | answers of decodes, whose bytes are made while the engine is at work |
//! | `clip`, `clip_bytes` | decodes to videos |
//! | `page`, `status` | the page for browsers, and how the server stands and stood in the last minutes |
//! | `preview`, `early` | previews, which need no engine: as answers, and of jobs at their start |
//! | `queue`, `fair`, `worker` | the bounded line in front of the engine, its order, and the engine's thread |
//! | `metrics`, `state`, `error` | what all of these share |
#![forbid(unsafe_code)]

mod answer;
mod auth;
mod body;
mod clip;
mod clip_bytes;
mod connections;
mod cors;
mod decode;
mod early;
mod encode;
mod error;
mod fair;
mod growing;
mod info;
mod jobs;
mod lifecycle;
mod memory;
mod metrics;
mod observe;
mod options;
#[cfg(feature = "otlp")]
mod otlp;
mod page;
mod picture_bytes;
mod plain_errors;
mod planning;
mod preview;
mod queue;
mod request;
mod routes;
mod state;
mod status;
mod tensor_file;
mod tls;
mod turns;
mod typed;
mod watch;
mod watched;
mod worker;

pub use auth::ApiKey;
pub use error::ServerError;
pub use lifecycle::{Server, ServerHandle};
pub use options::{Limits, ServerOptions, TlsFiles};
pub use state::ModelEntry;
