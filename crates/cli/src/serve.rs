//! `remote-vae serve`.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use remote_vae_engine::Autoencoder;
use remote_vae_server::{ApiKey, Limits, ModelEntry, Server, ServerHandle, ServerOptions};
use tracing_subscriber::EnvFilter;

use crate::arguments::{LogFormat, NamedSource, ServeOptions};
use crate::local;

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
    runtime()?.block_on(serve(server_options(options), models))
}

fn server_options(options: &ServeOptions) -> ServerOptions {
    let limits = Limits {
        max_body_bytes: u64::from(options.max_body) << 20,
        max_held_bytes: Limits::default().max_held_bytes.max(u64::from(options.max_body) << 20),
        max_pixels: u64::from(options.max_megapixels) << 20,
        max_queue: options.max_queue as usize,
        max_plan_bytes: options.max_request_memory.map(|mib| u64::from(mib) << 20),
        ..Limits::default()
    };
    ServerOptions {
        host: options.host.clone(),
        port: options.port,
        limits,
        drain_timeout: Duration::from_secs(options.drain_timeout),
        request_timeout: options.request_timeout.map(|seconds| Duration::from_secs(seconds.into())),
        extra_paths: options.paths.clone(),
        api_keys: options.api_keys.iter().map(ApiKey::new).collect(),
        ..ServerOptions::default()
    }
}

async fn serve(options: ServerOptions, models: Vec<ModelEntry>) -> Result<()> {
    let server = Server::bind(options, models).await?;
    // Scripts read this line; everything else goes to standard error.
    let mut output = std::io::stdout();
    writeln!(output, "listening on http://{}", server.address())?;
    output.flush()?;
    tokio::spawn(stop_on_signal(server.shutdown_handle()));
    server.run().await?;
    Ok(())
}

/// The first signal drains the server, the second ends the process.
async fn stop_on_signal(server: ServerHandle) {
    if signal().await.is_err() {
        return;
    }
    tracing::info!("shutting down; a second signal ends at once");
    server.shutdown();
    if signal().await.is_ok() {
        std::process::exit(130);
    }
}

async fn signal() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = tokio::signal::ctrl_c() => result,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

fn start_logging(format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_from_env("REMOTE_VAE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
    .map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}
