"""What the client tests share: the built server as a process, the models it serves, and diffusers' own answers.

The program is found through REMOTE_VAE_BINARY, or else in target/release. Two servers run for a whole session: one with
no model named, which then serves its embedded one, and one with the small random models of the golden files.
"""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "crates" / "engine" / "tests" / "golden"
EMBEDDED = ROOT / "crates" / "model" / "embedded"
BINARY = Path(os.environ.get("REMOTE_VAE_BINARY", ROOT / "target" / "release" / "remote-vae"))

logging.set_verbosity_error()
logging.disable_progress_bar()


# ---- models ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Served:
    """A model as the tests know it. `name` is its path on the server; the embedded one has none."""

    name: str
    folder: Path
    channels: int
    scaling: float | None = None
    shift: float | None = None

    @property
    def factors(self):
        """The factors a pipeline would send, absent ones left out."""
        factors = {"scaling_factor": self.scaling, "shift_factor": self.shift}
        return {name: value for name, value in factors.items() if value is not None}

    @functools.cached_property
    def vae(self):
        config = json.loads((self.folder / "config.json").read_text())
        kind = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}[config["_class_name"]]
        vae = kind.from_config(config)
        (path,) = self.folder.glob("*model*.safetensors")
        vae.load_state_dict(load_file(path))
        return vae.float().eval().requires_grad_(False)

    def to_model(self, latents):
        """Latents as clients send them -> the model's own space, in f32."""
        return latents.float() / (self.scaling or 1.0) + (self.shift or 0.0)

    def decode(self, latents):
        """diffusers' own decode of latents as clients send them: [batch, 3, height, width] in f32."""
        return self.vae.decode(self.to_model(latents)).sample

    def encode(self, pixels):
        """diffusers' own mode for pixels in [-1, 1], in the space of clients."""
        encoded = self.vae.encode(pixels.float())
        latents = encoded.latents if isinstance(self.vae, AutoencoderTiny) else encoded.latent_dist.mode()
        return (latents - (self.shift or 0.0)) * (self.scaling or 1.0)


def embedded_scaling():
    with contextlib.suppress(OSError):
        return json.loads((EMBEDDED / "config.json").read_text()).get("scaling_factor", 0.18215)
    return 0.18215


MODELS = {
    model.name: model
    for model in (
        Served("", EMBEDDED, 4, embedded_scaling()),
        Served("sd15", GOLDEN / "sd15", 4, 0.18215),
        Served("sdxl", GOLDEN / "sdxl-bf16", 4, 0.13025),
        Served("flux", GOLDEN / "flux", 16, 0.3611, 0.1159),
        Served("sd3", GOLDEN / "sd3", 16, 1.5305, 0.0609),
        Served("playground", GOLDEN / "playground", 4),
        Served("tiny", GOLDEN / "tiny", 4),
        Served("tiny-16-channels", GOLDEN / "tiny-16-channels", 16),
    )
}
# SD, Flux and the model that a server without arguments has.
USUAL = [pytest.param(MODELS[name], id=name or "embedded") for name in ("", "sd15", "flux")]


# ---- servers --------------------------------------------------------------------------------------------------------


class Server:
    """The program, serving on a free port of the loopback interface."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __enter__(self):
        if not BINARY.is_file():
            pytest.fail(f"{BINARY} is missing: build it with `cargo build --release -p remote-vae`", pytrace=False)
        command = [str(BINARY), "serve", "--host", "127.0.0.1", "--port", "0", *self.arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.log = []
        threading.Thread(target=self._collect, args=(self.process.stderr,), daemon=True).start()
        watchdog = threading.Timer(120, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        prefix = "listening on "
        if not line.startswith(prefix + "http://127.0.0.1:"):
            self.process.kill()
            pytest.fail(f"first line of `serve` is {line!r}; on stderr: {''.join(self.log)}", pytrace=False)
        self.url = line.removeprefix(prefix).strip()
        threading.Thread(target=self._collect, args=(self.process.stdout,), daemon=True).start()
        self._wait_until_ready()
        return self

    def _wait_until_ready(self):
        """Until its models are loaded the server answers 503, and says so at /readyz."""
        deadline = time.monotonic() + 60
        while (status := requests.get(self.url + "/readyz", timeout=60).status_code) != 200:
            assert status == 503 and time.monotonic() < deadline, f"/readyz answers {status}: {''.join(self.log)}"
            time.sleep(0.05)

    def _collect(self, stream):
        for line in stream:
            self.log.append(line)

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert status == 0, f"the server ended with {status}: {''.join(self.log[-20:])}"


@pytest.fixture(scope="session")
def plain_server():
    """A server that was told nothing: it has the embedded model."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def golden_server():
    """One process with every model of the golden files; the first is the default."""
    models = [f"--model={model.name}={model.folder}" for model in MODELS.values() if model.name]
    with Server(*models) as server:
        yield server


@pytest.fixture(scope="session")
def url_of(request):
    """A function from a model to its URL; a server starts when it is first wanted."""

    def url(model):
        if not model.name:
            return request.getfixturevalue("plain_server").url
        return request.getfixturevalue("golden_server").url + "/" + model.name

    return url


# ---- numbers --------------------------------------------------------------------------------------------------------


def draw(*shape, dtype=torch.float16, seed=13, scale=1.0):
    """Random latents of a type that clients send."""
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return latents.to(dtype)


def pack(latents):
    """[batch, channels, h, w] -> [batch, h/2 * w/2, 4*channels], as Flux pipelines hold latents."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height * width // 4, channels * 4)


def assert_half_of(answer, expected):
    """`answer` holds the float16 numbers of `expected`, which may itself be off by 1e-4. Below 4 they are no further
    apart than half a step of such numbers there and that."""
    assert answer.dtype == torch.float16
    assert list(answer.shape) == list(expected.shape)
    difference = (answer.float() - expected).abs()
    assert (difference - expected.abs() * 2.0**-11).max() <= 1e-4
    assert difference[expected.abs() < 4].max() <= 2.0**-10 + 1e-4


def to_uint8(pixels):
    """[batch, 3, h, w] in [-1, 1] -> uint8 [batch, h, w, 3] by the protocol: halves until the last multiplication."""
    half = (pixels.half() * 0.5 + 0.5).clamp(0, 1)
    return (half.permute(0, 2, 3, 1).float().numpy() * 255).round().astype(np.uint8)


def psnr(a, b):
    error = np.mean((np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def picture(width, height, seed=0):
    """A colourful test picture: gradients, a disc, and some noise."""
    y, x = np.mgrid[0:height, 0:width]
    generator = np.random.default_rng(seed)
    channels = np.stack([x / width, y / height, (x + y) / (width + height)], axis=-1) * 200 + 20
    disc = (x - width / 3) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 4) ** 2
    channels[disc] = (230, 40, 90)
    channels += generator.normal(0, 6, channels.shape)
    return Image.fromarray(channels.clip(0, 255).astype(np.uint8))
