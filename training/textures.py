"""Synthetic pictures that widen the small set of training photographs.

Two kinds are made: *dead leaves*, in which thousands of overlapping shapes are
filled with flat colours, gradients, noise or patches of training photographs,
and *drawings* of lines, glyph-like strokes, bars and boxes. The shapes follow
the power law of sizes that natural pictures have.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 384


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """Return a colour of moderate saturation as floats from 0 to 1."""
    grey = rng.uniform(0.02, 0.98)
    return np.clip(grey + rng.normal(0.0, 0.13, 3) * rng.uniform(0.1, 1.6), 0.0, 1.0)


def fractal_noise(rng: np.random.Generator, side: int, slope: float) -> np.ndarray:
    """Return unit-variance noise whose amplitude spectrum falls as 1/f**slope."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency**slope
    spectrum[0, 0] = 0.0
    field = np.fft.irfft2(spectrum, s=(side, side))
    return field / (field.std() + 1e-9)


def gradient(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a straight or round blend of two colours."""
    rows, columns = np.mgrid[0:side, 0:side] / side - 0.5
    if rng.random() < 0.6:
        angle = rng.uniform(0, 2 * np.pi)
        ramp = rows * np.sin(angle) + columns * np.cos(angle) + 0.5
    else:
        centre = rng.uniform(-0.5, 0.5, 2)
        ramp = np.hypot(rows - centre[0], columns - centre[1]) * rng.uniform(0.8, 2.0)
    ramp = np.clip(ramp, 0, 1)[..., None]
    return (1 - ramp) * random_colour(rng) + ramp * random_colour(rng)


def photo_patch(rng: np.random.Generator, photos: list[np.ndarray], side: int) -> np.ndarray:
    """Return a rotated, rescaled and tinted patch of a training photograph."""
    photo = photos[rng.integers(len(photos))]
    cut = min(int(side * rng.uniform(0.8, 2.0)), photo.shape[0], photo.shape[1])
    top = rng.integers(photo.shape[0] - cut + 1)
    left = rng.integers(photo.shape[1] - cut + 1)
    patch = Image.fromarray(photo[top:top + cut, left:left + cut])
    patch = patch.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC, expand=False)
    inner = int(cut * 0.7)
    edge = (cut - inner) // 2
    patch = patch.crop((edge, edge, edge + inner, edge + inner))
    pixels = np.asarray(patch.resize((side, side), Image.Resampling.LANCZOS), dtype=np.float64) / 255
    shift = rng.normal(0, 0.12, 3) * rng.uniform(0, 1) + rng.normal(0, 0.1)
    return np.clip(pixels * rng.uniform(0.7, 1.2) + shift, 0, 1)


def filling(rng: np.random.Generator, photos: list[np.ndarray], side: int) -> np.ndarray:
    """Return one square of material for a leaf."""
    kind = rng.random()
    if kind < 0.45:
        return photo_patch(rng, photos, side)
    if kind < 0.65:
        return np.broadcast_to(random_colour(rng), (side, side, 3))
    if kind < 0.85:
        return gradient(rng, side)
    noise = fractal_noise(rng, side, rng.uniform(0.6, 1.8))[..., None]
    tint = random_colour(rng) - random_colour(rng)
    return np.clip(random_colour(rng) + noise * (rng.uniform(0.01, 0.12) + 0.15 * tint), 0, 1)


def leaf_mask(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return the anti-aliased outline of an ellipse, a polygon or a bar."""
    big = side * 2
    mask = Image.new("L", (big, big))
    draw = ImageDraw.Draw(mask)
    kind = rng.random()
    angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
    if kind < 0.45:
        squeeze = rng.uniform(0.3, 1.0) * big / 2
        draw.ellipse((0, big / 2 - squeeze, big - 1, big / 2 + squeeze), fill=255)
        mask = mask.rotate(rng.uniform(0, 180), Image.Resampling.BICUBIC)
    elif kind < 0.85:
        radii = rng.uniform(0.4, 1.0, len(angles)) * big / 2
        draw.polygon([(big / 2 + r * np.cos(a), big / 2 + r * np.sin(a))
                      for r, a in zip(radii, angles)], fill=255)
    else:
        half = rng.uniform(0.03, 0.2) * big
        draw.rectangle((0, big / 2 - half, big, big / 2 + half), fill=255)
        mask = mask.rotate(rng.uniform(0, 180), Image.Resampling.BICUBIC)
    if rng.random() < 0.25:
        mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 6.0)))
    mask = mask.resize((side, side), Image.Resampling.BOX)
    return np.asarray(mask, dtype=np.float64)[..., None] / 255


def dead_leaves(rng: np.random.Generator, photos: list[np.ndarray], leaves: int = 70) -> np.ndarray:
    """Return a SIDE x SIDE picture of overlapping leaves, larger ones first."""
    canvas = np.array(filling(rng, photos, SIDE), dtype=np.float64)
    smallest, largest = 8.0, SIDE * 0.8
    spread = rng.random(leaves)
    sizes = np.sort(1 / np.sqrt(spread / smallest**2 + (1 - spread) / largest**2))[::-1]
    sizes = np.where(rng.random(leaves) < 0.5, np.exp(rng.uniform(np.log(smallest), np.log(largest), leaves)), sizes)
    for size in np.sort(sizes)[::-1]:
        side = max(int(size), 6)
        top, left = rng.integers(-side // 2, SIDE - side // 2, 2)
        alpha = leaf_mask(rng, side)
        fill = filling(rng, photos, side)
        y0, x0, y1, x1 = max(top, 0), max(left, 0), min(top + side, SIDE), min(left + side, SIDE)
        inside = np.s_[y0 - top:y1 - top, x0 - left:x1 - left]
        target = canvas[y0:y1, x0:x1]
        target += alpha[inside] * (fill[inside] - target)
    return np.rint(canvas * 255).astype(np.uint8)


def drawing(rng: np.random.Generator) -> np.ndarray:
    """Return a SIDE x SIDE picture of strokes, glyph-like marks, bars and boxes."""
    big = SIDE * 2
    base = (gradient(rng, 64) * 255).astype(np.uint8)
    image = Image.fromarray(base).resize((big, big), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)

    def ink() -> tuple[int, int, int]:
        red, green, blue = (random_colour(rng) * 255).astype(int)
        return int(red), int(green), int(blue)

    for _ in range(rng.integers(2, 10)):
        x, y = rng.integers(0, big, 2)
        w, h = rng.integers(20, big // 2, 2)
        draw.rectangle((x, y, x + w, y + h), fill=ink(), outline=ink(), width=int(rng.integers(1, 12)))
    for _ in range(rng.integers(4, 25)):
        points = [tuple(map(float, p)) for p in np.cumsum(rng.normal(0, 70, (rng.integers(2, 9), 2)), axis=0)
                  + rng.uniform(0, big, 2)]
        draw.line(points, fill=ink(), width=int(rng.integers(2, 16)), joint="curve")
    for _ in range(rng.integers(1, 5)):
        height, colour = int(rng.integers(12, 60)), ink()
        x0, y0 = rng.integers(0, big, 2)
        for row in range(int(rng.integers(1, 8))):
            for column in range(int(rng.integers(5, 30))):
                left, top = x0 + column * height * 0.7, y0 + row * height * 1.5
                marks = rng.uniform(0, 1, (rng.integers(2, 5), 2)) * (height * 0.55, height)
                draw.line([(left + a, top + b) for a, b in marks], fill=colour, width=max(height // 8, 1))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
