//! Work that is asked for now and fetched later: `POST /v1/jobs`, its state, its events, its result.
//!
//! A job's result lives in memory only: at most as many as the options allow, for as long as they allow, and its bytes
//! count among the answers. Whoever knows a job's id, which cannot be guessed, and sends the key it was made with, may
//! read and delete it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::unfold;
use remote_vae_wire::content_type;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use utoipa::ToSchema;

use crate::error::Refusal;
use crate::queue::{Charge, Client, Meter};
use crate::request::{Accepted, complete};
use crate::state::Shared;
use crate::tensor_file;
use crate::watched::Holding;

/// How often the events tell of progress.
const EVENT_STEP: Duration = Duration::from_millis(200);
/// A line at least this often, so that nobody between takes the connection for dead.
const EVENT_SILENCE: Duration = Duration::from_secs(15);

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum JobState {
    /// It waits for the engine.
    Queued,
    /// The engine works on it, or its answer is being made.
    Running,
    /// Its result can be fetched.
    Done,
    /// There will be no result; `error` says why.
    Failed,
}

/// What `/v1/jobs/{id}` tells.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(crate) struct JobStatus {
    /// The job's name in paths; a secret of whoever made it.
    id: String,
    state: JobState,
    /// `decode` or `encode`.
    operation: &'static str,
    model: String,
    /// Whether `/v1/jobs/{id}/preview` has a picture.
    preview: bool,
    /// Share of the plan's floating-point operations that is done, 0 to 1.
    progress: f64,
    /// Seconds until the engine should have done it; none once it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_seconds: Option<f64>,
    /// Seconds since it was posted, until its end.
    age_seconds: f64,
    /// Seconds for which the result is still kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_in_seconds: Option<f64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A job's end.
struct Outcome {
    at: Instant,
    result: Result<Stored, Refusal>,
}

/// An answer that waits for being fetched.
struct Stored {
    headers: HeaderMap,
    bytes: Bytes,
    _charge: Arc<Charge>,
}

struct Entry {
    id: String,
    owner: Client,
    operation: &'static str,
    model: String,
    number: u64,
    flops: u64,
    meter: Arc<Meter>,
    since: Instant,
    /// A PNG file.
    preview: Option<Bytes>,
    outcome: watch::Sender<Option<Arc<Outcome>>>,
    task: Mutex<Option<AbortHandle>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        task.inspect(AbortHandle::abort);
    }
}

/// The jobs of a server.
pub(crate) struct Jobs {
    most: usize,
    keep: Duration,
    entries: Mutex<HashMap<String, Arc<Entry>>>,
}

impl Jobs {
    pub(crate) fn new(most: usize, keep: Duration) -> Self {
        Self { most, keep, entries: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jobs that wait, run or keep a result.
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Drops the results whose time is over.
    pub(crate) fn expire(&self) {
        let over = |entry: &Arc<Entry>| {
            entry.outcome.borrow().as_ref().is_some_and(|outcome| outcome.at.elapsed() >= self.keep)
        };
        let expired: Vec<Arc<Entry>> = {
            let mut entries = self.lock();
            let ids: Vec<String> =
                entries.iter().filter(|(_, entry)| over(entry)).map(|(id, _)| id.clone()).collect();
            ids.iter().filter_map(|id| entries.remove(id)).collect()
        };
        drop(expired);
    }

    /// When the first of the results that are kept expires; none if there is none.
    pub(crate) fn until_expiry(&self) -> Option<Duration> {
        let ended = |entry: &Arc<Entry>| entry.outcome.borrow().as_ref().map(|outcome| outcome.at.elapsed());
        self.lock().values().filter_map(ended).max().map(|elapsed| self.keep.saturating_sub(elapsed))
    }

    /// 429 if no further job of this client can be kept; told before its body is read. As in the queue, the last quarter
    /// of the places is for clients that have none.
    pub(crate) fn check_room(&self, client: &Client) -> Result<(), Refusal> {
        self.expire();
        let entries = self.lock();
        let has_some = entries.values().any(|entry| entry.owner == *client);
        let open = if has_some { self.most - self.most / 4 } else { self.most };
        if entries.len() < open {
            return Ok(());
        }
        let left = |entry: &Arc<Entry>| {
            let outcome = entry.outcome.borrow();
            outcome.as_ref().map(|outcome| self.keep.saturating_sub(outcome.at.elapsed()))
        };
        let wait = entries.values().filter_map(left).min().unwrap_or(self.keep);
        let message = format!("The server keeps {} of at most {} jobs", entries.len(), self.most);
        Err(Refusal::overloaded(
            if entries.len() < self.most {
                format!("{message}; the places left are for clients that have none.")
            } else {
                format!("{message}.")
            },
            wait,
        ))
    }

    fn find(&self, id: &str, client: &Client, keyed: bool) -> Result<Arc<Entry>, Refusal> {
        self.expire();
        let found = self.lock().get(id).cloned();
        found.filter(|entry| !keyed || entry.owner == *client).ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, "There is no such job; its result may have expired.")
        })
    }
}

/// Keeps an accepted request as a job, with the file of its preview, and lets it run by itself.
pub(crate) fn start(
    shared: &Arc<Shared>,
    accepted: Accepted,
    owner: Client,
    preview: Option<Bytes>,
) -> Result<JobStatus, Refusal> {
    let jobs = &shared.jobs;
    jobs.check_room(&owner)?;
    let entry = Arc::new(Entry {
        id: new_id()?,
        owner,
        operation: accepted.operation.name(),
        model: accepted.model.clone(),
        number: accepted.ticket.id(),
        flops: accepted.ticket.flops(),
        meter: accepted.ticket.meter(),
        since: Instant::now(),
        preview,
        outcome: watch::Sender::new(None),
        task: Mutex::default(),
    });
    // The task must not keep alive what stops it when it is dropped.
    let (weak, active, for_task) = (Arc::downgrade(&entry), shared.enter(), Arc::clone(shared));
    let task = tokio::spawn(async move {
        let _active = active;
        let result = match complete(&for_task, accepted, &Default::default()).await {
            Ok((response, charge)) => store(response, charge).await,
            Err(refusal) => Err(refusal),
        };
        if let Some(entry) = weak.upgrade() {
            entry.outcome.send_replace(Some(Arc::new(Outcome { at: Instant::now(), result })));
        }
    });
    *entry.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    let status = status(shared, &entry);
    jobs.lock().insert(entry.id.clone(), entry);
    Ok(status)
}

async fn store(response: Response, charge: Arc<Charge>) -> Result<Stored, Refusal> {
    let (head, body) = response.into_parts();
    let bytes = tensor_file::whole(body).await?;
    charge.shrink_to(bytes.len() as u64);
    Ok(Stored { headers: head.headers, bytes, _charge: charge })
}

/// 128 bits from the system.
fn new_id() -> Result<String, Refusal> {
    let mut bits = [0; 16];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut bits).map_err(|_| Refusal::internal("The system gives no random numbers."))?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn status(shared: &Shared, entry: &Entry) -> JobStatus {
    let outcome = entry.outcome.borrow().clone();
    let (state, error, age, expires) = match outcome.as_deref() {
        None if entry.meter.queued().is_some() => (JobState::Running, None, entry.since.elapsed(), None),
        None => (JobState::Queued, None, entry.since.elapsed(), None),
        Some(Outcome { at, result }) => {
            let left = shared.jobs.keep.saturating_sub(at.elapsed()).as_secs_f64();
            match result {
                Ok(_) => (JobState::Done, None, *at - entry.since, Some(left)),
                Err(refusal) => {
                    (JobState::Failed, Some(refusal.message.clone()), *at - entry.since, Some(left))
                }
            }
        }
    };
    let done = if state == JobState::Done { entry.flops } else { entry.meter.done_flops().min(entry.flops) };
    let expected = if outcome.is_none() { shared.queue.until_done(entry.number) } else { None };
    JobStatus {
        id: entry.id.clone(),
        state,
        operation: entry.operation,
        model: entry.model.clone(),
        preview: entry.preview.is_some(),
        progress: done as f64 / entry.flops.max(1) as f64,
        expected_seconds: expected.map(|expected| expected.as_secs_f64()),
        age_seconds: age.as_secs_f64(),
        expires_in_seconds: expires,
        error,
    }
}

/// A job's state as JSON, and how to go on.
pub(crate) fn describe(status: &JobStatus, code: StatusCode) -> Response {
    let body = serde_json::to_string(status).unwrap_or_default();
    let mut response = (code, [(header::CONTENT_TYPE, content_type::JSON)], body).into_response();
    if let Ok(location) = HeaderValue::try_from(format!("/v1/jobs/{}", status.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// Who asks about a job.
pub(crate) struct Asker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) id: String,
    pub(crate) client: Client,
}

impl Asker {
    fn entry(&self) -> Result<Arc<Entry>, Refusal> {
        self.shared.jobs.find(&self.id, &self.client, self.shared.keys.are_wanted())
    }

    pub(crate) fn status(&self) -> Result<Response, Refusal> {
        Ok(describe(&status(&self.shared, &*self.entry()?), StatusCode::OK))
    }

    /// The answer that the same request to `/v1/decode` or `/v1/encode` would have had.
    pub(crate) fn result(&self) -> Result<Response, Refusal> {
        let entry = self.entry()?;
        let outcome = entry.outcome.borrow().clone();
        let Some(outcome) = outcome else {
            let wait = self.shared.queue.until_done(entry.number).unwrap_or(Duration::from_secs(1));
            return Err(Refusal::not_yet("The job is not done yet.", wait));
        };
        match &outcome.result {
            Err(refusal) => Err(refusal.clone()),
            Ok(stored) => {
                let body = Body::from(stored.bytes.clone());
                let mut response = Response::new(Body::new(Holding::new(body, Arc::clone(&outcome))));
                *response.headers_mut() = stored.headers.clone();
                Ok(response)
            }
        }
    }

    /// The early preview, a PNG file.
    pub(crate) fn preview(&self) -> Result<Response, Refusal> {
        let Some(file) = self.entry()?.preview.clone() else {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "This job has no preview: no factors are known for its latents, or it encodes.",
            ));
        };
        let headers = [(header::CONTENT_TYPE, content_type::PNG), (header::CACHE_CONTROL, "no-store")];
        Ok((headers, file).into_response())
    }

    /// Stops the job if it is not done, and forgets its result.
    pub(crate) fn delete(&self) -> Result<Response, Refusal> {
        let entry = self.entry()?;
        self.shared.jobs.lock().remove(&entry.id);
        // Events may hold the entry a little longer.
        entry.task.lock().unwrap_or_else(PoisonError::into_inner).take().inspect(AbortHandle::abort);
        Ok(StatusCode::NO_CONTENT.into_response())
    }

    /// Server-sent events: `preview` first if there is one, `progress` with the state whenever it has changed, `end` with the last one.
    pub(crate) fn events(&self) -> Result<Response, Refusal> {
        let entry = self.entry()?;
        let (shared, id, preview) = (Arc::clone(&self.shared), entry.id.clone(), entry.preview.clone());
        let follower = Follower { shared, id, preview, last: None, ended: false };
        drop(entry);
        let stream = unfold(follower, |mut follower| async move {
            let event = follower.next().await?;
            Some((Ok::<_, Infallible>(Bytes::from(event)), follower))
        });
        let mut response = Response::new(Body::from_stream(stream));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    }
}

/// Someone who reads a job's events.
struct Follower {
    shared: Arc<Shared>,
    id: String,
    /// The preview, until it is told.
    preview: Option<Bytes>,
    /// State and progress that were told last.
    last: Option<(JobState, f64)>,
    ended: bool,
}

impl Follower {
    async fn next(&mut self) -> Option<String> {
        if self.ended {
            return None;
        }
        if let Some(file) = self.preview.take() {
            let data = serde_json::json!({
                "image": format!("data:{};base64,{}", content_type::PNG, STANDARD.encode(file))
            });
            return Some(format!("event: preview\ndata: {data}\n\n"));
        }
        let silent_since = Instant::now();
        loop {
            let Some(entry) = self.shared.jobs.lock().get(&self.id).cloned() else {
                self.ended = true;
                return Some("event: end\ndata: {\"state\":\"deleted\"}\n\n".to_owned());
            };
            let status = status(&self.shared, &entry);
            drop(entry);
            let told = Some((status.state, status.progress));
            if self.last != told {
                self.last = told;
                self.ended = matches!(status.state, JobState::Done | JobState::Failed);
                let name = if self.ended { "end" } else { "progress" };
                let data = serde_json::to_string(&status).unwrap_or_default();
                return Some(format!("event: {name}\ndata: {data}\n\n"));
            }
            if silent_since.elapsed() >= EVENT_SILENCE {
                return Some(":\n\n".to_owned());
            }
            tokio::time::sleep(EVENT_STEP).await;
        }
    }
}
