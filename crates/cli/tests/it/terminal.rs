//! What a person at a terminal sees of work on a server: `script` (of util-linux, on every Debian) plays the terminal.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Serving, http, program, until_ready};

/// `arguments` of the program on a terminal; what is written to the child's input is typed there.
fn at_terminal(folder: &Path, arguments: &[&str]) -> Child {
    let plain = program();
    let words = [&[plain.get_program().to_str().unwrap()], arguments].concat();
    // A shell takes them apart again.
    let words: Vec<_> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
    // Whoever runs the tests may ignore Ctrl-C, which programs take over.
    let line = format!("env --default-signal=INT {}", words.join(" "));
    let mut command = Command::new("script");
    command.current_dir(folder).args(["-q", "-e", "-c", &line, "/dev/null"]);
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("TERM", "xterm").env("COLUMNS", "120");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap()
}

/// Exit code, and what was on the terminal.
fn seen(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Writes `a.safetensors`: latents `[batch, 4, 64, 64]`.
fn latents(folder: &Path, batch: usize) {
    let bytes: Vec<u8> =
        (0..batch * 4 * 64 * 64).flat_map(|index| (index as f32 * 0.37).sin().to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![batch, 4, 64, 64], &bytes);
    let file = safetensors::serialize([("latents", view.unwrap())], None).unwrap();
    std::fs::write(folder.join("a.safetensors"), file).unwrap();
}

fn jobs(url: &str) -> Value {
    let info = http().get(format!("{url}/info")).send().unwrap().text().unwrap();
    serde_json::from_str::<Value>(&info).unwrap()["queue"]["jobs"].clone()
}

#[test]
fn the_servers_progress_and_the_time_left_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(&["--threads", "1"]);
    until_ready(&server.url);
    latents(folder.path(), 4);
    let arguments = ["decode", "a.safetensors", "-o", "pixels.safetensors", "--url", &server.url];
    // The second time the server knows its speed.
    for _ in 0..2 {
        let (code, text) = seen(at_terminal(folder.path(), &arguments));
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("the server computes") && text.contains("%, "), "{text:?}");
        assert!(text.contains("wrote pixels.safetensors"), "{text:?}");
    }
    let (_, text) = seen(at_terminal(folder.path(), &arguments));
    assert!(text.contains("s left"), "{text:?}");
    assert_eq!(jobs(&server.url), 0, "the server has forgotten what was fetched");
    let (code, text) = seen(at_terminal(
        folder.path(),
        &["encode", crate::support::photograph(), "-o", "b.safetensors", "--url", &server.url],
    ));
    assert!(code == Some(0) && text.contains("wrote b.safetensors"), "{text:?}");
}

#[test]
fn ctrl_c_stops_the_servers_work() {
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(&["--threads", "1"]);
    until_ready(&server.url);
    latents(folder.path(), 16);
    let arguments = ["decode", "a.safetensors", "-o", "out.png", "--url", &server.url];
    let mut child = at_terminal(folder.path(), &arguments);
    let start = Instant::now();
    while jobs(&server.url) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "no job was handed in");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The first event has come when its bar is there.
    let mut text = String::new();
    let mut piece = [0; 4096];
    let output = child.stdout.as_mut().unwrap();
    while !text.contains("the server computes ") {
        let count = output.read(&mut piece).unwrap();
        assert!(count > 0, "{text:?}");
        text.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    child.stdin.as_mut().unwrap().write_all(b"\x03").unwrap();
    let (code, rest) = seen(child);
    assert_eq!(code, Some(130), "{text:?}{rest:?}");
    assert_eq!(jobs(&server.url), 0);
    assert!(!folder.path().join("out-0.png").exists());
}

/// Answers decodes as the protocol says, `/info` with `info`, and anything else with 404, as servers of other programs do; a
/// job breaks its connection off. The number is that of the decodes and jobs.
fn foreign(info: Option<&'static str>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let posts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&posts);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut piece = [0; 65536];
            loop {
                let count = stream.read(&mut piece).unwrap();
                request.extend_from_slice(&piece[..count]);
                let is_get = request.starts_with(b"GET ") && request.ends_with(b"\r\n\r\n");
                if count == 0 || is_get || request.ends_with(b"\r\n0\r\n\r\n") {
                    break;
                }
            }
            counted.fetch_add(usize::from(request.starts_with(b"POST ")), Ordering::SeqCst);
            if request.starts_with(b"POST /v1/jobs") && info.is_some() {
                continue;
            }
            if let Some(info) = info.filter(|_| request.starts_with(b"GET /info")) {
                let length = info.len();
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{info}"
                )
                .unwrap();
                continue;
            }
            let body = vec![0; 2 * 3 * 8 * 8];
            let head = if request.starts_with(b"POST /?") {
                "HTTP/1.1 200 OK\r\nshape: [1,3,8,8]\r\ndtype: float16\r\ncontent-length: 384\r\nconnection: close\r\n\r\n"
            } else {
                "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            };
            stream.write_all(head.as_bytes()).unwrap();
            if head.contains("384") {
                stream.write_all(&body).unwrap();
            }
        }
    });
    (url, posts)
}

#[test]
fn servers_without_jobs_are_asked_directly() {
    let folder = tempfile::tempdir().unwrap();
    latents(folder.path(), 1);
    let (url, _) = foreign(None);
    let arguments = ["decode", "a.safetensors", "-o", "of a.png", "--url", &url];
    let (code, text) = seen(at_terminal(folder.path(), &arguments));
    assert!(code == Some(0) && text.contains("wrote of a.png 8x8"), "{text:?}");
}

#[test]
fn work_that_a_server_may_have_taken_is_not_handed_in_again() {
    let folder = tempfile::tempdir().unwrap();
    latents(folder.path(), 1);
    let (url, posts) = foreign(Some(r#"{"models":[]}"#));
    let arguments = ["decode", "a.safetensors", "-o", "a.png", "--url", &url];
    let (code, text) = seen(at_terminal(folder.path(), &arguments));
    assert!(code != Some(0) && text.contains(&format!("The connection to {url}/ failed")), "{text:?}");
    assert_eq!(posts.load(Ordering::SeqCst), 1);
}

#[test]
fn a_server_that_keeps_no_further_job_is_asked_directly() {
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(&["--threads", "1", "--max-jobs", "1"]);
    until_ready(&server.url);
    latents(folder.path(), 1);
    let job = http()
        .post(format!(
            "{}/v1/jobs?operation=decode&shape=1&shape=4&shape=8&shape=8&dtype=float16",
            server.url
        ))
        .header("content-type", "tensor/binary")
        .body(vec![0; 2 * 4 * 8 * 8])
        .send()
        .unwrap();
    assert!(job.status().is_success(), "{}", job.text().unwrap());
    let arguments = ["decode", "a.safetensors", "-o", "a.png", "--url", &server.url];
    let (code, text) = seen(at_terminal(folder.path(), &arguments));
    assert!(code == Some(0) && text.contains("wrote a.png 512x512"), "{text:?}");
    assert_eq!(jobs(&server.url), 1, "the other's result is kept");
}
