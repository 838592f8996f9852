//! Why a request gave no answer. Each message is one sentence or two that a person can act on.

use std::time::Duration;

use remote_vae_wire::WireError;

/// The errors of this crate. None of them ever holds the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is none.
    #[error("Expected an address such as `http://127.0.0.1:8080`. Got `{found}`: {reason}.")]
    Address {
        /// The address given.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The key cannot be sent in a header.
    #[error("Expected a key of visible ASCII characters.")]
    Key,
    /// Nobody listens at the address.
    #[error("Nothing answers at {address}: is the server running there? ({reason})")]
    Unreachable {
        /// The address given.
        address: String,
        /// What the system said.
        reason: String,
    },
    /// The address begins with the wrong one of `http` and `https`.
    #[error("The server at {address} speaks {spoken}, not {asked}: use {instead}.")]
    Scheme {
        /// The address given.
        address: String,
        /// `http` or `https`, as the address has it.
        asked: &'static str,
        /// The other one, which the server speaks.
        spoken: &'static str,
        /// The address that should work.
        instead: String,
    },
    /// The server's certificate is not trusted.
    #[error(
        "The certificate of {address} is not trusted ({reason}); set SSL_CERT_FILE to a file with its authority's \
         certificate, or use the name that it is made for."
    )]
    Certificate {
        /// The address given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The answer did not come in time.
    #[error("{address} did not answer within {} s.", .timeout.as_secs_f64())]
    Timeout {
        /// The address given.
        address: String,
        /// The time allowed.
        timeout: Duration,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("The connection to {address} failed: {reason}.")]
    Connection {
        /// The address given.
        address: String,
        /// What the HTTP library said.
        reason: String,
    },
    /// The server refused, and said why.
    #[error("The server answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The server's words.
        message: String,
        /// When the server asked to come back.
        retry_after: Option<Duration>,
    },
    /// The answer is not what the protocol says.
    #[error("The server's answer could not be understood: {reason}.")]
    Answer {
        /// What was found and what was expected.
        reason: String,
    },
    /// A queue holds as many replies as it may.
    #[error("Expected replies to be taken before more is put. {waiting} wait already.")]
    Untaken {
        /// Replies that wait, or are under way.
        waiting: usize,
    },
    /// A decode of a queue ended without an answer.
    #[error("The decode was stopped: {reason}.")]
    Stopped {
        /// What the runtime said.
        reason: String,
    },
    /// What is to be encoded is no picture.
    #[error("{}", no_pixels(shape))]
    Pixels {
        /// The tensor's shape.
        shape: Vec<usize>,
    },
    /// A tensor whose bytes, shape and element type do not belong together.
    #[error(transparent)]
    Tensor(#[from] WireError),
    /// The blocking client was used where it would stall an async runtime.
    #[error(
        "The blocking client cannot be used inside an async runtime; use `remote_vae_client::Client` there."
    )]
    InsideRuntime,
    /// The blocking client's own runtime could not be started.
    #[error("The blocking client could not be started: {0}.")]
    Runtime(std::io::Error),
}

fn no_pixels(shape: &[usize]) -> String {
    let advice = match shape {
        [_, channels, _, _] | [_, channels, _, _, _] if *channels > 3 => {
            "; latents are made pictures by a decode"
        }
        _ => "",
    };
    format!(
        "Expected a picture file or pixels [batch, 3, height, width] to encode. Got a tensor of shape {shape:?}{advice}."
    )
}

impl ClientError {
    /// HTTP status, if the server answered with one.
    pub fn status(&self) -> Option<u16> {
        match self {
            ClientError::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}
