//! Bytes on a socket: old and odd HTTP, hostile requests, slow clients.

use std::net::SocketAddr;
use std::time::Duration;

use remote_vae_server::ServerOptions;
use remote_vae_wire::Dtype;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

/// Sends bytes, then reads until the server closes or has said that it will.
async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // A server may refuse and close before all is sent.
    let _ = stream.write_all(request).await;
    read_answer(&mut stream).await
}

async fn read_answer(stream: &mut TcpStream) -> String {
    let (mut answer, mut buffer) = (Vec::new(), [0; 65536]);
    while !is_last(&answer)
        && let Ok(Ok(count @ 1..)) = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await
    {
        answer.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Whether the last of these answers is whole and ends the connection.
fn is_last(mut answers: &[u8]) -> bool {
    while let Some(end) = answers.windows(4).position(|window| window == b"\r\n\r\n") {
        let (head, rest) = answers.split_at(end + 4);
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let length = value("content-length:").map_or(0, |length| length.parse().unwrap());
        let Some(rest) = rest.get(length..) else { return false };
        if value("connection:") == Some("close") {
            return true;
        }
        answers = rest;
    }
    false
}

fn decode_request(version: &str, headers: &str) -> Vec<u8> {
    let (body, _) = latents(&[1, 4, 2, 2], 40);
    let query = tensor_query(&[1, 4, 2, 2], Dtype::Float16);
    let head = format!(
        "POST /?output_type=pt&{query} {version}\r\nHost: x\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

fn is_json_error(answer: &str, status: u16) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let parsed: Option<serde_json::Value> = serde_json::from_str(body).ok();
    head.starts_with(&format!("HTTP/1.1 {status} "))
        && head.contains("application/json")
        && parsed.is_some_and(|body| body["error"].is_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn old_and_odd_clients_are_answered() {
    let server = TestServer::start().await;
    let answer = exchange(server.address, &decode_request("HTTP/1.0", "")).await;
    assert!(answer.starts_with("HTTP/1.0 200 OK") && answer.contains("shape: [1,3,16,16]"), "{answer:.400}");
    let answer = exchange(server.address, &decode_request("HTTP/1.1", "Connection: close\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("connection: close"), "{answer:.400}");
    // Two requests sent at once are answered in order.
    let twice =
        [decode_request("HTTP/1.1", ""), decode_request("HTTP/1.1", "Connection: close\r\n")].concat();
    let answer = exchange(server.address, &twice).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_may_wait_for_permission_to_send() {
    let server = TestServer::start().await;
    let request = decode_request("HTTP/1.1", "Expect: 100-continue\r\nConnection: close\r\n");
    let split = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&request[..split]).await.unwrap();
    let mut buffer = [0; 64];
    let count = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..count].starts_with(b"HTTP/1.1 100 Continue"));
    stream.write_all(&request[split..]).await.unwrap();
    assert!(read_answer(&mut stream).await.starts_with("HTTP/1.1 200 OK"));

    // One that is to be refused is refused instead.
    let head =
        "POST /nothing HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n";
    let answer = exchange(server.address, head.as_bytes()).await;
    assert!(is_json_error(&answer, 404), "{answer}");
    let head = "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n";
    let answer = exchange(server.address, head.as_bytes()).await;
    assert!(is_json_error(&answer, 413) && answer.contains("connection: close"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_is_refused_in_json() {
    let server = TestServer::start().await;
    let long = "a".repeat(70_000);
    let many: String = (0..200).map(|index| format!("h{index}: x\r\n")).collect();
    for (request, status) in [
        ("NONSENSE\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nbad header\r\n\r\n".to_owned(), 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n".to_owned(), 400),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(), 400),
        (format!("GET /?{long} HTTP/1.1\r\nHost: x\r\n\r\n"), 414),
        (format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"), 431),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n".to_owned(), 431),
        ("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9223372036854775807\r\n\r\n".to_owned(), 413),
        ("GET /.. HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), 404),
        ("GET nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), 404),
        ("CONNECT x:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), 404),
        ("POST /?shape=%ff%fe&dtype=%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned(), 400),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), 404),
    ] {
        let answer = exchange(server.address, request.as_bytes()).await;
        assert!(is_json_error(&answer, status), "{:.60}: {answer}", request);
    }
    // The server is as well as before.
    let answer = exchange(server.address, &decode_request("HTTP/1.1", "Connection: close\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer:.300}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_in_pieces_are_read_and_bounded() {
    let mut options = options();
    options.limits.max_body_bytes = 1000;
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let (body, _) = latents(&[1, 4, 2, 2], 41);
    let query = tensor_query(&[1, 4, 2, 2], Dtype::Float16);
    let head = format!(
        "POST /?output_type=pt&{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    let mut request = head.clone().into_bytes();
    for piece in body.chunks(5) {
        request.extend(format!("{:x}\r\n", piece.len()).bytes());
        request.extend(piece);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    assert!(exchange(server.address, &request).await.starts_with("HTTP/1.1 200 OK"));

    let mut request = head.into_bytes();
    for _ in 0..100 {
        request.extend(b"400\r\n");
        request.extend([0; 1024]);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    let answer = exchange(server.address, &request).await;
    assert!(is_json_error(&answer, 413), "{answer}");
    let head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n";
    let answer = exchange(server.address, head).await;
    assert!(is_json_error(&answer, 400), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_is_told_why_it_is_refused() {
    let mut options = options();
    options.limits.max_body_bytes = 1 << 20;
    let server = TestServer::with(options, vec![("default", kl())]).await;
    // Sends everything before it reads, as most clients do.
    let mut request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 33554432\r\n\r\n".to_vec();
    request.resize(request.len() + 33_554_432, 0);
    let answer = exchange(server.address, &request).await;
    assert!(is_json_error(&answer, 413) && answer.contains("connection: close"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_and_idle_connections_end() {
    let options = ServerOptions {
        body_timeout: Duration::from_millis(200),
        header_timeout: Duration::from_millis(400),
        ..options()
    };
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let answer =
        exchange(server.address, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc").await;
    assert!(is_json_error(&answer, 408) && answer.contains("connection: close"), "{answer}");
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET / HT").await.unwrap();
    let mut rest = Vec::new();
    let reading = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert_eq!(reading.unwrap().unwrap(), 0);
}
