"""Small random rotations, changes of scale, shears and shifts."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from kdray.pools.counter import below
from kdray.pools.transforms.base import WarpTransform, transforms
from kdray.pools.warp import ONE, SCALE_BITS, rotation
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_LEVELS = 256  # of each quantity, spread evenly over its range


@transforms.register
class Affine(WarpTransform):
    """Each image is turned, scaled, sheared and shifted, each by a random amount. Its edge is repeated outside it."""

    words: ClassVar[int] = 5

    kind: Literal["affine"] = "affine"
    degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    """Largest rotation, each way."""
    scale: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    """Largest change of scale: 0.15 means factors from 0.85 to 1.15."""
    shear: Annotated[float, Field(ge=0, le=1)] = 0.15
    """Largest shear, each way: horizontal shift for each pixel of height."""
    shift: Annotated[float, Field(ge=0, le=1)] = 0.07
    """Largest shift, each way, as a share of the width and of the height."""

    def maps(self, words: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """See `WarpTransform`: shear and rotation in fixed point, divided by the scale."""
        _, height, width = shape
        table = torch.from_numpy(_table(self.degrees, self.scale, self.shear)).to(words.device)
        turn, zoom, slant = (below(word, _LEVELS) for word in words[:3])
        cos, sin, inverse, shear = table[0][turn], table[1][turn], table[2][zoom], table[3][slant]
        matrix = (cos - (shear * sin >> SCALE_BITS), sin + (shear * cos >> SCALE_BITS), -sin, cos)
        xx, xy, yx, yy = (inverse * number >> SCALE_BITS for number in matrix)
        shifts = []
        for word, side in zip(words[3:], (width, height), strict=True):
            most = round(2 * side * self.shift * ONE)  # half pixels, in fixed point
            shifts.append(below(word, 2 * most + 1) - most)
        return torch.stack([xx, xy, shifts[0], yx, yy, shifts[1]], dim=1)


@lru_cache(maxsize=16)
def _table(degrees: float, scale: float, shear: float) -> np.ndarray:
    """cos and sin of the angle, the inverse of the scale, and the shear, at each level: int64 [4, _LEVELS], with 14
    fractional bits."""
    levels = [(2 * level + 1 - _LEVELS) / _LEVELS for level in range(_LEVELS)]  # within (-1, 1)
    turns = [rotation(degrees * level) for level in levels]
    return np.array(
        [
            [cos for cos, _ in turns],
            [sin for _, sin in turns],
            [round(ONE / (1.0 + scale * level)) for level in levels],
            [round(shear * level * ONE) for level in levels],
        ],
        dtype=np.int64,
    )
