"""CutMix: a rectangle of one image in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from kdray.pools.blends.base import Blend, blends, cut
from kdray.pools.boxes import boxes
from kdray.pools.counter import below
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@blends.register
class CutMix(Blend):
    """A rectangle of one image, in its place, over the other image (Yun et al., ICCV 2019).

    The rectangle has the drawn share of the area, rounded to whole pixels. The paper's has the shape of the image and
    is cut off at the image's edges; this one has a random shape and lies within the image.
    """

    words: ClassVar[int] = 3

    kind: Literal["cutmix"] = "cutmix"
    longest: Annotated[float, Field(ge=1)] = 2.0
    """Largest ratio of the rectangle's sides, measured in sides of the image."""

    def build(self, shape: tuple[int, int, int], device: torch.device) -> RectangleCutter:
        """See `Blend`."""
        _, height, width = shape
        shares = boxes(*self.share, self.longest)
        # The width follows from the height after rounding, so that the area is as near as it can be.
        tall = np.rint(height * shares[:, 0]).clip(1, height)
        wide = np.rint(height * width * shares[:, 0] * shares[:, 1] / tall).clip(1, width)
        sides = torch.from_numpy(np.stack([tall, wide]).astype(np.int64)).to(device)
        return RectangleCutter(sides, height, width)


class RectangleCutter:
    """Takes a rectangle of one image, of a height and width in `sides`, int64 [2, R], and the rest of the other."""

    def __init__(self, sides: Tensor, height: int, width: int) -> None:
        self._sides = sides
        self._rows = torch.arange(height, dtype=torch.int32, device=sides.device)
        self._columns = torch.arange(width, dtype=torch.int32, device=sides.device)

    def __call__(self, one: Tensor, other: Tensor, words: Tensor) -> Tensor:
        """See `Blender`."""
        tall, wide = self._chosen(words)
        down = _between(self._rows, words[1], tall)
        across = _between(self._columns, words[2], wide)
        return cut(one, other, down.unsqueeze(2) & across.unsqueeze(1))

    def shares(self, words: Tensor) -> Tensor:
        """See `Blender`."""
        return self._chosen(words).prod(dim=0).to(torch.float64) / (len(self._rows) * len(self._columns))

    def _chosen(self, words: Tensor) -> Tensor:
        return self._sides.index_select(1, below(words[0], self._sides.shape[1]))


def _between(positions: Tensor, words: Tensor, lengths: Tensor) -> Tensor:
    """1 for those of the positions int32 [P] that lie in an interval of given length, int64 [B], at a random place:
    uint8 [B, P]."""
    begin = below(words, len(positions) - lengths + 1).to(torch.int32).unsqueeze(1)
    end = begin + lengths.to(torch.int32).unsqueeze(1)
    return ((positions >= begin) & (positions < end)).view(torch.uint8)  # whose & is faster than that of bool
