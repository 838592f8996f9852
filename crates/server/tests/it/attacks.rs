//! Attacks by kind: what each must be answered with, told one by one where `hostile.rs` throws dice. After each the server
//! must be as well as before.

use std::time::Duration;

use remote_vae_media as media;
use remote_vae_server::ServerOptions;
use remote_vae_wire::Dtype;

use crate::http::{Answer, Connection};
use crate::support::*;

/// A request by its parts, and the statuses that it may be answered with; 0 stands for a closed connection.
struct Attack {
    name: String,
    request: Vec<u8>,
    allowed: &'static [u16],
}

fn attack(name: impl Into<String>, request: impl Into<Vec<u8>>, allowed: &'static [u16]) -> Attack {
    Attack { name: name.into(), request: request.into(), allowed }
}

/// A POST with these header lines and this body, whose length is stated.
fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

const BAD: &[u16] = &[400];
const BAD_OR_CLOSED: &[u16] = &[0, 400];
const BAD_OR_WAITED_FOR: &[u16] = &[0, 400, 408];
const LARGE: &[u16] = &[413];
const LATENTS: &str = "shape=1&shape=4&shape=1&shape=1&dtype=uint8";

/// Bodies whose two lengths differ, so that a proxy and the server might see different requests.
fn smuggling() -> Vec<Attack> {
    const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    let lines = [
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: 4, 5\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: 0x4\r\n",
        "Content-Length: 4 4\r\n",
        "Content-Length: \r\n",
        "Content-Length: 4\0\r\n",
        "Content-Length : 4\r\n",
        " Content-Length: 4\r\n",
        "Content-Length: 99999999999999999999999\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "Transfer-Encoding: chunked\0\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "X: a\r\n b\r\nContent-Length: 4\r\n",
        "X: a\nContent-Length : 4\r\n",
        "X: a\rContent-Length: 4\r\n",
    ];
    let mut attacks: Vec<Attack> = lines
        .iter()
        .map(|line| {
            let request = format!("POST /?{LATENTS} HTTP/1.1\r\nHost: x\r\n{line}\r\n{HIDDEN}");
            attack(format!("smuggling by {line:?}"), request, &[0, 400, 413, 431])
        })
        .collect();
    let chunks = [
        "zz\r\nabcd\r\n0\r\n\r\n",
        "-1\r\nabcd\r\n0\r\n\r\n",
        "0x4\r\nabcd\r\n0\r\n\r\n",
        "4 \rabcd\r\n0\r\n\r\n",
        "4\nabcd\n0\n\n",
        "ffffffffffffffffff\r\nabcd\r\n0\r\n\r\n",
        "fffffffffffffff0\r\nabcd\r\n0\r\n\r\n",
        "4\r\nabcdX\r\n0\r\n\r\n",
        "4;x=\"\r\n\"\r\nabcd\r\n0\r\n\r\n",
        "\r\nabcd\r\n0\r\n\r\n",
        "4\r\nab\r\n0\r\n\r\n",
        ";\r\n\r\n",
    ];
    attacks.extend(chunks.iter().map(|body| {
        let head = format!("POST /?{LATENTS} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        // Some of these are a whole body that is no good; none may be read as two requests.
        attack(format!("chunks {body:?}"), format!("{head}{body}{HIDDEN}"), BAD_OR_WAITED_FOR)
    }));
    let both = format!(
        "POST /?{LATENTS} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
    );
    attacks.push(attack("length and chunks", both, BAD_OR_CLOSED));
    attacks
}

/// Paths that would be files if the server had any.
fn traversal() -> Vec<Attack> {
    let paths = [
        "/../etc/passwd",
        "/..%2f..%2fetc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/....//....//etc/passwd",
        "/default/../../etc/passwd",
        "/default/%2e%2e/decode",
        "/..\\..\\windows\\system.ini",
        "/%5c..%5c..",
        "/%00",
        "/default%00",
        "/default;/decode",
        "/.",
        "/..",
        "/./decode",
        "/decode/decode/decode",
        "/file:///etc/passwd",
        "/http://127.0.0.1/",
        "/%c0%ae%c0%ae/etc",
        "/%ff%fe",
        "/v1/../v1/models",
        "/v1/jobs/../../etc/passwd/x",
        "/v1/models/../../x",
        "/DEFAULT",
        "/default/paint",
        "/v1",
        "/v1/",
        "/v2/health/none",
        "/static/../Cargo.toml",
        "/~root",
        "/$(id)",
        "/`id`",
        "/{{7*7}}",
        "/';drop table models;--",
        "/<script>alert(1)</script>",
    ];
    let mut attacks: Vec<Attack> = paths
        .iter()
        .flat_map(|path| {
            let get = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            [
                attack(format!("GET {path}"), get, &[400, 404]),
                attack(format!("POST {path}"), post(path, "", b"x"), &[400, 404]),
            ]
        })
        .collect();
    for id in ["..%2f", "%00", "a'--", &"f".repeat(32), &"f".repeat(5000), "%f0%9f%98%80"] {
        for suffix in ["", "/result", "/events"] {
            let get = format!("GET /v1/jobs/{id}{suffix} HTTP/1.1\r\nHost: x\r\n\r\n");
            attacks.push(attack(format!("job {id:.20}{suffix}"), get, &[400, 404, 414]));
        }
    }
    attacks
}

/// Queries that promise more than there is.
fn queries() -> Vec<Attack> {
    let shapes: &[(&str, &'static [u16])] = &[
        ("shape=1&shape=4&shape=1&shape=1", BAD),
        ("dtype=uint8", BAD),
        ("shape=&dtype=uint8", BAD),
        ("shape=x&dtype=uint8", BAD),
        ("shape=-1&shape=4&shape=1&shape=1&dtype=uint8", BAD),
        ("shape=0&shape=4&shape=1&shape=1&dtype=uint8", BAD),
        ("shape=1.5&shape=4&shape=1&shape=1&dtype=uint8", BAD),
        ("shape=1e9&dtype=uint8", BAD),
        ("shape=18446744073709551615&shape=4&shape=1&shape=1&dtype=uint8", BAD),
        ("shape=18446744073709551616&dtype=uint8", BAD),
        ("shape=4294967296&shape=4294967296&shape=1&shape=1&dtype=uint8", BAD),
        ("shape=1&shape=4&shape=1&shape=1&dtype=float64", BAD),
        ("shape=1&shape=4&shape=1&shape=1&dtype=int8", BAD),
        ("shape=1&shape=4&shape=1&shape=1&dtype=__class__", BAD),
        ("shape=1&shape=4&shape=1&shape=1&dtype=uint8&dtype=float32", &[200, 400]),
        ("shape=1&shape=5&shape=1&shape=1&dtype=uint8", BAD),
        ("shape=1&shape=3&shape=1&shape=1&dtype=uint8&output_type=pt", BAD),
        ("shape=4&dtype=uint8", BAD),
        ("shape=2&shape=2&dtype=uint8", BAD),
        ("shape=1&shape=4&shape=1&shape=1&shape=1&shape=1&dtype=uint8", BAD),
        ("shape=1&shape=1&shape=4&dtype=uint8", BAD),
        ("shape=1&shape=1&shape=4&dtype=uint8&height=0&width=0", BAD),
        ("shape=1&shape=1&shape=4&dtype=uint8&height=18446744073709551615&width=2", BAD),
        ("shape=1&shape=1&shape=4&dtype=uint8&height=-8&width=8", BAD),
        ("[1,4,1,1]&dtype=uint8", BAD),
        ("shape[]=1&dtype=uint8", BAD),
        ("shape=1%2C4%2C1%2C1&dtype=uint8", &[200, 400]),
        ("%73hape=%00&dtype=uint8", BAD),
        ("shape=%F0%9F%98%80&dtype=uint8", BAD),
    ];
    let mut attacks: Vec<Attack> = shapes
        .iter()
        .map(|(query, allowed)| attack(*query, post(&format!("/decode?{query}"), "", &[0; 4]), allowed))
        .collect();
    let more: &[(&str, &'static [u16])] = &[
        ("scaling_factor=0", BAD),
        ("scaling_factor=nan", BAD),
        ("scaling_factor=inf", BAD),
        ("scaling_factor=1e-400", BAD),
        ("scaling_factor=1e400", BAD),
        ("scaling_factor=--1", BAD),
        ("scaling_factor=1;2", BAD),
        ("shift_factor=nan&scaling_factor=1", BAD),
        ("do_scaling=maybe", BAD),
        ("partial_postprocess=2&output_type=pt", BAD),
        ("output_type=exe", BAD),
        ("output_type=mp4", BAD),
        ("image_format=bmp", BAD),
        ("image_format=../../x", BAD),
        ("precision=double", BAD),
        ("precision=", &[200, 400]),
        ("height=x&width=8", &[200, 400]),
        ("seed=-1", &[200, 400]),
        ("sample=perhaps", &[200, 400]),
    ];
    attacks.extend(more.iter().map(|(query, allowed)| {
        attack(*query, post(&format!("/decode?{LATENTS}&{query}"), "", &[0; 4]), allowed)
    }));
    attacks.push(attack("bytes missing", post(&format!("/?{LATENTS}"), "", &[0; 3]), BAD));
    attacks.push(attack("bytes too many", post(&format!("/?{LATENTS}"), "", &[0; 5]), BAD));
    let many = "shape=1&".repeat(2000);
    attacks.push(attack("two thousand sides", post(&format!("/?{many}dtype=uint8"), "", &[0; 4]), BAD));
    let keys: String = (0..3000).map(|index| format!("k{index}=1&")).collect();
    let request = post(&format!("/decode?{keys}{LATENTS}&output_type=pt"), "", &[0; 4]);
    attacks.push(attack("three thousand keys", request, &[200, 400, 414]));
    let large = "shape=1&shape=4&shape=64&shape=64&dtype=uint8";
    attacks.push(attack("too many pixels", post(&format!("/?{large}"), "", &[0; 16384]), LARGE));
    let batch = "shape=17&shape=4&shape=1&shape=1&dtype=uint8";
    attacks.push(attack("too large a batch", post(&format!("/?{batch}"), "", &[0; 68]), LARGE));
    attacks
}

/// Header values that mean something elsewhere.
fn headers() -> Vec<Attack> {
    let lines: &[(&str, &'static [u16])] = &[
        ("Content-Encoding: gzip\r\n", &[415]),
        ("Content-Encoding: br\r\n", &[415]),
        ("Content-Encoding: deflate, gzip\r\n", &[415]),
        ("Content-Encoding: \u{ff}\r\n", &[200, 400, 415]),
        ("x-request-timeout-ms: -1\r\n", BAD),
        ("x-request-timeout-ms: 0\r\n", BAD),
        ("x-request-timeout-ms: 1e3\r\n", BAD),
        ("x-request-timeout-ms: 99999999999999999999999\r\n", BAD),
        ("x-request-timeout-ms: 18446744073709551615\r\n", &[200]),
        ("x-request-id: \u{1b}[31mred\r\n", BAD_OR_CLOSED),
        ("x-request-id: {{7*7}}\r\n", &[200]),
        ("x-request-id: ${jndi:ldap://x/a}\r\n", &[200]),
        ("traceparent: 00-zz\r\n", &[200]),
        ("traceparent: 00-00000000000000000000000000000000-0000000000000000-00\r\n", &[200]),
        ("Authorization: Bearer\r\n", &[200]),
        ("Authorization: Basic eDp5\r\n", &[200]),
        ("Origin: https://evil.example\r\n", &[403]),
        ("Origin: null\r\n", &[403]),
        ("Origin: http://x.evil.example\r\n", &[403]),
        ("X-Forwarded-For: 127.0.0.1\r\n", &[200]),
        ("X-Original-URL: /metrics\r\n", &[200]),
        ("X-HTTP-Method-Override: DELETE\r\n", &[200]),
        ("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n", &[200]),
        ("Upgrade: websocket\r\nConnection: Upgrade\r\n", &[200]),
        ("Range: bytes=0-18446744073709551615\r\n", &[200]),
        ("Accept: */*;q=nan\r\n", &[200]),
        ("Accept: image/\u{e9}\r\n", &[200, 400]),
        ("Accept-Encoding: gzip;q=1e99\r\n", &[200]),
        ("Expect: 200-maybe\r\n", &[200, 417]),
        ("Cookie: a=b; a=b\r\n", &[200]),
        ("Bad Header: x\r\n", BAD_OR_CLOSED),
        (": x\r\n", BAD_OR_CLOSED),
        ("X\0: x\r\n", BAD_OR_CLOSED),
        ("X: a\0b\r\n", BAD_OR_CLOSED),
    ];
    let path = format!("/decode?{LATENTS}&output_type=pt");
    let mut attacks: Vec<Attack> = lines
        .iter()
        .map(|(line, allowed)| attack(format!("{line:?}"), post(&path, line, &[0; 4]), allowed))
        .collect();
    let accept = "image/png,".repeat(800);
    attacks.push(attack("long accept", post(&path, &format!("Accept: {accept}\r\n"), &[0; 4]), &[200, 431]));
    let large = format!("X: {}\r\n", "a".repeat(600_000));
    attacks.push(attack("large header", post(&path, &large, &[0; 4]), &[0, 431]));
    let many: String = (0..500).map(|index| format!("h{index}: x\r\n")).collect();
    attacks.push(attack("many headers", post(&path, &many, &[0; 4]), &[431]));
    attacks
}

/// The first line of a request.
fn lines() -> Vec<Attack> {
    let lines = [
        "",
        "\r\n\r\n\r\n",
        "POST",
        "POST /",
        "POST / HTTP/1.1 x",
        "POST / HTTP/0.9",
        "POST / HTTP/2.0",
        "POST / http/1.1",
        "POST  / HTTP/1.1",
        "POST\t/\tHTTP/1.1",
        "P\0ST / HTTP/1.1",
        "POST /\0 HTTP/1.1",
        "POST / HTTP/1.1\0",
        "POST /\u{7f} HTTP/1.1",
        "PRI * HTTP/2.0",
        "\u{16}\u{3}\u{1}\u{2}",
        "SSH-2.0-client",
        "EHLO x",
        "*1\r\n$4\r\nPING",
    ];
    let mut attacks: Vec<Attack> = lines
        .iter()
        .map(|line| {
            let request = format!("{line}\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
            attack(format!("line {line:?}"), request, BAD_OR_CLOSED)
        })
        .collect();
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(100_000));
    attacks.push(attack("long path", long, &[414]));
    for (method, status) in [("TRACE", 405), ("PUT", 405), ("PATCH", 405), ("DELETE", 405), ("TRACK", 405)] {
        let request = format!("{method} /health HTTP/1.1\r\nHost: x\r\n\r\n");
        let allowed: &'static [u16] = if status == 405 { &[405] } else { &[404] };
        attacks.push(attack(method, request, allowed));
    }
    attacks
}

/// Bodies that are more than they seem.
fn bodies() -> Vec<Attack> {
    let json = |text: &str| post("/", "Content-Type: application/json\r\n", text.as_bytes());
    let base64 =
        |text: &str| post(&format!("/?{LATENTS}"), "Content-Type: tensor/base64\r\n", text.as_bytes());
    let mut attacks: Vec<Attack> = [
        "",
        "{",
        "[]",
        "null",
        "{\"inputs\":1}",
        "{\"inputs\":\"\"}",
        "{\"inputs\":\"=\"}",
        "{\"inputs\":\"AAAA\"}",
        "{\"inputs\":\"AAAA\",\"parameters\":[]}",
        "{\"inputs\":\"AAAA\",\"parameters\":{\"shape\":[1,4,1,1]}}",
        "{\"inputs\":\"AAAAAA==\",\"parameters\":{\"shape\":[1,4,1,-1],\"dtype\":\"uint8\"}}",
        "{\"inputs\":\"AAAAAA==\",\"parameters\":{\"shape\":[1e300],\"dtype\":\"uint8\"}}",
        "{\"inputs\":\"AAAAAA==\",\"parameters\":{\"shape\":\"x\",\"dtype\":7}}",
        "{\"inputs\":\"\\ud800\",\"parameters\":{}}",
        "{\"__proto__\":{},\"inputs\":\"AAAA\"}",
        "\u{feff}{\"inputs\":\"AAAA\"}",
    ]
    .iter()
    .flat_map(|text| {
        [attack(format!("json {text}"), json(text), BAD), attack(format!("base64 {text}"), base64(text), BAD)]
    })
    .collect();
    attacks.push(attack("deep json", json(&"[".repeat(30_000)), BAD));
    attacks.push(attack("deep object", json(&"{\"a\":".repeat(10_000)), BAD));

    // A picture that says it is 50000 x 50000, in 57 bytes and in a file that is whole otherwise.
    let mut huge = media::encode_png(&[9; 64 * 64 * 3], 64, 64).unwrap();
    huge[16..24].copy_from_slice(&[0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50]);
    let sum = crc32(&huge[12..29]).to_be_bytes();
    huge[29..33].copy_from_slice(&sum);
    attacks.push(attack("PNG of 50000 x 50000", post("/encode", "", &huge), LARGE));
    attacks.push(attack("its head alone", post("/encode", "", &huge[..57]), &[400, 413]));
    // Within the bytes of a body, and a thousand times as many pixels.
    let bomb = media::encode_png(&vec![0; 1024 * 1024 * 3], 1024, 1024).unwrap();
    assert!(bomb.len() < 60_000);
    attacks.push(attack("PNG of a million equal pixels", post("/encode", "", &bomb), LARGE));
    let good = media::encode_png(&[9; 16 * 16 * 3], 16, 16).unwrap();
    for cut in [8, 20, 33, 50] {
        attacks.push(attack(format!("PNG cut at {cut}"), post("/encode", "", &good[..cut]), BAD));
    }
    // All pixels are there; what is missing is the end's checksum.
    attacks.push(attack(
        "PNG without its last byte",
        post("/encode", "", &good[..good.len() - 1]),
        &[200, 400],
    ));
    let jpeg = media::encode_jpeg(&[9; 16 * 16 * 3], 16, 16).unwrap();
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    let mut tall = jpeg.clone();
    tall[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
    attacks.push(attack("JPEG of 65535 x 65535", post("/encode", "", &tall), LARGE));
    let mut none = jpeg.clone();
    none[frame + 5..frame + 9].copy_from_slice(&[0; 4]);
    attacks.push(attack("JPEG of 0 x 0", post("/encode", "", &none), BAD));
    attacks.push(attack("JPEG cut", post("/encode", "", &jpeg[..jpeg.len() / 3]), &[200, 400]));
    for (name, start) in [
        ("GIF", &b"GIF89a\xff\xff\xff\xff"[..]),
        ("BMP", b"BM\xff\xff\xff\xff"),
        ("TIFF", b"II*\0"),
        ("WebP", b"RIFF\xff\xff\xff\xffWEBPVP8L"),
        ("SVG", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"),
        ("XML", b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><x>&a;</x>"),
        ("zip", b"PK\x03\x04"),
        ("gzip", b"\x1f\x8b\x08\0"),
        ("pickle", b"\x80\x04cos\nsystem\n(S'id'\ntR."),
        ("ELF", b"\x7fELF"),
        ("PDF", b"%PDF-1.7"),
    ] {
        attacks.push(attack(name, post("/encode", "", start), BAD));
    }
    attacks.extend(tensor_files());
    attacks
}

/// Safetensors files that lie.
fn tensor_files() -> Vec<Attack> {
    let file = |header: &str, data: &[u8]| {
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
        post("/v1/decode", "Content-Type: application/x-safetensors\r\n", &bytes)
    };
    let entry = |text: &str| format!("{{\"latents\":{text}}}");
    let headers = [
        String::new(),
        "{}".into(),
        "[]".into(),
        entry("1"),
        entry("{\"dtype\":\"F16\",\"shape\":[1,4,1,1],\"data_offsets\":[0,9]}"),
        entry("{\"dtype\":\"F16\",\"shape\":[1,4,1,1],\"data_offsets\":[8,0]}"),
        entry("{\"dtype\":\"F16\",\"shape\":[1,4,1,1],\"data_offsets\":[0,18446744073709551615]}"),
        entry("{\"dtype\":\"F16\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,8]}"),
        entry("{\"dtype\":\"F16\",\"shape\":[1,4,1,2],\"data_offsets\":[0,8]}"),
        entry("{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]}"),
        entry("{\"dtype\":\"X\",\"shape\":[1,4,1,1],\"data_offsets\":[0,8]}"),
        entry("{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[0,8]}"),
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[4,8]}}".into(),
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":[0,8]}}".into(),
    ];
    let mut attacks: Vec<Attack> = headers
        .iter()
        .map(|header| attack(format!("safetensors {header}"), file(header, &[0; 8]), BAD))
        .collect();
    let length = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let request = post("/v1/decode", "Content-Type: application/x-safetensors\r\n", &length);
    attacks.push(attack("safetensors with a head without end", request, BAD));
    attacks
}

/// The checksum of PNG's chunks, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(
            sum ^ u32::from(byte),
            |sum, _| if sum & 1 == 1 { (sum >> 1) ^ 0xedb8_8320 } else { sum >> 1 },
        )
    })
}

/// Everything that comes back. Where the connection stays open a probe follows, so that a request that was smuggled in
/// would be answered before it.
async fn answers(server: &TestServer, request: &[u8]) -> Vec<Answer> {
    let mut connection = Connection::open(server.address).await;
    let Some(first) = connection.exchange(request).await else { return Vec::new() };
    let mut answers = vec![first];
    if !answers[0].closes() {
        connection.send(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        while let Some(answer) = connection.exchange(b"").await {
            answers.push(answer);
        }
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_is_answered_as_it_should_be() {
    let mut options = ServerOptions {
        header_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(300),
        ..options()
    };
    options.limits.max_pixels = 128 * 128;
    options.limits.max_body_bytes = 1 << 16;
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let kinds = [smuggling(), traversal(), queries(), headers(), lines(), bodies()];
    let all: Vec<Attack> = kinds.into_iter().flatten().collect();
    eprintln!("{} kinds of hostile requests", all.len());
    assert!(all.len() >= 200, "{}", all.len());
    let (good, _) = latents(&[1, 4, 1, 1], 90);
    let query = format!("/?output_type=pt&{}", tensor_query(&[1, 4, 1, 1], Dtype::Float16));
    let well = server.post(&query, good.clone()).send().await.unwrap().bytes().await.unwrap();
    let mut wrong = Vec::new();
    for Attack { name, request, allowed } in &all {
        let answers = answers(&server, request).await;
        let status = answers.first().map_or(0, |answer| answer.status);
        if !allowed.contains(&status) {
            wrong.push(format!("{name}: {status}, expected {allowed:?}"));
        }
        for answer in answers.iter().filter(|answer| answer.status >= 400) {
            if answer.refusal().contains("hidden") {
                wrong.push(format!("{name}: a request was smuggled"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let after = server.post(&query, good).send().await.unwrap().bytes().await.unwrap();
    assert!(well == after);
}
