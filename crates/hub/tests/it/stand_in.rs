//! A small hub on loopback: what of its HTTP the program relies on, and the ways in which it can fail. A second address
//! plays the host that large files are redirected to.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use ring::digest;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the content of large files is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Redirect {
    /// To the other address.
    Absolute,
    /// To another path of the hub.
    Relative,
    /// Not at all.
    None,
}

#[derive(Clone)]
pub(crate) struct State {
    pub repository: String,
    pub revision: String,
    pub files: BTreeMap<String, Vec<u8>>,
    pub redirect: Redirect,
    /// The token without which there is nothing but a 401.
    pub token: Option<String>,
    pub ranges: bool,
    /// Of each transfer of content, only so many bytes are sent before the connection is closed; then the next entry counts.
    pub broken: Vec<usize>,
    /// The repository had another name once.
    pub renamed_from: Option<String>,
    /// Flips a byte of all content.
    pub damaged: bool,
    pub requests: Vec<Request>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    pub host: &'static str,
    pub method: String,
    pub path: String,
    pub token: Option<String>,
    pub from: u64,
}

pub(crate) struct StandIn {
    pub address: SocketAddr,
    pub state: Arc<Mutex<State>>,
}

impl StandIn {
    pub(crate) fn new(repository: &str, files: &[(&str, &[u8])]) -> StandIn {
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        let state = Arc::new(Mutex::new(State {
            repository: repository.to_owned(),
            revision: "main".to_owned(),
            files,
            redirect: Redirect::Absolute,
            token: None,
            ranges: true,
            broken: Vec::new(),
            renamed_from: None,
            damaged: false,
            requests: Vec::new(),
        }));
        let storage = listen("storage", None, Arc::clone(&state));
        let address = listen("hub", Some(storage), Arc::clone(&state));
        StandIn { address, state }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Takes the requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

fn listen(host: &'static str, storage: Option<SocketAddr>, state: Arc<Mutex<State>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = Arc::clone(&state);
            thread::spawn(move || {
                // A client may go away at any time.
                let _ = answer(stream, host, storage, &state);
            });
        }
    });
    address
}

fn read(stream: &mut TcpStream, host: &'static str) -> std::io::Result<Request> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let range = headers.get("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    Ok(Request {
        host,
        method,
        path,
        token: headers.get("authorization").map(|value| value.trim_start_matches("Bearer ").to_owned()),
        from: range.map_or(0, |from| from.parse().unwrap()),
    })
}

struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    cut: Option<usize>,
}

fn reply(status: u16, headers: &[(&'static str, &str)], body: &[u8]) -> Reply {
    let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Reply { status, headers, body: body.to_vec(), cut: None }
}

fn answer(
    mut stream: TcpStream,
    host: &'static str,
    storage: Option<SocketAddr>,
    state: &Mutex<State>,
) -> std::io::Result<()> {
    let request = read(&mut stream, host)?;
    let reply = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        respond(&request, storage, &mut state)
    };
    let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|(name, _)| *name == "content-length") {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())])?;
    }
    stream.flush()
}

fn respond(request: &Request, storage: Option<SocketAddr>, state: &mut State) -> Reply {
    let path = request.path.split('?').next().unwrap_or_default();
    if let Some(file) = path.strip_prefix("/content/") {
        return content(file, request, state);
    }
    if let Some(old) = &state.renamed_from
        && path.contains(old.as_str())
    {
        let to = path.replace(old.as_str(), &state.repository);
        return reply(307, &[("location", &to)], b"");
    }
    let api = format!("/api/models/{}/revision/", state.repository);
    let resolve = format!("/{}/resolve/", state.repository);
    if let Some(revision) = path.strip_prefix(&api) {
        if revision.replace("%2F", "/") != state.revision && revision != COMMIT {
            return reply(404, &[("x-error-code", "RevisionNotFound")], b"{}");
        }
        let names: Vec<String> =
            state.files.keys().map(|name| format!("{{\"rfilename\": {name:?}}}")).collect();
        let body = format!("{{\"sha\": {COMMIT:?}, \"gated\": false, \"siblings\": [{}]}}", names.join(", "));
        return reply(200, &[("content-type", "application/json")], body.as_bytes());
    }
    if let Some(file) =
        path.strip_prefix(&resolve).and_then(|rest| rest.strip_prefix(COMMIT)?.strip_prefix('/'))
    {
        return resolved(file, request, storage, state);
    }
    reply(401, &[("x-error-code", "RepoNotFound")], b"")
}

fn resolved(file: &str, request: &Request, storage: Option<SocketAddr>, state: &mut State) -> Reply {
    if state.token.is_some() && request.token != state.token {
        return match request.token {
            None => reply(401, &[("x-error-code", "GatedRepo")], b""),
            Some(ref wrong) if wrong.starts_with("hf_no_access") => {
                reply(403, &[("x-error-code", "GatedRepo")], b"")
            }
            Some(_) => {
                let message = "Invalid credentials in Authorization header";
                reply(401, &[("x-error-message", message)], b"")
            }
        };
    }
    let Some(content_of) = state.files.get(file) else {
        return reply(404, &[("x-error-code", "EntryNotFound")], b"");
    };
    let etag = etag(content_of);
    let bytes = content_of.len().to_string();
    if !file.ends_with(".safetensors") || state.redirect == Redirect::None {
        let mut reply = content(file, request, state);
        reply.headers.extend([("etag", format!("\"{etag}\"")), ("x-repo-commit", COMMIT.to_owned())]);
        return reply;
    }
    let path = format!("/content/{file}?signature=secret");
    let location = match (state.redirect, storage) {
        (Redirect::Absolute, Some(storage)) => format!("http://{storage}{path}"),
        _ => path,
    };
    let linked = format!("\"{etag}\"");
    let headers = [
        ("location", location.as_str()),
        ("x-repo-commit", COMMIT),
        ("x-linked-etag", &linked),
        ("x-linked-size", &bytes),
        ("etag", "W/\"something-else\""),
    ];
    reply(302, &headers, b"")
}

fn content(file: &str, request: &Request, state: &mut State) -> Reply {
    let Some(whole) = state.files.get(file) else { return reply(404, &[], b"") };
    let mut whole = whole.clone();
    if state.damaged {
        whole[0] ^= 1;
    }
    let transfer = request.method == "GET" && file.ends_with(".safetensors");
    let cut = (transfer && !state.broken.is_empty()).then(|| state.broken.remove(0));
    let mut reply = match usize::try_from(request.from).unwrap() {
        0 => reply(200, &[], &whole),
        _ if !state.ranges => reply(200, &[], &whole),
        from if from >= whole.len() => reply(416, &[], b""),
        from => {
            let range = format!("bytes {from}-{}/{}", whole.len() - 1, whole.len());
            reply(206, &[("content-range", &range)], &whole[from..])
        }
    };
    reply.cut = cut.map(|cut| cut.min(reply.body.len()));
    reply.headers.push(("content-length", reply.body.len().to_string()));
    reply
}

/// The SHA-256, which names the content of large files.
pub(crate) fn etag(content: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, content);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
