//! A server from its first listening to its last answer: warm-up, readiness, graceful shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use remote_vae_engine::{Control, EngineError, Windows, memory};
use remote_vae_wire::{Operation, Scaling};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::connections::Connections;
use crate::error::ServerError;
use crate::memory::Need;
use crate::options::ServerOptions;
use crate::state::{ModelEntry, Phase, Shared, check_models};
use crate::tls::Tls;
use crate::{status, worker};

/// How often the state of a draining server is looked at.
const DRAIN_STEP: Duration = Duration::from_millis(10);
/// How often files that may change meanwhile are looked at.
const REFRESH_STEP: Duration = Duration::from_secs(1);
/// How often histograms are tidied.
const UPKEEP_STEP: Duration = Duration::from_secs(5);

/// A server that listens but does not answer yet; [`Server::run`] makes it answer.
///
/// ```no_run
/// # async fn example(autoencoder: std::sync::Arc<remote_vae_engine::Autoencoder>) -> Result<(), remote_vae_server::ServerError> {
/// use remote_vae_server::{ModelEntry, Server, ServerOptions};
///
/// let options = ServerOptions { port: 0, ..ServerOptions::default() };
/// let server = Server::bind(options, vec![ModelEntry { name: "default".into(), autoencoder }]).await?;
/// println!("http://{}", server.address());
/// let handle = server.shutdown_handle();
/// tokio::spawn(async move {
///     tokio::signal::ctrl_c().await.ok();
///     handle.shutdown();
/// });
/// server.run().await
/// # }
/// ```
pub struct Server {
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<Tls>>,
    ending: Ending,
}

/// Watches and stops a server from elsewhere. Cheap to clone; stays valid after the server's end.
#[derive(Clone)]
pub struct ServerHandle {
    shared: Arc<Shared>,
}

impl ServerHandle {
    /// Starts the graceful shutdown: readiness turns 503, new work is refused with 503, accepted work is finished
    /// within the drain timeout, then [`Server::run`] returns. Calling it again changes nothing.
    pub fn shutdown(&self) {
        self.shared.phase.send_replace(Phase::Draining);
    }

    /// Whether work is taken.
    pub fn is_ready(&self) -> bool {
        self.shared.phase() == Phase::Ready
    }

    /// Waits until work is taken. False if the server stops instead, is dropped, or [`Server::run`] fails.
    pub async fn ready(&self) -> bool {
        let mut phase = self.shared.phase.subscribe();
        phase.wait_for(|phase| *phase != Phase::Loading).await.is_ok_and(|phase| *phase == Phase::Ready)
    }
}

impl Server {
    /// Listens on the address of the options. Connections are taken and answered once [`Server::run`] is called.
    ///
    /// # Errors
    /// An option makes no sense, a file that it names cannot be used, a model has an unfit name or there is none, or the
    /// address cannot be had.
    pub async fn bind(options: ServerOptions, models: Vec<ModelEntry>) -> Result<Self, ServerError> {
        options.validate()?;
        check_models(&models)?;
        let tls = options.tls.clone().map(Tls::new).transpose()?.map(Arc::new);
        let shared = Arc::new(Shared::new(options.clone(), models)?);
        let (host, port) = (options.host.clone(), options.port);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let failed = |source| ServerError::Listen { host: host.clone(), port, source };
        let listener = TcpListener::bind((bare, port)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let ending = Ending(Arc::clone(&shared));
        Ok(Self { shared, listener, address, tls, ending })
    }

    /// The address listened on, with the port that the system chose if the options left it open.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether clients must speak TLS.
    pub fn speaks_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// A handle to stop the server.
    pub fn shutdown_handle(&self) -> ServerHandle {
        ServerHandle { shared: Arc::clone(&self.shared) }
    }

    /// Answers until a shutdown is asked for and done.
    ///
    /// The server is ready, and says so, once the default model's weights are read (if the options ask for that).
    ///
    /// # Errors
    /// The engine's thread cannot be started, or the default model's weights cannot be read.
    pub async fn run(self) -> Result<(), ServerError> {
        // Also ends the engine's thread if this future is dropped.
        let Self { shared, listener, tls, ending, .. } = self;
        let (warm_sender, mut warm) = oneshot::channel();
        let for_thread = Arc::clone(&shared);
        let metrics = Arc::clone(&shared.metrics);
        let thread = worker::start(Arc::clone(&shared.queue), metrics, move || {
            let outcome = warm_up(&for_thread);
            note_idle(&for_thread);
            for_thread.models.iter().for_each(|entry| entry.autoencoder.engine().keep_spare());
            let _ = warm_sender.send(outcome);
        })
        .map_err(ServerError::Thread)?;

        let connections = Connections::new(&shared, tls.clone());
        let mut drained = std::pin::pin!(drained(&shared));
        let mut upkeep = tokio::time::interval(UPKEEP_STEP);
        let mut refresh = tokio::time::interval(REFRESH_STEP);
        let mut sweep = tokio::time::interval(connections.sweep_step());
        let mut is_warm = false;
        let result = loop {
            tokio::select! {
                biased;
                () = &mut drained => break Ok(()),
                outcome = &mut warm, if !is_warm => {
                    is_warm = true;
                    match outcome {
                        Ok(Ok(())) => become_ready(&shared),
                        Ok(Err(error)) => break Err(error),
                        Err(_) => break Err(ServerError::Thread(std::io::Error::other("it ended at once"))),
                    }
                }
                _ = upkeep.tick() => {
                    shared.metrics.upkeep();
                    shared.memory.upkeep();
                    status::sample(&shared);
                }
                _ = refresh.tick() => {
                    shared.keys.refresh();
                    shared.jobs.expire();
                    tls.iter().for_each(|tls| tls.refresh());
                }
                _ = sweep.tick() => connections.sweep(),
                () = connections.accept(&listener) => {}
            }
        };
        drop(listener);
        // What is still waiting or running has used up the drain time.
        drop(ending);
        connections.finish().await;
        worker::join(thread).await;
        shared.memory.release_spare(Duration::ZERO);
        #[cfg(feature = "otlp")]
        if let Some(exporter) = &shared.exporter {
            exporter.flush().await;
        }
        result
    }
}

/// Whatever ends a server, no more work is taken, and nobody waits for it to become ready.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.phase.send_replace(Phase::Draining);
        self.0.queue.close();
    }
}

/// Reads the default model's weights and prepares the default precision, on the engine's thread.
fn warm_up(shared: &Shared) -> Result<(), ServerError> {
    let Some(entry) = shared.models.first() else { return Err(ServerError::NoModel) };
    for entry in &shared.models {
        let engine = entry.autoencoder.engine();
        shared.metrics.build_info(&engine.name(shared.options.precision), engine.isa());
    }
    if !shared.options.warm_up {
        return Ok(());
    }
    let start = Instant::now();
    let model = entry.autoencoder.model();
    let operation = if model.decoder().is_some() { Operation::Decode } else { Operation::Encode };
    let loading =
        std::panic::AssertUnwindSafe(|| entry.autoencoder.warm(operation, shared.options.precision));
    let outcome = std::panic::catch_unwind(loading).unwrap_or(Err(EngineError::Cancelled));
    let failed = |source| ServerError::WarmUp { model: entry.name.clone(), source };
    match outcome {
        // Smaller work, or pictures of a model of clips, may have room.
        Err(EngineError::Budget { .. }) => {}
        outcome => outcome.map_err(failed)?,
    }
    shared.metrics.loaded(&entry.name, start.elapsed());
    if operation == Operation::Decode {
        let (flops, time) = first_decode(shared, entry).map_err(failed)?;
        shared.queue.expect(flops, time);
    }
    Ok(())
}

/// What a server takes once it is at work, beside what it held when it became ready and what is planned: connections, threads
/// that make answers, and the code that both use first.
const SERVING_BYTES: u64 = 4 << 20;

/// Notes what the process holds beside weights when no work is left of the warm-up. Work gets what that leaves of the budget.
fn note_idle(shared: &Shared) {
    shared.memory.release_spare(Duration::ZERO);
    memory::give_back_freed();
    let in_memory = |entry: &ModelEntry| entry.autoencoder.weight_bytes_in_memory(&[]) as u64;
    let weights: u64 = shared.models.iter().map(in_memory).sum();
    if let Some(resident) = memory::resident_bytes() {
        let idle = resident.saturating_sub(weights);
        let _ = shared.idle_bytes.set(idle);
        let engines = || shared.models.iter().map(|entry| entry.autoencoder.engine());
        engines().for_each(|engine| engine.note_process_bytes(idle + SERVING_BYTES));
        engines().filter_map(|engine| engine.work_budget()).for_each(|bytes| shared.memory.limit_to(bytes));
    }
}

/// Small decodes, so that the first client finds threads and caches warm, and the queue knows how fast the engine is:
/// floating-point operations and their time, as the difference of two sizes, because much of a small decode's time is spent
/// on what a picture of any size needs.
fn first_decode(shared: &Shared, entry: &ModelEntry) -> Result<(u64, Duration), EngineError> {
    const SIDES: [usize; 2] = [8, 16];
    // The very first finds caches cold.
    let small = small_decode(shared, entry, SIDES[0], 2)?;
    // A budget that has no room for it is no reason not to serve.
    let Ok(large) = small_decode(shared, entry, SIDES[1], 1) else { return Ok(small) };
    let (flops, time) = (large.0.saturating_sub(small.0), large.1.saturating_sub(small.1));
    // On a busy machine the larger one may happen to be the faster one.
    Ok(if flops == 0 || time.is_zero() { large } else { (flops, time) })
}

/// Operations of a decode of `side` by `side` latents, and the shortest time of a few, at least `least`, as other programs
/// may hold some of them up.
fn small_decode(
    shared: &Shared,
    entry: &ModelEntry,
    side: usize,
    least: usize,
) -> Result<(u64, Duration), EngineError> {
    const TIMES: usize = 6;
    const LONG_ENOUGH: Duration = Duration::from_millis(200);
    let (autoencoder, precision) = (&entry.autoencoder, shared.options.precision);
    let channels = autoencoder.model().latent_channels();
    let (picture, clip) = ([1, channels, side, side], [1, channels, 1, side, side]);
    let latents = vec![0.0; channels * side * side];
    let (scaling, control, windows) = (Scaling::None, Control::new(), Windows::default());
    let is_clip = autoencoder.model().temporal_factor().is_some();
    let plan = match is_clip {
        true => autoencoder.plan_decode_clip(clip, windows, precision)?,
        false => autoencoder.plan_decode(picture, precision)?,
    };
    let need =
        Need { model: 0, operation: Operation::Decode, frames: 1, bytes: plan.peak_bytes as u64, body: 0 };
    // Weights of clips go if a picture has no room beside them.
    let _share = shared.memory.admit(need, 0, |share| share).inspect(|share| shared.memory.begin(share));
    let (mut time, first) = (Duration::MAX, Instant::now());
    for number in 0..TIMES {
        if number >= least && first.elapsed() > LONG_ENOUGH {
            break;
        }
        let start = Instant::now();
        if is_clip {
            autoencoder.decode_clip(latents.clone(), clip, &scaling, windows, precision, &control)?;
        } else {
            autoencoder.decode(latents.clone(), picture, &scaling, precision, &control)?;
        }
        time = time.min(start.elapsed());
    }
    Ok((plan.flops, time))
}

/// Ready, unless a shutdown was asked for meanwhile.
fn become_ready(shared: &Shared) {
    shared.phase.send_if_modified(|phase| {
        let loading = *phase == Phase::Loading;
        if loading {
            *phase = Phase::Ready;
        }
        loading
    });
}

/// Returns when a shutdown was asked for and the accepted work is done, or has had its time.
async fn drained(shared: &Shared) {
    let mut phase: watch::Receiver<Phase> = shared.phase.subscribe();
    // The sender lives in `shared`.
    let _ = phase.wait_for(|phase| *phase == Phase::Draining).await;
    tracing::info!("draining: new work is refused, accepted work is finished");
    let start = Instant::now();
    while !shared.is_idle() {
        if start.elapsed() >= shared.options.drain_timeout {
            tracing::warn!("the drain timeout is over; unfinished work is dropped");
            return;
        }
        tokio::time::sleep(DRAIN_STEP).await;
    }
}
