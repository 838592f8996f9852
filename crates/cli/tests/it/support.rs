//! Runs the built program.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

/// The program, not yet started. Logs and the environment of the machine stay out of it.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_remote-vae"));
    for variable in ["REMOTE_VAE_LOG", "REMOTE_VAE_HOST", "REMOTE_VAE_API_KEY", "PORT", "MODEL_ID"] {
        command.env_remove(variable);
    }
    command.env("NO_COLOR", "1");
    command
}

pub(crate) fn run(folder: &Path, arguments: &[&str]) -> Output {
    program().current_dir(folder).args(arguments).output().unwrap()
}

/// What a successful run printed.
#[track_caller]
pub(crate) fn stdout(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Exit code and standard error of a run that must fail.
#[track_caller]
pub(crate) fn failure(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let output = run(folder, arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

pub(crate) fn photograph() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/assets/demo.png")
}

/// `serve` as a process of its own, on a free port.
pub(crate) struct Serving {
    pub(crate) process: Child,
    pub(crate) url: String,
}

impl Serving {
    pub(crate) fn start(arguments: &[&str]) -> Serving {
        Self::spawn(program().args(["serve", "--port", "0"]).args(arguments))
    }

    pub(crate) fn spawn(command: &mut Command) -> Serving {
        Self::spawn_as_it_is(command.stdout(Stdio::piped()).stderr(Stdio::null()))
    }

    /// Leaves standard error as the command has it; standard output must be a pipe.
    pub(crate) fn spawn_as_it_is(command: &mut Command) -> Serving {
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim_end().strip_prefix("listening on ").expect("the first line").to_owned();
        Serving { process, url }
    }
}

/// A client of servers on this machine.
pub(crate) fn http() -> reqwest::blocking::Client {
    // An error means that there is a provider already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::blocking::Client::builder().no_proxy().tls_certs_only([]);
    client.timeout(std::time::Duration::from_secs(60)).build().unwrap()
}

/// Waits until the server takes work.
pub(crate) fn until_ready(url: &str) {
    let start = std::time::Instant::now();
    while http().get(format!("{url}/health")).send().unwrap().status() != 200 {
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "{url} is not ready");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // The process may have ended already; either way none is left.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
