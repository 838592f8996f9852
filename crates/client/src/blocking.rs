//! The client without an async runtime: the same methods, each returning when its answer is there.
//!
//! ```
//! use remote_vae_client::{DecodeOptions, EncodeOptions, Output, Source, blocking::Client};
//!
//! # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/serve.rs")); }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let runtime = tokio::runtime::Runtime::new()?;
//! # let (url, _handle) = runtime.block_on(support::serve(vec![]));
//! # let photograph = support::png();
//! let client = Client::new(url)?; // for instance "http://127.0.0.1:8080"
//! let latents = client.encode(Source::file(photograph), &EncodeOptions::default())?.tensor()?;
//! println!("{:?}", latents.shape); // [1, channels, height / 8, width / 8]
//!
//! // Several at one time, in their order.
//! let options = DecodeOptions::new(Output::Png);
//! for reply in client.decode_each([latents.clone(), latents.clone()], &options, 2) {
//!     println!("{} bytes", reply?.file()?.len());
//! }
//!
//! // Handed in now, fetched later.
//! let job = client.submit_decode(&latents, &options)?;
//! let picture = job.wait(|status| println!("{:.0} %", 100.0 * status.progress))?.file()?;
//! job.cancel()?; // the server forgets the result
//! # assert!(picture.starts_with(b"\x89PNG"));
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::client::ClientBuilder;
use crate::error::ClientError;
use crate::jobs::{self, JobEvent, JobStatus};
use crate::options::{DecodeOptions, EncodeOptions, Source};
use crate::queue::DecodeQueue;
use crate::reply::Reply;
use crate::tensor::Tensor;

/// Speaks to one endpoint. Cheap to clone, usable from several threads at once.
///
/// Not for use inside an async runtime, where it would stall other work: it gives
/// [`ClientError::InsideRuntime`] there.
#[derive(Debug, Clone)]
pub struct Client {
    inner: crate::Client,
    runtime: Arc<Runtime>,
}

impl Client {
    /// A client of the endpoint at `url`.
    ///
    /// # Errors
    /// The address cannot be used, or the runtime cannot be started.
    pub fn new(url: impl Into<String>) -> Result<Self, ClientError> {
        Self::from_builder(crate::Client::builder(url))
    }

    /// A client with other settings, from [`crate::Client::builder`].
    ///
    /// # Errors
    /// The address or the key cannot be used, or the runtime cannot be started.
    pub fn from_builder(builder: ClientBuilder) -> Result<Self, ClientError> {
        outside_runtime()?;
        // One worker thread keeps idle connections tended between calls.
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("remote-vae-client")
            .enable_all()
            .build()
            .map_err(ClientError::Runtime)?;
        Ok(Self { inner: builder.build()?, runtime: Arc::new(runtime) })
    }

    /// As [`crate::Client::decode`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn decode(&self, latents: &Tensor, options: &DecodeOptions) -> Result<Reply, ClientError> {
        self.wait(self.inner.decode(latents, options))
    }

    /// Decodes what `latents` gives, up to `parallel` requests at one time, and yields the replies in their order: while one
    /// is looked at, the next are under way. `latents` is asked for the next only when there is room.
    ///
    /// # Errors
    /// Each item is what [`Client::decode`] gives.
    pub fn decode_each<'a>(
        &'a self,
        latents: impl IntoIterator<Item = Tensor> + 'a,
        options: &DecodeOptions,
        parallel: usize,
    ) -> impl Iterator<Item = Result<Reply, ClientError>> + 'a {
        let mut queue =
            DecodeQueue::new(self.inner.clone(), options.clone(), parallel, parallel).untaken(parallel);
        let mut latents = latents.into_iter();
        let mut waiting = 0;
        std::iter::from_fn(move || {
            if let Err(error) = outside_runtime() {
                return Some(Err(error));
            }
            while waiting < parallel.max(1)
                && let Some(next) = latents.next()
            {
                if let Err(error) = self.runtime.block_on(queue.put(next)) {
                    return Some(Err(error));
                }
                waiting += 1;
            }
            waiting = waiting.saturating_sub(1);
            self.runtime.block_on(queue.next())
        })
    }

    /// As [`crate::Client::encode`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn encode(&self, source: Source, options: &EncodeOptions) -> Result<Reply, ClientError> {
        self.wait(self.inner.encode(source, options))
    }

    /// As [`crate::Client::is_ready`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn is_ready(&self) -> Result<bool, ClientError> {
        self.wait(self.inner.is_ready())
    }

    /// As [`crate::Client::info`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn info(&self) -> Result<serde_json::Value, ClientError> {
        self.wait(self.inner.info())
    }

    /// As [`crate::Client::metrics`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn metrics(&self) -> Result<String, ClientError> {
        self.wait(self.inner.metrics())
    }

    /// As [`crate::Client::submit_decode`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn submit_decode(&self, latents: &Tensor, options: &DecodeOptions) -> Result<Job, ClientError> {
        let inner = self.wait(self.inner.submit_decode(latents, options))?;
        Ok(Job { inner, client: self.clone() })
    }

    /// As [`crate::Client::submit_encode`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn submit_encode(&self, source: Source, options: &EncodeOptions) -> Result<Job, ClientError> {
        let inner = self.wait(self.inner.submit_encode(source, options))?;
        Ok(Job { inner, client: self.clone() })
    }

    /// As [`crate::Client::job`].
    pub fn job(&self, id: impl Into<String>) -> Job {
        Job { inner: self.inner.job(id), client: self.clone() }
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        outside_runtime()?;
        self.runtime.block_on(work)
    }
}

/// A job on a server, as [`crate::Job`]. Dropping it does not stop the work: [`Job::cancel`] does.
#[derive(Debug, Clone)]
pub struct Job {
    inner: jobs::Job,
    client: Client,
}

impl Job {
    /// As [`crate::Job::id`].
    pub fn id(&self) -> &str {
        self.inner.id()
    }

    /// As [`crate::Job::status`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn status(&self) -> Result<JobStatus, ClientError> {
        self.client.wait(self.inner.status())
    }

    /// As [`crate::Job::preview`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn preview(&self) -> Result<Option<Vec<u8>>, ClientError> {
        self.client.wait(self.inner.preview())
    }

    /// The events of [`crate::Job::events`]; each call of `next` waits for one.
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`]; each item is what [`crate::JobEvents::next`] gives.
    pub fn events(&self) -> Result<impl Iterator<Item = Result<JobEvent, ClientError>> + use<>, ClientError> {
        let mut events = self.client.wait(self.inner.events())?;
        let client = self.client.clone();
        Ok(std::iter::from_fn(move || match outside_runtime() {
            Ok(()) => client.runtime.block_on(events.next()),
            Err(error) => Some(Err(error)),
        }))
    }

    /// As [`crate::Job::wait`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn wait(&self, told: impl FnMut(&JobStatus)) -> Result<Reply, ClientError> {
        self.client.wait(self.inner.wait(told))
    }

    /// As [`crate::Job::result`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn result(&self) -> Result<Reply, ClientError> {
        self.client.wait(self.inner.result())
    }

    /// As [`crate::Job::cancel`].
    ///
    /// # Errors
    /// The same, and [`ClientError::InsideRuntime`].
    pub fn cancel(&self) -> Result<(), ClientError> {
        self.client.wait(self.inner.cancel())
    }
}

fn outside_runtime() -> Result<(), ClientError> {
    if Handle::try_current().is_ok() { Err(ClientError::InsideRuntime) } else { Ok(()) }
}
