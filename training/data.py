"""Training crops: pyramids of photographs and synthetic pictures, augmented."""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import textures

SMALLEST_LEVEL = 64


def load_photos(folder: Path, role: str) -> list[tuple[str, list[np.ndarray], float]]:
    """Return (name, versions, weight) of every photograph that has ``role``."""
    index = json.loads((folder / "photos.json").read_text())
    return [
        (entry["name"], [np.asarray(Image.open(folder / file).convert("RGB")) for file in entry["files"]],
         entry["weight"])
        for entry in index if entry["role"] == role
    ]


def is_grey(pixels: np.ndarray) -> bool:
    """Tell whether a picture has three equal channels."""
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())


def pyramid(pixels: np.ndarray, start: float = 1.0) -> list[np.ndarray]:
    """Return the picture at scales ``start``, 0.8 * start, 0.64 * start, ... down to 64 pixels."""
    height, width = pixels.shape[:2]
    levels, scale = [], start
    while min(height, width) * scale >= SMALLEST_LEVEL and scale > 0.12:
        if scale == 1.0:
            levels.append(np.ascontiguousarray(pixels))
        else:
            size = (round(width * scale), round(height * scale))
            levels.append(np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)))
        scale *= 0.8
    return levels


def _synthesise(task: tuple[int, str, list[np.ndarray]]) -> np.ndarray:
    seed, kind, photos = task
    rng = np.random.default_rng(seed)
    return textures.dead_leaves(rng, photos) if kind == "leaves" else textures.drawing(rng)


def synthetic_pictures(photos: list[np.ndarray], count: int, seed: int) -> list[np.ndarray]:
    """Make ``count`` synthetic pictures, one in eight a drawing, on all processors."""
    tasks = [(seed + i, "drawing" if i % 8 == 0 else "leaves", photos) for i in range(count)]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        return list(pool.map(_synthesise, tasks, chunksize=8))


class CropSource:
    """Draws random crops, uniformly in the logarithm of scale, as uint8 batches."""

    def __init__(self, folder: Path, synthetic: int, synthetic_share: float, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.pictures: list[tuple[list[np.ndarray], bool]] = []
        weights: list[float] = []
        loaded = load_photos(folder, "train")
        for _, versions, weight in loaded:
            for version in versions:
                self.pictures.append((pyramid(version), is_grey(version)))
                weights.append(weight / len(versions))
        if synthetic:
            colour = [v for _, versions, w in loaded for v in versions if w >= 0.5 and not is_grey(v)]
            grey = [v for _, versions, w in loaded for v in versions if w >= 0.5 and is_grey(v)]
            share = synthetic_share / (1 - synthetic_share) * sum(weights) / synthetic
            for picture in synthetic_pictures(colour + grey, synthetic, seed * 100003):
                self.pictures.append((pyramid(picture)[:4], False))
                weights.append(share)
        self.edges = np.cumsum(np.asarray(weights)) / sum(weights)

    def crops(self, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``count`` crops (uint8, N x 3 x side x side) and which of them are grey."""
        rng = self.rng
        batch = np.empty((count, side, side, 3), dtype=np.uint8)
        grey = np.zeros(count, dtype=bool)
        filled = 0
        while filled < count:
            levels, grey[filled] = self.pictures[int(np.searchsorted(self.edges, rng.random()))]
            usable = [level for level in levels if min(level.shape[:2]) >= side]
            if not usable:
                continue
            level = usable[rng.integers(len(usable))]
            top = rng.integers(level.shape[0] - side + 1)
            left = rng.integers(level.shape[1] - side + 1)
            crop = level[top:top + side, left:left + side]
            crop = np.rot90(crop, rng.integers(4)) if rng.random() < 0.5 else crop
            batch[filled] = crop[:, ::-1] if rng.random() < 0.5 else crop
            filled += 1
        return torch.from_numpy(batch.transpose(0, 3, 1, 2).copy()), torch.from_numpy(grey)


def augment(crops: torch.Tensor, grey: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Apply calm colour changes to uint8 crops and return floats from -1 to 1."""
    count = len(crops)

    def uniform(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, channels, 1, 1, generator=generator)

    def chance(p: float) -> torch.Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator) < p

    x = crops.float() / 255
    for i in torch.nonzero(torch.rand(count, generator=generator) < 0.15).flatten().tolist():
        x[i] = x[i][torch.randperm(3, generator=generator)]
    dark, light = uniform(0.0, 0.3, 3), uniform(0.6, 1.0, 3)
    x = torch.where(chance(0.6) & grey[:, None, None, None], dark + (light - dark) * x, x)
    luma = x.mean(dim=1, keepdim=True)
    x = torch.where(chance(0.4), luma + (x - luma) * uniform(0.3, 1.6), x)
    x = torch.where(chance(0.5), x * uniform(0.88, 1.12, 3), x).clamp(0, 1)
    x = torch.where(chance(0.5), x.clamp_min(1e-4) ** torch.exp(uniform(-0.35, 0.35)), x)
    middle = x.mean(dim=(1, 2, 3), keepdim=True)
    x = torch.where(chance(0.4), middle + (x - middle) * uniform(0.75, 1.25), x)
    x = torch.where(chance(0.3), x + uniform(-0.1, 0.1), x)
    return x.clamp(0, 1) * 2 - 1
