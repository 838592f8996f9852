#!/usr/bin/env python3
"""diffusers' enable_tiling() beside remote-vae within a memory budget: time and peak memory of one decode. Prints a Markdown table.

usage: tiling.py [--size 1024] [--exact-budget 1200MiB] [--fast-budget 640MiB] [--here]

An AutoencoderKL of SD 1.5 with random weights, batch 1, all processors. Each row is a fresh process that decodes once (torch: after a
decode of one latent, so that nothing is set up in the time that counts); peak memory is its VmHWM. --here takes torch and diffusers
of this Python, otherwise they are installed into the environment of compare.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from compare import BINARY, environment, make_model, peak_rss_mib


def decode_in_tiles(folder, size):
    """The body of the child process."""
    import torch
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    model.enable_tiling()
    with torch.no_grad():
        model.decode(torch.randn(1, 4, 1, 1))
        latents = torch.randn(1, 4, size // 8, size // 8)
        begin = time.perf_counter()
        model.decode(latents)
        seconds = time.perf_counter() - begin
    print(json.dumps({"median_s": seconds, "peak_rss_mib": peak_rss_mib()}))


def measure(command):
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    return report["median_s"], report["peak_rss_mib"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--exact-budget", default="1200MiB")
    parser.add_argument("--fast-budget", default="640MiB")
    parser.add_argument("--here", action="store_true", help="use the packages of this Python; install nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        decode_in_tiles(options.child, options.size)
        return
    if not options.here:
        python = environment()
        os.execv(python, [python, __file__, "--here", *sys.argv[1:]])
    print("| system | budget | s | of its time | peak RSS MiB | of its memory |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder)
        size = f"{options.size}x{options.size}"
        theirs = measure([sys.executable, __file__, "--child", folder, "--size", str(options.size)])
        print(f"| diffusers, enable_tiling(), f32 | | {theirs[0]:.1f} | 1 | {theirs[1]:.0f} | 1 |", flush=True)
        for precision, budget in (("exact", options.exact_budget), ("fast", options.fast_budget)):
            command = [BINARY, "bench", "--json", "--model", folder, "--size", size, "--runs", "1"]
            ours = measure([*command, "--precision", precision, "--memory-budget", budget])
            shares = [mine / other for mine, other in zip(ours, theirs)]
            figures = f"{ours[0]:.1f} | {shares[0]:.3f} | {ours[1]:.0f} | {shares[1]:.3f}"
            print(f"| remote-vae {precision} | {budget} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
