//! What a server keeps in memory within its budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use remote_vae_engine::{Autoencoder, CpuEngine, Delivery, Engine, EngineOptions, Precision, Windows};
use remote_vae_server::ServerOptions;
use remote_vae_wire::{Dtype, Operation};
use serde_json::json;

use crate::clip::hunyuan;
use crate::hooked::{Hooked, Hooks};
use crate::support::*;

const SHAPE: [usize; 4] = [1, 4, 8, 8];

/// What this process holds beside work, as an engine that is made now counts it.
#[cfg(target_os = "linux")]
fn process_bytes() -> u64 {
    CpuEngine::new(EngineOptions { threads: Some(1), ..EngineOptions::default() }).unwrap().process_bytes()
}

/// An engine whose work may hold `room` bytes, or up to 1 MiB less, and how many those are.
#[cfg(target_os = "linux")]
fn engine_with_room(room: u64) -> (Arc<CpuEngine>, u64) {
    // Other tests of this process take and give back memory meanwhile.
    for _ in 0..10_000 {
        let memory_budget = Some(process_bytes() + room);
        let options = EngineOptions { threads: Some(1), memory_budget, ..EngineOptions::default() };
        let engine = CpuEngine::new(options).unwrap();
        match engine.work_budget() {
            Some(found) if (room - (1 << 20)..=room).contains(&found) => return (Arc::new(engine), found),
            _ => {}
        }
    }
    panic!("this process never kept still");
}

/// A model like [`kl`] on an engine that says that its work may hold `room` bytes.
fn within(room: u64, engine: Arc<CpuEngine>) -> Arc<Autoencoder> {
    let engine = Hooked::with_room(engine, room, Hooks::default());
    Arc::new(Autoencoder::new(kl().model().clone(), engine))
}

async fn weights(server: &TestServer) -> Vec<u64> {
    let info = json(server.http.get(server.url("/info")).send().await.unwrap()).await;
    let models = info["models"].as_array().unwrap();
    models.iter().map(|model| model["weight_bytes_in_memory"].as_u64().unwrap()).collect()
}

async fn decode(server: &TestServer, model: &str) -> Vec<u8> {
    let query = format!("output_type=pt&{}", tensor_query(&SHAPE, Dtype::Float16));
    let request = server.http.post(server.url(&format!("/{model}?{query}"))).body(latents(&SHAPE, 60).0);
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200, "{model}");
    response.bytes().await.unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_used_least_recently_leaves_memory_when_another_needs_room() {
    let wide = kl_with(json!({"block_out_channels": [96, 96, 96, 96]}));
    let plan = wide.plan_decode(SHAPE, Precision::Exact).unwrap();
    // Room for the weights of two models and a half, and for one decode.
    let room = plan.weight_bytes * 5 / 2 + (plan.peak_bytes - plan.weight_bytes);
    let engine = Hooked::with_room(engine(), room as u64, Hooks::default());
    let models = ["a", "b", "c"];
    let entries = models.map(|name| {
        let model = Autoencoder::new(wide.model().clone(), Arc::clone(&engine) as _);
        (name, Arc::new(model))
    });
    let server = TestServer::with(options(), entries.to_vec()).await;

    let mut first = Vec::new();
    for model in models {
        first.push(decode(&server, model).await);
    }
    let resident = |found: Vec<u64>| found.iter().map(|bytes| *bytes > 0).collect::<Vec<_>>();
    assert_eq!(resident(weights(&server).await), [false, true, true]);
    assert_eq!(decode(&server, "b").await, first[1]);
    assert_eq!(decode(&server, "a").await, first[0]);
    assert_eq!(resident(weights(&server).await), [true, true, false]);
    assert!(weights(&server).await[0] >= plan.weight_bytes as u64);
    let metrics = server.http.get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.lines().any(|line| line == "rvae_weight_bytes{model=\"c\"} 0"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_room_beside_kept_results_is_told_when_the_first_expires() {
    const LATENTS: [usize; 4] = [4, 4, 16, 16];
    let room = kl().plan_decode(LATENTS, Precision::Exact).unwrap().peak_bytes as u64 + (4 << 20);
    let model = within(room, engine());
    let options = ServerOptions { job_ttl: Duration::from_secs(5000), ..options() };
    let server = TestServer::with(options, vec![("default", model)]).await;
    let query = format!("output_type=pt&{}", tensor_query(&LATENTS, Dtype::Float16));
    for _ in 0..4 {
        let job = server.post(&format!("/v1/jobs?{query}"), latents(&LATENTS, 61).0);
        assert_eq!(job.send().await.unwrap().status(), 202);
        server.until_queue(0, 0).await;
    }
    let body = vec![0; room as usize - (1 << 20)];
    let response = server.post(&format!("/?{query}"), body).send().await.unwrap();
    let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert_eq!(response.status(), 429);
    assert!((4900..=5000).contains(&wait), "{wait}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_fills_the_budget_with_its_answer_is_taken() {
    const LATENTS: [usize; 4] = [1, 4, 32, 32];
    const VALUES: u64 = 3 * 256 * 256;
    let plan = kl().plan_decode_rows(LATENTS, Precision::Exact, 0).unwrap().summary();
    // Of the values only a strip is there at one time, half of so small a picture.
    let whole = kl().plan_decode(LATENTS, Precision::Exact).unwrap();
    assert!((whole.peak_bytes - plan.peak_bytes) as u64 > VALUES);
    for (output, answer) in [("pil&image_format=png", VALUES), ("pt", 2 * VALUES)] {
        let need = plan.peak_bytes as u64 + answer;
        for (room, expected) in [(need, 200), (need - 1, 413)] {
            let model = within(room, engine());
            let server = TestServer::with(options(), vec![("default", model)]).await;
            let query = format!("output_type={output}&{}", tensor_query(&LATENTS, Dtype::Float16));
            let response = server.post(&format!("/?{query}"), latents(&LATENTS, 62).0).send().await.unwrap();
            assert_eq!(response.status(), expected, "{output} within {room} of {need} bytes");
        }
    }
}

/// The encoder of an MP4 file keeps some pixels of each frame; the frames count as what they may become at most.
#[tokio::test(flavor = "multi_thread")]
async fn what_makes_an_mp4_file_counts_with_its_answer() {
    const LATENTS: [usize; 5] = [1, 4, 3, 4, 6];
    let windows = Windows { frames: false, tiles: None };
    let clip = hunyuan();
    let [_, _, frames, height, width] = clip.clip_pixels(LATENTS).unwrap();
    let plan = clip.plan_decode_frames(LATENTS, windows, Precision::Exact).unwrap();
    let pixels = 3 * frames * height * width;
    let encoder = 13 * height * width + (2 << 20);
    for (output, answer) in [("pt&partial_postprocess=true", pixels), ("mp4", pixels + encoder)] {
        let need = (plan.peak_bytes + answer) as u64;
        for (room, expected) in [(need, 200), (need - 1, 413)] {
            let engine = Hooked::with_room(engine(), room, Hooks::default());
            let model = Arc::new(Autoencoder::new(clip.model().clone(), engine));
            let server = TestServer::with(options(), vec![("default", model)]).await;
            let query =
                format!("output_type={output}&windows=off&{}", tensor_query(&LATENTS, Dtype::Float16));
            let response = server.post(&format!("/?{query}"), latents(&LATENTS, 64).0).send().await.unwrap();
            assert_eq!(response.status(), expected, "{output} within {room} of {need} bytes");
        }
    }
}

/// Its frames leave the engine as they are made, though the answer leaves as a whole: nothing else is admitted, and nothing is
/// searched for when it runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_clip_whose_answer_is_whole_is_admitted_with_the_plans_it_runs_by() {
    /// Three windows of 2x3 latents.
    const LATENTS: [usize; 5] = [1, 4, 9, 2, 3];
    /// What the process is said to hold, more than it does.
    const PROCESS: u64 = 1 << 40;
    let (clip, windows) = (hunyuan(), Windows::default());
    let straight = clip.plan_decode_frames(LATENTS, windows, Precision::Exact).unwrap().peak_bytes;
    // Held weights have no room, and beside them that is another plan than the one beside nothing.
    let room = straight as u64 - 1;
    let memory_budget = Some(PROCESS + room);
    let options_within = EngineOptions { threads: Some(2), memory_budget, ..EngineOptions::default() };
    let inner = CpuEngine::new(options_within).unwrap();
    inner.note_process_bytes(PROCESS);
    let searches = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&searches);
    let at_search = Box::new(move |[.., height, width]: [usize; 5]| {
        counter.fetch_add(usize::from([height, width] == LATENTS[3..]), Ordering::Relaxed);
    });
    let engine = Hooked::with_room(Arc::new(inner), room, Hooks { at_search, ..Hooks::default() });
    let within = Arc::new(Autoencoder::new(clip.model().clone(), engine));
    let rows = Delivery::Rows { kept_per_pixel: 0 };
    let held = within.plans(Operation::Decode, LATENTS, windows, Precision::Exact, rows).unwrap();
    let server = TestServer::with(options(), vec![("default", within)]).await;
    let before = searches.load(Ordering::Relaxed);
    assert!(before > held.len(), "{before}");
    for (output, accept) in [("pt", "tensor/binary"), ("pt&partial_postprocess=true", "application/json")] {
        let query = format!("output_type={output}&{}", tensor_query(&LATENTS, Dtype::Float16));
        let request = server.post(&format!("/?{query}"), latents(&LATENTS, 65).0).header("accept", accept);
        assert_eq!(request.send().await.unwrap().status(), 200, "{output} within {room} bytes");
        assert_eq!(searches.load(Ordering::Relaxed), before, "{output}");
    }
}

/// Beside its answer the straight plan has no room, a smaller one has.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_leaves_room_for_its_answer() {
    const LATENTS: [usize; 4] = [1, 4, 64, 64];
    const PIXELS: u64 = 512 * 512;
    let free = CpuEngine::new(EngineOptions { threads: Some(1), ..EngineOptions::default() }).unwrap();
    let free = Arc::new(Autoencoder::new(kl().model().clone(), Arc::new(free)));
    let straight = free.plan_decode_rows(LATENTS, Precision::Exact, 0).unwrap().summary().peak_bytes as u64;
    let expected = TestServer::with(options(), vec![("default", free)]).await;
    // Float16 numbers, base64 and all; a tensor file and what is put into it; a WebP file and what it is made of.
    for (accept, output, answer) in [
        ("application/json", "pt", 14 * PIXELS),
        ("application/x-safetensors", "pt", 12 * PIXELS),
        ("*/*", "pil&image_format=webp", 12 * PIXELS),
    ] {
        let (inner, room) = engine_with_room(straight + (3 << 19));
        assert!((straight..straight + answer).contains(&room), "{straight} {room} {answer}");
        let server = TestServer::with(options(), vec![("default", within(room, inner))]).await;
        let ask = async |server: &TestServer, shape: [usize; 4]| {
            let query = format!("output_type={output}&{}", tensor_query(&shape, Dtype::Float16));
            let request = server.post(&format!("/?{query}"), latents(&shape, 63).0);
            let response = request.header("accept", accept).send().await.unwrap();
            (response.status().as_u16(), response.bytes().await.unwrap())
        };
        let (status, bytes) = ask(&server, LATENTS).await;
        assert_eq!(status, 200, "{output} within {room} bytes");
        assert!(bytes == ask(&expected, LATENTS).await.1, "{output}");
        // What a refusal says would fit does.
        let (status, refusal) = ask(&server, [1, 4, 192, 192]).await;
        assert_eq!(status, 413);
        let refusal = String::from_utf8(refusal.to_vec()).unwrap();
        let largest = refusal.split("that fits is ").nth(1).and_then(|rest| rest.split('x').next());
        let side = largest.unwrap_or_else(|| panic!("{refusal}")).parse::<usize>().unwrap() / 8;
        assert!(side > LATENTS[2], "{refusal}");
        assert_eq!(ask(&server, [1, 4, side, side]).await.0, 200, "{refusal}");
    }
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn weights_without_room_are_not_held_by_the_warm_up_either() {
    let wide = kl_with(json!({"block_out_channels": [128, 128, 128, 128]}));
    let plan = wide.plan_decode(SHAPE, Precision::Exact).unwrap();
    let (engine, room) = engine_with_room(plan.weight_bytes as u64);
    let loads = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&loads);
    let before_load = Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let engine = Hooked::with_room(engine, room, Hooks { before_load, ..Hooks::default() });
    let model = Arc::new(Autoencoder::new(wide.model().clone(), engine));
    let plan = model.plan_decode(SHAPE, Precision::Exact).unwrap();
    assert!(plan.reads_weights && plan.peak_bytes as u64 <= room);
    let server = TestServer::with(options(), vec![("default", model)]).await;
    let expected = TestServer::with(options(), vec![("default", wide)]).await;
    assert_eq!(decode(&server, "").await, decode(&expected, "").await);
    assert_eq!((weights(&server).await, loads.load(Ordering::Relaxed)), (vec![0], 0));
}
