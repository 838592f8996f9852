"""Writes the golden files of this folder with Pillow, numpy, torch and diffusers.

    python make_golden.py

- source.png            the picture that the others are made from
- resize_WxH.png        it, resized by Pillow's Lanczos
- jpeg_WxH.jpg          its upper left corner, as Pillow saves JPEG by default
- mode_*.png/jpg/webp   it in the pixel formats that clients may send; *.rgb.png is Pillow's convert("RGB")
- uint8_of_float16.png  256x256 grey: entry i is what the float16 with bits i becomes (VaeImageProcessor on a CPU)
- model_range.f32       what the bytes 0..255 become (VaeImageProcessor.preprocess), little-endian
"""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

HERE = Path(__file__).parent
SIZES = [(56, 40), (61, 16), (16, 43), (8, 8), (16, 40), (30, 64), (200, 3), (1, 1)]
JPEG_SIZES = [(61, 43), (48, 32), (40, 24), (17, 9), (7, 33), (1, 1)]


def source() -> Image.Image:
    """61x43: gradients, a hard disc, stripes and a little noise."""
    random = np.random.default_rng(13)
    y, x = np.mgrid[0:43, 0:61].astype(np.float64)
    red = 255 * x / 60
    green = 127 + 127 * np.sin(x * y / 90)
    blue = np.where((x - 35) ** 2 + (y - 20) ** 2 < 150, 250, 30 + 3 * y)
    pixels = np.stack([red, green, blue], -1) + random.normal(0, 6, (43, 61, 3))
    pixels[30:38, 5:25] = np.where((x[30:38, 5:25] // 2 % 2 == 0)[..., None], 255, 0)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def png_of_sixteen_bits(path: Path, pixels: np.ndarray, colour_type: int) -> None:
    """Pillow cannot write 16-bit colour, so this does: rows without filter."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(file)


def modes(image: Image.Image) -> None:
    small = image.crop((20, 10, 44, 26))
    rgba = small.copy()
    rgba.putalpha(Image.linear_gradient("L").resize(small.size))
    grey = small.convert("L")
    grey_alpha = grey.copy()
    grey_alpha.putalpha(rgba.getchannel("A"))
    palette = small.quantize(20)
    files = {
        "rgba.png": (rgba, {}),
        "l.png": (grey, {}),
        "la.png": (grey_alpha, {}),
        "p.png": (palette, {}),
        "p_transparent.png": (palette, {"transparency": 3}),
        "p_two_bits.png": (small.quantize(4), {"bits": 2}),
        "one_bit.png": (small.convert("1"), {}),
        "rgb_transparent.png": (small, {"transparency": small.getpixel((0, 0))}),
        "grey.jpg": (grey, {}),
        "progressive.jpg": (small, {"progressive": True, "quality": 95, "subsampling": 0}),
        "subsampled.jpg": (small, {"quality": 95}),
        "lossless.webp": (small, {"lossless": True}),
        "lossless_alpha.webp": (rgba, {"lossless": True, "exact": True}),
        "lossy.webp": (small, {"quality": 90}),
    }
    for name, (picture, options) in files.items():
        path = HERE / f"mode_{name}"
        picture.save(path, **options)
        Image.open(path).convert("RGB").save(HERE / f"mode_{name}.rgb.png")
    wide = np.asarray(small).astype(np.uint16) * 257 ^ 0x0055
    png_of_sixteen_bits(HERE / "mode_sixteen_rgb.png", wide, 2)
    Image.open(HERE / "mode_sixteen_rgb.png").convert("RGB").save(HERE / "mode_sixteen_rgb.png.rgb.png")
    # Pillow would cut 16-bit grey off at 255; the upper byte is expected instead.
    png_of_sixteen_bits(HERE / "mode_sixteen_grey.png", wide[..., 0], 0)
    upper = (wide[..., 0] >> 8).astype(np.uint8)
    Image.fromarray(np.stack([upper] * 3, -1)).save(HERE / "mode_sixteen_grey.png.rgb.png")


def processor_tables() -> None:
    processor = VaeImageProcessor()
    bits = np.arange(65536, dtype=np.uint16)
    values = torch.from_numpy(bits.view(np.float16).copy()).nan_to_num(nan=-1.0, posinf=2.0, neginf=-2.0)
    unit = processor.denormalize(values)
    assert unit.dtype == torch.float16
    images = (processor.pt_to_numpy(unit.view(1, 1, 256, 256)) * 255).round().astype("uint8")
    Image.fromarray(images[0, :, :, 0]).save(HERE / "uint8_of_float16.png", optimize=True)
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    tensor = processor.preprocess(ramp)
    (HERE / "model_range.f32").write_bytes(tensor[0, 0].numpy().astype("<f4").tobytes())


def main() -> None:
    image = source()
    image.save(HERE / "source.png")
    for width, height in SIZES:
        resized = image.resize((width, height), Image.Resampling.LANCZOS)
        resized.save(HERE / f"resize_{width}x{height}.png")
    for width, height in JPEG_SIZES:
        image.crop((0, 0, width, height)).save(HERE / f"jpeg_{width}x{height}.jpg")
    modes(image)
    processor_tables()


if __name__ == "__main__":
    main()
