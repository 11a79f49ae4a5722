"""LeNet-5."""

from typing import TYPE_CHECKING

from kdray.models.base import register_model

if TYPE_CHECKING:
    from torch import nn


@register_model("lenet5", light=True)
def lenet5(shape: tuple[int, int, int], classes: int) -> "nn.Module":
    """LeNet-5 (LeCun et al., 1998) with ReLU and max pooling: 61,706 parameters at 28x28, ten classes.

    Raises:
        ModelError: images below 16x16.
    """
    from torch import nn

    from kdray.models.layers import MaxPool2x2, flat_features, need

    need(shape, 16, "lenet5")
    # Pooling before ReLU gives the same bits as after it, and ReLU then works on a quarter of the values.
    features = nn.Sequential(
        nn.Conv2d(shape[0], 6, 5, padding=2), MaxPool2x2(), nn.ReLU(),
        nn.Conv2d(6, 16, 5), MaxPool2x2(), nn.ReLU(), nn.Flatten(),
    )  # fmt: skip
    flat = flat_features(features, shape)
    return nn.Sequential(
        features, nn.Linear(flat, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)
    )
