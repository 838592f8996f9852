#!/usr/bin/env python3
"""Records what clients of every generation send, byte for byte, and what the answer must be.

    record.py            writes requests/, answers/, recorded.json and slices.json beside this script
    record.py --check    makes them anew in a temporary folder and compares with what is there: requests byte for byte,
                         answers to the tolerances of the tests (convolutions of another CPU round differently)

Needs the packages of tests/clients/requirements.txt; tests/clients/generations.py fetches the older clients.

Each request is made by the client's own code against a recorder on the loopback interface. The recorder answers with the
golden answer, and the script checks that the client understands it; so an entry also says what a client needs of an answer.
`remote_decode` and `remote_encode` are those of diffusers, unmodified, in the releases that `sent_by` names: they send the
same bytes. The others are written here from what is known of them. Nothing is changed in a request but what depends on the
machine: the port in `Host`, the codings in `Accept-Encoding` of requests, and Python's version in `User-Agent` of urllib.

Answers are diffusers' own, in f32, from the models of crates/engine/tests/golden, in files of bare numbers:

    NAME.f16     float16 [batch, 3, height, width]     vae.decode(...).sample
    NAME.u8      uint8 [batch, height, width, 3]       the same, postprocessed as the client does it
    encode-*.f16 float16 [batch, channels, ...]        the distribution's mode, scaled

slices.json has the form of the published slices (crates/cli/assets), for the same models: it holds `doctor --golden` to
torch's own draws.

`kind` in recorded.json says how an answer is compared; `pixels` names the files of a decode. Requests with the same
`pixels` must give the same 8-bit pixels in every form that has no loss.
"""

import argparse
import base64
import io
import json
import re
import shutil
import socket
import sys
import tempfile
import threading
import urllib.parse
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import requests
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[3]
MODELS = ROOT / "crates" / "engine" / "tests" / "golden"
sys.path.insert(0, str(ROOT / "tests" / "clients"))
import generations  # noqa: E402

FACTORS = {"sd15": {"scaling_factor": 0.18215}, "flux": {"scaling_factor": 0.3611, "shift_factor": 0.1159}}
HOST = b"127.0.0.1:8080"


# ---- the recorder ---------------------------------------------------------------------------------------------------


class Recorder:
    """A server that keeps the bytes of each request and answers what it was told to."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.url = f"http://{self.host}"
        self.answer = None
        self.requests = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            connection, _ = self.listener.accept()
            with connection, connection.makefile("rb") as stream:
                lines = [stream.readline()]
                while lines[-1].strip():
                    lines.append(stream.readline())
                head = b"".join(lines)
                length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
                body = stream.read(int(length[1])) if length else b""
                self.requests.append(self._without_the_machine(head) + body)
                status, headers, content = self.answer
                headers = headers | {"content-length": str(len(content)), "connection": "close"}
                lines = [f"HTTP/1.1 {status} X"] + [f"{name}: {value}" for name, value in headers.items()]
                connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)

    def _without_the_machine(self, head):
        head = head.replace(self.host.encode(), HOST)
        head = re.sub(rb"(?m)^Accept-Encoding: gzip, deflate[^\r]*", b"Accept-Encoding: gzip, deflate", head)
        return re.sub(rb"Python-urllib/[\d.]+", b"Python-urllib/3.11", head)


# ---- inputs and golden answers --------------------------------------------------------------------------------------


def draw(*shape, scale):
    """Latents that float16 and bfloat16 both hold, so that every type on the wire carries the same ones."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(13)) * scale
    values = values.to(torch.bfloat16).float()
    return torch.where(values.abs() < 2.0**-14, torch.zeros(()), values)


def pack(latents):
    """[batch, channels, h, w] -> [batch, h/2 * w/2, 4*channels], as Flux pipelines hold latents."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, height * width // 4, channels * 4)


def raw(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def described(tensor):
    return {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def load_vae(name):
    config = json.loads((MODELS / name / "config.json").read_text())
    vae = AutoencoderKL.from_config(config)
    vae.load_state_dict(load_file(MODELS / name / "diffusion_pytorch_model.safetensors"))
    return vae.float().eval().requires_grad_(False)


class Pixels:
    """What a decode gives, in every form."""

    def __init__(self, name, model, sample):
        self.name, self.model = name, model
        self.half = sample.half()
        processed = VaeImageProcessor().denormalize(self.half).permute(0, 2, 3, 1).float().numpy()
        self.bytes = (processed * 255).round().astype(np.uint8)

    def file(self, form):
        buffer = io.BytesIO()
        Image.fromarray(self.bytes[0]).save(buffer, format=form)
        return buffer.getvalue()

    def psnr_of_jpeg(self):
        """How near Pillow's own JPEG of the first picture comes to it, in dB."""
        again = np.asarray(Image.open(io.BytesIO(self.file("JPEG"))), dtype=np.float64)
        return 10 * np.log10(255**2 / np.mean((again - self.bytes[0]) ** 2))


def picture(width, height):
    """Gradients and a disc."""
    y, x = np.mgrid[0:height, 0:width]
    channels = np.stack([x / width, y / height, (x + y) / (width + height)], axis=-1) * 200 + 20
    channels[(x - width / 3) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 4) ** 2] = (230, 40, 90)
    return Image.fromarray(channels.clip(0, 255).astype(np.uint8))


# ---- the book of records --------------------------------------------------------------------------------------------


class Book:
    """Collects requests and answers, and writes them down."""

    def __init__(self):
        self.recorder = Recorder()
        self.entries, self.files = [], {}

    def keep(self, pixels):
        self.files[f"answers/{pixels.name}.f16"] = raw(pixels.half)
        self.files[f"answers/{pixels.name}.u8"] = pixels.bytes.tobytes()
        return pixels

    def decode(self, name, sent_by, pixels, kind, call, path=""):
        """Records `call(url)`, a decode that must be answered with `pixels` in the form `kind`."""
        headers, content, more = {}, None, {}
        tensor = None
        if kind == "jpeg":
            headers, content = {"content-type": "image/jpeg"}, pixels.file("JPEG")
            more = {"psnr": round(pixels.psnr_of_jpeg(), 2)}
        elif kind == "png":
            headers, content = {"content-type": "image/png"}, pixels.file("PNG")
        elif kind == "partial":
            tensor = torch.from_numpy(pixels.bytes)
        elif kind == "unit":
            tensor = VaeImageProcessor().denormalize(pixels.half)
        else:
            assert kind in ("tensor", "base64"), kind
            tensor = pixels.half
        if tensor is not None:
            headers, content = self._tensor(tensor, kind)
        path = path or ("" if pixels.model == "sd15" else "/" + pixels.model)
        understood = self._record(name, sent_by, path, 200, kind, headers, content, call, {"pixels": pixels.name} | more)
        self._compare(understood, pixels, kind)

    @staticmethod
    def _tensor(tensor, kind):
        about = described(tensor)
        if kind == "base64":
            content = json.dumps({"inputs": base64.b64encode(raw(tensor)).decode(), "parameters": about})
            return {"content-type": "tensor/base64"}, content.encode()
        shape = json.dumps(about["shape"], separators=(",", ":"))
        return {"content-type": "tensor/binary", "shape": shape, "dtype": about["dtype"]}, raw(tensor)

    @staticmethod
    def _compare(understood, pixels, kind):
        """Whether the client made of the golden answer what it is."""
        if isinstance(understood, list):
            understood = np.stack([np.asarray(image) for image in understood])
        if isinstance(understood, Image.Image):
            found, expected = np.asarray(understood), pixels.bytes[0]
            if kind == "jpeg":
                found, expected = found.shape, expected.shape
        elif isinstance(understood, torch.Tensor):
            found = understood.numpy()
            expected = pixels.bytes if found.dtype == np.uint8 else pixels.half.numpy()
            if kind == "unit":
                expected = VaeImageProcessor().denormalize(pixels.half).numpy()
        else:
            found, expected = understood, pixels.bytes
        assert np.array_equal(found, expected)

    def encode(self, name, sent_by, latents, call):
        headers, content = self._tensor(latents.half(), "tensor")
        self.files[f"answers/{name}.f16"] = content
        understood = self._record(
            name, sent_by, "", 200, "latents", headers, content, call, {"latents": f"answers/{name}.f16"}
        )
        assert torch.equal(understood, latents.half())

    def refusal(self, name, sent_by, status, call):
        """Records a request that must be refused in words that the client can show."""
        content = json.dumps({"error": "no"}).encode()

        def refused(url):
            try:
                call(url)
            except RuntimeError as error:
                return error.args[0]
            raise AssertionError("the client did not notice")

        headers = {"content-type": "application/json"}
        assert self._record(name, sent_by, "", status, "error", headers, content, refused, {}) == {"error": "no"}

    def _record(self, name, sent_by, path, status, kind, headers, content, call, more):
        self.recorder.answer = (status, headers, content)
        understood = [one(self.recorder.url + path) for one in (call if isinstance(call, list) else [call])]
        sent, self.recorder.requests = self.recorder.requests, []
        assert len(sent) == len(understood) and all(request == sent[0] for request in sent), f"{name} differs"
        self.files[f"requests/{name}.http"] = sent[0]
        answer = {"status": status} | headers
        self.entries.append({"name": name, "sent_by": sent_by, "kind": kind, "answer": answer} | more)
        return understood[0]

    def write(self, folder):
        for name in ("requests", "answers"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        lines = ",\n".join("  " + json.dumps(entry) for entry in self.entries)
        (folder / "recorded.json").write_text(f"[\n{lines}\n]\n")


# ---- the current generation: diffusers itself -----------------------------------------------------------------------


def current(book, pixels, latents, images):
    modules = [generations.load(version) for version in generations.ALL]
    sent_by = [f"diffusers {version}" for version in generations.ALL]

    def decode(name, pixels, kind, tensor, *more, path="/", **options):
        calls = [lambda url, m=m: m.remote_decode(url + path, tensor, *more, **options) for m in modules]
        book.decode(name, sent_by, pixels, kind, calls)

    def encode(name, expected, image, **options):
        book.encode(name, sent_by, expected, [lambda url, m=m: m.remote_encode(url + "/", image, **options) for m in modules])

    sd, flux, batch, shifted = (pixels[name] for name in ("sd15", "flux", "sd15-batch", "sd15-shifted"))
    half, factors = latents["sd15"].half(), FACTORS["sd15"]
    processor = VaeImageProcessor()
    decode("v2-pil-jpg", sd, "jpeg", half, **factors)
    decode("v2-pil-png", sd, "png", half, image_format="png", **factors)
    decode("v2-pt", sd, "tensor", half, output_type="pt", return_type="pt", **factors)
    decode("v2-pt-processor", sd, "tensor", half, processor, output_type="pt", **factors)
    decode("v2-partial", sd, "partial", half, output_type="pt", partial_postprocess=True, **factors)
    decode("v2-pil-processor", sd, "unit", half, processor, return_type="pt", **factors)
    decode("v2-do-scaling", sd, "tensor", half, output_type="pt", return_type="pt")
    decode("v2-shift-only", shifted, "tensor", half, shift_factor=0.125, output_type="pt", return_type="pt")
    undone = latents["sd15"] / factors["scaling_factor"]
    decode("v2-no-scaling", sd, "tensor", undone, do_scaling=False, output_type="pt", return_type="pt")
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        decode(f"v2-{name}", sd, "partial", latents["sd15"].to(dtype), output_type="pt", partial_postprocess=True, **factors)
    decode("v2-sides-beside-planes", sd, "partial", half, output_type="pt", partial_postprocess=True, height=1024, width=24, **factors)
    two = latents["sd15-batch"].half()
    decode("v2-batch-pt", batch, "tensor", two, output_type="pt", return_type="pt", **factors)
    decode("v2-batch-png", batch, "png", two, image_format="png", **factors)
    planes, tokens = latents["flux"].to(torch.bfloat16), pack(latents["flux"]).to(torch.bfloat16)
    factors = FACTORS["flux"]
    decode("v2-flux", flux, "tensor", planes, output_type="pt", return_type="pt", **factors)
    sides = {"height": 8 * planes.shape[2], "width": 8 * planes.shape[3]}
    decode("v2-flux-packed", flux, "partial", tokens, output_type="pt", partial_postprocess=True, **sides, **factors)
    decode("v2-flux-packed-jpg", flux, "jpeg", tokens, path="", **sides, **factors)

    def refusal(name, status, tensor, **options):
        calls = [lambda url, m=m: m.remote_decode(url + "/", tensor, **options) for m in modules]
        for call in calls[:-1]:
            book.refusal(name, sent_by, status, call)
            del book.entries[-1]
        book.refusal(name, sent_by, status, calls[-1])

    refusal("v2-mp4-of-a-picture", 400, half, output_type="mp4", return_type="mp4", **FACTORS["sd15"])
    refusal("v2-five-dimensions", 400, half.unsqueeze(2), output_type="pt", return_type="pt", **FACTORS["sd15"])
    refusal("v2-wrong-channels", 400, planes, **FACTORS["sd15"])
    refusal("v2-wrong-dtype", 400, half.double(), **FACTORS["sd15"])

    for name, (image, expected, options) in images.items():
        encode(f"encode-{name}", expected, image, **options)


# ---- the generations before, and other programs ---------------------------------------------------------------------


def opened(response):
    assert response.ok, response.json()
    return Image.open(io.BytesIO(response.content)).convert("RGB")


def tensor_of(content, headers):
    dtype = getattr(torch, headers["dtype"])
    return torch.frombuffer(bytearray(content), dtype=dtype).reshape(json.loads(headers["shape"]))


def post(*arguments, **options):
    """A decode by requests, understood by what came back."""
    response = requests.post(*arguments, **options)
    assert response.ok, response.json()
    kind = response.headers["content-type"]
    if kind.startswith("image/"):
        return opened(response)
    if kind == "tensor/base64":
        answer = response.json()
        parameters = answer["parameters"] | {"shape": json.dumps(answer["parameters"]["shape"])}
        return tensor_of(base64.b64decode(answer["inputs"]), parameters)
    return tensor_of(response.content, response.headers)


def first(book, pixels, latents):
    """v0, the first blog post and the first SD.Next: one JSON object, scaled by the model, a JPEG back."""
    def call(tensor, **more):
        inputs = base64.b64encode(raw(tensor)).decode("utf-8")
        body = {"inputs": inputs, "parameters": described(tensor) | more}
        headers = {"Content-Type": "application/json", "Accept": "image/jpeg"}
        return lambda url: post(url, json=body, headers=headers)

    book.decode("v0-json", ["v0"], pixels["sd15"], "jpeg", call(latents["sd15"]))
    tokens = pack(latents["flux"]).to(torch.bfloat16)
    sides = {"height": 8 * latents["flux"].shape[2], "width": 8 * latents["flux"].shape[3]}
    book.decode("v0-json-packed", ["v0"], pixels["flux"], "jpeg", call(tokens, **sides))


def second(book, pixels, latents):
    """v1: everything in the query, `do_scaling` always said, base64 by default."""
    def call(tensor, do_scaling, output_type, partial, body, accept):
        query = {"do_scaling": do_scaling, "output_type": output_type, "partial_postprocess": partial} | described(tensor)
        headers = {"Content-Type": f"tensor/{body}", "Accept": accept}
        if body == "base64":
            inputs = {"inputs": base64.b64encode(raw(tensor)).decode("utf-8")}
            return lambda url: post(url, json=inputs, params=query, headers=headers)
        return lambda url: post(url, data=raw(tensor), params=query, headers=headers)

    sd, half = pixels["sd15"], latents["sd15"].half()
    record = lambda name, kind, *more: book.decode(name, ["v1"], sd, kind, call(half, *more))  # noqa: E731
    record("v1-jpg", "jpeg", True, "pil", False, "base64", "image/jpeg")
    record("v1-png", "png", True, "pil", False, "base64", "image/png")
    record("v1-pt-base64", "base64", True, "pt", False, "base64", "tensor/base64")
    record("v1-pt-binary", "tensor", True, "pt", False, "binary", "tensor/binary")
    record("v1-partial", "partial", True, "pt", True, "binary", "tensor/binary")
    undone = latents["sd15"] / FACTORS["sd15"]["scaling_factor"]
    book.decode(
        "v1-no-scaling", ["v1"], sd, "tensor", call(undone, False, "pt", False, "binary", "tensor/binary")
    )


def between(book, pixels, latents):
    """v1.5, a few days: parameters alone, no header of the client's own."""
    def call(output_type, partial, image_format):
        tensor = latents["sd15"].half()
        query = {"image_format": image_format, "output_type": output_type, "partial_postprocess": partial}
        query |= described(tensor) | FACTORS["sd15"]
        return lambda url: post(url, data=raw(tensor), params=query, headers={})

    sd = pixels["sd15"]
    book.decode("v1.5-jpg", ["v1.5"], sd, "jpeg", call("pil", False, "jpg"))
    book.decode("v1.5-png", ["v1.5"], sd, "png", call("pil", False, "png"))
    book.decode("v1.5-pt", ["v1.5"], sd, "tensor", call("pt", False, "jpg"))
    book.decode("v1.5-partial", ["v1.5"], sd, "partial", call("pt", True, "jpg"))


def sd_next(book, pixels, latents):
    """Its three modes: tensor types in the query, other parameters absent; width and height beside every kind of latents."""
    def call(tensor, accept, **query):
        query = {"input_tensor_type": "binary"} | described(tensor) | query
        headers = {"Content-Type": "tensor/binary", "Accept": accept}
        return lambda url: post(url, headers=headers, params=query, data=raw(tensor), timeout=300)

    sd, tensor = pixels["sd15"], latents["sd15"].to(torch.bfloat16)
    raw_mode = {"output_tensor_type": "binary", "output_type": "pt", "partial_postprocess": False}
    record = lambda name, pixels, kind, *more, **query: book.decode(  # noqa: E731
        f"sdnext-{name}", ["SD.Next"], pixels, kind, call(*more, **query)
    )
    factors = FACTORS["sd15"]
    record("raw", sd, "tensor", tensor, "tensor/binary", **raw_mode, **factors)
    record("png", sd, "png", tensor, "image/png", output_type="pil", image_format="png", **factors)
    record("jpg", sd, "jpeg", tensor, "image/jpeg", output_type="pil", **factors)
    record("first", sd, "tensor", tensor, "tensor/binary", do_scaling=True, **raw_mode)
    # Its sides are those of the picture asked for, which need not be those of the latents.
    planes, factors = latents["flux"].to(torch.bfloat16), FACTORS["flux"]
    record("sides", pixels["flux"], "tensor", planes, "tensor/binary", width=1024, height=768, **raw_mode, **factors)
    sides = {"width": 8 * planes.shape[3], "height": 8 * planes.shape[2]}
    record("flux", pixels["flux"], "tensor", pack(planes), "tensor/binary", **sides, **raw_mode, **factors)


def nodes(book, pixels, latents):
    """Nodes of ComfyUI: latents that are divided already, usually float32, any batch."""
    def query(tensor):
        return {
            "do_scaling": False, "output_type": "pt", "partial_postprocess": False, **described(tensor),
            "height": tensor.shape[2] * 8, "width": tensor.shape[3] * 8,
        }

    headers = {"Content-Type": "tensor/binary", "Accept": "tensor/binary"}
    batch = latents["sd15-batch"] / FACTORS["sd15"]["scaling_factor"]
    book.decode(
        "comfyui-node", ["ComfyUI-HFRemoteVae"], pixels["sd15-batch"], "tensor",
        lambda url: post(url, data=raw(batch), params=query(batch), headers=headers),
    )

    def urllib_call(url):
        tensor = latents["sd15"] / FACTORS["sd15"]["scaling_factor"]
        request = urllib.request.Request(
            f"{url}?{urllib.parse.urlencode(query(tensor), doseq=True)}", data=raw(tensor), headers=headers, method="POST"
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return tensor_of(response.read(), response.headers)

    book.decode("comfyui-urllib", ["ComfyUI config-builder"], pixels["sd15"], "tensor", urllib_call, path="/decode")


# ---- slices ---------------------------------------------------------------------------------------------------------


def slices(vaes):
    """What the tests of diffusers cut out of pictures, for latents that torch draws in half types."""
    def tolerance(relative, absolute):
        return {"relative": relative, "absolute": absolute}

    classes = []
    for name, model, shape, dtype, sides in (
        ("SDv1", "sd15", (1, 4, 7, 9), torch.float16, {}),
        ("Flux", "flux", (1, 16, 8, 12), torch.bfloat16, {}),
        ("FluxPacked", "flux", (1, 24, 64), torch.bfloat16, {"height": 64, "width": 96}),
    ):
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(13), dtype=dtype)
        latents = drawn.float()
        if sides:
            latents = latents.view(1, 4, 6, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 8, 12)
        factors = FACTORS[model]
        sample = vaes[model].decode(latents / factors["scaling_factor"] + factors.get("shift_factor", 0.0)).sample
        pixels = Pixels(name, model, sample)
        classes.append({
            "name": name, "model": model, "shape": list(shape), "dtype": described(drawn)["dtype"], **factors, **sides,
            "image": pixels.bytes[0][0, -3:].flatten().tolist(),
            "partial": pixels.bytes[0, -3:, -3:, 0].flatten().tolist(),
            "tensor": [round(value, 4) for value in pixels.half[0, 0, -3:, -3:].flatten().tolist()],
        })
    file = {
        "source": "record.py", "seed": 13,
        "tolerances": {name: tolerance(0.001, 0.001 if name == "tensor" else 1.0) for name in ("image", "partial", "tensor")},
        "classes": classes,
    }
    return (json.dumps(file, indent=1) + "\n").encode()


# ---- all of it ------------------------------------------------------------------------------------------------------


def record():
    book = Book()
    vaes = {name: load_vae(name) for name in FACTORS}
    sd, flux = FACTORS["sd15"]["scaling_factor"], FACTORS["flux"]
    latents = {
        "sd15": draw(1, 4, 4, 5, scale=sd),
        "sd15-batch": draw(2, 4, 3, 4, scale=sd),
        "flux": draw(1, 16, 4, 6, scale=flux["scaling_factor"]),
    }
    decode = lambda model, z: vaes[model].decode(z).sample  # noqa: E731
    made = [
        Pixels("sd15", "sd15", decode("sd15", latents["sd15"] / sd)),
        Pixels("sd15-shifted", "sd15", decode("sd15", latents["sd15"] / sd + 0.125)),
        Pixels("sd15-batch", "sd15", decode("sd15", latents["sd15-batch"] / sd)),
        Pixels("flux", "flux", decode("flux", latents["flux"] / flux["scaling_factor"] + flux["shift_factor"])),
    ]
    pixels = {one.name: book.keep(one) for one in made}

    def mode(image, scaling_factor=1.0, shift_factor=0.0):
        values = image
        if isinstance(image, Image.Image):
            values = VaeImageProcessor().preprocess(image.convert("RGB"))
        elif image.min() >= 0:
            values = 2 * image.float() - 1
        return (vaes["sd15"].encode(values.float()).latent_dist.mode() - shift_factor) * scaling_factor

    image = picture(40, 32)
    grey, palette = image.convert("L"), image.quantize(16)
    cut, clear = picture(45, 35), image.copy()
    clear.putalpha(image.convert("L"))
    # Contiguous: of other tensors the newest client sends memory that is freed already.
    unit = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255).contiguous()
    factor = {"scaling_factor": sd}
    images = {
        "picture": (image, mode(image, **factor), factor),
        "nothing-said": (image, mode(image), {}),
        "both-factors": (image, mode(image, 0.3611, 0.1159), flux),
        "grey": (grey, mode(grey, **factor), factor),
        "palette": (palette, mode(palette, **factor), factor),
        "transparent": (clear, mode(clear, **factor), factor),
        "odd-sides": (cut, mode(cut, **factor), factor),
        "tensor": (unit * 2 - 1, mode(unit * 2 - 1, **factor), factor),
        "unit-tensor": (unit.half(), mode(unit.half(), **factor), factor),
    }
    book.files["slices.json"] = slices(vaes)
    current(book, pixels, latents, images)
    first(book, pixels, latents)
    second(book, pixels, latents)
    between(book, pixels, latents)
    sd_next(book, pixels, latents)
    nodes(book, pixels, latents)
    return book


def differences(made, stored):
    """Lines that say where a new recording is not the stored one."""
    names = lambda folder: {str(path.relative_to(folder)) for path in folder.glob("*/*")}  # noqa: E731
    for name in sorted(names(made) ^ names(stored)):
        yield f"{name}: only in one of the two"
    for name in sorted(names(made) & names(stored)):
        new, old = (made / name).read_bytes(), (stored / name).read_bytes()
        if new == old:
            continue
        if name.startswith("requests/") or len(new) != len(old):
            yield f"{name}: other bytes"
            continue
        dtype, tolerance = (np.float16, 1e-3) if name.endswith(".f16") else (np.uint8, 1)
        new, old = (np.frombuffer(data, dtype).astype(np.float32) for data in (new, old))
        if (np.abs(new - old) > tolerance * np.maximum(1, np.abs(old) / 4 if dtype == np.float16 else 1)).any():
            yield f"{name}: other numbers"

    def entries(folder):
        listed = json.loads((folder / "recorded.json").read_text())
        return [{key: value for key, value in entry.items() if key != "psnr"} for entry in listed]

    if entries(made) != entries(stored):
        yield "recorded.json: other entries"

    def numbers(folder):
        return np.array([c[key] for c in json.loads((folder / "slices.json").read_text())["classes"] for key in
                         ("image", "partial", "tensor")])

    if (np.abs(numbers(made) - numbers(stored)) > [[1.0], [1.0], [2e-3]] * 3).any():
        yield "slices.json: other numbers"


def main():
    parser = argparse.ArgumentParser(description="Records or checks the requests and answers of this folder.")
    parser.add_argument("--check", action="store_true", help="compare with the files that are there; write nothing here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    try:
        book = record()
    except generations.Unavailable as reason:
        print(f"skipped: an older client cannot be had: {reason}")
        sys.exit(77)
    if not arguments.check:
        book.write(HERE)
        size = sum(len(content) for content in book.files.values())
        print(f"{len(book.entries)} requests, {size / 1000:.0f} kB")
        return
    with tempfile.TemporaryDirectory() as folder:
        book.write(Path(folder))
        found = list(differences(Path(folder), HERE))
    for line in found:
        print(line)
    if found:
        sys.exit(1)
    print(f"{len(book.entries)} requests, as stored")


if __name__ == "__main__":
    main()
