//! Who may use the server, and how much: bearer keys with their limits, compared in constant time and read anew when
//! their file changes.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};

use crate::connections::Peer;
use crate::error::{Refusal, ServerError};
use crate::queue::Client;
use crate::watch::Stamp;

/// A bearer key and what its holder may do. `Debug` does not show the key.
#[derive(Clone, PartialEq)]
pub struct ApiKey {
    secret: Secret,
    /// What the log and the queue call its holder. Where none is given, `key-` and 16 digits that follow from the key and
    /// from a secret of the process: the same for as long as it runs, whatever becomes of other keys.
    pub name: Option<String>,
    /// Most requests in the queue at one time.
    pub max_queue: Option<usize>,
    /// Most pixels of one request, below the server's own limit.
    pub max_pixels: Option<u64>,
    /// Most requests that are taken in a minute.
    pub per_minute: Option<u32>,
}

#[derive(Clone, PartialEq)]
struct Secret(String);

impl ApiKey {
    /// Takes the key's text; no limits.
    pub fn new(key: impl Into<String>) -> Self {
        Self { secret: Secret(key.into()), name: None, max_queue: None, max_pixels: None, per_minute: None }
    }

    /// Reads a line of a key file: `KEY [name=NAME] [queue=N] [megapixels=N] [per-minute=N]`. None for an empty line or a
    /// comment, which begins with `#`.
    ///
    /// # Errors
    /// What is wrong, without the line's text.
    pub fn parse_line(line: &str) -> Result<Option<Self>, String> {
        let mut words = line.split_whitespace();
        let Some(first) = words.next().filter(|word| !word.starts_with('#')) else { return Ok(None) };
        let mut key = Self::new(first);
        if !key.is_plain() {
            return Err("the key may hold visible ASCII characters only".to_owned());
        }
        for word in words {
            let (name, value) = word.split_once('=').ok_or("expected settings of the form name=value")?;
            let number = || {
                let number = value.parse::<u32>().ok().filter(|&number| number > 0);
                number.ok_or(format!("expected `{name}` to be a whole number above 0"))
            };
            match name {
                "name" if is_name(value) => key.name = Some(value.to_owned()),
                "name" => {
                    return Err("expected a name of letters, digits, `.`, `_`, `-`, at most 64".to_owned());
                }
                "queue" => key.max_queue = Some(number()? as usize),
                "megapixels" => key.max_pixels = Some(u64::from(number()?) << 20),
                "per-minute" => key.per_minute = Some(number()?),
                _ => return Err("expected the settings name, queue, megapixels and per-minute".to_owned()),
            }
        }
        Ok(Some(key))
    }

    /// Whether the key can stand in a header.
    pub(crate) fn is_plain(&self) -> bool {
        let secret = &self.secret.0;
        !secret.is_empty() && secret.bytes().all(|byte| byte.is_ascii_graphic())
    }

    /// Whether `candidate` is this key, in a time that depends on the candidate's length alone.
    pub(crate) fn matches(&self, candidate: &[u8]) -> bool {
        let key = self.secret.0.as_bytes();
        let difference = candidate.iter().zip(key.iter().cycle()).fold(0_u8, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0 && key.len() == candidate.len()
    }
}

fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !text.is_empty() && text.len() <= 64 && text.bytes().all(plain)
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Who sent a request, and what it may do.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Caller {
    pub(crate) client: Client,
    pub(crate) max_queue: Option<usize>,
    pub(crate) max_pixels: Option<u64>,
}

/// A key in use.
struct Entry {
    key: ApiKey,
    name: Arc<str>,
    bucket: Arc<Bucket>,
}

/// The keys of a server.
#[derive(Default)]
pub(crate) struct Keys {
    /// Those that the options name; they stay.
    fixed: Vec<ApiKey>,
    file: Option<std::path::PathBuf>,
    stamp: Mutex<Option<Stamp>>,
    entries: RwLock<Vec<Entry>>,
    /// Names keys that have none, so that a name tells nothing of its key.
    naming: RandomState,
}

impl Keys {
    /// Takes the keys of the options and of the file.
    ///
    /// # Errors
    /// The file cannot be read or a line is wrong.
    pub(crate) fn new(fixed: Vec<ApiKey>, file: Option<&Path>) -> Result<Self, ServerError> {
        let keys = Self { fixed, file: file.map(Path::to_owned), ..Self::default() };
        let from_file = match file {
            Some(path) => {
                *keys.stamp.lock().unwrap_or_else(PoisonError::into_inner) = Stamp::of(path);
                read(path).map_err(|reason| ServerError::KeyFile { path: path.to_owned(), reason })?
            }
            None => Vec::new(),
        };
        keys.install(from_file);
        Ok(keys)
    }

    /// Whether a key is asked for.
    pub(crate) fn are_wanted(&self) -> bool {
        self.file.is_some() || !self.fixed.is_empty()
    }

    /// Reads the file anew if it has changed. What cannot be read changes nothing.
    pub(crate) fn refresh(&self) {
        let Some(path) = &self.file else { return };
        let found = Stamp::of(path);
        {
            let mut stamp = self.stamp.lock().unwrap_or_else(PoisonError::into_inner);
            if *stamp == found {
                return;
            }
            *stamp = found;
        }
        match read(path) {
            Ok(keys) => {
                tracing::info!(path = %path.display(), keys = keys.len(), "the keys were read anew");
                self.install(keys);
            }
            Err(reason) => {
                tracing::error!(path = %path.display(), reason, "the keys stay as they were");
            }
        }
    }

    fn install(&self, from_file: Vec<ApiKey>) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let mut buckets: HashMap<Arc<str>, Arc<Bucket>> =
            entries.drain(..).map(|entry| (entry.name, entry.bucket)).collect();
        let all = self.fixed.iter().cloned().chain(from_file);
        entries.extend(all.map(|key| {
            let made = || format!("key-{:016x}", self.naming.hash_one(&key.secret.0));
            let name: Arc<str> = key.name.clone().unwrap_or_else(made).into();
            let bucket = buckets.remove(&name).unwrap_or_default();
            Entry { key, name, bucket }
        }));
    }

    /// Who asks about what is there already; 401 for nobody known.
    pub(crate) fn identify(&self, head: &Parts) -> Result<Client, Refusal> {
        self.find(head, |_| Ok(())).map(|caller| caller.client)
    }

    /// Who sends work; 401 for nobody known, 429 for too many requests in a minute.
    pub(crate) fn admit(&self, head: &Parts) -> Result<Caller, Refusal> {
        self.find(head, |Entry { key, bucket, .. }| {
            let Some(limit) = key.per_minute else { return Ok(()) };
            bucket.take(limit, Instant::now()).map_err(|wait| {
                let message = format!("Your key may send {limit} requests a minute. Try again.");
                Refusal::overloaded(message, wait)
            })
        })
    }

    fn find(&self, head: &Parts, check: impl Fn(&Entry) -> Result<(), Refusal>) -> Result<Caller, Refusal> {
        if !self.are_wanted() {
            let peer = head.extensions.get::<Peer>().map_or(Ipv4Addr::LOCALHOST.into(), |peer| peer.0);
            return Ok(Caller { client: Client::at(peer), max_queue: None, max_pixels: None });
        }
        let candidate = bearer(&head.headers);
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        // Every key is compared, so that time does not tell which one came close.
        let found = entries
            .iter()
            .fold(None, |found, entry| if entry.key.matches(candidate) { Some(entry) } else { found });
        let Some(entry) = found else {
            let message = "Expected a valid key in the header `authorization: Bearer KEY`.";
            return Err(Refusal::new(StatusCode::UNAUTHORIZED, message));
        };
        check(entry)?;
        let Entry { key, name, .. } = entry;
        let client = Client::Key(Arc::clone(name));
        Ok(Caller { client, max_queue: key.max_queue, max_pixels: key.max_pixels })
    }
}

/// The key that a request sends; empty for none.
fn bearer(headers: &HeaderMap) -> &[u8] {
    const SCHEME: &[u8] = b"bearer ";
    let sent = headers.get(header::AUTHORIZATION).map_or(&[][..], |value| value.as_bytes());
    match sent.split_at_checked(SCHEME.len()) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(SCHEME) => key,
        _ => &[],
    }
}

/// The keys of a file.
fn read(path: &Path) -> Result<Vec<ApiKey>, String> {
    const LARGEST: u64 = 1 << 20;
    let facts = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if facts.len() > LARGEST {
        return Err(format!("expected at most {LARGEST} bytes, got {}", facts.len()));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let mut keys: Vec<ApiKey> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let wrong = |reason: &str| format!("line {}: {reason}", index + 1);
        let Some(key) = ApiKey::parse_line(line).map_err(|reason| wrong(&reason))? else { continue };
        if keys.iter().any(|other| other.secret == key.secret) {
            return Err(wrong("this key was there before"));
        }
        if key.name.is_some() && keys.iter().any(|other| other.name == key.name) {
            return Err(wrong("this name was there before"));
        }
        keys.push(key);
    }
    Ok(keys)
}

/// Requests that a key may still send: a full minute's worth at first, then as many as the limit adds over time.
#[derive(Debug, Default)]
struct Bucket(Mutex<Option<(f64, Instant)>>);

impl Bucket {
    /// Takes one, or tells when there will be one.
    fn take(&self, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let (most, per_second) = (f64::from(per_minute), f64::from(per_minute) / 60.0);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = state.unwrap_or((most, now));
        let left = (left + now.saturating_duration_since(since).as_secs_f64() * per_second).min(most);
        if left < 1.0 {
            *state = Some((left, now));
            return Err(Duration::from_secs_f64((1.0 - left) / per_second));
        }
        *state = Some((left - 1.0, now));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(authorization: &str) -> Parts {
        let request = axum::http::Request::builder().header("authorization", authorization).body(());
        request.unwrap().into_parts().0
    }

    #[test]
    fn keys_match_whole_and_are_not_printed() {
        let key = ApiKey::new("abc");
        assert!(key.matches(b"abc"));
        for other in ["ab", "abcd", "", "abd", "abcabc", "a"] {
            assert!(!key.matches(other.as_bytes()), "{other}");
        }
        assert!(!format!("{key:?}").contains("abc"));
    }

    #[test]
    fn lines_are_keys_with_limits() {
        let key =
            ApiKey::parse_line(" s3cret name=alice queue=2 megapixels=4 per-minute=60 ").unwrap().unwrap();
        assert_eq!((key.name.as_deref(), key.max_queue), (Some("alice"), Some(2)));
        assert_eq!((key.max_pixels, key.per_minute), (Some(4 << 20), Some(60)));
        assert!(key.matches(b"s3cret"));
        assert_eq!((ApiKey::parse_line(""), ApiKey::parse_line("# s3cret")), (Ok(None), Ok(None)));
        for wrong in [
            "s3cret x",
            "s3cret queue=0",
            "s3cret queue=-1",
            "s3cret colour=red",
            "s3cret name=a/b",
            "s\u{e9}cret",
        ] {
            let reason = ApiKey::parse_line(wrong).unwrap_err();
            assert!(!reason.contains("cret"), "{reason}");
        }
    }

    #[test]
    fn a_file_is_read_anew_when_it_changes_and_kept_when_it_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, "first name=a\n").unwrap();
        let keys = Keys::new(vec![ApiKey::new("fixed")], Some(&path)).unwrap();
        let knows =
            |keys: &Keys, key: &str| keys.admit(&head(&format!("Bearer {key}"))).map(|caller| caller.client);
        assert_eq!(knows(&keys, "first"), Ok(Client::Key("a".into())));
        let fixed = knows(&keys, "fixed");
        std::fs::write(&path, "second-key\n# none\nthird name=c\n").unwrap();
        keys.refresh();
        let second = knows(&keys, "second-key");
        assert!(matches!(&second, Ok(Client::Key(name)) if name.starts_with("key-") && name.len() == 20));
        assert_ne!(second, fixed);
        // Who a key is does not depend on the keys before it.
        std::fs::write(&path, "zeroth-key\nthird name=c\nsecond-key").unwrap();
        keys.refresh();
        assert_eq!((knows(&keys, "second-key"), knows(&keys, "fixed")), (second, fixed));
        assert_eq!(knows(&keys, "first").unwrap_err().status, 401);
        for wrong in ["third queue=none\nand more of it", "a\na\n", "a name=x\nb name=x"] {
            std::fs::write(&path, wrong).unwrap();
            keys.refresh();
            assert!(knows(&keys, "third").is_ok() && knows(&keys, "fixed").is_ok(), "{wrong}");
        }
        std::fs::remove_file(&path).unwrap();
        keys.refresh();
        assert!(knows(&keys, "third").is_ok());
        assert!(Keys::new(Vec::new(), Some(&path)).is_err());
        // A file without keys lets nobody in.
        std::fs::write(&path, "").unwrap();
        assert_eq!(knows(&Keys::new(Vec::new(), Some(&path)).unwrap(), "").unwrap_err().status, 401);
    }

    #[test]
    fn requests_a_minute_are_counted() {
        let (bucket, start) = (Bucket::default(), Instant::now());
        assert!(bucket.take(2, start).is_ok() && bucket.take(2, start).is_ok());
        let wait = bucket.take(2, start).unwrap_err().as_secs_f64();
        assert!((29.9..30.1).contains(&wait), "{wait}");
        assert!(bucket.take(2, start + Duration::from_secs(31)).is_ok());
        assert!(bucket.take(2, start + Duration::from_secs(31)).is_err());
    }
}
