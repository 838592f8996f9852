"""The built server as a process: the program that REMOTE_VAE_BINARY names, that of target/release for the package in this
tree, or the one that came with an installed package."""

import contextlib
import os
from pathlib import Path

import pytest

import remote_vae
from remote_vae import LocalServer

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "target" / "release" / "remote-vae"
if Path(remote_vae.__file__).is_relative_to(ROOT) and BUILT.is_file():
    os.environ.setdefault("REMOTE_VAE_BINARY", str(BUILT))


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
