"""Decode and encode the latents of image models on another machine."""

from .client import remote_decode, remote_encode
from .errors import RemoteVAEError, ServerRefused, ServerUnreachable
from .queue import DecodeQueue

__all__ = [
    "DecodeQueue",
    "RemoteVAEError",
    "ServerRefused",
    "ServerUnreachable",
    "remote_decode",
    "remote_encode",
]
