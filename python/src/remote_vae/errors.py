"""The errors of this package: each text is one sentence for the user. Wrong arguments are ValueError and TypeError, as
everywhere."""

from __future__ import annotations


class RemoteVAEError(RuntimeError):
    """A request had no usable answer."""


class ServerUnreachable(RemoteVAEError):
    """No connection, or none that lasted until the answer."""


class ServerTimeout(ServerUnreachable):
    """The server was silent for longer than `timeout`."""


class ServerRefused(RemoteVAEError):
    """The server answered with an error; `status` is its HTTP status."""

    def __init__(self, message: str, status: int, retry_after: float | None = None) -> None:
        super().__init__(message)
        #: The HTTP status.
        self.status = status
        #: Seconds after which the server asked to come back, if it did.
        self.retry_after = retry_after


class RequestRejected(ServerRefused):
    """400, 408, 413, 415 or 422: the tensor, a parameter or its size does not fit the model or the server's limits."""


class KeyRejected(ServerRefused):
    """401 or 403: the server wants an `api_key`, or another one."""


class ModelNotFound(ServerRefused):
    """404 or 405: nothing answers at this path; the address or the model's name is wrong."""


class ServerBusy(ServerRefused):
    """429 or 503, also after all retries: the queue is full, or the server is starting or shutting down."""


def refusal_of(status: int) -> type[ServerRefused]:
    """The error for an HTTP status."""
    if status in (401, 403):
        return KeyRejected
    if status in (404, 405):
        return ModelNotFound
    if status in (429, 503):
        return ServerBusy
    return RequestRejected if status in (400, 408, 413, 415, 422) else ServerRefused
