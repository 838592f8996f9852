//! What a server keeps in memory within its budget.

use std::sync::Arc;

use remote_vae_engine::{Autoencoder, CpuEngine, EngineOptions, Precision, memory};
use remote_vae_wire::Dtype;
use serde_json::json;

use crate::support::*;

const SHAPE: [usize; 4] = [1, 4, 8, 8];

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

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn the_model_used_least_recently_leaves_memory_when_another_needs_room() {
    let wide = kl_with(json!({"block_out_channels": [96, 96, 96, 96]}));
    let plan = wide.plan_decode(SHAPE, Precision::Exact).unwrap();
    // Room for the weights of two models and a half, and for one decode.
    let room = plan.weight_bytes * 5 / 2 + (plan.peak_bytes - plan.weight_bytes);
    let memory_budget = Some(memory::resident_bytes().unwrap() + room as u64);
    let engine =
        CpuEngine::new(EngineOptions { threads: Some(2), memory_budget, ..EngineOptions::default() })
            .unwrap();
    let engine = Arc::new(engine);
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
