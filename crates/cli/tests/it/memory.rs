//! What the program says about memory, and what it does where there is too little.
#![cfg(target_os = "linux")]

use serde_json::Value;

use crate::support::*;

fn golden(name: &str) -> String {
    format!("{}/../engine/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn parsed(arguments: &[&str]) -> Value {
    let arguments = [arguments, &["--threads", "2", "--json"]].concat();
    serde_json::from_str(&stdout(&std::env::temp_dir(), &arguments)).unwrap()
}

/// The table in `docs/memory.md`; `-- --nocapture` prints it.
#[test]
fn the_expected_peak_is_that_of_the_process() {
    const MIB: f64 = (1 << 20) as f64;
    let models = [("embedded", "embedded".to_owned()), ("sd15", golden("sd15")), ("tiny", golden("tiny"))];
    let cases: [(usize, &str, &[&str]); 20] = [
        (0, "512x512", &[]),
        (1, "512x512", &["--precision", "fast"]),
        (2, "512x512", &["--op", "encode"]),
        (0, "768x512", &["--precision", "fast"]),
        (1, "1024x1024", &[]),
        (2, "1024x768", &[]),
        (0, "512x512", &["--op", "encode"]),
        (1, "1024x512", &["--op", "encode", "--precision", "fast"]),
        (2, "1536x1024", &["--precision", "fast"]),
        (0, "328x520", &[]),
        (1, "1032x1096", &["--precision", "fast"]),
        (2, "520x1032", &[]),
        (0, "768x768", &["--memory-budget", "160MiB"]),
        (1, "1152x1152", &["--memory-budget", "160MiB"]),
        (2, "1024x1024", &["--op", "encode", "--precision", "fast"]),
        (0, "1024x256", &["--op", "encode", "--precision", "fast"]),
        (1, "2048x512", &["--precision", "fast"]),
        (2, "2048x1024", &[]),
        (0, "256x1024", &["--precision", "fast", "--memory-budget", "96MiB"]),
        (1, "1024x1024", &["--op", "encode"]),
    ];
    let mut wrong = Vec::new();
    for (model, size, more) in cases {
        let (name, source) = &models[model];
        let encodes = more.contains(&"encode");
        let others = if encodes { &more[2..] } else { more };
        let half: &[&str] = if encodes { &["--encode"] } else { &[] };
        let plan = parsed(&[&["plan", source, "--size", size], half, others].concat());
        let expected = plan["expected_peak_bytes"].as_u64().unwrap() as f64 / MIB;
        let run = parsed(&[&["bench", "--model", source, "--size", size, "--runs", "1"], more].concat());
        let measured = run["peak_rss_mib"].as_f64().unwrap();
        let line = format!("| {name} | {size} {} | {expected:.0} | {measured:.0} |", more.join(" "));
        eprintln!("{line}");
        if (measured - expected).abs() > (expected * 0.05).max(16.0) {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "expected and measured MiB differ by more than 16 and 5 %: {wrong:#?}");
}

#[test]
fn memory_that_the_system_refuses_is_an_error_with_a_name() {
    let script = "ulimit -v 1000000; exec \"$0\" bench --size 4096x4096 --runs 1 --threads 2";
    let mut command = std::process::Command::new("sh");
    let output = command.args(["-c", script, env!("CARGO_BIN_EXE_remote-vae")]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    if message.contains("memory budget") {
        eprintln!("skipped: this machine's own memory is less than the test asks for");
        return;
    }
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("cannot allocate"), "{message}");
}
