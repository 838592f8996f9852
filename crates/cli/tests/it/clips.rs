//! Clips through files: latents to videos, animations, frames and tensors, and back.

use std::path::Path;

use remote_vae_media::{DecodeLimits, Video, VideoLimits, decode_image, decode_mp4};
use remote_vae_wire::{Dtype, bytes_from_elements};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::support::{Serving, failure, photograph, stdout};

/// The small random model of the engine's golden files.
const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/tests/golden_video/hunyuan");

fn read_mp4(path: &Path) -> Video {
    let frames = DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 26 };
    decode_mp4(&std::fs::read(path).unwrap(), &VideoLimits { frames, max_frames: 100 }).unwrap()
}

/// Writes smooth latents of this shape.
fn write_latents(path: &Path, shape: &[usize]) {
    let values: Vec<f32> = (0..shape.iter().product()).map(|at| ((at % 17) as f32 - 8.0) / 16.0).collect();
    let bytes = bytes_from_elements(Dtype::Float16, &values);
    let view = TensorView::new(safetensors::Dtype::F16, shape.to_vec(), &bytes).unwrap();
    std::fs::write(path, safetensors::serialize([("latents", view)], None).unwrap()).unwrap();
}

fn shape_and_bytes(path: &Path, name: &str) -> (Vec<usize>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    (tensor.shape().to_vec(), tensor.data().to_vec())
}

#[test]
fn clips_become_files_and_files_become_clips() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let command = |arguments: &[&str]| stdout(folder.path(), &[arguments, &["--model", MODEL]].concat());
    // Five frames of latents are 17 of pixels, in two windows.
    write_latents(&path("clip.safetensors"), &[1, 4, 5, 2, 3]);
    command(&["decode", "clip.safetensors", "-o", "clip.mp4", "--fps", "24", "--crf", "12"]);
    let video = read_mp4(&path("clip.mp4"));
    let first = &video.frames[0];
    assert_eq!((video.frames.len(), video.fps, first.width, first.height), (17, 24.0, 24, 16));

    command(&["decode", "clip.safetensors", "-o", "frames"]);
    command(&["decode", "clip.safetensors", "-o", "clip.webp"]);
    let limits = DecodeLimits { max_pixels: 1 << 20, max_bytes: 1 << 26 };
    let picture = |name: &str| decode_image(&std::fs::read(path(name)).unwrap(), &limits).unwrap();
    assert_eq!(std::fs::read_dir(path("frames")).unwrap().count(), 17);
    assert_eq!(picture("frames/frame-0000.png"), picture("clip.webp"));
    assert_ne!(picture("frames/frame-0000.png"), picture("frames/frame-0016.png"));

    command(&["decode", "clip.safetensors", "-o", "cut.safetensors"]);
    command(&["decode", "clip.safetensors", "-o", "whole.safetensors", "--windows", "off"]);
    let (shape, cut) = shape_and_bytes(&path("cut.safetensors"), "pixels");
    assert_eq!(shape, [1, 3, 17, 16, 24]);
    assert_ne!(shape_and_bytes(&path("whole.safetensors"), "pixels"), (shape, cut));

    // A batch of two, one frame each.
    write_latents(&path("two.safetensors"), &[2, 4, 1, 2, 3]);
    command(&["decode", "two.safetensors", "-o", "two.png"]);
    assert_eq!(picture("two-1.png").width, 24);

    command(&["encode", "clip.mp4", "-o", "back.safetensors"]);
    assert_eq!(shape_and_bytes(&path("back.safetensors"), "latents").0, [1, 4, 5, 2, 3]);
    command(&["encode", "clip.mp4", "-o", "start.safetensors", "--frames", "9"]);
    assert_eq!(shape_and_bytes(&path("start.safetensors"), "latents").0, [1, 4, 3, 2, 3]);
    command(&["encode", photograph(), "-o", "still.safetensors"]);
    assert_eq!(shape_and_bytes(&path("still.safetensors"), "latents").0[..3], [1, 4, 1]);
}

#[test]
fn a_server_does_the_work_on_clips() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let server = Serving::start(&["--model", MODEL]);
    write_latents(&path("clip.safetensors"), &[1, 4, 5, 2, 3]);
    for place in [["--url", &server.url], ["--model", MODEL]] {
        let name = format!("{}.mp4", place[0].trim_start_matches('-'));
        let arguments = ["decode", "clip.safetensors", "--windows", "off", "-o", &name];
        stdout(folder.path(), &[&arguments[..], &place].concat());
    }
    // The numbers travel as float16, from which pixels are made here as there.
    assert_eq!(std::fs::read(path("url.mp4")).unwrap(), std::fs::read(path("model.mp4")).unwrap());
    stdout(folder.path(), &["encode", "url.mp4", "-o", "back.safetensors", "--url", &server.url]);
    assert_eq!(shape_and_bytes(&path("back.safetensors"), "latents").0, [1, 4, 5, 2, 3]);
}

#[test]
fn what_clips_cannot_be_is_said() {
    let folder = tempfile::tempdir().unwrap();
    write_latents(&folder.path().join("clip.safetensors"), &[1, 4, 5, 2, 3]);
    write_latents(&folder.path().join("picture.safetensors"), &[1, 4, 2, 3]);
    stdout(folder.path(), &["decode", "clip.safetensors", "-o", "clip.mp4", "--model", MODEL]);
    for (arguments, expected) in [
        (&["decode", "clip.safetensors", "-o", "a.png", "--model", MODEL][..], "these latents give 17"),
        (&["decode", "clip.safetensors", "-o", "a.mp4", "--fps", "0", "--model", MODEL], "`fps` from 0.1"),
        (&["decode", "clip.safetensors", "-o", "a.avi", "--model", MODEL], "a.avi"),
        (&["decode", "clip.safetensors", "-o", "a.mp4"], "clip.safetensors"),
        (&["decode", "picture.safetensors", "-o", "a.mp4"], "a.mp4 is for clips"),
        (&["decode", "picture.safetensors", "-o", "a.png", "--windows", "on"], "--windows"),
        (&["encode", "clip.mp4", "-o", "b.safetensors"], "is a video"),
        (&["encode", "clip.mp4", "-o", "b.safetensors", "--frames", "8", "--model", MODEL], "multiple of 4"),
        (&["encode", "clip.mp4", "-o", "b.safetensors", "--frames", "21", "--model", MODEL], "has 17 frames"),
        (&["plan", MODEL, "--frames", "8"], "multiple of 4"),
        (&["plan", "--tile-latent-min-size", "32"], "--tiling <on|off|diffusers>"),
        (
            &["decode", "picture.safetensors", "-o", "a.png", "--tile-overlap-factor", "0.9"],
            "--tiling <on|off|",
        ),
        (&["plan", "--tiling", "off", "--tile-latent-min-size", "32"], "--tile-latent-min-size is for tiles"),
        (&["plan", "--frames", "9"], "models of videos"),
    ] {
        let (_, message) = failure(folder.path(), arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

#[test]
fn pictures_in_tiles_are_planned_timed_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write_latents(&path("picture.safetensors"), &[1, 4, 20, 24]);
    let tiles = ["--tiling", "diffusers", "--tile-latent-min-size", "16"];
    let run = |arguments: &[&str]| stdout(folder.path(), &[arguments, &tiles[..]].concat());
    let json = |arguments: &[&str]| -> serde_json::Value { serde_json::from_str(&run(arguments)).unwrap() };
    for operation in [&[][..], &["--encode"]] {
        let plan = json(&[&["plan", "--size", "192x160", "--json"][..], operation].concat());
        // 24 latents are tiles of 16 and 12, 20 of 16 and 8.
        let count = |part: &serde_json::Value| part["count"].as_u64().unwrap();
        assert_eq!(plan["parts"].as_array().unwrap().iter().map(count).sum::<u64>(), 4);
    }
    for operation in ["decode", "encode"] {
        let bench = json(&["bench", "--size", "192x160", "--runs", "1", "--op", operation, "--json"]);
        assert!(bench["gflop"].as_f64().unwrap() > 0.0);
    }
    run(&["decode", "picture.safetensors", "-o", "tiled.safetensors"]);
    stdout(folder.path(), &["decode", "picture.safetensors", "-o", "whole.safetensors"]);
    let server = Serving::start(&[]);
    run(&["decode", "picture.safetensors", "-o", "url.safetensors", "--url", &server.url]);
    let bytes = |name: &str| shape_and_bytes(&path(name), "pixels");
    assert_eq!(bytes("tiled.safetensors").0, [1, 3, 160, 192]);
    assert_ne!(bytes("tiled.safetensors"), bytes("whole.safetensors"));
    assert_eq!(bytes("url.safetensors").0, bytes("tiled.safetensors").0);
    let off =
        ["decode", "picture.safetensors", "-o", "off.safetensors", "--url", &server.url, "--tiling", "off"];
    let (_, message) = failure(folder.path(), &[&off[..], &["--tile-sample-min-size", "64"]].concat());
    assert!(message.contains("`tile_sample_min_size` is for tiles"), "{message}");
}

#[test]
fn clips_are_planned_and_timed() {
    let folder = tempfile::tempdir().unwrap();
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&stdout(folder.path(), arguments)).unwrap()
    };
    let size = ["--size", "48x32", "--frames", "33", "--json"];
    let plan = json(&[&["plan", MODEL][..], &size].concat());
    assert_eq!(plan["input"].to_string(), "[1,4,9,4,6]");
    assert_eq!(plan["output"].to_string(), "[1,3,33,32,48]");
    // Windows of 5, 5 and 3 frames of latents.
    let parts: Vec<(u64, u64)> = plan["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| (part["input"][1].as_u64().unwrap(), part["count"].as_u64().unwrap()))
        .collect();
    assert_eq!(parts, [(5, 2), (3, 1)]);
    let whole = json(&[&["plan", MODEL, "--windows", "off"][..], &size].concat());
    assert!(whole["plan_peak_bytes"].as_u64() > plan["plan_peak_bytes"].as_u64());
    assert_eq!(whole["parts"].as_array().unwrap().len(), 1);
    let text = stdout(folder.path(), &["plan", MODEL, "--size", "48x32", "--frames", "33"]);
    assert!(text.contains("2 parts [4, 5, 4, 6]") && text.contains("steps of the largest part"), "{text}");

    for operation in ["decode", "encode"] {
        let bench = [&["bench", "--model", MODEL, "--op", operation, "--runs", "1"][..], &size].concat();
        let report = json(&bench);
        assert_eq!(report["frames"], 33);
        assert!(report["gflop"].as_f64().unwrap() > 0.0);
    }
    let bench =
        ["bench", "--model", MODEL, "--size", "48x32", "--frames", "9", "--runs", "1", "--steps", "--json"];
    assert!(!json(&bench)["kernels"].as_array().unwrap().is_empty());
    let long = [&bench[..], &["--frames", "33"]].concat();
    let (_, message) = failure(folder.path(), &[&long[..5], &["--frames", "33", "--steps"][..]].concat());
    assert!(message.contains("--windows off"), "{message}");
}
