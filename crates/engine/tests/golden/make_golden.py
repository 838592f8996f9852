#!/usr/bin/env python3
"""Makes the golden files of this folder: small random autoencoders and what diffusers computes with them.

    make_golden.py            writes every case beside this script
    make_golden.py --check    makes them anew in a temporary folder and compares with what is there:
                              weights and inputs bit for bit, results to 2e-5 (convolutions of another CPU round differently)

Needs torch, diffusers and safetensors (pinned in tests/clients/requirements.txt). No model is downloaded.

`golden.json` lists the cases. Each entry names `source` (the folder or file that holds the model), `operations` (what it
can do), `family`, `latent_channels`, `spatial_factor`, `client` (below) and `expected`, a file of f32 tensors:

    decode.<n>.latents         [batch, channels, height, width]   in the model's own space, scaling already undone
    decode.<n>.pixels          [batch, 3, f*height, f*width]      vae.decode(latents).sample, not clamped
    encode.<n>.pixels          [batch, 3, height, width]          in [-1, 1]
    encode.<n>.moments         [batch, 2*channels, ...]           AutoencoderKL*: mean and log variance before the clamp
    encode.<n>.sample          [batch, channels, ...]             AutoencoderKL: drawn with a generator seeded with 13
    encode.<n>.latents         [batch, channels, ...]             AutoencoderTiny, AutoencoderDC
    client.<n>.latents         4-D (FLUX.2: also [batch, 4*channels, h/2, w/2]), or packed [batch, tokens, 4*channels]   as a client sends them
    client.<n>.pixels          [batch, 3, ...]                    after scaling by hand as the pipelines do
    client_encode.<n>.pixels   [batch, 3, height, width]
    client_encode.<n>.latents  [batch, channels, ...]             the mode, scaled as the pipelines do

`client` maps `client.<n>` and `client_encode.<n>` to a list of parameter sets; each set gives the same result.

Every input is a bfloat16 number and a normal float16 number, so it survives either dtype on the wire unchanged.
Weights are rounded to the dtype of the file; the reference then computes in f32 from the rounded weights.

The rooms: `inputs.py` (inputs and random weights), `networks.py` (the models), `forms.py` (names in other files),
`record.py` (what is written), `tiled.py` (`tiled.json` and `tiled.cases.safetensors`), and here the cases and the comparison.

Names in `taef2/taef2.safetensors` are those of the published file for FLUX.2: `{encoder,decoder}.layers.<n>` as in
AutoencoderTiny, and in blocks that pool also `.pool.0.weight` (1x1 convolution, width -> 4*width), `.pool.1.{weight,bias}`
(GroupNorm of 4 groups, epsilon 1e-5) and `.pool.3.weight` (1x1 convolution back).
"""

import argparse
import filecmp
import sys
import tempfile
from pathlib import Path

import torch
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

from forms import bare_tiny, bfl_flux_two, ldm_checkpoint, old_attention_names
from inputs import pack, patchify, unpatchify
from networks import build_dc, build_flux_two, build_flux_two_tiny, build_kl, build_tiny
from record import Golden, Recorder, scalar_rows
from tiled import tiled_cases

HERE = Path(__file__).resolve().parent
PLAYGROUND_MEAN = [-1.6574, 1.886, -1.383, 2.5155]
PLAYGROUND_STD = [8.4927, 5.9022, 6.5498, 5.2299]


def kl_cases(golden):
    model = build_kl(1, scaling_factor=0.18215)
    record = Recorder(model, 4, 1)
    record.decode(1, 5, 7)
    record.decode(2, 8, 8)
    record.decode(1, 1, 1)
    record.decode(1, 11, 13)
    record.encode(1, 40, 56)
    record.encode(2, 32, 24)
    record.encode(1, 8, 8)
    scalar_rows(record, 0.18215)
    golden.diffusers_case("sd15", model, record)

    model = build_kl(2, torch.bfloat16, scaling_factor=0.13025, block_out_channels=(8, 8, 16, 16))
    record = Recorder(model, 4, 2)
    record.decode(3, 3, 9)
    record.encode(1, 56, 72)
    scalar_rows(record, 0.13025)
    packed = {"height": 32, "width": 48}
    record.decode_client(
        lambda z: z / 0.13025, [{"scaling_factor": 0.13025} | packed], shape=(1, 4, 6), scale=0.13, form=pack
    )
    golden.diffusers_case("sdxl-bf16", model, record, torch.bfloat16)

    model = build_kl(
        3, scaling_factor=0.3611, shift_factor=0.1159, latent_channels=16, use_quant_conv=False,
        use_post_quant_conv=False, block_out_channels=(8, 8, 16, 16),
    )
    record = Recorder(model, 16, 3)
    record.decode(1, 5, 7)
    record.decode(2, 3, 5)
    record.encode(1, 40, 56)
    scalar_rows(record, 0.3611, 0.1159)
    undo = lambda z: z / 0.3611 + 0.1159
    flux = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
    # Sides that 16 does not divide lose their rest; the client may name the image it wants.
    record.decode_client(
        undo, [size | row for row in (flux, {"do_scaling": True})
               for size in ({"height": 32, "width": 48}, {"height": 40, "width": 63})],
        shape=(2, 4, 6), scale=0.36, form=pack,
    )
    # Height and width mean nothing beside latents that are not packed.
    record.decode_client(undo, [flux | {"height": 1024, "width": 8}], scale=0.36)
    golden.diffusers_case("flux", model, record)

    model = build_kl(
        4, scaling_factor=1.5305, shift_factor=0.0609, latent_channels=16, use_quant_conv=False,
        use_post_quant_conv=False, block_out_channels=(8, 8, 8, 16),
    )
    record = Recorder(model, 16, 4)
    record.decode(2, 3, 9)
    record.encode(2, 24, 72)
    scalar_rows(record, 1.5305, 0.0609)
    golden.diffusers_case("sd3", model, record)

    model = build_kl(
        5, scaling_factor=0.5, latents_mean=PLAYGROUND_MEAN, latents_std=PLAYGROUND_STD, block_out_channels=(8, 8, 8, 16)
    )
    mean = torch.tensor(PLAYGROUND_MEAN).view(1, 4, 1, 1)
    deviation = torch.tensor(PLAYGROUND_STD).view(1, 4, 1, 1)
    record = Recorder(model, 4, 5)
    record.decode(1, 8, 8)
    record.encode(1, 40, 56)
    record.decode_client(lambda z: z * deviation / 0.5 + mean, [{"do_scaling": True}], shape=(2, 3, 4), scale=0.1)
    record.decode_client(lambda z: z, [{}, {"do_scaling": False}])
    record.encode_client(lambda z: (z - mean) * 0.5 / deviation, [{"do_scaling": True}])
    record.encode_client(lambda z: z, [{}])
    golden.diffusers_case("playground", model, record)

    model = build_kl(
        6, scaling_factor=0.18215, layers_per_block=1, block_out_channels=(8, 16, 24), mid_block_add_attention=False
    )
    record = Recorder(model, 4, 6)
    record.decode(1, 23, 29)
    record.decode(2, 5, 7)
    record.encode(1, 20, 28)
    record.encode(1, 52, 68)
    golden.diffusers_case("no-attention", model, record, spatial_factor=4)

    model = build_kl(7, torch.float32, layers_per_block=1, block_out_channels=(12, 20, 12))
    record = Recorder(model, 4, 7)
    record.decode(1, 37, 50)
    record.decode(1, 13, 3)
    record.encode(2, 20, 44)
    golden.diffusers_case("odd-widths-f32", model, record, torch.float32, spatial_factor=4)

    model = build_kl(8, scaling_factor=0.18215, layers_per_block=1, block_out_channels=(8, 8, 16, 16))
    record = Recorder(model, 4, 8)
    record.decode(1, 5, 7)
    record.encode(1, 40, 56)
    folder = golden.diffusers_case("old-attention-names", model, record)
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file(old_attention_names(load_file(path)), path, metadata={"format": "pt"})


def single_file_cases(golden):
    """No config.json: everything is found out from the tensors, and norms have 32 groups as in every published model."""
    folder = golden.root / "single-file"
    folder.mkdir(parents=True, exist_ok=True)

    def record(model, seed):
        recorder = Recorder(model, 4, seed)
        recorder.decode(1, 5, 7)
        recorder.encode(1, 40, 56)
        recorder.decode_client(lambda z: z / 0.18215, [{"scaling_factor": 0.18215}], scale=0.18)
        return recorder

    model = build_kl(9, norm_num_groups=32, layers_per_block=1, block_out_channels=(32, 32, 32, 32))
    state = {name: value.half() for name, value in model.state_dict().items()}
    save_file(ldm_checkpoint(state), folder / "ldm.safetensors")
    recorder = record(model, 9)
    recorder.save(folder / "ldm.cases.safetensors")
    golden.add("single-file/ldm.safetensors", recorder, "single-file/ldm.cases.safetensors")

    model = build_kl(10, torch.float32, norm_num_groups=32, layers_per_block=1, block_out_channels=(32, 64, 32, 32))
    stored = {}
    for name, value in model.state_dict().items():
        stored[name] = value.to(torch.float8_e4m3fn if value.ndim > 1 else torch.float32)
    model.load_state_dict({name: value.float() for name, value in stored.items()})
    save_file(stored, folder / "f8.safetensors")
    recorder = record(model, 10)
    recorder.save(folder / "f8.cases.safetensors")
    golden.add("single-file/f8.safetensors", recorder, "single-file/f8.cases.safetensors")


def tiny_rows(recorder):
    """Tiny models take latents as they are, whatever the client says about scaling."""
    recorder.decode_client(
        lambda z: z, [{}, {"scaling_factor": 0.18215}, {"scaling_factor": 0.3611, "shift_factor": 0.1159},
                      {"do_scaling": True}],
    )
    recorder.encode_client(lambda z: z, [{}, {"scaling_factor": 0.18215}])


def tiny_cases(golden):
    model = build_tiny(20, width=8, latent_channels=4)
    record = Recorder(model, 4, 20)
    record.decode(1, 13, 11)
    record.decode(2, 5, 7)
    record.decode(1, 1, 1)
    record.encode(1, 40, 56)
    record.encode(2, 24, 40)
    tiny_rows(record)
    folder = golden.diffusers_case("tiny", model, record)
    state = {name: value.half() for name, value in model.state_dict().items()}
    for side in ("encoder", "decoder"):
        save_file(bare_tiny(state, side), folder / f"bare_{side}.safetensors")
        operation = "encode" if side == "encoder" else "decode"
        golden.add(f"tiny/bare_{side}.safetensors", record, "tiny/cases.safetensors", operations=[operation])

    model = build_tiny(21, width=12, latent_channels=16, num_encoder_blocks=(1, 2, 2, 2), num_decoder_blocks=(2, 2, 2, 1))
    record = Recorder(model, 16, 21)
    record.decode(1, 5, 7)
    record.decode(3, 4, 6)
    record.encode(1, 40, 56)
    tiny_rows(record)
    record.decode_client(lambda z: z, [{"height": 32, "width": 48}], shape=(1, 4, 6), form=pack)
    golden.diffusers_case("tiny-16-channels", model, record)

    model = build_flux_two_tiny(22, 8, 32)
    record = Recorder(model, 32, 22)
    record.decode(1, 5, 7)
    record.decode(2, 3, 4)
    record.encode(2, 40, 56)
    tiny_rows(record)
    folder = golden.root / "taef2"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in model.state_dict().items()}, folder / "taef2.safetensors")
    record.save(folder / "cases.safetensors")
    golden.add("taef2/taef2.safetensors", record, "taef2/cases.safetensors")


def flux_two_cases(golden):
    """The three forms of latents, each with the model's statistics and without."""
    model = build_flux_two(30, latent_channels=32, block_out_channels=(8, 8, 16, 16))
    mean = model.bn.running_mean.view(1, -1, 1, 1)
    deviation = torch.sqrt(model.bn.running_var.view(1, -1, 1, 1) + model.config.batch_norm_eps)
    undo = lambda z: unpatchify(patchify(z) * deviation + mean)
    record = Recorder(model, 32, 30)
    record.decode(1, 5, 7)
    record.decode(2, 3, 4)
    record.encode(1, 40, 56)
    size = {"height": 32, "width": 48}
    for form, extra in ((lambda z: z, {}), (patchify, {}), (pack, size)):
        record.decode_client(undo, [{"do_scaling": True} | extra], shape=(2, 4, 6), scale=0.5, form=form)
        record.decode_client(lambda z: z, [extra, {"do_scaling": False} | extra], shape=(1, 4, 6), form=form)
    record.encode_client(
        lambda z: unpatchify((patchify(z) - mean) / deviation), [{"do_scaling": True}], shape=(2, 32, 48)
    )
    record.encode_client(lambda z: z, [{}])
    golden.diffusers_case("flux2", model, record, torch.bfloat16)

    # Another width in the decoder, as in FLUX.2's small decoder.
    model = build_flux_two(
        31, latent_channels=8, layers_per_block=1, block_out_channels=(8, 16, 16, 16),
        decoder_block_out_channels=(4, 8, 12, 12),
    )
    record = Recorder(model, 8, 31)
    record.decode(1, 5, 7)
    record.encode(1, 24, 40)
    golden.diffusers_case("flux2-small-decoder", model, record, torch.bfloat16)

    model = build_flux_two(
        32, norm_num_groups=32, layers_per_block=1, latent_channels=8, block_out_channels=(32, 32, 32, 32)
    )
    mean = model.bn.running_mean.view(1, -1, 1, 1)
    deviation = torch.sqrt(model.bn.running_var.view(1, -1, 1, 1) + model.config.batch_norm_eps)
    record = Recorder(model, 8, 32)
    record.decode(1, 5, 7)
    record.encode(1, 24, 40)
    record.decode_client(
        lambda z: unpatchify(patchify(z) * deviation + mean), [{"do_scaling": True}], shape=(1, 4, 6), form=patchify
    )
    folder = golden.root / "single-file"
    state = {name: value.bfloat16() for name, value in model.state_dict().items() if value.ndim}
    save_file(bfl_flux_two(state), folder / "bfl-flux2.safetensors")
    record.save(folder / "bfl-flux2.cases.safetensors")
    golden.add("single-file/bfl-flux2.safetensors", record, "single-file/bfl-flux2.cases.safetensors")


def dc_cases(golden):
    # As Sana's, with its depth.
    blocks = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
    widths = [8, 8, 8, 16, 16, 16]
    model = build_dc(
        40, latent_channels=8, attention_head_dim=8, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        downsample_block_type="conv", upsample_block_type="interpolate", scaling_factor=0.41407,
    )
    record = Recorder(model, 8, 40)
    record.decode(1, 1, 3)
    record.decode(2, 1, 1)
    record.encode(1, 96, 32)
    record.encode(2, 32, 32)
    undo, size = lambda z: z / 0.41407, (1, 1, 2)
    record.decode_client(undo, [{"scaling_factor": 0.41407}, {"do_scaling": True}], scale=0.41407, shape=size)
    record.encode_client(lambda z: z * 0.41407, [{"scaling_factor": 0.41407}], shape=(1, 32, 64))
    golden.diffusers_case("sana", model, record, spatial_factor=32)

    # The other ways to change sides, no blocks at full size, batch norms in the decoder (as in the published `-in` and `-mix`
    # ones), several scales, other activations, no shortcut at one end.
    blocks = ["ResBlock"] * 2 + ["EfficientViTBlock"] * 2
    widths, scales = [8, 12, 12, 24], [[], [], [3], [5, 3]]
    model = build_dc(
        41, latent_channels=6, attention_head_dim=6, encoder_block_types=blocks,
        decoder_block_types=blocks, encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        encoder_layers_per_block=[0, 1, 1, 1], decoder_layers_per_block=[0, 1, 1, 2], encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales, decoder_act_fns=["silu", "relu", "silu", "silu"],
        decoder_norm_types=["batch_norm", "batch_norm", "batch_norm", "rms_norm"],
        decoder_conv_act_fn="silu", encoder_out_shortcut=False,
    )
    record = Recorder(model, 6, 41)
    record.decode(1, 5, 7)
    record.decode(2, 3, 2)
    record.encode(1, 40, 56)
    golden.diffusers_case("dc-pixels", model, record)


def make(root):
    golden = Golden(root)
    with torch.no_grad():
        kl_cases(golden)
        single_file_cases(golden)
        tiny_cases(golden)
        flux_two_cases(golden)
        dc_cases(golden)
        tiled_cases(root)
    golden.finish()


# ---- check ----------------------------------------------------------------------------------------------------------


def is_input(name):
    kind = name.rsplit(".", 1)[-1]
    return kind in ("input", "pixels" if "encode" in name else "latents")


def compare(fresh, stored):
    """Names what differs between two folders of golden files."""
    files = lambda root: {str(p.relative_to(root)) for p in root.rglob("*") if p.suffix in (".json", ".safetensors")}
    problems = [f"{name}: only on one side" for name in sorted(files(fresh) ^ files(stored))]
    worst = 0.0
    for name in sorted(files(fresh) & files(stored)):
        if not name.endswith("cases.safetensors"):
            if not filecmp.cmp(fresh / name, stored / name, shallow=False):
                problems.append(f"{name}: differs")
            continue
        a, b = load_file(fresh / name), load_file(stored / name)
        if a.keys() != b.keys():
            problems.append(f"{name}: tensors {sorted(a.keys() ^ b.keys())} on one side only")
            continue
        for key in a:
            if a[key].shape != b[key].shape:
                problems.append(f"{name}: {key} has shape {list(b[key].shape)}, expected {list(a[key].shape)}")
                continue
            difference = (a[key] - b[key]).abs().max().item()
            worst = max(worst, difference)
            if difference > (0.0 if is_input(key) else 2e-5):
                problems.append(f"{name}: {key} differs by {difference:.1e}")
    return problems, worst


def main():
    parser = argparse.ArgumentParser(description="Makes or checks the golden files of this folder.")
    parser.add_argument("--check", action="store_true", help="compare with the files that are there; write nothing here")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    logging.set_verbosity_error()
    if not arguments.check:
        make(HERE)
        size = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
        print(f"{HERE}: {size / 1e6:.2f} MB")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        problems, worst = compare(Path(folder), HERE)
    for problem in problems:
        print(problem)
    print(f"golden files: {len(problems)} problems, results within {worst:.1e}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
