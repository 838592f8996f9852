"""HTTP with time limits, kept connections and retries. What travels is made in `client`.

A `Session` may be used by several threads at once; each request has a connection of its own while it runs.
"""

from __future__ import annotations

import dataclasses
import email.utils
import http.client
import json
import os
import random
import socket
import ssl
import threading
import time
import urllib.parse
from typing import Callable, Iterator, Literal, Mapping, Sequence

from .errors import ServerTimeout, ServerUnreachable, refusal_of

#: Answers that another attempt may turn into good ones.
RETRIED = frozenset({408, 429, 502, 503, 504})
#: The longest wait before another attempt, in seconds.
LONGEST_WAIT = 60.0
#: The longest time for a connection to be made, in seconds.
CONNECT_TIMEOUT = 10.0
#: The longest look at whether a server speaks the other one of HTTP and HTTPS, in seconds.
_LOOK = 3.0
#: Bytes between two calls of a progress callback.
CHUNK = 1 << 18

#: What OpenSSL calls an answer that is no record of TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"})

_GONE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError, ConnectionAbortedError)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a request is. A retry begins with `sending` again."""

    #: `sending` the body, `computing` (the server has it all), or `receiving` the answer.
    stage: Literal["sending", "computing", "receiving"]
    #: Bytes of this stage that have travelled.
    done: int
    #: Bytes of this stage in all; 0 where that is not known, as of large pictures, which the server sends while it makes them.
    total: int
    #: Seconds since the request began.
    seconds: float


ProgressCallback = Callable[[Progress], None]


@dataclasses.dataclass(frozen=True)
class Answer:
    """Headers and body of a good answer."""

    headers: http.client.HTTPMessage
    body: bytes


class Session:
    """Connections to servers, kept open between requests.

    `timeout` is the longest silence in seconds (None: no limit), `retries` how often a busy or unreachable server is asked
    again; the waits are those that it asks for (`Retry-After`), or half a second that doubles. `api_key` is sent as
    `Authorization: Bearer`.
    """

    def __init__(
        self, *, timeout: float | None = 600.0, retries: int = 2, api_key: str | None = None
    ) -> None:
        if retries < 0:
            raise ValueError(f"Expected `retries` of at least 0. Got {retries}.")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"Expected `timeout` above 0 seconds, or None. Got {timeout}.")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("Expected `api_key` to consist of printable ASCII characters.")
        self.timeout = timeout
        self.retries = retries
        self._api_key = api_key
        self._lock = threading.Lock()
        self._idle: dict[tuple[int, str, str], list[http.client.HTTPConnection]] = {}
        self._busy: set[http.client.HTTPConnection] = set()
        self._aborted = threading.Event()

    def __repr__(self) -> str:
        return f"Session(timeout={self.timeout}, retries={self.retries})"

    def with_options(self, timeout: float | None, retries: int, api_key: str | None) -> Session:
        """Other limits and another key on the same connections."""
        other = Session(timeout=timeout, retries=retries, api_key=api_key)
        other._lock, other._idle, other._busy, other._aborted = self._lock, self._idle, self._busy, self._aborted
        return other

    def post(
        self,
        endpoint: str,
        query: Sequence[tuple[str, str]],
        body: bytes,
        headers: Mapping[str, str],
        progress: ProgressCallback | None = None,
    ) -> Answer:
        """Posts `body` to `endpoint`, whose own query goes before `query`."""
        return self._request("POST", endpoint, query, body, headers, progress)

    def get(self, endpoint: str, path: str) -> Answer:
        """What the server of `endpoint` answers at `path`."""
        address = split(endpoint)
        url = urllib.parse.urlunsplit((address.scheme, address.netloc, path, "", ""))
        return self._request("GET", url, [], None, {"Accept": "*/*"}, None)

    def close(self) -> None:
        """Closes the connections that are not in use."""
        with self._lock:
            idle = [connection for kept in self._idle.values() for connection in kept]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def abort(self) -> None:
        """Ends all requests at once; the session cannot be used again."""
        self._aborted.set()
        with self._lock:
            sockets = [connection.sock for connection in self._busy if connection.sock is not None]
        for each in sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.close()

    def _request(
        self,
        method: str,
        endpoint: str,
        query: Sequence[tuple[str, str]],
        body: bytes | None,
        headers: Mapping[str, str],
        progress: ProgressCallback | None,
    ) -> Answer:
        address = split(endpoint)
        parts = [part for part in (address.query, urllib.parse.urlencode(query)) if part]
        target = (address.path or "/") + ("?" + "&".join(parts) if parts else "")
        own = {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key}"}
        exchange = _Exchange(method, target, body, {**headers, **own}, progress, time.monotonic())
        for attempt in range(self.retries + 1):
            last = attempt == self.retries
            try:
                status, reason, received = self._attempt(address, exchange)
            except (OSError, http.client.HTTPException) as error:
                # Once is enough to know what the server speaks.
                if attempt == 0 and not self._aborted.is_set() and (instead := _other_scheme(address, error, self.timeout)):
                    raise ServerUnreachable(
                        f"No answer from {shown(endpoint)}: the server speaks {instead.scheme}, not {address.scheme}; use "
                        f"{shown(instead.geturl())}."
                    ) from error
                if last or self._aborted.is_set() or isinstance(error, TimeoutError):
                    raise self._unreachable(endpoint, error) from error
                self._sleep(_wait(attempt, None))
                continue
            if 200 <= status < 300:
                return received
            if last or status not in RETRIED:
                raise _refusal(endpoint, status, reason, received)
            self._sleep(_wait(attempt, received.headers.get("Retry-After")))
        raise AssertionError("the last attempt returns or raises")

    def _sleep(self, seconds: float) -> None:
        if self._aborted.wait(seconds):
            raise ServerUnreachable("The request was given up.")

    def _unreachable(self, endpoint: str, error: Exception) -> ServerUnreachable:
        if self._aborted.is_set():
            return ServerUnreachable("The request was given up.")
        if isinstance(error, _ConnectTimeout):
            return ServerTimeout(f"No answer from {shown(endpoint)}: no connection within {CONNECT_TIMEOUT:g} s.")
        if isinstance(error, TimeoutError):
            return ServerTimeout(f"No answer from {shown(endpoint)}: it took too long (`timeout` is {self.timeout:g} s).")
        if isinstance(error, ssl.SSLCertVerificationError):
            return ServerUnreachable(
                f"No answer from {shown(endpoint)}: its certificate is not trusted ({error.verify_message}); set SSL_CERT_FILE "
                "to a file with its authority's certificate, or use the name that it is made for."
            )
        hint = "; is the server running there?" if isinstance(error, ConnectionRefusedError) else "."
        reason = " ".join((str(error) or repr(error)).split())
        return ServerUnreachable(f"No answer from {shown(endpoint)}: {reason}{hint}")

    def _attempt(
        self, address: urllib.parse.SplitResult, exchange: _Exchange
    ) -> tuple[int, str, Answer]:
        key = (os.getpid(), address.scheme, address.netloc)
        while True:
            with self._lock:
                kept = self._idle.get(key)
                connection = kept.pop() if kept else None
            fresh = connection is None
            if connection is None:
                kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
                connection = kind(address.hostname or "", address.port)
            with self._lock:
                self._busy.add(connection)
            try:
                _connect(connection, self.timeout)
                if self._aborted.is_set():
                    raise ConnectionAbortedError("given up")
                result = exchange.run(connection)
            except _GONE:
                connection.close()
                # A kept connection that the server has closed meanwhile says nothing about the server.
                if fresh or self._aborted.is_set():
                    raise
                continue
            except BaseException:
                connection.close()
                raise
            finally:
                with self._lock:
                    self._busy.discard(connection)
            if connection.sock is not None:
                with self._lock:
                    self._idle.setdefault(key, []).append(connection)
            return result


class _ConnectTimeout(TimeoutError):
    """No connection in time."""


def _connect(connection: http.client.HTTPConnection, timeout: float | None) -> None:
    if connection.sock is None:
        connection.timeout = CONNECT_TIMEOUT if timeout is None else min(CONNECT_TIMEOUT, timeout)
        try:
            connection.connect()
        except TimeoutError as error:
            raise _ConnectTimeout(str(error)) from error
    assert connection.sock is not None
    connection.sock.settimeout(timeout)


@dataclasses.dataclass(frozen=True)
class _Exchange:
    """A request and how it is told of."""

    method: str
    target: str
    body: bytes | None
    headers: dict[str, str]
    progress: ProgressCallback | None
    begun: float

    def run(self, connection: http.client.HTTPConnection) -> tuple[int, str, Answer]:
        """Sends it and reads the whole answer."""
        if self.body is None:
            connection.request(self.method, self.target, headers=self.headers)
        else:
            # The length is stated, so an iterable is not sent in chunks of HTTP's own.
            headers = {**self.headers, "Content-Length": str(len(self.body))}
            connection.request(self.method, self.target, self._pieces(self.body), headers)
            self._tell("computing", len(self.body), len(self.body))
        response = connection.getresponse()
        total = int(response.headers.get("Content-Length") or 0)
        pieces: list[bytes] = []
        done = 0
        while piece := response.read(CHUNK):
            pieces.append(piece)
            done += len(piece)
            self._tell("receiving", done, total)
        if done < total:
            raise http.client.IncompleteRead(b"", total - done)
        return response.status, response.reason, Answer(response.headers, b"".join(pieces))

    def _pieces(self, body: bytes) -> Iterator[bytes]:
        for start in range(0, len(body), CHUNK):
            self._tell("sending", start, len(body))
            yield body[start : start + CHUNK]

    def _tell(self, stage: Literal["sending", "computing", "receiving"], done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(Progress(stage, done, total, time.monotonic() - self.begun))


def _other_scheme(
    address: urllib.parse.SplitResult, error: Exception, timeout: float | None
) -> urllib.parse.SplitResult | None:
    """The address with the other one of HTTP and HTTPS, if `error` looks like the wrong one and a short look at the same port
    confirms it. Neither the key nor the body travels."""
    port = address.port or (443 if address.scheme == "https" else 80)
    host, look = address.hostname or "", _LOOK if timeout is None else min(_LOOK, timeout)
    netloc = address.netloc if address.port else f"{address.netloc.removesuffix(':')}:{port}"
    if address.scheme == "https":
        if not isinstance(error, ssl.SSLError) or error.reason not in _NOT_TLS:
            return None
        plain = http.client.HTTPConnection(host, port, timeout=look)
        try:
            plain.request("HEAD", "/health")
            # Servers of HTTPS answer plain HTTP by 400.
            return None if plain.getresponse().status == 400 else address._replace(scheme="http", netloc=netloc)
        except (OSError, http.client.HTTPException):
            return None
        finally:
            plain.close()
    # A server of HTTPS answers plain HTTP by an alert, or closes the connection at once.
    if not isinstance(error, (http.client.BadStatusLine, ConnectionResetError, BrokenPipeError)):
        return None
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), look) as connection:
            with context.wrap_socket(connection, server_hostname=host):
                return address._replace(scheme="https", netloc=netloc)
    except OSError:
        return None


def split(endpoint: str) -> urllib.parse.SplitResult:
    """The parts of an address, checked."""
    address = urllib.parse.urlsplit(endpoint)
    try:
        port_is_right = address.port is None or address.port > 0
    except ValueError:
        port_is_right = False
    if address.scheme not in ("http", "https") or not address.hostname or not port_is_right:
        raise ValueError(f"Expected an endpoint such as 'http://localhost:8080/'. Got {endpoint!r}.")
    return address


def shown(endpoint: str) -> str:
    """An address for messages: without password and query."""
    address = urllib.parse.urlsplit(endpoint)
    return urllib.parse.urlunsplit((address.scheme, address.netloc.rpartition("@")[2], address.path, "", ""))


def _wait(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next attempt: what the server asks for, or a half, one, two … seconds and some chance."""
    asked = _seconds(retry_after)
    return min(0.5 * 2.0**attempt * random.uniform(1.0, 1.5) if asked is None else asked, LONGEST_WAIT)


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After`, which is a number of seconds or a date."""
    if retry_after is None:
        return None
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):
        return None


def _refusal(endpoint: str, status: int, reason: str, answer: Answer) -> Exception:
    try:
        message = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        message = reason or "no reason given"
    if not isinstance(message, str):
        message = json.dumps(message)
    if 300 <= status < 400:
        message = f"it has moved; use {answer.headers.get('Location') or 'its new address'} instead"
    elif status in (401, 403):
        message = f"{message.rstrip('. ')} (`api_key`)."
    text = f"{shown(endpoint)} answered {status}: {' '.join(message.split())}"
    return refusal_of(status)(text, status, _seconds(answer.headers.get("Retry-After")))


#: For calls that bring no session of their own.
shared = Session()
