"""Fractals: attractors of random iterated function systems, in random colours.

Sources: Kataoka et al., "Pre-training without Natural Images", 2020; the maps are chosen as in Anderson and Farrell,
"Improving Fractal Pre-training", 2022. Everything is computed in whole numbers, with maps and coordinates in 2^-16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from kdray.pools.base import pools
from kdray.pools.counter import CounterRandom
from kdray.pools.procedural.base import Painter, ProceduralSection
from kdray.pools.procedural.compiled import draw, drawing
from kdray.pools.procedural.sines import sine_table
from kdray.pools.ranges import ASCENDING

if TYPE_CHECKING:
    from torch import Tensor

Maps = Annotated[int, Field(ge=2, le=16)]
Count = Annotated[int, Field(ge=1, le=100)]
Share = Annotated[float, Field(gt=0, le=1)]


@pools.register
class FractalsSection(ProceduralSection):
    """The candidates are fractals: attractors of random iterated function systems. Needs numba:
    `pip install 'kdray[fractals]'`."""

    kind: Literal["fractals"] = "fractals"
    maps: Annotated[tuple[Maps, Maps], ASCENDING] = (2, 8)
    """Least and most maps of a fractal's system."""
    fractals: Annotated[tuple[Count, Count], ASCENDING] = (1, 2)
    """Least and most fractals of a candidate, each in two random colours that mix by how dense it is."""
    extent: Annotated[tuple[Share, Share], ASCENDING] = (0.5, 1)
    """Least and largest size of a fractal, as a share of the image's sides."""
    colours: Literal["any", "light-on-dark"] = "any"
    """any: the background and each fractal have random colours. light-on-dark: the background is black, and no channel
    of a fractal is below 128."""

    def painter(self, images: Tensor, seed: int) -> Painter:
        """See `ProceduralSection`. A ConfigError also says that numba is missing."""
        _, channels, height, width = images.shape
        return FractalsPainter(
            (channels, height, width), self.maps, self.fractals, self.extent, self.colours == "any", seed
        )


class FractalsPainter:
    """Draws fractals.

    Args:
        shape: (C, H, W).
        maps: least and most maps of a fractal, 2 to 16.
        fractals: least and most fractals of an image.
        extent: least and largest size of a fractal, as a share of the image's sides.
        any_colour: whether all colours are random; if not, fractals are light and the background is black.
        seed: the run's seed.

    Raises:
        ConfigError: numba cannot be imported.
    """

    batch = 256

    def __init__(
        self,
        shape: tuple[int, int, int],
        maps: tuple[int, int],
        fractals: tuple[int, int],
        extent: tuple[float, float],
        any_colour: bool,
        seed: int,
    ) -> None:
        compiled = drawing("fractals")
        self._shape, self._light = shape, not any_colour
        self._maps, self._fractals = np.array(maps), np.array(fractals)
        self._extent = np.array([round(share * (1 << compiled.EXTENT_BITS)) for share in extent])
        self._sine = np.array(sine_table(compiled.TURN, compiled.SINE_BITS))
        # The logarithm of the hits, exactly: 0 for one, nearly 1 for the most.
        scale = (1 << compiled.SHARE_BITS) // compiled.MOST_HITS.bit_length()
        self._shares = np.array([max(0, (hits**scale).bit_length() - 1) for hits in range(compiled.MOST_HITS + 1)])
        self._random = CounterRandom(seed, "fractals", 2)

    def __call__(self, ids: Tensor) -> Tensor:
        """See `Painter`."""
        fields = self._fractals, self._maps, self._extent, self._light, self._sine, self._shares
        return draw("fractals", ids, self._random, self._shape, *fields)
