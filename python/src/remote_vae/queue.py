"""Decoding beside other work: latents go in, pictures come out in the same order."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Iterable, Iterator

from .client import remote_decode


class DecodeQueue:
    """Decodes latents in background threads while the caller makes the next ones.

    `options` are those of `remote_decode`. At most `size` decodes are under way or wait; `put` blocks until there is
    room. Up to `parallel` requests travel at once. Leaving the `with` block waits for what was put, or, when an exception
    leaves it (Ctrl-C too), drops what has not begun.
    """

    def __init__(self, endpoint: str, *, size: int = 8, parallel: int = 2, **options: Any) -> None:
        if size < 1 or parallel < 1:
            raise ValueError(f"Expected `size` and `parallel` of at least 1. Got {size} and {parallel}.")
        self._endpoint = endpoint
        self._options = options
        self._room = threading.BoundedSemaphore(size)
        self._size = size
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="remote-vae")

    def put(self, latents: Any, **options: Any) -> Future[Any]:
        """Queues latents and returns a future of what `remote_decode` gives for them; its errors come from `result()`.

        `options` go before those of the queue.
        """
        self._room.acquire()
        try:
            future = self._threads.submit(
                remote_decode, self._endpoint, latents, **{**self._options, **options}
            )
        except BaseException:
            self._room.release()
            raise
        future.add_done_callback(lambda _: self._room.release())
        return future

    def map(self, latents: Iterable[Any]) -> Iterator[Any]:
        """Decodes each of `latents` and yields the results in their order; takes the next ones only as room permits."""
        waiting: list[Future[Any]] = []
        for each in latents:
            waiting.append(self.put(each))
            while waiting and (waiting[0].done() or len(waiting) >= self._size):
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()

    def close(self, *, cancel: bool = False) -> None:
        """Waits for what was put; with `cancel` only for what has begun."""
        self._threads.shutdown(wait=True, cancel_futures=cancel)

    def __enter__(self) -> DecodeQueue:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)
