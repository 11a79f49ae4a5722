"""Dead leaves: random shapes, one over another, until they cover the image, or a few of them on a plain ground.

Source: the dead leaves of Baradad et al., "Learning to See by Looking at Noise", 2021. Everything is computed in whole
numbers, with positions in sixteenths of a pixel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from kdray.pools.base import pools
from kdray.pools.counter import CounterRandom
from kdray.pools.procedural.base import Painter, ProceduralSection
from kdray.pools.procedural.compiled import draw, drawing
from kdray.pools.procedural.sines import sine_table
from kdray.pools.ranges import ASCENDING

if TYPE_CHECKING:
    from torch import Tensor

MOST_LEAVES = 100_000
"""Leaves of an image at most. At 32 x 32 the defaults take 900 on average."""
_WIDTH = (0.04, 0.12)  # of an outline

Shape = Literal["circle", "square", "oriented-square", "rectangle", "triangle", "quadrilateral"]
Texture = Literal["plain", "gradient", "stripes", "grain"]
Colours = Literal["any", "light-on-dark", "light-and-dark"]
Share = Annotated[float, Field(ge=0.001, le=1)]
Width = Annotated[float, Field(gt=0, le=1)]
Leaves = Annotated[int, Field(ge=1, le=MOST_LEAVES)]


@pools.register
class LeavesSection(ProceduralSection):
    """The candidates are dead leaves: random shapes, one over another. Needs numba: `pip install 'kdray[leaves]'`."""

    kind: Literal["leaves"] = "leaves"
    shapes: Annotated[tuple[Shape, ...], Field(min_length=1)] = (
        "circle", "square", "oriented-square", "rectangle", "triangle", "quadrilateral",
    )  # fmt: skip
    """Each leaf has one of these. The corners of all but circles lie on the circle of the leaf's radius; the sides of a
    square and a rectangle are upright, those of an oriented square are not."""
    radii: Annotated[tuple[Share, Share], ASCENDING] = (0.03, 1.0)
    """Least and largest radius of a leaf, as a share of the image's smaller side, but half a pixel at least."""
    sigma: Annotated[float, Field(ge=0, le=10)] = 3.0
    """Exponent of the power law of radii: the density at radius r is proportional to 1 / r^sigma."""
    textures: Annotated[tuple[Texture, ...], Field(min_length=1)] = ("plain",)
    """Each leaf has one of these. plain: one colour. gradient, stripes: two colours along a random direction. grain:
    each pixel is a random mix of two colours."""
    leaves: Annotated[tuple[Leaves, Leaves], ASCENDING] | None = None
    """Least and most leaves of a candidate, on a ground of one colour or texture; without it they cover the image."""
    outlines: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of leaves of which an outline alone is drawn; what lies under them shows inside."""
    width: Annotated[tuple[Width, Width], ASCENDING] = _WIDTH
    """Least and largest width of an outline, as a share of the image's smaller side, but a pixel at least."""
    colours: Colours = "any"
    """any: the ground and each leaf have random colours. light-on-dark: the ground is black, and no channel of a leaf
    is below 128. light-and-dark: half of the leaves are black, too, and cut holes and notches into the light ones. Both
    need `leaves`."""

    @model_validator(mode="after")
    def _sound(self) -> LeavesSection:
        for name in ("shapes", "textures"):
            names = getattr(self, name)
            if len(set(names)) < len(names):
                raise ValueError(f"{name}: name each once, got {list(names)}")
        if self.leaves is None and self.colours != "any":
            raise ValueError(f"colours: {self.colours} needs a ground; set pool.leaves, [1, 8] for example")
        if self.outlines == 0 and self.width != _WIDTH:
            raise ValueError("width: it is that of outlines, and there are none; set pool.outlines, 0.5 for example")
        return self

    def painter(self, images: Tensor, seed: int) -> Painter:
        """See `ProceduralSection`. A ConfigError also says that numba is missing."""
        _, channels, height, width = images.shape
        return LeavesPainter(
            (channels, height, width),
            self.shapes,
            self.radii,
            self.sigma,
            self.textures,
            seed,
            leaves=self.leaves or (MOST_LEAVES, MOST_LEAVES),
            outlines=self.outlines,
            width=self.width,
            colours=self.colours,
        )


class LeavesPainter:
    """Draws dead leaves.

    Args:
        shape: (C, H, W).
        shapes: names of the leaves' shapes, all equally likely.
        radii: least and largest radius, as a share of the smaller side.
        sigma: exponent of the power law of radii.
        textures: names of the leaves' textures, all equally likely.
        seed: the run's seed.
        leaves: least and most leaves of an image; if they leave pixels open, one more covers these.
        outlines: share of leaves that are outlines.
        width: least and largest width of an outline, as a share of the smaller side.
        colours: which colours leaves have, and the one that covers the rest.

    Raises:
        ConfigError: numba cannot be imported.
    """

    batch = 256

    def __init__(
        self,
        shape: tuple[int, int, int],
        shapes: tuple[Shape, ...],
        radii: tuple[float, float],
        sigma: float,
        textures: tuple[Texture, ...],
        seed: int,
        leaves: tuple[int, int] = (MOST_LEAVES, MOST_LEAVES),
        outlines: float = 0.0,
        width: tuple[float, float] = _WIDTH,
        colours: Colours = "any",
    ) -> None:
        compiled = drawing("leaves")
        self._shape, self._leaves, self._colours = shape, np.array(leaves), compiled.COLOURS.index(colours)
        self._shapes = np.array([compiled.SHAPES.index(name) for name in shapes])
        self._textures = np.array([compiled.TEXTURES.index(name) for name in textures])
        quantiles = radius_quantiles(*radii, sigma, 1 << compiled.RADIUS_BITS)
        side, least = min(shape[1:]) * compiled.UNIT, compiled.UNIT // 2
        self._radii = np.array([max(least, round(side * radius)) for radius in quantiles])
        self._outlined = round(outlines * (1 << compiled.CHOICE_BITS))
        self._widths = np.array([max(compiled.UNIT, round(side * share)) for share in width])
        self._sine = np.array(sine_table(compiled.TURN, compiled.SINE_BITS))
        self._random = CounterRandom(seed, "leaves", 2)

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`."""
        which = self._leaves, self._shapes, self._textures, self._radii, self._colours
        return draw("leaves", ids, self._random, self._shape, *which, self._outlined, self._widths, self._sine)


def radius_quantiles(least: float, largest: float, sigma: float, count: int) -> list[float]:
    """Equally likely values of a density proportional to 1 / r^sigma on [least, largest]: its quantiles at the middles
    of `count` equal steps."""
    middles = ((index + 0.5) / count for index in range(count))
    span, power = math.log(largest / least), 1 - sigma
    if power == 0:
        return [least * math.exp(middle * span) for middle in middles]
    reach = math.expm1(power * span)  # accurate even where sigma is nearly 1
    return [least * math.exp(math.log1p(middle * reach) / power) for middle in middles]
