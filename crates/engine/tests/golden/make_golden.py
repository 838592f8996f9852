#!/usr/bin/env python3
"""Makes the golden files of this folder: small random autoencoders and what diffusers computes with them.

    make_golden.py            writes every case beside this script
    make_golden.py --check    makes them anew in a temporary folder and compares with what is there:
                              weights and inputs bit for bit, results to 2e-5 (convolutions of another CPU round differently)

Needs torch, diffusers and safetensors (pinned in tests/clients/requirements.txt). No model is downloaded.

`golden.json` lists the cases. Each entry names `source` (the folder or file that holds the model), `operations` (what it
can do), `family`, `latent_channels`, `spatial_factor`, `client` (below) and `expected`, a file of f32 tensors:

    decode.<n>.latents         [batch, channels, height, width]   in the model's own space, scaling already undone
    decode.<n>.pixels          [batch, 3, f*height, f*width]      vae.decode(latents).sample, not clamped
    encode.<n>.pixels          [batch, 3, height, width]          in [-1, 1]
    encode.<n>.moments         [batch, 2*channels, ...]           AutoencoderKL: mean and log variance before the clamp
    encode.<n>.sample          [batch, channels, ...]             AutoencoderKL: drawn with a generator seeded with 13
    encode.<n>.latents         [batch, channels, ...]             AutoencoderTiny
    client.<n>.latents         4-D, or packed [batch, tokens, 4*channels]   as a client sends them
    client.<n>.pixels          [batch, 3, ...]                    after scaling by hand as the pipelines do
    client_encode.<n>.pixels   [batch, 3, height, width]
    client_encode.<n>.latents  [batch, channels, ...]             the mode, scaled as the pipelines do

`client` maps `client.<n>` and `client_encode.<n>` to a list of parameter sets; each set gives the same result.

Every input is a bfloat16 number and a normal float16 number, so it survives either dtype on the wire unchanged.
Weights are rounded to the dtype of the file; the reference then computes in f32 from the rounded weights.

Names in `taef2/taef2.safetensors` are those of the published file for FLUX.2: `{encoder,decoder}.layers.<n>` as in
AutoencoderTiny, and in blocks that pool also `.pool.0.weight` (1x1 convolution, width -> 4*width), `.pool.1.{weight,bias}`
(GroupNorm of 4 groups, epsilon 1e-5) and `.pool.3.weight` (1x1 convolution back).
"""

import argparse
import copy
import filecmp
import json
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).resolve().parent
KL_BLOCKS = 4
PLAYGROUND_MEAN = [-1.6574, 1.886, -1.383, 2.5155]
PLAYGROUND_STD = [8.4927, 5.9022, 6.5498, 5.2299]


# ---- inputs ---------------------------------------------------------------------------------------------------------


def exact(values):
    """Rounds to numbers that float16 and bfloat16 both hold."""
    values = values.to(torch.bfloat16).float()
    return torch.where(values.abs() < 2.0**-14, torch.zeros(()), values)


def random_latents(generator, *shape, scale=1.0):
    return exact(torch.randn(shape, generator=generator) * scale)


def random_pixels(generator, batch, height, width):
    """A smooth field with some noise: [batch, 3, height, width] in [-1, 1]."""
    field = torch.randn((batch, 3, height // 8 + 1, width // 8 + 1), generator=generator)
    field = nn.functional.interpolate(field, size=(height, width), mode="bilinear", align_corners=True)
    noise = torch.randn((batch, 3, height, width), generator=generator)
    return exact((0.5 * field + 0.1 * noise).clamp(-1, 1))


def pack(latents):
    """2x2 patches as tokens: [batch, channels, h, w] -> [batch, h/2 * w/2, 4*channels], channel = c*4 + dy*2 + dx."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, (height // 2) * (width // 2), channels * 4).contiguous()


# ---- models ---------------------------------------------------------------------------------------------------------


def tidy(scale):
    """Two significant digits, so that the last bits of a CPU's convolution cannot change a weight."""
    return float(f"{scale:.1e}")


@torch.no_grad()
def give_life(model, generator):
    """Spreads norms and biases, and sharpens attention, so that no term of the network is close to neutral."""
    for name, module in model.named_modules():
        if isinstance(module, nn.GroupNorm):
            module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=generator))
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = (3.0 / module.weight[0].numel()) ** 0.5
            gain = 2.0 if name.endswith(("to_q", "to_k")) else 0.9
            module.weight.copy_((2 * torch.rand(module.weight.shape, generator=generator) - 1) * bound * gain)
            if module.bias is not None:
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))


@torch.no_grad()
def calibrate(model, decoder_end, encoder_end, latent_channels, generator, offset=0.0):
    """Scales both last convolutions: pixels of deviation about 0.5, latents of deviation about 1."""
    out = model.decode(random_latents(generator, 1, latent_channels, 6, 6)).sample
    decoder_end.weight.mul_(tidy(0.5 / out.std().item()))
    decoder_end.bias.add_(offset)
    pixels = random_pixels(generator, 1, 64, 64)
    out = encode(model, pixels)[:, :latent_channels]
    encoder_end.weight.mul_(tidy(1.0 / out.std().item()))


def round_weights(model, dtype):
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()


def build_kl(seed, dtype=torch.float16, **config):
    config = dict(
        in_channels=3, out_channels=3, norm_num_groups=4, layers_per_block=2, latent_channels=4, sample_size=64,
        block_out_channels=(8, 16, 16, 24),
    ) | config
    blocks = len(config["block_out_channels"])
    config["down_block_types"] = ("DownEncoderBlock2D",) * blocks
    config["up_block_types"] = ("UpDecoderBlock2D",) * blocks
    generator = torch.Generator().manual_seed(seed)
    model = AutoencoderKL(**config).eval().requires_grad_(False)
    give_life(model, generator)
    calibrate(model, model.decoder.conv_out, model.encoder.conv_out, config["latent_channels"], generator)
    round_weights(model, dtype)
    return model


def build_tiny(seed, **config):
    width = config.pop("width")
    config = dict(encoder_block_out_channels=(width,) * 4, decoder_block_out_channels=(width,) * 4) | config
    generator = torch.Generator().manual_seed(seed)
    model = AutoencoderTiny(**config).eval().requires_grad_(False)
    give_life(model, generator)
    channels = config["latent_channels"]
    calibrate(model, model.decoder.layers[-1], model.encoder.layers[-1], channels, generator, offset=0.3)
    round_weights(model, torch.float16)
    return model


class PoolingBlock(nn.Module):
    """AutoencoderTiny's block, preceded by a pooled branch where `pools` is set (the FLUX.2 variant)."""

    def __init__(self, width, pools):
        super().__init__()
        conv = lambda: nn.Conv2d(width, width, 3, padding=1)
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        if pools:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, x):
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)


class FluxTwoTiny(nn.Module):
    """The FLUX.2 member of the AutoencoderTiny family; diffusers has no class for it."""

    class Output:
        def __init__(self, sample=None, latents=None):
            self.sample, self.latents = sample, latents

    def __init__(self, width, channels):
        super().__init__()
        blocks = lambda count, pools=False: [PoolingBlock(width, pools) for _ in range(count)]
        down = lambda: nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False)
        up = lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.encoder = Layers(
            nn.Conv2d(3, width, 3, padding=1), *blocks(1), down(), *blocks(3), down(), *blocks(3), down(),
            *blocks(3, pools=True), nn.Conv2d(width, channels, 3, padding=1),
        )
        self.decoder = Layers(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), *blocks(3, pools=True), *up(), *blocks(3), *up(),
            *blocks(3), *up(), *blocks(1), nn.Conv2d(width, 3, 3, padding=1),
        )

    def decode(self, latents):
        return self.Output(sample=self.decoder.layers(torch.tanh(latents / 3) * 3) * 2 - 1)

    def encode(self, pixels):
        return self.Output(latents=self.encoder.layers((pixels + 1) / 2))


def build_flux_two_tiny(seed, width, channels):
    generator = torch.Generator().manual_seed(seed)
    model = FluxTwoTiny(width, channels).eval().requires_grad_(False)
    give_life(model, generator)
    calibrate(model, model.decoder.layers[-1], model.encoder.layers[-1], channels, generator, offset=0.3)
    round_weights(model, torch.float16)
    return model


# ---- names of other checkpoint forms --------------------------------------------------------------------------------


def ldm_name(name, blocks=KL_BLOCKS):
    """diffusers' name of a tensor in an AutoencoderKL -> its name in LDM and ComfyUI files."""
    parts = name.split(".")
    for index in range(len(parts) - 1):
        number = parts[index + 1]
        if parts[index] == "down_blocks":
            parts[index] = "down"
        elif parts[index] == "up_blocks":
            parts[index], parts[index + 1] = "up", str(blocks - 1 - int(number))
        elif parts[index] == "mid_block":
            parts[index] = "mid"
        elif parts[index] == "resnets" and parts[index - 1] == "mid":
            parts[index], parts[index + 1] = f"block_{int(number) + 1}", None
        elif parts[index] == "resnets":
            parts[index] = "block"
        elif parts[index] == "downsamplers":
            parts[index], parts[index + 1] = "downsample", None
        elif parts[index] == "upsamplers":
            parts[index], parts[index + 1] = "upsample", None
        elif parts[index] == "attentions":
            parts[index], parts[index + 1] = "attn_1", None
    name = ".".join(part for part in parts if part is not None)
    for ours, theirs in (
        ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"),
        ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"),
    ):
        name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def ldm_checkpoint(state):
    """A full LDM checkpoint in small: the autoencoder under its prefix, and tensors that are none of its business."""
    tensors = {}
    for name, value in state.items():
        if ".attentions." in name and value.ndim == 2:
            value = value[:, :, None, None]
        tensors["first_stage_model." + ldm_name(name)] = value.contiguous()
    tensors["model.diffusion_model.out.2.weight"] = torch.zeros(3, 2)
    tensors["cond_stage_model.logit_scale"] = torch.zeros(1)
    tensors["model_ema.decay"] = torch.zeros(1)
    tensors["first_stage_model.loss.logvar"] = torch.zeros(1)
    return tensors


def old_attention_names(state):
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    return state


def bare_tiny(state, side):
    """One half of an AutoencoderTiny with the bare names of its original release (whose decoder begins with a clamp)."""
    shift = 1 if side == "decoder" else 0
    tensors = {}
    for name, value in state.items():
        owner, _, number, rest = name.split(".", 3)
        if owner == side:
            tensors[f"{int(number) + shift}.{rest}"] = value
    return tensors


# ---- cases ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def encode(model, pixels):
    """Raw encoder output: moments of an AutoencoderKL, latents of a tiny model."""
    if isinstance(model, AutoencoderKL):
        return model.encode(pixels).latent_dist.parameters
    return model.encode(pixels).latents


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
        if isinstance(self.model, AutoencoderKL):
            distribution = self.model.encode(pixels).latent_dist
            self.tensors[f"{name}.moments"] = distribution.parameters
            self.tensors[f"{name}.sample"] = distribution.sample(torch.Generator().manual_seed(13))
        else:
            self.tensors[f"{name}.latents"] = encode(self.model, pixels)

    def decode_client(self, to_model, parameters, shape=(1, 3, 4), scale=1.0, packed=False):
        name, latents = self.name("client"), self.latents(*shape, scale=scale)
        self.tensors[f"{name}.latents"] = pack(latents) if packed else latents
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


class Golden:
    def __init__(self, root):
        self.root, self.entries = root, []

    def add(self, source, recorder, expected, spatial_factor=8, operations=("decode", "encode")):
        tiny = not isinstance(recorder.model, AutoencoderKL)
        self.entries.append({
            "source": source,
            "operations": list(operations),
            "family": "AutoencoderTiny" if tiny else "AutoencoderKL",
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


def kl_cases(golden):
    model = build_kl(1, scaling_factor=0.18215)
    record = Recorder(model, 4, 1)
    record.decode(1, 5, 7)
    record.decode(2, 8, 8)
    record.decode(1, 1, 1)
    record.decode(1, 11, 13)
    record.encode(1, 40, 56)
    record.encode(2, 32, 24)
    record.encode(1, 8, 8)
    scalar_rows(record, 0.18215)
    golden.diffusers_case("sd15", model, record)

    model = build_kl(2, torch.bfloat16, scaling_factor=0.13025, block_out_channels=(8, 8, 16, 16))
    record = Recorder(model, 4, 2)
    record.decode(3, 3, 9)
    record.encode(1, 56, 72)
    scalar_rows(record, 0.13025)
    packed = {"height": 32, "width": 48}
    record.decode_client(
        lambda z: z / 0.13025, [{"scaling_factor": 0.13025} | packed], shape=(1, 4, 6), scale=0.13, packed=True
    )
    golden.diffusers_case("sdxl-bf16", model, record, torch.bfloat16)

    model = build_kl(
        3, scaling_factor=0.3611, shift_factor=0.1159, latent_channels=16, use_quant_conv=False,
        use_post_quant_conv=False, block_out_channels=(8, 8, 16, 16),
    )
    record = Recorder(model, 16, 3)
    record.decode(1, 5, 7)
    record.decode(2, 3, 5)
    record.encode(1, 40, 56)
    scalar_rows(record, 0.3611, 0.1159)
    undo = lambda z: z / 0.3611 + 0.1159
    flux = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    # Sides that 16 does not divide lose their rest; the client may name the image it wants.
    record.decode_client(
        undo, [size | row for row in (flux, {"do_scaling": True})
               for size in ({"height": 32, "width": 48}, {"height": 40, "width": 63})],
        shape=(2, 4, 6), scale=0.36, packed=True,
    )
    # Height and width mean nothing beside latents that are not packed.
    record.decode_client(undo, [flux | {"height": 1024, "width": 8}], scale=0.36)
    golden.diffusers_case("flux", model, record)

    model = build_kl(
        4, scaling_factor=1.5305, shift_factor=0.0609, latent_channels=16, use_quant_conv=False,
        use_post_quant_conv=False, block_out_channels=(8, 8, 8, 16),
    )
    record = Recorder(model, 16, 4)
    record.decode(2, 3, 9)
    record.encode(2, 24, 72)
    scalar_rows(record, 1.5305, 0.0609)
    golden.diffusers_case("sd3", model, record)

    model = build_kl(
        5, scaling_factor=0.5, latents_mean=PLAYGROUND_MEAN, latents_std=PLAYGROUND_STD, block_out_channels=(8, 8, 8, 16)
    )
    mean = torch.tensor(PLAYGROUND_MEAN).view(1, 4, 1, 1)
    deviation = torch.tensor(PLAYGROUND_STD).view(1, 4, 1, 1)
    record = Recorder(model, 4, 5)
    record.decode(1, 8, 8)
    record.encode(1, 40, 56)
    record.decode_client(lambda z: z * deviation / 0.5 + mean, [{"do_scaling": True}], shape=(2, 3, 4), scale=0.1)
    record.decode_client(lambda z: z, [{}, {"do_scaling": False}])
    record.encode_client(lambda z: (z - mean) * 0.5 / deviation, [{"do_scaling": True}])
    record.encode_client(lambda z: z, [{}])
    golden.diffusers_case("playground", model, record)

    model = build_kl(
        6, scaling_factor=0.18215, layers_per_block=1, block_out_channels=(8, 16, 24), mid_block_add_attention=False
    )
    record = Recorder(model, 4, 6)
    record.decode(1, 23, 29)
    record.decode(2, 5, 7)
    record.encode(1, 20, 28)
    record.encode(1, 52, 68)
    golden.diffusers_case("no-attention", model, record, spatial_factor=4)

    model = build_kl(7, torch.float32, layers_per_block=1, block_out_channels=(12, 20, 12))
    record = Recorder(model, 4, 7)
    record.decode(1, 37, 50)
    record.decode(1, 13, 3)
    record.encode(2, 20, 44)
    golden.diffusers_case("odd-widths-f32", model, record, torch.float32, spatial_factor=4)

    model = build_kl(8, scaling_factor=0.18215, layers_per_block=1, block_out_channels=(8, 8, 16, 16))
    record = Recorder(model, 4, 8)
    record.decode(1, 5, 7)
    record.encode(1, 40, 56)
    folder = golden.diffusers_case("old-attention-names", model, record)
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file(old_attention_names(load_file(path)), path, metadata={"format": "pt"})


def single_file_cases(golden):
    """No config.json: everything is found out from the tensors, and norms have 32 groups as in every published model."""
    folder = golden.root / "single-file"
    folder.mkdir(parents=True, exist_ok=True)

    def record(model, seed):
        recorder = Recorder(model, 4, seed)
        recorder.decode(1, 5, 7)
        recorder.encode(1, 40, 56)
        recorder.decode_client(lambda z: z / 0.18215, [{"scaling_factor": 0.18215}], scale=0.18)
        return recorder

    model = build_kl(9, norm_num_groups=32, layers_per_block=1, block_out_channels=(32, 32, 32, 32))
    state = {name: value.half() for name, value in model.state_dict().items()}
    save_file(ldm_checkpoint(state), folder / "ldm.safetensors")
    recorder = record(model, 9)
    recorder.save(folder / "ldm.cases.safetensors")
    golden.add("single-file/ldm.safetensors", recorder, "single-file/ldm.cases.safetensors")

    model = build_kl(10, torch.float32, norm_num_groups=32, layers_per_block=1, block_out_channels=(32, 64, 32, 32))
    stored = {}
    for name, value in model.state_dict().items():
        stored[name] = value.to(torch.float8_e4m3fn if value.ndim > 1 else torch.float32)
    model.load_state_dict({name: value.float() for name, value in stored.items()})
    save_file(stored, folder / "f8.safetensors")
    recorder = record(model, 10)
    recorder.save(folder / "f8.cases.safetensors")
    golden.add("single-file/f8.safetensors", recorder, "single-file/f8.cases.safetensors")


def tiny_rows(recorder):
    """Tiny models take latents as they are, whatever the client says about scaling."""
    recorder.decode_client(
        lambda z: z, [{}, {"scaling_factor": 0.18215}, {"scaling_factor": 0.3611, "shift_factor": 0.1159},
                      {"do_scaling": True}],
    )
    recorder.encode_client(lambda z: z, [{}, {"scaling_factor": 0.18215}])


def tiny_cases(golden):
    model = build_tiny(20, width=8, latent_channels=4)
    record = Recorder(model, 4, 20)
    record.decode(1, 13, 11)
    record.decode(2, 5, 7)
    record.decode(1, 1, 1)
    record.encode(1, 40, 56)
    record.encode(2, 24, 40)
    tiny_rows(record)
    folder = golden.diffusers_case("tiny", model, record)
    state = {name: value.half() for name, value in model.state_dict().items()}
    for side in ("encoder", "decoder"):
        save_file(bare_tiny(state, side), folder / f"bare_{side}.safetensors")
        operation = "encode" if side == "encoder" else "decode"
        golden.add(f"tiny/bare_{side}.safetensors", record, "tiny/cases.safetensors", operations=[operation])

    model = build_tiny(21, width=12, latent_channels=16, num_encoder_blocks=(1, 2, 2, 2), num_decoder_blocks=(2, 2, 2, 1))
    record = Recorder(model, 16, 21)
    record.decode(1, 5, 7)
    record.decode(3, 4, 6)
    record.encode(1, 40, 56)
    tiny_rows(record)
    record.decode_client(lambda z: z, [{"height": 32, "width": 48}], shape=(1, 4, 6), packed=True)
    golden.diffusers_case("tiny-16-channels", model, record)

    model = build_flux_two_tiny(22, 8, 32)
    record = Recorder(model, 32, 22)
    record.decode(1, 5, 7)
    record.decode(2, 3, 4)
    record.encode(2, 40, 56)
    tiny_rows(record)
    folder = golden.root / "taef2"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in model.state_dict().items()}, folder / "taef2.safetensors")
    record.save(folder / "cases.safetensors")
    golden.add("taef2/taef2.safetensors", record, "taef2/cases.safetensors")


def make(root):
    golden = Golden(root)
    with torch.no_grad():
        kl_cases(golden)
        single_file_cases(golden)
        tiny_cases(golden)
    golden.finish()


# ---- check ----------------------------------------------------------------------------------------------------------


def is_input(name):
    kind = name.rsplit(".", 1)[-1]
    return kind == ("pixels" if "encode" in name else "latents")


def compare(fresh, stored):
    """Names what differs between two folders of golden files."""
    files = lambda root: {str(p.relative_to(root)) for p in root.rglob("*") if p.suffix in (".json", ".safetensors")}
    problems = [f"{name}: only on one side" for name in sorted(files(fresh) ^ files(stored))]
    worst = 0.0
    for name in sorted(files(fresh) & files(stored)):
        if not name.endswith("cases.safetensors"):
            if not filecmp.cmp(fresh / name, stored / name, shallow=False):
                problems.append(f"{name}: differs")
            continue
        a, b = load_file(fresh / name), load_file(stored / name)
        if a.keys() != b.keys():
            problems.append(f"{name}: tensors {sorted(a.keys() ^ b.keys())} on one side only")
            continue
        for key in a:
            if a[key].shape != b[key].shape:
                problems.append(f"{name}: {key} has shape {list(b[key].shape)}, expected {list(a[key].shape)}")
                continue
            difference = (a[key] - b[key]).abs().max().item()
            worst = max(worst, difference)
            if difference > (0.0 if is_input(key) else 2e-5):
                problems.append(f"{name}: {key} differs by {difference:.1e}")
    return problems, worst


def main():
    parser = argparse.ArgumentParser(description="Makes or checks the golden files of this folder.")
    parser.add_argument("--check", action="store_true", help="compare with the files that are there; write nothing here")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    logging.set_verbosity_error()
    if not arguments.check:
        make(HERE)
        size = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
        print(f"{HERE}: {size / 1e6:.2f} MB")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        problems, worst = compare(Path(folder), HERE)
    for problem in problems:
        print(problem)
    print(f"golden files: {len(problems)} problems, results within {worst:.1e}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
