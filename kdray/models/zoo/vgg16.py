"""VGG-16 for small images."""

from typing import TYPE_CHECKING

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn


@register_model("vgg16")
def vgg16(shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """VGG-16 (Simonyan and Zisserman, 2015) with batch normalisation.

    The convolutions are torchvision's. One linear layer follows them, as usual for CIFAR.

    Raises:
        ModelError: images below 32x32.
    """
    from torch import nn
    from torchvision.models import vgg  # takes 160 MB of memory

    from kdray.models.layers import need

    need(shape, 32, "vgg16")
    layers = vgg.make_layers(vgg.cfgs["D"], batch_norm=True)
    for module in layers.modules():  # as torchvision initialises them, without its 120 million unused weights
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    features = nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(features, nn.Linear(512, classes))
