//! `remote-vae bench --url`: puts load on a server and tells how it answered. Closed loop (so many clients, each asks again
//! when it has its answer) or open loop (so many requests a second, whatever becomes of them).

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use remote_vae_client::{Client, ClientError, Content, DecodeOptions, Output, Reply, Tensor, Timing};
use remote_vae_wire::Dtype;
use serde::Serialize;
use serde_json::Value;

use crate::arguments::{BenchOptions, LoadArguments};
use crate::bench::input;
use crate::serve::runtime;
use crate::values::{Format, Kind};

/// Different latents for each kind of request.
const VARIANTS: u64 = 3;
/// How long a server that is loading its models is waited for.
const READY_PATIENCE: Duration = Duration::from_secs(120);
/// How often health and memory are looked at.
const PROBE_STEP: Duration = Duration::from_millis(50);

pub(crate) fn run(options: &BenchOptions, url: &str) -> Result<()> {
    let report = runtime()?.block_on(measure(options, url))?;
    let mut output = std::io::stdout().lock();
    if options.json {
        writeln!(output, "{}", serde_json::to_string(&report)?)?;
    } else {
        report.print(&mut output)?;
    }
    if report.wrong > 0 {
        bail!("{} answers had other bytes than the first answer to the same request", report.wrong);
    }
    Ok(())
}

/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p95: f64,
    p99: f64,
    max: f64,
}

impl Percentiles {
    /// By nearest rank. None of nothing.
    fn of(times: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut times: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
        times.sort_by(f64::total_cmp);
        let last = times.len().checked_sub(1)?;
        let at = |share: f64| times[((times.len() as f64 * share).ceil() as usize).clamp(1, last + 1) - 1];
        Some(Self { p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), max: times[last] })
    }
}

#[derive(Debug, Serialize)]
struct Report {
    url: String,
    clients: usize,
    /// Requests a second of an open loop.
    rate: Option<f64>,
    seconds: f64,
    requests: usize,
    answered: usize,
    /// By status.
    refused: BTreeMap<u16, usize>,
    failed: usize,
    /// Left by us before the answer.
    abandoned: usize,
    /// With other bytes than the first answer to the same request.
    wrong: usize,
    answers_per_s: f64,
    megapixels_per_s: f64,
    /// From sending to the answer's last byte; in an open loop from the time at which it should have been sent.
    latency_ms: Option<Percentiles>,
    /// What the server says.
    queue_ms: Option<Percentiles>,
    engine_ms: Option<Percentiles>,
    post_ms: Option<Percentiles>,
    /// Latency without the engine's time.
    overhead_ms: Option<Percentiles>,
    health_ms: Option<Percentiles>,
    /// Share of the time in which the server's engine had a job.
    engine_utilisation: Option<f64>,
    /// Memory of the server's process.
    resident_mib: Option<Resident>,
    /// Running work whose client had left.
    stopped: Option<Stopped>,
    /// What each key had of the server, where several are used.
    per_key: Option<PerKey>,
}

#[derive(Debug, Serialize)]
struct Resident {
    before: f64,
    most: f64,
    after: f64,
}

#[derive(Debug, Serialize)]
struct Stopped {
    jobs: u64,
    /// From the client's leaving to the engine's being free.
    mean_ms: f64,
}

#[derive(Debug, Serialize)]
struct PerKey {
    keys: usize,
    answers: Spread,
    megapixels: Spread,
}

/// The least and the most that a key had.
#[derive(Debug, Serialize)]
struct Spread {
    least: f64,
    most: f64,
    ratio: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let (least, most) = values
            .iter()
            .fold((f64::INFINITY, 0.0_f64), |(least, most), &value| (least.min(value), most.max(value)));
        Self { least, most, ratio: most / least }
    }
}

/// A kind of request, ready to be sent.
struct Request {
    tensors: Vec<Tensor>,
    options: DecodeOptions,
    pixels: usize,
}

/// What became of a request.
struct Record {
    key: usize,
    outcome: Outcome,
}

enum Outcome {
    Answered { latency: Duration, timing: Timing, pixels: usize, same: bool },
    Refused(u16),
    Failed,
    Abandoned,
}

/// What all tasks share.
struct Load {
    clients: Vec<Client>,
    requests: Vec<Request>,
    abandon: f64,
    /// Hash of the first answer to each request.
    answers: Option<Mutex<HashMap<(usize, usize), u64>>>,
    records: Mutex<Vec<Record>>,
}

/// What a closed loop waits after a refusal: one that asks again at once would only measure refusals.
const BACK_OFF: Duration = Duration::from_millis(100);

impl Load {
    /// Sends request `number`, which decides what it asks, and notes what became of it. True if it was answered.
    async fn send(&self, number: u64, scheduled: Instant) -> bool {
        let mut dice = Dice::new(number);
        // Kinds in turn would give each client of an even number of them one kind for ever.
        let kind = (dice.next() * self.requests.len() as f64) as usize;
        let request = &self.requests[kind];
        let variant = (dice.next() * request.tensors.len() as f64) as usize;
        let key = number as usize % self.clients.len();
        let asking = self.clients[key].decode(&request.tensors[variant], &request.options);
        // Some leave at once, some when the answer is nearly there.
        let patience = if dice.next() < self.abandon { dice.next() * 0.5 } else { f64::from(u32::MAX) };
        let reply = tokio::time::timeout(Duration::from_secs_f64(patience), asking).await;
        let outcome = match reply {
            Err(_) => Outcome::Abandoned,
            Ok(Ok(reply)) => Outcome::Answered {
                latency: scheduled.elapsed(),
                timing: reply.timing,
                pixels: request.pixels,
                same: self.is_same((kind, variant), &reply),
            },
            Ok(Err(ClientError::Refused { status, .. })) => Outcome::Refused(status),
            Ok(Err(_)) => Outcome::Failed,
        };
        let answered = matches!(outcome, Outcome::Answered { .. });
        self.records.lock().unwrap_or_else(PoisonError::into_inner).push(Record { key, outcome });
        answered
    }

    /// Whether the answer is the one that the same request had before.
    fn is_same(&self, request: (usize, usize), reply: &Reply) -> bool {
        let Some(answers) = &self.answers else { return true };
        let mut hasher = DefaultHasher::new();
        match &reply.content {
            Content::Tensor(tensor) => tensor.bytes.hash(&mut hasher),
            Content::File(bytes) => bytes.hash(&mut hasher),
        }
        let hash = hasher.finish();
        *answers.lock().unwrap_or_else(PoisonError::into_inner).entry(request).or_insert(hash) == hash
    }

    /// So many clients, each of which asks again when it has its answer.
    async fn closed(self: &Arc<Self>, clients: usize, end: Instant) {
        let tasks: Vec<_> = (0..clients)
            .map(|client| {
                let load = Arc::clone(self);
                tokio::spawn(async move {
                    let mut number = client as u64;
                    while Instant::now() < end {
                        if !load.send(number, Instant::now()).await {
                            tokio::time::sleep(BACK_OFF).await;
                        }
                        number += clients as u64;
                    }
                })
            })
            .collect();
        for task in tasks {
            // A task that panicked has told so.
            let _ = task.await;
        }
    }

    /// So many requests a second, however long the answers take.
    async fn open(self: &Arc<Self>, rate: f64, end: Instant) {
        let start = Instant::now();
        let mut tasks = Vec::new();
        for number in 0.. {
            let at = start + Duration::from_secs_f64(number as f64 / rate);
            if at >= end {
                break;
            }
            tokio::time::sleep_until(at.into()).await;
            let load = Arc::clone(self);
            tasks.push(tokio::spawn(async move { load.send(number, at).await }));
        }
        for task in tasks {
            let _ = task.await;
        }
    }
}

/// Numbers from 0 to 1 that follow from a seed alone (SplitMix64: Steele, Lea and Flood, 2014).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// What the server's metrics say.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    busy_seconds: Option<f64>,
    resident_mib: Option<f64>,
    /// Seconds and number of the running jobs that ended after their client had left.
    stopped: Option<(f64, f64)>,
}

async fn sample(client: &Client) -> Result<Sample> {
    let text = client.metrics().await?;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.trim().parse::<f64>().ok()
    };
    Ok(Sample {
        at: Instant::now(),
        busy_seconds: value("rvae_engine_busy_seconds_total"),
        resident_mib: value("process_resident_memory_bytes").map(|bytes| bytes / f64::from(1 << 20)),
        stopped: value("rvae_cancel_seconds_sum").zip(value("rvae_cancel_seconds_count")),
    })
}

/// Looks at health and memory until it is stopped.
async fn probe(client: Client, seen: Arc<Mutex<(Vec<Duration>, Vec<Sample>)>>) {
    loop {
        tokio::time::sleep(PROBE_STEP).await;
        let start = Instant::now();
        let healthy = client.is_ready().await.is_ok();
        let took = start.elapsed();
        let sample = sample(&client).await;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        if healthy {
            seen.0.push(took);
        }
        seen.1.extend(sample.ok());
    }
}

/// The model that answers at `url`, as `/info` describes it: its latent channels, and the pixels of a latent's side.
fn model_at(info: &Value, url: &str) -> Result<(usize, usize)> {
    let path =
        url.split_once("://").map_or("", |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
    let name = path.split('/').next().unwrap_or("");
    let models = info["models"].as_array().context("the server does not tell its models")?;
    let named = models.iter().find(|model| model["name"] == name);
    let model = named.or(models.first()).context("the server has no model")?;
    let number = |key: &str| model["description"][key].as_u64().map(|number| number as usize);
    Ok((
        number("latent_channels").context("the server does not tell the latent channels")?,
        number("spatial_factor").context("the server does not tell the size of latents")?,
    ))
}

fn request(kind: Kind, batch: usize, channels: usize, factor: usize) -> Result<Request> {
    let [height, width] = [kind.size.height, kind.size.width].map(|side| side.div_ceil(factor));
    let shape = [batch, channels, height, width];
    let values = |seed| input([batch, channels, 1, height, width], seed);
    let tensors = (0..VARIANTS)
        .map(|seed| Tensor::from_f32(shape.to_vec(), Dtype::Float16, &values(seed + 1)))
        .collect::<Result<_, _>>()?;
    let output = match kind.format {
        Format::Raw => Output::Float16,
        Format::Uint8 => Output::Uint8,
        Format::Png => Output::Png,
        Format::Jpg => Output::Jpeg,
    };
    let options = DecodeOptions::new(output).scaled_by_model();
    Ok(Request { tensors, options, pixels: batch * height * width * factor * factor })
}

async fn measure(options: &BenchOptions, url: &str) -> Result<Report> {
    let load = &options.load;
    let client = |key: Option<&String>| {
        let builder = Client::builder(url).retries(0);
        key.iter().fold(builder, |builder, key| builder.bearer_key(key.as_str())).build()
    };
    let mut clients = load.api_keys.iter().map(|key| client(Some(key))).collect::<Result<Vec<_>, _>>()?;
    if clients.is_empty() {
        clients.push(client(None)?);
    }
    let watcher = client(load.api_keys.first())?;
    let patience = Instant::now() + READY_PATIENCE;
    while !watcher.is_ready().await? {
        if Instant::now() > patience {
            bail!("the server was not ready within {} s", READY_PATIENCE.as_secs());
        }
        tokio::time::sleep(PROBE_STEP).await;
    }
    let (channels, factor) = model_at(&watcher.info().await?, url)?;
    let kinds = if load.mix.is_empty() {
        vec![Kind { size: options.size, format: Format::Raw }]
    } else {
        load.mix.clone()
    };
    let shared = Arc::new(Load {
        clients,
        requests: kinds
            .into_iter()
            .map(|kind| request(kind, load.batch as usize, channels, factor))
            .collect::<Result<_>>()?,
        abandon: f64::from(load.abandon) / 100.0,
        answers: load.check.then(Mutex::default),
        records: Mutex::default(),
    });
    // Connections, and the first answers of each kind.
    shared.send(0, Instant::now()).await;
    shared.records.lock().unwrap_or_else(PoisonError::into_inner).clear();

    let seen = Arc::default();
    let before = sample(&watcher).await?;
    let probing = tokio::spawn(probe(watcher.clone(), Arc::clone(&seen)));
    let end = before.at + Duration::from_secs_f64(load.seconds);
    match load.rate {
        Some(rate) => shared.open(rate, end).await,
        None => shared.closed(load.clients as usize, end).await,
    }
    let after = sample(&watcher).await?;
    probing.abort();
    let records = std::mem::take(&mut *shared.records.lock().unwrap_or_else(PoisonError::into_inner));
    let (health, samples) = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(report(url, load, &shared, &records, &health, &[&[before], &samples[..], &[after]].concat()))
}

fn report(
    url: &str,
    options: &LoadArguments,
    load: &Load,
    records: &[Record],
    health: &[Duration],
    samples: &[Sample],
) -> Report {
    let (first, last) = (samples[0], samples[samples.len() - 1]);
    let seconds = (last.at - first.at).as_secs_f64();
    let answers: Vec<(Duration, Timing, usize, bool)> = records
        .iter()
        .filter_map(|record| match record.outcome {
            Outcome::Answered { latency, timing, pixels, same } => Some((latency, timing, pixels, same)),
            _ => None,
        })
        .collect();
    let mut refused = BTreeMap::new();
    for record in records {
        if let Outcome::Refused(status) = record.outcome {
            *refused.entry(status).or_default() += 1;
        }
    }
    let count =
        |wanted: fn(&Outcome) -> bool| records.iter().filter(|record| wanted(&record.outcome)).count();
    let pixels: usize = answers.iter().map(|(_, _, pixels, _)| pixels).sum();
    let busy = first.busy_seconds.zip(last.busy_seconds).map(|(before, after)| (after - before) / seconds);
    let resident = first.resident_mib.zip(last.resident_mib).map(|(before, after)| Resident {
        before,
        most: samples.iter().filter_map(|sample| sample.resident_mib).fold(before, f64::max),
        after,
    });
    // Before the first there is no such line.
    let stopped = last.stopped.map(|(seconds, jobs)| {
        let (before, jobs_before) = first.stopped.unwrap_or_default();
        let jobs = jobs - jobs_before;
        Stopped { jobs: jobs as u64, mean_ms: (seconds - before) * 1e3 / jobs.max(1.0) }
    });
    let time =
        |part: fn(&(Duration, Timing, usize, bool)) -> Duration| Percentiles::of(answers.iter().map(part));
    Report {
        url: url.to_owned(),
        clients: options.clients as usize,
        rate: options.rate,
        seconds,
        requests: records.len(),
        answered: answers.len(),
        refused,
        failed: count(|outcome| matches!(outcome, Outcome::Failed)),
        abandoned: count(|outcome| matches!(outcome, Outcome::Abandoned)),
        wrong: answers.iter().filter(|(_, _, _, same)| !same).count(),
        answers_per_s: answers.len() as f64 / seconds,
        megapixels_per_s: pixels as f64 / 1e6 / seconds,
        latency_ms: time(|(latency, ..)| *latency),
        queue_ms: time(|(_, timing, ..)| timing.queue),
        engine_ms: time(|(_, timing, ..)| timing.engine),
        post_ms: time(|(_, timing, ..)| timing.post),
        overhead_ms: time(|(latency, timing, ..)| latency.saturating_sub(timing.engine)),
        health_ms: Percentiles::of(health.iter().copied()),
        engine_utilisation: busy,
        resident_mib: resident,
        stopped,
        per_key: per_key(load.clients.len(), records),
    }
}

fn per_key(keys: usize, records: &[Record]) -> Option<PerKey> {
    let (mut answers, mut megapixels) = (vec![0.0; keys], vec![0.0; keys]);
    for record in records {
        if let Outcome::Answered { pixels, .. } = record.outcome {
            answers[record.key] += 1.0;
            megapixels[record.key] += pixels as f64 / 1e6;
        }
    }
    (keys > 1).then(|| PerKey { keys, answers: Spread::of(&answers), megapixels: Spread::of(&megapixels) })
}

impl Report {
    fn print(&self, output: &mut impl Write) -> Result<()> {
        let loop_ =
            self.rate.map_or(format!("{} clients", self.clients), |rate| format!("{rate} requests/s"));
        writeln!(output, "{}, {loop_}, {:.1} s", self.url, self.seconds)?;
        let refused: Vec<String> =
            self.refused.iter().map(|(status, count)| format!("{count} with {status}")).collect();
        writeln!(
            output,
            "{} requests: {} answered, {} refused{}, {} failed, {} abandoned, {} with other bytes than before",
            self.requests,
            self.answered,
            self.refused.values().sum::<usize>(),
            if refused.is_empty() { String::new() } else { format!(" ({})", refused.join(", ")) },
            self.failed,
            self.abandoned,
            self.wrong,
        )?;
        writeln!(output, "{:.2} answers/s, {:.2} megapixels/s", self.answers_per_s, self.megapixels_per_s)?;
        writeln!(output, "{:10} {:>9} {:>9} {:>9} {:>9} {:>9}  ms", "", "p50", "p90", "p95", "p99", "max")?;
        for (name, times) in [
            ("latency", self.latency_ms),
            ("queue", self.queue_ms),
            ("engine", self.engine_ms),
            ("post", self.post_ms),
            ("overhead", self.overhead_ms),
            ("health", self.health_ms),
        ] {
            let Some(Percentiles { p50, p90, p95, p99, max }) = times else { continue };
            writeln!(output, "{name:10} {p50:9.2} {p90:9.2} {p95:9.2} {p99:9.2} {max:9.2}")?;
        }
        if let Some(busy) = self.engine_utilisation {
            writeln!(output, "engine busy {:.1} % of the time", busy * 100.0)?;
        }
        if let Some(Resident { before, most, after }) = self.resident_mib {
            writeln!(output, "memory {before:.0} MiB before, {most:.0} at most, {after:.0} after")?;
        }
        if let Some(Stopped { jobs, mean_ms }) = self.stopped.as_ref().filter(|stopped| stopped.jobs > 0) {
            writeln!(output, "{jobs} running jobs were left, and stopped {mean_ms:.1} ms after on average")?;
        }
        if let Some(PerKey { keys, answers, megapixels }) = &self.per_key {
            let Spread { least, most, ratio } = answers;
            write!(output, "{keys} keys: {least} to {most} answers each (ratio {ratio:.2}), ")?;
            let Spread { least, most, ratio } = megapixels;
            writeln!(output, "{least:.2} to {most:.2} megapixels (ratio {ratio:.2})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let times = (1..=100).map(Duration::from_millis);
        let found = Percentiles::of(times).unwrap();
        assert_eq!(found, Percentiles { p50: 50.0, p90: 90.0, p95: 95.0, p99: 99.0, max: 100.0 });
        let one = Percentiles::of(std::iter::once(Duration::from_millis(7))).unwrap();
        assert_eq!((one.p50, one.max), (7.0, 7.0));
        assert_eq!(Percentiles::of(std::iter::empty()), None);
    }

    #[test]
    fn keys_are_compared_by_answers_and_pixels() {
        let answered = |key, pixels| Record {
            key,
            outcome: Outcome::Answered {
                latency: Duration::ZERO,
                timing: Timing::default(),
                pixels,
                same: true,
            },
        };
        let left = Record { key: 1, outcome: Outcome::Abandoned };
        let records = [answered(0, 1_000_000), answered(0, 500_000), answered(1, 1_000_000), left];
        let found = per_key(2, &records).unwrap();
        assert_eq!((found.answers.least, found.answers.most, found.answers.ratio), (1.0, 2.0, 2.0));
        assert_eq!((found.megapixels.least, found.megapixels.ratio), (1.0, 1.5));
        assert!(per_key(1, &records[..2]).is_none());
    }

    #[test]
    fn dice_are_even_and_repeatable() {
        let mut dice = Dice::new(7);
        let mean = (0..1000).map(|_| dice.next()).sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
        assert_eq!(Dice::new(3).next(), Dice::new(3).next());
    }

    #[test]
    fn models_are_found_by_the_paths_name() {
        let model = |name: &str, channels: u64| serde_json::json!({"name": name, "description": {"latent_channels": channels, "spatial_factor": 8}});
        let info = serde_json::json!({"models": [model("sd", 4), model("flux", 16)]});
        assert_eq!(model_at(&info, "http://h:1/").unwrap(), (4, 8));
        assert_eq!(model_at(&info, "http://h:1/flux").unwrap(), (16, 8));
        assert!(model_at(&serde_json::json!({}), "http://h").is_err());
    }
}
