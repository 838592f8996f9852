"""One HTTP request with a time limit, repeated where that may help. What is in it is `client`.

Connections are kept open, one for each thread and server.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import threading
import time
import urllib.parse
from typing import Sequence

from .errors import RemoteVAEError, ServerRefused, ServerUnreachable

#: Answers that another attempt may turn into good ones.
RETRIED = frozenset({408, 429, 502, 503, 504})
#: The longest wait before another attempt, in seconds.
LONGEST_WAIT = 60.0

_kept = threading.local()


def _connection(address: urllib.parse.SplitResult, timeout: float | None) -> http.client.HTTPConnection:
    connections = _kept.__dict__.setdefault("connections", {})
    key = (address.scheme, address.netloc)
    if key not in connections:
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connections[key] = kind(address.hostname, address.port)
    connection = connections[key]
    connection.timeout = timeout
    if connection.sock is not None:
        connection.sock.settimeout(timeout)
    return connection


def _wait(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next attempt: what the server asks for, or a half, one, two … seconds and some chance."""
    if retry_after is not None:
        try:
            return min(max(float(retry_after), 0.0), LONGEST_WAIT)
        except ValueError:
            pass
        try:
            moment = email.utils.parsedate_to_datetime(retry_after).timestamp()
            return min(max(moment - time.time(), 0.0), LONGEST_WAIT)
        except (TypeError, ValueError):
            pass
    return min(0.5 * 2.0**attempt * random.uniform(1.0, 1.5), LONGEST_WAIT)


def _refusal(endpoint: str, status: int, reason: str, body: bytes) -> ServerRefused:
    try:
        message = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        message = reason or "no reason given"
    if not isinstance(message, str):
        message = json.dumps(message)
    return ServerRefused(f"{endpoint} answered {status}: {message}", status)


def post(
    endpoint: str,
    query: Sequence[tuple[str, str]],
    body: bytes,
    headers: dict[str, str],
    timeout: float | None,
    retries: int,
) -> tuple[http.client.HTTPMessage, bytes]:
    """Posts `body` and returns headers and body of the answer. `timeout` is in seconds and counts for each silence."""
    address = urllib.parse.urlsplit(endpoint)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError(f"Expected an endpoint such as http://localhost:8000/. Got {endpoint!r}.")
    parts = [address.query, urllib.parse.urlencode(query)]
    target = (address.path or "/") + "?" + "&".join(part for part in parts if part)
    target = target.removesuffix("?")
    for attempt in range(retries + 1):
        connection = _connection(address, timeout)
        was_open = connection.sock is not None
        try:
            try:
                connection.request("POST", target, body, headers)
                answer = connection.getresponse()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # A kept connection that the server has closed meanwhile says nothing about the server.
                if not was_open:
                    raise
                connection.close()
                connection.request("POST", target, body, headers)
                answer = connection.getresponse()
            received = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if attempt == retries or isinstance(error, TimeoutError):
                reason = "it took too long" if isinstance(error, TimeoutError) else str(error) or repr(error)
                raise ServerUnreachable(f"No answer from {endpoint}: {reason}.") from error
            time.sleep(_wait(attempt, None))
            continue
        except BaseException:
            connection.close()
            raise
        if 200 <= answer.status < 300:
            return answer.headers, received
        if answer.status not in RETRIED or attempt == retries:
            raise _refusal(endpoint, answer.status, answer.reason, received)
        time.sleep(_wait(attempt, answer.headers.get("Retry-After")))
    raise RemoteVAEError(f"Expected `retries` of at least 0. Got {retries}.")
