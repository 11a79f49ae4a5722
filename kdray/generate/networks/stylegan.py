"""A generator in the manner of StyleGAN (Karras et al., 2019): a code becomes a style, which scales and shifts the
channels of a constant that grows from 4x4 pixels by doubling."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdray.generate.networks.contrast import to_pixels

_START = 4  # pixels a side of the constant


class StyleGAN(nn.Module):
    """Generates images with a mapping network, adaptive instance normalisation and noise.

    Args:
        code: length of the codes.
        image_shape: (C, H, W).
        style: length of a style, and channels of the constant.
        narrowest: fewest channels: each doubling of the size from 16 pixels on halves them down to this.
    """

    def __init__(self, code: int, image_shape: tuple[int, int, int], style: int = 128, narrowest: int = 32) -> None:
        super().__init__()
        channels, self._height, self._width = image_shape
        doublings = max(0, math.ceil(math.log2(max(self._height, self._width) / _START)))
        wide = [max(narrowest, style >> max(0, number - 1)) for number in range(doublings + 1)]
        sides = [_START << number for number in range(doublings + 1)]
        layers: list[nn.Module] = []
        for size in (code, style, style):
            layers += [nn.Linear(size, style), nn.LeakyReLU(0.2)]
        self.mapping = nn.Sequential(*layers)
        self.constant = nn.Parameter(torch.randn(1, style, _START, _START))
        self.blocks = nn.ModuleList(
            _Block(narrow, out, side, style) for narrow, out, side in zip([style, *wide], wide, sides, strict=False)
        )
        self.show = nn.Sequential(nn.Conv2d(wide[-1], channels, 1), to_pixels(channels))

    def forward(self, codes: Tensor) -> Tensor:
        """Codes float [B, D] to images float [B, C, H, W] in [0, 1]."""
        styles = self.mapping(codes * codes.square().mean(dim=1, keepdim=True).add(1e-8).rsqrt())
        x = self.constant.expand(len(codes), -1, -1, -1)
        for number, block in enumerate(self.blocks):
            x = block(x if number == 0 else F.interpolate(x, scale_factor=2.0), styles)
        images: Tensor = self.show(x)
        return images[:, :, : self._height, : self._width]


class _Block(nn.Module):
    """A convolution, noise, and the style. The noise is the same for every image, so that an image follows from its
    code alone."""

    noise: Tensor

    def __init__(self, narrow: int, wide: int, side: int, style: int) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(narrow, wide, 3, padding=1)
        self.register_buffer("noise", torch.randn(1, 1, side, side))
        self.strength = nn.Parameter(torch.zeros(1, wide, 1, 1))
        self.style = nn.Linear(style, 2 * wide)

    def forward(self, x: Tensor, styles: Tensor) -> Tensor:
        """Float [B, narrow, S, S] and styles float [B, style] to float [B, wide, S, S]."""
        x = F.leaky_relu(self.convolve(x) + self.strength * self.noise, 0.2)
        scale, shift = self.style(styles).unsqueeze(2).unsqueeze(3).chunk(2, dim=1)
        styled: Tensor = F.instance_norm(x) * (1 + scale) + shift
        return styled
