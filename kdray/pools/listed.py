"""A pool of images that were made for one round and are held in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdray.pools.images import ImagePool

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ListedPool(ImagePool):
    """Candidates that are these images, which are none of the user's.

    Args:
        images: uint8 [N, C, H, W], N >= 1; the pool lives on their device.
        columns: of the record, a list of N values each.
        source: where they come from, as recorded in the labelled set.

    Raises:
        ImageSetError: see `ImagePool`.
    """

    real = False

    def __init__(self, images: Tensor, columns: Mapping[str, list[Any]], source: str) -> None:
        super().__init__(images)
        self.source, self._columns = source, dict(columns)

    def to(self, device: str | torch.device) -> ListedPool:
        """See `Pool`."""
        return ListedPool(self.images.to(device), self._columns, self.source)

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """See `Pool`."""
        return {name: [values[key] for key in ids.tolist()] for name, values in self._columns.items()}
