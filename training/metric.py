"""The comparison with plain down- and up-scaling, shared by training and evaluation."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

TEST_SIDE = 256


def centre_square(pixels: np.ndarray, side: int = TEST_SIDE) -> np.ndarray:
    """Crop the centre square and resize it to ``side`` with Pillow's LANCZOS filter."""
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = Image.fromarray(np.ascontiguousarray(pixels[top:top + edge, left:left + edge]))
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two uint8 pictures in decibels."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float(10 * np.log10(255.0**2 / error))


def box_bicubic(pixels: np.ndarray) -> np.ndarray:
    """Shrink eight-fold with a box filter and enlarge again with a bicubic one."""
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((width // 8, height // 8), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


@torch.no_grad()
def reconstruct(model: AutoencoderKL, pixels: np.ndarray) -> np.ndarray:
    """Encode a picture to the mode of its latents, decode these and round to uint8."""
    x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = model.decode(model.encode(x).latent_dist.mode()).sample
    return ((y[0].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
