//! Decoding beside other work: latents go in, replies come out in the same order.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::error::ClientError;
use crate::options::DecodeOptions;
use crate::reply::Reply;
use crate::tensor::Tensor;

/// Replies that may wait to be taken unless the queue is told otherwise.
const UNTAKEN: usize = 256;

/// A bounded queue of decodes. Dropping it gives up what is under way.
///
/// ```
/// use remote_vae_client::{Client, DecodeOptions, DecodeQueue, Output, Tensor};
///
/// # mod support { include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/serve.rs")); }
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let (url, _handle) = support::serve(vec![]).await;
/// # let one = Tensor::from_f32(vec![1, 4, 2, 2], remote_vae_wire::Dtype::Float16, &[0.5; 16])?;
/// # let made = vec![one; 9];
/// # let mut pictures = 0;
/// let options = DecodeOptions::new(Output::Png).scaled_by_model();
/// let mut queue = DecodeQueue::new(Client::new(url)?, options, 8, 2);
/// for latents in made {
///     queue.put(latents).await?; // waits while 8 decodes are under way
/// }
/// while let Some(reply) = queue.next().await {
///     println!("{} bytes", reply?.file()?.len());
/// #   pictures += 1;
/// }
/// # assert_eq!(pictures, 9);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DecodeQueue {
    client: Client,
    options: DecodeOptions,
    room: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    untaken: usize,
    order: VecDeque<JoinHandle<Result<Reply, ClientError>>>,
}

impl DecodeQueue {
    /// At most `size` decodes are under way or wait, `parallel` of them as requests at one time; both at least 1.
    pub fn new(client: Client, options: DecodeOptions, size: usize, parallel: usize) -> Self {
        let semaphore = |count: usize| Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)));
        let (room, requests) = (semaphore(size), semaphore(parallel));
        Self { client, options, room, requests, untaken: UNTAKEN, order: VecDeque::new() }
    }

    /// Lets at most `count` replies wait to be taken; 256 unless set.
    #[must_use]
    pub fn untaken(mut self, count: usize) -> Self {
        self.untaken = count.max(1);
        self
    }

    /// Begins to decode `latents`; waits until there is room. Runs on the Tokio runtime that polls it.
    ///
    /// # Errors
    /// [`ClientError::Untaken`] when as many replies wait as may, since none can be taken while this one is put.
    pub async fn put(&mut self, latents: Tensor) -> Result<(), ClientError> {
        if self.order.len() >= self.untaken {
            return Err(ClientError::Untaken { waiting: self.order.len() });
        }
        // Nobody closes the semaphores, so a missing permit cannot occur and would only mean less waiting.
        let place = Arc::clone(&self.room).acquire_owned().await.ok();
        let (client, options) = (self.client.clone(), self.options.clone());
        let requests = Arc::clone(&self.requests);
        self.order.push_back(tokio::spawn(async move {
            let _place: Option<OwnedSemaphorePermit> = place;
            let _request = requests.acquire().await;
            client.decode(&latents, &options).await
        }));
        Ok(())
    }

    /// The next reply in the order of [`DecodeQueue::put`]; `None` when all have been taken.
    ///
    /// # Errors
    /// What [`Client::decode`] gives for these latents; the next ones are not touched by it.
    pub async fn next(&mut self) -> Option<Result<Reply, ClientError>> {
        // Awaited in place, so that a call that is given up loses no reply.
        let outcome = self.order.front_mut()?.await;
        self.order.pop_front();
        Some(outcome.unwrap_or_else(|stopped| Err(ClientError::Stopped { reason: stopped.to_string() })))
    }

    /// Decodes whose replies have not been taken.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether all replies have been taken.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

impl Drop for DecodeQueue {
    fn drop(&mut self) {
        self.order.iter().for_each(JoinHandle::abort);
    }
}
