"""Contours: the lines along which smooth noise has one value, as the lines of a map.

They are curves of any shape, closed or cut by an edge of the image, wide where the noise is flat and fine where it is
steep. Everything is computed in whole numbers, with values in 1/256 standard deviations of an image's noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kdray.pools.base import pools
from kdray.pools.counter import CounterRandom, below
from kdray.pools.procedural.base import Painter, ProceduralSection
from kdray.pools.procedural.spectrum import STANDARD_DEVIATION, Exponent, SpectrumSums
from kdray.pools.ranges import ASCENDING
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_FULL = 256  # of a pixel that lies within a contour
_SIDE = 5.6  # pixels a side for which an edge may be steeper by 1: it is then about a pixel and a half wide

Width = Annotated[float, Field(ge=0.01, le=4)]


@pools.register
class ContoursSection(ProceduralSection):
    """The candidates are contours of smooth noise: curves of any shape, many of them closed, of changing width."""

    kind: Literal["contours"] = "contours"
    exponent: Annotated[tuple[Exponent, Exponent], ASCENDING] = (2.0, 4.0)
    """Least and largest a of the noise, whose amplitude falls with the frequency f as 1 / f^a: small ones give many
    short curves, large ones a few long ones. Each candidate has one of 16 in equal steps."""
    width: Annotated[tuple[Width, Width], ASCENDING] = (0.15, 0.6)
    """Least and largest width of a contour: how many standard deviations of the image's noise it spans."""
    colours: Literal["any", "light-on-dark"] = "any"
    """any: the background and the contour have random colours. light-on-dark: the background is black, and no channel
    of the contour's colour is below 128."""

    def painter(self, images: Tensor, seed: int) -> Painter:
        """See `ProceduralSection`."""
        _, channels, height, width = images.shape
        return ContoursPainter((channels, height, width), self.exponent, self.width, self.colours == "any", seed)


class ContoursPainter:
    """Draws contours.

    Args:
        shape: (C, H, W).
        exponents: least and largest exponent of the noise.
        widths: least and largest width of a contour, in standard deviations.
        any_colour: whether all colours are random; if not, contours are light and the background is black.
        seed: the run's seed.
    """

    batch = 64

    def __init__(
        self,
        shape: tuple[int, int, int],
        exponents: tuple[float, float],
        widths: tuple[float, float],
        any_colour: bool,
        seed: int,
    ) -> None:
        self._shape, self._any_colour = shape, any_colour
        self._widths = [max(1, round(width * STANDARD_DEVIATION)) for width in widths]
        self._steepness = max(1, round(max(shape[1:]) / _SIDE))
        self._sums = SpectrumSums((1, *shape[1:]), exponents, seed, "contours")
        self._random = CounterRandom(seed, "contours", 2 + 2 * shape[0])

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`."""
        channels, height, width = self._shape
        words = self._random(ids)
        cover = self._cover(_standard(self._sums(ids).flatten(1)), words).view(-1, 1, height, width)
        paper, ink = words[2:].T.reshape(-1, 2, channels, 1, 1).unbind(1)
        least = 0 if self._any_colour else 128
        paper, ink = below(paper, 256 if self._any_colour else 1), least + below(ink, 256 - least)
        return ((ink * cover + paper * (_FULL - cover) + _FULL // 2) // _FULL).to(torch.uint8)

    def _cover(self, values: Tensor, words: Tensor) -> Tensor:
        """How much of each pixel a contour covers, int64 [B, H * W] of at most _FULL. It goes through a random pixel,
        so no image is empty."""
        pixel = below(words[0], values.shape[1]).unsqueeze(1)
        width = self._widths[0] + below(words[1], self._widths[1] - self._widths[0] + 1).unsqueeze(1)
        apart = (values - values.gather(1, pixel)).abs()
        return (_FULL // 2 + self._steepness * (width - 2 * apart) // 2).clamp_(0, _FULL)


def _standard(values: Tensor) -> Tensor:
    """Values int64 [B, N], moved to a mean of 0 and stretched to a standard deviation of STANDARD_DEVIATION. An image
    of one value becomes zeros."""
    moved = values - values.sum(dim=1, keepdim=True) // values.shape[1]
    variance = moved.square().sum(dim=1, keepdim=True) // values.shape[1]
    return STANDARD_DEVIATION * moved // variance.to(torch.float64).sqrt().to(torch.int64).clamp_(min=1)
