"""The small residual network of the CIFAR-10 experiments."""

from typing import TYPE_CHECKING

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn


@register_model("resnet20")
def resnet20(shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """The residual network for CIFAR-10 (He et al., 2016, section 4.2).

    It has 20 layers, 16-32-64 channels and 0.27 million parameters.

    Raises:
        ModelError: images below 8x8.
    """
    from torch import nn

    from kdray.models.layers import ResidualBlock, need

    need(shape, 8, "resnet20")
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width in (16, 32, 64):
        for number in range(3):
            layers.append(ResidualBlock(channels, width, 2 if number == 0 and width > 16 else 1))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
