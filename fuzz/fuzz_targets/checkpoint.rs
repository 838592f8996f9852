//! A safetensors file of anybody's: opened as a model, and every tensor read, without a panic.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use remote_vae_model::{Checkpoint, Model};

static FILE: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("fuzz-{}.safetensors", std::process::id())));

fuzz_target!(|input: (&str, &[u8])| {
    let (header, data) = input;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    std::fs::write(&*FILE, bytes).unwrap();
    if let Ok(checkpoint) = Checkpoint::open(&FILE) {
        let names: Vec<String> = checkpoint.names().map(|name| name.to_string()).collect();
        for name in names {
            let _ = checkpoint.read_f32(&name);
        }
    }
    let _ = Model::open(&FILE);
});
