"""The nodes, called as ComfyUI's executor calls them: inputs by the names of INPUT_TYPES, the method that FUNCTION names, one
result for each of RETURN_TYPES. Numbers are held to the golden files, which diffusers made."""

import http.server
import importlib.util
import json
import sys
import threading
import time

import pytest

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file

from conftest import ROOT, serve  # noqa: E402
from remote_vae import KeyRejected, ModelNotFound, RequestRejected, ServerUnreachable  # noqa: E402

GOLDEN = ROOT / "crates" / "engine" / "tests" / "golden"
VIDEO = ROOT / "crates" / "engine" / "tests" / "golden_video"
#: What `process_out` of ComfyUI's latent formats does to what its samplers made: (latents / scale) + shift.
FORMATS = {
    "sd15": ("SD15", 0.18215, 0.0),
    "sdxl-bf16": ("SDXL", 0.13025, 0.0),
    "flux": ("Flux", 0.3611, 0.1159),
    "sd3": ("SD3", 1.5305, 0.0609),
}
NAMES = [*FORMATS, "playground", "tiny", "flux2"]


def load_nodes():
    """As ComfyUI loads a folder of custom_nodes."""
    folder = ROOT / "python" / "comfyui"
    name = "remote_vae_nodes"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


NODES = load_nodes()


def call(kind, **given):
    """Runs a node; inputs that are not given have their defaults."""
    node = NODES.NODE_CLASS_MAPPINGS[kind]
    inputs = node.INPUT_TYPES()
    values = {}
    for name, (kind, *options) in {**inputs["required"], **inputs.get("optional", {})}.items():
        default = kind[0] if isinstance(kind, list) else (options[0] if options else {}).get("default")
        values[name] = given.pop(name, default)
    assert not given, given
    results = getattr(node(), node.FUNCTION)(**values)
    assert isinstance(results, tuple) and len(results) == len(node.RETURN_TYPES)
    return results[0]


@pytest.fixture(scope="module")
def golden():
    with serve(*(f"--model={name}={GOLDEN / name}" for name in NAMES)) as address:
        yield address


def cases(name):
    return load_file(GOLDEN / name / "cases.safetensors")


def assert_images(images, pixels):
    """Images in 0 to 1 of pixels in -1 to 1 that travelled as float16."""
    expected = (pixels.movedim(1, -1) / 2 + 0.5).clamp(0, 1)
    assert images.dtype == torch.float32 and images.is_contiguous()
    assert images.shape == expected.reshape(-1, *expected.shape[-3:]).shape
    assert (images - expected.reshape(images.shape)).abs().max() <= 5e-4


@pytest.mark.parametrize("name", FORMATS)
def test_latents_of_comfyuis_samplers_decode(golden, name):
    case = cases(name)
    _, scale, shift = FORMATS[name]
    sampled = case["client.0.latents"]
    images = call("RemoteVAEDecode", samples={"samples": sampled / scale + shift}, url=golden, model=name)
    assert_images(images, case["client.0.pixels"])


def test_a_batch_and_the_first_model(golden):
    case = cases("sd15")
    images = call("RemoteVAEDecode", samples={"samples": case["decode.1.latents"], "noise_mask": None}, url=golden)
    assert images.shape == (2, 64, 64, 3)
    assert_images(images, case["decode.1.pixels"])


def test_flux_two_stays_normalised(golden):
    """ComfyUI keeps its latents as 128 channels of 2x2 patches, `process_out` leaves them as they are."""
    case = cases("flux2")
    images = call("RemoteVAEDecode", samples={"samples": case["client.2.latents"]}, url=golden, model="flux2")
    assert_images(images, case["client.2.pixels"])
    latents = call("RemoteVAEEncode", pixels=images_of(case["client_encode.0.pixels"]), url=golden, model="flux2")
    expected = case["client_encode.0.latents"]
    patches = latents["samples"].reshape(2, 32, 2, 2, 2, 3).permute(0, 1, 4, 2, 5, 3).reshape(expected.shape)
    assert torch.allclose(patches, expected, rtol=1e-3, atol=1e-3)


def images_of(pixels):
    return (pixels.movedim(1, -1) + 1) / 2


@pytest.mark.parametrize("name", ["sd15", "flux", "sd3", "playground"])
def test_images_encode_to_the_autoencoders_own_latents(golden, name):
    case = cases(name)
    latents = call("RemoteVAEEncode", pixels=images_of(case["encode.0.pixels"]), url=golden, model=name)["samples"]
    expected = case["encode.0.moments"].chunk(2, dim=1)[0]
    assert latents.dtype == torch.float32 and latents.shape == expected.shape
    assert (latents - expected).abs().max() <= 4e-3 * expected.abs().max()


def test_sides_are_cut_in_the_middle(golden):
    pixels = cases("sd15")["encode.0.pixels"]
    larger = torch.nn.functional.pad(images_of(pixels), (0, 1, 3, 4, 2, 3))  # an alpha channel, and margins
    found, expected = (
        call("RemoteVAEEncode", pixels=images, url=golden)["samples"] for images in (larger, images_of(pixels))
    )
    assert torch.equal(found, expected)
    with pytest.raises(RuntimeError, match="at least 8x8"):
        call("RemoteVAEEncode", pixels=torch.zeros(1, 4, 64, 3), url=golden)


def test_a_tiny_model_takes_latents_that_are_divided(golden):
    """ComfyUI divides latents for tiny models too, and multiplies them again; the server does so for a known family."""
    case = cases("tiny")
    with serve(f"--model=taesd={GOLDEN / 'tiny'},space=sd") as address:
        divided = case["client.0.latents"] / 0.18215
        images = call("RemoteVAEDecode", samples={"samples": divided}, url=address)
    assert_images(images, case["client.0.pixels"])


def test_videos_become_frames():
    case = load_file(VIDEO / "hunyuan.safetensors")
    with serve(f"--model=video={VIDEO / 'hunyuan'}") as address:
        for number, frames in (("1", 9), ("2", 2 * 13)):
            samples = {"samples": case[f"decode.{number}.latents"]}
            images = call("RemoteVAEDecodeVideo", samples=samples, url=address)
            assert len(images) == frames
            assert_images(images, case[f"decode.{number}.pixels"])
            # The plain node takes them as ComfyUI's own does.
            assert torch.equal(images, call("RemoteVAEDecode", samples=samples, url=address))
        # Five frames are one more than a multiple of four; the sixth is dropped.
        pixels = case["encode.1.pixels"][:1]
        frames = torch.cat([images_of(pixels)[0], torch.zeros(1, *pixels.shape[3:], 3)])
        latents = call("RemoteVAEEncode", pixels=frames, url=address)["samples"]
        expected = case["encode.1.moments"][:1].chunk(2, dim=1)[0]
        assert torch.allclose(latents, expected, rtol=2e-3, atol=2e-3)
        with pytest.raises(ValueError, match=r"Got shape \[1, 16, 4, 4\]"):
            call("RemoteVAEDecodeVideo", samples={"samples": torch.zeros(1, 16, 4, 4)}, url=address)


#: Wan's latents as ComfyUI's samplers give them: `process_out` has put means and deviations back.
WAN = {"wan": ("1", "2", "encode.1"), "wan22": ("1", "2", "encode.2")}


@pytest.mark.parametrize("name", WAN)
def test_wan_takes_the_autoencoders_own_latents(name):
    case = load_file(VIDEO / f"{name}.safetensors")
    folder = VIDEO / name
    config = json.loads((folder / "config.json").read_text())
    mean, std = (torch.tensor(config[part]).reshape(1, -1, 1, 1, 1) for part in ("latents_mean", "latents_std"))
    one, two, encode = WAN[name]
    with serve(f"--model=video={folder}") as address:
        sampled = case["client.latents"]
        images = call("RemoteVAEDecodeVideo", samples={"samples": sampled * std + mean}, url=address)
        assert_images(images, case["client.pixels"])
        for number in (one, two):
            latents = case[f"decode.{number}.latents"]
            batch, _, frames, _, _ = latents.shape
            images = call("RemoteVAEDecodeVideo", samples={"samples": latents}, url=address)
            assert len(images) == batch * (4 * frames - 3)
            assert_images(images, case[f"decode.{number}.pixels"])
        picture = case["decode.0.latents"]
        images = call("RemoteVAEDecode", samples={"samples": picture}, url=address)
        assert images.shape[0] == 1
        assert_images(images, case["decode.0.pixels"])
        frames = images_of(case[f"{encode}.pixels"][:1].float())[0]
        latents = call("RemoteVAEEncode", pixels=frames, url=address)["samples"]
        expected = case[f"{encode}.moments"][:1].chunk(2, dim=1)[0]
        assert latents.shape == expected.shape
        assert torch.allclose(latents, expected, rtol=2e-3, atol=2e-3)


def test_errors_are_one_sentence(golden, monkeypatch):
    latents = {"samples": torch.zeros(1, 4, 2, 2)}
    with pytest.raises(ModelNotFound, match="no model is called 'sdxxl'; the server has sd15"):
        call("RemoteVAEDecode", samples=latents, url=golden, model="sdxxl")
    with pytest.raises(ModelNotFound, match="no model is called 'wan'; the server has sd15"):
        call("RemoteVAEDecodeVideo", samples={"samples": torch.zeros(1, 16, 1, 2, 2)}, url=golden, model="wan")
    with pytest.raises(ServerUnreachable, match="No answer from http://127.0.0.1:9"):
        call("RemoteVAEDecode", samples=latents, url="http://127.0.0.1:9")
    with pytest.raises(RequestRejected, match="latents: expected"):
        call("RemoteVAEDecode", samples=latents, url=golden, model="flux")
    with serve("--api-key", "right") as closed:
        with pytest.raises(KeyRejected, match="`api_key`"):
            call("RemoteVAEDecode", samples=latents, url=closed)
        assert call("RemoteVAEDecode", samples=latents, url=closed, api_key="right").shape == (1, 16, 16, 3)
        monkeypatch.setenv("REMOTE_VAE_API_KEY", "right")
        assert call("RemoteVAEDecode", samples=latents, url=closed).shape == (1, 16, 16, 3)


def test_the_stop_button_ends_a_request(monkeypatch):
    """ComfyUI says so by raising from its own function, which the nodes look at."""
    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def do_POST(self):
            asked.set()
            time.sleep(3)

        def log_message(self, *_):
            pass

    class Interrupted(Exception):
        pass

    def interrupted():
        if asked.is_set():
            raise Interrupted

    asked = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(NODES.nodes, "_raise_if_interrupted", interrupted)
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        url = f"http://127.0.0.1:{server.server_port}"
        call("RemoteVAEDecode", samples={"samples": torch.zeros(1, 4, 2, 2)}, url=url)
    assert time.monotonic() - begun < 2.5
    server.shutdown()
