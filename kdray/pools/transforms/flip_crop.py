"""Random crops, enlarged to the size of the image and mirrored half of the time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from kdray.pools.boxes import boxes
from kdray.pools.counter import BITS, below
from kdray.pools.ranges import PositiveShares
from kdray.pools.transforms.base import WarpTransform, transforms
from kdray.pools.warp import ONE
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@transforms.register
class FlipCrop(WarpTransform):
    """A random part of each image, enlarged to the size of the image, and mirrored left-right half of the time."""

    words: ClassVar[int] = 4

    kind: Literal["flip-crop"] = "flip-crop"
    area: PositiveShares = (0.5, 1.0)
    """[least, most] area of the part, as a share of the image."""
    longest: Annotated[float, Field(ge=1)] = 1.33
    """Largest ratio of the part's sides, measured in sides of the image."""
    flip: bool = True
    """Whether images are mirrored. Turn it off where left and right mean something, as in digits."""

    def maps(self, words: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """See `WarpTransform`."""
        _, height, width = shape
        table = torch.from_numpy(np.rint(boxes(*self.area, self.longest) * ONE).astype(np.int64)).to(words.device)
        scales = table[below(words[0], len(table))]
        columns = []
        for word, scale, side in zip(words[1:3], (scales[:, 1], scales[:, 0]), (width, height), strict=True):
            room = (ONE - scale) * side  # from the middle to where the part touches an edge, in half pixels
            columns.append((scale, below(word, 2 * room + 1) - room))
        (across, left), (down, top) = columns
        mirrored = (words[3] >> (BITS - 1) == 1) & self.flip
        zero = torch.zeros_like(across)
        return torch.stack([torch.where(mirrored, -across, across), zero, left, zero, down, top], dim=1)
