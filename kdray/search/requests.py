"""The contracts of requests about a pool, and of the searchers that perform them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from kdray.search.stages import Cut, Merge, Stage
from kdray.sections.search import SearchSettings

if TYPE_CHECKING:
    from torch import nn

    from kdray.pools.base import Pool

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

RunStage = Callable[[Stage, Merge], None]
"""Runs all tasks of a stage, in this process or on workers, and merges their results."""


@dataclass(frozen=True, kw_only=True)
class SearchContext:
    """The means to perform a request.

    Attributes:
        run_stage: runs the tasks of a stage, in this process or on workers.
        cut: how work is cut into tasks and batches.
        settings: how pools are searched.
        seed: seed of random samples, such as the one that a guess is fitted to.
        note: called with each message for the user.
    """

    run_stage: RunStage
    cut: Cut
    settings: SearchSettings
    seed: int = 0
    note: Callable[[str], None] = lambda text: None


class Request(Protocol[R_co]):
    """A request for information about a pool, computed with the student. R is the type of the result."""

    def passes(self, pool: Pool, settings: SearchSettings) -> int:
        """Expected forward passes, in images. A search that has to make its list longer needs more."""

    def perform(self, pool: Pool, context: SearchContext) -> R_co:
        """Perform the request and return its result."""


class Searcher(Protocol):
    """Performs requests about a pool with a student, in this process or on Ray."""

    def search(
        self,
        pool: Pool,
        model: nn.Module,
        request: Request[R],
        *,
        seed: int = 0,
        on_progress: Callable[[int, int], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> R:
        """Perform `request` on `pool` with the student `model`. The result does not depend on the number of workers.

        Args:
            seed: seed of the random samples of a search.
            on_progress: called with (forward passes done, forward passes expected in all).
            on_note: called with each message for the user.

        Raises:
            ScoringError: an output of the student is not finite.
        """
