//! Routes that tell about the server: health, readiness, `/info`, `/metrics`.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use remote_vae_engine::{Autoencoder, Precision, memory};
use remote_vae_wire::{Operation, content_type};
use serde_json::{Value, json};

use crate::error::Refusal;
use crate::state::Shared;

/// The commit that was built, where the build was told by the variable `REMOTE_VAE_COMMIT`.
pub(crate) const COMMIT: Option<&str> = option_env!("REMOTE_VAE_COMMIT");

/// `Ok` once work is taken, 503 before and after.
pub(crate) async fn ready(State(shared): State<Arc<Shared>>) -> Result<&'static str, Refusal> {
    shared.check_ready_quietly()?;
    Ok("Ok")
}

/// `Ok` for as long as the process answers.
pub(crate) async fn live() -> &'static str {
    "Ok"
}

/// What runs here, as JSON.
pub(crate) async fn info(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Refusal> {
    check_key(&shared, request)?;
    Ok(([(header::CONTENT_TYPE, content_type::JSON)], describe(&shared).to_string()).into_response())
}

/// Anybody may read these routes unless the operator wants a key for them too.
pub(crate) fn check_key(shared: &Shared, request: Request) -> Result<(), Refusal> {
    if shared.options.private_info {
        shared.keys.identify(&request.into_parts().0)?;
    }
    Ok(())
}

/// Prometheus' text.
pub(crate) async fn metrics(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, Refusal> {
    check_key(&shared, request)?;
    for entry in &shared.models {
        shared.metrics.weights(&entry.name, entry.autoencoder.weight_bytes_in_memory(&[]));
    }
    let text = shared.metrics.render(shared.queue.occupancy(), shared.budget.held());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// What was found when `fast` was first used; null before.
fn fast(autoencoder: &Autoencoder, operation: Operation) -> Value {
    autoencoder.calibration(operation).map_or(Value::Null, |found| {
        json!({
            "psnr_db": found.psnr,
            "largest_error": found.largest_error,
            "integer16_layers": found.integer16_layers,
            "float32_layers": found.float32_layers,
        })
    })
}

/// The budget, what the process holds without any work, the most that this came to at one time with plans, bodies, answers
/// and weights, and the most that the process really held.
fn memory(shared: &Shared) -> Value {
    let engines = shared.models.iter().map(|entry| entry.autoencoder.engine());
    let idle = shared.idle_bytes.get();
    json!({
        "budget_bytes": engines.filter_map(|engine| engine.memory_budget()).min(),
        "idle_bytes": idle,
        "planned_peak_bytes": idle.map(|idle| idle + shared.memory.peak()),
        "resident_peak_bytes": memory::peak_resident_bytes(),
    })
}

fn describe(shared: &Shared) -> Value {
    let models: Vec<Value> = shared
        .models
        .iter()
        .enumerate()
        .map(|(index, entry)| {
            let engine = entry.autoencoder.engine();
            json!({
                "name": entry.name,
                "default": index == 0,
                "path": if index == 0 { "/".to_owned() } else { format!("/{}", entry.name) },
                "engine": engine.name(shared.options.precision),
                "isa": engine.isa(),
                "threads": engine.threads(),
                "weight_bytes_in_memory": entry.autoencoder.weight_bytes_in_memory(&[]),
                "fast": {
                    "decode": fast(&entry.autoencoder, Operation::Decode),
                    "encode": fast(&entry.autoencoder, Operation::Encode),
                },
                "description": entry.autoencoder.model().description(),
            })
        })
        .collect();
    let queue = shared.queue.occupancy();
    let options = &shared.options;
    json!({
        "name": "remote-vae",
        "version": env!("CARGO_PKG_VERSION"),
        "commit": COMMIT,
        "state": shared.phase().name(),
        "uptime_seconds": shared.started.elapsed().as_secs_f64(),
        "precisions": Precision::ALL.map(Precision::name),
        "default_precision": options.precision.name(),
        "windows": options.windows.frames,
        "tiling": options.windows.tiles.is_some(),
        "answer_dtype": "float16",
        "models": models,
        "limits": options.limits,
        "memory": memory(shared),
        "request_timeout_seconds": options.request_timeout.map(|timeout| timeout.as_secs_f64()),
        "authentication": if shared.keys.are_wanted() { "bearer" } else { "none" },
        "queue": {
            "waiting": queue.waiting,
            "running": queue.running,
            "capacity": queue.capacity,
            "work_budget_bytes": shared.memory.limit(),
            "held_bytes": shared.budget.held(),
            "answer_bytes": queue.answer_bytes,
            "work_seconds": queue.work_seconds,
            "jobs": shared.jobs.len(),
        },
    })
}
