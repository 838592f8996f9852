//! Decodes: every output, every way to ask for it, every row of the scaling table, packed latents, batches.

use remote_vae_engine::{Autoencoder, Control, Precision};
use remote_vae_media as media;
use remote_vae_server::ServerOptions;
use remote_vae_wire::{Dtype, Scaling, bytes_from_elements};
use serde_json::json;

use crate::support::*;

const SHAPE: [usize; 4] = [1, 4, 8, 8];

/// What the engine gives when nothing is between.
fn direct(autoencoder: &Autoencoder, values: &[f32], shape: [usize; 4], scaling: Scaling) -> Vec<f32> {
    let image =
        autoencoder.decode(values.to_vec(), shape, &scaling, Precision::Exact, &Control::new()).unwrap();
    image.pixels
}

fn float16(values: &[f32]) -> Vec<u8> {
    bytes_from_elements(Dtype::Float16, values)
}

pub(crate) fn header<'a>(response: &'a reqwest::Response, name: &str) -> Option<&'a str> {
    response.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_output_type_of_the_current_client() {
    let server = TestServer::start().await;
    let (body, values) = latents(&SHAPE, 1);
    let pixels = direct(&kl(), &values, SHAPE, Scaling::None);
    let rgb = media::to_uint8_channel_last(&pixels, [1, 3, 64, 64]);
    let query = tensor_query(&SHAPE, Dtype::Float16);
    let ask = |more: &str, accept: &'static str| {
        let request = server.post(&format!("/?{more}&{query}"), body.clone());
        request.header("content-type", "tensor/binary").header("accept", accept)
    };

    let request = ask("output_type=pt&partial_postprocess=False&image_format=jpg", "tensor/binary");
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "content-type"), Some("tensor/binary"));
    assert_eq!(header(&response, "shape"), Some("[1,3,64,64]"));
    assert_eq!(header(&response, "dtype"), Some("float16"));
    assert_eq!(header(&response, "content-length"), Some("24576"));
    assert!(header(&response, "x-remote-vae-engine").unwrap().starts_with("cpu/"));
    assert!(header(&response, "server-timing").unwrap().contains("engine;dur="));
    assert_eq!(response.bytes().await.unwrap(), float16(&pixels));

    let request = ask("output_type=pt&partial_postprocess=True&image_format=jpg", "tensor/binary");
    let response = request.send().await.unwrap();
    assert_eq!(header(&response, "shape"), Some("[1,64,64,3]"));
    assert_eq!(header(&response, "dtype"), Some("uint8"));
    assert_eq!(response.bytes().await.unwrap(), rgb);

    let request = ask("output_type=pil&partial_postprocess=False&image_format=jpg", "tensor/binary");
    let response = request.send().await.unwrap();
    assert_eq!(header(&response, "shape"), Some("[1,3,64,64]"));
    assert_eq!(header(&response, "dtype"), Some("float16"));
    let unit = bytes_from_elements(Dtype::Float16, &media::to_unit_interval(&pixels));
    assert_eq!(response.bytes().await.unwrap(), unit);

    for (output, values) in [("pt", &pixels), ("pil", &media::to_unit_interval(&pixels))] {
        let request = ask(&format!("output_type={output}&output_dtype=float32"), "tensor/binary");
        let response = request.send().await.unwrap();
        assert_eq!(header(&response, "dtype"), Some("float32"));
        assert_eq!(response.bytes().await.unwrap(), bytes_from_elements(Dtype::Float32, values));
    }

    let request = ask("output_type=pil&partial_postprocess=False&image_format=png", "image/png");
    let response = request.send().await.unwrap();
    assert_eq!(header(&response, "content-type"), Some("image/png"));
    assert_eq!(header(&response, "shape"), None);
    let limits = media::DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 24 };
    assert_eq!(media::decode_image(&response.bytes().await.unwrap(), &limits).unwrap().pixels, rgb);

    for accept in ["image/jpeg", "image/jpg"] {
        let request = ask("output_type=pil&partial_postprocess=False&image_format=jpg", accept);
        let response = request.send().await.unwrap();
        assert_eq!(header(&response, "content-type"), Some("image/jpeg"));
        assert_eq!(response.bytes().await.unwrap(), media::encode_jpeg(&rgb, 64, 64).unwrap());
    }

    let (status, message) = refusal(ask("output_type=mp4", "text/plain").send().await.unwrap()).await;
    assert!(status == 400 && message.contains("mp4"), "{status} {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_alone_decide_where_headers_are_absent() {
    let server = TestServer::start().await;
    let (body, _) = latents(&SHAPE, 2);
    let query = tensor_query(&SHAPE, Dtype::Float16);
    for (more, kind) in [
        ("output_type=pt", "tensor/binary"),
        ("output_type=pt&partial_postprocess=true", "tensor/binary"),
        ("output_type=pil&image_format=png", "image/png"),
        ("output_type=pil", "image/jpeg"),
        ("input_tensor_type=binary&output_tensor_type=binary&output_type=pt", "tensor/binary"),
        ("", "image/jpeg"),
    ] {
        for accept in [None, Some("*/*")] {
            let mut request = server.post(&format!("/?{query}&{more}"), body.clone());
            if let Some(accept) = accept {
                request = request.header("accept", accept);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200, "{more}");
            assert_eq!(header(&response, "content-type"), Some(kind), "{more}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scaling_table_row_by_row() {
    let models =
        vec![("default", kl()), ("shifted", shifted()), ("channels", per_channel()), ("tiny", tiny())];
    let server = TestServer::with(options(), models.clone()).await;
    let (body, values) = latents(&SHAPE, 3);
    let explicit = |scale, shift| Scaling::Explicit { scale, shift };
    let rows = [
        ("scaling_factor=0.18215", explicit(0.18215, None)),
        ("scaling_factor=0.3611&shift_factor=0.1159", explicit(0.3611, Some(0.1159))),
        ("scaling_factor=1e-01", explicit(0.1, None)),
        ("do_scaling=True&scaling_factor=0.18215", explicit(0.18215, None)),
        ("do_scaling=True", Scaling::Model { shift: None }),
        ("do_scaling=True&shift_factor=0.5", Scaling::Model { shift: Some(0.5) }),
        ("", Scaling::None),
        ("do_scaling=False", Scaling::None),
    ];
    for (name, autoencoder) in models {
        for (row, scaling) in rows {
            let query = tensor_query(&SHAPE, Dtype::Float16);
            let path = format!("/{name}?output_type=pt&{query}&{row}").replace("/default", "/");
            let response = server.post(&path, body.clone()).send().await.unwrap();
            let scalar = matches!(scaling, Scaling::Explicit { .. } | Scaling::Model { shift: Some(_) });
            if name == "channels" && scalar {
                let (status, message) = refusal(response).await;
                assert!(status == 400 && message.contains("channels"), "{row}: {status} {message}");
                continue;
            }
            assert_eq!(response.status(), 200, "{name} {row}");
            let expected = float16(&direct(&autoencoder, &values, SHAPE, scaling));
            assert_eq!(response.bytes().await.unwrap(), expected, "{name} {row}");
        }
    }
    // Rows differ from each other where they should.
    let pixels = |scaling| direct(&shifted(), &values, SHAPE, scaling);
    assert_eq!(pixels(Scaling::Model { shift: None }), pixels(explicit(0.5, Some(0.25))));
    assert_ne!(pixels(Scaling::Model { shift: None }), pixels(Scaling::None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tiny_model_of_a_known_family_undoes_what_a_client_says_it_divided() {
    let server = TestServer::with(options(), vec![("default", tiny_of_family(0.5))]).await;
    let (body, values) = latents(&SHAPE, 3);
    let multiplied: Vec<f32> = values.iter().map(|value| value * 0.5).collect();
    for (row, values) in [("do_scaling=False", &multiplied), ("", &values), ("do_scaling=True", &values)] {
        let path = format!("/?output_type=pt&{}&{row}", tensor_query(&SHAPE, Dtype::Float16));
        let answer = server.post(&path, body.clone()).send().await.unwrap().bytes().await.unwrap();
        assert_eq!(answer, float16(&direct(&tiny(), values, SHAPE, Scaling::None)), "{row}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dtype_is_read_and_float16_is_answered() {
    let server = TestServer::start().await;
    let values: Vec<f32> = (0..256).map(|index| (index % 7) as f32).collect();
    let expected = float16(&direct(&kl(), &values, SHAPE, Scaling::None));
    for dtype in [Dtype::Float16, Dtype::BFloat16, Dtype::Float32, Dtype::Uint8] {
        let query = format!("output_type=pt&{}", tensor_query(&SHAPE, dtype));
        let response = server.raw(&query, bytes_from_elements(dtype, &values)).await;
        assert_eq!(header(&response, "dtype"), Some("float16"));
        assert_eq!(response.bytes().await.unwrap(), expected, "{dtype}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packed_latents_are_unpacked() {
    let server = TestServer::start().await;
    let (h, w) = (4, 6);
    let (_, values) = latents(&[1, 4, h, w], 4);
    let (tokens, _) = kl().model().latent_space.pack(&values, [1, 4, h, w]).unwrap();
    let body = bytes_from_elements(Dtype::Float16, &tokens);
    let query = tensor_query(&[1, h / 2 * w / 2, 16], Dtype::Float16);
    let packed = server.raw(&format!("output_type=pt&{query}&height=32&width=48"), body.clone()).await;
    assert_eq!(header(&packed, "shape"), Some("[1,3,32,48]"));
    let expected = float16(&direct(&kl(), &values, [1, 4, h, w], Scaling::None));
    assert_eq!(packed.bytes().await.unwrap(), expected);

    for (more, word) in [("", "height"), ("&height=32", "height"), ("&height=64&width=64", "tokens")] {
        let response = server.raw(&format!("output_type=pt&{query}{more}"), body.clone()).await;
        let (status, message) = refusal(response).await;
        assert!(status == 400 && message.contains(word), "{more}: {message}");
    }

    // Robustness: latents without their batch.
    let plain = bytes_from_elements(Dtype::Float16, &values);
    let query = tensor_query(&[4, h, w], Dtype::Float16);
    let response = server.raw(&format!("output_type=pt&{query}"), plain).await;
    assert_eq!(response.bytes().await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn height_and_width_count_for_packed_latents_only() {
    let server = TestServer::start().await;
    let (body, _) = latents(&SHAPE, 5);
    let query = format!("output_type=pt&{}&height=999&width=3", tensor_query(&SHAPE, Dtype::Float16));
    assert_eq!(header(&server.raw(&query, body).await, "shape"), Some("[1,3,64,64]"));
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_come_back_whole_or_as_their_first_picture() {
    let server = TestServer::start().await;
    let shape = [3, 4, 4, 4];
    let (body, values) = latents(&shape, 6);
    let query = tensor_query(&shape, Dtype::Float16);
    let pixels = direct(&kl(), &values, shape, Scaling::None);
    let raw = server.raw(&format!("output_type=pt&{query}"), body.clone()).await;
    assert_eq!(header(&raw, "shape"), Some("[3,3,32,32]"));
    assert_eq!(raw.bytes().await.unwrap(), float16(&pixels));
    let partial = server.raw(&format!("output_type=pt&partial_postprocess=1&{query}"), body.clone()).await;
    assert_eq!(header(&partial, "shape"), Some("[3,32,32,3]"));
    let picture =
        server.post(&format!("/?output_type=pil&image_format=png&{query}"), body).send().await.unwrap();
    let first = media::to_uint8_channel_last(&pixels[..3 * 32 * 32], [1, 3, 32, 32]);
    assert_eq!(picture.bytes().await.unwrap(), media::encode_png(&first, 32, 32).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_sides_and_strange_numbers_decode() {
    let server = TestServer::start().await;
    for shape in [[1, 4, 1, 1], [1, 4, 5, 7], [1, 4, 9, 3], [2, 4, 1, 11]] {
        let (body, _) = latents(&shape, 7);
        let query = format!("output_type=pt&{}", tensor_query(&shape, Dtype::Float16));
        let response = server.raw(&query, body).await;
        let expected = format!("[{},3,{},{}]", shape[0], 8 * shape[2], 8 * shape[3]);
        assert_eq!(header(&response, "shape"), Some(expected.as_str()));
    }
    let strange = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 65504.0, -65504.0, 1e-8, 0.0, -0.0].repeat(32);
    let body = bytes_from_elements(Dtype::Float32, &strange);
    let query = tensor_query(&SHAPE, Dtype::Float32);
    for kind in
        ["output_type=pt", "output_type=pt&partial_postprocess=True", "output_type=pil&image_format=png"]
    {
        let response = server.post(&format!("/?{kind}&{query}"), body.clone()).send().await.unwrap();
        assert_eq!(response.status(), 200, "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_json_forms_of_the_first_clients() {
    let server = TestServer::with(options(), vec![("default", shifted())]).await;
    let (body, values) = latents(&SHAPE, 8);
    let scaled = direct(&shifted(), &values, SHAPE, Scaling::Model { shift: None });
    let plain = direct(&shifted(), &values, SHAPE, Scaling::None);
    let inputs = base64(&body);

    // The oldest: everything in the body, scaled by the model, a JPEG back.
    let v0 = json!({"inputs": inputs, "parameters": {"shape": SHAPE, "dtype": "float16"}}).to_string();
    let request = server.post("/", v0).header("content-type", "application/json");
    let response = request.header("accept", "image/jpeg").send().await.unwrap();
    assert_eq!(header(&response, "content-type"), Some("image/jpeg"));
    let rgb = media::to_uint8_channel_last(&scaled, [1, 3, 64, 64]);
    assert_eq!(response.bytes().await.unwrap(), media::encode_jpeg(&rgb, 64, 64).unwrap());

    // The next: base64 both ways, parameters in the query.
    for (do_scaling, pixels) in [("True", &scaled), ("False", &plain)] {
        let query = tensor_query(&SHAPE, Dtype::Float16);
        let query = format!("/?do_scaling={do_scaling}&output_type=pt&partial_postprocess=False&{query}");
        let request = server.post(&query, json!({"inputs": inputs}).to_string());
        let request = request.header("content-type", "tensor/base64").header("accept", "tensor/base64");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        let answer = json(response).await;
        assert_eq!(answer["parameters"], json!({"shape": [1, 3, 64, 64], "dtype": "float16"}));
        assert_eq!(answer["inputs"], base64(&float16(pixels)));
    }

    let request = server.post("/", "{\"inputs\": 3}").header("content-type", "application/json");
    assert_eq!(refusal(request.send().await.unwrap()).await.0, 400);
    let request = server.post("/?shape=1", "{\"inputs\": \"?\"}").header("content-type", "tensor/base64");
    assert_eq!(refusal(request.send().await.unwrap()).await.0, 400);
}

fn base64(bytes: &[u8]) -> String {
    remote_vae_wire::base64_file(bytes).trim_matches('"').to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_lead_to_their_models() {
    let extra = vec!["/vae/decode".to_owned()];
    let options = remote_vae_server::ServerOptions { extra_paths: extra, ..options() };
    let server = TestServer::with(options, vec![("first", kl()), ("second", shifted())]).await;
    let (body, values) = latents(&SHAPE, 9);
    let query = format!("output_type=pt&do_scaling=True&{}", tensor_query(&SHAPE, Dtype::Float16));
    let expected =
        |model: &Autoencoder| float16(&direct(model, &values, SHAPE, Scaling::Model { shift: None }));
    let (first, second) = (expected(&kl()), expected(&shifted()));
    assert_ne!(first, second);
    for (path, pixels) in [
        ("", &first),
        ("/", &first),
        ("/predict", &first),
        ("/predict/", &first),
        ("/decode", &first),
        ("/decode/", &first),
        ("/first", &first),
        ("/first/decode", &first),
        ("/vae/decode", &first),
        ("/vae/decode/", &first),
        ("/second", &second),
        ("/second/", &second),
        ("/second/decode", &second),
        ("/second/predict/", &second),
    ] {
        let response = server.post(&format!("{path}?{query}"), body.clone()).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.bytes().await.unwrap(), *pixels, "{path}");
    }
    for path in ["/third", "/second/decode/more", "/second/other", "/vae", "/first/encode/x"] {
        let response = server.post(&format!("{path}?{query}"), body.clone()).send().await.unwrap();
        let (status, message) = refusal(response).await;
        assert!(status == 404 && message.contains("/second"), "{path}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_gives_the_same_bytes() {
    let server = TestServer::start().await;
    let (body, _) = latents(&SHAPE, 10);
    let query = format!("output_type=pt&precision=exact&{}", tensor_query(&SHAPE, Dtype::Float16));
    let first = server.raw(&query, body.clone()).await.bytes().await.unwrap();
    for _ in 0..3 {
        assert_eq!(server.raw(&query, body.clone()).await.bytes().await.unwrap(), first);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_chooses_its_precision_and_the_answer_names_it() {
    let fast_by_default = ServerOptions { precision: Precision::Fast, ..options() };
    let servers =
        [TestServer::start().await, TestServer::with(fast_by_default, vec![("default", kl())]).await];
    let (body, _) = latents(&SHAPE, 12);
    let mut answers = Vec::new();
    for (server, default) in servers.iter().zip(["exact", "fast"]) {
        let info = crate::support::json(server.http.get(server.url("/info")).send().await.unwrap()).await;
        assert_eq!(info["precisions"], json!(["exact", "fast"]));
        assert_eq!(info["default_precision"], default);
        for (asked, expected) in [("", default), ("&precision=exact", "exact"), ("&precision=fast", "fast")] {
            let query = format!("output_type=pt{asked}&{}", tensor_query(&SHAPE, Dtype::Float16));
            let response = server.raw(&query, body.clone()).await;
            let engine = response.headers()["x-remote-vae-engine"].to_str().unwrap().to_owned();
            assert!(engine.ends_with(&format!("/{expected}")), "{asked}: {engine}");
            answers.push((expected, response.bytes().await.unwrap()));
        }
    }
    for (precision, bytes) in &answers {
        for (other, others) in &answers {
            assert_eq!(precision == other, bytes == others, "{precision} and {other}");
        }
    }
}
