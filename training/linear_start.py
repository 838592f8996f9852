"""A starting point that already codes and decodes pictures linearly.

A freshly initialised network of this kind spends most of an hour in a poor
optimum that keeps brightness and ignores colour. Here the first three latent
channels start as the 8 x 8 block averages of the picture in an opponent colour
space, and the decoder starts as a smooth interpolation of them; every residual
branch starts at zero, so training only adds to that.

The trick is to pass values exactly through group normalisation and SiLU. A
value is carried as a pair (+v, -v), because silu(v) - silu(-v) = v, and each
normalisation group also holds a pair of constants (+A, -A), which keeps the
group's mean at zero and its deviation nearly fixed.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import nn

CONSTANT = 3.0
MEAN_SQUARE = 0.3
# brightness and two colour differences, the latter enlarged to use the range
OPPONENT = torch.tensor([[1.0, 1.0, 1.0], [1.5, 0.0, -1.5], [-1.0, 2.0, -1.0]]) * 0.6


def pass_through(convolution: nn.Conv2d, channels: int, kernel: torch.Tensor) -> None:
    """Make the first ``channels`` outputs filtered copies of the same inputs."""
    convolution.weight[:channels] = 0.0
    convolution.bias[:channels] = 0.0
    for channel in range(channels):
        convolution.weight[channel, channel] = kernel


def quiet_branches(model: AutoencoderKL) -> None:
    """Let every residual branch, attention included, start at zero."""
    for name, module in model.named_modules():
        if name.endswith(("conv2", "to_out.0")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


def start_encoder(model: AutoencoderKL) -> None:
    """Set the encoder's first three latent channels to block averages."""
    encoder = model.encoder
    carried = 8
    encoder.conv_in.weight[:carried] = 0.0
    encoder.conv_in.bias[:carried] = 0.0
    for colour in range(3):
        encoder.conv_in.weight[2 * colour, colour, 1, 1] = 1.0
        encoder.conv_in.weight[2 * colour + 1, colour, 1, 1] = -1.0
    encoder.conv_in.bias[6] = CONSTANT
    encoder.conv_in.bias[7] = -CONSTANT
    box = torch.zeros(3, 3)
    box[:2, :2] = 0.25
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                pass_through(resnet.conv_shortcut, carried, torch.ones(1, 1))
        for sampler in block.downsamplers or []:
            pass_through(sampler.conv, carried, box)
    group = encoder.conv_norm_out.num_channels // encoder.conv_norm_out.num_groups
    deviation = ((6 * MEAN_SQUARE + 2 * CONSTANT**2) / group) ** 0.5
    encoder.conv_out.weight[:3] = 0.0
    encoder.conv_out.weight[4:] = 0.0
    encoder.conv_out.bias.zero_()
    for latent in range(3):
        for colour in range(3):
            gain = OPPONENT[latent, colour] * deviation
            encoder.conv_out.weight[latent, 2 * colour, 1, 1] = gain
            encoder.conv_out.weight[latent, 2 * colour + 1, 1, 1] = -gain
    model.quant_conv.weight.zero_()
    model.quant_conv.bias.zero_()
    for latent in range(4):
        model.quant_conv.weight[latent, latent] = 1.0
    model.quant_conv.bias[4:] = -7.0


def start_decoder(model: AutoencoderKL) -> None:
    """Let the decoder interpolate the block averages that the encoder starts with."""
    decoder = model.decoder
    group = decoder.conv_norm_out.num_channels // decoder.conv_norm_out.num_groups
    carried = 3 * group
    model.post_quant_conv.weight.zero_()
    model.post_quant_conv.bias.zero_()
    for latent in range(4):
        model.post_quant_conv.weight[latent, latent] = 1.0
    inverse = torch.linalg.inv(OPPONENT)
    decoder.conv_in.weight[:carried] = 0.0
    decoder.conv_in.bias[:carried] = 0.0
    for colour in range(3):
        first = colour * group
        decoder.conv_in.weight[first, :3, 1, 1] = inverse[colour]
        decoder.conv_in.weight[first + 1, :3, 1, 1] = -inverse[colour]
        decoder.conv_in.bias[first + 2] = CONSTANT
        decoder.conv_in.bias[first + 3] = -CONSTANT
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    smooth = torch.outer(taps, taps)
    centre = torch.zeros(3, 3)
    centre[1, 1] = 1.0
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                pass_through(resnet.conv_shortcut, carried, torch.ones(1, 1))
        for sampler in block.upsamplers or []:
            pass_through(sampler.conv, carried, smooth)
            for colour in range(3):
                for constant in (colour * group + 2, colour * group + 3):
                    sampler.conv.weight[constant, constant] = centre
    deviation = ((2 * MEAN_SQUARE + 2 * CONSTANT**2) / group) ** 0.5
    decoder.conv_out.weight.mul_(0.1)
    decoder.conv_out.bias.zero_()
    for colour in range(3):
        decoder.conv_out.weight[:, colour * group:(colour + 1) * group] = 0.0
        decoder.conv_out.weight[colour, colour * group, 1, 1] = deviation
        decoder.conv_out.weight[colour, colour * group + 1, 1, 1] = -deviation


@torch.no_grad()
def linear_start(model: AutoencoderKL) -> None:
    """Overwrite a fresh model's weights with the linear starting point."""
    quiet_branches(model)
    start_encoder(model)
    start_decoder(model)
