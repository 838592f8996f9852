//! Queries, scaling, classification and JSON bodies, as each generation of client sends them.

use proptest::prelude::*;

use crate::{
    BodyKind, Dtype, ImageFormat, ImageKind, Operation, OutputType, Parameters, Scaling, TileSizes,
    WireError, base64_file, classify, image_body, image_signature, unwrap_json_body, video_body,
    video_signature,
};

fn query(text: &str) -> Parameters {
    Parameters::from_query(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The current client's request, as captured.
const CAPTURED: &str = "image_format=jpg&output_type=pil&partial_postprocess=False&shape=1&shape=4&shape=64&shape=64\
    &dtype=float16&scaling_factor=0.18215";

#[test]
fn captured_query_reads_and_writes() {
    let parameters = query(CAPTURED);
    let expected = Parameters {
        shape: Some(vec![1, 4, 64, 64]),
        dtype: Some(Dtype::Float16),
        output_type: Some(OutputType::Pil),
        image_format: Some(ImageFormat::Jpeg),
        scaling_factor: Some(0.18215),
        ..Parameters::default()
    };
    assert_eq!(parameters, expected);
    assert_eq!(parameters.to_query(), CAPTURED);
    assert_eq!(query(&format!("?{CAPTURED}")), expected);
    assert_eq!(parameters.tensor_header().map(|header| header.byte_len()), Ok(Ok(32768)));
}

#[test]
fn every_key_is_written_in_the_clients_order() {
    let all = "image_format=png&output_type=pt&partial_postprocess=True&shape=1&shape=4096&shape=64&dtype=bfloat16\
        &scaling_factor=0.3611&shift_factor=0.1159&height=1024&width=1024&output=preview&precision=fast&fps=24.0&crf=30\
        &windows=off&tiling=on&tile_sample_min_size=256&tile_latent_min_size=32&tile_overlap_factor=0.25\
        &output_dtype=float32&seed=13&sample=True&moments=True";
    assert_eq!(query(all).to_query(), all);
    let deprecated = "image_format=jpg&output_type=pil&partial_postprocess=False&shape=1&dtype=uint8\
        &shift_factor=0.5&do_scaling=True";
    assert_eq!(query(deprecated).to_query(), deprecated);
    let encode = "scaling_factor=0.3611&shift_factor=0.1159&shape=1&shape=3&shape=8&shape=8&dtype=float32";
    assert_eq!(query(encode).to_query(), encode);
    assert_eq!(Parameters::default().to_query(), "");
    assert_eq!(query(""), Parameters::default());
}

#[test]
fn floats_are_written_as_python_prints_them() {
    for (value, text) in [
        (0.18215, "0.18215"),
        (1.0, "1.0"),
        (-2.5, "-2.5"),
        (0.0001, "0.0001"),
        (0.00001, "1e-05"),
        (1.5e-7, "1.5e-07"),
        (1e15, "1000000000000000.0"),
        (1e16, "1e%2B16"),
        (-1e22, "-1e%2B22"),
        (1.25e30, "1.25e%2B30"),
    ] {
        let parameters = Parameters { scaling_factor: Some(value), ..Parameters::default() };
        assert_eq!(parameters.to_query(), format!("scaling_factor={text}"));
        assert_eq!(query(&parameters.to_query()), parameters);
    }
}

#[test]
fn values_in_every_spelling() {
    for (text, value) in [
        ("True", true),
        ("true", true),
        ("TRUE", true),
        ("1", true),
        ("False", false),
        ("fAlSe", false),
        ("0", false),
    ] {
        assert_eq!(query(&format!("do_scaling={text}")).do_scaling, Some(value), "{text}");
        assert_eq!(query(&format!("partial_postprocess={text}")).partial_postprocess, value, "{text}");
        assert_eq!(query(&format!("sample={text}")).sample, Some(value), "{text}");
    }
    for (text, value) in
        [("1e-05", 1e-5), ("1E-5", 1e-5), ("1e%2B2", 100.0), ("-0.5", -0.5), ("2", 2.0), (".5", 0.5)]
    {
        assert_eq!(query(&format!("scaling_factor={text}")).scaling_factor, Some(value), "{text}");
    }
    // A bare plus sign is a space in a query; around a number it does no harm.
    assert_eq!(query("scaling_factor=+0.5").scaling_factor, Some(0.5));
    assert_eq!(query("shift_factor=0").shift_factor, Some(0.0));
    assert_eq!(query("image_format=jpeg").image_format, Some(ImageFormat::Jpeg));
    assert_eq!(query("dtype=%66loat16").dtype, Some(Dtype::Float16));
    assert!(query("output=Preview").preview && !query("output=picture").preview);
    assert_eq!(query("precision=a+b%20c").precision.as_deref(), Some("a b c"));
    assert_eq!(query("height=None&scaling_factor=None&shape=None"), Parameters::default());
    assert_eq!(query("dtype=uint8&dtype=uint8").dtype, Some(Dtype::Uint8));
    let unknown = "input_tensor_type=binary&output_tensor_type=base64&x&=&&y=%ff&shape_factor=3";
    assert_eq!(query(unknown), Parameters::default());
}

#[test]
fn shapes_in_every_spelling() {
    for text in [
        "shape=1&shape=4&shape=151&shape=233",
        "shape=1&dtype=uint8&shape=4&shape=151&x=1&shape=233",
        "shape=[1,4,151,233]",
        "shape=%5B1%2C+4%2C%20151%2C+233%5D",
        "shape=(1,4,151,233)",
        "shape=1,4,151,233",
    ] {
        assert_eq!(query(text).shape, Some(vec![1, 4, 151, 233]), "{text}");
    }
    assert_eq!(query("shape=64").shape, Some(vec![64]));
    assert_eq!(query("shape=[64]").shape, Some(vec![64]));
    assert_eq!(query("shape=0&shape=4").shape, Some(vec![0, 4]));
}

#[test]
fn wrong_values_are_refused_by_name() {
    for text in [
        "scaling_factor=0",
        "scaling_factor=-0.0",
        "scaling_factor=1e-60",
        "scaling_factor=nan",
        "scaling_factor=inf",
        "scaling_factor=-Infinity",
        "scaling_factor=1e39",
        "scaling_factor=1e999",
        "scaling_factor=",
        "scaling_factor=0,18",
        "shift_factor=NaN",
        "shift_factor=x",
        "do_scaling=yes",
        "do_scaling=",
        "partial_postprocess=2",
        "output_type=np",
        "image_format=gif",
        "height=-8",
        "height=8.0",
        "width=",
        "width=99999999999999999999999",
        "seed=-1",
        "shape=",
        "shape=-1",
        "shape=1.5",
        "shape=[1",
        "shape=[1]&shape=2",
        "shape=2&shape=[1]",
        "shape=1,2&shape=3,4",
        "shape=18446744073709551616",
        "output=sketch",
        "precision=0123456789012345678901234567890123456789012345678901234567890123456789",
    ] {
        let name = text.split('=').next().unwrap_or("");
        let message = Parameters::from_query(text).expect_err(text).to_string();
        assert!(message.contains(&format!("`{name}`")), "{text}: {message}");
    }
    assert!(matches!(
        Parameters::from_query("dtype=x"),
        Err(WireError::UnsupportedDtype { found }) if found == "x"
    ));
    assert!(matches!(
        Parameters::from_query(&"shape=1&".repeat(9)),
        Err(WireError::TooManyDimensions { limit: 8 })
    ));
    assert_eq!(
        Parameters::from_query("dtype=uint8&dtype=float16").unwrap_err().to_string(),
        "Expected one value of `dtype`. Got `uint8` and `float16`."
    );
    let long = format!("dtype={}%0A", "é".repeat(100));
    assert!(Parameters::from_query(&long).unwrap_err().to_string().chars().count() < 140);
}

#[test]
fn missing_tensor_parameters_have_the_original_texts() {
    let message = |text: &str| query(text).tensor_header().unwrap_err().to_string();
    assert_eq!(message("shape=1"), "Expected `dtype` in query params.");
    assert_eq!(message(""), "Expected `dtype` in query params.");
    assert_eq!(message("dtype=float16"), "Expected `shape` in query params.");
}

#[test]
fn scaling_truth_table() {
    let explicit = |scale, shift| Scaling::Explicit { scale, shift };
    for (text, expected) in [
        ("scaling_factor=0.18215", explicit(0.18215, None)),
        ("scaling_factor=0.3611&shift_factor=0.1159", explicit(0.3611, Some(0.1159))),
        ("scaling_factor=0.3611&shift_factor=0.1159&do_scaling=True", explicit(0.3611, Some(0.1159))),
        ("do_scaling=True", Scaling::Model { shift: None }),
        ("do_scaling=1", Scaling::Model { shift: None }),
        ("do_scaling=True&shift_factor=0.1159", Scaling::Model { shift: Some(0.1159) }),
        ("do_scaling=True&shift_factor=0.0", Scaling::Model { shift: Some(0.0) }),
        ("", Scaling::None),
        ("do_scaling=False", Scaling::Declined),
        ("do_scaling=False&scaling_factor=0.5&shift_factor=1", Scaling::Declined),
        ("do_scaling=0", Scaling::Declined),
        ("shift_factor=0.1159", explicit(1.0, Some(0.1159))),
    ] {
        assert_eq!(query(text).scaling(), expected, "{text}");
    }
    for scaling in [
        Scaling::None,
        Scaling::Declined,
        Scaling::Model { shift: None },
        Scaling::Model { shift: Some(0.5) },
        explicit(2.0, None),
        explicit(2.0, Some(-1.0)),
    ] {
        let parameters =
            Parameters { do_scaling: Some(false), ..Parameters::default() }.with_scaling(scaling);
        assert_eq!(query(&parameters.to_query()).scaling(), scaling);
    }
}

#[test]
fn switches_of_clips_are_on_or_off() {
    let parameters = query("windows=off&tiling=True&fps=24&crf=30");
    assert_eq!((parameters.windows, parameters.tiling), (Some(false), Some(true)));
    assert_eq!((parameters.fps, parameters.crf), (Some(24.0), Some(30)));
    assert_eq!(query("tiling=Diffusers").tiling, Some(true));
    assert_eq!(query("tile_latent_min_size=64").tile.latent_min_size, Some(64));
    for given in ["tile_sample_min_size=64", "tile_latent_min_size=8", "tile_overlap_factor=0"] {
        assert_eq!(query(given).tile.first_given(), given.split('=').next());
    }
    assert_eq!(query("tiling=on").tile.first_given(), None);
    for (text, name) in [
        ("tile_sample_min_size=-1", "`tile_sample_min_size`"),
        ("tile_overlap_factor=nan", "`tile_overlap_factor`"),
        ("windows=maybe", "`windows`"),
        ("tiling=2", "`on` or `off`"),
        ("fps=x", "`fps`"),
        ("crf=256", "`crf`"),
    ] {
        let message = Parameters::from_query(text).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
}

#[test]
fn a_seed_implies_a_sample() {
    for (text, expected) in
        [("", false), ("seed=1", true), ("sample=True", true), ("seed=1&sample=False", false)]
    {
        assert_eq!(query(text).draws_sample(), expected, "{text}");
    }
}

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
const JPEG: &[u8] = b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01";
const WEBP: &[u8] = b"RIFF\x10\0\0\0WEBPVP8 ";
const MP4: &[u8] = b"\0\0\0\x20ftypisom";
const TENSOR: &[u8] = &[0x12; 32];

#[test]
fn signatures() {
    assert_eq!(image_signature(PNG), Some(ImageKind::Png));
    assert_eq!(image_signature(JPEG), Some(ImageKind::Jpeg));
    assert_eq!(image_signature(WEBP), Some(ImageKind::WebP));
    assert_eq!(image_signature(b"GIF89a..."), Some(ImageKind::Gif));
    for other in [&b""[..], b"\x89PNG", b"\xff\xd8", b"RIFF\x10\0\0\0WAVE", TENSOR] {
        assert_eq!(image_signature(other), None);
    }
    let with_shape = query("shape=1&shape=3&shape=8&shape=8&dtype=uint8");
    assert_eq!(image_body(&with_shape, JPEG), None);
    assert_eq!(image_body(&with_shape, PNG), Some(ImageKind::Png));
    assert_eq!(image_body(&Parameters::default(), JPEG), Some(ImageKind::Jpeg));
    assert!(video_signature(MP4) && video_body(&Parameters::default(), MP4));
    assert!(!video_body(&with_shape, MP4) && !video_signature(TENSOR) && !video_signature(b""));
}

#[test]
fn content_types() {
    for (value, kind) in [
        (None, BodyKind::Unstated),
        (Some(""), BodyKind::Unstated),
        (Some("tensor/binary"), BodyKind::TensorBinary),
        (Some("Tensor/Binary; x=y"), BodyKind::TensorBinary),
        (Some("tensor/base64"), BodyKind::TensorBase64),
        (Some("application/json; charset=utf-8"), BodyKind::Json),
        (Some("image/png"), BodyKind::Image),
        (Some("video/mp4"), BodyKind::Video),
        (Some("application/x-www-form-urlencoded"), BodyKind::Unstated),
        (Some("application/octet-stream"), BodyKind::Unstated),
        (Some("text/plain"), BodyKind::Unstated),
    ] {
        assert_eq!(BodyKind::from_content_type(value), kind, "{value:?}");
    }
}

#[test]
fn decode_and_encode_are_told_apart() {
    use BodyKind::{Image, Json, TensorBase64, TensorBinary, Unstated, Video};
    let pixels = "shape=1&shape=3&shape=64&shape=64&dtype=float32";
    let latents = "shape=1&shape=4&shape=64&shape=64&dtype=float32";
    for (text, kind, body, expected) in [
        // v2, v1 and SD.Next decodes, v1.5 without headers, kijai's wrong sizes on video latents
        (CAPTURED, TensorBinary, TENSOR, Operation::Decode),
        (
            "do_scaling=True&output_type=pil&shape=1&shape=4&dtype=float16",
            TensorBase64,
            TENSOR,
            Operation::Decode,
        ),
        (CAPTURED, Unstated, TENSOR, Operation::Decode),
        (
            "output_type=pt&shape=1&shape=16&shape=3&shape=40&shape=64&height=24&width=320",
            TensorBinary,
            TENSOR,
            Operation::Decode,
        ),
        // `output_type` wins over three channels and over bytes that look like a JPEG
        ("output_type=pt&shape=1&shape=3&shape=8&shape=8&dtype=uint8", TensorBinary, JPEG, Operation::Decode),
        // v0
        ("", Json, TENSOR, Operation::Decode),
        ("shape=1&shape=3&shape=8&shape=8", Json, TENSOR, Operation::Decode),
        // encodes
        ("", Unstated, PNG, Operation::Encode),
        ("scaling_factor=0.3611&shift_factor=0.1159", Unstated, PNG, Operation::Encode),
        ("", Unstated, JPEG, Operation::Encode),
        ("", Unstated, WEBP, Operation::Encode),
        ("", TensorBinary, PNG, Operation::Encode),
        ("", Image, b"BM", Operation::Encode),
        ("", Unstated, MP4, Operation::Encode),
        ("", Video, TENSOR, Operation::Encode),
        ("shape=1&shape=3&shape=5&shape=8&shape=8&dtype=uint8", Unstated, TENSOR, Operation::Encode),
        (pixels, Unstated, TENSOR, Operation::Encode),
        (pixels, TensorBase64, TENSOR, Operation::Encode),
        (pixels, Unstated, JPEG, Operation::Encode),
        ("shape=3&shape=64&shape=64&dtype=float32", Unstated, TENSOR, Operation::Encode),
        // decodes by hand
        ("shape=3&shape=64&shape=64&dtype=float32&height=128&width=128", Unstated, TENSOR, Operation::Decode),
        (latents, Unstated, TENSOR, Operation::Decode),
        (latents, TensorBinary, JPEG, Operation::Decode),
        (latents, TensorBinary, MP4, Operation::Decode),
        ("", Unstated, TENSOR, Operation::Decode),
        ("", Unstated, b"", Operation::Decode),
    ] {
        assert_eq!(classify(&query(text), kind, body), Ok(expected), "{text} {kind:?} {body:?}");
    }
    for (kind, body) in
        [(Image, TENSOR), (Video, TENSOR), (Unstated, PNG), (Unstated, MP4), (TensorBinary, JPEG)]
    {
        assert_eq!(classify(&query("output_type=pil"), kind, body), Err(WireError::ImageForDecode));
    }
}

/// Base64 text of `bytes`, with its quotes.
fn quoted(bytes: &[u8]) -> String {
    base64_file(bytes)
}

#[test]
fn oldest_json_body_scales_by_the_model() {
    let body = format!(
        r#"{{"inputs": {}, "parameters": {{"shape": [1, 4096, 64], "dtype": "float32", "height": 1024, "width": 1024}}}}"#,
        quoted(TENSOR)
    );
    let mut parameters = Parameters::default();
    assert_eq!(unwrap_json_body(body.as_bytes(), &mut parameters).as_deref(), Ok(TENSOR));
    let expected = Parameters {
        shape: Some(vec![1, 4096, 64]),
        dtype: Some(Dtype::Float32),
        height: Some(1024),
        width: Some(1024),
        do_scaling: Some(true),
        ..Parameters::default()
    };
    assert_eq!(parameters, expected);
    assert_eq!(parameters.scaling(), Scaling::Model { shift: None });
}

#[test]
fn json_members_and_query_merge() {
    for (text, members, scaling) in [
        ("", r#"{"do_scaling": false}"#, Scaling::Declined),
        ("", r#"{"do_scaling": "True"}"#, Scaling::Model { shift: None }),
        ("", r#"{"scaling_factor": 0.5}"#, Scaling::Explicit { scale: 0.5, shift: None }),
        ("", r#"{"scaling_factor": null, "height": null}"#, Scaling::Model { shift: None }),
        ("do_scaling=False", r#"{"do_scaling": true}"#, Scaling::Declined),
        ("", r#"{"unknown": {"x": []}}"#, Scaling::Model { shift: None }),
        ("", r#"{}"#, Scaling::Model { shift: None }),
        ("", "null", Scaling::None),
    ] {
        let mut parameters = query(text);
        let body = format!(r#"{{"parameters": {members}, "inputs": "AAAA", "more": 1}}"#);
        assert_eq!(unwrap_json_body(body.as_bytes(), &mut parameters), Ok(vec![0; 3]), "{members}");
        assert_eq!(parameters.scaling(), scaling, "{text} {members}");
    }
    let mut parameters = query("shape=9&output_type=pt");
    let body = r#"{"inputs": "", "parameters": {"shape": [1, 2], "dtype": "uint8", "output_type": "pil"}}"#;
    assert_eq!(unwrap_json_body(body.as_bytes(), &mut parameters), Ok(vec![]));
    assert_eq!(parameters.shape, Some(vec![9]));
    assert_eq!(parameters.dtype, Some(Dtype::Uint8));
    assert_eq!(parameters.output_type, Some(OutputType::Pt));
}

#[test]
fn base64_body_leaves_the_query_alone() {
    let mut parameters = query("do_scaling=False&output_type=pil&shape=1&dtype=float16");
    let before = parameters.clone();
    let body = format!(r#"{{"inputs": {}}}"#, quoted(TENSOR));
    assert_eq!(unwrap_json_body(body.as_bytes(), &mut parameters).as_deref(), Ok(TENSOR));
    assert_eq!(parameters, before);
    // Line breaks, as some encoders write, and escapes are understood.
    let mut silent = Parameters::default();
    assert_eq!(unwrap_json_body(br#"{"inputs": "AA\nA\u0041\n"}"#, &mut silent), Ok(vec![0; 3]));
    assert_eq!(silent.scaling(), Scaling::None);
}

/// What is unknown is not kept: a reader that kept it would refuse this depth.
#[test]
fn unknown_json_members_are_skipped() {
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let wide = format!("[{}1]", "1,".repeat(100_000));
    let body = format!(
        r#"{{"x": {deep}, "inputs": "AAAA", "parameters": {{"a": {deep}, "height": 16, "b": {{"c": {wide}}},
        "shape": [1, 3], "width": "24"}}, "y": {wide}}}"#
    );
    let mut parameters = Parameters::default();
    assert_eq!(unwrap_json_body(body.as_bytes(), &mut parameters), Ok(vec![0; 3]));
    assert_eq!(parameters.shape, Some(vec![1, 3]));
    assert_eq!((parameters.height, parameters.width), (Some(16), Some(24)));
    // A known member of the wrong kind is named, however large it is.
    for (members, name) in [
        (format!(r#"{{"height": {wide}}}"#), "height"),
        (format!(r#"{{"dtype": {{"a": {wide}}}}}"#), "dtype"),
        (format!(r#"{{"shape": {wide}}}"#), "shape"),
        (format!(r#"{{"shape": [{wide}]}}"#), "shape"),
        (format!(r#"{{"precision": "{}"}}"#, "x".repeat(100_000)), "precision"),
    ] {
        let body = format!(r#"{{"parameters": {members}, "inputs": "AAAA"}}"#);
        let message = unwrap_json_body(body.as_bytes(), &mut Parameters::default()).unwrap_err().to_string();
        assert!(message.contains(name) && message.chars().count() < 200, "{message}");
    }
}

#[test]
fn base64_may_be_broken_into_lines() {
    let bytes: Vec<u8> = (0..10_000).map(|index| (index % 251) as u8).collect();
    let text = base64_file(&bytes);
    let text = text.trim_matches('"');
    let lines: Vec<&str> =
        text.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap_or("")).collect();
    let body = format!(r#"{{"inputs": "{}"}}"#, lines.join("\\n"));
    assert_eq!(unwrap_json_body(body.as_bytes(), &mut Parameters::default()), Ok(bytes));
    for wrong in ["AA==\\nAAAA", "AAA\\n", "AA\\n!A"] {
        let body = format!(r#"{{"inputs": "{wrong}"}}"#);
        let result = unwrap_json_body(body.as_bytes(), &mut Parameters::default());
        assert!(matches!(result, Err(WireError::InvalidBase64 { .. })), "{wrong} {result:?}");
    }
}

#[test]
fn wrong_json_bodies_are_refused() {
    for body in [
        &b""[..],
        b"null",
        b"[]",
        b"\"AAAA\"",
        b"{}",
        br#"{"inputs": 1}"#,
        br#"{"inputs": "AAAA""#,
        br#"{"inputs": "AAAA", "parameters": []}"#,
        b"\xff\xfe",
    ] {
        let result = unwrap_json_body(body, &mut Parameters::default());
        assert!(matches!(result, Err(WireError::InvalidJson { .. })), "{body:?} {result:?}");
    }
    for inputs in ["A", "AAA", "A===", "!!!!", "AA-_"] {
        let body = format!(r#"{{"inputs": "{inputs}"}}"#);
        let result = unwrap_json_body(body.as_bytes(), &mut Parameters::default());
        assert!(matches!(result, Err(WireError::InvalidBase64 { .. })), "{inputs} {result:?}");
    }
    for members in [
        r#"{"shape": 4}"#,
        r#"{"shape": [1.5]}"#,
        r#"{"shape": [-1]}"#,
        r#"{"shape": [[1]]}"#,
        r#"{"shape": [1,1,1,1,1,1,1,1,1]}"#,
        r#"{"dtype": 16}"#,
        r#"{"scaling_factor": 0}"#,
        r#"{"scaling_factor": 1e400}"#,
        r#"{"height": -1}"#,
        r#"{"do_scaling": []}"#,
    ] {
        let body = format!(r#"{{"inputs": "AAAA", "parameters": {members}}}"#);
        assert!(unwrap_json_body(body.as_bytes(), &mut Parameters::default()).is_err(), "{members}");
    }
}

fn parameters() -> impl Strategy<Value = Parameters> {
    let factor = || prop::option::of(prop::num::f32::NORMAL.prop_map(f64::from));
    let side = || prop::option::of(any::<usize>());
    let tensor =
        (prop::option::of(prop::collection::vec(any::<usize>(), 1..=8)), prop::option::of(0..4usize));
    let output = (prop::option::of(0..3usize), prop::option::of(0..3usize), any::<bool>(), any::<bool>());
    let scaling = (prop::option::of(any::<bool>()), factor(), factor());
    let clip = (
        factor(),
        prop::option::of(any::<u8>()),
        prop::option::of(any::<bool>()),
        prop::option::of(any::<bool>()),
        (side(), side(), factor()),
    );
    let float = prop::option::of(prop::sample::select(vec![Dtype::Float16, Dtype::Float32]));
    let draw = (prop::option::of(any::<u64>()), prop::option::of(any::<bool>()), any::<bool>(), float);
    let encode = (prop::option::of("[ -~]{1,20}"), draw);
    (tensor, output, scaling, side(), side(), encode, clip).prop_map(
        |(
            (shape, dtype),
            (output, format, partial, preview),
            scaling,
            height,
            width,
            (precision, draw),
            clip,
        )| {
            Parameters {
                shape,
                dtype: dtype.map(|index| Dtype::ALL[index]),
                output_type: output.map(|index| [OutputType::Pil, OutputType::Pt, OutputType::Mp4][index]),
                image_format: format
                    .map(|index| [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Webp][index]),
                partial_postprocess: partial,
                do_scaling: scaling.0,
                scaling_factor: scaling.1,
                shift_factor: scaling.2,
                height,
                width,
                preview,
                precision: precision.filter(|text| text != "None"),
                fps: clip.0,
                crf: clip.1,
                windows: clip.2,
                tiling: clip.3,
                tile: TileSizes {
                    sample_min_size: clip.4.0,
                    latent_min_size: clip.4.1,
                    overlap_factor: clip.4.2,
                },
                output_dtype: draw.3,
                seed: draw.0,
                sample: draw.1,
                moments: draw.2,
            }
        },
    )
}

proptest! {
    #[test]
    fn queries_round_trip(parameters in parameters()) {
        prop_assert_eq!(Parameters::from_query(&parameters.to_query()), Ok(parameters));
    }

    #[test]
    fn any_query_is_read_or_refused(text in ".{0,200}") {
        let _ = Parameters::from_query(&text);
    }

    #[test]
    fn known_keys_with_any_value_are_read_or_refused(
        pairs in prop::collection::vec((0..23usize, "[-+%.,0-9a-fA-FxeINn\\[\\]()]{0,12}"), 0..12)
    ) {
        const KEYS: [&str; 23] = ["shape", "shape", "image_format", "output_type", "partial_postprocess", "dtype",
            "scaling_factor", "shift_factor", "do_scaling", "height", "width", "output", "precision", "seed", "sample",
            "fps", "crf", "windows", "tiling", "tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor",
            "output_dtype"];
        let text: Vec<String> = pairs.iter().map(|(key, value)| format!("{}={value}", KEYS[*key])).collect();
        if let Ok(parameters) = Parameters::from_query(&text.join("&")) {
            prop_assert!(parameters.scaling_factor.is_none_or(|scale| scale.is_finite() && scale != 0.0));
            prop_assert!(parameters.shift_factor.is_none_or(f64::is_finite));
            let _ = parameters.tensor_header().map(|header| header.byte_len());
            let _ = classify(&parameters, BodyKind::Unstated, b"");
        }
    }

    #[test]
    fn any_body_is_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200), content_type in ".{0,30}") {
        let mut parameters = Parameters::default();
        let _ = unwrap_json_body(&body, &mut parameters);
        let _ = classify(&parameters, BodyKind::from_content_type(Some(&content_type)), &body);
    }

    #[test]
    fn any_json_object_is_read_or_refused(inputs in "[A-Za-z0-9+/=]{0,40}", members in "[ -~]{0,60}") {
        let body = format!(r#"{{"inputs": "{inputs}", "parameters": {{{members}}}}}"#);
        let _ = unwrap_json_body(body.as_bytes(), &mut Parameters::default());
    }
}
