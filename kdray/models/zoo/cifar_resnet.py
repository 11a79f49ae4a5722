"""The residual networks of the CIFAR experiments."""

from functools import partial
from typing import TYPE_CHECKING

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn

_NETWORKS = {
    "resnet20": (3, (16, 16, 32, 64)),
    "resnet32": (5, (16, 16, 32, 64)),
    "resnet56": (9, (16, 16, 32, 64)),
    "resnet110": (18, (16, 16, 32, 64)),
    "resnet8x4": (1, (32, 64, 128, 256)),
    "resnet32x4": (5, (32, 64, 128, 256)),
}
"""Blocks in each stage, and channels of the first layer and of the three stages."""


def _network(
    name: str, blocks: int, channels: tuple[int, ...], shape: tuple[int, int, int], classes: int
) -> "nn.Module":
    """A residual network for CIFAR-10 (He et al., 2016, section 4.2); the wide ones are those of Tian et al. (2020).

    Raises:
        ModelError: images below 8x8.
    """
    from torch import nn

    from kdray.models.layers import ResidualBlock, need

    need(shape, 8, name)
    narrow, *widths = channels
    layers: list[nn.Module] = [nn.Conv2d(shape[0], narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU()]
    for stage, width in enumerate(widths):
        for number in range(blocks):
            layers.append(ResidualBlock(narrow, width, 2 if number == 0 and stage else 1))
            narrow = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(narrow, classes))


for _name, (_blocks, _channels) in _NETWORKS.items():
    register_model(_name)(partial(_network, _name, _blocks, _channels))
