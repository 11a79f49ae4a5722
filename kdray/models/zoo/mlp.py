"""A network without convolutions."""

from typing import TYPE_CHECKING

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn


@register_model("mlp", light=True)
def mlp(shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """LeNet-300-100 (LeCun et al., 1998) with ReLU: 266,610 parameters at 1x28x28, ten classes."""
    from torch import nn

    pixels = shape[0] * shape[1] * shape[2]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, classes)
    )
