"""MobileNetV2 for small images."""

from typing import TYPE_CHECKING, Any

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn


@register_model("mobilenetv2")
def mobilenetv2(shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """torchvision's MobileNetV2 (Sandler et al., 2018) without the first two strides, as usual for 32x32 images.

    Raises:
        ModelError: images below 16x16.
    """
    import torchvision
    from torch import nn

    from kdray.models.layers import need

    need(shape, 16, "mobilenetv2")
    network: nn.Module = torchvision.models.mobilenet_v2(weights=None, num_classes=classes)
    features: Any = network.features
    features[0][0] = nn.Conv2d(shape[0], 32, 3, stride=1, padding=1, bias=False)
    features[2].conv[1][0].stride = (1, 1)
    return network
