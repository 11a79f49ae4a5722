"""ShuffleNetV2 for small images."""

from typing import TYPE_CHECKING, Any

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn


@register_model("shufflenetv2")
def shufflenetv2(shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """torchvision's ShuffleNetV2 1x (Ma et al., 2018) with a first convolution of stride 1 and no first pooling.

    Raises:
        ModelError: images below 16x16.
    """
    import torchvision
    from torch import nn

    from kdray.models.layers import need

    need(shape, 16, "shufflenetv2")
    network: Any = torchvision.models.shufflenet_v2_x1_0(weights=None, num_classes=classes)
    network.conv1[0] = nn.Conv2d(shape[0], 24, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    built: nn.Module = network
    return built
