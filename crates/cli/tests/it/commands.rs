//! Each command once as it is meant, and what it says when it cannot.

use crate::support::{failure, photograph, run, stdout};
use remote_vae_media::{DecodeLimits, decode_image, psnr};
use std::path::Path;

fn picture(path: &Path) -> remote_vae_media::RgbImage {
    let limits = DecodeLimits { max_pixels: 1 << 24, max_bytes: 1 << 28 };
    decode_image(&std::fs::read(path).unwrap(), &limits).unwrap()
}

#[test]
fn the_demo_shows_a_recognisable_photograph() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(folder.path(), &["demo", "-o", "out"]);
    let input = picture(&folder.path().join("out/demo-input.png"));
    let output = picture(&folder.path().join("out/demo.png"));
    assert_eq!((input.width, input.height), (output.width, output.height));
    let similarity = psnr(&input.pixels, &output.pixels);
    assert!(similarity > 26.0, "{similarity} dB");
    for part in ["http://127.0.0.1:", "PSNR", "MiB", "demo.png", "--model"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn encode_and_decode_are_inverse_through_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    stdout(folder.path(), &["encode", photograph(), "-o", "latents.safetensors"]);
    stdout(folder.path(), &["decode", "latents.safetensors", "-o", "a.png"]);
    stdout(folder.path(), &["decode", "latents.safetensors", "-o", "a.jpg"]);
    stdout(folder.path(), &["decode", "latents.safetensors", "-o", "a.safetensors", "--threads", "1"]);
    let (original, png, jpeg) =
        (picture(Path::new(photograph())), picture(&path("a.png")), picture(&path("a.jpg")));
    assert!(psnr(&original.pixels, &png.pixels) > 26.0);
    assert!(psnr(&png.pixels, &jpeg.pixels) > 30.0);
    assert!(std::fs::read(path("a.jpg")).unwrap().starts_with(&[0xff, 0xd8]));

    // The same latents, unscaled both ways, give the same picture.
    stdout(folder.path(), &["encode", photograph(), "-o", "raw.safetensors", "--no-scaling"]);
    stdout(folder.path(), &["decode", "raw.safetensors", "-o", "b.png", "--no-scaling"]);
    assert!(psnr(&png.pixels, &picture(&path("b.png")).pixels) > 50.0);
    assert_ne!(
        std::fs::read(path("raw.safetensors")).unwrap(),
        std::fs::read(path("latents.safetensors")).unwrap()
    );
}

#[test]
fn a_preview_is_a_small_likeness() {
    let folder = tempfile::tempdir().unwrap();
    stdout(folder.path(), &["encode", photograph(), "-o", "latents.safetensors"]);
    stdout(folder.path(), &["decode", "latents.safetensors", "-o", "preview.png", "--preview"]);
    let original = picture(Path::new(photograph()));
    let preview = picture(&folder.path().join("preview.png"));
    assert_eq!((preview.width, preview.height), (original.width / 8, original.height / 8));
    let (width, height) = (preview.width, preview.height);
    let small = remote_vae_media::resize_lanczos(&original, width, height).unwrap();
    let similarity = psnr(&small.pixels, &preview.pixels);
    assert!(similarity > 22.0, "{similarity} dB");
}

#[test]
fn a_seed_draws_a_sample_that_repeats() {
    let folder = tempfile::tempdir().unwrap();
    let encode = |seed: &str, name: &str| {
        stdout(folder.path(), &["encode", photograph(), "-o", name, "--seed", seed]);
        std::fs::read(folder.path().join(name)).unwrap()
    };
    let first = encode("7", "a.safetensors");
    assert_eq!(first, encode("7", "b.safetensors"));
    assert_ne!(first, encode("8", "c.safetensors"));
}

#[test]
fn the_plan_lists_every_step_and_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |arguments: &[&str]| -> serde_json::Value {
        let all = [&["plan", "embedded", "--json"], arguments].concat();
        serde_json::from_str(&stdout(folder.path(), &all)).unwrap()
    };
    let number = |report: &serde_json::Value, key: &str| report[key].as_u64().unwrap();
    let one = plan(&["--size", "96x64"]);
    assert_eq!(
        (one["input"].to_string(), one["output"].to_string()),
        ("[1,4,8,12]".into(), "[1,3,64,96]".into())
    );
    let steps = one["steps"].as_array().unwrap();
    assert_eq!(steps.iter().map(|step| number(step, "flops")).sum::<u64>(), number(&one, "flops"));
    let last = steps.last().unwrap();
    // 3 channels are padded to 16, each 4 bytes.
    assert_eq!(
        (number(last, "output_bytes"), last["output"].to_string()),
        (64 * 96 * 64, "[3,64,96]".into())
    );
    let three = plan(&["--size", "96x64", "--batch", "3"]);
    assert_eq!(number(&three, "flops"), 3 * number(&one, "flops"));
    // Samples run one after the other: only input and output grow.
    let (latents, pixels) = (4 * 4 * 8 * 12, 4 * 3 * 64 * 96);
    let grown = |of: fn(&serde_json::Value) -> &serde_json::Value| {
        number(of(&three), "plan_peak_bytes") - number(of(&one), "plan_peak_bytes")
    };
    assert_eq!(grown(|plan| &plan["tensor"]), 2 * (latents + pixels));
    // Of pictures that go to files row by row no plan counts more than a strip.
    assert_eq!(grown(|plan| plan), 2 * latents);
    assert!(plan(&["--encode"])["tensor"].is_null());
    assert_eq!(plan(&["--size", "96x64", "--encode"])["input"].to_string(), "[1,3,64,96]");
    let text = stdout(folder.path(), &["plan", "--size", "96x64"]);
    for part in
        ["upsample fold", "process, for a PNG or JPEG file ", "for one tensor (decode -o FILE.safetensors"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    // A budget may have room for rows alone.
    let wide = ["--size", "768x768", "--threads", "2", "--memory-budget"];
    let rows = plan(&[&wide[..], &["59MiB"]].concat());
    let error = rows["tensor"]["error"].as_str().unwrap();
    assert!(error.contains("the memory budget is 59 MiB") && rows["steps"].is_array(), "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_planned_peak_is_the_measured_one() {
    let folder = tempfile::tempdir().unwrap();
    for (op, size) in [("decode", "64x64"), ("decode", "512x384"), ("encode", "512x512")] {
        let text = stdout(folder.path(), &["bench", "--op", op, "--size", size, "--runs", "1", "--json"]);
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mib = |key: &str| report[key].as_f64().unwrap();
        let (planned, measured) = (mib("planned_peak_mib"), mib("peak_rss_mib"));
        let allowed = (measured * 0.05).max(6.0);
        assert!(
            (planned - measured).abs() < allowed,
            "{op} {size}: planned {planned}, measured {measured} MiB"
        );
    }
}

#[test]
fn bench_times_each_kind_of_layer() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(folder.path(), &["bench", "--size", "64x64", "--runs", "3", "--steps", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let kernels = report["kernels"].as_array().unwrap();
    let sum = |key: &str| kernels.iter().map(|kernel| kernel[key].as_f64().unwrap()).sum::<f64>();
    assert!((sum("gflop") / report["gflop"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    assert!(sum("ms") > 0.0 && sum("ms") / 1e3 < report["max_s"].as_f64().unwrap() * 1.001);
    assert!(report["peak_gflop_per_s"].as_f64().unwrap() > 0.1);
}

#[test]
fn bench_prints_one_object_with_the_promised_keys() {
    let folder = tempfile::tempdir().unwrap();
    for (op, precision) in [("decode", "exact"), ("encode", "exact"), ("decode", "fast")] {
        let flags = ["--precision", precision, "--size", "64x48", "--runs", "2", "--json"];
        let text = stdout(folder.path(), &[&["bench", "--op", op], &flags[..]].concat());
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(report["op"], op);
        assert_eq!(report["size"], "64x48");
        assert_eq!((report["precision"].as_str(), report["runs"].as_u64()), (Some(precision), Some(2)));
        let seconds = |key: &str| report[key].as_f64().unwrap();
        assert!(seconds("min_s") <= seconds("median_s") && seconds("median_s") <= seconds("max_s"));
        assert!(report["threads"].as_u64().unwrap() >= 1);
        if cfg!(target_os = "linux") {
            assert!(seconds("peak_rss_mib") > 1.0);
        }
    }
}

#[test]
fn models_describes_what_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(folder.path(), &["models"]);
    assert!(text.contains("embedded") && text.contains("4 channels"), "{text}");
    let all: serde_json::Value = serde_json::from_str(&stdout(folder.path(), &["models", "--json"])).unwrap();
    assert_eq!(all[0]["latent_channels"], 4);
}

#[test]
fn a_memory_budget_is_kept_without_changing_the_result() {
    let folder = tempfile::tempdir().unwrap();
    let peak = |budget: &[&str]| {
        let flags = [&["plan", "--size=768x1024", "--json"], budget].concat();
        let plan: serde_json::Value = serde_json::from_str(&stdout(folder.path(), &flags)).unwrap();
        let in_strips = plan["steps"].as_array().unwrap().iter().any(|step| step["layers"].is_array());
        (plan["expected_peak_bytes"].as_u64().unwrap(), in_strips)
    };
    let (straight, _) = peak(&[]);
    let budget = straight * 3 / 4;
    let (kept, in_strips) = peak(&["--memory-budget", &budget.to_string()]);
    assert!(kept <= budget + (1 << 20) && in_strips, "{kept} of {budget}");

    let (code, message) = failure(folder.path(), &["bench", "--size=768x1024", "--memory-budget=26MiB"]);
    assert_eq!(code, 1);
    assert!(message.contains("26 MiB") && message.contains("largest picture"), "{message}");

    stdout(folder.path(), &["encode", photograph(), "-o", "latents.safetensors"]);
    let decode = |name: &str, budget: &[&str]| {
        stdout(folder.path(), &[&["decode", "latents.safetensors", "-o", name], budget].concat());
        std::fs::read(folder.path().join(name)).unwrap()
    };
    assert!(decode("plain.png", &[]) == decode("small.png", &["--memory-budget=80MiB"]));
}

#[test]
fn failures_name_the_value_and_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("weights.ckpt"), b"PK\x03\x04 and so on").unwrap();
    std::fs::write(folder.path().join("photo.txt"), b"not a picture").unwrap();
    stdout(folder.path(), &["encode", photograph(), "-o", "latents.safetensors"]);
    let cases: [(&[&str], i32, &[&str]); 11] = [
        (&["decode", "nowhere.safetensors", "-o", "a.png"], 1, &["nowhere.safetensors", "No such file"]),
        (&["decode", "latents.safetensors", "-o", "a.tiff"], 1, &["a.tiff", ".png"]),
        (&["decode", "latents.safetensors", "-o", "a.png", "--key", "z"], 1, &["\"z\"", "latents"]),
        (&["decode", "latents.safetensors", "-o", "a.png", "--model", "nowhere"], 1, &["nowhere"]),
        (
            &["decode", "latents.safetensors", "-o", "a.png", "--model", "weights.ckpt"],
            1,
            &["weights.ckpt", "safetensors"],
        ),
        (
            &["decode", "latents.safetensors", "-o", "a.png", "--url", "http://127.0.0.1:9"],
            1,
            &["127.0.0.1:9"],
        ),
        (&["encode", "photo.txt", "-o", "a.safetensors"], 1, &["photo.txt"]),
        (&["bench", "--size", "63x64"], 1, &["63x64", "8"]),
        (&["bench", "--size", "100000000x100000000"], 1, &["bytes"]),
        (&["bench", "--isa", "mmx"], 1, &["mmx", "generic"]),
        (&["decode"], 2, &["IN.safetensors"]),
    ];
    for (arguments, code, parts) in cases {
        let (found, message) = failure(folder.path(), arguments);
        assert_eq!(found, code, "{arguments:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{arguments:?}: {part} is not in {message}");
        }
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    use std::process::Stdio;
    let mut child =
        crate::support::program().args(["models", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn help_tells_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let text = stdout(folder.path(), &["--help"]);
    for command in ["serve", "decode", "encode", "demo", "models", "plan", "bench"] {
        assert!(text.contains(command), "{command}");
        assert!(run(folder.path(), &[command, "--help"]).status.success());
    }
}

#[test]
fn nothing_is_lost_or_done_in_vain() {
    let folder = tempfile::tempdir().unwrap();
    stdout(folder.path(), &["encode", photograph(), "-o", "latents.safetensors"]);
    let before = std::fs::read(folder.path().join("latents.safetensors")).unwrap();
    let (_, message) =
        failure(folder.path(), &["decode", "latents.safetensors", "-o", "latents.safetensors"]);
    assert!(message.contains("is the input"), "{message}");
    assert_eq!(std::fs::read(folder.path().join("latents.safetensors")).unwrap(), before);
    let (_, message) = failure(folder.path(), &["decode", "latents.safetensors", "-o", "absent/a.png"]);
    assert!(message.contains("the folder absent of the output does not exist"), "{message}");
    let sizes = ["--height", "384", "--width", "384"];
    let arguments = [&["decode", "latents.safetensors", "-o", "a.png"][..], &sizes[..]].concat();
    assert!(failure(folder.path(), &arguments).1.contains("packed latents only"));
}

#[test]
fn no_message_says_the_same_twice() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.ckpt"), b"PK\x03\x04 and so on").unwrap();
    std::fs::write(folder.path().join("empty.safetensors"), b"").unwrap();
    for source in ["model.ckpt", "empty.safetensors", "absent.safetensors"] {
        let (_, message) = failure(folder.path(), &["models", source]);
        let half = &message[..message.len() / 2];
        assert!(!message[message.len() / 2..].contains(half.trim_start_matches("error: ")), "{message}");
        assert!(message.lines().next().unwrap().matches(source).count() <= 2, "{message}");
    }
}
