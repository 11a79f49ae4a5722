"""A small generator in the manner of DCGAN (Radford et al., 2016), as data-free distillation has it since DAFL: two
enlargements by nearest neighbours, each with a convolution behind it."""

import torch
from torch import Tensor, nn

from kdray.generate.networks.contrast import to_pixels


class DCGAN(nn.Module):
    """Generates images with convolutions and batch normalisation.

    Args:
        code: length of the codes.
        image_shape: (C, H, W).
        width: channels of the last hidden layer; those before it have twice as many. The 32 here are half of IDEAL's
            code, for speed on a CPU.
    """

    def __init__(self, code: int, image_shape: tuple[int, int, int], width: int = 32) -> None:
        super().__init__()
        channels, self._height, self._width = image_shape
        self._start = (2 * width, -(-self._height // 4), -(-self._width // 4))  # a quarter of a side, rounded up
        self.spread = nn.Linear(code, self._start[0] * self._start[1] * self._start[2])
        self.body = nn.Sequential(
            nn.BatchNorm2d(2 * width),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(2 * width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, channels, 3, padding=1),
            to_pixels(channels),
        )

    def forward(self, codes: Tensor) -> Tensor:
        """Codes float [B, D] to images float [B, C, H, W] in [0, 1]."""
        start = self.spread(codes).view(-1, *self._start)
        # With the channels first a step of training takes 1.4 times as long on a CPU (benchmarks/generator.py).
        images: Tensor = self.body(start.contiguous(memory_format=torch.channels_last))
        return images[:, :, : self._height, : self._width]
