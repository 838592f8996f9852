//! Answers whose bytes leave while rows are still computed: the same bytes, less memory, and what happens when it goes wrong.

use std::sync::atomic::{AtomicU64, Ordering};

use remote_vae_engine::{Autoencoder, Control, Precision};
use remote_vae_media as media;
use remote_vae_wire::{Dtype, Scaling, bytes_from_elements};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::clip::{exchange, in_growing_time};
use crate::decode::header;
use crate::support::*;

/// Of 1288x1200 pixels, whose bytes are more than those of an answer that comes whole.
const LARGE: [usize; 4] = [1, 4, 161, 150];
/// Of six pictures of 1024x1024.
const BATCH: [usize; 4] = [6, 4, 128, 128];

fn pixels(autoencoder: &Autoencoder, values: Vec<f32>, shape: [usize; 4]) -> Vec<f32> {
    let (scaling, control) = (Scaling::None, Control::new());
    autoencoder.decode(values, shape, &scaling, Precision::Exact, &control).unwrap().pixels
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leaves_as_it_is_made_has_the_bytes_of_the_whole() {
    let server = TestServer::with(options(), vec![("kl", kl()), ("tiny", tiny())]).await;
    for (name, model) in [("kl", kl()), ("tiny", tiny())] {
        let (body, values) = latents(&LARGE, 70);
        let pixels = pixels(&model, values, LARGE);
        let [height, width] = [161 * 8, 150 * 8];
        let rgb = media::to_uint8_channel_last(&pixels, [1, 3, height, width]);
        let query = tensor_query(&LARGE, Dtype::Float16);
        let ask = async |more: &str, accept: &'static str| {
            let request =
                server.post(&format!("/{name}?{query}&{more}"), body.clone()).header("accept", accept);
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200, "{name} {more}");
            let length = header(&response, "content-length").map(|text| text.parse::<usize>().unwrap());
            let times = header(&response, "server-timing").unwrap().contains("engine;dur=");
            assert!(header(&response, "server-timing").unwrap().starts_with("queue;dur="));
            assert_eq!(header(&response, "trailer"), None);
            (response.bytes().await.unwrap(), length, times)
        };
        let png = media::encode_png(&rgb, width, height).unwrap();
        let jpeg = media::encode_jpeg(&rgb, width, height).unwrap();
        let webp = media::encode_webp(&rgb, width, height).unwrap();
        assert!(ask("output_type=pil&image_format=png", "*/*").await == (png.clone().into(), None, false));
        assert!(ask("output_type=pil&image_format=jpg", "*/*").await == (jpeg.into(), None, false));
        let (bytes, length, times) = ask("output_type=pt&partial_postprocess=True", "tensor/binary").await;
        assert!(bytes == rgb && (length, times) == (Some(rgb.len()), false));
        // What needs the whole comes whole.
        let float16 = bytes_from_elements(Dtype::Float16, &pixels);
        for (more, accept, expected) in [
            ("output_type=pil&image_format=webp", "*/*", webp),
            ("output_type=pt", "tensor/binary", float16),
            (
                "output_type=pil",
                "tensor/binary",
                bytes_from_elements(Dtype::Float16, &media::to_unit_interval(&pixels)),
            ),
        ] {
            let (bytes, length, times) = ask(more, accept).await;
            assert!(bytes == expected && length == Some(expected.len()) && times, "{name} {more}");
        }
        // The other times follow the file, for those who read what follows.
        let path = format!("POST /{name}?{query}&output_type=pil&image_format=png HTTP/1.1");
        let answer = exchange(&server, &format!("{path}\r\nte: trailers"), &body).await;
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        let (head, rest) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\ntrailer: server-timing\r\n") && !head.contains("engine;dur"), "{head}");
        let (_, trailers) = rest.rsplit_once("\r\n0\r\n").unwrap();
        let times = trailers.strip_prefix("server-timing: engine;dur=").unwrap();
        assert!(times.contains(", post;dur=") && times.ends_with("\r\n\r\n"), "{trailers}");
        // Nor does a client see where a file ends that its protocol cannot end.
        let path = format!("/{name}?{query}&output_type=pil&image_format=png");
        let answer = exchange(&server, &format!("POST {path} HTTP/1.0"), &body).await;
        assert!(answer.ends_with(&png));
        let head = String::from_utf8_lossy(&answer[..answer.len() - png.len()]).to_lowercase();
        assert!(head.contains(&format!("content-length: {}\r\n", png.len())), "{head}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_leaves_sample_after_sample_and_breaks_off_where_it_fails() {
    let server = TestServer::start().await;
    let (body, values) = latents(&BATCH, 71);
    let rgb = media::to_uint8_channel_last(&pixels(&kl(), values, BATCH), [6, 3, 1024, 1024]);
    let path = format!("/?output_type=pt&partial_postprocess=True&{}", tensor_query(&BATCH, Dtype::Float16));
    let post = || server.post(&path, body.clone()).header("accept", "tensor/binary");
    let mut response = post().send().await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert!(rgb.starts_with(&first));
    // A client that leaves ends the work.
    let info: serde_json::Value = json(server.http.get(server.url("/info")).send().await.unwrap()).await;
    assert_eq!(info["queue"]["running"], 1);
    drop(response);
    server.until_queue(0, 0).await;
    let response = post().send().await.unwrap();
    assert_eq!(header(&response, "shape"), Some("[6,1024,1024,3]"));
    assert!(response.bytes().await.unwrap() == rgb);
    // Before the first byte a failure is a refusal, after it the answer is cut off.
    assert_eq!(refusal(post().header("x-request-timeout-ms", "1").send().await.unwrap()).await.0, 504);
    let asked = AtomicU64::new(0);
    let cut = in_growing_time(async |limit| {
        asked.fetch_add(1, Ordering::Relaxed);
        let response = post().header("x-request-timeout-ms", limit).send().await.unwrap();
        (response.status() != 504).then_some(response)
    })
    .await;
    assert_eq!((cut.status().as_u16(), cut.bytes().await.is_err()), (200, true));
    server.until_queue(0, 0).await;
    // Cut off or refused, it failed for the same reason; two were whole or left by their client.
    let metrics = server.http.get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let answers: Vec<(&str, u64)> = metrics
        .lines()
        .filter_map(|line| {
            line.strip_prefix("rvae_requests_total{op=\"decode\",model=\"default\",code=\"")?
                .split_once("\"} ")
        })
        .map(|(code, count)| (code, count.parse().unwrap()))
        .collect();
    let late = answers.iter().find(|(code, _)| *code == "504").map_or(0, |(_, count)| *count);
    assert!(late == asked.load(Ordering::Relaxed) + 1 && answers.len() == 3, "{answers:?}");
    assert!(answers.contains(&("200", 1)) && answers.contains(&("499", 1)), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_waits_for_nobody_who_takes_nothing() {
    let server = TestServer::start().await;
    let (body, values) = latents(&BATCH, 72);
    let query = tensor_query(&BATCH, Dtype::Float16);
    let head = format!(
        "POST /?output_type=pt&partial_postprocess=True&{query} HTTP/1.1\r\nHost: x\r\nAccept: tensor/binary\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 200");
    server.until_queue(0, 0).await;
    // What waits for it is charged until it is taken.
    let info: serde_json::Value = json(server.http.get(server.url("/info")).send().await.unwrap()).await;
    assert_eq!(info["queue"]["answer_bytes"], 6 * 1024 * 1024 * 3);
    stream.read_to_end(&mut answer).await.unwrap();
    let rgb = media::to_uint8_channel_last(&pixels(&kl(), values, BATCH), [6, 3, 1024, 1024]);
    assert!(answer.ends_with(&rgb));
}
