//! The open connections: how many there may be, which one makes room for another, and how long each may be silent.
//!
//! Every connection keeps an [`Activity`]: its socket notes bytes, the bodies of request and answer note the work
//! between them. [`Connections::sweep`] closes what has been silent for too long.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, HttpBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use remote_vae_wire::{content_type, error_body};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};

use crate::metrics::Rejection;
use crate::observe::observe;
use crate::plain_errors::JsonErrors;
use crate::routes;
use crate::state::Shared;
use crate::tls::Tls;
use crate::watched::{Holding, Read, Watched};

/// Pause after the system refused a connection, for instance for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Least time for answers to reach their clients after the engine has finished.
const FLUSH_TIME: Duration = Duration::from_secs(2);
/// Connections that are told at one time that there is no room for them; further ones are closed without a word.
const REFUSALS: usize = 64;
/// Time that a client has to take that answer.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

/// Who is at the other end of a request's connection; found in the request's extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// What a connection does.
#[derive(Debug, Clone, Copy)]
struct Activity {
    /// Requests whose body or answer is not yet done with.
    requests: usize,
    /// The end of the last request.
    quiet_since: Instant,
    /// When the connection began, or the first byte of a later request's head came; none between requests.
    head_since: Option<Instant>,
    /// Since when the client takes nothing of what is written.
    stuck_since: Option<Instant>,
    received: Received,
}

/// What was received since the last request's end: enough to tell whether a later head has begun.
#[derive(Debug, Clone, Copy, Default)]
struct Received {
    /// Whether a character of the head has come, and whether the last one ended a line.
    begun: bool,
    at_line_end: bool,
    /// Bytes behind the head, once it has ended.
    behind: Option<u64>,
    last: u8,
    /// More or less came than one request: from then on it is not known which bytes are whose.
    out_of_step: bool,
}

impl Received {
    fn note(&mut self, bytes: &[u8]) {
        self.last = bytes.last().copied().unwrap_or(self.last);
        if let Some(behind) = &mut self.behind {
            *behind += bytes.len() as u64;
            return;
        }
        for (index, byte) in bytes.iter().enumerate() {
            match byte {
                b'\n' if self.at_line_end && self.begun => {
                    self.behind = Some((bytes.len() - index - 1) as u64);
                    return;
                }
                b'\n' => self.at_line_end = true,
                b'\r' => {}
                _ => (self.begun, self.at_line_end) = (true, false),
            }
        }
    }

    /// A request has ended whose body had this length; none if it came in chunks.
    fn end(&mut self, body: Option<u64>) {
        let in_step = match body {
            Some(length) => self.behind == Some(length),
            None => self.last == b'\n',
        };
        *self = Self { out_of_step: self.out_of_step || !in_step, ..Self::default() };
    }
}

impl Activity {
    fn new() -> Self {
        let now = Instant::now();
        let received = Received::default();
        Self { requests: 0, quiet_since: now, head_since: Some(now), stuck_since: None, received }
    }

    /// When the connection has been silent for too long; none while there is work.
    fn deadline(&self, header_timeout: Duration, idle_timeout: Duration) -> Option<Instant> {
        match (self.stuck_since, self.requests, self.head_since) {
            (Some(since), _, _) => since.checked_add(idle_timeout),
            (None, 1.., _) => None,
            (None, 0, Some(since)) => since.checked_add(header_timeout),
            (None, 0, None) => self.quiet_since.checked_add(idle_timeout),
        }
    }

    /// Since when nothing has come of this connection; none while something is under way.
    fn idle_since(&self) -> Option<Instant> {
        let idle = self.requests == 0 && self.stuck_since.is_none();
        idle.then(|| self.head_since.unwrap_or(self.quiet_since))
    }
}

/// One connection as others see it.
pub(crate) struct Entry {
    activity: Mutex<Activity>,
    close: Notify,
}

impl Entry {
    fn new() -> Arc<Self> {
        Arc::new(Self { activity: Mutex::new(Activity::new()), close: Notify::new() })
    }

    fn activity(&self) -> MutexGuard<'_, Activity> {
        self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes came in, in the clear.
    pub(crate) fn received(&self, bytes: &[u8]) {
        let mut activity = self.activity();
        activity.received.note(bytes);
        if activity.requests == 0 && activity.head_since.is_none() {
            activity.head_since = Some(Instant::now());
        }
    }

    /// The client took bytes, or (`false`) takes none for now.
    pub(crate) fn wrote(&self, some: bool) {
        let mut activity = self.activity();
        if some {
            activity.stuck_since = None;
        } else {
            activity.stuck_since.get_or_insert_with(Instant::now);
        }
    }

    /// A request's head is complete; its body has this length, or none is known before its end.
    fn begin(self: &Arc<Self>, body: Option<u64>) -> Arc<Request> {
        let mut activity = self.activity();
        activity.requests += 1;
        activity.head_since = None;
        drop(activity);
        Arc::new(Request { entry: Arc::clone(self), body })
    }
}

/// A request that is not done with: its body, its handler or its answer's body is still there.
pub(crate) struct Request {
    entry: Arc<Entry>,
    body: Option<u64>,
}

impl Drop for Request {
    fn drop(&mut self) {
        let mut activity = self.entry.activity();
        activity.requests = activity.requests.saturating_sub(1);
        activity.quiet_since = Instant::now();
        activity.received.end(self.body);
        // What came with this request may be the beginning of the next one.
        if activity.received.out_of_step {
            activity.head_since = Some(activity.quiet_since);
        }
    }
}

/// All connections, by number.
#[derive(Default)]
struct Open {
    entries: Mutex<(u64, HashMap<u64, Arc<Entry>>)>,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, (u64, HashMap<u64, Arc<Entry>>)> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        self.lock().1.len()
    }

    fn add(self: &Arc<Self>, entry: &Arc<Entry>) -> Place {
        let mut entries = self.lock();
        let number = entries.0;
        entries.0 += 1;
        entries.1.insert(number, Arc::clone(entry));
        Place { open: Arc::clone(self), number }
    }

    /// Closes the connection that is idle longest. False if none is.
    fn close_idlest(&self) -> bool {
        let mut entries = self.lock();
        let idle = entries.1.iter().filter_map(|(&number, entry)| {
            let since = entry.activity().idle_since()?;
            Some((since, number))
        });
        let idlest = idle.min().and_then(|(_, number)| entries.1.remove(&number));
        idlest.inspect(|entry| entry.close.notify_one()).is_some()
    }

    fn close_silent(&self, header_timeout: Duration, idle_timeout: Duration) {
        let now = Instant::now();
        for entry in self.lock().1.values() {
            let deadline = entry.activity().deadline(header_timeout, idle_timeout);
            if deadline.is_some_and(|deadline| deadline <= now) {
                entry.close.notify_one();
            }
        }
    }
}

/// A connection's place among the open ones.
struct Place {
    open: Arc<Open>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.lock().1.remove(&self.number);
    }
}

/// What is at hand for a connection's requests.
struct Greeted {
    shared: Arc<Shared>,
    router: Router,
    entry: Arc<Entry>,
    watcher: Watcher,
    peer: Peer,
}

impl Greeted {
    /// Answers requests until the connection ends.
    async fn talk(self, socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Self { shared, router, entry, watcher, peer } = self;
        let socket = Read::new(JsonErrors::new(socket), Arc::clone(&entry));
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (shared, router) = (Arc::clone(&shared), router.clone());
            let guard = entry.begin(request.body().size_hint().exact());
            async move {
                // A connection is not idle for as long as the bodies of request and answer are there.
                let mut request = request.map(|body| Body::new(Holding::new(body, Arc::clone(&guard))));
                request.extensions_mut().insert(peer);
                let response = observe(shared, router, request).await;
                Ok::<_, Infallible>(response.map(|body| Holding::new(body, guard)))
            }
        });
        let mut builder = hyper::server::conn::http1::Builder::new();
        // Time is kept here, where an unfinished head and an idle connection can be told apart.
        builder.header_read_timeout(None);
        let connection = builder.serve_connection(TokioIo::new(socket), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// The open connections of a server.
pub(crate) struct Connections {
    shared: Arc<Shared>,
    tls: Option<Arc<Tls>>,
    router: Router,
    graceful: GracefulShutdown,
    open: Arc<Open>,
    refusals: Arc<Semaphore>,
}

impl Connections {
    pub(crate) fn new(shared: &Arc<Shared>, tls: Option<Arc<Tls>>) -> Self {
        Self {
            tls,
            shared: Arc::clone(shared),
            router: routes::router(Arc::clone(shared)),
            graceful: GracefulShutdown::new(),
            open: Arc::default(),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
        }
    }

    /// Takes one connection and serves it on a task of its own. If there are too many, it takes the place of the one
    /// that is idle longest.
    pub(crate) async fn accept(&self, listener: &TcpListener) {
        match listener.accept().await {
            Ok((stream, address)) => {
                let full = self.open.len() >= self.shared.options.limits.max_connections;
                if full && !self.open.close_idlest() {
                    self.refuse(stream);
                } else {
                    self.serve(stream, Peer(address.ip()));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                self.open.close_idlest();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    fn serve(&self, stream: TcpStream, peer: Peer) {
        let _ = stream.set_nodelay(true);
        let entry = Entry::new();
        let place = self.open.add(&entry);
        let socket = Watched::new(stream, Arc::clone(&entry));
        let acceptor = self.tls.as_ref().map(|tls| tls.acceptor());
        let greeted = Greeted {
            shared: Arc::clone(&self.shared),
            router: self.router.clone(),
            entry: Arc::clone(&entry),
            watcher: self.graceful.watcher(),
            peer,
        };
        let talk = async move {
            match acceptor {
                None => greeted.talk(socket).await,
                Some(acceptor) => match acceptor.accept(socket).await {
                    Ok(socket) => greeted.talk(socket).await,
                    Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
                },
            }
        };
        tokio::spawn(async move {
            let _place = place;
            tokio::select! {
                () = talk => {}
                () = entry.close.notified() => tracing::debug!("a silent connection was closed"),
            }
        });
    }

    /// Answers 503 without reading a request; a client that speaks TLS is only turned away.
    fn refuse(&self, mut stream: TcpStream) {
        self.shared.metrics.rejected(Rejection::Connections);
        if self.tls.is_some() {
            return;
        }
        let Ok(place) = Arc::clone(&self.refusals).try_acquire_owned() else { return };
        let body = error_body("The server has as many connections as it may. Try again shortly.");
        let answer = format!(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-type: {}\r\ncontent-length: {}\r\nretry-after: 1\r\n\
             connection: close\r\n\r\n{body}",
            content_type::JSON,
            body.len()
        );
        tokio::spawn(async move {
            let _place = place;
            let answering = async {
                stream.write_all(answer.as_bytes()).await?;
                stream.shutdown().await?;
                // Closing before the client has sent its request could take the answer back from it.
                let mut request = [0; 4096];
                while stream.read(&mut request).await? > 0 {}
                std::io::Result::Ok(())
            };
            let _ = tokio::time::timeout(REFUSAL_TIME, answering).await;
        });
    }

    /// How often [`Connections::sweep`] is due.
    pub(crate) fn sweep_step(&self) -> Duration {
        const LONGEST: Duration = Duration::from_secs(1);
        const SHORTEST: Duration = Duration::from_millis(10);
        let options = &self.shared.options;
        (options.header_timeout.min(options.idle_timeout) / 8).clamp(SHORTEST, LONGEST)
    }

    /// Closes the connections that have been silent for too long.
    pub(crate) fn sweep(&self) {
        let options = &self.shared.options;
        self.open.close_silent(options.header_timeout, options.idle_timeout);
    }

    /// Lets answers reach their clients, then gives up on the rest.
    pub(crate) async fn finish(self) {
        if tokio::time::timeout(FLUSH_TIME, self.graceful.shutdown()).await.is_err() {
            tracing::warn!("some clients did not take their answers in time");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Duration = Duration::from_secs(15);
    const IDLE: Duration = Duration::from_secs(300);

    fn allowed(entry: &Entry) -> Option<Duration> {
        let activity = *entry.activity();
        let since = activity.stuck_since.or(activity.idle_since()).unwrap_or(activity.quiet_since);
        activity.deadline(HEADER, IDLE).map(|deadline| deadline - since)
    }

    #[test]
    fn silence_is_judged_by_what_went_before() {
        let entry = Entry::new();
        assert_eq!(allowed(&entry), Some(HEADER));
        entry.received(b"GET / HTTP/1.1\r\n\r\n");
        let request = entry.begin(Some(0));
        assert_eq!(allowed(&entry), None);
        entry.wrote(false);
        assert_eq!(allowed(&entry), Some(IDLE));
        entry.wrote(true);
        assert_eq!((allowed(&entry), entry.activity().idle_since()), (None, None));
        drop(request);
        assert_eq!(allowed(&entry), Some(IDLE));
        entry.received(b"G");
        assert_eq!(allowed(&entry), Some(HEADER));
    }

    #[test]
    fn what_comes_with_a_request_begins_the_next() {
        let after = |received: &[&[u8]], body: Option<u64>| {
            let entry = Entry::new();
            received.iter().for_each(|bytes| entry.received(bytes));
            drop(entry.begin(body));
            allowed(&entry).unwrap()
        };
        assert_eq!(after(&[b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"], Some(0)), IDLE);
        assert_eq!(after(&[b"GET / HTTP/1.1\r\nHost: x\r\n\r\nG"], Some(0)), HEADER);
        assert_eq!(after(&[b"POST / HTTP/1.1\n\nab", b"cd\n\n"], Some(6)), IDLE);
        assert_eq!(after(&[b"POST / HTTP/1.1\r\n\r", b"\nab", b"cdG"], Some(4)), HEADER);
        assert_eq!(after(&[b"POST / HTTP/1.1\r\n\r\n", b"1\r\na\r\n0\r\n\r\n"], None), IDLE);
        assert_eq!(after(&[b"POST / HTTP/1.1\r\n\r\n", b"1\r\na\r\n0\r\n\r\nGET"], None), HEADER);
    }

    #[test]
    fn the_idlest_makes_room() {
        let open = Arc::new(Open::default());
        let entries: Vec<_> = (0..3).map(|_| Entry::new()).collect();
        let places: Vec<_> = entries.iter().map(|entry| open.add(entry)).collect();
        let work = entries[0].begin(Some(0));
        assert!(open.close_idlest());
        assert!(!open.lock().1.contains_key(&places[1].number) && open.len() == 2);
        drop(work);
        assert!(open.close_idlest());
        assert!(!open.lock().1.contains_key(&places[2].number));
        assert!(open.close_idlest() && !open.close_idlest());
        drop(places);
    }
}
