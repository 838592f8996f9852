"""The client modules of several diffusers releases, unmodified, against the built server; and the guide's examples."""

import queue
import threading

import generations
import numpy as np
import pytest
import requests
import torch
from conftest import MODELS, assert_half_of, draw, pack, picture, to_uint8
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

SIZE = (56, 40)


@pytest.fixture(params=generations.ALL, scope="module")
def client(request):
    try:
        return generations.load(request.param)
    except generations.Unavailable as reason:
        pytest.skip(f"the client of diffusers {request.param} cannot be had: {reason}")


@pytest.fixture(params=["sd15", "flux"])
def model(request):
    return MODELS[request.param]


@pytest.fixture
def latents(model):
    return draw(1, model.channels, 5, 7, scale=model.scaling)


@pytest.fixture
def pixels(model, latents):
    return model.decode(latents)


def near(image, pixels):
    return image.size == SIZE and np.abs(np.asarray(image).astype(int) - to_uint8(pixels)[0]).max() <= 1


# ---- every release, in every output type ----------------------------------------------------------------------------


def test_every_output_type(client, model, url_of, latents, pixels):
    url, factors, processor = url_of(model), model.factors, VaeImageProcessor()
    assert_half_of(client.remote_decode(url, latents, **factors, output_type="pt", return_type="pt"), pixels)
    assert near(client.remote_decode(url, latents, processor, **factors, output_type="pt"), pixels)
    assert near(client.remote_decode(url, latents, **factors, output_type="pt", partial_postprocess=True), pixels)
    tensor = client.remote_decode(
        url, latents, **factors, output_type="pt", return_type="pt", partial_postprocess=True
    )
    assert tensor.dtype == torch.uint8 and list(tensor.shape) == [1, SIZE[1], SIZE[0], 3]
    png = client.remote_decode(url, latents, **factors, image_format="png")
    assert png.format == "png" and near(png, pixels)
    jpeg = client.remote_decode(url, latents, **factors)
    assert jpeg.format == "jpeg" and jpeg.size == SIZE
    (image,) = client.remote_decode(url, latents, processor, **factors)
    assert near(image, pixels)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_every_way_to_scale(client, model, url_of, latents, pixels):
    url, options = url_of(model), dict(output_type="pt", return_type="pt")
    assert_half_of(client.remote_decode(url, latents, **options), pixels)
    assert_half_of(client.remote_decode(url, model.to_model(latents), do_scaling=False, **options), pixels)
    base64 = dict(input_tensor_type="base64", output_tensor_type="base64")
    assert_half_of(client.remote_decode(url, latents, **model.factors, **base64, **options), pixels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_input_type_packed_too(client, url_of, dtype):
    model = MODELS["flux"]
    latents = draw(1, 16, 6, 8, dtype=dtype, scale=model.scaling)
    options = dict(model.factors, output_type="pt", return_type="pt")
    expected = model.decode(latents)
    assert_half_of(client.remote_decode(url_of(model), latents, **options), expected)
    assert_half_of(client.remote_decode(url_of(model), pack(latents), **options, height=48, width=64), expected)


def test_encode_and_back(client, model, url_of):
    image = picture(*SIZE)
    pixels = VaeImageProcessor().preprocess(image)
    latents = client.remote_encode(url_of(model), image, **model.factors)
    assert_half_of(latents, model.encode(pixels))
    assert_half_of(client.remote_encode(url_of(model), pixels.contiguous(), **model.factors), model.encode(pixels))
    assert client.remote_decode(url_of(model), latents, **model.factors, image_format="png").size == SIZE


def test_refusals_are_readable(client, model, url_of, latents):
    for wrong, options in (
        (latents, dict(output_type="mp4", return_type="mp4")),
        (latents.unsqueeze(2), {}),
        (latents.double(), {}),
        (latents[:, 1:].contiguous(), {}),
    ):
        with pytest.raises(RuntimeError) as caught:
            client.remote_decode(url_of(model), wrong, **model.factors, **options)
        assert isinstance(caught.value.args[0]["error"], str)


def test_one_connection_for_all(client, model, url_of, latents, pixels, monkeypatch):
    """With a session in place of single requests, decodes, encodes and refusals share a connection."""
    with requests.Session() as session:
        monkeypatch.setattr(client.requests, "post", session.post)
        url, options = url_of(model), dict(model.factors, output_type="pt", return_type="pt")
        for _ in range(3):
            assert_half_of(client.remote_decode(url, latents, **options), pixels)
            with pytest.raises(RuntimeError):
                client.remote_decode(url, latents.double(), **options)
            client.remote_encode(url, picture(24, 16))
        (pool,) = session.get_adapter(url).poolmanager.pools._container.values()
        assert pool.num_connections == 1 and pool.num_requests == 9


# ---- examples of the guide, the address replaced --------------------------------------------------------------------


def test_guide_random_latents(client, plain_server):
    image = client.remote_decode(
        endpoint=plain_server.url + "/",
        tensor=torch.randn([1, 4, 64, 64], dtype=torch.float16),
        scaling_factor=0.18215,
    )
    assert image.size == (512, 512)


def test_guide_packed_latents(client, url_of):
    """The one for Flux, 1024x1024."""
    image = client.remote_decode(
        endpoint=url_of(MODELS["flux"]) + "/",
        tensor=torch.randn([1, 4096, 64], dtype=torch.float16),
        height=1024,
        width=1024,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    assert image.size == (1024, 1024)


def test_guide_picture_from_a_pipeline(client, url_of):
    """What text-to-image pipelines give with `output_type="latent"`: latents of SD 1.5, packed ones of Flux."""
    latent = draw(1, 4, 32, 32, scale=0.18215)
    image = client.remote_decode(endpoint=url_of(MODELS["sd15"]), tensor=latent, scaling_factor=0.18215)
    assert image.size == (256, 256)
    latent = pack(draw(1, 16, 32, 32, dtype=torch.bfloat16, scale=0.3611))
    image = client.remote_decode(
        endpoint=url_of(MODELS["flux"]), tensor=latent, height=256, width=256, scaling_factor=0.3611, shift_factor=0.1159
    )
    assert image.size == (256, 256)


def test_guide_encode_then_decode(client, url_of):
    """Of a photograph of odd sides, at the address of the decoder, as the guide has it."""
    url = url_of(MODELS["flux"])
    latent = client.remote_encode(
        endpoint=url, image=picture(231, 199), scaling_factor=0.3611, shift_factor=0.1159
    )
    decoded = client.remote_decode(endpoint=url, tensor=latent, scaling_factor=0.3611, shift_factor=0.1159)
    assert decoded.size == (224, 192)


def test_guide_picture_to_picture(client, url_of):
    """A sketch of 768x512 is encoded; a pipeline would change its latents; they are decoded."""
    url = url_of(MODELS["sd15"])
    latent = client.remote_encode(url, picture(768, 512).convert("RGB"), scaling_factor=0.18215)
    assert list(latent.shape) == [1, 4, 64, 96]
    assert client.remote_decode(url, latent, scaling_factor=0.18215).size == (768, 512)


def test_guide_queue(client, model, url_of):
    """One daemon thread decodes while the next latents are made."""
    work, decoded = queue.Queue(), []

    def decode_worker():
        while True:
            item = work.get()
            if item is None:
                break
            decoded.append(client.remote_decode(endpoint=url_of(model), tensor=item, **model.factors))
            work.task_done()

    url_of(model)
    thread = threading.Thread(target=decode_worker, daemon=True)
    thread.start()
    sizes = [(4, 6), (5, 7), (4, 6), (2, 3), (6, 4)]
    for index, (height, width) in enumerate(sizes):
        work.put(draw(1, model.channels, height, width, seed=index, scale=model.scaling))
    work.join()
    work.put(None)
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert [image.size for image in decoded] == [(8 * width, 8 * height) for height, width in sizes]
    assert all(isinstance(image, Image.Image) for image in decoded)
