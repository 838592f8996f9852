//! `serve` as a process of its own, and commands that let it do the work.

use crate::support::{Serving, photograph, program, stdout};

#[test]
fn commands_let_a_server_do_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(&["--model", "one=embedded", "--model", "two=embedded"]);
    let two = format!("{}/two", server.url);
    stdout(folder.path(), &["encode", photograph(), "-o", "there.safetensors", "--url", &server.url]);
    stdout(folder.path(), &["encode", photograph(), "-o", "here.safetensors"]);
    for (name, url) in [("there.png", Some(&two)), ("here.png", None)] {
        let mut arguments = vec!["decode", "here.safetensors", "-o", name];
        if let Some(url) = url {
            arguments.extend(["--url", url]);
        }
        stdout(folder.path(), &arguments);
    }
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    // The answer travels as float16, from which pixels are made here as there.
    assert_eq!(read("there.png"), read("here.png"));
    assert!(!read("there.safetensors").is_empty());
}

#[test]
fn environment_variables_alone_are_enough() {
    let folder = tempfile::tempdir().unwrap();
    let embedded = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/embedded");
    let variables = [("MODEL_ID", embedded), ("PORT", "0"), ("REMOTE_VAE_API_KEY", "secret")];
    let server = Serving::spawn(program().arg("serve").envs(variables));
    let encode = |key: &str| {
        let arguments = ["encode", photograph(), "-o", "latents.safetensors", "--url", &server.url];
        program().current_dir(folder.path()).args(arguments).env("REMOTE_VAE_API_KEY", key).output().unwrap()
    };
    assert!(encode("secret").status.success());
    let refused = encode("guessed");
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && message.contains("401") && !message.contains("guessed"),
        "{message}"
    );
}

#[cfg(unix)]
#[test]
fn a_signal_ends_it_cleanly() {
    let mut server = Serving::start(&[]);
    let id = server.process.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert!(server.process.wait().unwrap().success());
}
