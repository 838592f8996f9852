//! The client without an async runtime: the same methods, each returning when its answer is there.

use std::sync::Arc;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::client::ClientBuilder;
use crate::error::ClientError;
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

    fn wait<T>(&self, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        outside_runtime()?;
        self.runtime.block_on(work)
    }
}

fn outside_runtime() -> Result<(), ClientError> {
    if Handle::try_current().is_ok() { Err(ClientError::InsideRuntime) } else { Ok(()) }
}
