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
use axum::body::Body;
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
use crate::watched::{Holding, Watched};

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
}

impl Activity {
    fn new() -> Self {
        let now = Instant::now();
        Self { requests: 0, quiet_since: now, head_since: Some(now), stuck_since: None }
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

    /// Bytes came in.
    pub(crate) fn received(&self) {
        let mut activity = self.activity();
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

    /// A request's head is complete.
    fn begin(self: &Arc<Self>) -> Arc<Request> {
        let mut activity = self.activity();
        activity.requests += 1;
        activity.head_since = None;
        drop(activity);
        Arc::new(Request(Arc::clone(self)))
    }
}

/// A request that is not done with: its body, its handler or its answer's body is still there.
pub(crate) struct Request(Arc<Entry>);

impl Drop for Request {
    fn drop(&mut self) {
        let mut activity = self.0.activity();
        activity.requests = activity.requests.saturating_sub(1);
        activity.quiet_since = Instant::now();
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
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let (shared, router) = (Arc::clone(&shared), router.clone());
            let guard = entry.begin();
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
        let connection = builder.serve_connection(TokioIo::new(JsonErrors::new(socket)), service);
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
        let request = entry.begin();
        entry.received();
        assert_eq!(allowed(&entry), None);
        entry.wrote(false);
        assert_eq!(allowed(&entry), Some(IDLE));
        entry.wrote(true);
        assert_eq!((allowed(&entry), entry.activity().idle_since()), (None, None));
        drop(request);
        assert_eq!(allowed(&entry), Some(IDLE));
        entry.received();
        assert_eq!(allowed(&entry), Some(HEADER));
    }

    #[test]
    fn the_idlest_makes_room() {
        let open = Arc::new(Open::default());
        let entries: Vec<_> = (0..3).map(|_| Entry::new()).collect();
        let places: Vec<_> = entries.iter().map(|entry| open.add(entry)).collect();
        let work = entries[0].begin();
        assert!(open.close_idlest());
        assert!(!open.lock().1.contains_key(&places[1].number) && open.len() == 2);
        drop(work);
        assert!(open.close_idlest());
        assert!(!open.lock().1.contains_key(&places[2].number));
        assert!(open.close_idlest() && !open.close_idlest());
        drop(places);
    }
}
