"""A small convolutional network."""

from typing import TYPE_CHECKING

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn


@register_model("small-cnn", light=True)
def small_cnn(shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """Three 3x3 convolutions with batch normalisation, 16-32-64 channels, and one linear layer.

    Raises:
        ModelError: images below 8x8.
    """
    from torch import nn

    from kdray.models.layers import MaxPool2x2, flat_features, need

    need(shape, 8, "small-cnn")
    layers: list[nn.Module] = []
    channels = shape[0]
    for width in (16, 32, 64):
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), MaxPool2x2(), nn.ReLU()]
        channels = width
    features = nn.Sequential(*layers, nn.Flatten())
    return nn.Sequential(features, nn.Linear(flat_features(features, shape), classes))
