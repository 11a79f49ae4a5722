"""Mixup at a λ of each candidate's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from kdray.pools.blends.base import Blend, blends
from kdray.pools.counter import below
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_BITS = 7  # fractional bits of λ: 255 * 2^7 still fits int16, in which a CPU mixes twice as fast as in int32


@blends.register
class Mixup(Blend):
    """λ times one image and 1 - λ times the other (Zhang et al., ICLR 2018). λ, the share, is a multiple of 1/128."""

    words: ClassVar[int] = 1

    kind: Literal["mixup"] = "mixup"

    def build(self, shape: tuple[int, int, int], device: torch.device) -> Mixer:
        """See `Blend`."""
        least, most = (round(share * (1 << _BITS)) for share in self.share)
        return Mixer(least, most)


class Mixer:
    """Mixes images with weights from `least` to `most`, of 128, rounded half up."""

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def __call__(self, one: Tensor, other: Tensor, words: Tensor) -> Tensor:
        """See `Blender`."""
        weights = self._weights(words).to(torch.int16).view(-1, 1, 1, 1)
        base = other.to(torch.int16)
        difference = one.to(torch.int16).sub_(base).mul_(weights)
        base = base.bitwise_left_shift_(_BITS).add_(1 << (_BITS - 1))
        return difference.add_(base).bitwise_right_shift_(_BITS).to(torch.uint8)

    def shares(self, words: Tensor) -> Tensor:
        """See `Blender`."""
        return self._weights(words).to(torch.float64) / (1 << _BITS)

    def _weights(self, words: Tensor) -> Tensor:
        return self._least + below(words[0], self._most - self._least + 1)
