"""Decode and encode the latents of diffusion models on another machine, or on this one's processor.

`RemoteVAE` needs torch and diffusers, the rest numpy and Pillow only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .client import remote_decode, remote_encode
from .errors import (
    KeyRejected,
    ModelNotFound,
    RemoteVAEError,
    RequestRejected,
    ServerBusy,
    ServerRefused,
    ServerTimeout,
    ServerUnreachable,
)
from .info import server_info
from .local import LocalServer
from .queue import AsyncDecodeQueue, DecodeQueue
from .transport import Progress, Session

if TYPE_CHECKING:
    from .vae import RemoteVAE

__all__ = [
    "AsyncDecodeQueue",
    "DecodeQueue",
    "KeyRejected",
    "LocalServer",
    "ModelNotFound",
    "Progress",
    "RemoteVAE",
    "RemoteVAEError",
    "RequestRejected",
    "ServerBusy",
    "ServerRefused",
    "ServerTimeout",
    "ServerUnreachable",
    "Session",
    "remote_decode",
    "remote_encode",
    "server_info",
]


def __getattr__(name: str) -> Any:
    # torch and diffusers are imported when they are first needed.
    if name == "RemoteVAE":
        try:
            from .vae import RemoteVAE
        except ImportError as error:
            raise ImportError(f"RemoteVAE needs torch and diffusers ({error}): pip install torch diffusers") from error
        return RemoteVAE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
