"""Wide residual networks."""

from functools import partial
from typing import TYPE_CHECKING

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn

_NETWORKS = ((16, 1), (16, 2), (40, 1), (40, 2), (28, 10))
"""Depth 6 n + 4, and how many times as many channels there are as in the network of 16-32-64 channels."""


def _network(depth: int, times: int, shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """WRN-depth-times (Zagoruyko and Komodakis, 2016), without dropout.

    Raises:
        ModelError: images below 8x8.
    """
    from torch import nn

    from kdray.models.layers import PreActivationBlock, need

    need(shape, 8, f"wrn{depth}-{times}")
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)]
    narrow = 16
    for width in (16 * times, 32 * times, 64 * times):
        for number in range((depth - 4) // 6):
            layers.append(PreActivationBlock(narrow, width, 2 if number == 0 and width > 16 * times else 1))
            narrow = width
    network = nn.Sequential(
        *layers,
        nn.BatchNorm2d(narrow), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(narrow, classes),
    )  # fmt: skip
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


for _depth, _times in _NETWORKS:
    register_model(f"wrn{_depth}-{_times}")(partial(_network, _depth, _times))
