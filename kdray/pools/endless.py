"""The size of a pool that has as many candidates as the user says."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import Field

from kdray.pools.base import PoolSection
from kdray.pools.sample import EACH, LEAST


class EndlessSection(PoolSection):
    """The section of a pool whose candidates do not run out. A larger pool begins with the smaller one."""

    candidates: Annotated[int, Field(ge=1, lt=1 << 62)] | Literal["auto"] = "auto"
    """Number of candidates. auto: 50 for each one that the run chooses, at least 50,000."""

    @property
    @abstractmethod
    def drawn(self) -> bool:
        """Whether candidates show nothing of the images that the pool is built over: it needs their shape alone."""

    @property
    def size(self) -> int:
        """Number of candidates; `auto` counts as the least, and `sized` makes a number of it."""
        return LEAST if self.candidates == "auto" else self.candidates

    def enlarged(self, images: int) -> str:
        """See `PoolSection`."""
        return "raise pool.candidates"

    def sized(self, images: int, queries: int) -> tuple[PoolSection, str | None]:
        """See `PoolSection`."""
        if self.candidates != "auto" or queries == 0:
            return self, None
        count = max(LEAST, EACH * queries)
        each = f"{count / queries:,.0f} for each of the {queries:,} candidates to choose"
        return self.with_size(count), f"pool.candidates: auto takes {count:,}, {each}"

    def with_size(self, candidates: int) -> EndlessSection:
        """This section with so many candidates."""
        return self.model_copy(update={"candidates": candidates})
