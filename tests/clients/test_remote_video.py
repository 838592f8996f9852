"""HunyuanVideo through `remote_decode` of diffusers, unmodified: the request of its own tests, at a reduced width.

The model is made by diffusers with random weights; every answer is held to diffusers' own decode.
"""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import requests
import torch
from conftest import ROOT, Server, assert_half_of, to_uint8
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.utils.remote_utils import remote_decode
from diffusers.video_processor import VideoProcessor
from PIL import Image

sys.path.insert(0, str(ROOT / "crates" / "engine" / "tests" / "golden_video"))
from make_video_golden import randomise, save  # noqa: E402

FACTOR = 0.476986
SHAPE = (1, 16, 3, 40, 64)
FRAMES, HEIGHT, WIDTH = 9, 320, 512


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(2)
    model = AutoencoderKLHunyuanVideo(
        latent_channels=16, block_out_channels=(8, 8, 16, 16), layers_per_block=2, norm_num_groups=4
    )
    randomise(model.eval().requires_grad_(False))
    return model


@pytest.fixture(scope="module")
def url(vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hunyuan")
    save(vae, folder)
    with Server(f"--model=hunyuan={folder}") as server:
        yield server.url + "/"


@pytest.fixture(scope="module")
def latents():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(13), dtype=torch.float32).half()


@pytest.fixture(scope="module")
def pixels(vae, latents):
    return vae.decode(latents.float() / FACTOR).sample


@pytest.fixture(scope="module")
def frames(pixels):
    """uint8 [frames, height, width, 3]."""
    return to_uint8(pixels[0].permute(1, 0, 2, 3))


def assert_pictures(pictures, frames):
    assert isinstance(pictures, list) and len(pictures) == FRAMES
    for picture, frame in zip(pictures, frames, strict=True):
        assert isinstance(picture, Image.Image) and picture.size == (WIDTH, HEIGHT)
        assert np.abs(np.asarray(picture).astype(int) - frame.astype(int)).max() <= 1


def test_tensor(url, latents, pixels):
    out = remote_decode(url, latents, scaling_factor=FACTOR, output_type="pt", return_type="pt")
    assert_half_of(out, pixels)


def test_the_models_own_factor(url, vae):
    small = torch.randn((1, 16, 1, 4, 6), generator=torch.Generator().manual_seed(12)).half()
    out = remote_decode(url, small, do_scaling=True, output_type="pt", return_type="pt")
    assert_half_of(out, vae.decode(small.float() / FACTOR).sample)


def test_tensor_as_pictures(url, latents, frames):
    assert_pictures(remote_decode(url, latents, VideoProcessor(), scaling_factor=FACTOR, output_type="pt"), frames)


def test_partial_postprocess(url, latents, frames):
    options = {"scaling_factor": FACTOR, "output_type": "pt", "partial_postprocess": True}
    assert_pictures(remote_decode(url, latents, **options), frames)
    tensor = remote_decode(url, latents, **options, return_type="pt")
    assert tensor.dtype == torch.uint8 and list(tensor.shape) == [FRAMES, HEIGHT, WIDTH, 3]


def test_pictures(url, latents, frames):
    options = {"scaling_factor": FACTOR, "output_type": "pil"}
    assert_pictures(remote_decode(url, latents, VideoProcessor(), **options, image_format="png"), frames)
    tensor = remote_decode(url, latents, VideoProcessor(), **options, image_format="jpg", return_type="pt")
    assert list(tensor.shape) == [FRAMES, 3, HEIGHT, WIDTH] and 0 <= tensor.min() and tensor.max() <= 1


def probe(file, tmp_path):
    """What ffprobe says of a video, with its frames counted."""
    if not shutil.which("ffprobe"):
        pytest.skip("ffprobe is not installed")
    path = tmp_path / "clip.mp4"
    path.write_bytes(file)
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True)
    assert output.stderr == ""
    (stream,) = json.loads(output.stdout)["streams"]
    return {key: stream[key] for key in ("codec_name", "pix_fmt", "width", "height", "nb_read_frames", "r_frame_rate")}


def is_mp4(file):
    return file[4:8] == b"ftyp"


def test_mp4(url, latents, tmp_path):
    file = remote_decode(url, latents, scaling_factor=FACTOR, output_type="mp4", return_type="mp4")
    assert isinstance(file, bytes) and is_mp4(file)
    assert probe(file, tmp_path) == {
        "codec_name": "h264",
        "pix_fmt": "yuv420p",
        "width": WIDTH,
        "height": HEIGHT,
        "nb_read_frames": str(FRAMES),
        "r_frame_rate": "10/1",
    }


def test_streamed_mp4(url, tmp_path):
    """Two windows: the file comes in pieces, one for each frame, and the client does not notice."""
    long = torch.randn((1, 16, 7, 6, 10), generator=torch.Generator().manual_seed(14)).half()
    file = remote_decode(url + "?fps=24", long, scaling_factor=FACTOR, output_type="mp4", return_type="mp4")
    assert is_mp4(file) and file.count(b"moof") == 25
    found = probe(file, tmp_path)
    assert (found["width"], found["height"], found["nb_read_frames"]) == (80, 48, "25")
    assert found["r_frame_rate"] == "24/1"


def test_windows_and_tiles(url, vae):
    """What a request may say about them, against diffusers' own switches."""
    long = torch.randn((1, 16, 5, 2, 33), generator=torch.Generator().manual_seed(15)).half()
    for query, framewise, tiled in [("", True, False), ("?windows=off", False, False), ("?tiling=on", True, True)]:
        vae.use_framewise_decoding = framewise
        vae.enable_tiling() if tiled else vae.disable_tiling()
        expected = vae.decode(long.float() / FACTOR).sample
        vae.use_framewise_decoding = True
        vae.disable_tiling()
        out = remote_decode(url + query, long, scaling_factor=FACTOR, output_type="pt", return_type="pt")
        assert_half_of(out, expected)


def test_webp(url):
    latents = torch.randn((1, 16, 3, 4, 6), generator=torch.Generator().manual_seed(18)).half()
    request = {"shape": list(latents.shape), "dtype": "float16", "scaling_factor": FACTOR, "output_type": "pil", "fps": 20}
    answer = requests.post(url, params=request, data=latents.numpy().tobytes(), headers={"Accept": "image/webp"})
    answer.raise_for_status()
    animation = Image.open(io.BytesIO(answer.content))
    assert (animation.format, animation.n_frames, animation.size) == ("WEBP", FRAMES, (48, 32))


def test_encode(url, vae):
    clip = torch.rand((1, 3, 9, 32, 48), generator=torch.Generator().manual_seed(16)) * 2 - 1
    request = {"shape": list(clip.shape), "dtype": "float32", "scaling_factor": FACTOR}
    answer = requests.post(url, params=request, data=clip.numpy().tobytes())
    answer.raise_for_status()
    assert (answer.headers["shape"], answer.headers["dtype"]) == ("[1,16,3,4,6]", "float16")
    found = torch.frombuffer(bytearray(answer.content), dtype=torch.float16).reshape(1, 16, 3, 4, 6)
    assert_half_of(found, vae.encode(clip).latent_dist.mode() * FACTOR)


def test_a_video_goes_there_and_back(url):
    latents = torch.randn((1, 16, 3, 4, 6), generator=torch.Generator().manual_seed(17)).half()
    file = remote_decode(url, latents, scaling_factor=FACTOR, output_type="mp4", return_type="mp4")
    answer = requests.post(url, params={"scaling_factor": FACTOR}, data=file)
    answer.raise_for_status()
    assert answer.headers["shape"] == "[1,16,3,4,6]"


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 4, 3, 4, 6), "[batch, 16, frames, height, width]"), ((16, 3, 4, 6, 1, 1), "[batch, 16, frames, height, width]")],
)
def test_wrong_shapes_are_refused_by_name(url, shape, expected):
    with pytest.raises(RuntimeError, match="expected shape") as error:
        remote_decode(url, torch.zeros(shape).half(), scaling_factor=FACTOR, output_type="pt", return_type="pt")
    assert expected in str(error.value)
