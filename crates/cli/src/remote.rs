//! Work on a server for `--url`. On a terminal a bar shows what travels, and how far the server is: there the work is handed
//! in as a job of the server's, which tells its progress. Servers without jobs are asked directly, as everybody is where no
//! bar would be seen.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use remote_vae_client::blocking::{self, Job};
use remote_vae_client::{
    Client, ClientBuilder, ClientError, DecodeOptions, EncodeOptions, JobState, JobStatus, Progress, Reply,
    Source, Stage, Tensor,
};

use crate::{local, signals};

/// How long a server may take to hear that the user has given up.
const FAREWELL: Duration = Duration::from_secs(2);

/// A server, and the bar of what it does, if there is one.
pub(crate) struct Remote {
    client: blocking::Client,
    shown: Option<Shown>,
}

struct Shown {
    bar: Arc<Bar>,
    /// Hands jobs in, once: whoever has no room for a job may have room for the work itself.
    once: blocking::Client,
    /// The job that Ctrl-C ends.
    job: Arc<Mutex<Option<Job>>>,
}

impl Remote {
    /// `builder` as a client; with `alone`, of the only file, what it does is shown on a terminal.
    pub(crate) fn new(builder: ClientBuilder, alone: bool) -> Result<Remote> {
        if !alone || !std::io::stderr().is_terminal() {
            return Ok(Remote { client: blocking::Client::from_builder(builder)?, shown: None });
        }
        let bar = Arc::new(Bar::new());
        let travelling = Arc::clone(&bar);
        let builder = builder.on_progress(move |progress| travelling.travel(progress));
        let once = blocking::Client::from_builder(builder.clone().retries(0))?;
        let shown = Shown { bar, once, job: Arc::default() };
        Ok(Remote { client: blocking::Client::from_builder(builder)?, shown: Some(shown) })
    }

    pub(crate) fn decode(&self, latents: &Tensor, options: &DecodeOptions) -> Result<Reply, ClientError> {
        // A preview is there before a job would be.
        let shown = self.shown.as_ref().filter(|_| !options.preview && self.has_jobs());
        let submit = |shown: &Shown| shown.once.submit_decode(latents, options);
        match shown.and_then(|shown| shown.follow(&self.client, submit(shown))) {
            Some(outcome) => outcome,
            None => self.ended(self.client.decode(latents, options)),
        }
    }

    pub(crate) fn encode(&self, source: Source, options: &EncodeOptions) -> Result<Reply, ClientError> {
        let shown = self.shown.as_ref().filter(|_| self.has_jobs());
        let submit = |shown: &Shown| shown.once.submit_encode(source.clone(), options);
        match shown.and_then(|shown| shown.follow(&self.client, submit(shown))) {
            Some(outcome) => outcome,
            None => self.ended(self.client.encode(source, options)),
        }
    }

    /// Takes the bar away: where the length of an answer is not known, it does not end by itself.
    fn ended(&self, outcome: Result<Reply, ClientError>) -> Result<Reply, ClientError> {
        if let Some(shown) = &self.shown {
            shown.bar.end();
        }
        outcome
    }

    /// Whether it is a server of ours. What is wrong with it otherwise, the work itself will tell.
    fn has_jobs(&self) -> bool {
        self.client.info().is_ok_and(|info| info["models"].is_array())
    }
}

impl Shown {
    /// Waits for a job that was handed in, by `client` with its retries; `None` where the server says that it has taken none,
    /// and may be asked directly. After a broken connection it may have one: the work is not handed in a second time.
    fn follow(
        &self,
        client: &blocking::Client,
        submitted: Result<Job, ClientError>,
    ) -> Option<Result<Reply, ClientError>> {
        let job = match submitted {
            Ok(job) => client.job(job.id()),
            Err(ClientError::Refused { status: 404 | 405 | 408 | 429 | 503, .. }) => return None,
            Err(error) => {
                self.bar.end();
                return Some(Err(error));
            }
        };
        let slot = || self.job.lock().unwrap_or_else(PoisonError::into_inner);
        *slot() = Some(job.clone());
        cancel_on_signals(&self.job);
        let outcome = job.wait(|status| self.bar.compute(status));
        self.bar.end();
        // Where it cannot be told, the server forgets the result after a while.
        if let Some(job) = slot().take() {
            give_up(job);
        }
        Some(outcome)
    }
}

/// Tells the server to stop or forget `job`, and waits for that no longer than [`FAREWELL`].
fn give_up(job: Job) {
    let (told, farewell) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _ = job.cancel();
        drop(told);
    });
    let _ = farewell.recv_timeout(FAREWELL);
}

/// From now on Ctrl-C and its like tell the server to stop, and end the process.
fn cancel_on_signals(job: &Arc<Mutex<Option<Job>>>) {
    let job = Arc::clone(job);
    signals::end_with(move || {
        let mut held = job.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = held.take() {
            give_up(job);
        }
        // Held to the end, so that nobody tells of the job's end as of a failure.
        std::mem::forget(held);
    });
}

/// Draws how much of a request and of its answer has travelled, and what the server does between.
struct Bar {
    bar: ProgressBar,
    view: Mutex<Option<View>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum View {
    Sending,
    /// The server has it all, and tells nothing.
    Silent,
    Waiting,
    Computing,
    Receiving,
    /// An answer of unknown length.
    Streamed,
}

/// Steps of the bar while the server computes.
const STEPS: u64 = 1000;

impl Bar {
    fn new() -> Bar {
        Bar { bar: local::bar(), view: Mutex::default() }
    }

    fn look(&self, view: View) {
        let mut last = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        if last.replace(view) == Some(view) {
            return;
        }
        let travelling = "{prefix} {wide_bar} {bytes}/{total_bytes}, {binary_bytes_per_sec}, {eta} left";
        let (prefix, template) = match view {
            View::Sending => ("sending", travelling),
            View::Receiving => ("receiving", travelling),
            View::Streamed => ("receiving", "{spinner} {prefix} {bytes}, {binary_bytes_per_sec}"),
            View::Silent => ("", "{spinner} the server computes, {elapsed} gone"),
            View::Waiting => ("", "{spinner} waiting for the server's engine, {elapsed} gone{msg}"),
            View::Computing => {
                ("the server computes", "{prefix} {wide_bar} {percent:>3}%, {elapsed} gone{msg}")
            }
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar.set_style(style);
        self.bar.set_prefix(prefix);
        self.bar.reset();
        if matches!(view, View::Sending | View::Receiving) {
            self.bar.disable_steady_tick();
        } else {
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
    }

    fn travel(&self, progress: Progress) {
        let is_over = progress.total > 0 && progress.done >= progress.total;
        self.look(match progress.stage {
            Stage::Sending => View::Sending,
            Stage::Receiving if progress.total == 0 => View::Streamed,
            Stage::Receiving => View::Receiving,
        });
        self.bar.set_length(progress.total.max(progress.done));
        self.bar.set_position(progress.done);
        match progress.stage {
            Stage::Sending if is_over => self.look(View::Silent),
            Stage::Receiving if is_over => self.end(),
            _ => {}
        }
    }

    fn compute(&self, status: &JobStatus) {
        self.look(if status.state == JobState::Queued { View::Waiting } else { View::Computing });
        self.bar.set_length(STEPS);
        self.bar.set_position((status.progress.clamp(0.0, 1.0) * STEPS as f64) as u64);
        let left = status.time_left.map_or_else(String::new, |left| format!(", {} left", rounded(left)));
        self.bar.set_message(left);
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// `7s`, `2m 5s`.
fn rounded(time: Duration) -> String {
    let seconds = time.as_secs_f64().ceil() as u64;
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m {}s", seconds / 60, seconds % 60) }
}

/// A client of `url`.
pub(crate) fn builder(url: &str, key: Option<&str>) -> ClientBuilder {
    let builder = Client::builder(url);
    match key {
        Some(key) => builder.bearer_key(key),
        None => builder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_whole_seconds() {
        let told = |seconds| rounded(Duration::from_secs_f64(seconds));
        assert_eq!((told(0.2), told(6.5), told(125.0)), ("1s".into(), "7s".into(), "2m 5s".into()));
    }
}
