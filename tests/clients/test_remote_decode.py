"""`remote_decode` of diffusers, unmodified, in every output type, against diffusers' own decode of the same model."""

import io

import numpy as np
import pytest
import requests
import torch
from conftest import MODELS, USUAL, assert_half_of, draw, pack, psnr, to_uint8
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import prepare_decode, remote_decode
from PIL import Image, JpegImagePlugin

SIDES = (5, 7)
SIZE = (56, 40)


def post(url, latents, **options):
    """The very request of `remote_decode`, and the answer as it came."""
    return requests.post(url, **prepare_decode(latents, **options))


def as_pil(array):
    return [Image.fromarray(image) for image in array]


def within_one(image, expected):
    """Pixels of a PIL image and a local decode, at most one step apart."""
    difference = np.abs(np.asarray(image).astype(int) - expected.astype(int))
    return difference.shape == expected.shape and difference.max() <= 1


@pytest.fixture(params=USUAL)
def model(request):
    return request.param


@pytest.fixture
def url(model, url_of):
    return url_of(model)


@pytest.fixture
def latents(model):
    return draw(1, model.channels, *SIDES, scale=model.scaling)


@pytest.fixture
def pixels(model, latents):
    return model.decode(latents)


# ---- output types ---------------------------------------------------------------------------------------------------


def test_tensor(model, url, latents, pixels):
    out = remote_decode(url, latents, **model.factors, output_type="pt", return_type="pt")
    assert_half_of(out, pixels)
    with_processor = remote_decode(
        url, latents, VaeImageProcessor(), **model.factors, output_type="pt", return_type="pt"
    )
    assert torch.equal(out, with_processor)


def test_tensor_as_picture(model, url, latents, pixels):
    image = remote_decode(url, latents, VaeImageProcessor(), **model.factors, output_type="pt")
    assert isinstance(image, Image.Image) and image.size == SIZE
    assert within_one(image, to_uint8(pixels)[0])


def test_partial_postprocess(model, url, latents, pixels):
    options = dict(model.factors, output_type="pt", partial_postprocess=True)
    image = remote_decode(url, latents, **options)
    assert isinstance(image, Image.Image) and image.size == SIZE
    assert within_one(image, to_uint8(pixels)[0])
    tensor = remote_decode(url, latents, **options, return_type="pt")
    assert tensor.dtype == torch.uint8 and list(tensor.shape) == [1, SIZE[1], SIZE[0], 3]
    assert np.array_equal(tensor[0].numpy(), np.asarray(image))


def test_png(model, url, latents, pixels):
    image = remote_decode(url, latents, **model.factors, image_format="png")
    assert image.format == "png" and image.size == SIZE
    assert within_one(image, to_uint8(pixels)[0])
    body = post(url, latents, **model.factors, image_format="png").content
    # Width, height, 8 bits, colour type RGB, deflate, no filter method of its own, no interlace.
    assert body[16:29] == SIZE[0].to_bytes(4) + SIZE[1].to_bytes(4) + bytes([8, 2, 0, 0, 0])


def test_jpeg(model, url, latents):
    image = remote_decode(url, latents, **model.factors)
    assert image.format == "jpeg" and image.size == SIZE
    png = remote_decode(url, latents, **model.factors, image_format="png")
    buffer = io.BytesIO()
    png.convert("RGB").save(buffer, format="JPEG")
    pillow = Image.open(buffer)
    assert psnr(image, png) > psnr(pillow.convert("RGB"), png) - 0.5


def test_jpeg_is_made_as_pillow_makes_it(model, url):
    latents = draw(1, model.channels, 9, 6, scale=model.scaling)
    response = post(url, latents, **model.factors)
    assert response.headers["content-type"] == "image/jpeg"
    ours = Image.open(io.BytesIO(response.content))
    buffer = io.BytesIO()
    ours.convert("RGB").save(buffer, format="JPEG")
    pillow = Image.open(buffer)
    assert ours.quantization == pillow.quantization
    assert JpegImagePlugin.get_sampling(ours) == JpegImagePlugin.get_sampling(pillow) == 2
    assert ours.info.keys() == pillow.info.keys()
    for name in ("jfif", "jfif_version", "jfif_unit", "jfif_density"):
        assert ours.info[name] == pillow.info[name], name
    assert ours.mode == "RGB"


def test_picture_with_a_processor(model, url, latents, pixels):
    """Meant for video, where the answer is a tensor in [0, 1]; an image model answers with its batch."""
    images = remote_decode(url, latents, VaeImageProcessor(), **model.factors)
    assert len(images) == 1 and images[0].size == SIZE
    assert within_one(images[0], to_uint8(pixels)[0])
    tensor = remote_decode(url, latents, VaeImageProcessor(), **model.factors, return_type="pt")
    assert list(tensor.shape) == [1, 3, SIZE[1], SIZE[0]]
    assert tensor.min() >= 0 and tensor.max() <= 1


def test_every_way_to_a_picture_gives_the_same_pixels(model, url, latents):
    ways = {
        "png": remote_decode(url, latents, **model.factors, image_format="png"),
        "partial": remote_decode(url, latents, **model.factors, output_type="pt", partial_postprocess=True),
        "tensor and processor": remote_decode(url, latents, VaeImageProcessor(), **model.factors, output_type="pt"),
        "picture and processor": remote_decode(url, latents, VaeImageProcessor(), **model.factors)[0],
    }
    expected = np.asarray(ways["png"])
    for way, image in ways.items():
        assert np.array_equal(np.asarray(image), expected), way
    tensor = remote_decode(url, latents, **model.factors, output_type="pt", return_type="pt")
    assert np.array_equal(to_uint8(tensor)[0], expected)


def test_answer_headers(model, url, latents):
    tensor = post(url, latents, **model.factors, output_type="pt")
    assert tensor.headers["content-type"] == "tensor/binary"
    assert tensor.headers["shape"] == f"[1,3,{SIZE[1]},{SIZE[0]}]"
    assert tensor.headers["dtype"] == "float16"
    assert int(tensor.headers["content-length"]) == len(tensor.content) == 2 * 3 * SIZE[0] * SIZE[1]
    assert "content-encoding" not in tensor.headers
    partial = post(url, latents, **model.factors, output_type="pt", partial_postprocess=True)
    assert partial.headers["shape"] == f"[1,{SIZE[1]},{SIZE[0]},3]"
    assert partial.headers["dtype"] == "uint8"


# ---- scaling --------------------------------------------------------------------------------------------------------


def test_no_scaling(model, url, latents, pixels):
    for do_scaling in (False, None):
        out = remote_decode(
            url, model.to_model(latents), do_scaling=do_scaling, output_type="pt", return_type="pt"
        )
        assert_half_of(out, pixels)


def test_do_scaling_deprecation(model, url, latents, pixels):
    with pytest.warns(FutureWarning, match="do_scaling"):
        out = remote_decode(url, latents, output_type="pt", return_type="pt")
    assert_half_of(out, pixels)


def test_factors_of_the_caller(model, url, latents):
    options = dict(output_type="pt", return_type="pt")
    out = remote_decode(url, latents, scaling_factor=0.25, **options)
    assert_half_of(out, model.vae.decode(latents.float() / 0.25).sample)
    out = remote_decode(url, latents, scaling_factor=0.25, shift_factor=0.125, **options)
    assert_half_of(out, model.vae.decode(latents.float() / 0.25 + 0.125).sample)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_only_a_shift_of_the_caller(model, url, latents):
    out = remote_decode(url, latents, shift_factor=0.125, output_type="pt", return_type="pt")
    assert_half_of(out, model.vae.decode(latents.float() / model.scaling + 0.125).sample)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_mean_and_deviation(url_of):
    model = MODELS["playground"]
    config = model.vae.config
    mean, deviation = (torch.tensor(v).view(1, 4, 1, 1) for v in (config.latents_mean, config.latents_std))
    latents = draw(1, 4, *SIDES, scale=0.1)
    out = remote_decode(url_of(model), latents, output_type="pt", return_type="pt")
    assert_half_of(out, model.vae.decode(latents.float() * deviation / config.scaling_factor + mean).sample)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", ["tiny", "tiny-16-channels"])
def test_tiny_models_take_latents_as_they_are(url_of, name):
    model = MODELS[name]
    latents = draw(1, model.channels, *SIDES)
    expected = model.vae.decode(latents.float()).sample
    rows = ({}, {"do_scaling": False}, {"scaling_factor": 0.18215}, {"scaling_factor": 0.3611, "shift_factor": 0.1159})
    for row in rows:
        assert_half_of(remote_decode(url_of(model), latents, **row, output_type="pt", return_type="pt"), expected)


# ---- inputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_input_types(model, url, dtype):
    latents = draw(1, model.channels, *SIDES, dtype=dtype, scale=model.scaling)
    out = remote_decode(url, latents, **model.factors, output_type="pt", return_type="pt")
    assert_half_of(out, model.decode(latents))


@pytest.mark.parametrize("which", ["input_tensor_type", "output_tensor_type"])
def test_base64_deprecation(model, url, latents, pixels, which):
    with pytest.warns(FutureWarning, match=which):
        out = remote_decode(url, latents, **model.factors, output_type="pt", return_type="pt", **{which: "base64"})
    assert_half_of(out, pixels)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 8), (3, 9), (23, 29), (13, 17), (37, 50)])
def test_odd_sizes(url_of, height, width):
    model = MODELS["sd15"]
    latents = draw(1, model.channels, height, width, scale=model.scaling)
    # diffusers' own tests send height and width along with latents that are not packed.
    out = remote_decode(
        url_of(model), latents, **model.factors, output_type="pt", return_type="pt", height=8 * height, width=8 * width
    )
    assert_half_of(out, model.decode(latents))


def test_height_and_width_mean_nothing_beside_unpacked_latents(model, url, latents, pixels):
    out = remote_decode(
        url, latents, **model.factors, output_type="pt", return_type="pt", height=1024, width=24
    )
    assert_half_of(out, pixels)


@pytest.mark.parametrize("name, dtype", [("flux", torch.bfloat16), ("flux", torch.float16), ("sd15", torch.float16)])
@pytest.mark.parametrize("batch", [1, 2])
def test_packed_latents(url_of, name, dtype, batch):
    model = MODELS[name]
    latents = draw(batch, model.channels, 6, 8, dtype=dtype, scale=model.scaling)
    options = dict(model.factors, output_type="pt", return_type="pt")
    out = remote_decode(url_of(model), pack(latents), **options, height=48, width=64)
    assert_half_of(out, model.decode(latents))
    assert torch.equal(out, remote_decode(url_of(model), latents, **options))
    # Sides that 16 does not divide lose what is left over.
    assert torch.equal(out, remote_decode(url_of(model), pack(latents), **options, height=63, width=72))


def test_packed_latents_need_sides(url_of):
    with pytest.raises(ValueError, match="required for packed"):
        remote_decode(url_of(MODELS["flux"]), draw(1, 12, 64), scaling_factor=0.3611)


def test_batch(model, url):
    latents = draw(2, model.channels, *SIDES, scale=model.scaling)
    expected = model.decode(latents)
    tensor = remote_decode(url, latents, **model.factors, output_type="pt", return_type="pt")
    assert_half_of(tensor, expected)
    for index in range(2):
        alone = remote_decode(
            url, latents[index : index + 1], **model.factors, output_type="pt", return_type="pt"
        )
        assert torch.equal(alone[0], tensor[index])
    images = remote_decode(url, latents, **model.factors, output_type="pt", partial_postprocess=True)
    assert len(images) == 2
    assert all(np.array_equal(a, b) for a, b in zip(images, as_pil(to_uint8(tensor))))
    images = remote_decode(url, latents, VaeImageProcessor(), **model.factors)
    assert len(images) == 2
    # One file holds one picture: the first.
    first = np.asarray(as_pil(to_uint8(tensor))[0])
    for options in ({"image_format": "png"}, {"output_type": "pt", "processor": VaeImageProcessor()}):
        assert np.array_equal(np.asarray(remote_decode(url, latents, **model.factors, **options)), first)
    assert remote_decode(url, latents, **model.factors).size == SIZE


def test_first_example_of_the_guide(plain_server):
    """Random latents of an SD pipeline, every argument but the factor left out, at the address without a path."""
    model = MODELS[""]
    latents = draw(1, 4, 64, 64)
    image = remote_decode(plain_server.url, latents, scaling_factor=model.scaling)
    assert image.size == (512, 512) and image.format == "jpeg"
    out = remote_decode(
        plain_server.url + "/", latents, scaling_factor=model.scaling, output_type="pt", return_type="pt"
    )
    assert_half_of(out, model.decode(latents))


def test_latents_that_are_not_numbers_are_answered(model, url):
    latents = draw(1, model.channels, *SIDES)
    latents[0, 0, 0, 0] = float("nan")
    latents[0, 0, 4, 6] = float("inf")
    image = remote_decode(url, latents, **model.factors, output_type="pt", partial_postprocess=True)
    assert image.size == SIZE


# ---- several models in one process ----------------------------------------------------------------------------------


def test_each_model_answers_at_its_name(url_of):
    for model in MODELS.values():
        latents = draw(1, model.channels, 3, 4, scale=model.scaling or 1.0)
        options = dict(do_scaling=False, output_type="pt", return_type="pt")
        out = remote_decode(url_of(model), latents, **options)
        assert_half_of(out, model.vae.decode(latents.float()).sample)


def test_the_first_model_is_the_default(golden_server):
    model = MODELS["sd15"]
    latents = draw(1, 4, 3, 4, scale=model.scaling)
    for url in (golden_server.url, golden_server.url + "/"):
        out = remote_decode(url, latents, **model.factors, output_type="pt", return_type="pt")
        assert_half_of(out, model.decode(latents))


# ---- refusals -------------------------------------------------------------------------------------------------------


def refused(url, latents, **options):
    """The message of the error that `remote_decode` raises from a JSON answer."""
    with pytest.raises(RuntimeError) as caught:
        remote_decode(url, latents, **options)
    (body,) = caught.value.args
    assert isinstance(body["error"], str) and body["error"]
    return body["error"]


def test_wrong_channels(model, url):
    message = refused(url, draw(1, model.channels + 1, *SIDES), **model.factors)
    assert str(model.channels) in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32])
def test_wrong_type(url, dtype):
    message = refused(url, torch.zeros(1, 4, 3, 3, dtype=dtype), scaling_factor=1.0)
    name = str(dtype).removeprefix("torch.")
    assert message == f"Supported `dtype`: ['float16', 'float32', 'bfloat16', 'uint8']. Got `{name}`."


def test_wrong_number_of_tokens(url_of):
    model = MODELS["flux"]
    tokens = draw(1, 12, 64)
    assert refused(url_of(model), tokens, **model.factors, height=48, width=80)
    assert refused(url_of(model), draw(1, 12, 60), **model.factors, height=48, width=64)
    assert refused(url_of(model), tokens, **model.factors, height=0, width=0)


@pytest.mark.parametrize("shape", [(1, 4, 0, 8), (0, 4, 8, 8), (4,), (2, 4), (1, 4, 1, 8, 8)])
def test_wrong_shapes(url_of, shape):
    assert refused(url_of(MODELS["sd15"]), torch.zeros(shape, dtype=torch.float16), scaling_factor=1.0)


def test_no_picture_of_such_a_size(url_of):
    """The header promises what the body does not hold: refused before anything is allocated."""
    for shape in ([1, 4, 1 << 20, 1 << 20], [1 << 40, 4, 1 << 20, 1 << 20], [1, 4, 8, 9]):
        request = prepare_decode(draw(1, 4, 8, 8), scaling_factor=1.0)
        request["params"]["shape"] = shape
        response = requests.post(url_of(MODELS["sd15"]), **request)
        assert response.status_code in (400, 413) and response.json()["error"], shape


def test_video_of_an_image_model(url, latents):
    assert refused(url, latents, output_type="mp4", return_type="mp4", scaling_factor=1.0)


def test_unknown_model(golden_server):
    assert "nothing-here" in refused(golden_server.url + "/nothing-here", draw(1, 4, 3, 3), scaling_factor=1.0)


def test_missing_parameters(url_of):
    for name in ("shape", "dtype"):
        request = prepare_decode(draw(1, 4, 8, 8), scaling_factor=1.0)
        del request["params"][name]
        response = requests.post(url_of(MODELS["sd15"]), **request)
        assert response.status_code == 400
        assert response.json()["error"] == f"Expected `{name}` in query params."


@pytest.mark.parametrize("name, value", [("shape", "four"), ("scaling_factor", "nan"), ("scaling_factor", "0"),
                                         ("scaling_factor", "much"), ("shift_factor", "inf"), ("output_type", "gif"),
                                         ("partial_postprocess", "perhaps")])
def test_parameters_that_cannot_be(url_of, name, value):
    request = prepare_decode(draw(1, 4, 8, 8), scaling_factor=1.0)
    request["params"][name] = value
    response = requests.post(url_of(MODELS["sd15"]), **request)
    assert response.status_code == 400 and response.json()["error"]
