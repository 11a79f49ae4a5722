"""Noise with a spectrum that falls with the frequency, as that of natural images does.

An image is a sum of cosines with normal coefficients, whose standard deviation is 1 / f^a, through a sigmoid. The sum
is a product of matrices of whole numbers, which float64 holds exactly in any order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kdray.pools.base import pools
from kdray.pools.counter import CounterRandom, below
from kdray.pools.procedural.base import Painter, ProceduralSection
from kdray.pools.procedural.normal import TableIndices, normal_table
from kdray.pools.ranges import ASCENDING
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_EXPONENTS = 16  # candidates take one of so many exponents
_NORMAL_BITS, _WEIGHT_BITS, _BASIS_BITS = 8, 10, 12  # fractional bits
_VALUE_BITS, _RANGE = 8, 8  # of a sum in standard deviations, which is cut at 8 of them
_MIDDLE = _RANGE << _VALUE_BITS
STANDARD_DEVIATION = 1 << _VALUE_BITS
"""A standard deviation of a spectrum's noise, as a whole number."""

Exponent = Annotated[float, Field(ge=0, le=4)]
"""How fast the amplitude of noise falls with its frequency."""


@pools.register
class SpectrumSection(ProceduralSection):
    """The candidates are noise whose amplitude falls with the frequency f as 1 / f^a: soft clouds to fine grain."""

    kind: Literal["spectrum"] = "spectrum"
    exponent: Annotated[tuple[Exponent, Exponent], ASCENDING] = (0.5, 2.0)
    """Least and largest a; each candidate has one of 16 in equal steps."""
    contrast: Annotated[float, Field(gt=0, le=100)] = 2.0
    """Steepness of the sigmoid: how far a standard deviation of the sum takes a pixel from grey."""

    def painter(self, images: Tensor, seed: int) -> Painter:
        """See `ProceduralSection`."""
        _, channels, height, width = images.shape
        return SpectrumPainter((channels, height, width), self.exponent, self.contrast, seed)


class SpectrumPainter:
    """Draws noise of a spectrum.

    Args:
        shape: (C, H, W).
        exponents: least and largest exponent.
        contrast: steepness of the sigmoid.
        seed: the run's seed.
    """

    batch = 64

    def __init__(self, shape: tuple[int, int, int], exponents: tuple[float, float], contrast: float, seed: int) -> None:
        self._sums = SpectrumSums(shape, exponents, seed, ["spectrum"])
        self._sigmoid = _sigmoid_table(contrast)

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`."""
        return self._sigmoid.to(ids.device)[self._sums(ids) + _MIDDLE]


class SpectrumSums:
    """Sums of cosines with normal coefficients, whose standard deviation is 1 / f^a.

    Args:
        shape: (C, H, W); the sums of a channel are independent of those of another.
        exponents: least and largest a; each id has one of 16 in equal steps.
        seed: the run's seed.
        purposes: what sums are for; those for other purposes are independent.
    """

    def __init__(
        self, shape: tuple[int, int, int], exponents: tuple[float, float], seed: int, purposes: Sequence[str]
    ) -> None:
        low, high = exponents
        each = [low + (high - low) * step / (_EXPONENTS - 1) for step in range(_EXPONENTS)]
        self._shape = shape
        self._weights = torch.stack([_weights(shape[1], shape[2], exponent) for exponent in each])
        self._rows, self._columns = _basis(shape[1]), _basis(shape[2])
        self._normal = normal_table(1 << _NORMAL_BITS).to(torch.float64)
        self._indices = [TableIndices(seed, purpose, math.prod(shape)) for purpose in purposes]
        self._exponents = [CounterRandom(seed, f"{purpose} exponents", 1) for purpose in purposes]

    def __call__(self, ids: Tensor, purpose: int = 0) -> Tensor:
        """Values int64 [B, C, H, W] in 1/256 standard deviations, cut at 8 of them, for ids int64 [B] and one of the
        purposes, by its number."""
        device = ids.device
        exponent = below(self._exponents[purpose](ids)[0], _EXPONENTS)
        drawn = self._normal.to(device)[self._indices[purpose](ids)].view(len(ids), *self._shape)
        weighted = drawn * self._weights.to(device)[exponent].unsqueeze(1)
        half = (self._rows.to(device).T @ weighted).mul_(2.0**-_BASIS_BITS).floor_()  # else the next would pass 2^53
        sums = half @ self._columns.to(device)
        bits = _NORMAL_BITS + _WEIGHT_BITS + _BASIS_BITS - _VALUE_BITS
        return sums.mul_(2.0**-bits).floor_().clamp_(-_MIDDLE, _MIDDLE - 1).to(torch.int64)


def _weights(height: int, width: int, exponent: float) -> Tensor:
    """Standard deviation of each coefficient, float64 [H, W] of whole numbers. The squares of all sum to H * W, so a
    pixel's variance is 1 on average. The mean of an image varies as its slowest cosine does."""
    down = torch.arange(height, dtype=torch.float64) / height
    across = torch.arange(width, dtype=torch.float64) / width
    frequency = (down.unsqueeze(1).square() + across.square()).sqrt()
    frequency[0, 0] = 1 / max(height, width)
    falling = frequency.pow(-exponent)
    return (falling * (height * width / falling.square().sum()).sqrt() * (1 << _WEIGHT_BITS)).round()


def _basis(side: int) -> Tensor:
    """Orthonormal cosines (DCT-II) float64 [frequency, position] of whole numbers."""
    rows = [
        [
            round(
                math.sqrt((2 if k else 1) / side)
                * math.cos(math.pi * (2 * x + 1) * k / (2 * side))
                * (1 << _BASIS_BITS)
            )
            for x in range(side)
        ]
        for k in range(side)
    ]
    return torch.tensor(rows, dtype=torch.float64)


def _sigmoid_table(contrast: float) -> Tensor:
    """Pixel values uint8 of sums from -8 to 8 standard deviations, in steps of 1/256."""
    steps = (contrast * (index + 0.5) / STANDARD_DEVIATION for index in range(-_MIDDLE, _MIDDLE))
    return torch.tensor([round(255 * (0.5 + 0.5 * math.tanh(step / 2))) for step in steps], dtype=torch.uint8)
