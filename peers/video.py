#!/usr/bin/env python3
"""Times PyTorch beside remote-vae on one clip, in one run, and prints a Markdown table with ratios.

usage: video.py [--model DIR | --class AutoencoderKLWan] [--latents 3,20,32] [--rows exact,fast,torch-f32,torch-bf16] [--runs 1]

The clip is decoded by the model in DIR (diffusers' folder), or by one of diffusers' class (AutoencoderKLHunyuanVideo if none is named)
of full size with random weights from a fixed seed; times do not depend on the values. `--latents` are frames, height and width of the latents. Needs torch, diffusers and safetensors in this
Python, and the built program (`cargo build --release`, or REMOTE_VAE_BINARY). Every row is a fresh process with all processors
that times `--runs` runs after one that is not counted. Peak memory is the process's VmHWM.

ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 in the environment leaves out AMX, which bf16 needs to be fast.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from compare import BINARY, peak_rss_mib


def make_model(folder, name):
    import diffusers
    import torch

    torch.manual_seed(0)
    getattr(diffusers, name)().half().save_pretrained(folder)


def measure_torch(row, folder, latents, runs):
    import diffusers
    import torch

    config = json.loads((Path(folder) / "config.json").read_text())
    dtype = torch.bfloat16 if row == "torch-bf16" else torch.float32
    model = getattr(diffusers, config["_class_name"]).from_pretrained(folder, torch_dtype=dtype).eval()
    channels = config.get("latent_channels") or config["z_dim"]
    clip = torch.randn((1, channels, *latents), generator=torch.Generator().manual_seed(1)).to(dtype)
    seconds = []
    with torch.no_grad():
        for run in range(runs + 1):
            start = time.perf_counter()
            model.decode(clip)
            seconds.append(time.perf_counter() - start)
            print(f"{row} run {run}: {seconds[-1]:.2f} s", file=sys.stderr)
    return {"seconds": seconds[1:], "mib": peak_rss_mib()}


def measure_ours(row, folder, latents, runs):
    frames, height, width = latents
    command = [BINARY, "bench", "--model", folder, "--precision", row, "--frames", str(4 * (frames - 1) + 1)]
    command += ["--size", f"{8 * width}x{8 * height}", "--runs", str(runs), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"seconds": [report["median_s"]], "mib": report["peak_rss_mib"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--class", dest="name", default="AutoencoderKLHunyuanVideo")
    parser.add_argument("--latents", default="3,20,32")
    parser.add_argument("--rows", default="exact,fast,torch-f32,torch-bf16")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    latents = [int(side) for side in arguments.latents.split(",")]
    if arguments.measure:
        print(json.dumps(measure_torch(arguments.measure, arguments.model, latents, arguments.runs)))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or folder
        if model == folder:
            make_model(folder, arguments.name)
        found = {}
        for row in arguments.rows.split(","):
            if row.startswith("torch"):
                command = [sys.executable, __file__, "--measure", row, "--model", model]
                command += ["--latents", arguments.latents, "--runs", str(arguments.runs)]
                found[row] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            else:
                found[row] = measure_ours(row, model, latents, arguments.runs)
    print(f"{arguments.model or arguments.name}, decode, latents of {arguments.latents} (frames, height, width)\n")
    peers = [row for row in found if row.startswith("torch")]
    print("| system | median s | peak RSS MiB |", *(f"of {peer} |" for peer in peers))
    print("|---" * (3 + len(peers)) + "|")
    for row, result in found.items():
        median = statistics.median(result["seconds"])
        ratios = [f"{median / statistics.median(found[peer]['seconds']):.2f}" for peer in peers]
        name = row if row.startswith("torch") else f"remote-vae {row}"
        print(f"| {name} | {median:.2f} | {result['mib']:.0f} |", *(f"{ratio} |" for ratio in ratios))


if __name__ == "__main__":
    main()
