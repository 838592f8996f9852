#!/usr/bin/env python3
"""Makes the models and expected results of the video tests with diffusers: reduced widths, real depth.

    make_video_golden.py            writes every case beside this script
    make_video_golden.py --check    makes them anew in a temporary folder and compares with what is there:
                                    weights and inputs bit for bit, results to 5e-5 (convolutions of another CPU round differently)

Needs torch, diffusers and safetensors (pinned in tests/clients/requirements.txt). No model is downloaded. Weights are random
and kept in 16 bits, results are those of float32.

`hunyuan`, `wan` and `wan22` (residual, patches, 48 channels) are models; `qwen-image.safetensors` is one without a config.json,
with the tensor names of the original program, as ComfyUI's files are. The file of the same name (`qwen-image_expected`) holds

    decode.<n>.latents   [batch, channels, frames, height, width]   in the model's own space
    decode.<n>.pixels    vae.decode(latents).sample; hunyuan: windows as diffusers has them by default
    decode.<n>.whole     hunyuan: windows off, where that differs
    encode.<n>.pixels    [batch, 3, frames, height, width]          in [-1, 1]
    encode.<n>.moments   mean and log variance
    encode.<n>.whole     as above
    client.latents       latents as a pipeline gives them
    client.pixels        after scaling by hand as the pipelines do

`<model>_tiled` holds one decode and, where there is one, one encode with tiles of pictures (of qwen-image of a single picture);
of the pixels that come out every 14th row and 15th column.
"""

import argparse
import filecmp
import json
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLQwenImage, AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
# batch, latent frames, height, width
HUNYUAN_DECODES = [(1, 1, 3, 5), (1, 3, 3, 2), (2, 4, 1, 2), (1, 5, 1, 3), (1, 7, 1, 2), (1, 9, 1, 1)]
WAN_DECODES = [(1, 1, 3, 5), (1, 3, 3, 1), (2, 4, 1, 1), (1, 2, 1, 3), (1, 5, 1, 1), (1, 7, 1, 1), (1, 9, 1, 1)]
WAN22_DECODES = [(1, 1, 1, 3), (1, 3, 1, 1), (2, 4, 1, 1), (1, 5, 1, 1), (1, 7, 1, 1), (1, 9, 1, 1)]
# batch, frames, height, width in latents
HUNYUAN_ENCODES = [(1, 1, 3, 2), (2, 5, 1, 3), (1, 17, 1, 2), (1, 29, 1, 1)]
WAN_ENCODES = [(1, 1, 3, 2), (2, 5, 1, 2), (1, 9, 1, 3), (1, 13, 2, 1)]
WAN22_ENCODES = [(1, 1, 3, 2), (2, 5, 1, 1), (1, 9, 1, 2)]

WAN22_MEAN = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098,
    0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567,
    -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957,
    0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
]
WAN22_STD = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454,
    0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999,
    0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444,
    0.4089, 0.7468, 0.7744,
]


def randomise(model: torch.nn.Module) -> None:
    """Norms that do something, and numbers that 16 bits hold exactly."""
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape)
        if "norm" in name:
            value.data = (1.0 + 0.2 * noise) if name.endswith(("weight", "gamma")) else 0.2 * noise
        elif name.endswith("bias"):
            value.data = 0.1 * noise
        else:
            value.data = noise * (0.8 / value[0].numel() ** 0.5)
        value.data = value.data.half().float()


def half(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.half().contiguous() for name, value in model.state_dict().items()}


def save(model: torch.nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    config = {"_class_name": type(model).__name__, **config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(half(model), folder / "diffusion_pytorch_model.safetensors")


def pixels_of(batch: int, frames: int, height: int, width: int) -> torch.Tensor:
    return (2 * torch.rand(batch, 3, frames, height, width) - 1).half()


def thinned(pixels: torch.Tensor) -> torch.Tensor:
    return pixels[..., ::14, ::15].contiguous()


def hunyuan(out: Path) -> None:
    torch.manual_seed(1)
    model = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
        mid_block_add_attention=True,
    ).eval()
    randomise(model)
    save(model, out / "hunyuan")
    expected = {}

    def both(name: str, what: str, run) -> None:
        model.use_framewise_decoding = model.use_framewise_encoding = True
        windowed = run()
        model.use_framewise_decoding = model.use_framewise_encoding = False
        whole = run()
        expected[f"{name}.{what}"] = windowed.contiguous()
        if not torch.equal(whole, windowed):
            expected[f"{name}.whole"] = whole.contiguous()

    for index, (batch, frames, height, width) in enumerate(HUNYUAN_DECODES):
        latents = torch.randn(batch, 4, frames, height, width)
        expected[f"decode.{index}.latents"] = latents
        both(f"decode.{index}", "pixels", lambda: model.decode(latents.clone()).sample)
    for index, (batch, frames, height, width) in enumerate(HUNYUAN_ENCODES):
        pixels = pixels_of(batch, frames, 8 * height, 8 * width)
        expected[f"encode.{index}.pixels"] = pixels
        both(f"encode.{index}", "moments", lambda: model._encode(pixels.float()))
    save_file(expected, out / "hunyuan.safetensors")

    # Two tiles each way and three windows.
    model.use_framewise_decoding = True
    model.enable_tiling()
    latents = torch.randn(1, 4, 5, 33, 35)
    pixels = thinned(model.decode(latents.clone()).sample)
    save_file({"latents": latents, "pixels": pixels}, out / "hunyuan_tiled.safetensors")


def record_wan(model: torch.nn.Module, factor: int, decodes: list, encodes: list, path: Path) -> None:
    channels = model.config.z_dim
    expected = {}
    for index, (batch, frames, height, width) in enumerate(decodes):
        latents = torch.randn(batch, channels, frames, height, width)
        pixels = model.decode(latents).sample.contiguous()
        expected |= {f"decode.{index}.latents": latents, f"decode.{index}.pixels": pixels}
        clamped = (pixels.abs() == 1).float().mean().item()
        assert clamped < 0.3 and 0.1 < pixels.std() < 0.8, (path, clamped, pixels.std())
    assert any((expected[f"decode.{index}.pixels"].abs() == 1).any() for index in range(len(decodes)))
    for index, (batch, frames, height, width) in enumerate(encodes):
        pixels = pixels_of(batch, frames, factor * height, factor * width)
        moments = model.encode(pixels.float()).latent_dist.parameters.contiguous()
        expected |= {f"encode.{index}.pixels": pixels, f"encode.{index}.moments": moments}
    # As the pipelines do it.
    mean = torch.tensor(model.config.latents_mean).view(1, -1, 1, 1, 1)
    inverse = 1.0 / torch.tensor(model.config.latents_std).view(1, -1, 1, 1, 1)
    latents = torch.randn(1, channels, 2, 1, 2)
    pixels = model.decode(latents / inverse + mean).sample.contiguous()
    save_file(expected | {"client.latents": latents, "client.pixels": pixels}, path)


def record_wan_tiled(model: torch.nn.Module, latents: torch.Tensor, pixels: torch.Tensor, path: Path) -> None:
    """Decode and encode in diffusers' tiles; of the large result every few pixels."""
    model.enable_tiling()
    tiled = {
        "latents": latents,
        "pixels": thinned(model.decode(latents.float()).sample),
        "encode.pixels": pixels,
        "encode.moments": model.encode(pixels.float()).latent_dist.parameters.contiguous(),
    }
    save_file(tiled, path)


def wan(out: Path) -> None:
    torch.manual_seed(2)
    model = AutoencoderKLWan(base_dim=6, dim_mult=[1, 2, 3, 3]).eval()
    randomise(model)
    save(model, out / "wan")
    record_wan(model, 8, WAN_DECODES, WAN_ENCODES, out / "wan.safetensors")
    latents = torch.randn(1, 16, 2, 33, 35).half()
    pixels = pixels_of(1, 5, 264, 16)
    record_wan_tiled(model, latents, pixels, out / "wan_tiled.safetensors")


def wan22(out: Path) -> None:
    torch.manual_seed(3)
    model = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=5,
        z_dim=48,
        dim_mult=[1, 2, 4, 4],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=WAN22_MEAN,
        latents_std=WAN22_STD,
    ).eval()
    randomise(model)
    save(model, out / "wan22")
    record_wan(model, 16, WAN22_DECODES, WAN22_ENCODES, out / "wan22.safetensors")
    latents = torch.randn(1, 48, 2, 17, 18).half()
    pixels = pixels_of(1, 1, 528, 16)
    record_wan_tiled(model, latents, pixels, out / "wan22_tiled.safetensors")


def original_name(name: str) -> str:
    """The name that the original program gives a tensor of a model with two ResNets a level and four levels."""
    for diffusers, original in (
        ("mid_block.resnets.0.", "middle.0."),
        ("mid_block.attentions.0.", "middle.1."),
        ("mid_block.resnets.1.", "middle.2."),
        (".norm1.", ".residual.0."),
        (".conv1.", ".residual.2."),
        (".norm2.", ".residual.3."),
        (".conv2.", ".residual.6."),
        (".conv_shortcut.", ".shortcut."),
        (".conv_in.", ".conv1."),
        (".norm_out.", ".head.0."),
        (".conv_out.", ".head.2."),
        (".down_blocks.", ".downsamples."),
    ):
        name = name.replace(diffusers, original)
    for level in range(4):
        for layer in range(3):
            name = name.replace(f"up_blocks.{level}.resnets.{layer}.", f"upsamples.{4 * level + layer}.")
        name = name.replace(f"up_blocks.{level}.upsamplers.0.", f"upsamples.{4 * level + 3}.")
    if name.startswith("post_quant_conv."):
        return name.replace("post_quant_conv.", "conv2.")
    return name.replace("quant_conv.", "conv1.") if name.startswith("quant_conv.") else name


def qwen_image(out: Path) -> None:
    torch.manual_seed(4)
    model = AutoencoderKLQwenImage(base_dim=4).eval()
    randomise(model)
    tensors = half(model)
    original = {original_name(name): value for name, value in tensors.items()}
    assert sorted(convert_wan_vae_to_diffusers(original)) == sorted(tensors)
    save_file(original, out / "qwen-image.safetensors")
    record_wan(model, 8, WAN_DECODES, WAN_ENCODES[:2], out / "qwen-image_expected.safetensors")
    # A picture, as the model's pipelines have it; beyond -1 and 1 here and there.
    latents = (2 * torch.randn(1, 16, 1, 33, 35)).half()
    record_wan_tiled(model, latents, pixels_of(1, 1, 264, 16), out / "qwen-image_tiled.safetensors")


def differences(made: Path) -> list[str]:
    found = []
    for path in sorted(file for file in made.rglob("*") if file.is_file()):
        name, stored = path.relative_to(made), HERE / path.relative_to(made)
        if not stored.exists():
            found.append(f"{name} is not stored")
        elif path.suffix == ".safetensors":
            old, new = load_file(stored), load_file(path)
            if old.keys() != new.keys():
                found.append(f"{name}: the tensors are others")
                continue
            for tensor, value in new.items():
                result = tensor.endswith((".moments", ".whole")) or (
                    tensor.endswith("pixels") and not tensor.startswith("encode.")
                )
                error = 5e-5 if result else 0.0
                if old[tensor].shape != value.shape or (old[tensor] - value).abs().max() > error:
                    found.append(f"{name}: {tensor} differs")
        elif not filecmp.cmp(path, stored, shallow=False):
            found.append(f"{name} differs")
    return found


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the stored files and write nothing")
    check = parser.parse_args().check
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if check else HERE
        for case in (hunyuan, wan, wan22, qwen_image):
            case(out)
        found = differences(out) if check else []
    for line in found:
        print(line)
    print("golden video files:", "differ" if found else "as stored" if check else "written")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
