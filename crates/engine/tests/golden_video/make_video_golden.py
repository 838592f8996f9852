"""Makes the models and expected results of the video tests with diffusers: reduced widths, real depth.

    python make_video_golden.py

Needs torch and diffusers. Weights are random and kept in 16 bits, results are those of float32.
`decode.N.*` holds latents, pixels (windows as diffusers has them by default) and, where they differ, `whole` (windows
off); `encode.N.*` pixels, moments and `whole`.
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKLHunyuanVideo
from safetensors.torch import save_file

HERE = Path(__file__).parent
# batch, latent frames, height, width
DECODES = [(1, 1, 3, 5), (1, 3, 3, 2), (2, 4, 1, 2), (1, 5, 1, 3), (1, 7, 1, 2), (1, 9, 1, 1)]
# batch, frames, height, width
ENCODES = [(1, 1, 24, 16), (2, 5, 8, 24), (1, 17, 8, 16), (1, 29, 8, 8)]


def randomise(model: torch.nn.Module) -> None:
    """Norms that do something, and numbers that 16 bits hold exactly."""
    for name, value in model.named_parameters():
        noise = torch.randn(value.shape)
        if "norm" in name:
            value.data = (1.0 + 0.2 * noise) if name.endswith("weight") else 0.2 * noise
        elif name.endswith("bias"):
            value.data = 0.1 * noise
        else:
            value.data = noise * (0.8 / value[0].numel() ** 0.5)
        value.data = value.data.half().float()


def save(model: torch.nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    config = {"_class_name": type(model).__name__, **config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


@torch.no_grad()
def hunyuan() -> None:
    torch.manual_seed(1)
    model = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=2,
        norm_num_groups=4,
        mid_block_add_attention=True,
    ).eval()
    randomise(model)
    save(model, HERE / "hunyuan")
    expected = {}

    def both(name: str, what: str, run) -> None:
        model.use_framewise_decoding = model.use_framewise_encoding = True
        windowed = run()
        model.use_framewise_decoding = model.use_framewise_encoding = False
        whole = run()
        expected[f"{name}.{what}"] = windowed.contiguous()
        if not torch.equal(whole, windowed):
            expected[f"{name}.whole"] = whole.contiguous()
        print(name, what, tuple(windowed.shape), "deviation", windowed.std().item())

    for index, (batch, frames, height, width) in enumerate(DECODES):
        latents = torch.randn(batch, 4, frames, height, width)
        expected[f"decode.{index}.latents"] = latents
        both(f"decode.{index}", "pixels", lambda: model.decode(latents.clone()).sample)
    for index, (batch, frames, height, width) in enumerate(ENCODES):
        pixels = (2 * torch.rand(batch, 3, frames, height, width) - 1).half()
        expected[f"encode.{index}.pixels"] = pixels
        both(f"encode.{index}", "moments", lambda: model._encode(pixels.float()))
    save_file(expected, HERE / "hunyuan.safetensors")

    # Two tiles each way and three windows; of the pixels every 14th row and 15th column.
    model.use_framewise_decoding = True
    model.enable_tiling()
    latents = torch.randn(1, 4, 5, 33, 35)
    pixels = model.decode(latents.clone()).sample[..., ::14, ::15].contiguous()
    save_file({"latents": latents, "pixels": pixels}, HERE / "hunyuan_tiled.safetensors")


if __name__ == "__main__":
    hunyuan()
