"""White noise: the baseline of "What Makes a Good Dataset for Knowledge Distillation?", section 3.2."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kdray.pools.base import pools
from kdray.pools.procedural.base import Painter, ProceduralSection
from kdray.pools.procedural.normal import TABLE_SIZE, TableIndices, bounded_normal_table
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_MEAN, _STD = 0.5 * 255, 0.25 * 255  # where there are no images
_LEAST_STD = 1.0  # pixel values: images of one colour have no spread
_SUM_AT_ONCE = 1024


@pools.register
class NoiseSection(ProceduralSection):
    """The candidates are white noise: each value is drawn from a normal distribution."""

    kind: Literal["noise"] = "noise"
    mean: Annotated[float, Field(ge=0, le=1)] | None = None
    """Mean of all channels, where 1 is white; without it each channel has that of the images, 0.5 if there are none."""
    std: Annotated[float, Field(gt=0, le=10)] | None = None
    """Standard deviation of all channels; without it each channel has that of the images, 0.25 if there are none."""

    def painter(self, images: Tensor, seed: int) -> Painter:
        """See `ProceduralSection`."""
        means, stds = (
            channel_statistics(images) if len(images) else ([_MEAN] * images.shape[1], [_STD] * images.shape[1])
        )
        tables = [
            bounded_normal_table(
                mean if self.mean is None else 255 * self.mean,
                max(_LEAST_STD, std if self.std is None else 255 * self.std),
            )
            for mean, std in zip(means, stds, strict=True)
        ]
        return NoisePainter(torch.stack(tables), (images.shape[2], images.shape[3]), seed)


class NoisePainter:
    """Draws white noise.

    Args:
        tables: int64 [C, TABLE_SIZE], equally likely values of each channel.
        size: (H, W).
        seed: the run's seed.
    """

    batch = 64

    def __init__(self, tables: Tensor, size: tuple[int, int], seed: int) -> None:
        self._tables, self._shape = tables.to(torch.uint8).flatten(), (len(tables), *size)
        self._indices = TableIndices(seed, "noise", math.prod(self._shape))

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`."""
        indices = self._indices(ids).view(len(ids), *self._shape)
        first = TABLE_SIZE * torch.arange(self._shape[0], device=ids.device)
        return self._tables.to(ids.device)[indices + first.view(-1, 1, 1)]


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of uint8 images [N, C, H, W], in pixel values. The sums are exact."""
    sums = torch.zeros(2, images.shape[1], dtype=torch.int64)
    for part in images.split(_SUM_AT_ONCE):
        values = part.to(torch.int64)
        sums += torch.stack([values.sum(dim=(0, 2, 3)), (values * values).sum(dim=(0, 2, 3))]).cpu()
    count = images.numel() // images.shape[1]
    means = [total / count for total in sums[0].tolist()]
    spreads = zip(sums[1].tolist(), means, strict=True)
    return means, [max(0.0, squares / count - mean * mean) ** 0.5 for squares, mean in spreads]
