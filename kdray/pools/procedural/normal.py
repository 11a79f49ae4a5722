"""Normal numbers in whole numbers: tables that random bits look up, the same on every machine."""

from __future__ import annotations

from statistics import NormalDist
from typing import TYPE_CHECKING

from kdray.pools.counter import CounterRandom
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_INDEX_BITS = 15  # a random number of 31 bits gives two entries of a table
TABLE_SIZE = 1 << _INDEX_BITS
"""Entries of a table that is looked up, all equally likely."""


def bounded_normal_table(mean: float, std: float) -> Tensor:
    """Values int64 [TABLE_SIZE] of a normal distribution that is rounded to whole numbers and cut to 0...255.

    Args:
        mean: of the distribution, in pixel values.
        std: its standard deviation, above 0.
    """
    normal = NormalDist(mean, std)
    ends = [round(TABLE_SIZE * normal.cdf(value + 0.5)) for value in range(255)]  # where the next value begins
    return torch.searchsorted(torch.tensor(ends), torch.arange(TABLE_SIZE), right=True)


def normal_table(scale: int) -> Tensor:
    """Values int64 [TABLE_SIZE] of the standard normal distribution, times `scale`, rounded."""
    normal = NormalDist()
    return torch.tensor([round(scale * normal.inv_cdf((index + 0.5) / TABLE_SIZE)) for index in range(TABLE_SIZE)])


class TableIndices:
    """Maps ids to random indices of a table.

    Args:
        seed: seed of the numbers.
        purpose: what they are for.
        count: indices of each id.
    """

    def __init__(self, seed: int, purpose: str, count: int) -> None:
        self._count = count
        self._random = CounterRandom(seed, purpose, (count + 1) // 2)

    def __call__(self, ids: Tensor) -> Tensor:
        """Indices int64 [B, count], uniform in [0, TABLE_SIZE), for ids int64 [B]."""
        words = self._random(ids).T
        upper, lower = words >> (31 - _INDEX_BITS), words & (TABLE_SIZE - 1)
        return torch.cat([upper, lower], dim=1)[:, : self._count]
