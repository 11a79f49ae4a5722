"""torchvision's residual networks for small images."""

from typing import TYPE_CHECKING

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn


@register_model("resnet18")
def resnet18(shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """ResNet-18 (He et al., 2016) with a 3x3 first convolution of stride 1 and no first pooling.

    Raises:
        ModelError: images below 16x16.
    """
    return _resnet("resnet18", shape, classes)


@register_model("resnet34")
def resnet34(shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """ResNet-34, otherwise as `resnet18`."""
    return _resnet("resnet34", shape, classes)


def _resnet(name: str, shape: tuple[int, int, int], classes: int) -> "nn.Module":
    import torchvision
    from torch import nn

    from kdray.models.layers import need

    need(shape, 16, name)
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    network.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network
