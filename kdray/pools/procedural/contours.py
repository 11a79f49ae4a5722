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

_FULL_BITS = 8  # of how much of a pixel is covered
_FULL = 1 << _FULL_BITS
_WORDS = 2  # random numbers of a contour besides its colours
_SIDE = 5.6  # pixels a side for which an edge may be steeper by 1: it is then about a pixel and a half wide

Count = Annotated[int, Field(ge=1, le=100)]
Width = Annotated[float, Field(ge=0.01, le=4)]


@pools.register
class ContoursSection(ProceduralSection):
    """The candidates are contours of smooth noise: curves of any shape and of changing width, some of them closed."""

    kind: Literal["contours"] = "contours"
    contours: Annotated[tuple[Count, Count], ASCENDING] = (1, 3)
    """Least and most contours of a candidate, each of noise of its own: so they cross."""
    exponent: Annotated[tuple[Exponent, Exponent], ASCENDING] = (2.0, 4.0)
    """Least and largest a of the noise, whose amplitude falls with the frequency f as 1 / f^a: small ones give many
    short curves, large ones a few long ones. Each contour has one of 16 in equal steps."""
    width: Annotated[tuple[Width, Width], ASCENDING] = (0.15, 0.6)
    """Least and largest width of a contour: how many standard deviations of its noise it spans."""
    colours: Literal["any", "light-on-dark"] = "any"
    """any: the background and each contour have a random colour, one painted over another. light-on-dark: the
    background is black, no channel of a contour's colour is below 128, and of two that cross each pixel is the lighter
    one."""

    def painter(self, images: Tensor, seed: int) -> Painter:
        """See `ProceduralSection`."""
        _, channels, height, width = images.shape
        return ContoursPainter(
            (channels, height, width), self.contours, self.exponent, self.width, self.colours == "any", seed
        )


class ContoursPainter:
    """Draws contours.

    Args:
        shape: (C, H, W).
        contours: least and most contours of an image.
        exponents: least and largest exponent of the noise.
        widths: least and largest width of a contour, in standard deviations.
        any_colour: whether all colours are random; if not, contours are light and the background is black.
        seed: the run's seed.
    """

    batch = 64

    def __init__(
        self,
        shape: tuple[int, int, int],
        contours: tuple[int, int],
        exponents: tuple[float, float],
        widths: tuple[float, float],
        any_colour: bool,
        seed: int,
    ) -> None:
        self._shape, self._contours, self._any_colour = shape, contours, any_colour
        self._widths = [max(1, round(width * STANDARD_DEVIATION)) for width in widths]
        self._steepness = max(1, round(max(shape[1:]) / _SIDE))
        self._canvas = CounterRandom(seed, "contours", 1 + shape[0])
        purposes = [f"contour {number}" for number in range(contours[1])]
        self._sums = SpectrumSums((1, *shape[1:]), exponents, seed, purposes)
        self._random = CounterRandom(seed, "each contour", contours[1] * (_WORDS + shape[0]))

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`."""
        canvas = self._canvas(ids)
        count = self._contours[0] + below(canvas[0], self._contours[1] - self._contours[0] + 1)
        paper = below(canvas[1:], 256 if self._any_colour else 1).to(torch.int32)
        image = paper.T[:, :, None, None].repeat(1, 1, *self._shape[1:])
        for number, words in enumerate(self._random(ids).chunk(self._contours[1])):
            some = (number < count).nonzero().squeeze(1)
            values = _standard(self._sums(ids[some], number).flatten(1))
            cover = self._cover(values, words[:, some]).view(-1, 1, *self._shape[1:])
            least = 0 if self._any_colour else 128
            colour = (least + below(words[_WORDS:, some], 256 - least)).to(torch.int32).T[:, :, None, None]
            if self._any_colour:
                image[some] = (colour * cover + image[some] * (_FULL - cover) + _FULL // 2) >> _FULL_BITS
            else:  # one that is painted over a lighter one would cut it in two
                image[some] = torch.maximum(image[some], (colour * cover + _FULL // 2) >> _FULL_BITS)
        return image.to(torch.uint8)

    def _cover(self, values: Tensor, words: Tensor) -> Tensor:
        """How much of each pixel a contour covers, int32 [B, H * W] of at most _FULL. It goes through a random pixel,
        so no image is empty."""
        pixel = below(words[0], values.shape[1]).unsqueeze(1)
        width = (self._widths[0] + below(words[1], self._widths[1] - self._widths[0] + 1)).to(torch.int32).unsqueeze(1)
        apart = (values - values.gather(1, pixel)).abs()
        return (_FULL // 2 + (self._steepness * (width - 2 * apart) >> 1)).clamp_(0, _FULL)


def _standard(values: Tensor) -> Tensor:
    """Values int64 [B, N], moved to a mean of 0 and stretched to a standard deviation of STANDARD_DEVIATION: int32. An
    image of one value becomes zeros."""
    moved = values - values.sum(dim=1, keepdim=True) // values.shape[1]
    variance = moved.square().sum(dim=1, keepdim=True) // values.shape[1]
    spread = variance.to(torch.float64).sqrt_().floor_().clamp_(min=1)
    # The quotient of whole numbers this small is rounded down right in float64, which divides faster.
    return moved.to(torch.float64).mul_(STANDARD_DEVIATION).div_(spread).floor_().to(torch.int32)
