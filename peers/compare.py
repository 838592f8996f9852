#!/usr/bin/env python3
"""Times other systems beside remote-vae in one run, and prints a table with ratios.

    compare.py [--op decode|encode] [--sizes 256,512] [--runs 3] [--rounds 2] [--peers torch-f32,torch-bf16,openvino-f32,openvino-bf16]

Needs torch, diffusers and safetensors (and openvino for its two rows), and the built program (`cargo build --release`,
or REMOTE_VAE_BINARY). Every peer runs the AutoencoderKL of SD 1.5 with random weights from a fixed seed, batch 1, all
processors; times do not depend on the values. Each row is a fresh process that times `--runs` runs after one that is not
counted; rows take turns for `--rounds` rounds, so that a change in the machine's speed meets all of them. Peak memory is
the process's VmHWM.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = dict(
    in_channels=3, out_channels=3, latent_channels=4, sample_size=512, layers_per_block=2, norm_num_groups=32,
    block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=0.18215,
)  # fmt: skip
BINARY = os.environ.get("REMOTE_VAE_BINARY", str(Path(__file__).resolve().parent.parent / "target/release/remote-vae"))
OURS = "remote-vae exact"


def peak_rss_mib():
    """The largest resident set of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def make_model(folder):
    """Writes the checkpoint that every row runs, in f16."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(**CONFIG).half().save_pretrained(folder)


def function_of(peer, folder, op, size):
    """A callable that runs one decode or encode of a `size` x `size` picture."""
    import torch
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
    shape = (1, 4, size // 8, size // 8) if op == "decode" else (1, 3, size, size)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(13))
    whole = (lambda x: model.decode(x).sample) if op == "decode" else (lambda x: model.encode(x).latent_dist.mode())
    if peer.startswith("torch"):
        dtype = torch.bfloat16 if peer.endswith("bf16") else torch.float32
        model.to(dtype=dtype, memory_format=torch.channels_last)
        values = values.to(dtype)
        return lambda: whole(values)
    import openvino

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return whole(x)

    model.requires_grad_(False)
    converted = openvino.convert_model(Wrapped().eval(), example_input=values, input=[list(shape)])
    hint = "bf16" if peer.endswith("bf16") else "f32"
    compiled = openvino.Core().compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    )
    del model
    array = values.numpy()
    return lambda: compiled([array])


def time_peer(peer, folder, op, size, runs):
    """The body of the child process: prints seconds of each run and the peak memory as JSON."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    seconds = []
    # OpenVINO traces the model, which inference mode does not allow.
    with torch.no_grad() if peer.startswith("openvino") else torch.inference_mode():
        run = function_of(peer, folder, op, size)
        run()
        for _ in range(runs):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds, "peak_rss_mib": peak_rss_mib()}))


def measure(peer, folder, op, size, runs):
    """Seconds of each run and the peak memory in MiB, from a fresh process."""
    if peer == OURS:
        command = [BINARY, "bench", "--json", "--model", folder, "--op", op, "--size", f"{size}x{size}"]
        report = json.loads(subprocess.check_output([*command, "--runs", str(runs)]))
        return [report["min_s"], report["median_s"], report["max_s"]], report["peak_rss_mib"]
    command = [sys.executable, __file__, "--child", peer, "--model", folder, "--op", op, "--sizes", str(size)]
    report = json.loads(subprocess.check_output([*command, "--runs", str(runs)], stderr=subprocess.DEVNULL))
    return report["seconds"], report["peak_rss_mib"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=["decode", "encode"], default="decode")
    parser.add_argument("--sizes", default="256,512")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", default="torch-f32,torch-bf16")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        time_peer(options.child, options.model, options.op, int(options.sizes), options.runs)
        return
    rows = [OURS, *options.peers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder)
        print("| picture | system | median s | min s | max s | peak RSS MiB | ours takes |\n|---|---|---|---|---|---|---|")
        for size in map(int, options.sizes.split(",")):
            results = {row: ([], []) for row in rows}
            for _ in range(options.rounds):
                for row in rows:
                    seconds, peak = measure(row, folder, options.op, size, options.runs)
                    results[row][0].extend(seconds)
                    results[row][1].append(peak)
            ours = statistics.median(results[OURS][0])
            for row, (seconds, peaks) in results.items():
                median = statistics.median(seconds)
                figures = f"{median:.2f} | {min(seconds):.2f} | {max(seconds):.2f} | {max(peaks):.0f}"
                print(f"| {size}x{size} {options.op} | {row} | {figures} | {ours / median:.2f} of it |", flush=True)


if __name__ == "__main__":
    main()
