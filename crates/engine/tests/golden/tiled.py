"""What diffusers computes in tiles (`enable_tiling()`) with some of the models of this folder.

`tiled.json` lists the cases: `source`, `operation`, the attributes that were set (null: diffusers' own default), and whether
the result differs from that of the whole picture. `tiled.cases.safetensors` holds of case n

    <n>.input    latents, or pixels in [-1, 1]     float16, which holds them exactly
    <n>.result   pixels, moments, or latents of AutoencoderTiny
    of pixels that come out every 3rd row and 5th column
"""

import json

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from safetensors.torch import save_file

from inputs import MOMENTS, random_latents, random_pixels

# source, class, latent channels, then cases: operation, batch, height, width (of the input), pixels and latents of a tile,
# overlap. None is diffusers' default; the tiles of sd15 and flux2 have 64 pixels by their config, those of the tiny ones 512.
CASES = [
    ("sd15", AutoencoderKL, 4, [
        ("decode", 1, 8, 8, None, None, None),
        ("decode", 2, 11, 13, None, None, None),
        ("decode", 1, 15, 3, None, None, None),
        ("decode", 1, 20, 13, 96, 12, None),
        ("decode", 1, 9, 10, None, None, 0.5),
        ("decode", 1, 7, 17, None, None, 0.0),
        ("encode", 1, 64, 64, None, None, None),
        ("encode", 2, 72, 40, None, None, None),
        ("encode", 1, 56, 120, 96, 12, None),
    ]),
    ("flux2", AutoencoderKLFlux2, 32, [
        ("decode", 1, 9, 7, None, None, None),
        ("encode", 1, 40, 72, None, None, None),
    ]),
    ("tiny", AutoencoderTiny, 4, [
        ("decode", 1, 60, 3, None, None, None),
        ("decode", 2, 17, 31, 128, 16, None),
        ("decode", 1, 13, 7, 64, 8, 0.25),
        ("encode", 1, 464, 16, None, None, None),
        ("encode", 2, 104, 40, 64, 8, 0.25),
    ]),
    ("tiny-16-channels", AutoencoderTiny, 16, [
        ("decode", 1, 9, 7, 64, 8, 0.25),
    ]),
]
NAMES = ("tile_sample_min_size", "tile_latent_min_size", "tile_overlap_factor")


def compute(model, operation, value):
    if operation == "decode":
        return model.decode(value).sample[..., ::3, ::5]
    if isinstance(model, MOMENTS):
        return model.encode(value).latent_dist.parameters
    return model.encode(value).latents


def tiled_cases(root):
    generator = torch.Generator().manual_seed(2000)
    listed, tensors = [], {}
    for source, kind, channels, cases in CASES:
        for operation, batch, height, width, *sizes in cases:
            model = kind.from_pretrained(root / source, low_cpu_mem_usage=False).float().eval().requires_grad_(False)
            if operation == "decode":
                value = random_latents(generator, batch, channels, height, width)
            else:
                value = random_pixels(generator, batch, height, width)
            whole = compute(model, operation, value)
            model.enable_tiling()
            for name, size in zip(NAMES, sizes):
                if size is not None:
                    setattr(model, name, size)
            result = compute(model, operation, value)
            assert torch.isfinite(result).all() and result.shape == whole.shape, (source, operation, height, width)
            case = len(listed)
            is_cut = not torch.equal(result, whole)
            listed.append({"source": source, "operation": operation, **dict(zip(NAMES, sizes)), "is_cut": is_cut})
            tensors |= {f"{case}.input": value.half(), f"{case}.result": result.contiguous()}
    (root / "tiled.json").write_text(json.dumps(listed, indent=2) + "\n")
    save_file(tensors, root / "tiled.cases.safetensors")
