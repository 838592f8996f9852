//! Many files, pipes, JSON; and what is made from the definitions of the flags.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{failure, photograph, program, run, stdout};

/// Small files of latents, `0.safetensors`, …: encodes of one photograph with different seeds.
pub(crate) fn latents(folder: &Path, count: usize) -> Vec<String> {
    let names: Vec<String> = (0..count).map(|number| format!("{number}.safetensors")).collect();
    for (seed, name) in names.iter().enumerate() {
        stdout(folder, &["encode", photograph(), "-o", name, "--seed", &seed.to_string()]);
    }
    names
}

#[test]
fn a_folder_takes_a_file_for_each_input() {
    let folder = tempfile::tempdir().unwrap();
    let names = latents(folder.path(), 3);
    let inputs: Vec<&str> = names.iter().map(String::as_str).collect();
    let text = stdout(folder.path(), &[&["decode"], &inputs[..], &["-o", "out", "--json"]].concat());
    let reports: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (name, report) in names.iter().zip(&reports) {
        assert_eq!(report["input"], name.as_str());
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        assert_eq!(report["outputs"][0]["shape"], serde_json::json!([384, 384]));
        let made = std::fs::read(folder.path().join(report["outputs"][0]["path"].as_str().unwrap())).unwrap();
        stdout(folder.path(), &["decode", name, "-o", "alone.png"]);
        assert_eq!(made, std::fs::read(folder.path().join("alone.png")).unwrap());
    }
    assert_eq!(reports.len(), 3);
    // One input and a slash; another format.
    stdout(folder.path(), &["decode", &names[0], "-o", "other/", "--format", "jpg"]);
    assert!(std::fs::read(folder.path().join("other/0.jpg")).unwrap().starts_with(&[0xff, 0xd8]));
    let pictures = ["out/0.png", "out/1.png"];
    stdout(folder.path(), &[&["encode"], &pictures[..], &["-o", "again"]].concat());
    assert!(folder.path().join("again/1.safetensors").is_file());
}

#[test]
fn one_failure_does_not_end_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let names = latents(folder.path(), 2);
    std::fs::write(folder.path().join("bad.safetensors"), b"cut").unwrap();
    let arguments = ["decode", &names[0], "bad.safetensors", &names[1], "-o", "out/"];
    let (code, message) = failure(folder.path(), &arguments);
    assert!(code == 1 && message.contains("error: 1 of 3 files failed"), "{message}");
    assert!(
        message.contains("error: bad.safetensors: bad.safetensors is not a whole safetensors file"),
        "{message}"
    );
    assert!(folder.path().join("out/0.png").is_file() && folder.path().join("out/1.png").is_file());
    let output = run(folder.path(), &[&arguments[..], &["--json"]].concat());
    let lines: Vec<Value> = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    assert!(lines.len() == 3 && lines[1]["error"].as_str().unwrap().contains("bad.safetensors"), "{lines:?}");
}

/// What a command writes when it reads `input`.
fn pipe(arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = program();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn pipes_carry_what_files_hold() {
    let folder = tempfile::tempdir().unwrap();
    let latents = pipe(&["encode", "-", "-o", "-"], &std::fs::read(photograph()).unwrap());
    stdout(folder.path(), &["encode", photograph(), "-o", "a.safetensors"]);
    assert_eq!(latents, std::fs::read(folder.path().join("a.safetensors")).unwrap());
    stdout(folder.path(), &["decode", "a.safetensors", "-o", "a.png"]);
    stdout(folder.path(), &["decode", "a.safetensors", "-o", "a.jpg"]);
    for (format, name) in [("png", "a.png"), ("jpg", "a.jpg")] {
        let picture = pipe(&["decode", "-", "-o", "-", "--format", format], &latents);
        assert_eq!(picture, std::fs::read(folder.path().join(name)).unwrap());
    }
    let (_, message) = failure(folder.path(), &["decode", "a.safetensors", "-o", "-", "--json"]);
    assert!(message.contains("--json and -o -"), "{message}");
}

#[test]
fn completions_and_manual_pages_tell_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(folder.path(), &["completions", shell]);
        assert!(script.contains("doctor") && script.contains("model"), "{shell}");
    }
    let page = stdout(folder.path(), &["man"]);
    assert!(page.contains(".TH remote-vae 1") && page.contains("doctor"), "{page}");
    stdout(folder.path(), &["man", "-o", "man1"]);
    let page = std::fs::read_to_string(folder.path().join("man1/remote-vae-decode.1")).unwrap();
    assert!(
        page.contains(".TH remote-vae-decode 1")
            && page.contains("parallel")
            && page.contains("IN.safetensors"),
        "{page}"
    );
    assert!(folder.path().join("man1/remote-vae.1").is_file());
}
