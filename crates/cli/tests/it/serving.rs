//! `serve` as a process of its own, and commands that let it do the work.

use std::process::Stdio;

use crate::support::{Serving, failure, http, photograph, program, stdout, until_ready};

#[test]
fn commands_let_a_server_do_the_work() {
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(&["--model", "one=embedded", "--model", "two=embedded"]);
    let two = format!("{}/two", server.url);
    stdout(folder.path(), &["encode", photograph(), "-o", "there.safetensors", "--url", &server.url]);
    stdout(folder.path(), &["encode", photograph(), "-o", "here.safetensors"]);
    for (name, url) in [
        ("there.png", Some(&two)),
        ("here.png", None),
        ("there-pixels.safetensors", Some(&two)),
        ("here-pixels.safetensors", None),
    ] {
        let mut arguments = vec!["decode", "here.safetensors", "-o", name];
        if let Some(url) = url {
            arguments.extend(["--url", url]);
        }
        stdout(folder.path(), &arguments);
    }
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    for (there, here) in [
        ("there.png", "here.png"),
        ("there.safetensors", "here.safetensors"),
        ("there-pixels.safetensors", "here-pixels.safetensors"),
    ] {
        assert_eq!(read(there), read(here), "{there}");
    }
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

#[test]
fn options_come_from_a_file_too_and_are_printed_without_keys() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(folder.path().join("serve.toml"), text).unwrap();
    write("port = 0\nmodel = [\"one=embedded\", \"two=embedded\"]\napi-key = [\"secret\"]\nmax-queue = 3\n");
    let printed = |arguments: &[&str]| {
        let all = [&["serve", "--config", "serve.toml", "--print-config"], arguments].concat();
        program().current_dir(folder.path()).args(all).env("REMOTE_VAE_MAX_BATCH", "5").output().unwrap()
    };
    let text = String::from_utf8(printed(&["--max-queue=4"]).stdout).unwrap();
    for line in ["port = 0  # file", "max-queue = 4  # command line", "max-batch = 5  # environment"] {
        assert!(text.lines().any(|found| found == line), "no `{line}` in\n{text}");
    }
    assert!(text.contains("api-key: 1 set") && !text.contains("secret"), "{text}");
    let server =
        Serving::spawn(program().current_dir(folder.path()).args(["serve", "--config", "serve.toml"]));
    let two = format!("{}/two", server.url);
    let arguments =
        ["encode", photograph(), "-o", "latents.safetensors", "--url", &two, "--api-key", "secret"];
    stdout(folder.path(), &arguments);
    write("max-quue = 3\n");
    let refused = printed(&[]);
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && message.contains("max-quue") && message.contains("max-queue"),
        "{message}"
    );
}

#[test]
fn the_end_of_its_input_ends_it_if_it_is_told_so() {
    let mut command = program();
    command.args(["serve", "--port", "0", "--stop-with-stdin"]).stdin(Stdio::piped());
    let mut server = Serving::spawn(&mut command);
    assert!(server.process.try_wait().unwrap().is_none());
    drop(server.process.stdin.take());
    assert!(server.process.wait().unwrap().success());
}

#[test]
fn many_files_travel_several_at_one_time() {
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(&[]);
    let names = crate::batch::latents(folder.path(), 4);
    let decode = |output: &str, flags: &[&str]| {
        let mut arguments = vec!["decode"];
        arguments.extend(names.iter().map(String::as_str));
        arguments.extend(["-o", output, "--json"]);
        arguments.extend(flags);
        stdout(folder.path(), &arguments).lines().count()
    };
    assert_eq!(decode("here", &[]), 4);
    assert_eq!(decode("there", &["--url", &server.url, "--parallel", "3"]), 4);
    for number in 0..4 {
        let read =
            |place: &str| std::fs::read(folder.path().join(place).join(format!("{number}.png"))).unwrap();
        assert_eq!(read("here"), read("there"));
    }
}

#[cfg(unix)]
#[test]
fn a_signal_ends_it_cleanly() {
    let mut server = Serving::start(&[]);
    let id = server.process.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    assert!(server.process.wait().unwrap().success());
}

#[test]
fn what_a_user_can_get_wrong_is_one_sentence_each() {
    let folder = tempfile::tempdir().unwrap();
    let server = Serving::start(&["--model", "one=embedded", "--api-key", "sesame"]);
    let (_, port) = server.url.rsplit_once(':').unwrap();
    let absent = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (absent, other) = (format!("http://{absent}"), format!("{}/other", server.url));
    stdout(folder.path(), &["encode", photograph(), "-o", "a.safetensors"]);
    let decode = ["decode", "a.safetensors", "-o", "a.png"];
    for (arguments, expected) in [
        (&["--url", &absent][..], "is the server running there?"),
        (&["--url", "localhost:8080"], "it must begin with `http://` or `https://`"),
        (&["--url", &server.url], "Write `--api-key KEY`, or set REMOTE_VAE_API_KEY."),
        (
            &["--url", &server.url, "--api-key", "guessed"],
            "Write `--api-key KEY`, or set REMOTE_VAE_API_KEY.",
        ),
        (&["--url", &other, "--api-key", "sesame"], "Expected one of the paths `/`, `/one`. Got `/other`."),
        (&["--model", "nothing"], "\"nothing\" is no model"),
    ] {
        let (code, message) = failure(folder.path(), &[&decode[..], arguments].concat());
        assert!(code == 1 && message.contains(expected) && message.lines().count() == 1, "{message}");
        assert!(message.starts_with("error: ") && !message.contains("guessed"), "{message}");
    }
    let (_, message) = failure(folder.path(), &["serve", "--port", port]);
    assert!(message.contains("in use") && message.contains("Write `--port N`"), "{message}");
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = Serving::start(&["--drain-timeout", "600"]);
    until_ready(&server.url);
    let url = format!("{}/?shape=1&shape=4&shape=256&shape=256&dtype=uint8&output_type=pt", server.url);
    let asking = std::thread::spawn(move || http().post(url).body(vec![7; 4 * 256 * 256]).send().is_err());
    let status = |path: &str| http().get(format!("{}{path}", server.url)).send().unwrap();
    while !status("/metrics").text().unwrap().lines().any(|line| line == "rvae_requests_running 1") {}
    let id = server.process.id().to_string();
    let terminate =
        || assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    terminate();
    while status("/readyz").status() != 503 {}
    assert_eq!(server.process.try_wait().unwrap(), None, "work of seconds was not finished first");
    terminate();
    assert_eq!(server.process.wait().unwrap().code(), Some(130));
    assert!(asking.join().unwrap(), "an answer that was not finished came");
}
