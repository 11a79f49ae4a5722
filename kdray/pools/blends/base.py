"""What a blend is: how a pair pool makes a candidate of two images; and the registry of blends."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

from kdray.pools.ranges import Shares
from kdray.sections.base import Section
from kdray.sections.registry import Registry
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Blender(Protocol):
    """Blends images of one shape. An object is picklable."""

    def __call__(self, one: Tensor, other: Tensor, words: Tensor) -> Tensor:
        """Blend `one` and `other`, uint8 [B, C, H, W] each, to uint8 [B, C, H, W]. It may overwrite both.

        Args:
            words: random numbers of 31 bits, int64 [words, B].
        """

    def shares(self, words: Tensor) -> Tensor:
        """The share of `one` in each candidate, float64 [B] in [0, 1]."""


class Blend(Section):
    """How a candidate is made of two images: its kind alone, or a section with its fields."""

    # A subclass adds its own fields and `build`; it leaves `kind` alone, or narrows it to its name and registers.

    words: ClassVar[int]
    """Random numbers that a blend takes."""

    kind: str
    """Kind of blend, or a class of your own as module:class."""
    share: Shares = (0.3, 0.7)
    """[least, most] share that one of the two images has in a candidate; the other has the rest. The share is drawn
    uniformly, and so is which of the two images has it."""

    @abstractmethod
    def build(self, shape: tuple[int, int, int], device: torch.device) -> Blender:
        """Prepare to blend images (C, H, W) on a device."""


blends = Registry[Blend](
    Blend,  # type: ignore[type-abstract]  # the registry holds subclasses
    field="blend",
    package="kdray.pools.blends",
    default="cutmix",
)


def cut(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """`one` where the mask uint8 [B, H, W] is 1, `other` where it is 0: uint8 [B, C, H, W]. It overwrites `one`.

    The arithmetic is modulo 256. On a CPU this is many times as fast as `torch.where`.
    """
    return one.sub_(other).mul_(mask.unsqueeze(1)).add_(other)
