"""Compare the committed embedded model with plain down- and up-scaling.

Reads only files of this repository: the model's configuration and float16
weights and the three held-out photographs.

Usage::

    python training/evaluate_embedded.py [--pictures DIR]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import load_file

import metric

EMBEDDED = Path(__file__).resolve().parent.parent / "crates" / "model" / "embedded"


def load_model(folder: Path) -> AutoencoderKL:
    """Load the exported model and compute in float32 with its float16 weights."""
    model = AutoencoderKL.from_config(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return model.eval()


def main() -> None:
    """Print the table; with --pictures also write original | baseline | model side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=EMBEDDED)
    parser.add_argument("--heldout", type=Path, default=EMBEDDED / "heldout")
    parser.add_argument("--pictures", type=Path, help="folder for side-by-side pictures")
    arguments = parser.parse_args()

    model = load_model(arguments.model)
    rows: list[tuple[str, float, float]] = []
    latents = []
    for path in sorted(arguments.heldout.glob("*.png")):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        restored, baseline = metric.reconstruct(model, pixels), metric.box_bicubic(pixels)
        rows.append((path.stem, metric.psnr(restored, pixels), metric.psnr(baseline, pixels)))
        with torch.no_grad():
            x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1
            latents.append(model.encode(x).latent_dist.mode() * model.config.scaling_factor)
        if arguments.pictures:
            arguments.pictures.mkdir(parents=True, exist_ok=True)
            side_by_side = np.concatenate([pixels, baseline, restored], axis=1)
            Image.fromarray(side_by_side).save(arguments.pictures / path.name)
    rows.append(("average", float(np.mean([r[1] for r in rows])), float(np.mean([r[2] for r in rows]))))

    print("PSNR in dB          model   box + bicubic    gain")
    for name, ours, base in rows:
        print(f"{name:16}  {ours:7.2f}   {base:13.2f}  {ours - base:+6.2f}")
    scaled = torch.cat(latents)
    print(f"parameters {sum(p.numel() for p in model.parameters())}, "
          f"scaled latents: mean {scaled.mean():+.3f}, deviation {scaled.std():.3f}")


if __name__ == "__main__":
    main()
