"""Train the small embedded AutoencoderKL on a CPU.

The run is budgeted by time: learning rate, crop size and precision are
functions of the fraction of ``--minutes`` already spent, so a run always ends
on a finished schedule, however fast the machine is. A checkpoint is written
regularly; starting the same command again resumes from it.

Usage::

    python training/collect_photos.py --out training/data
    python training/train_embedded.py --data training/data --run training/runs/embedded \\
        --minutes 65 --export crates/model/embedded
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

import data
import metric
from linear_start import linear_start

HERE = Path(__file__).resolve().parent
WIDTHS = (32, 48, 64, 80)
GROUPS = 8
EMA_DECAY = 0.999
KL_WEIGHT = 1e-5
WARM_UP_STEPS = 200
# (share of the time at which the stage ends, crop side, crops in a batch)
STAGES = ((0.45, 64, 8), (0.75, 96, 4), (1.0, 128, 4))
FULL_PRECISION_FROM = 0.90


def build_model() -> AutoencoderKL:
    """Build the network at its starting point."""
    model = AutoencoderKL(
        in_channels=3, out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=WIDTHS, layers_per_block=1, act_fn="silu", latent_channels=4,
        norm_num_groups=GROUPS, sample_size=512, scaling_factor=1.0, force_upcast=True,
    )
    linear_start(model)
    return model


def stage_at(progress: float) -> tuple[int, int]:
    """Return the crop side and the batch size at a point of the schedule."""
    for end, side, count in STAGES:
        if progress < end:
            return side, count
    return STAGES[-1][1:]


def learning_rate(progress: float, step: int, peak: float) -> float:
    """Return the cosine-decayed learning rate with a short warm-up."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return peak * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.002 + 0.998 * cosine)


def loss_of(model: AutoencoderKL, x: torch.Tensor, progress: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the detached mean squared error of a batch.

    The loss is the root mean squared error of each crop, averaged over the
    crops, with a small share of absolute error in the first half.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=progress < FULL_PRECISION_FROM,
                        cache_enabled=False):
        posterior = model.encode(x).latent_dist
        y = model.decode(posterior.sample()).sample
    difference = y.float() - x
    squared = difference.square().mean(dim=(1, 2, 3))
    loss = (squared + 1e-5).sqrt().mean()
    if progress < 0.5:
        loss = loss + 0.2 * difference.abs().mean()
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return loss + KL_WEIGHT * divergence, squared.detach().mean()


def share_of_gradient(
    model: AutoencoderKL, x: torch.Tensor, progress: float,
) -> tuple[tuple[torch.Tensor | None, ...], float]:
    """Return the gradient and the squared error of one worker's part of a batch."""
    torch.set_num_threads(1)
    loss, squared = loss_of(model, x, progress)
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True), squared.item()


def backward(model: AutoencoderKL, x: torch.Tensor, progress: float, pool: ThreadPoolExecutor, workers: int) -> float:
    """Fill in the gradients of a batch, split over single-threaded workers.

    Workers meet once in a step rather than in every operator, which keeps the
    speed up on a machine whose processors are shared with other programs.
    """
    futures = [pool.submit(share_of_gradient, model, part, progress) for part in x.chunk(workers)]
    results = [future.result() for future in futures]
    for parameter, *parts in zip(model.parameters(), *(gradient for gradient, _ in results)):
        parameter.grad = None if parts[0] is None else torch.stack(parts).mean(dim=0)
    return sum(squared for _, squared in results) / len(results)


@dataclass
class Run:
    """Everything a checkpoint holds."""

    model: AutoencoderKL
    ema: AutoencoderKL
    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    spent: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the checkpoint so that an interruption leaves the previous one whole."""
        state = {
            "model": self.model.state_dict(), "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(), "generator": self.generator.get_state(),
            "step": self.step, "spent": self.spent, "history": self.history,
        }
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.step, self.spent, self.history = state["step"], state["spent"], state["history"]

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the averaged weights towards the current ones."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)


def half_precision(model: AutoencoderKL) -> AutoencoderKL:
    """Return a copy whose weights went through float16 and back."""
    return copy.deepcopy(model).half().float().eval()


def table(model: AutoencoderKL, folder: Path, role: str) -> dict[str, tuple[float, float]]:
    """Return {picture: (PSNR of the model, PSNR of box + bicubic)} for a role."""
    result = {}
    for name, versions, _ in data.load_photos(folder, role):
        pixels = metric.centre_square(versions[0])
        result[name] = (metric.psnr(metric.reconstruct(model, pixels), pixels),
                        metric.psnr(metric.box_bicubic(pixels), pixels))
    return result


def averages(rows: dict[str, tuple[float, float]]) -> tuple[float, float]:
    """Return the two column averages of a table."""
    columns = np.array(list(rows.values()))
    return float(columns[:, 0].mean()), float(columns[:, 1].mean())


@torch.no_grad()
def training_latents(model: AutoencoderKL, folder: Path) -> torch.Tensor:
    """Return the mode of the training photographs' latents, photographs x 4 x 32 x 32."""
    latents = []
    for _, versions, _ in data.load_photos(folder, "train"):
        pixels = metric.centre_square(versions[0])
        x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1
        latents.append(model.encode(x).latent_dist.mode())
    return torch.cat(latents)


@torch.no_grad()
def centre_latents(model: AutoencoderKL, folder: Path) -> None:
    """Move each latent channel's mean to zero; the two 1 x 1 convolutions absorb it exactly."""
    mean = training_latents(model, folder).mean(dim=(0, 2, 3))
    model.quant_conv.bias[: len(mean)] -= mean
    model.post_quant_conv.bias += model.post_quant_conv.weight[:, :, 0, 0] @ mean


def export(model: AutoencoderKL, folder: Path, target: Path) -> AutoencoderKL:
    """Write config.json and float16 weights as diffusers lays them out; return that model."""
    centred = copy.deepcopy(model)
    centre_latents(centred, folder)
    half = half_precision(centred)
    half.register_to_config(scaling_factor=round(1.0 / float(training_latents(half, folder).std()), 5))
    target.mkdir(parents=True, exist_ok=True)
    half.save_config(target)
    weights = {name: tensor.half().contiguous() for name, tensor in half.state_dict().items()}
    path = target / "diffusion_pytorch_model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)
    return half


def train(run: Run, source: data.CropSource, arguments: argparse.Namespace, log: Path) -> None:
    """Run the schedule to its end."""
    budget = arguments.minutes * 60
    checkpoint: Path = arguments.run / "checkpoint.pt"
    last_saved = last_shown = run.spent
    squared_sum, squared_count = 0.0, 0
    pool = ThreadPoolExecutor(arguments.threads)
    mark = time.monotonic()
    while run.spent < budget:
        progress = run.spent / budget
        side, count = stage_at(progress)
        rate = learning_rate(progress, run.step, arguments.peak)
        for group in run.optimiser.param_groups:
            group["lr"] = rate
        x = data.augment(*source.crops(count, side), run.generator)
        squared_sum += backward(run.model, x, progress, pool, arguments.threads)
        squared_count += 1
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimiser.step()
        run.update_ema()
        run.step += 1
        run.spent, mark = run.spent + time.monotonic() - mark, time.monotonic()
        if run.spent - last_shown >= arguments.every:
            last_shown = run.spent
            half = half_precision(run.ema)
            validation = averages(table(half, arguments.data, "validate"))
            heldout = averages(table(half, arguments.data, "heldout"))
            row = {
                "minutes": run.spent / 60, "step": run.step, "side": side, "rate": rate,
                "train_psnr": 10 * math.log10(4 * squared_count / squared_sum),
                "validation": validation[0], "validation_baseline": validation[1],
                "heldout": heldout[0], "heldout_baseline": heldout[1],
            }
            squared_sum, squared_count = 0.0, 0
            run.history.append(row)
            with log.open("a") as file:
                file.write("{minutes:7.2f} min  step {step:6d}  crop {side:3d}  lr {rate:.2e}  "
                           "train {train_psnr:6.3f}  validation {validation:6.3f} ({validation_baseline:.3f})  "
                           "held-out {heldout:6.3f} ({heldout_baseline:.3f})\n".format(**row))
        if run.spent - last_saved >= arguments.save_every:
            last_saved = run.spent
            run.save(checkpoint)
    run.save(checkpoint)


def write_result(run: Run, arguments: argparse.Namespace, log: Path) -> None:
    """Export the averaged weights and append the final tables to the log."""
    half = export(run.ema, arguments.data, arguments.export)
    lines = [f"finished after {run.step} steps; scaling_factor {half.config.scaling_factor}"]
    for role in ("validate", "heldout"):
        rows = table(half, arguments.data, role)
        rows["average"] = averages(rows)
        lines.append(f"{role:10}   model  baseline    gain   (dB)")
        lines += [f"{name:10}  {ours:6.2f}    {base:6.2f}  {ours - base:+6.2f}" for name, (ours, base) in rows.items()]
    with log.open("a") as file:
        file.write("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    """Parse the command line and train, resume or export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--run", type=Path, default=HERE / "runs" / "embedded")
    parser.add_argument("--export", type=Path, default=HERE.parent / "crates" / "model" / "embedded")
    parser.add_argument("--minutes", type=float, default=65.0)
    parser.add_argument("--peak", type=float, default=1.2e-3, help="highest learning rate")
    parser.add_argument("--synthetic", type=int, default=320, help="number of synthetic pictures")
    parser.add_argument("--synthetic-share", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=2, help="workers that share each batch")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=90.0, help="seconds between evaluations")
    parser.add_argument("--save-every", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument("--start-from", type=Path, help="a checkpoint whose averaged weights start a new run")
    parser.add_argument("--export-only", action="store_true", help="export the checkpoint as it stands")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    arguments.run.mkdir(parents=True, exist_ok=True)
    log, checkpoint = arguments.run / "training-log.txt", arguments.run / "checkpoint.pt"
    model = build_model()
    if arguments.start_from and not checkpoint.exists():
        model.load_state_dict(torch.load(arguments.start_from, weights_only=True)["ema"])
    run = Run(
        model=model, ema=copy.deepcopy(model).eval().requires_grad_(False),
        optimiser=torch.optim.AdamW(model.parameters(), lr=arguments.peak, betas=(0.9, 0.99), weight_decay=1e-3),
        generator=torch.Generator().manual_seed(arguments.seed),
    )
    if checkpoint.exists():
        run.load(checkpoint)
    if arguments.export_only:
        print("scaling_factor", export(run.ema, arguments.data, arguments.export).config.scaling_factor)
        return
    if not log.exists():
        parameters = sum(p.numel() for p in model.parameters())
        settings = {
            "widths": WIDTHS, "groups": GROUPS, "layers_per_block": 1, "parameters": parameters, "stages": STAGES,
            "minutes": arguments.minutes, "peak_rate": arguments.peak, "ema_decay": EMA_DECAY, "kl_weight": KL_WEIGHT,
            "synthetic_pictures": arguments.synthetic, "synthetic_share": arguments.synthetic_share,
            "threads": arguments.threads, "seed": arguments.seed, "torch": torch.__version__,
        }
        log.write_text(json.dumps(settings) + "\nPSNR in dB; averaged weights through float16; "
                       "in brackets: 8x box-down + bicubic-up\n")
    elif run.step:
        with log.open("a") as file:
            file.write(f"resumed at step {run.step}\n")
    source = data.CropSource(arguments.data, arguments.synthetic, arguments.synthetic_share,
                             arguments.seed + run.step)
    train(run, source, arguments, log)
    write_result(run, arguments, log)


if __name__ == "__main__":
    main()
