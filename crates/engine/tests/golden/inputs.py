"""Inputs of the golden files, and random weights under which no term of a network is close to neutral."""

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from diffusers.models.normalization import RMSNorm
from torch import nn

MOMENTS = (AutoencoderKL, AutoencoderKLFlux2)


def exact(values):
    """Rounds to numbers that float16 and bfloat16 both hold."""
    values = values.to(torch.bfloat16).float()
    return torch.where(values.abs() < 2.0**-14, torch.zeros(()), values)


def random_latents(generator, *shape, scale=1.0):
    return exact(torch.randn(shape, generator=generator) * scale)


def random_pixels(generator, batch, height, width):
    """A smooth field with some noise: [batch, 3, height, width] in [-1, 1]."""
    field = torch.randn((batch, 3, height // 8 + 1, width // 8 + 1), generator=generator)
    field = nn.functional.interpolate(field, size=(height, width), mode="bilinear", align_corners=True)
    noise = torch.randn((batch, 3, height, width), generator=generator)
    return exact((0.5 * field + 0.1 * noise).clamp(-1, 1))


def pack(latents):
    """2x2 patches as tokens: [batch, channels, h, w] -> [batch, h/2 * w/2, 4*channels], channel = c*4 + dy*2 + dx."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(batch, (height // 2) * (width // 2), channels * 4).contiguous()


def patchify(latents):
    """2x2 patches as planes, as FLUX.2's pipeline makes them: [batch, channels, h, w] -> [batch, 4*channels, h/2, w/2]."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return patches.reshape(batch, channels * 4, height // 2, width // 2).contiguous()


def unpatchify(patches):
    """The way back from `patchify`."""
    batch, channels, height, width = patches.shape
    latents = patches.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return latents.reshape(batch, channels // 4, height * 2, width * 2).contiguous()


def tidy(scale):
    """Two significant digits, so that the last bits of a CPU's convolution cannot change a weight."""
    return float(f"{scale:.1e}")


@torch.no_grad()
def give_life(model, generator):
    """Spreads norms and biases, and sharpens attention, so that no term of the network is close to neutral."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.GroupNorm, RMSNorm)):
            module.weight.copy_(0.5 + torch.rand(module.weight.shape, generator=generator))
            module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=generator))
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            bound = (3.0 / module.weight[0].numel()) ** 0.5
            gain = 2.0 if name.endswith(("to_q", "to_k")) else 0.9
            module.weight.copy_((2 * torch.rand(module.weight.shape, generator=generator) - 1) * bound * gain)
            if module.bias is not None:
                module.bias.copy_(0.1 * torch.randn(module.bias.shape, generator=generator))


@torch.no_grad()
def calibrate(model, decoder_end, encoder_end, latent_channels, generator, offset=0.0):
    """Scales both last convolutions: pixels of deviation about 0.5, latents of deviation about 1."""
    out = model.decode(random_latents(generator, 1, latent_channels, 6, 6)).sample
    decoder_end.weight.mul_(tidy(0.5 / out.std().item()))
    decoder_end.bias.add_(offset)
    pixels = random_pixels(generator, 1, 64, 64)
    out = encode(model, pixels)[:, :latent_channels]
    encoder_end.weight.mul_(tidy(1.0 / out.std().item()))


def round_weights(model, dtype):
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()


@torch.no_grad()
def encode(model, pixels):
    """Raw encoder output: moments of a distribution, or latents."""
    if isinstance(model, MOMENTS):
        return model.encode(pixels).latent_dist.parameters
    output = model.encode(pixels)
    return output.latent if hasattr(output, "latent") else output.latents
