//! What clients of every generation send, replayed byte for byte, and the answers they can read.
//!
//! `tests/golden/record.py` made the requests with the clients' own code, and the answers with diffusers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use remote_vae_engine::Autoencoder;
use remote_vae_media::{DecodeLimits, decode_image, psnr, to_uint8_channel_last};
use remote_vae_model::Model;
use remote_vae_wire::{Dtype, TensorHeader, elements_from_bytes, parse_base64_tensor};
use serde::Deserialize;

use crate::http::{Answer, Connection};
use crate::support::*;

#[derive(Deserialize)]
struct Entry {
    name: String,
    sent_by: Vec<String>,
    kind: String,
    answer: HashMap<String, serde_json::Value>,
    pixels: Option<String>,
    latents: Option<String>,
    psnr: Option<f64>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn file(name: &str) -> Vec<u8> {
    let path = folder().join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn entries() -> Vec<Entry> {
    serde_json::from_slice(&file("recorded.json")).unwrap()
}

fn golden_model(name: &str) -> Arc<Autoencoder> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden").join(name);
    Arc::new(Autoencoder::new(Model::open(&path).unwrap(), engine()))
}

async fn server() -> TestServer {
    TestServer::with(options(), vec![("sd15", golden_model("sd15")), ("flux", golden_model("flux"))]).await
}

/// Float16 numbers that are the golden ones: within 1e-3 where they are small, a rounding apart where they are not.
#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-3 * (b.abs() / 4.0).max(1.0), "{what}: element {index} is {a}, not {b}");
    }
}

/// Bytes that are at most one step from the golden ones.
#[track_caller]
fn assert_one_step(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(a.abs_diff(*b) <= 1, "{what}: byte {index} is {a}, not {b}");
    }
}

/// The files of one decode.
struct Golden {
    half: Vec<f32>,
    bytes: Vec<u8>,
}

impl Golden {
    fn read(name: &str) -> Self {
        let half = elements_from_bytes(Dtype::Float16, &file(&format!("answers/{name}.f16")));
        Self { half, bytes: file(&format!("answers/{name}.u8")) }
    }

    /// Holds an answer to the golden numbers; gives its 8-bit pixels (of the first picture at least) unless they lost.
    #[track_caller]
    fn check(&self, entry: &Entry, answer: &Answer) -> Option<Vec<u8>> {
        let what = entry.name.as_str();
        let values = |bytes: &[u8]| elements_from_bytes(Dtype::Float16, bytes);
        let shape = |text: &str| -> [usize; 4] { serde_json::from_str(text).unwrap() };
        match entry.kind.as_str() {
            "jpeg" => {
                assert!(answer.body.starts_with(&[0xff, 0xd8, 0xff]), "{what}");
                let found = psnr(&picture(&answer.body), self.first(&answer.body));
                let pillow = entry.psnr.unwrap();
                assert!(found >= pillow - 0.5, "{what}: {found:.2} dB, Pillow has {pillow:.2}");
                None
            }
            "png" => {
                assert!(answer.body.starts_with(b"\x89PNG\r\n\x1a\n"), "{what}");
                let found = picture(&answer.body);
                assert_one_step(&found, self.first(&answer.body), what);
                Some(found)
            }
            "partial" => {
                assert_one_step(&answer.body, &self.bytes, what);
                Some(answer.body.clone())
            }
            "tensor" => {
                let found = values(&answer.body);
                assert_close(&found, &self.half, what);
                Some(to_uint8_channel_last(&found, shape(answer.header("shape").unwrap())))
            }
            "base64" => {
                let (header, bytes) = parse_base64_tensor(&answer.body).unwrap();
                assert_eq!(header.dtype, Dtype::Float16);
                assert_close(&values(&bytes), &self.half, what);
                Some(to_uint8_channel_last(&values(&bytes), header.shape.try_into().unwrap()))
            }
            "unit" => {
                let found = values(&answer.body);
                let unit: Vec<f32> = self.half.iter().map(|x| (x * 0.5 + 0.5).clamp(0.0, 1.0)).collect();
                assert_close(&found, &unit, what);
                // Halved, moved and back: exact, but for the last bit of numbers near zero, which 8 bits do not show.
                let nominal: Vec<f32> = found.iter().map(|x| x * 2.0 - 1.0).collect();
                Some(to_uint8_channel_last(&nominal, shape(answer.header("shape").unwrap())))
            }
            other => panic!("{what} is of an unknown kind {other}"),
        }
    }

    /// The part of the golden bytes that a file can hold.
    fn first(&self, body: &[u8]) -> &[u8] {
        &self.bytes[..picture(body).len()]
    }
}

fn picture(body: &[u8]) -> Vec<u8> {
    decode_image(body, &DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 24 }).unwrap().pixels
}

/// Status and headers are those the client needs; `entry.answer` names them all.
#[track_caller]
fn check_head(entry: &Entry, answer: &Answer) {
    let what = format!("{} sent by {}", entry.name, entry.sent_by.join(", "));
    let said = String::from_utf8_lossy(&answer.body[..answer.body.len().min(300)]);
    assert_eq!(u64::from(answer.status), entry.answer["status"], "{what}: {said}");
    for (name, value) in entry.answer.iter().filter(|(name, _)| *name != "status") {
        assert_eq!(answer.header(name), value.as_str(), "{what}: {name}");
    }
    if matches!(entry.kind.as_str(), "jpeg" | "png") {
        assert_eq!((answer.header("shape"), answer.header("dtype")), (None, None), "{what}");
    }
    assert_eq!(answer.header("content-encoding"), None, "{what}");
    if answer.header("content-type") == Some("tensor/binary") {
        let (shape, dtype) = (answer.header("shape").unwrap(), answer.header("dtype").unwrap());
        TensorHeader::parse(shape, dtype).unwrap().check_body(answer.body.len()).unwrap();
    }
}

/// Whether the request itself ends its connection.
fn asks_to_close(request: &[u8]) -> bool {
    request.windows(19).any(|window| window == b"Connection: close\r\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_request_gets_its_golden_answer() {
    let server = server().await;
    let mut same: HashMap<String, (String, Vec<u8>)> = HashMap::new();
    let mut kept = Connection::open(server.address).await;
    let entries = entries();
    assert!(entries.len() >= 50, "{} requests", entries.len());
    for entry in &entries {
        let request = file(&format!("requests/{}.http", entry.name));
        // All that may, share one connection, refusals among them.
        let mut own = None;
        let connection = match asks_to_close(&request) {
            true => own.insert(Connection::open(server.address).await),
            false => &mut kept,
        };
        let answer = connection.exchange(&request).await.expect("the server closed the connection");
        assert_eq!(answer.closes(), asks_to_close(&request), "{}", entry.name);
        check_head(entry, &answer);
        match (&entry.pixels, &entry.latents) {
            (Some(name), _) => {
                let Some(found) = Golden::read(name).check(entry, &answer) else { continue };
                let (first, pixels) =
                    same.entry(name.clone()).or_insert_with(|| (entry.name.clone(), found.clone()));
                let length = pixels.len().min(found.len());
                assert!(found[..length] == pixels[..length], "{} and {first} differ", entry.name);
            }
            (None, Some(name)) => {
                let expected = elements_from_bytes(Dtype::Float16, &file(name));
                assert_close(&elements_from_bytes(Dtype::Float16, &answer.body), &expected, &entry.name);
            }
            (None, None) => assert!(!answer.refusal().is_empty()),
        }
    }
    assert_eq!(same.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn recorded_requests_arrive_in_pieces_too() {
    let server = server().await;
    let request = file("requests/v2-partial.http");
    let whole = Connection::open(server.address).await.exchange(&request).await.unwrap();
    // Cut inside the request line, inside a header, and inside the body.
    for cut in [10, request.len() / 2, request.len() - 1] {
        let mut connection = Connection::open(server.address).await;
        connection.send(&request[..cut]).await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        let answer = connection.exchange(&request[cut..]).await.unwrap();
        assert_eq!((answer.status, answer.body), (200, whole.body.clone()), "cut at {cut}");
    }
}
