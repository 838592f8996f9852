#!/usr/bin/env python3
"""Times other systems beside remote-vae on this machine, in one run, and prints a Markdown table with ratios.

usage: compare.py [--op decode|encode] [--sizes 256,512] [--class kl|tiny] [--runs 3] [--rounds 2] [--peers torch-f32,…]
       compare.py --tables [--sizes 512,1024]     time and memory by size, plain and tiled, for SD 1.5 and SDXL

Peers: torch-f32, torch-bf16, torch-f32-tiled, torch-bf16-tiled, openvino-f32, openvino-bf16, onnxruntime-f32, candle-f32.
What they need is installed into an environment of this script's own (below ${XDG_CACHE_HOME:-~/.cache}/remote-vae), unless
--here says that this Python has it; candle is built from peers/candle. The program must be built (`cargo build --release`, or
REMOTE_VAE_BINARY). Every row runs an AutoencoderKL with random weights from a fixed seed, batch 1, all processors; times do
not depend on the values. Each row is a fresh process that times `--runs` runs after one that is not counted; rows take turns
for `--rounds` rounds, so that a change in the machine's speed meets all of them. Peak memory is the process's VmHWM.

--max-isa sets ONEDNN_MAX_CPU_ISA for the peers, e.g. AVX512_CORE_BF16 to leave out AMX. torch heeds it; OpenVINO carries a
oneDNN of its own that may not, and ONNX Runtime and candle do not use oneDNN. Tiled rows are diffusers' enable_tiling(), which changes the picture.
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
SCALING = {"sd15": 0.18215, "sdxl": 0.13025}
PACKAGES = ["torch", "diffusers", "safetensors", "transformers", "openvino", "onnx", "onnxscript", "onnxruntime"]
CANDLE = Path(__file__).resolve().parent / "candle"
BINARY = os.environ.get("REMOTE_VAE_BINARY", str(Path(__file__).resolve().parent.parent / "target/release/remote-vae"))
OURS = "remote-vae"


def peak_rss_mib():
    """The largest resident set of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def make_model(folder, kind="sd15"):
    """Writes the checkpoint that every row runs, in f16."""
    import torch
    from diffusers import AutoencoderKL, AutoencoderTiny

    torch.manual_seed(0)
    if kind == "tiny":
        AutoencoderTiny().half().save_pretrained(folder)
        return
    AutoencoderKL(**CONFIG | {"scaling_factor": SCALING[kind]}).half().save_pretrained(folder)


def shape_of(op, size):
    """The input of one decode or encode of a `size` x `size` picture."""
    return (1, 4, size // 8, size // 8) if op == "decode" else (1, 3, size, size)


def module_of(folder, op):
    """The model and its decoder or encoder as a function of one tensor, in f32."""
    import torch
    import diffusers

    config = json.loads((Path(folder) / "config.json").read_text())
    model = getattr(diffusers, config["_class_name"]).from_pretrained(folder, torch_dtype=torch.float32).eval()

    def encode(x):
        encoded = model.encode(x)
        return encoded.latents if "Tiny" in config["_class_name"] else encoded.latent_dist.mode()

    return model, (lambda x: model.decode(x).sample) if op == "decode" else encode


def torch_function(peer, folder, op, size):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model, whole = module_of(folder, op)
    dtype = torch.bfloat16 if "bf16" in peer else torch.float32
    if peer.endswith("tiled"):
        model.enable_tiling()
    model.to(dtype=dtype, memory_format=torch.channels_last)
    values = torch.randn(shape_of(op, size), generator=torch.Generator().manual_seed(13)).to(dtype)

    def run():
        with torch.inference_mode():
            whole(values)

    return run


def export(file, folder, op, size):
    """Writes the model as ONNX, for the two peers that read that; in a process of its own, so that their memory has no torch
    in it."""
    import torch

    model, whole = module_of(folder, op)
    model.requires_grad_(False)

    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return whole(x)

    values = torch.zeros(shape_of(op, size))
    torch.onnx.export(Wrapped().eval(), (values,), file, input_names=["x"], dynamo=True, external_data=True, verbose=False)


def openvino_function(peer, file, values):
    import openvino

    hint = "bf16" if peer.endswith("bf16") else "f32"
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    compiled = openvino.Core().compile_model(file, "CPU", settings)
    return lambda: compiled([values])


def onnx_function(file, values):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": values})


def function_of(peer, folder, op, size):
    """A callable that runs one decode or encode of a `size` x `size` picture."""
    if peer.startswith("torch"):
        return torch_function(peer, folder, op, size)
    import numpy

    values = numpy.random.default_rng(13).standard_normal(shape_of(op, size), dtype=numpy.float32)
    file = onnx_file(folder, op, size)
    return openvino_function(peer, file, values) if peer.startswith("openvino") else onnx_function(file, values)


def onnx_file(folder, op, size):
    return str(Path(folder) / f"{op}-{size}.onnx")


def time_peer(peer, folder, op, size, runs):
    """The body of the child process: prints seconds of each run and the peak memory as JSON."""
    if peer == "export":
        export(onnx_file(folder, op, size), folder, op, size)
        return
    seconds = []
    run = function_of(peer, folder, op, size)
    run()
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds, "peak_rss_mib": peak_rss_mib()}))


def environment():
    """The Python that has the peers, installed on first use."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "remote-vae" / "peers"
    python = folder / "bin" / "python"
    stamp = folder / "complete"
    if not stamp.exists() or stamp.read_text() != " ".join(PACKAGES):
        subprocess.check_call([sys.executable, "-m", "venv", "--clear", folder])
        subprocess.check_call([python, "-m", "pip", "install", "--quiet", *PACKAGES])
        stamp.write_text(" ".join(PACKAGES))
    return str(python)


def measure(peer, folder, op, size, options):
    """Seconds of each run and the peak memory in MiB, from a fresh process; `None` where the peer fails."""
    runs = str(options.runs)
    variables = dict(os.environ)
    if options.max_isa and not peer.startswith(OURS):
        variables["ONEDNN_MAX_CPU_ISA"] = options.max_isa
    if peer.startswith(OURS):
        command = [BINARY, "bench", "--json", "--model", folder, "--op", op, "--size", f"{size}x{size}"]
        command += ["--precision", peer.removeprefix(OURS).strip(), "--runs", runs]
        command += ["--isa", options.isa] if options.isa else []
    elif peer == "candle-f32":
        command = [str(CANDLE / "target/release/remote-vae-peer-candle"), folder, op, str(size), runs]
    else:
        arguments = ["--model", folder, "--op", op, "--sizes", str(size), "--runs", runs]
        if peer.startswith(("openvino", "onnx")) and not Path(onnx_file(folder, op, size)).exists():
            subprocess.run([sys.executable, __file__, "--child", "export", *arguments], capture_output=True)
        command = [sys.executable, __file__, "--child", peer, *arguments]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        print(f"{peer}, {size}x{size}: {lines[-1]}", file=sys.stderr)
        return None
    report = json.loads(done.stdout.splitlines()[-1])
    if peer.startswith(OURS):
        return [report["min_s"], report["median_s"], report["max_s"]], report["peak_rss_mib"]
    return report["seconds"], report["peak_rss_mib"]


def results_of(rows, folder, op, size, options):
    """For each row that ran: the seconds of all runs and the largest peak."""
    results = {}
    for _ in range(options.rounds):
        for row in rows:
            if measured := measure(row, folder, op, size, options):
                seconds, peaks = results.setdefault(row, ([], []))
                seconds.extend(measured[0])
                peaks.append(measured[1])
    return {row: (seconds, max(peaks)) for row, (seconds, peaks) in results.items()}


def ours_of(options):
    """Our rows, one for each precision."""
    return [f"{OURS} {precision}" for precision in options.precision.split(",")]


def compare(options):
    """One table: every system at every size."""
    ours = ours_of(options)
    heads = ["picture", "system", "median s", "min s", "max s", "peak RSS MiB", *(f"{row} takes" for row in ours)]
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    rows = [*ours, *options.peers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, "tiny" if options.model_class == "tiny" else "sd15")
        for size in map(int, options.sizes.split(",")):
            results = results_of(rows, folder, options.op, size, options)
            medians = {row: statistics.median(seconds) for row, (seconds, _) in results.items()}
            for row in rows:
                if row not in results:
                    figures = ["failed", *[""] * (len(heads) - 3)]
                else:
                    seconds, peak = results[row]
                    figures = [f"{value:.2f}" for value in (medians[row], min(seconds), max(seconds))] + [f"{peak:.0f}"]
                    nothing = float("nan")
                    figures += ["" if row in ours else f"{medians.get(our, nothing) / medians[row]:.2f} of it" for our in ours]
                print(f"| {size}x{size} {options.op} | {row} | {' | '.join(figures)} |", flush=True)


def tables(options):
    """Resolution, time, memory, tiled time, tiled memory: one table for each model."""
    for kind in SCALING:
        print(f"\n{kind}, {options.op}\n")
        print("| picture | system | time s | memory MiB | tiled time s | tiled memory MiB |\n|---|---|---|---|---|---|")
        with tempfile.TemporaryDirectory() as folder:
            make_model(folder, kind)
            for size in map(int, options.sizes.split(",")):
                rows = [*ours_of(options), "torch-f32", "torch-f32-tiled", "torch-bf16", "torch-bf16-tiled"]
                results = results_of(rows, folder, options.op, size, options)

                def figures(row):
                    if row not in results:
                        return "- | -"
                    seconds, peak = results[row]
                    return f"{statistics.median(seconds):.2f} | {peak:.0f}"

                for row in [row for row in rows if not row.endswith("tiled")]:
                    print(f"| {size}x{size} | {row} | {figures(row)} | {figures(row + '-tiled')} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", choices=["decode", "encode"], default="decode")
    parser.add_argument("--sizes", default="256,512")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", default="torch-f32,torch-bf16,openvino-f32,openvino-bf16,onnxruntime-f32,candle-f32")
    parser.add_argument("--precision", default="exact,fast", help="of remote-vae, a row for each")
    parser.add_argument("--isa", help="instruction tier of remote-vae, e.g. avx512vnni to leave out AMX there too")
    parser.add_argument("--class", dest="model_class", choices=["kl", "tiny"], default="kl")
    parser.add_argument("--max-isa", help="ONEDNN_MAX_CPU_ISA of the peers, e.g. AVX512_CORE_BF16")
    parser.add_argument("--tables", action="store_true", help="plain and tiled, for SD 1.5 and SDXL")
    parser.add_argument("--here", action="store_true", help="use the packages of this Python; install nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        time_peer(options.child, options.model, options.op, int(options.sizes), options.runs)
        return
    if not options.here:
        # The arguments again, in the Python that has the packages.
        python = environment()
        os.execv(python, [python, __file__, "--here", *sys.argv[1:]])
    if "candle-f32" in options.peers.split(",") and not options.tables:
        flags = {**os.environ, "RUSTFLAGS": "-C target-cpu=native"}
        subprocess.check_call(["cargo", "build", "--release", "--quiet", "--target-dir", "target"], cwd=CANDLE, env=flags)
    if options.max_isa:
        print(f"Peers with ONEDNN_MAX_CPU_ISA={options.max_isa}\n")
    (tables if options.tables else compare)(options)


if __name__ == "__main__":
    main()
