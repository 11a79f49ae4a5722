"""A pool of images that were made for one round and are held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kdray.pools.pairs import check_range

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ListedPool:
    """Candidates that are these images, each a group of its own.

    Args:
        images: uint8 [N, C, H, W]; the pool lives on their device.
        columns: of the record, a list of N values each.
        source: where they come from, as recorded in the labelled set.
    """

    linear = False
    real = False
    group_size = 1

    def __init__(self, images: Tensor, columns: Mapping[str, list[Any]], source: str) -> None:
        self.images, self.source = images, source
        self._columns = dict(columns)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_groups(self) -> int:
        """Number of candidates."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every candidate."""
        return (self.images.shape[1], self.images.shape[2], self.images.shape[3])

    def to(self, device: str | torch.device) -> ListedPool:
        """See `Pool`."""
        return ListedPool(self.images.to(device), self._columns, self.source)

    def render(self, ids: Tensor) -> Tensor:
        """See `Pool`."""
        check_range(ids, len(self), "ids")
        return self.images[ids.to(self.images.device)]

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """See `Pool`."""
        yield from (self.render(part) for part in groups.split(step))

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """See `Pool`."""
        return {name: [values[key] for key in ids.tolist()] for name, values in self._columns.items()}

    def middle(self) -> int:
        """Index of the only candidate of a group."""
        return 0
