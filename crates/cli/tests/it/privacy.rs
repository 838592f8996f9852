//! Nothing of a request's content is written: the server runs under `strace`, which sees every file that is opened for
//! writing, and its log is searched for what was sent.
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use crate::support::{Serving, http, photograph, program, until_ready};

/// In query, headers and bodies of the requests.
const MARK: &str = "NOBODY-MAY-KEEP-THIS";

/// System calls that make or change files.
const CALLS: &str = "trace=open,openat,openat2,creat,memfd_create,mkdir,mkdirat,mknod,mknodat,rename,renameat,renameat2,\
                     link,linkat,symlink,symlinkat,truncate";

/// The program under `strace`; none where that cannot be had.
fn traced(calls: &std::path::Path) -> Option<Command> {
    let probe = Command::new("strace").args(["-f", "-qq", "-e", "trace=none", "true"]).output();
    if !probe.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: strace is not here or may not trace");
        return None;
    }
    let plain = program();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-s", "4096", "-e", CALLS, "-o"]).arg(calls).arg(plain.get_program());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Some(command)
}

fn requests(url: &str) {
    until_ready(url);
    let http = http();
    let shape = "shape=1&shape=4&shape=8&shape=8&dtype=uint8";
    let latents: Vec<u8> = MARK.bytes().cycle().take(256).collect();
    let photograph = std::fs::read(photograph()).unwrap();
    let post = |path: &str, body: &[u8]| {
        let request = http.post(format!("{url}{path}")).body(body.to_vec());
        request.header("x-note", MARK).header("accept", "*/*").send().unwrap()
    };
    for output in
        ["output_type=pt", "output_type=pt&partial_postprocess=True", "image_format=png", "image_format=jpg"]
    {
        assert_eq!(post(&format!("/?{shape}&{output}&note={MARK}"), &latents).status(), 200);
    }
    assert_eq!(post(&format!("/encode?note={MARK}"), &photograph).status(), 200);
    assert_eq!(post(&format!("/?shape={MARK}&dtype=uint8"), &latents).status(), 400);
    assert_eq!(post("/", MARK.as_bytes()).status(), 400);
    let job = post(&format!("/v1/jobs?{shape}&note={MARK}"), &latents);
    let location = job.headers()["location"].to_str().unwrap().to_owned();
    loop {
        let result = http.get(format!("{url}{location}/result")).send().unwrap();
        match result.status().as_u16() {
            409 => std::thread::sleep(std::time::Duration::from_millis(20)),
            status => break assert_eq!(status, 200),
        }
    }
}

#[test]
fn requests_leave_nothing_on_the_disk_or_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let calls = folder.path().join("calls");
    let Some(mut command) = traced(&calls) else { return };
    command.args(["serve", "--port", "0", "--stop-with-stdin"]);
    let mut process =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(process.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let url = line.trim_end().strip_prefix("listening on ").expect("the first line").to_owned();
    let mut errors = process.stderr.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).map(|_| text)
    });
    requests(&url);
    drop(process.stdin.take());
    assert!(process.wait().unwrap().success());

    let log = log.join().unwrap().unwrap();
    assert!(log.contains("status=200") && log.contains("status=400"), "no access log: {log}");
    assert!(!log.contains(MARK), "{log}");
    let calls = std::fs::read_to_string(&calls).unwrap();
    assert!(calls.contains("openat("), "nothing was traced");
    let writes = |line: &&str| {
        let opens = line.contains("open");
        let changes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND", "O_TMPFILE"];
        (!opens || changes.iter().any(|flag| line.contains(flag))) && !line.contains("\"/dev/null\"")
    };
    // Of a thread that ended before its call was looked at strace writes `???( <detached ...>`.
    let is_call = |line: &&str| line.contains('(') && !line.contains("???(");
    let written: Vec<&str> = calls.lines().filter(is_call).filter(writes).collect();
    assert!(written.is_empty(), "{written:#?}");
}

/// As in a container: nothing can be written anywhere, and no capability is left outside of the process' own namespace.
#[test]
fn a_read_only_file_system_is_enough() {
    let read_only = "mount --make-rprivate / && for at in $(awk '{print $5}' /proc/self/mountinfo | sort -u); do \
                     mount -o remount,bind,ro $at 2>/dev/null; done; ! touch /tmp/written 2>/dev/null";
    let inside = |then: &str| {
        let mut command = Command::new("unshare");
        command.args(["-rm", "bash", "-c"]).arg(format!("{read_only} && {then}"));
        command
    };
    if !inside("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a namespace with a read-only file system cannot be had");
        return;
    }
    let mut command = inside("exec \"$0\" serve --port 0");
    let server = Serving::spawn(command.arg(program().get_program()));
    requests(&server.url);
}
