//! Requests that nobody should send, at random. Whatever comes: no silence, no fault of our own, every refusal is JSON, and
//! the next good request on the connection is answered unless the server said that it closes.
//!
//! `PROPTEST_CASES` sets how many requests each test makes.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use remote_vae_media::{Mp4Encoder, Mp4Options};
use remote_vae_wire::{Dtype, TensorHeader};
use tokio::runtime::Runtime;

use crate::clip::hunyuan;
use crate::http::{Answer, Connection};
use crate::support::*;

/// How many requests are made where the environment does not say.
const CASES: u32 = 96;

fn cases() -> ProptestConfig {
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return ProptestConfig::default();
    }
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(CASES) }
}

/// One server for all, with limits that no request can make slow.
fn address() -> SocketAddr {
    static SERVER: LazyLock<TestServer> = LazyLock::new(|| {
        let mut options = options();
        options.limits.max_pixels = 64 * 64;
        options.limits.max_body_bytes = 1 << 16;
        options.body_timeout = Duration::from_millis(400);
        RUNTIME.block_on(TestServer::with(
            options,
            vec![("default", kl()), ("tiny", tiny()), ("video", hunyuan())],
        ))
    });
    SERVER.address
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

fn good_request() -> Vec<u8> {
    let (body, _) = latents(&[1, 4, 1, 2], 50);
    let query = tensor_query(&[1, 4, 1, 2], Dtype::Float16);
    let head = format!(
        "POST /?output_type=pt&{query} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

/// What every answer must be.
fn check(answer: &Answer) {
    assert!((200..500).contains(&answer.status), "{answer:?}");
    if answer.status >= 400 {
        assert!(!answer.refusal().is_empty());
    }
    if answer.header("content-type") == Some("tensor/binary") {
        let header = TensorHeader::parse(answer.header("shape").unwrap(), answer.header("dtype").unwrap());
        header.unwrap().check_body(answer.body.len()).unwrap();
    }
}

/// A request that is well framed, whatever it says; then a good one.
fn ask(request: &[u8]) -> u16 {
    let address = address();
    RUNTIME.block_on(async {
        let mut connection = Connection::open(address).await;
        let answer = connection.exchange(request).await.expect("no answer");
        check(&answer);
        if !answer.closes() {
            let good = connection.exchange(&good_request()).await.expect("no answer to the next request");
            assert_eq!((good.status, good.header("shape")), (200, Some("[1,3,8,16]")), "after {answer:?}");
        }
        answer.status
    })
}

/// Bytes without promise of a frame: every answer that comes is checked, and a new connection works.
fn shout(bytes: &[u8]) {
    let address = address();
    RUNTIME.block_on(async {
        let mut connection = Connection::open(address).await;
        connection.send(bytes).await;
        connection.finish().await;
        while let Some(answer) = connection.exchange(&[]).await {
            check(&answer);
        }
        let answer = Connection::open(address).await.exchange(&good_request()).await.unwrap();
        assert_eq!(answer.status, 200);
    });
}

fn post(target: &str, headers: &[(String, String)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

// ---- what requests are made of ---------------------------------------------------------------------------------------

fn text(values: &'static [&'static str]) -> impl Strategy<Value = String> {
    select(values).prop_map(str::to_owned)
}

/// Characters that may stand in a request target, escapes whole and broken among them.
fn junk() -> impl Strategy<Value = String> {
    "([a-zA-Z0-9._~!$'()*+,;:@/?=&-]|%[0-9a-fA-F]{2}|%[0-9a-zA-Z]?){0,40}"
}

fn number() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => (0_u64..20).prop_map(|n| n.to_string()),
        1 => any::<u64>().prop_map(|n| n.to_string()),
        1 => any::<i64>().prop_map(|n| n.to_string()),
        1 => any::<f64>().prop_map(|n| n.to_string()),
        1 => text(&["", "NaN", "inf", "-0", "1e400", "1e-400", "0x10", "None", "[1,4,2,2]", "(1,4,2,2)", "18446744073709551616"]),
        1 => junk(),
    ]
}

fn pair() -> impl Strategy<Value = String> {
    let keys = text(&[
        "shape",
        "shape",
        "shape",
        "shape",
        "dtype",
        "output_type",
        "image_format",
        "partial_postprocess",
        "do_scaling",
        "scaling_factor",
        "shift_factor",
        "height",
        "width",
        "precision",
        "seed",
        "sample",
        "moments",
        "fps",
        "crf",
        "windows",
        "tiling",
        "tile_sample_min_size",
        "tile_latent_min_size",
        "tile_overlap_factor",
        "other",
    ]);
    let words = text(&[
        "float16",
        "float32",
        "bfloat16",
        "uint8",
        "float64",
        "pil",
        "pt",
        "mp4",
        "jpg",
        "png",
        "webp",
        "on",
        "off",
        "diffusers",
        "True",
        "False",
        "true",
        "1",
        "exact",
        "fast",
    ]);
    let value = prop_oneof![2 => words, 3 => number(), 1 => junk()];
    (keys, value).prop_map(|(key, value)| format!("{key}={}", value.replace(' ', "+")))
}

/// A query that is nearly right: latents of a small shape, and then anything.
fn query() -> impl Strategy<Value = String> {
    let shape = prop_oneof![
        2 => vec(0_usize..6, 0..6),
        3 => (1_usize..3, 1_usize..5, 1_usize..5).prop_map(|(batch, height, width)| vec![batch, 4, height, width]),
        1 => (1_usize..3, 1_usize..5).prop_map(|(batch, tokens)| vec![batch, tokens, 16]),
        1 => (3_usize..5, 1_usize..7, 1_usize..4).prop_map(|(channels, frames, side)| vec![1, channels, frames, side, side]),
    ];
    let dtype = select(&[Dtype::Float16, Dtype::Float32, Dtype::BFloat16, Dtype::Uint8][..]);
    let nearly = (shape, dtype, vec(pair(), 0..4))
        .prop_map(|(shape, dtype, pairs)| format!("{}&{}", tensor_query(&shape, dtype), pairs.join("&")));
    prop_oneof![4 => nearly, 2 => vec(pair(), 0..8).prop_map(|pairs| pairs.join("&")), 1 => junk()]
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => text(&["/", "/decode", "/encode", "/tiny", "/tiny/encode", "/video", "/video/encode", "/default/decode/", "/predict"]),
        1 => junk().prop_map(|junk| format!("/{}", junk.replace('?', ""))),
    ]
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    let kinds = text(&[
        "tensor/binary",
        "tensor/base64",
        "application/json",
        "image/png",
        "image/*",
        "image/webp",
        "video/mp4",
        "text/plain",
        "*/*",
        "",
        "application/x-www-form-urlencoded",
        "image/jpeg;q=0.5, tensor/binary",
        ";;,,=q",
        "IMAGE/PNG; q=nan",
    ]);
    let names = text(&[
        "Content-Type",
        "Accept",
        "Content-Encoding",
        "Accept-Encoding",
        "Authorization",
        "x-request-timeout-ms",
        "x-request-id",
        "Range",
        "Origin",
        "X-Forwarded-For",
        "Cookie",
        "If-None-Match",
        "Upgrade",
        "TE",
    ]);
    // Tabs and bytes above 127 are legal in values.
    let value = prop_oneof![3 => kinds, 1 => number().prop_map(|n| n.replace(['\r', '\n'], "")), 1 => "[ -~\tà-ÿ]{0,30}"];
    vec((names, value), 0..5)
}

/// Bytes; often as many as some tensor of these tests has.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let json = prop_oneof![
        text(&[
            "{}",
            "[]",
            "null",
            "3",
            "\"\"",
            "{\"inputs\":",
            "{\"inputs\": null}",
            "{\"inputs\": \"????\"}"
        ]),
        (query(), "[A-Za-z0-9+/]{0,64}={0,2}").prop_map(|(query, inputs)| {
            let parameters: serde_json::Map<String, serde_json::Value> = query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(key, value)| {
                    (key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into()))
                })
                .collect();
            serde_json::json!({"inputs": inputs, "parameters": parameters}).to_string()
        }),
        Just("[".repeat(20_000)),
        Just(format!("{{\"inputs\": \"AAAA\", \"parameters\": {}1{}}}", "[".repeat(200), "]".repeat(200))),
    ];
    prop_oneof![
        2 => vec(any::<u8>(), 0..400),
        2 => (1_usize..5, 1_usize..5, select(&[4_usize, 8, 16][..]), any::<u8>())
            .prop_map(|(height, width, size, fill)| vec![fill; height * width * size]),
        2 => json.prop_map(String::into_bytes),
        2 => damaged_picture(),
    ]
}

/// A picture or video file with some bytes changed, or cut, or with something after its end.
fn damaged_picture() -> impl Strategy<Value = Vec<u8>> {
    static PICTURES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
        let mut video = Mp4Encoder::new(16, 16, &Mp4Options::default()).unwrap();
        (0..5).for_each(|_| drop(video.push_rgb(&[90; 16 * 16 * 3]).unwrap()));
        let video = video.finish().unwrap();
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../media/tests/golden/");
        [
            "jpeg_17x9.jpg",
            "mode_rgba.png",
            "mode_p_two_bits.png",
            "mode_lossless.webp",
            "mode_progressive.jpg",
            "mode_sixteen_rgb.png",
            "bidirectional.mp4",
        ]
        .into_iter()
        .map(|name| std::fs::read(format!("{golden}{name}")).unwrap())
        .chain([video])
        .collect()
    });
    let changes = vec((any::<Index>(), any::<u8>()), 0..6);
    (0..PICTURES.len(), changes, proptest::option::of(any::<Index>())).prop_map(|(picture, changes, cut)| {
        let mut file = PICTURES[picture].clone();
        for (index, byte) in changes {
            *index.get_mut(&mut file) = byte;
        }
        if let Some(cut) = cut {
            file.truncate(cut.index(file.len() + 1));
        }
        file
    })
}

// ---- properties ------------------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn queries_headers_and_bodies(path in path(), query in query(), headers in headers(), body in body()) {
        ask(&post(&format!("{path}?{query}"), &headers, &body));
    }

    #[test]
    fn pictures(operation in text(&["/", "/encode", "/tiny", "/video"]), picture in damaged_picture(), query in vec(pair(), 0..2)) {
        let status = ask(&post(&format!("{operation}?{}", query.join("&")), &[], &picture));
        prop_assert!(status == 200 || status == 400 || status == 413, "{}", status);
    }

    #[test]
    fn bodies_in_chunks(sizes in vec(1_usize..40, 0..8), extension in "(;[a-z=]{0,9})?", query in query()) {
        let mut request = format!("POST /?{query} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
        for size in sizes {
            request.extend(format!("{size:x}{extension}\r\n").bytes());
            request.extend(vec![0x3c; size]);
            request.extend(b"\r\n");
        }
        request.extend(b"0\r\n\r\n");
        ask(&request);
    }

    #[test]
    fn other_methods_and_paths(method in "GET|PUT|DELETE|OPTIONS|PATCH|TRACE|[A-Z]{1,12}", path in path(), body in vec(any::<u8>(), 0..50)) {
        prop_assume!(!matches!(method.as_str(), "HEAD" | "CONNECT" | "POST"));
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        ask(&[head.as_bytes(), &body].concat());
    }

    #[test]
    fn lengths_that_are_wrong(length in "[0-9]{1,25}|-1|0x5|[ -~]{0,8}", body in vec(any::<u8>(), 0..60)) {
        let head = format!("POST /?{} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n", tensor_query(&[1, 4, 1, 1], Dtype::Uint8));
        shout(&[head.as_bytes(), &body].concat());
    }

    #[test]
    fn heads_with_changed_bytes(changes in vec((any::<Index>(), any::<u8>()), 1..5)) {
        let mut request = good_request();
        let head = request.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        for (index, byte) in changes {
            *index.get_mut(&mut request[..head]) = byte;
        }
        shout(&request);
    }

    #[test]
    fn bytes_of_any_kind(bytes in vec(any::<u8>(), 0..300)) {
        shout(&bytes);
    }
}
