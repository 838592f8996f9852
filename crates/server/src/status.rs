//! `GET /status`: how the server stands now, and the last minutes, for the page that it shows to browsers.
//!
//! The history is a fixed number of counts in memory, one set for each few seconds: no names, no paths, nothing of a
//! request but how long it took and how many pixels it had.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use remote_vae_engine::memory;
use remote_vae_wire::content_type;
use serde_json::{Value, json};

use crate::error::Refusal;
use crate::info;
use crate::queue::Occupancy;
use crate::state::Shared;

/// Time that one point of the history covers.
const STEP: Duration = Duration::from_secs(5);
/// Points that are kept: ten minutes.
const POINTS: usize = 120;

/// What happened in one step of time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Point {
    /// Requests for work that were answered with success.
    answered: u32,
    /// Those that were refused, failed, or left by their client.
    failed: u32,
    /// Pixels decoded and encoded.
    pixels: u64,
    /// Sum of the times from a request's head to its answer's, of those answered.
    seconds: f64,
    /// The longest of these.
    longest: f64,
    /// Most requests seen waiting.
    waiting: usize,
    /// Most memory seen in use by the process.
    resident_bytes: u64,
}

#[derive(Debug, Default)]
struct Points {
    /// Oldest first; the last is that of step `newest`.
    points: VecDeque<Point>,
    newest: u64,
}

/// The last minutes, in steps of a few seconds.
#[derive(Debug)]
pub(crate) struct History {
    start: Instant,
    points: Mutex<Points>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), points: Mutex::default() }
    }

    /// A request for work ended with this status.
    pub(crate) fn answered(&self, code: u16, duration: Duration) {
        self.change(|point| {
            if code >= 400 {
                point.failed += 1;
                return;
            }
            let seconds = duration.as_secs_f64();
            point.answered += 1;
            point.seconds += seconds;
            point.longest = point.longest.max(seconds);
        });
    }

    /// The engine finished a request of this many pixels.
    pub(crate) fn pixels(&self, pixels: u64) {
        self.change(|point| point.pixels += pixels);
    }

    /// How the server stands now.
    pub(crate) fn sample(&self, waiting: usize, resident_bytes: u64) {
        self.change(|point| {
            point.waiting = point.waiting.max(waiting);
            point.resident_bytes = point.resident_bytes.max(resident_bytes);
        });
    }

    fn change(&self, change: impl FnOnce(&mut Point)) {
        if let Some(point) = self.now().points.back_mut() {
            change(point);
        }
    }

    /// The points, with one for the present step at the end.
    fn now(&self) -> MutexGuard<'_, Points> {
        let mut points = self.points.lock().unwrap_or_else(PoisonError::into_inner);
        points.move_to(self.start.elapsed().as_secs() / STEP.as_secs());
        points
    }

    /// One list for each quantity, oldest first; the last number is of a step that is not over.
    fn to_json(&self) -> Value {
        let points = self.now().points.clone();
        let mean = |point: &Point| (point.answered > 0).then(|| point.seconds / f64::from(point.answered));
        let longest = |point: &Point| (point.answered > 0).then_some(point.longest);
        let memory = |point: &Point| (point.resident_bytes > 0).then_some(point.resident_bytes);
        json!({
            "step_seconds": STEP.as_secs(),
            "steps": POINTS,
            "answered": points.iter().map(|point| point.answered).collect::<Vec<_>>(),
            "failed": points.iter().map(|point| point.failed).collect::<Vec<_>>(),
            "pixels": points.iter().map(|point| point.pixels).collect::<Vec<_>>(),
            "mean_seconds": points.iter().map(mean).collect::<Vec<_>>(),
            "longest_seconds": points.iter().map(longest).collect::<Vec<_>>(),
            "waiting": points.iter().map(|point| point.waiting).collect::<Vec<_>>(),
            "resident_bytes": points.iter().map(memory).collect::<Vec<_>>(),
        })
    }
}

impl Points {
    fn move_to(&mut self, step: u64) {
        let missing = if self.points.is_empty() { 1 } else { step.saturating_sub(self.newest) };
        self.newest = self.newest.max(step);
        for _ in 0..missing.min(POINTS as u64) {
            self.points.push_back(Point::default());
        }
        let excess = self.points.len().saturating_sub(POINTS);
        self.points.drain(..excess);
    }
}

/// Notes in the history how the server stands now; to be called about once in each step.
pub(crate) fn sample(shared: &Shared) -> (Occupancy, Option<u64>) {
    let (queue, resident) = (shared.queue.occupancy(), memory::resident_bytes());
    shared.metrics.history.sample(queue.waiting, resident.unwrap_or(0));
    (queue, resident)
}

/// State, queue, memory and history, as JSON.
pub(crate) async fn status(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    info::check_key(&shared, request)?;
    let (queue, resident) = sample(&shared);
    let running = shared.queue.running().into_iter();
    let running: Vec<Value> = running
        .map(|(elapsed, progress)| json!({ "elapsed_seconds": elapsed.as_secs_f64(), "progress": progress }))
        .collect();
    let status = json!({
        "state": shared.phase().name(),
        "uptime_seconds": shared.started.elapsed().as_secs_f64(),
        "queue": { "waiting": queue.waiting, "running": queue.running, "capacity": queue.capacity },
        "running": running,
        "memory": { "resident_bytes": resident, "limit_bytes": memory::limit_bytes() },
        "history": shared.metrics.history.to_json(),
    });
    let headers = [(header::CONTENT_TYPE, content_type::JSON), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, status.to_string()).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_kept_for_a_while() {
        let mut points = Points::default();
        points.move_to(3);
        assert_eq!((points.points.len(), points.newest), (1, 3));
        points.points[0].answered = 1;
        points.move_to(3);
        points.move_to(5);
        assert_eq!(points.points.iter().map(|point| point.answered).collect::<Vec<_>>(), [1, 0, 0]);
        points.move_to(5 + POINTS as u64 - 3);
        assert_eq!((points.points.len(), points.points[0].answered), (POINTS, 1));
        points.move_to(5 + POINTS as u64 - 2);
        assert_eq!((points.points.len(), points.points[0].answered), (POINTS, 0));
        points.move_to(u64::MAX);
        assert_eq!(points.points.len(), POINTS);
        // A clock that seems to go back changes nothing.
        points.move_to(7);
        assert_eq!((points.points.len(), points.newest), (POINTS, u64::MAX));
    }

    #[test]
    fn what_happens_is_counted() {
        let history = History::new();
        history.answered(200, Duration::from_millis(100));
        history.answered(200, Duration::from_millis(300));
        history.answered(429, Duration::from_secs(9));
        history.pixels(64);
        history.sample(2, 1000);
        history.sample(1, 3000);
        let found = history.to_json();
        // All within one step, or the step changed meanwhile: then the sums still hold.
        let sum =
            |name: &str| -> u64 { found[name].as_array().unwrap().iter().filter_map(Value::as_u64).sum() };
        assert_eq!((sum("answered"), sum("failed"), sum("pixels")), (2, 1, 64));
        let longest = found["longest_seconds"].as_array().unwrap().iter().filter_map(Value::as_f64);
        assert!((longest.fold(0.0, f64::max) - 0.3).abs() < 1e-9);
        assert!(found["resident_bytes"].as_array().unwrap().contains(&json!(3000)));
    }
}
