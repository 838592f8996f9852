//! Runs the built program.

use std::path::Path;
use std::process::{Command, Output};

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
