"""`remote_encode` of diffusers, unmodified, against the mode of diffusers' own encoder."""

import io

import numpy as np
import pytest
import requests
import torch
from conftest import MODELS, USUAL, assert_half_of, picture
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import prepare_encode, remote_decode, remote_encode
from PIL import Image


@pytest.fixture(params=[*USUAL, pytest.param(MODELS["tiny"], id="tiny"), pytest.param(MODELS["sd3"], id="sd3")])
def model(request):
    return request.param


@pytest.fixture
def url(model, url_of):
    return url_of(model)


def preprocess(image):
    """What a pipeline makes of a picture: sides cut to multiples of 8 by resizing, values in [-1, 1]."""
    return VaeImageProcessor(vae_scale_factor=8).preprocess(image.convert("RGB"))


def test_picture(model, url):
    image = picture(72, 48)
    latents = remote_encode(url, image, **model.factors)
    assert list(latents.shape) == [1, model.channels, 6, 9]
    assert_half_of(latents, model.encode(preprocess(image)))


def test_without_factors(model, url):
    """A picture and nothing else: the query is empty, and no factor means none."""
    image = picture(40, 40)
    latents = remote_encode(url, image)
    unscaled = model.encode(preprocess(image)) / (model.scaling or 1.0) + (model.shift or 0.0)
    assert_half_of(latents, unscaled)


def test_factors_of_the_caller(url_of):
    model, image = MODELS["sd15"], picture(40, 40)
    unscaled = model.encode(preprocess(image)) / model.scaling
    latents = remote_encode(url_of(model), image, scaling_factor=0.5, shift_factor=0.25)
    assert_half_of(latents, (unscaled - 0.25) * 0.5)
    assert_half_of(remote_encode(url_of(model), image, shift_factor=0.25), unscaled - 0.25)


def modes_of_a_picture():
    image = picture(56, 40)
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.fromarray((np.indices((40, 56)).sum(0) * 255 // 96).astype(np.uint8)))
    yield "RGB", image
    yield "RGBA", transparent
    yield "L", image.convert("L")
    yield "LA", transparent.convert("LA")
    yield "P", image.quantize(64)
    yield "1", image.convert("1")


@pytest.mark.parametrize("image", [pytest.param(image, id=mode) for mode, image in modes_of_a_picture()])
def test_modes_of_pictures(url_of, image):
    model = MODELS["sd15"]
    latents = remote_encode(url_of(model), image, **model.factors)
    assert_half_of(latents, model.encode(preprocess(image)))


def test_deep_grey(url_of):
    """16 bits a sample: how Pillow reduces them has changed over time, so only the answer's form is held to."""
    model = MODELS["sd15"]
    deep = Image.fromarray((np.asarray(picture(56, 40).convert("L")).astype(np.uint16) * 257))
    latents = remote_encode(url_of(model), deep, **model.factors)
    assert list(latents.shape) == [1, 4, 5, 7] and torch.isfinite(latents).all()


@pytest.mark.parametrize("size", [(57, 43), (63, 71), (8, 8), (200, 33)])
def test_sides_that_8_does_not_divide(url_of, size):
    model, image = MODELS["sd15"], picture(*size)
    latents = remote_encode(url_of(model), image, **model.factors)
    assert list(latents.shape) == [1, 4, size[1] // 8, size[0] // 8]
    assert_half_of(latents, model.encode(preprocess(image)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 2])
def test_tensors(model, url, dtype, batch):
    # Contiguous, because this client reads a temporary copy after it is freed when it has to make one.
    pixels = torch.cat([preprocess(picture(56, 40, seed)) for seed in range(batch)]).to(dtype).contiguous()
    assert pixels.min() < 0
    latents = remote_encode(url, pixels, **model.factors)
    assert_half_of(latents, model.encode(pixels))
    # Without a negative number it is taken as [0, 1].
    unit = (pixels.float() / 2 + 0.5).to(dtype)
    latents = remote_encode(url, unit, **model.factors)
    assert_half_of(latents, model.encode(unit.float() * 2 - 1))


def test_same_request_same_bytes(model, url):
    image = picture(64, 64)
    assert torch.equal(remote_encode(url, image, **model.factors), remote_encode(url, image, **model.factors))


def test_seeded_draw(url_of):
    """Asked for a seed, the server draws from the distribution as torch's generator on a CPU does."""
    model, image = MODELS["sd15"], picture(56, 40)
    request = prepare_encode(image, **model.factors)
    request["params"]["seed"] = 13
    response = requests.post(url_of(model), **request)
    assert response.ok, response.text
    latents = torch.frombuffer(bytearray(response.content), dtype=torch.float16).reshape(1, 4, 5, 7)
    distribution = model.vae.encode(preprocess(image)).latent_dist
    assert_half_of(latents, distribution.sample(torch.Generator().manual_seed(13)) * model.scaling)


def test_there_and_back(model, url):
    image = picture(88, 64)
    latents = remote_encode(url, image, **model.factors)
    decoded = remote_decode(url, latents, do_scaling=bool(model.factors), **model.factors, image_format="png")
    assert decoded.size == image.size


def test_answer_headers(url_of):
    model = MODELS["sd15"]
    response = requests.post(url_of(model), **prepare_encode(picture(56, 40), **model.factors))
    assert response.headers["content-type"] == "tensor/binary"
    assert response.headers["shape"] == "[1,4,5,7]"
    assert response.headers["dtype"] == "float16"
    assert len(response.content) == 2 * 4 * 5 * 7


def test_photograph_forms(url_of):
    """JPEG and WebP files as a browser would post them."""
    model = MODELS["sd15"]
    for form in ("JPEG", "WEBP"):
        buffer = io.BytesIO()
        picture(56, 40).save(buffer, format=form, **({"lossless": True} if form == "WEBP" else {}))
        response = requests.post(url_of(model), data=buffer.getvalue(), params=model.factors)
        assert response.ok, response.text
        latents = torch.frombuffer(bytearray(response.content), dtype=torch.float16).reshape(1, 4, 5, 7)
        expected = model.encode(preprocess(Image.open(buffer)))
        # JPEG decoders differ in how they enlarge the colour planes.
        assert (latents.float() - expected).abs().max() < (0.05 if form == "JPEG" else 1e-3)


def test_broken_picture(url_of):
    request = prepare_encode(picture(56, 40))
    for body in (request["data"][:300], request["data"][:8], b"\x89PNG\r\n\x1a\n" + bytes(100), b""):
        response = requests.post(url_of(MODELS["sd15"]), data=body)
        assert response.status_code == 400 and response.json()["error"]


def test_refusal_reaches_the_caller(url_of):
    with pytest.raises(RuntimeError) as caught:
        remote_encode(url_of(MODELS["sd15"]), torch.zeros(1, 5, 8, 8))
    assert isinstance(caught.value.args[0]["error"], str)
