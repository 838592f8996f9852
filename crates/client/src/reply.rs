//! What came back: a tensor or a file, and what the server told about the work.

use std::time::Duration;

use remote_vae_wire::{HEADER_DTYPE, HEADER_SHAPE, TensorHeader};
use reqwest::header::HeaderMap;

use crate::error::ClientError;
use crate::tensor::Tensor;

/// The answer to a decode or an encode.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The answer itself.
    pub content: Content,
    /// Time the server says it took; zero parts where it says nothing.
    pub timing: Timing,
    /// Device, instruction tier and precision that the server names, e.g. `cpu/avx512/exact`.
    pub engine: Option<String>,
    /// The request's id in the server's log.
    pub request_id: Option<String>,
}

/// A tensor or a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// A tensor with its shape.
    Tensor(Tensor),
    /// A picture or video file.
    File(Vec<u8>),
}

/// The stages of a request as the server measured them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timing {
    /// Waiting for the engine.
    pub queue: Duration,
    /// In the engine.
    pub engine: Duration,
    /// Making the answer's bytes.
    pub post: Duration,
}

impl Reply {
    /// The tensor.
    ///
    /// # Errors
    /// The answer is a file.
    pub fn tensor(self) -> Result<Tensor, ClientError> {
        match self.content {
            Content::Tensor(tensor) => Ok(tensor),
            Content::File(_) => Err(unexpected("a tensor", "a file")),
        }
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// The answer is a tensor.
    pub fn file(self) -> Result<Vec<u8>, ClientError> {
        match self.content {
            Content::File(bytes) => Ok(bytes),
            Content::Tensor(_) => Err(unexpected("a file", "a tensor")),
        }
    }

    /// Puts headers and body together.
    pub(crate) fn read(headers: &HeaderMap, body: Vec<u8>, wants_tensor: bool) -> Result<Self, ClientError> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let content = if wants_tensor {
            let (Some(shape), Some(dtype)) = (text(HEADER_SHAPE), text(HEADER_DTYPE)) else {
                return Err(unexpected(
                    "the headers `shape` and `dtype` of a tensor",
                    "an answer without them",
                ));
            };
            let TensorHeader { shape, dtype } = TensorHeader::parse(shape, dtype).map_err(answer_error)?;
            Content::Tensor(Tensor::new(shape, dtype, body).map_err(answer_error)?)
        } else {
            if remote_vae_wire::image_signature(&body).is_none() && !remote_vae_wire::video_signature(&body) {
                return Err(unexpected("a picture or video file", "something else"));
            }
            Content::File(body)
        };
        Ok(Self {
            content,
            timing: Timing::parse(text("server-timing").unwrap_or("")),
            engine: text("x-remote-vae-engine").map(str::to_owned),
            request_id: text("x-request-id").map(str::to_owned),
        })
    }
}

impl Timing {
    /// Reads `queue;dur=1.5, engine;dur=20`, milliseconds.
    fn parse(text: &str) -> Self {
        let mut timing = Self::default();
        for stage in text.split(',') {
            let mut parts = stage.split(';').map(str::trim);
            let slot = match parts.next() {
                Some("queue") => &mut timing.queue,
                Some("engine") => &mut timing.engine,
                Some("post") => &mut timing.post,
                _ => continue,
            };
            let milliseconds = parts.find_map(|part| part.strip_prefix("dur=")?.parse::<f64>().ok());
            *slot = Duration::try_from_secs_f64(milliseconds.unwrap_or(0.0) / 1e3).unwrap_or_default();
        }
        timing
    }
}

fn unexpected(expected: &str, found: &str) -> ClientError {
    ClientError::Answer { reason: format!("expected {expected}, got {found}") }
}

fn answer_error(error: remote_vae_wire::WireError) -> ClientError {
    ClientError::Answer { reason: error.to_string().trim_end_matches('.').to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_are_read() {
        let timing = Timing::parse("queue;dur=1.50, engine;desc=x;dur=20, other;dur=3, post");
        assert_eq!(timing.queue, Duration::from_micros(1500));
        assert_eq!(timing.engine, Duration::from_millis(20));
        assert_eq!(timing.post, Duration::ZERO);
        assert_eq!(Timing::parse("engine;dur=-1"), Timing::default());
    }

    #[test]
    fn a_wrong_answer_is_an_error() {
        let mut headers = HeaderMap::new();
        assert!(Reply::read(&headers, vec![0; 4], true).is_err());
        assert!(Reply::read(&headers, vec![0; 4], false).is_err());
        headers.insert("shape", "[1,2]".parse().unwrap());
        headers.insert("dtype", "float16".parse().unwrap());
        assert!(Reply::read(&headers, vec![0; 3], true).is_err());
        assert_eq!(Reply::read(&headers, vec![0; 4], true).unwrap().tensor().unwrap().shape, [1, 2]);
    }
}
