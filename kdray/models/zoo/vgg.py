"""VGG for small images."""

from functools import partial
from typing import TYPE_CHECKING

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn

_CHANNELS = (64, 128, 256, 512, 512)  # of the five stages
_NETWORKS = {"vgg8": (1, 1, 1, 1, 1), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}
"""Convolutions in each stage."""
_FOURTH_POOLING = 64  # least side of images for which vgg8 and vgg13 pool behind the fourth stage


def _network(name: str, convolutions: tuple[int, ...], shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """VGG (Simonyan and Zisserman, 2015) with batch normalisation and one linear layer, as usual for CIFAR.

    vgg16 pools behind each of its five stages. vgg8 and vgg13 are those of Tian et al. (2020): they pool behind the
    first three, for images from 64x64 behind the fourth too, and average what the last one gives. No pooling leaves
    less than 2x2 pixels for the convolutions behind it.

    Raises:
        ModelError: images below 16x16.
    """
    from torch import nn

    from kdray.models.layers import MaxPool2x2, need

    need(shape, 16, name)
    side, narrow = min(shape[1:]), shape[0]
    pooled = (0, 1, 2, 3, 4) if name == "vgg16" else (0, 1, 2, 3) if side >= _FOURTH_POOLING else (0, 1, 2)
    layers: list[nn.Module] = []
    for stage, (count, width) in enumerate(zip(convolutions, _CHANNELS, strict=True)):
        for _ in range(count):
            layers += [nn.Conv2d(narrow, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            narrow = width
        pools = stage in pooled and (side >= 4 or (side >= 2 and stage == len(_CHANNELS) - 1))
        side = side // 2 if pools else side
        layers.append(MaxPool2x2() if pools else nn.Identity())  # names of weights do not depend on the size
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    features = nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(features, nn.Linear(narrow, classes))


for _name, _convolutions in _NETWORKS.items():
    register_model(_name)(partial(_network, _name, _convolutions))
