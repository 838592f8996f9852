//! Models of videos: every output of a decode, streamed and whole, encodes of tensors and files, and what is refused.

use std::path::Path;
use std::sync::Arc;

use remote_vae_engine::{Autoencoder, Clip, Control, Draw, Precision, Windows};
use remote_vae_media::{self as media, DecodeLimits, Mp4Encoder, Mp4Options, Video, VideoLimits};
use remote_vae_model::{Checkpoint, Model};
use remote_vae_server::ServerOptions;
use remote_vae_wire::{Dtype, Scaling, TileSizes, bytes_from_elements, elements_from_bytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::decode::header;
use crate::support::*;

/// Three frames of latents become nine of pixels.
const SHAPE: [usize; 5] = [1, 4, 3, 4, 6];
/// Nine become 33, in three windows.
const LONG: [usize; 5] = [1, 4, 9, 2, 3];

/// The small random model of the engine's golden files.
pub(crate) fn hunyuan() -> Arc<Autoencoder> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden_video/hunyuan");
    Arc::new(Autoencoder::new(Model::open(&folder).unwrap(), engine()))
}

fn decoded(model: &Autoencoder, values: Vec<f32>, shape: [usize; 5], windows: Windows) -> Clip {
    model.decode_clip(values, shape, &Scaling::None, windows, Precision::Exact, &Control::new()).unwrap()
}

/// `[frames, 3, height, width]` of the first sample.
fn frames_first(clip: &Clip) -> Vec<f32> {
    let [_, channels, frames, height, width] = clip.shape;
    let plane = height * width;
    let frame =
        |frame| (0..channels).flat_map(move |c| &clip.values[(c * frames + frame) * plane..][..plane]);
    (0..frames).flat_map(frame).copied().collect()
}

fn read_mp4(file: &[u8]) -> Video {
    let frames = DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 26 };
    media::decode_mp4(file, &VideoLimits { frames, max_frames: 100 }).unwrap()
}

fn contains(file: &[u8], name: &[u8]) -> bool {
    file.windows(name.len()).any(|part| part == name)
}

/// A model whose clips are computed in parts of one latent frame, and one for pictures of the same kind.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_clip_leave_as_they_are_made_and_packed_pictures_are_clips_of_one_frame() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../engine/tests/golden_video");
    let wan = Arc::new(Autoencoder::new(Model::open(&folder.join("wan")).unwrap(), engine()));
    let config = r#"{"_class_name": "AutoencoderKLQwenImage", "base_dim": 4}"#;
    let checkpoint = Checkpoint::open(&folder.join("qwen-image.safetensors")).unwrap();
    let qwen = Model::from_checkpoint(checkpoint, Some(config), "qwen").unwrap();
    let qwen = Arc::new(Autoencoder::new(qwen, engine()));
    let models = vec![("default", Arc::clone(&wan)), ("qwen", Arc::clone(&qwen))];
    let server = TestServer::with(options(), models).await;

    let shape = [1, 16, 3, 2, 3];
    let (body, values) = latents(&shape, 4);
    let clip = decoded(&wan, values, shape, Windows::default());
    let query = tensor_query(&shape, Dtype::Float16);
    let path = format!("/?output_type=pt&partial_postprocess=True&{query}");
    let response = server.post(&path, body.clone()).header("accept", "tensor/binary").send().await.unwrap();
    assert_eq!(header(&response, "shape"), Some("[9,16,24,3]"));
    let [_, _, count, height, width] = clip.shape;
    let rgb = media::to_uint8_channel_last(&frames_first(&clip), [count, 3, height, width]);
    assert_eq!(response.bytes().await.unwrap(), rgb);
    let response = server.post(&format!("/?output_type=mp4&{query}"), body).send().await.unwrap();
    let video = response.bytes().await.unwrap();
    assert!(contains(&video, b"moof"), "the video is in fragments");
    assert_eq!(read_mp4(&video).frames.len(), 9);

    // 2 x 3 patches of 2 x 2 latents.
    let (body, tokens) = latents(&[1, 6, 64], 5);
    let layout = qwen.model().latent_space.layout(&[1, 6, 64], Some(32), Some(48)).unwrap();
    let (values, _) = qwen.model().latent_space.arrange(tokens, layout).unwrap();
    let picture = decoded(&qwen, values, [1, 16, 1, 4, 6], Windows::default());
    let query = tensor_query(&[1, 6, 64], Dtype::Float16);
    let path = format!("/qwen?output_type=pt&partial_postprocess=False&height=32&width=48&{query}");
    let response = server.post(&path, body.clone()).header("accept", "tensor/binary").send().await.unwrap();
    assert_eq!(header(&response, "shape"), Some("[1,3,1,32,48]"));
    assert_eq!(response.bytes().await.unwrap(), bytes_from_elements(Dtype::Float16, &picture.values));
    let response = server.post(&path.replace("/qwen", "/"), body).send().await.unwrap();
    assert_eq!(response.status(), 400);
    let text = response.text().await.unwrap();
    assert!(text.contains("expected shape [batch, 16, frames, height, width], got"), "{text}");

    let info = json(server.http.get(server.url("/info")).send().await.unwrap()).await;
    let described = |model: usize, key: &str| info["models"][model]["description"][key].clone();
    assert_eq!((described(0, "temporal_factor"), described(0, "packed_token_size")), (4.into(), ().into()));
    assert_eq!(
        (described(1, "packed_token_size"), described(1, "packing")),
        (64.into(), "patches2x2".into())
    );
    assert_eq!(described(0, "scaling")["std"][0], 2.8184);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clip_comes_back_in_every_form() {
    let model = hunyuan();
    let server = TestServer::with(options(), vec![("default", Arc::clone(&model))]).await;
    for shape in [SHAPE, LONG] {
        let (body, values) = latents(&shape, 1);
        let clip = decoded(&model, values, shape, Windows::default());
        let [_, _, count, height, width] = clip.shape;
        assert_eq!(clip.shape, [1, 3, 4 * shape[2] - 3, 8 * shape[3], 8 * shape[4]]);
        let frames = frames_first(&clip);
        let rgb = media::to_uint8_channel_last(&frames, [count, 3, height, width]);
        let query = tensor_query(&shape, Dtype::Float16);
        // Some clients derive height and width of clips from the wrong sides; they do not count.
        let ask = async |more: &str, accept: &str| {
            let path = format!("/?{more}&height=24&width=32&{query}");
            let response = server.post(&path, body.clone()).header("accept", accept).send().await.unwrap();
            assert_eq!(response.status(), 200, "{more} {accept}");
            response
        };
        let sized = |response: &reqwest::Response| header(response, "content-length").is_some();

        let response = ask("output_type=pt&partial_postprocess=False", "tensor/binary").await;
        assert_eq!(header(&response, "shape"), Some(format!("{:?}", clip.shape).replace(' ', "").as_str()));
        assert!(sized(&response));
        assert_eq!(response.bytes().await.unwrap(), bytes_from_elements(Dtype::Float16, &clip.values));

        let response = ask("output_type=pil", "tensor/binary").await;
        assert_eq!(header(&response, "shape"), Some(format!("[{count},3,{height},{width}]").as_str()));
        assert!(sized(&response));
        let unit = bytes_from_elements(Dtype::Float16, &media::to_unit_interval(&frames));
        assert_eq!(response.bytes().await.unwrap(), unit);

        for (output, values) in [("pt", &clip.values), ("pil", &media::to_unit_interval(&frames))] {
            let response = ask(&format!("output_type={output}&output_dtype=float32"), "tensor/binary").await;
            assert_eq!(header(&response, "dtype"), Some("float32"));
            assert_eq!(response.bytes().await.unwrap(), bytes_from_elements(Dtype::Float32, values));
        }

        let response = ask("output_type=pt&partial_postprocess=True", "tensor/binary").await;
        assert_eq!(header(&response, "shape"), Some(format!("[{count},{height},{width},3]").as_str()));
        assert!(sized(&response));
        assert_eq!(response.bytes().await.unwrap(), rgb);

        let response = ask("output_type=pt&partial_postprocess=True", "tensor/base64").await;
        let answer = remote_vae_wire::parse_base64_tensor(&response.bytes().await.unwrap()).unwrap();
        assert_eq!(answer.1, rgb);

        let response = ask("output_type=pil&image_format=webp", "*/*").await;
        assert_eq!(header(&response, "content-type"), Some("image/webp"));
        let file = response.bytes().await.unwrap();
        let limits = DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 26 };
        assert_eq!(media::decode_image(&file, &limits).unwrap().pixels, rgb[..height * width * 3]);
        assert_eq!(file.windows(4).filter(|part| part == b"ANMF").count(), count);

        // Several windows leave as they are made; one is a file with an index and a known length.
        let streamed = shape == LONG;
        let response = ask("output_type=mp4", "text/plain").await;
        assert_eq!(header(&response, "content-type"), Some("text/plain; charset=utf-8"));
        assert_eq!(sized(&response), !streamed);
        let file = response.bytes().await.unwrap();
        assert_eq!((&file[4..8], contains(&file, b"moof")), (&b"ftyp"[..], streamed));
        let video = read_mp4(&file);
        assert_eq!((video.frames[0].width, video.frames[0].height), (width, height));
        assert_eq!((video.frames.len(), video.fps), (count, 10.0));
        let again = ask("output_type=mp4&precision=exact", "video/mp4").await.bytes().await.unwrap();
        assert_eq!(file, again);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_quality_and_cuts_are_as_the_request_says() {
    let model = hunyuan();
    let server = TestServer::with(options(), vec![("default", Arc::clone(&model))]).await;
    let ask = async |server: &TestServer, shape: &[usize], body: &[u8], more: &str| {
        let path = format!("/?output_type={more}&{}", tensor_query(shape, Dtype::Float16));
        let response = server.post(&path, body.to_vec()).send().await.unwrap();
        assert_eq!(response.status(), 200, "{more}");
        response.bytes().await.unwrap()
    };
    let (body, values) = latents(&LONG, 4);
    let fine = ask(&server, &LONG, &body, "mp4&fps=23.976&crf=12").await;
    let coarse = ask(&server, &LONG, &body, "mp4&crf=45").await;
    assert!(coarse.len() < fine.len() / 2, "{} and {} bytes", coarse.len(), fine.len());
    assert!((read_mp4(&fine).fps - 23.976).abs() < 1e-6);

    let whole = Windows { frames: false, tiles: None };
    let halves =
        |windows| bytes_from_elements(Dtype::Float16, &decoded(&model, values.clone(), LONG, windows).values);
    assert_ne!(halves(whole), halves(Windows::default()));
    assert_eq!(ask(&server, &LONG, &body, "pt&windows=off").await, halves(whole));
    assert_eq!(ask(&server, &LONG, &body, "pt&windows=on").await, halves(Windows::default()));
    // Not cut, the clip comes at once, with its length.
    assert!(!contains(&ask(&server, &LONG, &body, "mp4&windows=off").await, b"moof"));

    // What the operator sets holds where the request says nothing.
    let operated = ServerOptions { windows: whole, ..options() };
    let operated = TestServer::with(operated, vec![("default", Arc::clone(&model))]).await;
    assert_eq!(ask(&operated, &LONG, &body, "pt").await, halves(whole));
    assert_eq!(ask(&operated, &LONG, &body, "pt&windows=True").await, halves(Windows::default()));

    // One frame, a tile wider than one: 33 latents.
    let wide = [1, 4, 1, 1, 33];
    let (body, values) = latents(&wide, 5);
    let tiled = decoded(&model, values, wide, Windows { frames: true, tiles: Some(TileSizes::default()) });
    let tiled = bytes_from_elements(Dtype::Float16, &tiled.values);
    assert_eq!(ask(&server, &wide, &body, "pt&tiling=on").await, tiled);
    assert_ne!(ask(&server, &wide, &body, "pt").await, tiled);

    // Sizes need tiles, and where the operator turned those on, a model that has such sizes.
    let tiling = Windows { tiles: Some(TileSizes::default()), ..Windows::default() };
    let tiling = TestServer::with(
        ServerOptions { windows: tiling, ..options() },
        vec![("default", Arc::clone(&model))],
    )
    .await;
    assert_eq!(ask(&tiling, &wide, &body, "pt").await, tiled);
    for (server, more, expected) in [
        (&server, "", "Got no `tiling`"),
        (&tiling, "&tiling=off", "Got `tiling=off`"),
        (&tiling, "", "expected no tile_sample_min_size"),
    ] {
        let query =
            format!("/?output_type=pt&tile_latent_min_size=32{more}&{}", tensor_query(&wide, Dtype::Float16));
        let (status, message) = refusal(server.post(&query, body.clone()).send().await.unwrap()).await;
        assert!(status == 400 && message.contains(expected), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_leave_while_later_frames_are_decoded_and_a_lost_end_shows() {
    let model = hunyuan();
    let server = TestServer::with(options(), vec![("default", Arc::clone(&model))]).await;
    // Long enough that the last window is far away when the first bytes come.
    let shape = [1, 4, 200, 2, 3];
    let (body, _) = latents(&shape, 6);
    let path = format!("/?output_type=mp4&{}", tensor_query(&shape, Dtype::Float16));
    let mut response = server.post(&path, body.clone()).send().await.unwrap();
    let first = response.chunk().await.unwrap().unwrap();
    assert_eq!(&first[4..8], b"ftyp");
    let info: serde_json::Value = json(server.http.get(server.url("/info")).send().await.unwrap()).await;
    assert_eq!(info["queue"]["running"], 1);
    // A client that leaves ends the work.
    drop(response);
    server.until_queue(0, 0).await;

    // A failure after the first byte: no last chunk, and the connection is closed.
    let answer = in_growing_time(async |limit| {
        let head = format!("POST {path} HTTP/1.1\r\nx-request-timeout-ms: {limit}");
        let answer = exchange(&server, &head, &body).await;
        (!answer.starts_with(b"HTTP/1.1 504")).then_some(answer)
    })
    .await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..200]));
    assert!(contains(&answer, b"transfer-encoding: chunked") && contains(&answer, b"ftyp"));
    assert!(!answer.ends_with(b"0\r\n\r\n"));
    server.until_queue(0, 0).await;

    // Before the first byte a failure is a refusal.
    let response = server.post(&path, body.clone()).header("x-request-timeout-ms", "1").send().await.unwrap();
    assert_eq!(refusal(response).await.0, 504);

    // A known length is kept to by tensors too.
    let path = format!("/?output_type=pt&partial_postprocess=True&{}", tensor_query(&shape, Dtype::Float16));
    let response = in_growing_time(async |limit| {
        let request = server.post(&path, body.clone()).header("x-request-timeout-ms", limit);
        let response = request.send().await.unwrap();
        (response.status() != 504).then_some(response)
    })
    .await;
    assert_eq!(header(&response, "content-length"), Some((797 * 16 * 24 * 3).to_string().as_str()));
    assert!(response.bytes().await.is_err());

    // Put into a file it is known to be whole or not there.
    let path = path.replacen("/?", "/v1/decode?", 1);
    let request = server.post(&path, body).header("accept", "application/x-safetensors");
    let response = request.header("x-request-timeout-ms", "100").send().await.unwrap();
    assert_eq!(refusal(response).await.0, 504);
}

/// Sends one request on a connection of its own; all that comes back.
#[tokio::test(flavor = "multi_thread")]
async fn the_engine_waits_for_no_client() {
    let server = TestServer::with(options(), vec![("default", hunyuan())]).await;
    // Its answer of 13 MB is more than the sockets hold.
    let shape = [1, 4, 9, 32, 32];
    let (body, _) = latents(&shape, 6);
    let query = tensor_query(&shape, Dtype::Float16);
    let head = format!(
        "POST /?output_type=pil&{query} HTTP/1.1\r\nHost: x\r\nAccept: tensor/binary\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 200");
    // The engine ends, and has time for others, while nothing is taken.
    server.until_queue(0, 0).await;
    let (body, small) = (latents(&SHAPE, 7).0, tensor_query(&SHAPE, Dtype::Float16));
    let response = server.post(&format!("/?output_type=pt&{small}"), body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    stream.read_to_end(&mut answer).await.unwrap();
    let length = 33 * 3 * 256 * 256 * 2;
    let start = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(answer.len() - start, length);
}

async fn exchange(server: &TestServer, head: &str, body: &[u8]) -> Vec<u8> {
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let head = format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    answer
}

/// Gives `ask` twice as many milliseconds until there is an answer: how long the first byte takes depends on the machine.
async fn in_growing_time<T>(ask: impl AsyncFn(u64) -> Option<T>) -> T {
    for limit in (0..12).map(|doublings| 100 << doublings) {
        if let Some(answer) = ask(limit).await {
            return answer;
        }
    }
    panic!("no first byte in minutes")
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_cannot_see_a_lost_end_get_the_file_at_once() {
    let server = TestServer::with(options(), vec![("default", hunyuan())]).await;
    let (body, _) = latents(&LONG, 9);
    let path = format!("/?output_type=mp4&{}", tensor_query(&LONG, Dtype::Float16));
    let answer = exchange(&server, &format!("POST {path} HTTP/1.0"), &body).await;
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    let (head, file) = (String::from_utf8_lossy(&answer[..end]), &answer[end + 4..]);
    assert!(head.contains(&format!("content-length: {}", file.len())), "{head}");
    assert_eq!((&file[4..8], contains(file, b"moof")), (&b"ftyp"[..], false));
}

#[tokio::test(flavor = "multi_thread")]
async fn clips_are_encoded_from_tensors_and_files() {
    let model = hunyuan();
    let server = TestServer::with(options(), vec![("default", Arc::clone(&model))]).await;
    let encode = |pixels: Vec<f32>, shape, windows| {
        let control = Control::new();
        let (scaling, precision) = (Scaling::None, Precision::Exact);
        let latents =
            model.encode_clip(pixels, shape, &scaling, Draw::Mode, windows, precision, &control).unwrap();
        (bytes_from_elements(Dtype::Float16, &latents.values), latents.shape)
    };
    // Two clips of 17 frames, 30 wide: six columns are dropped by taking the nearest.
    let shape = [2, 3, 17, 16, 30];
    let (body, values) = latents(&shape, 7);
    let cut: Vec<f32> = values
        .chunks_exact(30)
        .flat_map(|row| (0..24).map(|column| row[(column as f32 * (30.0 / 24.0)) as usize]))
        .collect();
    let response = server.raw(&tensor_query(&shape, Dtype::Float16), body.clone()).await;
    assert_eq!(header(&response, "shape"), Some("[2,4,5,2,3]"));
    let (expected, shape_of_latents) = encode(cut.clone(), [2, 3, 17, 16, 24], Windows::default());
    assert_eq!(shape_of_latents, [2, 4, 5, 2, 3]);
    assert_eq!(response.bytes().await.unwrap(), expected);
    // 29 frames make windows, which a request can switch off.
    let shape = [1, 3, 29, 8, 8];
    let (body, values) = latents(&shape, 8);
    let query = tensor_query(&shape, Dtype::Float16);
    for (more, windows) in
        [("", Windows::default()), ("&windows=off", Windows { frames: false, tiles: None })]
    {
        let response = server.raw(&format!("{query}{more}"), body.clone()).await;
        assert_eq!(header(&response, "shape"), Some("[1,4,8,1,1]"));
        assert_eq!(response.bytes().await.unwrap(), encode(values.clone(), shape, windows).0);
    }

    // A video file of odd size, and a picture as a clip of one frame.
    let pictures: Vec<Vec<u8>> = (0..5).map(|time| vec![40 * time + 20; 33 * 19 * 3]).collect();
    let mut encoder = Mp4Encoder::new(33, 19, &Mp4Options::default()).unwrap();
    for picture in &pictures {
        encoder.push_rgb(picture).unwrap();
    }
    let file = encoder.finish().unwrap();
    let response = server.post("/", file.clone()).send().await.unwrap();
    assert_eq!(header(&response, "shape"), Some("[1,4,2,2,4]"));
    let frames: Vec<_> = read_mp4(&file)
        .frames
        .into_iter()
        .map(|frame| media::resize_to_multiple(frame, 8).unwrap())
        .collect();
    let (expected, _) = encode(media::clip_to_model_range(&frames), [1, 3, 5, 16, 32], Windows::default());
    assert_eq!(response.bytes().await.unwrap(), expected);
    let picture = media::encode_png(&pictures[1][..16 * 8 * 3], 16, 8).unwrap();
    let response = server.post("/", picture).send().await.unwrap();
    assert_eq!(header(&response, "shape"), Some("[1,4,1,1,2]"));
    let halves = elements_from_bytes(Dtype::Float16, &response.bytes().await.unwrap());
    assert!(halves.iter().all(|value| value.is_finite()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_model_of_videos_cannot_do_is_refused_with_what_it_expects() {
    let mut limited = options();
    limited.limits.max_frames = 40;
    limited.limits.max_pixels = 1 << 16;
    let server = TestServer::with(limited, vec![("default", hunyuan())]).await;
    let cases: [(&[usize], &str, u16, &str); 14] = [
        (&[1, 5, 3, 4, 6], "output_type=pt", 400, "[batch, 4, frames, height, width]"),
        (&[1, 4, 3, 4, 6, 1], "output_type=pt", 400, "[batch, 4, frames, height, width]"),
        (&[1, 4, 6], "output_type=pt&height=8&width=8", 400, "[batch, 4, frames, height, width]"),
        (&[1, 4, 0, 4, 6], "output_type=pt", 400, "shape"),
        (&SHAPE, "output_type=pil&image_format=png", 400, "these latents give 9"),
        (&[2, 4, 3, 4, 6], "output_type=mp4", 400, "batch of 1"),
        (&SHAPE, "output_type=mp4&fps=0", 400, "`fps` from 0.1 to 240"),
        (&SHAPE, "output_type=mp4&crf=60", 400, "`crf` from 12 to 51"),
        (&SHAPE, "output_type=mp4&windows=sometimes", 400, "`on` or `off`"),
        (&[1, 4, 11, 1, 1], "output_type=pt", 413, "at most 40 frames. Got 41"),
        (&[1, 4, 3, 10, 12], "output_type=pt", 413, "1 clip(s) of 9 frames of 96x80"),
        (&[1, 3, 6, 8, 8], "", 400, "1 frame more than a multiple of 4"),
        (&[1, 3, 41, 8, 8], "", 413, "at most 40 frames. Got 41"),
        (&[1, 3, 5, 7, 8], "", 400, "at least 8x8"),
    ];
    for (shape, ask, status, expected) in cases {
        let (body, _) = latents(shape, 2);
        let path = format!("/?{ask}&{}", tensor_query(shape, Dtype::Float16));
        let (found, message) = refusal(server.post(&path, body).send().await.unwrap()).await;
        assert!(found == status && message.contains(expected), "{shape:?} {ask}: {found} {message}");
    }
    // Files are checked before they are unpacked.
    let video = |width, height, frames| {
        let mut encoder = Mp4Encoder::new(width, height, &Mp4Options::default()).unwrap();
        for _ in 0..frames {
            encoder.push_rgb(&vec![9; width * height * 3]).unwrap();
        }
        encoder.finish().unwrap()
    };
    for (file, status, expected) in [
        (video(16, 16, 6), 400, "1 frame more than a multiple of 4"),
        (video(16, 16, 45), 413, "at most 40 frames"),
        (video(96, 80, 9), 413, "at most 196608 bytes"),
        (b"\0\0\0\x10ftypisom\0\0\0\0".to_vec(), 400, "readable MP4"),
    ] {
        let (found, message) = refusal(server.post("/", file).send().await.unwrap()).await;
        assert!(found == status && message.contains(expected), "{found} {message}");
    }
    let (found, message) =
        refusal(server.post("/?output_type=pt", video(16, 16, 1)).send().await.unwrap()).await;
    assert!(found == 400 && message.contains("`output_type`"), "{message}");

    // Models of pictures.
    let pictures = TestServer::start().await;
    let (body, _) = latents(&SHAPE, 3);
    let response = pictures.raw(&tensor_query(&SHAPE, Dtype::Float16), body).await;
    assert_eq!(response.status(), 400);
    let (found, message) = refusal(pictures.post("/", video(16, 16, 1)).send().await.unwrap()).await;
    assert!(found == 400 && message.contains("pictures"), "{message}");
    let shape = [1, 4, 2, 2];
    let (body, _) = latents(&shape, 3);
    for (ask, expected) in [
        ("windows=on", Some("no `windows`")),
        ("tiling=on&tile_overlap_factor=0.9", Some("from 0 to 0.5, got 0.9")),
        ("tiling=diffusers&tile_latent_min_size=12&tile_sample_min_size=64", Some("do not meet")),
        (
            "tile_latent_min_size=32",
            Some("`tile_latent_min_size` is for tiles: expected `tiling=diffusers` with it. Got no `tiling`"),
        ),
        ("tiling=off&tile_overlap_factor=0.9", Some("Got `tiling=off`")),
        ("tile_sample_min_size=64&tiling=off", Some("`tile_sample_min_size` is for tiles")),
        ("tiling=off&windows=off", None),
    ] {
        let query = format!("output_type=pt&{ask}&{}", tensor_query(&shape, Dtype::Float16));
        let response = pictures.raw(&query, body.clone()).await;
        match expected {
            None => assert_eq!(response.status(), 200),
            Some(expected) => {
                let (found, message) = refusal(response).await;
                assert!(found == 400 && message.contains(expected), "{message}");
            }
        }
    }
    let query = tensor_query(&shape, Dtype::Float16);
    let response =
        pictures.post(&format!("/?{query}"), body).header("accept", "image/webp").send().await.unwrap();
    assert_eq!(header(&response, "content-type"), Some("image/webp"));
    assert!(response.bytes().await.unwrap().starts_with(b"RIFF"));
}
