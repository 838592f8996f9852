"""The built server as a process. REMOTE_VAE_BINARY names the program, or else target/release has it."""

import contextlib
import os
from pathlib import Path

import pytest

from remote_vae import LocalServer

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("REMOTE_VAE_BINARY", ROOT / "target" / "release" / "remote-vae"))
if BINARY.is_file():
    os.environ["REMOTE_VAE_BINARY"] = str(BINARY)


@contextlib.contextmanager
def serve(*arguments):
    """The address of a server on a free port."""
    with LocalServer(arguments=arguments) as server:
        yield server.url


@pytest.fixture(scope="session")
def server():
    """Address of a server with the embedded model (four latent channels, eight pixels each)."""
    with serve() as address:
        yield address
