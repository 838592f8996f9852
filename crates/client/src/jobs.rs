//! Jobs: work that is handed in now and fetched later, from this project's server (`/v1/jobs`; other servers of the
//! protocol have none).
//!
//! ```
//! use remote_vae_client::{Client, DecodeOptions, JobEvent, Output, Tensor};
//! use remote_vae_wire::Dtype;
//!
//! # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/serve.rs")); }
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (url, _handle) = support::serve(vec![]).await;
//! let client = Client::new(url)?; // for instance "http://127.0.0.1:8080"
//! let latents = Tensor::from_f32(vec![1, 4, 8, 8], Dtype::Float16, &[0.5; 256])?;
//! let job = client.submit_decode(&latents, &DecodeOptions::new(Output::Png).scaled_by_model()).await?;
//! let mut events = job.events().await?;
//! while let Some(event) = events.next().await {
//!     match event? {
//!         JobEvent::Preview(png) => println!("a preview of {} bytes", png.len()),
//!         JobEvent::Status(status) => println!("{:?}: {:.0} %", status.state, 100.0 * status.progress),
//!         _ => println!("somebody cancelled it"),
//!     }
//! }
//! let picture = job.result().await?.file()?;
//! job.cancel().await?; // the server forgets the result
//! # assert!(picture.starts_with(b"\x89PNG"));
//! # Ok(())
//! # }
//! ```

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use remote_vae_wire::HEADER_SHAPE;
use reqwest::{Method, Response, Url};
use serde::{Deserialize, Deserializer};

use crate::client::{Attempt, Client};
use crate::connect::shown;
use crate::error::ClientError;
use crate::options::{DecodeOptions, EncodeOptions, Source};
use crate::reply::Reply;
use crate::retry;
use crate::tensor::Tensor;

/// Longest event that is read; a preview has at most 128 pixels each way.
const LONGEST_EVENT: usize = 1 << 20;
/// Instead of the client's limit on a whole answer: events go on for as long as the job does.
const ENDLESS: Duration = Duration::from_secs(u32::MAX as u64);

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum JobState {
    /// It waits for the engine.
    Queued,
    /// The engine works on it, or its answer is being made.
    Running,
    /// Its result can be fetched.
    Done,
    /// There will be no result.
    Failed,
}

impl JobState {
    /// Whether nothing more will happen.
    pub fn is_over(self) -> bool {
        matches!(self, JobState::Done | JobState::Failed)
    }
}

/// What the server tells of a job.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct JobStatus {
    /// The job's name, which cannot be guessed; for [`Client::job`].
    pub id: String,
    /// Where it stands.
    pub state: JobState,
    /// `decode` or `encode`.
    pub operation: String,
    /// The model's name on the server.
    pub model: String,
    /// Whether there is an early preview.
    #[serde(rename = "preview")]
    pub has_preview: bool,
    /// Share of the work that is done, 0 to 1.
    pub progress: f64,
    /// Time until the engine should have done it; none once it has, and before the server knows its speed.
    #[serde(rename = "expected_seconds", default, deserialize_with = "seconds")]
    pub time_left: Option<Duration>,
    /// Time since it was handed in, until its end.
    #[serde(rename = "age_seconds", default, deserialize_with = "seconds")]
    pub age: Option<Duration>,
    /// Time for which the result is still kept.
    #[serde(rename = "expires_in_seconds", default, deserialize_with = "seconds")]
    pub expires_in: Option<Duration>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<String>,
}

/// Seconds that are no time (negative, not finite) are none.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let seconds = Option::<f64>::deserialize(deserializer)?;
    Ok(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
}

/// What happens to a job.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum JobEvent {
    /// The early preview, a PNG file: comes first, if there is one.
    Preview(Vec<u8>),
    /// The state or the progress has changed; the last of these has a state that [is over](JobState::is_over).
    Status(JobStatus),
    /// Somebody cancelled the job, or its result has expired.
    Deleted,
}

/// A job on a server. Dropping it does not stop the work: [`Job::cancel`] does.
#[derive(Debug, Clone)]
pub struct Job {
    client: Client,
    id: String,
}

impl Client {
    /// Hands in a decode, as [`Client::decode`] would do it, with the model that the address names.
    ///
    /// # Errors
    /// The server cannot be reached, has no jobs, or refuses what it would refuse of a decode, at once. After a connection
    /// that broke ([`ClientError::Connection`]) there may be a job that nobody knows: it is not handed in again.
    pub async fn submit_decode(&self, latents: &Tensor, options: &DecodeOptions) -> Result<Job, ClientError> {
        self.submit(Attempt::decode(self.jobs_address("decode"), latents, options)?).await
    }

    /// Hands in an encode, as [`Client::encode`] would do it, with the model that the address names.
    ///
    /// # Errors
    /// The server cannot be reached, has no jobs, or refuses what it would refuse of an encode, at once. After a connection
    /// that broke ([`ClientError::Connection`]) there may be a job that nobody knows: it is not handed in again.
    pub async fn submit_encode(&self, source: Source, options: &EncodeOptions) -> Result<Job, ClientError> {
        self.submit(Attempt::encode(self.jobs_address("encode"), source, options)?).await
    }

    /// The job of this [id](Job::id), perhaps of another process. Asks nobody whether there is one.
    pub fn job(&self, id: impl Into<String>) -> Job {
        Job { client: self.clone(), id: id.into() }
    }

    async fn submit(&self, attempt: Attempt) -> Result<Job, ClientError> {
        let (_, body) = self.send(&attempt.at_most_once()).await?;
        Ok(self.job(read_status(&body)?.id))
    }

    /// Where jobs are made; the first part of the client's own path, if it is no operation, is a model's name.
    fn jobs_address(&self, operation: &str) -> Url {
        let mut url = self.url.clone();
        let own = url.path_segments().into_iter().flatten().find(|part| !part.is_empty());
        let model = own.filter(|part| !["predict", "decode", "encode"].contains(part)).map(str::to_owned);
        url.set_path("/v1/jobs");
        let mut query = url.query_pairs_mut();
        query.append_pair("operation", operation);
        if let Some(model) = model {
            query.append_pair("model", &model);
        }
        drop(query);
        url
    }
}

impl Job {
    /// The job's name, for [`Client::job`]. Whoever knows it (and the key) may read and delete the job.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where the job stands.
    ///
    /// # Errors
    /// The server cannot be reached, or knows no such job (any more).
    pub async fn status(&self) -> Result<JobStatus, ClientError> {
        let (_, body) = self.client.send(&Attempt::short(Method::GET, self.address(""))).await?;
        read_status(&body)
    }

    /// A PNG file of one pixel for each latent, at most 128 each way; none of an encode, and of latents whose colours
    /// nobody knows.
    ///
    /// # Errors
    /// The server cannot be reached, or knows no such job (any more).
    pub async fn preview(&self) -> Result<Option<Vec<u8>>, ClientError> {
        if !self.status().await?.has_preview {
            return Ok(None);
        }
        let (_, file) = self.client.send(&Attempt::short(Method::GET, self.address("/preview"))).await?;
        Ok(Some(file))
    }

    /// What happens to the job from now on, and where it stands now.
    ///
    /// # Errors
    /// The server cannot be reached, or knows no such job (any more).
    pub async fn events(&self) -> Result<JobEvents, ClientError> {
        let request = self.client.request(&Attempt::fetch(self.address("/events"))).timeout(ENDLESS).send();
        let response = match self.client.timeout {
            Some(limit) => tokio::time::timeout(limit, request).await.map_err(|_| self.silence(limit))?,
            None => request.await,
        };
        let response = response.map_err(|error| self.client.failure(&error))?;
        if !response.status().is_success() {
            self.client.finish(response, false).await?;
            return Err(ClientError::Answer { reason: "expected events".to_owned() });
        }
        Ok(JobEvents { job: self.clone(), response, unread: Vec::new(), searched: 0, is_over: false })
    }

    /// Waits until the job is over, telling of each step, and fetches the result. Goes on after a broken connection as
    /// often as the client retries without the job having moved meanwhile.
    ///
    /// # Errors
    /// Those of [`Job::events`] and [`Job::result`].
    pub async fn wait(&self, mut told: impl FnMut(&JobStatus)) -> Result<Reply, ClientError> {
        let (mut number, mut stand) = (0, None);
        loop {
            let mut heard = |status: &JobStatus| {
                let now = Some((status.state, status.progress));
                if stand != now {
                    (number, stand) = (0, now);
                }
                told(status);
            };
            match self.follow(&mut heard).await {
                Ok(()) => return self.result().await,
                Err(ClientError::Connection { .. }) if number < self.client.retries => {
                    tokio::time::sleep(retry::wait(number, None)).await;
                    number += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn follow(&self, told: &mut impl FnMut(&JobStatus)) -> Result<(), ClientError> {
        let mut events = self.events().await?;
        while let Some(event) = events.next().await {
            if let JobEvent::Status(status) = event? {
                told(&status);
            }
        }
        Ok(())
    }

    /// The answer that the same request without a job would have had, as often as it is asked for while the server keeps it.
    ///
    /// # Errors
    /// The server cannot be reached, knows no such job (any more), the job failed (with its error's status), or it is not
    /// over yet (409).
    pub async fn result(&self) -> Result<Reply, ClientError> {
        let (headers, body) = self.client.send(&Attempt::fetch(self.address("/result"))).await?;
        Reply::read(&headers, body, headers.contains_key(HEADER_SHAPE))
    }

    /// Stops the job if it is not over, and lets the server forget its result.
    ///
    /// # Errors
    /// The server cannot be reached, or knows no such job (any more).
    pub async fn cancel(&self) -> Result<(), ClientError> {
        match self.client.send_counted(&Attempt::short(Method::DELETE, self.address(""))).await {
            // An attempt before this one was heard, though its answer was lost.
            (1.., Err(ClientError::Refused { status: 404, .. })) => Ok(()),
            (_, outcome) => outcome.map(drop),
        }
    }

    fn address(&self, what: &str) -> Url {
        let mut url = self.client.url.clone();
        // An id with characters of other places of an address stays a part of the path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.clear().extend(["v1", "jobs", &self.id]);
            path.extend(what.strip_prefix('/'));
        }
        url
    }

    fn silence(&self, timeout: Duration) -> ClientError {
        ClientError::Timeout { address: shown(&self.client.url), timeout }
    }
}

fn read_status(body: &[u8]) -> Result<JobStatus, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Answer { reason: error.to_string() })
}

/// The events of a job as they come. Dropping it stops listening, not the job.
#[derive(Debug)]
pub struct JobEvents {
    job: Job,
    response: Response,
    unread: Vec<u8>,
    /// Bytes of `unread` before which no event ends.
    searched: usize,
    is_over: bool,
}

impl JobEvents {
    /// The next event; `None` after the last. A call that is given up loses nothing.
    ///
    /// # Errors
    /// The connection broke, was silent for the client's timeout, or what came is no event.
    pub async fn next(&mut self) -> Option<Result<JobEvent, ClientError>> {
        if self.is_over {
            return None;
        }
        let event = self.read().await;
        self.is_over = match &event {
            Ok(JobEvent::Status(status)) => status.state.is_over(),
            Ok(JobEvent::Preview(_)) => false,
            Ok(JobEvent::Deleted) | Err(_) => true,
        };
        Some(event)
    }

    async fn read(&mut self) -> Result<JobEvent, ClientError> {
        loop {
            if let Some(end) = self.unread[self.searched..].windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.unread.drain(..self.searched + end + 2).collect();
                self.searched = 0;
                // A block of comments keeps the connection open and says nothing.
                match event(&block)? {
                    Some(event) => return Ok(event),
                    None => continue,
                }
            }
            // The last byte may be the first of a pair.
            self.searched = self.unread.len().saturating_sub(1);
            if self.unread.len() > LONGEST_EVENT {
                return Err(answer(format!("an event is longer than {LONGEST_EVENT} bytes")));
            }
            let piece = self.response.chunk();
            let piece = match self.job.client.timeout {
                Some(limit) => {
                    tokio::time::timeout(limit, piece).await.map_err(|_| self.job.silence(limit))?
                }
                None => piece.await,
            };
            match piece.map_err(|error| self.job.client.failure(&error))? {
                Some(piece) => self.unread.extend_from_slice(&piece),
                None => {
                    let address = shown(&self.job.client.url);
                    let reason = "the events ended before the job did".to_owned();
                    return Err(ClientError::Connection { address, reason });
                }
            }
        }
    }
}

fn answer(reason: String) -> ClientError {
    ClientError::Answer { reason }
}

/// Reads one block of server-sent events.
fn event(block: &[u8]) -> Result<Option<JobEvent>, ClientError> {
    #[derive(Deserialize)]
    struct Preview {
        image: String,
    }
    #[derive(Deserialize)]
    struct End {
        state: String,
    }
    let text = String::from_utf8_lossy(block);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (Some(name), Some(data)) = (field("event:"), field("data:")) else { return Ok(None) };
    let wrong = |error: serde_json::Error| answer(format!("the event `{name}` cannot be read: {error}"));
    Ok(match name {
        "preview" => {
            let Preview { image } = serde_json::from_str(data).map_err(wrong)?;
            let (_, base64) =
                image.split_once(";base64,").ok_or_else(|| answer("a preview is no data URL".into()))?;
            let file = STANDARD.decode(base64).map_err(|error| answer(error.to_string()))?;
            Some(JobEvent::Preview(file))
        }
        "end" if serde_json::from_str(data).is_ok_and(|End { state }| state == "deleted") => {
            Some(JobEvent::Deleted)
        }
        "progress" | "end" => Some(JobEvent::Status(serde_json::from_str(data).map_err(wrong)?)),
        // A server of a later version may tell more.
        _ => None,
    })
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
