"""The functions against the built server: forms agree with each other, batches are whole, the queue keeps the order."""

import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from remote_vae import (
    DecodeQueue,
    KeyRejected,
    LocalServer,
    ModelNotFound,
    RemoteVAEError,
    RequestRejected,
    ServerRefused,
    ServerUnreachable,
    Session,
    remote_decode,
    remote_encode,
    server_info,
)


def latents(batch=1, seed=0, dtype=np.float16):
    return np.random.default_rng(seed).standard_normal((batch, 4, 6, 9)).astype(dtype)


def test_forms_agree(server):
    given = latents()
    png = remote_decode(server, given, image_format="png")
    assert png.size == (72, 48)
    pixels = remote_decode(server, given, output_type="pt", return_type="pt", partial_postprocess=True)
    assert pixels.dtype == np.uint8 and pixels.shape == (1, 48, 72, 3)
    assert np.array_equal(np.asarray(png), pixels[0])
    raw = remote_decode(server, given, output_type="pt", return_type="pt")
    assert raw.dtype == np.float16 and raw.shape == (1, 3, 48, 72)
    near = np.clip(raw.astype(np.float32) / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1) * 255
    assert np.abs(near - pixels).max() <= 1
    jpeg = np.asarray(remote_decode(server, given)).astype(float)
    assert np.abs(jpeg - pixels[0]).mean() < 40


def test_a_batch_comes_back_whole(server):
    given = latents(batch=3)
    pictures = remote_decode(server, given)
    assert len(pictures) == 3
    for picture, alone in zip(pictures, given):
        assert picture.tobytes() == remote_decode(server, alone[None], image_format="png").tobytes()


def test_other_strides_travel_right(server):
    given = latents()
    turned = np.asfortranarray(given)
    assert not turned.flags.c_contiguous
    same = [remote_decode(server, each, image_format="png").tobytes() for each in (given, turned)]
    assert same[0] == same[1]


def test_scaling(server):
    """Doubled latents with a doubled factor are the same; without scaling the factor counts for nothing."""
    given = latents(dtype=np.float32)
    options = {"output_type": "pt", "return_type": "pt"}
    one = remote_decode(server, given, scaling_factor=0.5, **options)
    assert np.array_equal(one, remote_decode(server, given * 2, scaling_factor=1.0, **options))
    assert np.array_equal(one, remote_decode(server, given * 2, do_scaling=False, **options))
    assert not np.array_equal(one, remote_decode(server, given, do_scaling=False, **options))


def test_pictures_and_tensors_encode_alike(server):
    pixels = np.random.default_rng(1).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    of_picture = np.asarray(remote_encode(server, Image.fromarray(pixels), scaling_factor=0.5))
    assert of_picture.shape == (1, 4, 2, 3)
    tensor = pixels.astype(np.float32).transpose(2, 0, 1)[None] / 255
    of_tensor = remote_encode(server, tensor, scaling_factor=0.5)
    assert isinstance(of_tensor, np.ndarray)
    assert np.abs(of_tensor.astype(float) - of_picture.astype(float)).max() < 0.02


def test_torch_gives_torch(server):
    torch = pytest.importorskip("torch")
    given = torch.from_numpy(latents())
    raw = remote_decode(server, given, output_type="pt", return_type="pt")
    assert isinstance(raw, torch.Tensor) and raw.dtype == torch.float16
    brain = remote_decode(server, given.to(torch.bfloat16), output_type="pt", return_type="pt")
    rounded = remote_decode(server, given.to(torch.bfloat16).float(), output_type="pt", return_type="pt")
    assert torch.equal(brain, rounded)
    turned = given.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert torch.equal(raw, remote_decode(server, turned, output_type="pt", return_type="pt"))
    assert isinstance(remote_encode(server, torch.zeros(1, 3, 16, 16)), torch.Tensor)


def test_refusals_are_one_sentence(server):
    with pytest.raises(ServerRefused, match="answered 400: latents: expected latents of shape") as caught:
        remote_decode(server, np.zeros((1, 5, 4, 4), np.float16))
    assert caught.value.status == 400 and "\n" not in str(caught.value)
    with pytest.raises(ModelNotFound, match="answered 404"):
        remote_decode(server + "/no-such-model", latents())
    with pytest.raises(RequestRejected, match="precision"):
        remote_decode(server, latents(), precision="sloppy")


def test_a_key_is_asked_for_by_name():
    with LocalServer(arguments=["--api-key", "right"]) as closed:
        with pytest.raises(KeyRejected, match="answered 401: .*`api_key`"):
            remote_decode(closed.url, latents())
        with pytest.raises(KeyRejected):
            remote_decode(closed.url, latents(), api_key="wrong")
        assert remote_decode(closed.url, latents(), api_key="right").size == (72, 48)


def test_the_server_tells_of_its_models(server):
    (model,) = server_info(server)["models"]
    assert model["description"]["config"]["latent_channels"] == 4


def test_pictures_of_one_size_are_encoded_together(server):
    pictures = [Image.fromarray(np.full((16, 24, 3), shade, np.uint8)) for shade in (10, 200)]
    both = np.asarray(remote_encode(server, pictures))
    assert both.shape == (2, 4, 2, 3)
    for alone, found in zip(pictures, both):
        assert np.array_equal(np.asarray(remote_encode(server, [alone]))[0], found)
    with pytest.raises(ValueError, match="one size"):
        remote_encode(server, [*pictures, pictures[0].resize((8, 8))])
    with pytest.raises(TypeError, match="Expected a PIL picture"):
        remote_encode(server, [])
    seeded = [np.asarray(remote_encode(server, pictures[0], seed=seed)) for seed in (1, 1, 2)]
    assert np.array_equal(seeded[0], seeded[1]) and not np.array_equal(seeded[0], seeded[2])


def test_a_local_server_ends_with_its_parent():
    """However the parent ends."""
    script = (
        "import os, signal, remote_vae; server = remote_vae.LocalServer();"
        "print(server.url, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    process = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    url = process.stdout.strip()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            server_info(url, session=Session(retries=0))
        except ServerUnreachable:
            return
        time.sleep(0.05)
    pytest.fail(f"{url} still answers")


def test_a_program_that_is_not_there(monkeypatch):
    monkeypatch.setenv("REMOTE_VAE_BINARY", "/nowhere/remote-vae")
    with pytest.raises(RemoteVAEError, match="/nowhere/remote-vae cannot be started: No such file"):
        LocalServer()


def test_the_queue_keeps_the_order(server):
    given = [latents(seed=seed) for seed in range(7)]
    alone = [remote_decode(server, each, image_format="png").tobytes() for each in given]
    with DecodeQueue(server, size=3, parallel=3, image_format="png") as queue:
        assert [picture.tobytes() for picture in queue.map(iter(given))] == alone
        futures = [queue.submit(each) for each in given]
        assert [future.result().tobytes() for future in futures] == alone
        with pytest.raises(ServerRefused):
            queue.submit(np.zeros((1, 5, 4, 4), np.float16)).result()
        for each in given:
            queue.put(each)
        assert [picture.tobytes() for picture in queue] == alone


def test_a_processor_of_diffusers(server):
    """A float answer through the processor gives the server's own pixels, for every sample."""
    torch = pytest.importorskip("torch")
    processor = pytest.importorskip("diffusers.image_processor").VaeImageProcessor()
    given = torch.from_numpy(latents(batch=2))
    expected = [picture.tobytes() for picture in remote_decode(server, given)]
    for output_type in ("pt", "pil"):
        pictures = remote_decode(server, given, processor=processor, output_type=output_type)
        assert [picture.tobytes() for picture in pictures] == expected
