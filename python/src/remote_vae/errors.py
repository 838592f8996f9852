"""The errors of this package. Wrong arguments are ValueError and TypeError, as everywhere."""

from __future__ import annotations


class RemoteVAEError(RuntimeError):
    """A request had no usable answer. Its text is one sentence for the user."""


class ServerUnreachable(RemoteVAEError):
    """No connection, or none that lasted until the answer."""


class ServerRefused(RemoteVAEError):
    """The server answered with an error; `status` is its HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
