//! Encodes: pictures and tensors, ranges, sizes, samples, and back again.

use remote_vae_engine::{Control, Draw, Precision};
use remote_vae_media as media;
use remote_vae_wire::{Dtype, Scaling, bytes_from_elements, elements_from_bytes};

use crate::support::*;

fn picture(width: usize, height: usize) -> media::RgbImage {
    let mut random = Random::new(20);
    let pixels = (0..width * height * 3).map(|_| ((random.next() + 1.0) * 127.0) as u8).collect();
    media::RgbImage { width, height, pixels }
}

/// What the engine gives when nothing is between.
fn direct(pixels: &[f32], shape: [usize; 4], scaling: Scaling, draw: Draw) -> Vec<u8> {
    let latents = kl().encode(pixels, shape, &scaling, draw, Precision::Exact, &Control::new()).unwrap();
    bytes_from_elements(Dtype::Float16, &latents.values)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_with_nothing_else_is_encoded() {
    let server = TestServer::start().await;
    let image = picture(48, 40);
    let png = media::encode_png(&image.pixels, 48, 40).unwrap();
    let expected = direct(&media::to_model_range(&image), [1, 3, 40, 48], Scaling::None, Draw::Mode);
    for path in ["", "/", "/encode", "/default/encode", "/predict"] {
        let response = server.post(path, png.clone()).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.headers()["shape"], "[1,4,5,6]");
        assert_eq!(response.headers()["dtype"], "float16");
        assert_eq!(response.headers()["content-type"], "tensor/binary");
        assert_eq!(response.bytes().await.unwrap(), expected, "{path}");
    }
    let jpeg = media::encode_jpeg(&image.pixels, 48, 40).unwrap();
    let response = server.post("/", jpeg).header("content-type", "image/jpeg").send().await.unwrap();
    assert_eq!(response.headers()["shape"], "[1,4,5,6]");
    let response = server.post("/", png).header("accept", "tensor/base64").send().await.unwrap();
    let answer = json(response).await;
    assert_eq!(answer["parameters"]["shape"], serde_json::json!([1, 4, 5, 6]));
}

#[tokio::test(flavor = "multi_thread")]
async fn latents_come_in_32_bits_where_that_is_asked_for() {
    let server = TestServer::start().await;
    let image = picture(48, 40);
    let png = media::encode_png(&image.pixels, 48, 40).unwrap();
    let pixels = media::to_model_range(&image);
    let latents = kl()
        .encode(&pixels, [1, 3, 40, 48], &Scaling::None, Draw::Mode, Precision::Exact, &Control::new())
        .unwrap();
    let response = server.post("/?output_dtype=float32", png.clone()).send().await.unwrap();
    assert_eq!(response.headers()["dtype"], "float32");
    let whole = response.bytes().await.unwrap();
    assert_eq!(whole, bytes_from_elements(Dtype::Float32, &latents.values));
    let half =
        server.post("/?output_dtype=float16", png.clone()).send().await.unwrap().bytes().await.unwrap();
    assert_eq!(half, bytes_from_elements(Dtype::Float16, &latents.values));
    let (status, message) = refusal(server.post("/?output_dtype=uint8", png).send().await.unwrap()).await;
    assert!(status == 400 && message.contains("output_dtype") && message.contains("float32"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn factors_apply_as_given() {
    let server = TestServer::start().await;
    let image = picture(16, 16);
    let png = media::encode_png(&image.pixels, 16, 16).unwrap();
    let pixels = media::to_model_range(&image);
    let explicit = |scale, shift| Scaling::Explicit { scale, shift };
    for (query, scaling) in [
        ("scaling_factor=0.18215", explicit(0.18215, None)),
        ("scaling_factor=0.3611&shift_factor=0.1159", explicit(0.3611, Some(0.1159))),
        ("shift_factor=0.5", explicit(1.0, Some(0.5))),
        ("do_scaling=True", Scaling::Model { shift: None }),
        ("", Scaling::None),
    ] {
        let response = server.post(&format!("/?{query}"), png.clone()).send().await.unwrap();
        let expected = direct(&pixels, [1, 3, 16, 16], scaling, Draw::Mode);
        assert_eq!(response.bytes().await.unwrap(), expected, "{query}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_cut_to_multiples_of_eight() {
    let server = TestServer::start().await;
    let image = picture(37, 29);
    let png = media::encode_png(&image.pixels, 37, 29).unwrap();
    let response = server.post("/", png).send().await.unwrap();
    assert_eq!(response.headers()["shape"], "[1,4,3,4]");
    let resized = media::resize_to_multiple(image, 8).unwrap();
    let expected = direct(&media::to_model_range(&resized), [1, 3, 24, 32], Scaling::None, Draw::Mode);
    assert_eq!(response.bytes().await.unwrap(), expected);

    let small = picture(7, 64);
    let png = media::encode_png(&small.pixels, 7, 64).unwrap();
    let (status, message) = refusal(server.post("/", png).send().await.unwrap()).await;
    assert!(status == 400 && message.contains("7x64"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_of_either_range_are_encoded() {
    let server = TestServer::start().await;
    let shape = [2, 3, 16, 24];
    let signed = Random::new(21).values(shape.iter().product());
    let signed = elements_from_bytes(Dtype::Float16, &bytes_from_elements(Dtype::Float16, &signed));
    let unit: Vec<f32> = signed.iter().map(|value| value.abs()).collect();
    let doubled: Vec<f32> = unit.iter().map(|value| 2.0 * value - 1.0).collect();
    let query = tensor_query(&shape, Dtype::Float16);
    for (sent, meant) in [(&signed, &signed), (&unit, &doubled)] {
        let response = server.post(&format!("/?{query}"), bytes_from_elements(Dtype::Float16, sent)).send();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["shape"], "[2,4,2,3]");
        assert_eq!(response.bytes().await.unwrap(), direct(meant, shape, Scaling::None, Draw::Mode));
    }
    let image = picture(24, 16);
    let planar: Vec<u8> = (0..3).flat_map(|c| image.pixels.iter().skip(c).step_by(3).copied()).collect();
    let query = tensor_query(&[1, 3, 16, 24], Dtype::Uint8);
    let response = server.post(&format!("/?{query}"), planar).send().await.unwrap();
    let pixels: Vec<f32> = media::to_model_range(&image);
    assert_eq!(response.bytes().await.unwrap(), direct(&pixels, [1, 3, 16, 24], Scaling::None, Draw::Mode));
}

#[tokio::test(flavor = "multi_thread")]
async fn tensors_are_cut_to_multiples_of_eight() {
    let server = TestServer::start().await;
    let shape = [2, 3, 17, 23];
    let values = Random::new(22).values(shape.iter().product());
    let bytes = bytes_from_elements(Dtype::Float32, &values);
    let query = tensor_query(&shape, Dtype::Float32);
    let response = server.post(&format!("/?{query}"), bytes).send().await.unwrap();
    assert_eq!(response.headers()["shape"], "[2,4,2,2]");
    let (cut, cut_shape) = media::resize_tensor_to_multiple(values, shape, 8).unwrap();
    assert_eq!(cut_shape, [2, 3, 16, 16]);
    assert_eq!(response.bytes().await.unwrap(), direct(&cut, cut_shape, Scaling::None, Draw::Mode));

    let query = tensor_query(&[1, 3, 16, 7], Dtype::Uint8);
    let (status, message) =
        refusal(server.post(&format!("/?{query}"), vec![0; 336]).send().await.unwrap()).await;
    assert!(status == 400 && message.contains("7x16"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_repeat_with_their_seed() {
    let server = TestServer::start().await;
    let image = picture(16, 16);
    let png = media::encode_png(&image.pixels, 16, 16).unwrap();
    let pixels = media::to_model_range(&image);
    let expected = direct(&pixels, [1, 3, 16, 16], Scaling::None, Draw::Sample { seed: 13 });
    for query in ["seed=13", "sample=True&seed=13"] {
        let response = server.post(&format!("/?{query}"), png.clone()).send().await.unwrap();
        assert_eq!(response.bytes().await.unwrap(), expected, "{query}");
    }
    let draw = async || {
        let response = server.post("/?sample=True", png.clone()).send().await.unwrap();
        response.bytes().await.unwrap()
    };
    assert_ne!(draw().await, draw().await);
}

/// Means before log-variances, from which a client draws what the server draws.
#[tokio::test(flavor = "multi_thread")]
async fn moments_are_the_distribution() {
    let server = TestServer::with(options(), vec![("default", kl()), ("tiny", tiny())]).await;
    let image = picture(16, 24);
    let png = media::encode_png(&image.pixels, 16, 24).unwrap();
    let pixels = media::to_model_range(&image);
    let response = server.post("/?moments=True", png.clone()).send().await.unwrap();
    assert_eq!(response.headers()["shape"], "[1,8,3,2]");
    let moments = response.bytes().await.unwrap();
    let direct = |draw| direct(&pixels, [1, 3, 24, 16], Scaling::None, draw);
    assert_eq!(moments[..moments.len() / 2], direct(Draw::Mode));
    assert_eq!(moments, direct(Draw::Moments));
    let values = elements_from_bytes(Dtype::Float16, &moments);
    let (sample, _) = remote_vae_model::distribution::sample(&values, [1, 8, 3, 2], 5).unwrap();
    let expected = elements_from_bytes(Dtype::Float16, &direct(Draw::Sample { seed: 5 }));
    for (found, expected) in sample.iter().zip(&expected) {
        assert!((found - expected).abs() <= 4e-3 * expected.abs().max(1.0), "{found} and {expected}");
    }
    for (path, word) in [
        ("/?moments=True&seed=1", "`seed`"),
        ("/?moments=True&scaling_factor=0.5", "`scaling_factor`"),
        ("/tiny?moments=True", "AutoencoderTiny"),
    ] {
        let (status, message) = refusal(server.post(path, png.clone()).send().await.unwrap()).await;
        assert!(status == 400 && message.contains(word), "{path}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back_keeps_the_size() {
    let server = TestServer::with(options(), vec![("tiny", tiny())]).await;
    let image = picture(32, 24);
    let png = media::encode_png(&image.pixels, 32, 24).unwrap();
    let latents = server.post("/?scaling_factor=0.5", png).send().await.unwrap().bytes().await.unwrap();
    let query = tensor_query(&[1, 4, 3, 4], Dtype::Float16);
    let response = server.raw(&format!("output_type=pt&scaling_factor=0.5&{query}"), latents.to_vec()).await;
    assert_eq!(response.headers()["shape"], "[1,3,24,32]");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_pictures_are_refused() {
    let options = {
        let mut options = options();
        options.limits.max_pixels = 1000;
        options
    };
    let server = TestServer::with(options, vec![("default", kl())]).await;
    let large = picture(64, 32);
    let png = media::encode_png(&large.pixels, 64, 32).unwrap();
    let (status, message) = refusal(server.post("/", png.clone()).send().await.unwrap()).await;
    assert!(status == 413 && message.contains("1000"), "{status} {message}");
    // A few bytes that declare a huge picture.
    let mut bomb = png.clone();
    bomb[16..24].copy_from_slice(&[0, 0, 0xc3, 0x50, 0, 0, 0xc3, 0x50]);
    let (status, _) = refusal(server.post("/", bomb).send().await.unwrap()).await;
    assert!(status == 413 || status == 400, "{status}");
    let small = picture(16, 16);
    let cut = media::encode_png(&small.pixels, 16, 16).unwrap()[..100].to_vec();
    assert_eq!(refusal(server.post("/", cut).send().await.unwrap()).await.0, 400);
    let request = server.post("/", "no picture").header("content-type", "image/png");
    assert_eq!(refusal(request.send().await.unwrap()).await.0, 400);
    let (status, message) = refusal(server.post("/?output_type=pt", png).send().await.unwrap()).await;
    assert!(status == 400 && message.contains("output_type"), "{message}");
}
