"""AlexNet for small images."""

from typing import TYPE_CHECKING

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn


@register_model("alexnet")
def alexnet(shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """AlexNet (Krizhevsky et al., 2012) with 3x3 kernels and stride 1 for small images; dropout as in the original.

    Raises:
        ModelError: images below 16x16.
    """
    from torch import nn

    from kdray.models.layers import MaxPool2x2, flat_features, need

    need(shape, 16, "alexnet")
    features = nn.Sequential(
        nn.Conv2d(shape[0], 64, 3, padding=1), nn.ReLU(), MaxPool2x2(),
        nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(), MaxPool2x2(),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), MaxPool2x2(), nn.Flatten(),
    )  # fmt: skip
    flat = flat_features(features, shape)
    return nn.Sequential(
        features,
        nn.Dropout(0.5), nn.Linear(flat, 1024), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, classes),
    )  # fmt: skip
