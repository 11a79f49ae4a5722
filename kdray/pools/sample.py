"""Which pairs of images a pool holds: all of them, or a random sample that is not stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from kdray.errors import ConfigError, ImageSetError
from kdray.pools.base import PoolSection
from kdray.pools.pairs import check_range, count_pairs, rank_pairs, unrank_pairs
from kdray.pools.permutation import RandomOrder
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

EACH, LEAST = 50, 50_000
"""Size auto of a pool: candidates for each that is chosen, and at least, see docs/search.md. A share of 5 % of 50,000
is known to a fiftieth."""


class OfPairs(PoolSection):
    """The section of a pool whose groups are pairs of images."""

    pairs: Annotated[int, Field(ge=1)] | Literal["all", "auto"] = "all"
    """all, or the number of pairs to sample, without replacement. The sample follows from the run's seed and is not
    stored. auto: 50 pairs for each candidate that the run chooses, at least 50,000; all, if there are no more."""

    @property
    def complete(self) -> bool:
        """Whether every pair is in the pool."""
        return self.pairs == "all"

    @property
    def count(self) -> int | None:
        """Number of pairs to sample; None means all. `auto` counts as all; `sized` makes a number of it."""
        return self.pairs if isinstance(self.pairs, int) else None

    def enlarged(self, images: int) -> str:
        """See `PoolSection`."""
        sampled = self.count is not None and self.count < count_pairs(images)
        return "raise pool.pairs" if sampled else super().enlarged(images)

    def sized(self, images: int, queries: int) -> tuple[PoolSection, str | None]:
        """See `PoolSection`."""
        if self.pairs != "auto":
            return self, None
        every, wanted = count_pairs(images), max(LEAST, EACH * queries)
        if queries == 0:
            return self, None
        if every <= wanted:
            reason = f"pool.pairs: auto takes all {every:,} pairs; it would sample {wanted:,} of more"
            return self.model_copy(update={"pairs": "all"}), reason
        reason = (
            f"pool.pairs: auto samples {wanted:,} of {every:,} pairs, {wanted / max(1, queries):,.0f} for each of the "
            f"{queries:,} candidates to choose, so that a search for the lowest scores takes the lowest "
            f"{100 * queries / wanted:.2g} % of them (docs/search.md)"
        )
        return self.model_copy(update={"pairs": wanted}), reason


class PairSample:
    """The pairs of a pool by number: all pairs i < j in row-major order, or the first ones of a random order.

    Args:
        images: number of images.
        pairs: number of pairs to sample, without replacement; None means all pairs.
        seed: seed of the sample. A larger sample with the same seed begins with the smaller one.

    Raises:
        ConfigError: `pairs` exceeds the number of pairs.
    """

    def __init__(self, images: int, pairs: int | None, seed: int) -> None:
        every = count_pairs(images)
        if pairs is not None and not 1 <= pairs <= every:
            raise ConfigError(
                f"pool.pairs: {pairs:,} pairs wanted, {images:,} images make {every:,}; lower it, or set it to all"
            )
        self._images, self._count = images, every if pairs is None else pairs
        self._order = None if pairs is None else RandomOrder(every, seed)

    def __len__(self) -> int:
        return self._count

    def __call__(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Map numbers int64 [B] of pairs to the numbers (i, j) of their two images, int64 [B] each, i < j.

        Raises:
            IndexError: a number is negative or not below the number of pairs.
        """
        if self._order is not None:
            check_range(numbers, self._count, "groups")
            numbers = self._order(numbers)
        return unrank_pairs(numbers, self._images)

    def number(self, i: int, j: int) -> int:
        """The number of the pair of images i < j, where all pairs are in the pool."""
        if self._order is not None:
            raise ConfigError("pool.pairs: the group of two images is not known for a sample of pairs; set it to all")
        return int(rank_pairs(torch.tensor(i), torch.tensor(j), self._images))


def check_images(images: Tensor, kind: str) -> None:
    """Refuse what no pairs can be made of.

    Args:
        kind: what the pool is called in messages.

    Raises:
        ImageSetError: there are fewer than two images, or they are not uint8 [N, C, H, W].
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ImageSetError(f"a {kind} pool needs uint8 images [N, C, H, W], got {images.dtype} {list(images.shape)}")
    if len(images) < 2:
        raise ImageSetError(
            f"a {kind} pool needs at least two images to mix, got {len(images)}; give more (images.count)"
        )
