"""Requests as earlier clients made them, written out by hand, and the service below all of them."""

import base64
import concurrent.futures
import io
import json
import urllib.parse
import urllib.request

import numpy as np
import pytest
import requests
import torch
from conftest import MODELS, Server, assert_half_of, draw, pack, picture, to_uint8
from PIL import Image


@pytest.fixture
def model():
    return MODELS["sd15"]


@pytest.fixture
def url(model, url_of):
    return url_of(model)


@pytest.fixture
def latents(model):
    return draw(1, 4, 5, 7, dtype=torch.float32, scale=model.scaling)


@pytest.fixture
def pixels(model, latents):
    return model.decode(latents)


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def described(tensor):
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def tensor_of(response):
    assert response.ok, response.text
    assert response.headers["content-type"] == "tensor/binary"
    return unpacked(response.content, json.loads(response.headers["shape"]), response.headers["dtype"])


def unpacked(data, shape, dtype):
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).reshape(shape)


def image_of(response, form):
    assert response.ok, response.text
    image = Image.open(io.BytesIO(response.content))
    assert image.format == form and image.mode == "RGB"
    return image


def near(image, pixels):
    """Whether a picture that went through JPEG is the one expected."""
    return np.abs(np.asarray(image).astype(float) - to_uint8(pixels)[0]).mean() < 30


# ---- the first client: one JSON object, scaled by the model's own config --------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_json_body(model, url, dtype):
    latents = draw(1, 4, 5, 7, dtype=dtype, scale=model.scaling)
    body = {"inputs": base64.b64encode(raw(latents)).decode(), "parameters": described(latents)}
    response = requests.post(url, json=body, headers={"Accept": "image/jpeg"})
    assert near(image_of(response, "JPEG"), model.decode(latents))
    response = requests.post(url, json=body, headers={"Accept": "image/png"})
    image = image_of(response, "PNG")
    assert np.abs(np.asarray(image).astype(int) - to_uint8(model.decode(latents))[0]).max() <= 1


def test_json_body_of_packed_latents(url_of):
    model = MODELS["flux"]
    latents = draw(1, 16, 6, 8, dtype=torch.bfloat16, scale=model.scaling)
    tokens = pack(latents)
    parameters = described(tokens) | {"height": 48, "width": 64}
    body = {"inputs": base64.b64encode(raw(tokens)).decode(), "parameters": parameters}
    response = requests.post(url_of(model), json=body, headers={"Accept": "image/png"})
    image = image_of(response, "PNG")
    assert np.abs(np.asarray(image).astype(int) - to_uint8(model.decode(latents))[0]).max() <= 1


# ---- the second client: everything in the query, `do_scaling` always said, base64 or binary -------------------------


def second(latents, do_scaling=True, output_type="pil", partial=False, **more):
    return described(latents) | {
        "do_scaling": do_scaling, "output_type": output_type, "partial_postprocess": partial,
    } | more


@pytest.mark.parametrize("body", ["base64", "binary"])
def test_query_and_tensor(model, url, latents, pixels, body):
    if body == "base64":
        data = json.dumps({"inputs": base64.b64encode(raw(latents)).decode()})
    else:
        data = raw(latents)
    sent = {"Content-Type": f"tensor/{body}"}

    def post(accept, query):
        return requests.post(url, data=data, params=query, headers=sent | {"Accept": accept})

    assert near(image_of(post("image/jpeg", second(latents)), "JPEG"), pixels)
    assert near(image_of(post("image/jpg", second(latents)), "JPEG"), pixels)
    image_of(post("image/png", second(latents)), "PNG")
    assert_half_of(tensor_of(post("tensor/binary", second(latents, output_type="pt"))), pixels)
    unscaled = model.vae.decode(latents).sample
    assert_half_of(tensor_of(post("tensor/binary", second(latents, do_scaling=False, output_type="pt"))), unscaled)
    partial = tensor_of(post("tensor/binary", second(latents, output_type="pt", partial=True)))
    assert np.abs(partial.numpy().astype(int) - to_uint8(pixels)).max() <= 1


@pytest.mark.parametrize("partial", [False, True])
def test_base64_answer(url, latents, pixels, partial):
    response = requests.post(
        url, data=json.dumps({"inputs": base64.b64encode(raw(latents)).decode()}),
        params=second(latents, output_type="pt", partial=partial),
        headers={"Content-Type": "tensor/base64", "Accept": "tensor/base64"},
    )
    assert response.ok, response.text
    answer = response.json()
    tensor = unpacked(base64.b64decode(answer["inputs"]), **answer["parameters"])
    if partial:
        assert np.abs(tensor.numpy().astype(int) - to_uint8(pixels)).max() <= 1
    else:
        assert_half_of(tensor, pixels)


# ---- the client of a few days: parameters only, neither Content-Type nor Accept -------------------------------------


def test_no_headers(model, url, latents, pixels):
    def post(**query):
        request = requests.Request("POST", url, data=raw(latents), params=described(latents) | model.factors | query)
        prepared = request.prepare()
        with requests.Session() as session:
            for name in ("Content-Type", "Accept"):
                prepared.headers.pop(name, None)
            return session.send(prepared)

    assert near(image_of(post(output_type="pil", image_format="jpg", partial_postprocess=False), "JPEG"), pixels)
    image_of(post(output_type="pil", image_format="png", partial_postprocess=False), "PNG")
    assert_half_of(tensor_of(post(output_type="pt", partial_postprocess=False)), pixels)
    assert tensor_of(post(output_type="pt", partial_postprocess=True)).dtype == torch.uint8


# ---- other programs -------------------------------------------------------------------------------------------------


def test_extra_parameters_and_missing_ones(model, url, latents, pixels):
    """A WebUI that names tensor types in the query, sends sides with unpacked latents, and leaves the rest out."""
    query = described(latents) | model.factors | {
        "input_tensor_type": "binary", "output_tensor_type": "binary", "output_type": "pt", "height": 40, "width": 56,
    }
    headers = {"Content-Type": "tensor/binary", "Accept": "tensor/binary"}
    assert_half_of(tensor_of(requests.post(url, data=raw(latents), params=query, headers=headers)), pixels)


def test_urllib(model, url, latents):
    """Nodes of ComfyUI: urllib, no compression wanted, one connection a request, latents already divided."""
    query = urllib.parse.urlencode(second(latents, do_scaling=False, output_type="pt"), doseq=True)
    request = urllib.request.Request(
        f"{url}?{query}", data=raw(latents), method="POST",
        headers={"Content-Type": "tensor/binary", "Accept": "tensor/binary"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers.get("Content-Encoding") is None
        tensor = unpacked(response.read(), json.loads(response.headers["shape"]), response.headers["dtype"])
    assert_half_of(tensor, model.vae.decode(latents).sample)


def test_spellings_of_the_query(model, url, latents, pixels):
    """Booleans in any case or as digits, floats with an exponent, names escaped."""
    shape = "&".join(f"shape={n}" for n in latents.shape)
    for partial in ("True", "true", "1"):
        query = f"{shape}&dtype=float32&scaling_factor=1.8215e-01&output%5Ftype=p%74&partial_postprocess={partial}"
        response = requests.post(f"{url}?{query}", data=raw(latents), headers={"Content-Type": "tensor/binary"})
        assert np.abs(tensor_of(response).numpy().astype(int) - to_uint8(pixels)).max() <= 1


# ---- the service ----------------------------------------------------------------------------------------------------


def decode_query(model, latents):
    return described(latents) | model.factors | {"output_type": "pt"}


def test_one_connection_survives_errors(model, url, latents, pixels):
    with requests.Session() as session:
        for _ in range(3):
            good = session.post(url, data=raw(latents), params=decode_query(model, latents))
            assert_half_of(tensor_of(good), pixels)
            bad = session.post(url, data=raw(latents)[:-1], params=decode_query(model, latents))
            assert bad.status_code == 400 and bad.json()["error"]


def test_many_at_once(model, url):
    """Answers of requests that overlap are those of requests that come alone."""
    batch = [draw(1, 4, 4 + index % 3, 6, seed=index, scale=model.scaling) for index in range(12)]

    def post(latents):
        return tensor_of(requests.post(url, data=raw(latents), params=decode_query(model, latents)))

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(post, batch))
    for latents, answer in zip(batch, together):
        assert torch.equal(answer, post(latents))
        assert_half_of(answer, model.decode(latents))


def test_errors_are_json_everywhere(golden_server):
    base = golden_server.url
    for method, path, status in [
        ("GET", "/no/such/place", 404), ("POST", "/no/such/place", 404), ("DELETE", "/", 405), ("PUT", "/sd15", 405),
        ("POST", "/?shape=%zz", 400), ("POST", "/?dtype=float16&output_type=pt", 400),
    ]:
        response = requests.request(method, base + path, data=b"\0" * 10, headers={"Content-Type": "tensor/binary"})
        assert response.status_code == status, (method, path, response.text)
        assert response.headers["content-type"].startswith("application/json")
        assert isinstance(response.json()["error"], str)


def test_state_of_the_service(golden_server):
    base = golden_server.url
    for path in ("/health", "/livez", "/readyz"):
        assert requests.get(base + path).status_code == 200, path
    assert requests.get(base + "/info").json()
    assert requests.get(base + "/metrics").text


def test_nothing_is_kept_of_a_request(model):
    """What a client sends or gets back appears in no line that the server writes."""
    with Server(f"--model=sd15={model.folder}") as server:
        latents = draw(1, 4, 3, 4, scale=model.scaling)
        answer = requests.post(server.url, data=raw(latents), params=decode_query(model, latents))
        encoded = requests.post(server.url, data=picture_bytes())
        assert answer.ok and encoded.ok
    log = "".join(server.log)
    for secret in (raw(latents), answer.content, encoded.content):
        assert base64.b64encode(secret)[:32].decode() not in log
        assert secret[:16].hex() not in log


def picture_bytes():
    buffer = io.BytesIO()
    picture(24, 16).save(buffer, format="PNG")
    return buffer.getvalue()
