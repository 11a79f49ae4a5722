"""No pre-transform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from kdray.pools.transforms.base import Originals, Transform, transforms

if TYPE_CHECKING:
    from torch import Tensor


@transforms.register
class NoTransform(Transform):
    """The images are blended as they are."""

    kind: Literal["none"] = "none"

    def build(self, images: Tensor, seed: int) -> Originals:
        """See `Transform`."""
        return Originals(images)
