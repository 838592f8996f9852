//! `remote-vae serve`.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use remote_vae_engine::{Autoencoder, Precision};
use remote_vae_server::{
    ApiKey, Limits, ModelEntry, Server, ServerError, ServerHandle, ServerOptions, TlsFiles,
};
use tracing_subscriber::EnvFilter;

use crate::arguments::{LogFormat, ServeOptions};
use crate::local;
use crate::values::NamedSource;

pub(crate) fn run(options: &ServeOptions) -> Result<()> {
    start_logging(options.log_format)?;
    let engine = local::engine(&options.engine)?;
    let embedded = [NamedSource { name: "default".into(), source: "embedded".into() }];
    let sources = if options.models.is_empty() { &embedded[..] } else { &options.models };
    let models = sources
        .iter()
        .map(|NamedSource { name, source }| {
            let autoencoder = Arc::new(Autoencoder::new(local::model(source)?, Arc::clone(&engine)));
            Ok(ModelEntry { name: name.clone(), autoencoder })
        })
        .collect::<Result<Vec<_>>>()?;
    runtime()?.block_on(serve(server_options(options)?, models, options.stop_with_stdin))
}

fn server_options(options: &ServeOptions) -> Result<ServerOptions> {
    let tls = match (&options.tls_cert, &options.tls_key) {
        (Some(certificate), Some(key)) => {
            Some(TlsFiles { certificate: certificate.clone(), key: key.clone() })
        }
        (None, None) => None,
        (Some(_), None) => bail!("--tls-cert needs --tls-key"),
        (None, Some(_)) => bail!("--tls-key needs --tls-cert"),
    };
    let bytes = |mib: u32| u64::from(mib) << 20;
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let default = Limits::default();
    let max_body_bytes = bytes(options.max_body);
    let least_held = Limits { max_body_bytes, ..default.clone() }.least_held_bytes();
    let limits = Limits {
        max_body_bytes,
        max_held_bytes: options.max_held.map_or(default.max_held_bytes.max(least_held), bytes),
        max_pixels: u64::from(options.max_megapixels) << 20,
        max_batch: options.max_batch as usize,
        max_frames: options.max_frames as usize,
        max_queue: options.max_queue as usize,
        max_plan_bytes: options.engine.memory_budget(),
        max_answer_bytes: bytes(options.max_answers),
        max_jobs: options.max_jobs as usize,
        max_connections: options.max_connections as usize,
    };
    Ok(ServerOptions {
        host: options.host.clone(),
        port: options.port,
        precision: options.engine.precision(),
        windows: options.clips.windows(),
        limits,
        drain_timeout: Duration::from_secs(options.drain_timeout),
        request_timeout: options.request_timeout.map(seconds),
        header_timeout: seconds(options.header_timeout),
        body_timeout: seconds(options.body_timeout),
        body_idle_timeout: seconds(options.body_idle_timeout),
        idle_timeout: seconds(options.idle_timeout),
        extra_paths: options.paths.clone(),
        api_keys: options.api_keys.iter().map(ApiKey::new).collect(),
        api_key_file: options.api_key_file.clone(),
        private_info: options.private_info,
        tls,
        cors_origins: options.cors_origins.clone(),
        job_ttl: seconds(options.job_ttl),
        #[cfg(feature = "otlp")]
        otlp_endpoint: options.otlp_endpoint.clone(),
        ..ServerOptions::default()
    })
}

async fn serve(options: ServerOptions, models: Vec<ModelEntry>, stop_with_stdin: bool) -> Result<()> {
    let signals = Signals::new(stop_with_stdin)?;
    let served: Vec<String> = models.iter().map(|model| summary(model, options.precision)).collect();
    let server = Server::bind(options, models).await.map_err(|error| match &error {
        ServerError::Listen { source, .. } if source.kind() == ErrorKind::AddrInUse => {
            anyhow!("{error} Write `--port N` for another one.")
        }
        _ => error.into(),
    })?;
    // Scripts read this line; everything else goes to standard error.
    let mut output = std::io::stdout();
    let scheme = if server.speaks_tls() { "https" } else { "http" };
    writeln!(output, "listening on {scheme}://{}", server.address())?;
    output.flush()?;
    for (index, model) in served.iter().enumerate() {
        tracing::info!("{}{model}", if index == 0 { "/ and " } else { "" });
    }
    tokio::spawn(signals.stop(server.shutdown_handle()));
    server.run().await?;
    tracing::info!("stopped");
    Ok(())
}

/// A line on one model: where it answers, what it is and what computes it.
fn summary(entry: &ModelEntry, precision: Precision) -> String {
    let (model, engine) = (entry.autoencoder.model(), entry.autoencoder.engine());
    format!(
        "/{}: {} ({}, {} latent channels) on {}, {} threads",
        entry.name,
        model.label(),
        model.family.name(),
        model.latent_channels(),
        engine.name(precision),
        engine.threads(),
    )
}

/// What ends the server. Made before the server tells its address, so that no signal after that is missed.
struct Signals {
    /// Resolved when standard input ends, if that is to end the server.
    stdin: Option<tokio::sync::oneshot::Receiver<()>>,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new(stop_with_stdin: bool) -> Result<Signals> {
        let stdin = stop_with_stdin.then(end_of_stdin);
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let listen = |kind| signal(kind).context("cannot listen for signals");
            Ok(Signals {
                terminate: listen(SignalKind::terminate())?,
                interrupt: listen(SignalKind::interrupt())?,
                stdin,
            })
        }
        #[cfg(not(unix))]
        Ok(Signals { stdin })
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = ended(&mut self.stdin) => {}
        }
        #[cfg(not(unix))]
        tokio::select! {
            Ok(()) = tokio::signal::ctrl_c() => {}
            () = ended(&mut self.stdin) => {}
        }
    }

    /// The first signal drains the server, the second ends the process.
    async fn stop(mut self, server: ServerHandle) {
        self.next().await;
        tracing::info!("shutting down; a second signal ends at once");
        server.shutdown();
        self.next().await;
        std::process::exit(130);
    }
}

/// Told when standard input ends; what comes before is dropped.
fn end_of_stdin() -> tokio::sync::oneshot::Receiver<()> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own: a runtime would wait for this read when it ends.
    std::thread::spawn(move || {
        // However reading ends, nobody writes there any more.
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = sender.send(());
    });
    receiver
}

/// Returns once, when standard input ends; never without one.
async fn ended(stdin: &mut Option<tokio::sync::oneshot::Receiver<()>>) {
    match stdin {
        Some(receiver) => {
            let _ = receiver.await;
            *stdin = None;
        }
        None => std::future::pending().await,
    }
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

fn start_logging(format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_from_env("REMOTE_VAE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // A line that cannot be written is lost; to complain about it on the same stream would be a panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn parsed(flags: &[&str]) -> ServerOptions {
        let arguments = [&["remote-vae", "serve", "--port", "8080"], flags].concat();
        match Arguments::try_parse_from(arguments).unwrap().command {
            Command::Serve(options) => server_options(&options).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_default_to_the_servers_own_defaults() {
        assert_eq!(parsed(&["--host", "127.0.0.1"]).limits, Limits::default());
        let (ours, theirs) = (parsed(&[]), ServerOptions::default());
        assert_eq!(
            (ours.header_timeout, ours.body_timeout, ours.body_idle_timeout, ours.idle_timeout),
            (theirs.header_timeout, theirs.body_timeout, theirs.body_idle_timeout, theirs.idle_timeout)
        );
        assert_eq!(
            (ours.request_timeout, ours.drain_timeout),
            (theirs.request_timeout, theirs.drain_timeout)
        );
    }

    #[test]
    fn flags_reach_the_server() {
        let options = parsed(&[
            "--windows=off",
            "--tiling=on",
            "--max-frames=8",
            "--max-batch=2",
            "--max-held=512",
            "--max-connections=9",
            "--memory-budget=3MiB",
            "--header-timeout=4",
            "--body-timeout=5",
            "--body-idle-timeout=6",
            "--idle-timeout=7",
        ]);
        let limits = options.limits;
        assert_eq!((limits.max_batch, limits.max_frames, limits.max_connections), (2, 8, 9));
        assert_eq!((options.windows.frames, options.windows.tiles.is_some()), (false, true));
        assert_eq!(parsed(&[]).windows, ServerOptions::default().windows);
        assert_eq!((limits.max_held_bytes, limits.max_plan_bytes), (512 << 20, Some(3 << 20)));
        let timeouts =
            [options.header_timeout, options.body_timeout, options.body_idle_timeout, options.idle_timeout];
        assert_eq!(timeouts.map(|timeout| timeout.as_secs()), [4, 5, 6, 7]);
        assert_eq!(parsed(&["--max-body=2000"]).limits.max_held_bytes, 3500 << 20);
    }
}
