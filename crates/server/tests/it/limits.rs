//! What clients cannot take from each other: memory, connections, time.

use std::time::{Duration, Instant};

use remote_vae_media as media;
use remote_vae_server::ServerOptions;
use remote_vae_wire::Dtype;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::http::Connection;
use crate::support::*;

const SHAPE: [usize; 4] = [1, 4, 8, 8];

impl TestServer {
    async fn healthy_within(&self, limit: Duration) -> bool {
        let asking = http_client().get(self.url("/health")).send();
        tokio::time::timeout(limit, asking).await.is_ok_and(|answer| answer.is_ok_and(|a| a.status() == 200))
    }

    async fn decode(&self) -> reqwest::Response {
        let query = format!("output_type=pt&{}", tensor_query(&SHAPE, Dtype::Float16));
        self.raw(&query, latents(&SHAPE, 60).0).await
    }

    async fn sends(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    async fn has_metric(&self, start: &str) -> bool {
        let response = self.http.get(self.url("/metrics")).send().await.unwrap();
        response.text().await.unwrap().lines().any(|line| line.starts_with(start))
    }

    async fn held_bytes(&self) -> u64 {
        let info = json(self.http.get(self.url("/info")).send().await.unwrap()).await;
        info["queue"]["held_bytes"].as_u64().unwrap()
    }
}

/// Whether the server closes this connection within `limit`.
async fn closes_within(stream: &mut TcpStream, limit: Duration) -> bool {
    let mut buffer = [0; 65536];
    let reading = async { while let Ok(1..) = stream.read(&mut buffer).await {} };
    tokio::time::timeout(limit, reading).await.is_ok()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_plan_may_not_need_more_than_there_is() {
    let server = TestServer::start().await;
    let info = json(server.http.get(server.url("/info")).send().await.unwrap()).await;
    let limit = info["limits"]["max_plan_bytes"].as_u64().unwrap();
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(limit > 0 && limit <= total * 1024 * 8 / 10, "{limit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn announced_bytes_are_not_held() {
    let server = TestServer::start().await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent
            .push(server.sends(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 268435456\r\n\r\nabc").await);
    }
    while server.held_bytes().await == 0 {}
    assert_eq!(server.decode().await.status(), 200);
    assert!(server.held_bytes().await <= 8 << 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_bodies_end_and_refusals_for_want_of_room_are_counted() {
    let mut options = ServerOptions { body_idle_timeout: Duration::from_millis(1500), ..options() };
    options.limits.max_body_bytes = 1 << 19;
    options.limits.max_held_bytes = 1 << 20;
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let mut head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 524288\r\n\r\n".to_vec();
    head.resize(head.len() + 524_000, 7);
    let mut hoarders = [server.sends(&head).await, server.sends(&head).await];
    let start = Instant::now();
    while server.held_bytes().await < 1_048_000 {
        assert!(start.elapsed() < PATIENCE);
    }
    let response = server.decode().await;
    assert!(response.headers().contains_key("retry-after"));
    assert_eq!(refusal(response).await.0, 429);
    assert!(server.has_metric("rvae_rejected_total{reason=\"bodies\"} 1").await);
    // The hoarders are not waited for as long as a body may take, which is minutes.
    for hoarder in &mut hoarders {
        let mut answer = [0; 12];
        hoarder.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 408");
    }
    assert!(start.elapsed() < PATIENCE);
    while server.held_bytes().await > 0 {}
    assert_eq!(server.decode().await.status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_is_charged_for_its_pixels() {
    let mut options = options();
    options.limits.max_body_bytes = 1 << 19;
    options.limits.max_held_bytes = 1 << 20;
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let png = |side: usize| media::encode_png(&vec![9; side * side * 3], side, side).unwrap();
    let (fits, too_large) = (png(512), png(640));
    assert!(fits.len() < 20_000);
    let response = server.post("/", fits.clone()).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let (status, message) = refusal(server.post("/", too_large).send().await.unwrap()).await;
    assert!(status == 413 && message.contains("1228800") && message.contains("1048576"), "{message}");

    let mut head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 520000\r\n\r\n".to_vec();
    head.resize(head.len() + 500_000, 7);
    let _hoarder = server.sends(&head).await;
    while server.held_bytes().await < 500_000 {}
    assert_eq!(refusal(server.post("/", fits).send().await.unwrap()).await.0, 429);
    assert!(server.has_metric("rvae_rejected_total{reason=\"bodies\"} 1").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room() {
    let server = TestServer::start().await;
    let mut idle = Vec::new();
    for index in 0..1100 {
        let head: &[u8] = if index % 2 == 0 { b"" } else { b"GET /hea" };
        idle.push(server.sends(head).await);
    }
    assert!(server.healthy_within(PATIENCE).await);
    assert_eq!(server.decode().await.status(), 200);
    // The oldest had to go, the newest did not.
    assert!(closes_within(&mut idle[0], PATIENCE).await);
    assert!(!closes_within(&mut idle[1099], Duration::from_millis(100)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_idle_connection_a_further_one_is_told_so() {
    let mut options = options();
    options.limits.max_connections = 2;
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc";
    let mut busy = vec![server.sends(head).await, server.sends(head).await];
    // The busy two are known to be so once a third is turned away.
    let start = Instant::now();
    let answer = loop {
        let mut connection = Connection::open(server.address).await;
        let answer = connection.exchange(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        if answer.status != 200 {
            break answer;
        }
        // One of the two had not been read from yet and was closed for the probe.
        busy.push(server.sends(head).await);
        assert!(start.elapsed() < PATIENCE);
    };
    assert_eq!(answer.status, 503);
    assert!(answer.closes() && answer.header("retry-after").is_some());
    assert!(answer.refusal().contains("connections"));
    drop(busy);
    while !server.healthy_within(Duration::from_secs(10)).await {
        assert!(start.elapsed() < PATIENCE);
    }
    assert!(server.has_metric("rvae_rejected_total{reason=\"connections\"} ").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_have_less_time_than_idle_connections() {
    let options = ServerOptions { header_timeout: Duration::from_secs(3), ..options() };
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let probe = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut kept = Connection::open(server.address).await;
    assert_eq!(kept.exchange(probe).await.unwrap().status, 200);
    let mut silent = server.sends(b"").await;
    let mut slow = server.sends(b"GET / HT").await;
    let mut later = server.sends(&[probe, &b"GET / HT"[..]].concat()).await;
    for stream in [&mut silent, &mut slow] {
        assert!(closes_within(stream, PATIENCE).await);
    }
    // Its second head began in one piece with the first request.
    assert!(closes_within(&mut later, PATIENCE).await);
    assert_eq!(kept.exchange(probe).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_nothing_of_an_answer_loses_the_connection() {
    let options = ServerOptions { idle_timeout: Duration::from_millis(400), ..options() };
    let server = TestServer::with(options, vec![("tiny", tiny())]).await;
    let shape = [16, 4, 64, 64];
    let (body, _) = latents(&shape, 61);
    let query = tensor_query(&shape, Dtype::Float16);
    let head = format!(
        "POST /?output_type=pt&{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    // The answer has begun; from here on nothing is taken.
    let mut buffer = vec![0; 65536];
    let mut taken = stream.read(&mut buffer).await.unwrap();
    assert!(buffer.starts_with(b"HTTP/1.1 200"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        taken += count;
    }
    assert!(taken < 16 * 3 * 512 * 512 * 2, "{taken}");
}
