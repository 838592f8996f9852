//! What a process within a memory budget holds at its peak: never more than the budget.
#![cfg(target_os = "linux")]

use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::*;

const MIB: u64 = 1 << 20;

/// A decoder of one level and 512 channels, all zeros: 40 MB that take no room on the disk. Its weights are large beside
/// its pictures.
fn wide_model(folder: &Path) {
    let config = json!({
        "_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [512], "layers_per_block": 1, "norm_num_groups": 32, "act_fn": "silu",
        "use_quant_conv": false, "use_post_quant_conv": false, "mid_block_add_attention": false,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut shapes = vec![
        ("decoder.conv_in.weight".to_owned(), vec![512, 4, 3, 3]),
        ("decoder.conv_in.bias".to_owned(), vec![512]),
        ("decoder.conv_norm_out.weight".to_owned(), vec![512]),
        ("decoder.conv_norm_out.bias".to_owned(), vec![512]),
        ("decoder.conv_out.weight".to_owned(), vec![3, 512, 3, 3]),
        ("decoder.conv_out.bias".to_owned(), vec![3]),
    ];
    for block in
        ["mid_block.resnets.0", "mid_block.resnets.1", "up_blocks.0.resnets.0", "up_blocks.0.resnets.1"]
    {
        for layer in ["norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "conv1.bias", "conv2.bias"]
        {
            shapes.push((format!("decoder.{block}.{layer}"), vec![512]));
        }
        for layer in ["conv1.weight", "conv2.weight"] {
            shapes.push((format!("decoder.{block}.{layer}"), vec![512, 512, 3, 3]));
        }
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let begin = end;
        end += 2 * shape.iter().product::<u64>();
        header.insert(name, json!({ "dtype": "F16", "shape": shape, "data_offsets": [begin, end] }));
    }
    let header = Value::Object(header).to_string();
    let mut file = std::fs::File::create(folder.join("diffusion_pytorch_model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
}

/// The smallest budget that `arguments` can do with, as the refusal names it, in MiB.
fn smallest(folder: &Path, arguments: &[&str]) -> u64 {
    let (code, message) = failure(folder, &[arguments, &["--memory-budget", "1MiB"]].concat());
    let number =
        message.split("the smallest that would do is ").nth(1).and_then(|rest| rest.split(' ').next());
    assert_eq!(code, 1, "{message}");
    number.unwrap_or_else(|| panic!("{message}")).parse().unwrap()
}

/// The comparison of `fast` with `exact` is part of it: it comes first, and small pictures need less.
#[test]
fn the_smallest_budget_of_a_command_is_not_passed() {
    let folder = tempfile::tempdir().unwrap();
    wide_model(folder.path());
    let wide = folder.path().to_str().unwrap();
    let small = format!("{}/../engine/tests/golden/sd15", env!("CARGO_MANIFEST_DIR"));
    for (model, op, size) in [
        (wide, "decode", "8x8"),
        (wide, "decode", "96x64"),
        ("embedded", "decode", "64x64"),
        ("embedded", "encode", "256x64"),
        (&*small, "decode", "256x256"),
    ] {
        for precision in ["exact", "fast"] {
            let bench = ["bench", "--model", model, "--op", op, "--size", size, "--precision", precision];
            let arguments = [&bench[..], &["--threads", "2", "--runs", "0", "--json"]].concat();
            // What two processes hold before any work is not the same to the page.
            let budget = smallest(folder.path(), &arguments) + 1;
            let within = format!("{budget}MiB");
            let report = stdout(folder.path(), &[&arguments[..], &["--memory-budget", &within]].concat());
            let report: Value = serde_json::from_str(&report).unwrap();
            let measured = report["peak_rss_mib"].as_f64().unwrap();
            eprintln!("{op} {size} {precision}: {measured:.1} MiB of {budget}");
            assert!(measured <= budget as f64, "{bench:?}: {measured:.1} MiB in a budget of {budget}");
        }
    }
}

/// Beside weights that are held, too, the comparison fits; where it does not, none are held.
#[test]
fn the_comparison_of_fast_with_exact_is_within_the_budget_whatever_is_held() {
    let folder = tempfile::tempdir().unwrap();
    wide_model(folder.path());
    let work = ["--size", "8x8", "--precision", "fast", "--threads", "2", "--json"];
    let plan = |budget: &str| -> Value {
        let plan =
            [&["plan", folder.path().to_str().unwrap()], &work[..], &["--memory-budget", budget]].concat();
        serde_json::from_str(&stdout(folder.path(), &plan)).unwrap()
    };
    let most = plan("10GiB");
    let need = most["expected_peak_bytes"].as_u64().unwrap();
    assert!(most["reads_weights"] == false && need > 2 * most["weight_bytes"].as_u64().unwrap());
    for (budget, reads_weights) in [(need / MIB + 2, false), (need / MIB - 2, true)] {
        let budget_text = format!("{budget}MiB");
        assert_eq!(plan(&budget_text)["reads_weights"], reads_weights);
        let bench = ["bench", "--model", folder.path().to_str().unwrap(), "--runs", "0"];
        let bench = [&bench[..], &work[..], &["--memory-budget", &budget_text]].concat();
        let report: Value = serde_json::from_str(&stdout(folder.path(), &bench)).unwrap();
        let measured = report["peak_rss_mib"].as_f64().unwrap();
        assert!(measured <= budget as f64, "{measured:.1} MiB in a budget of {budget}");
    }
}

/// Random latents of `shape` as a file.
fn latents(path: &Path, shape: &[usize]) {
    let values = remote_vae_model::random::normal(3, shape.iter().product());
    let bytes: Vec<u8> = values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect();
    let header = json!({"latents": {"dtype": "F16", "shape": shape, "data_offsets": [0, bytes.len()]}});
    let header = header.to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes].concat();
    std::fs::write(path, file).unwrap();
}

/// What a command that must succeed writes to standard output, and the most bytes that it held until it had written all but
/// the end.
fn output_and_peak(folder: &Path, arguments: &[&str]) -> (Vec<u8>, u64) {
    let mut command = program();
    let mut process = command
        .current_dir(folder)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut pipe, id) = (process.stdout.take().unwrap(), process.id());
    let (mut output, mut part, mut peak, mut length) = (Vec::new(), vec![0; 4096], 0, 1);
    while length > 0 {
        length = pipe.read(&mut part).unwrap();
        output.extend(&part[..length]);
        peak = most_held(id).unwrap_or(peak);
    }
    assert!(process.wait().unwrap().success(), "{arguments:?}");
    (output, peak)
}

/// The most that the process held while it ran.
fn peak(folder: &Path, arguments: &[&str]) -> u64 {
    let mut command = program();
    let command = command.current_dir(folder).args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    let (mut process, mut peak) = (command.spawn().unwrap(), 0);
    let status = loop {
        peak = most_held(process.id()).unwrap_or(peak);
        if let Some(status) = process.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    assert!(status.success(), "{arguments:?}");
    peak
}

/// The most bytes that a process that runs held until now.
fn most_held(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    Some(line?.parse::<u64>().unwrap() << 10)
}

/// 12 MiB of pixels: none of a PNG or JPEG file are kept, those of a WebP file count.
#[test]
fn pictures_are_written_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    latents(&folder.path().join("latents.safetensors"), &[1, 4, 256, 256]);
    let model = format!("{}/../engine/tests/golden/tiny", env!("CARGO_MANIFEST_DIR"));
    let decode = ["decode", "latents.safetensors", "-o", "-", "--model", &model, "--threads", "2"];
    let mut budgets = Vec::new();
    for format in ["png", "jpg", "webp", "safetensors"] {
        let arguments = [&decode[..], &["--format", format]].concat();
        // What two processes hold before any work is not the same to the page.
        let budget = smallest(folder.path(), &arguments) + 1;
        let within = format!("{budget}MiB");
        let (file, measured) =
            output_and_peak(folder.path(), &[&arguments[..], &["--memory-budget", &within]].concat());
        assert!(file.len() > 500_000);
        eprintln!("{format}: {:.1} MiB of {budget}", measured as f64 / MIB as f64);
        assert!(measured <= budget * MIB, "{format}: {measured} bytes in a budget of {budget} MiB");
        if format != "safetensors" {
            let limits = remote_vae_media::DecodeLimits { max_pixels: 1 << 22, max_bytes: 1 << 26 };
            let picture = remote_vae_media::decode_image(&file, &limits).unwrap();
            assert_eq!((picture.width, picture.height), (2048, 2048));
        }
        budgets.push(budget);
    }
    let [png, jpeg, webp, _] = budgets[..] else { unreachable!("four formats") };
    assert!(png.abs_diff(jpeg) <= 1 && (51..=53).contains(&(webp - png)), "{budgets:?}");
}

/// Files of 161 frames, of up to 23 MB: their bytes leave memory as they are made, and plans do not count them.
#[test]
fn files_of_clips_do_not_grow_in_memory() {
    const MORE: u64 = 3 * MIB;
    let folder = tempfile::tempdir().unwrap();
    latents(&folder.path().join("latents.safetensors"), &[1, 4, 41, 12, 16]);
    let model = format!("{}/../engine/tests/golden_video/hunyuan", env!("CARGO_MANIFEST_DIR"));
    let plan = ["plan", &model, "--size", "128x96", "--frames", "161", "--threads", "2", "--json"];
    let plan: Value = serde_json::from_str(&stdout(folder.path(), &plan)).unwrap();
    let decode = ["decode", "latents.safetensors", "--model", &model, "--threads", "2", "-o"];
    for (format, plan) in [("webp", &plan), ("mp4", &plan), ("safetensors", &plan["tensor"])] {
        let output = format!("clip.{format}");
        let measured = peak(folder.path(), &[&decode[..], &[&output]].concat());
        let file = std::fs::read(folder.path().join(output)).unwrap();
        let expected = plan["expected_peak_bytes"].as_u64().unwrap();
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        eprintln!("{format}: {} bytes, {:.1} MiB of {:.1}", file.len(), mib(measured), mib(expected));
        assert!(measured <= expected + MORE, "{format}: {measured} bytes, planned {expected}");
        assert!(file.len() > 400_000);
    }
}

const SIGTERM: i32 = 15;

#[test]
fn a_signal_leaves_what_had_the_name_before() {
    let folder = tempfile::tempdir().unwrap();
    latents(&folder.path().join("latents.safetensors"), &[1, 4, 256, 256]);
    let model = format!("{}/../engine/tests/golden/tiny", env!("CARGO_MANIFEST_DIR"));
    let drafts = || {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        entries
            .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "part"))
            .count()
    };
    let listens = |process| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap_or("0");
        u64::from_str_radix(caught.trim(), 16).unwrap() >> (SIGTERM - 1) & 1 == 1
    };
    // That of a tensor is there for a moment only: whoever listens removes it.
    for (output, has_draft) in [("a.png", true), ("a.safetensors", false)] {
        let path = folder.path().join(output);
        std::fs::write(&path, b"before").unwrap();
        let arguments = ["decode", "latents.safetensors", "-o", output, "--model", &model];
        let mut process = program().current_dir(folder.path()).args(arguments).spawn().unwrap();
        while drafts() < usize::from(has_draft) || !listens(process.id()) {
            assert!(process.try_wait().unwrap().is_none(), "the program ended before the signal: {output}");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let id = process.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        assert_eq!(process.wait().unwrap().code(), Some(128 + SIGTERM), "{output}");
        assert_eq!((drafts(), std::fs::read(&path).unwrap()), (0, b"before".to_vec()), "{output}");
    }
}
