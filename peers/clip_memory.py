#!/usr/bin/env python3
"""Peak memory of a server that streams clips of several lengths: whether it grows with the clip. Prints a Markdown table.

usage: clip_memory.py [--model DIR] [--size 16,16] [--frames 5,16] [--precision exact]

Every row is a fresh server (`serve` of the built program, or REMOTE_VAE_BINARY) that answers one request for an MP4, read as it
comes and dropped; then its VmHWM is read from /proc. `--frames` and `--size` are of the latents. The model in DIR is served, or an
AutoencoderKLWan of full size with random weights, for which torch and diffusers are needed.
"""

import argparse
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from compare import BINARY


def make_model(folder):
    import torch
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    AutoencoderKLWan().half().save_pretrained(folder)


def wait_until_ready(address):
    """While the model is loaded the server answers 503."""
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/readyz", timeout=60).close()
            return
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def measure(model, shape, precision):
    """Bytes of the answer, seconds to its end, and MiB of the server's largest resident set."""
    command = [BINARY, "serve", "--model", model, "--port", "0", "--precision", precision]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = server.stdout.readline().removeprefix("listening on ").strip()
        wait_until_ready(address)
        query = "&".join(f"shape={side}" for side in shape) + "&dtype=float32&output_type=mp4"
        values = ((index * 7919 % 2001) / 1000 - 1 for index in range(shape[1] * shape[2] * shape[3] * shape[4]))
        body = b"".join(struct.pack("<f", value) for value in values)
        request = urllib.request.Request(f"{address}/?{query}", data=body, headers={"Content-Type": "tensor/binary"})
        start, length = time.perf_counter(), 0
        with urllib.request.urlopen(request, timeout=3600) as answer:
            while piece := answer.read(65536):
                length += len(piece)
        seconds = time.perf_counter() - start
        with open(f"/proc/{server.pid}/status") as status:
            peak = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))
        return length, seconds, peak
    finally:
        server.terminate()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--channels", type=int, default=16, help="of the latents")
    parser.add_argument("--size", default="16,16")
    parser.add_argument("--frames", default="5,16")
    parser.add_argument("--precision", default="exact")
    arguments = parser.parse_args()
    height, width = (int(side) for side in arguments.size.split(","))
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or folder
        if model == folder:
            make_model(folder)
        print("| frames | latents | s | answer KiB | peak RSS MiB | of the first |")
        print("|---|---|---|---|---|---|")
        first = None
        for frames in (int(count) for count in arguments.frames.split(",")):
            shape = (1, arguments.channels, frames, height, width)
            length, seconds, peak = measure(model, shape, arguments.precision)
            first = first or peak
            row = [4 * (frames - 1) + 1, list(shape), f"{seconds:.1f}", length // 1024, f"{peak:.0f}", f"{peak / first:.3f}"]
            print("|", " | ".join(str(cell) for cell in row), "|", flush=True)


if __name__ == "__main__":
    main()
