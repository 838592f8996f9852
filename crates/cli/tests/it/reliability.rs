//! The real program under load and under faults: every accepted request is answered once with the right bytes, and
//! whatever happens to files, memory or the process, clients get an answer or a clear error.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[cfg(target_os = "linux")]
use crate::stand_in::StandIn;
use crate::support::{Serving, http, program, stdout, until_ready};

const EMBEDDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/embedded");
const SHAPE: &str = "shape=1&shape=4&shape=8&shape=8&dtype=uint8";

/// Status and body of a small decode, or of an encode of random pixels.
fn decode(url: &str) -> (u16, Vec<u8>) {
    ask(&format!("{url}/?{SHAPE}&output_type=pt"), vec![7; 256])
}

fn encode(url: &str) -> (u16, Vec<u8>) {
    ask(&format!("{url}/encode?shape=1&shape=3&shape=16&shape=16&dtype=uint8"), vec![9; 768])
}

/// Starts `serve` and waits until it takes work.
fn start(arguments: &[&str]) -> Serving {
    let server = Serving::start(arguments);
    until_ready(&server.url);
    server
}

fn ask(url: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
    let response = http().post(url).body(body).send().unwrap();
    (response.status().as_u16(), response.bytes().unwrap().to_vec())
}

fn load(url: &str, more: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [&["bench", "--url", url, "--json", "--check"], more].concat();
    serde_json::from_str(&stdout(folder.path(), &arguments)).unwrap()
}

#[test]
fn mixed_load_with_leavers_is_answered_with_the_right_bytes() {
    let keys: Vec<String> = (0..20).map(|index| format!("key-{index}")).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, keys.join("\n")).unwrap();
    let server = start(&["--api-key-file", file.to_str().unwrap()]);
    let mut arguments = vec!["--clients=20", "--seconds=4", "--abandon=10"];
    arguments.push("--mix=64x64:raw,128x64:png,72x40:jpg,64x128:uint8");
    let keys: Vec<String> = keys.iter().map(|key| format!("--api-key={key}")).collect();
    arguments.extend(keys.iter().map(String::as_str));
    let report = load(&server.url, &arguments);
    let number = |key: &str| report[key].as_u64().unwrap();
    assert!(number("answered") > 20 && number("abandoned") > 0, "{report}");
    assert_eq!(
        (number("wrong"), number("failed"), &report["refused"]),
        (0, 0, &serde_json::json!({})),
        "{report}"
    );
    assert!(report["health_ms"]["p99"].is_number() && report["engine_utilisation"].is_number(), "{report}");
    let shares = &report["per_key"]["megapixels"];
    assert!(report["per_key"]["keys"] == 20 && shares["least"].as_f64().unwrap() > 0.0, "{report}");
    // An open loop, faster than the server is: the rest is refused, not lost.
    let busy = start(&["--max-queue", "4"]);
    let report = load(&busy.url, &["--rate=100", "--seconds=2", "--size=512x512"]);
    let number = |key: &str| report[key].as_u64().unwrap();
    let refused = report["refused"]["429"].as_u64().unwrap_or(0);
    assert_eq!(number("requests"), number("answered") + refused, "{report}");
    assert!(number("answered") > 0 && number("wrong") == 0, "{report}");
}

#[cfg(unix)]
#[test]
fn a_signal_under_load_loses_nothing_that_was_accepted() {
    let mut server = start(&[]);
    let url = server.url.clone();
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let url = url.clone();
            let body = vec![7; 4 * 64 * 64];
            let query = "shape=1&shape=4&shape=64&shape=64&dtype=uint8&output_type=pt";
            std::thread::spawn(move || ask(&format!("{url}/?{query}"), body))
        })
        .collect();
    let queued = |url: &str| -> u64 {
        let info: Value =
            serde_json::from_str(&http().get(format!("{url}/info")).send().unwrap().text().unwrap()).unwrap();
        info["queue"]["waiting"].as_u64().unwrap() + info["queue"]["running"].as_u64().unwrap()
    };
    let start = Instant::now();
    while queued(&url) < 4 {
        assert!(start.elapsed() < Duration::from_secs(30));
    }
    let id = server.process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    let statuses: Vec<u16> = asking.into_iter().map(|request| request.join().unwrap().0).collect();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    assert!(statuses.iter().filter(|status| **status == 200).count() >= 4, "{statuses:?}");
    assert!(server.process.wait().unwrap().success());
}

#[cfg(unix)]
#[test]
fn after_kill_9_a_new_server_takes_the_same_port() {
    let mut server = start(&[]);
    let (status, before) = decode(&server.url);
    assert_eq!(status, 200);
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    let port = server.url.rsplit_once(':').unwrap().1.to_owned();
    let again = Serving::spawn(program().args(["serve", "--port", &port]));
    until_ready(&again.url);
    assert_eq!(decode(&again.url), (200, before));
}

fn copy(from: &str, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// The program below a limit that the shell sets.
#[cfg(target_os = "linux")]
fn limited(limit: &str) -> Command {
    let plain = program();
    let mut command = Command::new("bash");
    command.arg("-c").arg(format!("{limit}; exec \"$0\" \"$@\"")).arg(plain.get_program());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

#[cfg(target_os = "linux")]
#[test]
fn memory_that_the_system_refuses_is_one_503() {
    // The plan of 4096x4096 pixels needs more than the process may have; the budget says nothing against it.
    let mut command = limited("ulimit -v 4500000");
    let server = Serving::spawn(command.args(["serve", "--port", "0", "--memory-budget", "64GiB"]));
    until_ready(&server.url);
    let before = decode(&server.url);
    assert_eq!(before.0, 200);
    let query = "shape=1&shape=4&shape=512&shape=512&dtype=uint8&output_type=pt";
    let (status, body) = ask(&format!("{}/?{query}", server.url), vec![7; 4 * 512 * 512]);
    let message = String::from_utf8_lossy(&body);
    assert!(status == 503 && message.contains("cannot allocate"), "{status}: {message}");
    assert_eq!(decode(&server.url), before);
}

#[cfg(target_os = "linux")]
#[test]
fn a_download_that_finds_no_room_on_the_disk_leaves_no_half_a_model() {
    let read = |name: &str| std::fs::read(Path::new(EMBEDDED).join(name)).unwrap();
    let files = ["config.json", "diffusion_pytorch_model.safetensors"].map(|name| (name, read(name)));
    let files = files.each_ref().map(|(name, bytes)| (*name, &bytes[..]));
    let hub = StandIn::new("owner/vae", &files);
    let cache = tempfile::tempdir().unwrap();
    let shows = |command: &mut Command| {
        let address = format!("http://{}", hub.address);
        command.env("HF_ENDPOINT", address).env("HF_HUB_CACHE", cache.path()).env_remove("HF_HUB_OFFLINE");
        command.args(["models", "owner/vae"]).output().unwrap()
    };
    // A file may have 64 KiB, as if the disk were full then.
    let output = shows(&mut limited("trap '' XFSZ; ulimit -f 64"));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && message.contains("File too large"), "{message}");
    let output = shows(&mut program());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("AutoencoderKL"));
}

#[cfg(unix)]
#[test]
fn a_model_that_disappears_or_changes_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    copy(EMBEDDED, folder.path());
    let source = folder.path().to_str().unwrap();
    let gone = start(&["--model", &format!("m={source}")]);
    let changed = start(&["--model", &format!("m={source}")]);
    let (status, before) = decode(&gone.url);
    assert_eq!(status, 200);

    let file = std::fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path());
    let file =
        file.into_iter().find(|path| path.extension().is_some_and(|end| end == "safetensors")).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.reverse();
    // In place; the encoder has not been read yet.
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    let (status, body) = encode(&changed.url);
    assert!(status == 500 && String::from_utf8_lossy(&body).contains("changed"), "{status}");
    assert_eq!(decode(&changed.url), (200, before.clone()));
    std::fs::remove_file(&file).unwrap();
    assert_eq!(decode(&gone.url), (200, before));
}

#[cfg(target_os = "linux")]
#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = program();
    command.args(["serve", "--port", "0"]).stdout(Stdio::piped()).stderr(full);
    let server = Serving::spawn_as_it_is(&mut command);
    until_ready(&server.url);
    for _ in 0..3 {
        assert_eq!(decode(&server.url).0, 200);
    }
    assert_eq!(ask(&format!("{}/?shape=x", server.url), vec![1]).0, 400);
}
