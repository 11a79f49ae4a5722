"""What a procedural pool is: candidates that are drawn from the random numbers of their id, and show no image.

Only the shape of the user's images is used, unless a kind says otherwise. The pool ends at `candidates`, and a larger
one begins with the smaller one.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from kdray.errors import ConfigError
from kdray.pools.base import PoolSection
from kdray.pools.endless import EndlessSection
from kdray.pools.nested import NamedPainter
from kdray.pools.pairs import check_range
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


_VALUES = 1 << 21
"""Most values of the pixels of images that are drawn at a time: painters hold some 30 bytes for each."""


class Painter(Protocol):
    """Draws candidates. It is picklable, and computes in whole numbers, of which every device has the same bits."""

    batch: int
    """Images to draw at a time: as many as a CPU's caches hold."""

    def __call__(self, ids: Tensor) -> Tensor:
        """Map ids int64 [B] to images uint8 [B, C, H, W] on their device. An image follows from its own id alone."""


class ProceduralSection(EndlessSection):
    """The section of a pool whose candidates are drawn, not made of images."""

    @property
    def drawn(self) -> bool:
        """See `EndlessSection`."""
        return True

    def build(self, images: Tensor, seed: int) -> ProceduralPool:
        """See `PoolSection`."""
        return ProceduralPool(images, self.painter(images, seed), self.size, self.kind, _VALUES)

    @abstractmethod
    def painter(self, images: Tensor, seed: int) -> Painter:
        """What draws the candidates.

        Args:
            images: uint8 [N, C, H, W], the user's; a candidate has their shape. N is 0 where the user has none.
            seed: the run's seed.

        Raises:
            ConfigError: the fields do not suit the shape of the images.
        """


class ProceduralPool:
    """Candidates drawn from the random numbers of their ids. Each is a group of its own.

    Args:
        images: uint8 [N, C, H, W], the user's; the pool lives on their device.
        painter: draws the candidates.
        count: number of candidates.
        source: where they come from, as recorded in the labelled set.
        values: most values of the pixels that are drawn at a time; None: the painter's batch, however large its images.

    Raises:
        ConfigError: `count` is not positive.
    """

    linear = False
    real = False
    group_size = 1

    def __init__(self, images: Tensor, painter: Painter, count: int, source: str, values: int | None = None) -> None:
        if count < 1:
            raise ConfigError(f"pool.candidates: a pool needs at least one candidate, got {count}")
        self.images, self.source = images, source
        self._painter, self._count, self._values = painter, count, values

    @property
    def painter(self) -> Painter:
        """What draws the candidates."""
        return self._painter

    def up_to(self, count: int) -> ProceduralPool:
        """The same pool with `count` candidates at most."""
        return ProceduralPool(self.images, self._painter, min(count, self._count), self.source, self._values)

    def __len__(self) -> int:
        return self._count

    @property
    def num_groups(self) -> int:
        """Number of candidates."""
        return self._count

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every candidate."""
        return (self.images.shape[1], self.images.shape[2], self.images.shape[3])

    def to(self, device: str | torch.device) -> ProceduralPool:
        """The same pool with its images on `device`; this object if they are there already."""
        if self.images.device == torch.device(device):
            return self
        return ProceduralPool(self.images.to(device), self._painter, self._count, self.source, self._values)

    def name_errors(self, section: PoolSection, field: str) -> ProceduralPool:
        """See `kdray.pools.nested.naming`."""
        painter = NamedPainter(self._painter, section, field)
        return ProceduralPool(self.images, painter, self._count, self.source, self._values)

    def render(self, ids: Tensor) -> Tensor:
        """Map candidate ids int64 [B] to images uint8 [B, C, H, W].

        Raises:
            IndexError: an id is negative or not below len(pool).
        """
        check_range(ids, len(self), "ids")
        ids = ids.to(self.images.device)
        rendered, batch = self.images.new_empty((len(ids), *self.image_shape)), self._painter.batch
        if self._values is not None:
            batch = max(1, min(batch, self._values // math.prod(self.image_shape)))
        for part, out in zip(ids.split(batch), rendered.split(batch), strict=True):
            out.copy_(self._painter(part))
        return rendered

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """The candidates `groups` int64 [G], `step` at a time: uint8 [B, C, H, W]."""
        yield from (self.render(part) for part in groups.split(step))

    def describe(self, ids: Tensor) -> dict[str, list[Any]]:
        """Columns for the record of chosen candidates: none, as all follows from the id."""
        return {}

    def middle(self) -> int:
        """Index of the only candidate of a group."""
        return 0
