#!/usr/bin/env python3
"""Memory planned and measured: a fresh process for each row. Prints a Markdown table.

usage: memory.py [--model DIR] [--rows small|pictures|large|clips|all] [--frames-model DIR] [--here]

Each row is `bench --runs 0` of the built program (or REMOTE_VAE_BINARY): one run, in which weights are read. Planned is what the
program says it will hold at its peak, measured is the process's VmHWM, and bytes are the same as those of the first row of the
same work. The model is an AutoencoderKL of SD 1.5 with random weights, and for clips an AutoencoderKLHunyuanVideo, both of full size
and in f16, made with torch and diffusers of compare.py's environment (--here: of this Python), or what --model and --frames-model name.

On two processors `small` takes about half a minute, `pictures` 3 minutes, `large` 40 and `clips` 2.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

from compare import BINARY, environment, make_model

DECODE, ENCODE = ["--op", "decode"], ["--op", "encode"]
EXACT, FAST = ["--precision", "exact"], ["--precision", "fast"]
TILED = ["--tiling", "on"]
# What is run, and within which budgets.
ROWS = {
    "small": [
        (size, [*op, *precision], [])
        for size in ("64x64", "128x256", "256x256")
        for op in (DECODE, ENCODE)
        for precision in (EXACT, FAST)
    ],
    "pictures": [
        ("512x512", [*DECODE, *EXACT], ["240MiB"]),
        ("512x512", [*DECODE, *FAST], ["200MiB"]),
        ("640x640", [*ENCODE, *EXACT], []),
        ("1024x1024", [*DECODE, *EXACT], ["1200MiB", "600MiB"]),
        ("1024x1024", [*DECODE, *FAST], ["640MiB", "320MiB"]),
        ("1024x1024", [*ENCODE, *FAST], ["400MiB"]),
    ],
    "large": [
        ("2048x2048", [*DECODE, *FAST], ["2GiB", "1GiB"]),
        ("2048x2048", [*DECODE, *EXACT], ["4GiB", "2GiB"]),
        ("512x8192", [*DECODE, *FAST], ["2GiB"]),
        ("4096x4096", [*DECODE, *FAST], ["11GiB", "7GiB"]),
    ],
    "clips": [
        ("512x320", [*DECODE, *FAST, *TILED, "--frames", "9"], ["1536MiB"]),
    ],
}
# Without a budget it would want more than most machines have.
NEVER_WITHOUT = {"4096x4096"}


def make_clip_model(folder):
    import torch
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(0)
    AutoencoderKLHunyuanVideo().half().save_pretrained(folder)


def measure(model, size, flags, budget):
    command = [BINARY, "bench", "--json", "--runs", "0", "--model", model, "--size", size, *flags]
    command += ["--memory-budget", budget] if budget else []
    variables = {name: value for name, value in os.environ.items() if name != "REMOTE_VAE_MEMORY_BUDGET"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"{' '.join(command)}: {done.stderr.strip()}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def work(size, flags):
    values = [flag for flag in flags if not flag.startswith("--")]
    frames = f" {values.pop()} frames in tiles" if "--frames" in flags else ""
    return f"{values[0]} {size}{frames}{' `fast`' if 'fast' in values else ''}"


def print_rows(name, model, rows):
    for size, flags, budgets in rows:
        first = None
        for budget in ([] if size in NEVER_WITHOUT else [None]) + budgets:
            found = measure(model, size, flags, budget)
            if found is None:
                print(f"| {name} | {work(size, flags)} | {budget or 'none'} | refused | | | | | |", flush=True)
                continue
            first = first or found
            planned, measured, seconds = (found[key] for key in ("planned_peak_mib", "peak_rss_mib", "median_s"))
            figures = f"{planned:.0f} | {measured:.0f} | {100 * (planned / measured - 1):+.1f} %"
            of_first, same = f"{seconds:.2f} | {seconds / first['median_s']:.2f}", "the same"
            if found is first:
                of_first, same = f"{seconds:.2f} | ", ""
            elif found["result_sha256"] != first["result_sha256"]:
                same = "others"
            print(f"| {name} | {work(size, flags)} | {budget or 'none'} | {figures} | {of_first} | {same} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="an AutoencoderKL instead of the one that is made")
    parser.add_argument("--frames-model", help="a model of clips instead of the one that is made")
    parser.add_argument("--rows", default="small,pictures", help="small, pictures, large, clips, separated by commas, or all")
    parser.add_argument("--here", action="store_true", help="use the packages of this Python; install nothing")
    options = parser.parse_args()
    chosen = list(ROWS) if options.rows == "all" else options.rows.split(",")
    if unknown := set(chosen) - set(ROWS):
        parser.error(f"--rows: there is no {' or '.join(sorted(unknown))}")
    makes = (options.model is None and chosen != ["clips"]) or (options.frames_model is None and "clips" in chosen)
    if makes and not options.here:
        python = environment()
        os.execv(python, [python, __file__, "--here", *sys.argv[1:]])
    print("| model | work | budget | planned MiB | measured MiB | planned is | s | of the first | bytes |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for rows in chosen:
            if rows == "small":
                print_rows("embedded", "embedded", ROWS[rows])
            name, given, make = (
                ("HunyuanVideo", options.frames_model, make_clip_model)
                if rows == "clips"
                else ("SD 1.5", options.model, make_model)
            )
            if given is None and name not in made:
                made[name] = os.path.join(folder, name)
                make(made[name])
            print_rows(name, given or made[name], ROWS[rows])


if __name__ == "__main__":
    main()
