"""The built server as a process. REMOTE_VAE_BINARY names the program, or else target/release has it."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("REMOTE_VAE_BINARY", ROOT / "target" / "release" / "remote-vae"))


@pytest.fixture(scope="session")
def server():
    """Address of a server with the embedded model (four latent channels, eight pixels each)."""
    if not BINARY.is_file():
        pytest.fail(f"{BINARY} is missing: build it with `cargo build --release -p remote-vae`", pytrace=False)
    command = [str(BINARY), "serve", "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = process.stdout.readline().removeprefix("listening on ").strip()
        for _ in range(1200):
            try:
                urllib.request.urlopen(address + "/readyz", timeout=60)
                break
            except urllib.error.HTTPError:
                time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=60)
