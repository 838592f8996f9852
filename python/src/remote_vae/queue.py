"""Decoding beside other work: latents go in, pictures come out in the same order."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, AsyncIterable, AsyncIterator, Callable, Iterable, Iterator

from .client import remote_decode
from .errors import RemoteVAEError
from .transport import Session


class DecodeQueue:
    """Decodes latents in background threads while the caller makes the next ones.

    `options` are those of `remote_decode`. At most `size` decodes are under way or wait: `put` blocks until there is room.
    Up to `parallel` requests travel at once. Three ways to the results:

    - `put(latents)`, then iterate over the queue: results of `put` in its order, until all are taken. At most `unread` of
      them wait to be taken: `put` raises an error when there are as many, because nobody takes any while it blocks;
    - `put(latents, callback)`: the callback gets each result, in a thread of the queue;
    - `submit(latents)`: a `concurrent.futures.Future`; `map(iterable)` is an iterator over results.

    Leaving the `with` block waits for what was put. When an exception leaves it (Ctrl-C too), what waits is dropped and
    requests under way are given up.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        size: int = 8,
        parallel: int = 2,
        unread: int = 256,
        timeout: float | None = 600.0,
        retries: int = 2,
        api_key: str | None = None,
        **options: Any,
    ) -> None:
        if size < 1 or parallel < 1:
            raise ValueError(f"Expected `size` and `parallel` of at least 1. Got {size} and {parallel}.")
        if unread < 1:
            raise ValueError(f"Expected `unread` of at least 1. Got {unread}.")
        self._endpoint = endpoint
        self._session = Session(timeout=timeout, retries=retries, api_key=api_key)
        self._options = options
        self._room = threading.BoundedSemaphore(size)
        self._size = size
        self._unread = unread
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="remote-vae")
        self._order: deque[Future[Any]] = deque()
        self._failure: BaseException | None = None

    def submit(self, latents: Any, **options: Any) -> Future[Any]:
        """Queues latents and returns a future of what `remote_decode` gives for them; its errors come from `result()`.

        `options` go before those of the queue.
        """
        self._room.acquire()
        try:
            future = self._threads.submit(self._decode, latents, options)
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(lambda _: self._room.release())
        return future

    def put(self, latents: Any, callback: Callable[[Any], object] | None = None, **options: Any) -> None:
        """Queues latents. The result comes by iterating over the queue, or goes to `callback` if there is one.

        An error is raised in the iteration, at its place. Errors that were not taken in this way, and those of callbacks,
        are raised by `close` or the end of the `with` block.
        """
        if callback is not None:
            self.submit(latents, **options).add_done_callback(lambda done: self._deliver(done, callback))
            return
        if len(self._order) >= self._unread:
            raise RemoteVAEError(
                f"{len(self._order)} results wait to be taken, as many as may (`unread`): iterate over the queue, or use "
                "`map` or a callback."
            )
        self._order.append(self.submit(latents, **options))

    def map(self, latents: Iterable[Any], **options: Any) -> Iterator[Any]:
        """Decodes each of `latents` and yields the results in their order; takes the next ones only as room permits."""
        waiting: deque[Future[Any]] = deque()
        try:
            for each in latents:
                waiting.append(self.submit(each, **options))
                while waiting and (waiting[0].done() or len(waiting) >= self._size):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self, *, cancel: bool = False) -> None:
        """Waits for what was put; with `cancel` gives up what has begun and drops the rest.

        Raises the first error that nobody has seen, unless cancelled.
        """
        if cancel:
            # What has not begun goes first, lest it begin when the rest is given up.
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._session.abort()
        self._threads.shutdown(wait=True)
        self._session.close()
        if not cancel:
            unseen = [future.exception() for future in self._order if not future.cancelled()]
            for error in [self._failure, *unseen]:
                if error is not None:
                    raise error

    def _decode(self, latents: Any, options: dict[str, Any]) -> Any:
        return remote_decode(self._endpoint, latents, session=self._session, **{**self._options, **options})

    def _deliver(self, done: Future[Any], callback: Callable[[Any], object]) -> None:
        if done.cancelled():
            return
        try:
            callback(done.result())
        except BaseException as error:  # a thread of the pool would only print it
            self._failure = self._failure or error

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._order:
            raise StopIteration
        return self._order.popleft().result()

    def __enter__(self) -> DecodeQueue:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)


class AsyncDecodeQueue:
    """The same for asyncio: nothing blocks the event loop.

    Arguments are those of `DecodeQueue`. At most `size` decodes are under way or wait; `decode` waits for room. A cancelled
    `decode` is dropped if it has not begun.
    """

    def __init__(self, endpoint: str, *, size: int = 8, parallel: int = 2, **options: Any) -> None:
        # Room is waited for here, so that the queue behind never blocks.
        self._queue = DecodeQueue(endpoint, size=size, parallel=parallel, **options)
        self._room = asyncio.Semaphore(size)
        self._size = size

    async def decode(self, latents: Any, **options: Any) -> Any:
        """What `remote_decode` gives for `latents`."""
        await self._room.acquire()
        loop = asyncio.get_running_loop()
        try:
            future = self._queue.submit(latents, **options)
        except BaseException:
            self._room.release()
            raise
        # A decode that was cancelled after it had begun keeps its room to its end, as in the queue behind.
        future.add_done_callback(lambda _: self._give_back(loop))
        return await asyncio.wrap_future(future)

    def _give_back(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            loop.call_soon_threadsafe(self._room.release)
        except RuntimeError:  # the loop has ended, and with it everybody who could wait for room
            pass

    async def map(self, latents: Iterable[Any] | AsyncIterable[Any], **options: Any) -> AsyncIterator[Any]:
        """Decodes each of `latents` and yields the results in their order; takes the next ones only as room permits."""
        waiting: deque[asyncio.Task[Any]] = deque()
        try:
            async for each in _each(latents):
                waiting.append(asyncio.ensure_future(self.decode(each, **options)))
                await asyncio.sleep(0)
                while waiting and (waiting[0].done() or len(waiting) >= self._size):
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()

    async def close(self, *, cancel: bool = False) -> None:
        """Waits for what was put; with `cancel` gives up what has begun and drops the rest."""
        await asyncio.to_thread(self._queue.close, cancel=cancel)

    async def __aenter__(self) -> AsyncDecodeQueue:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(cancel=kind is not None)


async def _each(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
