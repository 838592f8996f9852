"""Records what a model computes, for the golden files and their list."""

import copy
import json

import torch
from diffusers import AutoencoderDC
from safetensors.torch import save_file

from inputs import MOMENTS, encode, random_latents, random_pixels


class Recorder:
    """Collects the named tensors and client parameters of one case."""

    def __init__(self, model, latent_channels, seed):
        self.model, self.channels = model, latent_channels
        self.generator = torch.Generator().manual_seed(1000 + seed)
        self.tensors, self.client = {}, {}
        self.counts = {}

    def name(self, kind):
        number = self.counts.get(kind, 0)
        self.counts[kind] = number + 1
        return f"{kind}.{number}"

    def latents(self, batch, height, width, scale=1.0):
        return random_latents(self.generator, batch, self.channels, height, width, scale=scale)

    def decode(self, batch, height, width):
        name, latents = self.name("decode"), self.latents(batch, height, width)
        self.tensors[f"{name}.latents"] = latents
        self.tensors[f"{name}.pixels"] = self.model.decode(latents).sample

    def encode(self, batch, height, width):
        name, pixels = self.name("encode"), random_pixels(self.generator, batch, height, width)
        self.tensors[f"{name}.pixels"] = pixels
        if isinstance(self.model, MOMENTS):
            distribution = self.model.encode(pixels).latent_dist
            self.tensors[f"{name}.moments"] = distribution.parameters
            self.tensors[f"{name}.sample"] = distribution.sample(torch.Generator().manual_seed(13))
        else:
            self.tensors[f"{name}.latents"] = encode(self.model, pixels)

    def decode_client(self, to_model, parameters, shape=(1, 3, 4), scale=1.0, form=lambda latents: latents):
        name, latents = self.name("client"), self.latents(*shape, scale=scale)
        self.tensors[f"{name}.latents"] = form(latents)
        self.tensors[f"{name}.pixels"] = self.model.decode(to_model(latents)).sample
        self.client[name] = parameters

    def encode_client(self, from_model, parameters, shape=(1, 24, 32)):
        name, pixels = self.name("client_encode"), random_pixels(self.generator, *shape)
        self.tensors[f"{name}.pixels"] = pixels
        raw = encode(self.model, pixels)
        self.tensors[f"{name}.latents"] = from_model(raw[:, : self.channels])
        self.client[name] = parameters

    def save(self, path):
        tensors = {name: value.contiguous() for name, value in self.tensors.items()}
        for name, value in tensors.items():
            assert value.dtype == torch.float32 and torch.isfinite(value).all(), name
            if name.endswith(".pixels") and value.shape[-1] > 8 and "encode" not in name:
                assert 0.2 < value.std() < 1.2, (str(path), name, value.std())
        save_file(tensors, path)


def scalar_rows(recorder, scaling, shift=None):
    """The rows of the scaling table that a model with one scaling factor can meet."""
    both = {"scaling_factor": scaling} | ({} if shift is None else {"shift_factor": shift})
    undo = lambda z: z / scaling + (shift or 0.0)
    recorder.decode_client(undo, [both, {"do_scaling": True}], scale=scaling)
    recorder.decode_client(lambda z: z, [{}, {"do_scaling": False}])
    recorder.decode_client(lambda z: z / 0.25, [{"scaling_factor": 0.25}], scale=0.25)
    recorder.decode_client(
        lambda z: z / scaling + 0.5, [{"do_scaling": True, "shift_factor": 0.5}], scale=scaling, shape=(1, 2, 3)
    )
    recorder.encode_client(lambda z: (z - (shift or 0.0)) * scaling, [both])
    recorder.encode_client(lambda z: z, [{}], shape=(2, 16, 24))


def save_diffusers(model, folder, dtype):
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def family(model):
    return type(model).__name__ if isinstance(model, (*MOMENTS, AutoencoderDC)) else "AutoencoderTiny"


class Golden:
    def __init__(self, root):
        self.root, self.entries = root, []

    def add(self, source, recorder, expected, spatial_factor=8, operations=("decode", "encode")):
        self.entries.append({
            "source": source,
            "operations": list(operations),
            "family": family(recorder.model),
            "expected": expected,
            "latent_channels": recorder.channels,
            "spatial_factor": spatial_factor,
            "client": recorder.client,
        })

    def diffusers_case(self, name, model, recorder, dtype=torch.float16, spatial_factor=8):
        folder = self.root / name
        save_diffusers(model, folder, dtype)
        recorder.save(folder / "cases.safetensors")
        self.add(name, recorder, f"{name}/cases.safetensors", spatial_factor)
        return folder

    def finish(self):
        for path in self.root.rglob("*.safetensors"):
            path.chmod(0o644)
        (self.root / "golden.json").write_text(json.dumps(self.entries, indent=2) + "\n")
