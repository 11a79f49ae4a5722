"""Cutline: a straight line divides the image, and each side of it shows another image."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from kdray.pools.blends.base import Blend, blends, cut
from kdray.pools.counter import below
from kdray.pools.warp import ONE, rotation
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_DIRECTIONS, _AREAS = 256, 256


@blends.register
class CutLine(Blend):
    """One image on one side of a straight line of random direction, the other image on its other side.

    The side has the drawn share of the area, rounded to whole pixels: the edge is hard.
    """

    words: ClassVar[int] = 2

    kind: Literal["cutline"] = "cutline"

    def build(self, shape: tuple[int, int, int], device: torch.device) -> LineCutter:
        """See `Blend`."""
        _, height, width = shape
        turns = np.array([rotation(360.0 * number / _DIRECTIONS) for number in range(_DIRECTIONS)], dtype=np.int64)
        areas = self.share[0] + (self.share[1] - self.share[0]) * ((np.arange(_AREAS) + 0.5) / _AREAS)
        limits = _limits(turns[:, :1] / ONE, turns[:, 1:] / ONE, areas, height, width)
        table = np.concatenate([turns, np.rint(limits * ONE).astype(np.int64)], axis=1)
        return LineCutter(torch.from_numpy(table.astype(np.int32)).to(device), height, width)


def _limits(across: np.ndarray, down: np.ndarray, areas: np.ndarray, height: int, width: int) -> np.ndarray:
    """For unit vectors (across, down), float64 [D, 1] each, and areas float64 [A] as shares of an image: the l with
    which the half plane `across` X + `down` Y < l holds so much of the image; float64 [D, A].

    X and Y are measured from the centre in half pixels. Along the vector, the width of the image rises as far as the
    shorter of its two projected sides reaches, is constant, and falls again.
    """
    sides = np.sort(np.abs(np.concatenate([across * width, down * height], axis=1)), axis=1)
    short, long = np.maximum(sides[:, :1], 1e-9), sides[:, 1:]
    least = np.minimum(areas, 1.0 - areas)  # the same on either side of the centre
    rising = np.sqrt(2.0 * short * long * least)
    from_end = np.where(rising <= short, rising, long * least + short / 2.0)
    limits: np.ndarray = np.where(areas <= 0.5, 1.0, -1.0) * (2.0 * from_end - (short + long))
    return limits


class LineCutter:
    """Takes one image where a half plane is, and the other elsewhere.

    Args:
        table: int32 [D, 2 + A]: a direction's vector, and its limits, with 14 fractional bits; see `_limits`.
        height, width: of the images.
    """

    def __init__(self, table: Tensor, height: int, width: int) -> None:
        self._vectors, self._limits = table[:, :2].contiguous(), table[:, 2:].contiguous()
        self._x = 2 * torch.arange(width, dtype=torch.int32, device=table.device) - (width - 1)
        self._y = 2 * torch.arange(height, dtype=torch.int32, device=table.device) - (height - 1)

    def __call__(self, one: Tensor, other: Tensor, words: Tensor) -> Tensor:
        """See `Blender`."""
        return cut(one, other, self._side(words).view(torch.uint8))

    def shares(self, words: Tensor) -> Tensor:
        """See `Blender`."""
        return self._side(words).to(torch.float64).mean(dim=(1, 2))

    def _side(self, words: Tensor) -> Tensor:
        """The pixels of `one`, bool [B, H, W]."""
        directions, areas = below(words[0], _DIRECTIONS), below(words[1], _AREAS)
        vectors = self._vectors[directions]
        limits = self._limits[directions, areas].unsqueeze(1)
        across = (vectors[:, :1] * self._x).unsqueeze(1)
        down = (limits - vectors[:, 1:] * self._y).unsqueeze(2)
        return across < down
