"""The autoencoders of the golden files: diffusers' classes at small widths, and the tiny one for FLUX.2 that it lacks."""

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny
from torch import nn

from inputs import calibrate, exact, give_life, round_weights


def build_kl(seed, dtype=torch.float16, kind=AutoencoderKL, **config):
    config = dict(
        in_channels=3, out_channels=3, norm_num_groups=4, layers_per_block=2, latent_channels=4, sample_size=64,
        block_out_channels=(8, 16, 16, 24),
    ) | config
    blocks = len(config["block_out_channels"])
    config["down_block_types"] = ("DownEncoderBlock2D",) * blocks
    config["up_block_types"] = ("UpDecoderBlock2D",) * blocks
    generator = torch.Generator().manual_seed(seed)
    model = kind(**config).eval().requires_grad_(False)
    give_life(model, generator)
    calibrate(model, model.decoder.conv_out, model.encoder.conv_out, config["latent_channels"], generator)
    round_weights(model, dtype)
    return model


def build_tiny(seed, **config):
    width = config.pop("width")
    config = dict(encoder_block_out_channels=(width,) * 4, decoder_block_out_channels=(width,) * 4) | config
    generator = torch.Generator().manual_seed(seed)
    model = AutoencoderTiny(**config).eval().requires_grad_(False)
    give_life(model, generator)
    channels = config["latent_channels"]
    calibrate(model, model.decoder.layers[-1], model.encoder.layers[-1], channels, generator, offset=0.3)
    round_weights(model, torch.float16)
    return model


class PoolingBlock(nn.Module):
    """AutoencoderTiny's block, preceded by a pooled branch where `pools` is set (the FLUX.2 variant)."""

    def __init__(self, width, pools):
        super().__init__()
        conv = lambda: nn.Conv2d(width, width, 3, padding=1)
        self.conv = nn.Sequential(conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
        if pools:
            self.pool = nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )

    def forward(self, x):
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(x + self.conv(x))


class Layers(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)


class FluxTwoTiny(nn.Module):
    """The FLUX.2 member of the AutoencoderTiny family; diffusers has no class for it."""

    class Output:
        def __init__(self, sample=None, latents=None):
            self.sample, self.latents = sample, latents

    def __init__(self, width, channels):
        super().__init__()
        blocks = lambda count, pools=False: [PoolingBlock(width, pools) for _ in range(count)]
        down = lambda: nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False)
        up = lambda: [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
        self.encoder = Layers(
            nn.Conv2d(3, width, 3, padding=1), *blocks(1), down(), *blocks(3), down(), *blocks(3), down(),
            *blocks(3, pools=True), nn.Conv2d(width, channels, 3, padding=1),
        )
        self.decoder = Layers(
            nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(), *blocks(3, pools=True), *up(), *blocks(3), *up(),
            *blocks(3), *up(), *blocks(1), nn.Conv2d(width, 3, 3, padding=1),
        )

    def decode(self, latents):
        return self.Output(sample=self.decoder.layers(torch.tanh(latents / 3) * 3) * 2 - 1)

    def encode(self, pixels):
        return self.Output(latents=self.encoder.layers((pixels + 1) / 2))


def build_flux_two_tiny(seed, width, channels):
    generator = torch.Generator().manual_seed(seed)
    model = FluxTwoTiny(width, channels).eval().requires_grad_(False)
    give_life(model, generator)
    calibrate(model, model.decoder.layers[-1], model.encoder.layers[-1], channels, generator, offset=0.3)
    round_weights(model, torch.float16)
    return model


@torch.no_grad()
def build_flux_two(seed, **config):
    """AutoencoderKLFlux2; the statistics of its batch norm are far from neutral, one variance is small."""
    model = build_kl(seed, torch.bfloat16, AutoencoderKLFlux2, **config)
    generator = torch.Generator().manual_seed(100 + seed)
    count = model.bn.running_mean.numel()
    model.bn.running_mean.copy_((0.5 * torch.randn(count, generator=generator)).bfloat16())
    model.bn.running_var.copy_((0.2 + 3 * torch.rand(count, generator=generator)).bfloat16())
    model.bn.running_var[5] = 2.0**-7  # small enough to show epsilon, large enough not to magnify rounding
    return model


def build_dc(seed, dtype=torch.float16, **config):
    generator = torch.Generator().manual_seed(seed)
    model = AutoencoderDC(**config).eval().requires_grad_(False)
    give_life(model, generator)
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        draw = lambda: torch.rand(norm.num_features, generator=generator)
        norm.weight.copy_(0.5 + draw())
        norm.bias.copy_(0.6 * (draw() - 0.5))
        norm.running_mean.copy_(exact(draw() - 0.5))
        norm.running_var.copy_(exact(0.2 + 2 * draw()))
    end = model.decoder.conv_out
    calibrate(model, getattr(end, "conv", end), model.encoder.conv_out, config["latent_channels"], generator)
    round_weights(model, dtype)
    return model
