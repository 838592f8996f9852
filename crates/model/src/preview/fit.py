"""Fits the factors of linear previews and writes `fitted.rs` beside this file.

A preview is one pixel for each latent: `rgb = latents · factors + bias`, in -1 to 1. Here factors and bias are found by
least squares: photographs are encoded, and the mean colour under each latent is what the latent should give. The
latents are those that a diffusion model works with (for the embedded model, its latents times `scaling_factor`).

Photographs and tiny autoencoders are read from the folder that REMOTE_VAE_TEST_DATA names (`photos`, `weights`), the
embedded model from this repository. Each photograph is also used with its channels permuted, as a negative, and mixed
towards grey, so that no colour is rare.

    python crates/model/src/preview/fit.py            # writes fitted.rs, prints PSNR on photographs left out
    python crates/model/src/preview/fit.py --check    # compares instead of writing
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image

HERE = Path(__file__).resolve().parent
FITTED = HERE / "fitted.rs"
EMBEDDED = HERE.parents[1] / "embedded"
SIDE = 8
TOLERANCE = 2e-4

# Constant, what it is for, and the folder of the autoencoder; None is the embedded model.
SPACES = [
    ("SD", "Stable Diffusion 1 and 2, from TAESD", "taesd"),
    ("SDXL", "Stable Diffusion XL, from TAESDXL", "taesdxl"),
    ("FLUX", "FLUX.1, from TAEF1", "taef1"),
    ("EMBEDDED", "the embedded model", None),
]


def photographs(folder: Path) -> dict[str, np.ndarray]:
    """Return the photographs, `[height, width, 3]` in 0 to 1, cut to multiples of eight."""
    found = {}
    for path in sorted(folder.glob("*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB"), dtype=np.float32) / 255
        height, width = (side - side % SIDE for side in pixels.shape[:2])
        found[path.stem] = pixels[:height, :width]
    return found


def variants(pixels: np.ndarray) -> list[np.ndarray]:
    """Return the picture in all orders of its channels, as it is, as a negative, and half grey."""
    grey = pixels.mean(axis=2, keepdims=True)
    versions = []
    for order in itertools.permutations(range(3)):
        colours = pixels[..., order]
        versions += [colours, 1 - colours, (colours + grey) / 2]
    return versions


def encoder(weights: Path, name: str | None):
    """Return a function from pixels `[1, 3, height, width]` in -1 to 1 to a diffusion model's latents."""
    if name is None:
        model = AutoencoderKL.from_pretrained(EMBEDDED, torch_dtype=torch.float32).eval()
        return lambda x: model.encode(x).latent_dist.mode() * model.config.scaling_factor
    model = AutoencoderTiny.from_pretrained(weights / name, torch_dtype=torch.float32).eval()
    return lambda x: model.encode(x).latents


@torch.no_grad()
def samples(encode, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return latents with a one behind them, `[count, channels + 1]`, and the mean colours under them, `[count, 3]`."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None] * 2 - 1
    latents = encode(x)[0].flatten(1).T.double().numpy()
    colours = torch.nn.functional.avg_pool2d(x, SIDE)[0].flatten(1).T.double().numpy()
    return np.concatenate([latents, np.ones((len(latents), 1))], axis=1), colours


def fit(pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return factors and, in the last row, the bias: `[channels + 1, 3]`."""
    latents, colours = (np.concatenate(parts) for parts in zip(*pairs))
    return np.linalg.lstsq(latents, colours, rcond=None)[0]


def psnr(factors: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Return the peak signal-to-noise ratio of previews against the mean colours."""
    error = np.mean([np.mean((np.clip(x @ factors, -1, 1) - y) ** 2) for x, y in pairs])
    return 10 * np.log10(4 / error)


def constant(name: str, what: str, factors: np.ndarray) -> str:
    rows = "".join(f"        [{', '.join(f'{value:.4f}' for value in row)}],\n" for row in factors[:-1])
    bias = ", ".join(f"{value:.4f}" for value in factors[-1])
    return (
        f"\n/// {what[0].upper()}{what[1:]}.\npub(super) const {name}: PreviewFactors = PreviewFactors {{\n"
        f"    factors: &[\n{rows}    ],\n    bias: [{bias}],\n}};\n"
    )


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with fitted.rs instead of writing it")
    arguments = parser.parse_args()
    data = os.environ.get("REMOTE_VAE_TEST_DATA")
    if not data:
        print("skipped: REMOTE_VAE_TEST_DATA names no folder of photographs and weights")
        return
    torch.manual_seed(0)
    photos = photographs(Path(data) / "photos")
    text = "//! Factors fitted by this project. Written by `fit.py` beside this file; change that instead.\n\n"
    text += "use super::PreviewFactors;\n"
    for name, what, folder in SPACES:
        encode = encoder(Path(data) / "weights", folder)
        pairs = {photo: [samples(encode, version) for version in variants(pixels)] for photo, pixels in photos.items()}
        for left_out in photos:
            rest = [pair for photo, found in pairs.items() if photo != left_out for pair in found]
            print(f"{name}: {psnr(fit(rest), pairs[left_out][:1]):.2f} dB on {left_out}, fitted without it")
        text += constant(name, what, fit([pair for found in pairs.values() for pair in found]))
    if not arguments.check:
        FITTED.write_text(text)
        return
    found, expected = numbers(FITTED.read_text()), numbers(text)
    if len(found) != len(expected) or np.abs(np.subtract(found, expected)).max() > TOLERANCE:
        sys.exit(f"{FITTED} is not what this script writes")


if __name__ == "__main__":
    main()
