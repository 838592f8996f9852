//! Counters, gauges and histograms in Prometheus' text form, one registry per server.
//!
//! The registry is never installed as the process' global one, so that several servers can live side by side.

use std::time::Duration;

use metrics::{Key, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusRecorder};
use remote_vae_engine::memory;

use crate::info;
use crate::queue::Occupancy;
use crate::status::History;

/// Seconds, from an empty answer to a large video.
const SECONDS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
/// Bytes, 1 KiB to 1 GiB.
const BYTES: [f64; 11] = [
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262144.0,
    1048576.0,
    4194304.0,
    16777216.0,
    67108864.0,
    268435456.0,
    1073741824.0,
];
/// Samples of a request.
const SAMPLES: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

const METADATA: Metadata<'static> = Metadata::new("remote_vae", Level::INFO, None);

/// Why a request was turned away without work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rejection {
    Overloaded,
    Client,
    Bodies,
    Answers,
    Connections,
    Memory,
    Draining,
}

impl Rejection {
    fn name(self) -> &'static str {
        match self {
            Rejection::Overloaded => "overloaded",
            Rejection::Client => "client",
            Rejection::Bodies => "bodies",
            Rejection::Answers => "answers",
            Rejection::Connections => "connections",
            Rejection::Memory => "memory",
            Rejection::Draining => "draining",
        }
    }
}

/// The server's measurements.
pub(crate) struct Metrics {
    /// The last minutes, for the page.
    pub(crate) history: History,
    recorder: PrometheusRecorder,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let bytes = |name: &str| Matcher::Full(name.to_owned());
        let builder = [
            (Matcher::Suffix("_seconds".to_owned()), &SECONDS[..]),
            (bytes("rvae_request_bytes"), &BYTES[..]),
            (bytes("rvae_response_bytes"), &BYTES[..]),
            (bytes("rvae_batch_size"), &SAMPLES[..]),
        ]
        .into_iter()
        .try_fold(PrometheusBuilder::new(), |builder, (matcher, buckets)| {
            builder.set_buckets_for_metric(matcher, buckets)
        });
        // The lists above are constants that are not empty, which is all that could be refused.
        let recorder = builder.unwrap_or_default().build_recorder();
        for (name, unit, text) in COUNTERS {
            recorder.describe_counter(name.into(), Some(unit), text.into());
        }
        for (name, unit, text) in GAUGES {
            recorder.describe_gauge(name.into(), Some(unit), text.into());
        }
        for (name, unit, text) in HISTOGRAMS {
            recorder.describe_histogram(name.into(), Some(unit), text.into());
        }
        Self { recorder, history: History::new() }
    }

    fn count(&self, name: &'static str, labels: Vec<Label>, by: u64) {
        self.recorder.register_counter(&Key::from_parts(name, labels), &METADATA).increment(by);
    }

    fn gauge(&self, name: &'static str, labels: Vec<Label>, value: f64) {
        self.recorder.register_gauge(&Key::from_parts(name, labels), &METADATA).set(value);
    }

    fn observe(&self, name: &'static str, labels: Vec<Label>, value: f64) {
        self.recorder.register_histogram(&Key::from_parts(name, labels), &METADATA).record(value);
    }

    /// What runs here; a constant 1.
    pub(crate) fn build_info(&self, engine: &str, isa: &str) {
        let labels = vec![
            Label::new("version", env!("CARGO_PKG_VERSION")),
            Label::new("git", info::COMMIT.unwrap_or("unknown")),
            Label::new("engine", engine.to_owned()),
            Label::new("isa", isa.to_owned()),
        ];
        self.gauge("rvae_build_info", labels, 1.0);
    }

    /// A request was answered, or left by its client (`code` 499).
    pub(crate) fn request(&self, operation: &'static str, model: &str, code: u16, duration: Duration) {
        // Previews take no time of the engine.
        if operation != "preview" {
            self.history.answered(code, duration);
        }
        let labels = labels(operation, model);
        self.observe("rvae_request_duration_seconds", labels.clone(), duration.as_secs_f64());
        let labels = [labels, vec![Label::new("code", code.to_string())]].concat();
        self.count("rvae_requests_total", labels, 1);
    }

    /// Bytes of a request that reached the engine and of its answer.
    pub(crate) fn sizes(&self, request: u64, response: u64) {
        self.observe("rvae_request_bytes", Vec::new(), request as f64);
        self.observe("rvae_response_bytes", Vec::new(), response as f64);
    }

    /// The engine's work on one request.
    pub(crate) fn work(&self, operation: &'static str, model: &str, queued: Duration, engine: Duration) {
        self.observe("rvae_queue_wait_seconds", Vec::new(), queued.as_secs_f64());
        self.observe("rvae_engine_seconds", labels(operation, model), engine.as_secs_f64());
    }

    /// Pixels and samples of a request that the engine finished.
    pub(crate) fn pixels(&self, pixels: u64, batch: usize) {
        self.history.pixels(pixels);
        self.count("rvae_pixels_total", Vec::new(), pixels);
        self.observe("rvae_batch_size", Vec::new(), batch as f64);
    }

    /// Time to make the answer's bytes.
    pub(crate) fn output(&self, format: &'static str, duration: Duration) {
        let labels = vec![Label::from_static_parts("format", format)];
        self.observe("rvae_encode_output_seconds", labels, duration.as_secs_f64());
    }

    /// A request was turned away without work.
    pub(crate) fn rejected(&self, reason: Rejection) {
        self.count("rvae_rejected_total", vec![Label::from_static_parts("reason", reason.name())], 1);
    }

    /// A client left while its job was `queued` or `running`.
    pub(crate) fn cancelled(&self, stage: &'static str) {
        self.count("rvae_cancelled_total", vec![Label::from_static_parts("stage", stage)], 1);
    }

    /// A running job ended this long after its client had left.
    pub(crate) fn stopped(&self, after: Duration) {
        self.observe("rvae_cancel_seconds", Vec::new(), after.as_secs_f64());
    }

    /// The engine's thread was replaced after a panic.
    pub(crate) fn worker_restarted(&self) {
        self.count("rvae_worker_restarts_total", Vec::new(), 1);
    }

    /// Time to load a model's weights.
    pub(crate) fn loaded(&self, model: &str, duration: Duration) {
        let labels = vec![Label::new("model", model.to_owned())];
        self.observe("rvae_model_load_seconds", labels, duration.as_secs_f64());
    }

    /// Bytes of weights in memory.
    pub(crate) fn weights(&self, model: &str, bytes: usize) {
        self.gauge("rvae_weight_bytes", vec![Label::new("model", model.to_owned())], bytes as f64);
    }

    /// Moves what histograms have gathered into their buckets; to be called now and then.
    pub(crate) fn upkeep(&self) {
        self.recorder.handle().run_upkeep();
    }

    /// The text for a scrape, with the two plain lines of the original endpoints at its end.
    pub(crate) fn render(&self, queue: Occupancy, held_bytes: u64) -> String {
        self.gauge("rvae_requests_queued", Vec::new(), queue.waiting as f64);
        self.gauge("rvae_requests_running", Vec::new(), queue.running as f64);
        self.gauge("rvae_capacity", Vec::new(), queue.capacity as f64);
        self.gauge("rvae_inflight_bytes", Vec::new(), held_bytes as f64);
        self.gauge("rvae_answer_bytes", Vec::new(), queue.answer_bytes as f64);
        self.gauge("rvae_queue_work_seconds", Vec::new(), queue.work_seconds);
        if let Some(bytes) = memory::resident_bytes() {
            self.gauge("process_resident_memory_bytes", Vec::new(), bytes as f64);
        }
        let mut text = self.recorder.handle().render();
        // The recorder's counters hold whole numbers only.
        text.push_str(&format!(
            "# HELP rvae_engine_busy_seconds_total Time in which the engine had a job.\n\
             # TYPE rvae_engine_busy_seconds_total counter\nrvae_engine_busy_seconds_total {}\n\n\
             inf_batch_current_size {}\ninf_queue_size {}\n",
            queue.busy_seconds, queue.running, queue.waiting
        ));
        text
    }
}

fn labels(operation: &'static str, model: &str) -> Vec<Label> {
    vec![Label::from_static_parts("op", operation), Label::new("model", model.to_owned())]
}

const COUNTERS: [(&str, Unit, &str); 5] = [
    ("rvae_requests_total", Unit::Count, "Requests answered, by operation, model and status."),
    ("rvae_rejected_total", Unit::Count, "Requests turned away without work."),
    ("rvae_cancelled_total", Unit::Count, "Jobs whose client left before the answer."),
    ("rvae_pixels_total", Unit::Count, "Pixels decoded and encoded."),
    ("rvae_worker_restarts_total", Unit::Count, "Times the engine's thread was replaced after a panic."),
];

const GAUGES: [(&str, Unit, &str); 9] = [
    ("rvae_build_info", Unit::Count, "Version, engine and instruction set; always 1."),
    ("rvae_requests_queued", Unit::Count, "Requests waiting for the engine."),
    ("rvae_requests_running", Unit::Count, "Requests the engine works on."),
    ("rvae_capacity", Unit::Count, "Requests that may wait."),
    ("rvae_inflight_bytes", Unit::Bytes, "Bytes of request bodies held."),
    ("rvae_weight_bytes", Unit::Bytes, "Weights in memory, by model."),
    ("rvae_answer_bytes", Unit::Bytes, "Bytes of answers that are promised, made or being sent."),
    ("process_resident_memory_bytes", Unit::Bytes, "Memory of the process."),
    ("rvae_queue_work_seconds", Unit::Seconds, "Time that the engine needs for all that waits and runs."),
];

const HISTOGRAMS: [(&str, Unit, &str); 9] = [
    ("rvae_request_duration_seconds", Unit::Seconds, "From the request's head to its answer's head."),
    ("rvae_queue_wait_seconds", Unit::Seconds, "Time in the queue."),
    ("rvae_engine_seconds", Unit::Seconds, "Time in the engine."),
    ("rvae_cancel_seconds", Unit::Seconds, "From a client's leaving to the end of its running job."),
    ("rvae_encode_output_seconds", Unit::Seconds, "Time to make the answer's bytes."),
    ("rvae_request_bytes", Unit::Bytes, "Size of request bodies."),
    ("rvae_response_bytes", Unit::Bytes, "Size of answers."),
    ("rvae_batch_size", Unit::Count, "Samples of a request."),
    ("rvae_model_load_seconds", Unit::Seconds, "Time to load a model's weights."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_separate_and_render() {
        let (a, b) = (Metrics::new(), Metrics::new());
        a.request("decode", "default", 200, Duration::from_millis(30));
        a.sizes(512, 2048);
        a.rejected(Rejection::Overloaded);
        a.build_info("cpu", "generic");
        let occupancy = Occupancy {
            waiting: 2,
            running: 1,
            capacity: 8,
            answer_bytes: 5,
            work_seconds: 0.5,
            busy_seconds: 1.5,
        };
        let text = a.render(occupancy, 77);
        for line in [
            "rvae_requests_total{op=\"decode\",model=\"default\",code=\"200\"} 1",
            "rvae_request_duration_seconds_bucket{op=\"decode\",model=\"default\",le=\"0.05\"} 1",
            "rvae_request_bytes_bucket{le=\"1024\"} 1",
            "rvae_rejected_total{reason=\"overloaded\"} 1",
            "rvae_requests_queued 2",
            "rvae_inflight_bytes 77",
            "rvae_answer_bytes 5",
            "rvae_queue_work_seconds 0.5",
            "rvae_engine_busy_seconds_total 1.5",
            "inf_batch_current_size 1",
            "inf_queue_size 2",
        ] {
            assert!(text.lines().any(|found| found == line), "no line `{line}` in\n{text}");
        }
        assert!(!b.render(occupancy, 0).contains("rvae_requests_total{"));
    }
    #[test]
    fn the_dashboard_shows_what_is_measured() {
        let text = include_str!("../../../deploy/grafana.json");
        let described = COUNTERS.iter().chain(&GAUGES).chain(&HISTOGRAMS).map(|(name, ..)| *name);
        let known: Vec<&str> = described.chain(["rvae_engine_busy_seconds_total"]).collect();
        let names = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let mut shown = 0;
        for name in names.filter(|name| name.starts_with("rvae_")) {
            let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            assert!(known.contains(&plain.unwrap_or(name)), "{name}");
            shown += 1;
        }
        assert!(shown > 10);
    }
}
