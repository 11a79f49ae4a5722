"""The gains of all candidates, or groups, that are left in a pool. RAD uses them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdray.pools.base import is_linear
from kdray.pools.permutation import free_numbers
from kdray.search.acquisition import Score, to_gains
from kdray.search.guess import learn, sample_size
from kdray.search.interpolation import first_knots
from kdray.search.stages import Guess, ScoreGroups
from kdray.search.topk import Scored
from kdray.sections.search import SearchSettings

if TYPE_CHECKING:
    from kdray.pools.base import Pool
    from kdray.search.requests import SearchContext


@dataclass(frozen=True, kw_only=True)
class GainsRequest:
    """A request for the gain of every group, or candidate, that is left in the pool.

    Attributes:
        per: "group" asks for one gain per group, that of its best candidate; "candidate" for one per candidate.
        taken: int64, sorted: the groups, or candidate ids, that have left the pool.
        score: the score that gains are computed from; see `kdray.search.acquisition.to_gains`.
    """

    per: Literal["group", "candidate"] = "group"
    taken: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    score: Score = "margin"

    def passes(self, pool: Pool, settings: SearchSettings) -> int:
        """See `kdray.search.requests.Request`."""
        return passes_for(pool, pool.num_groups, guess=self.guesses(pool, settings))

    def guesses(self, pool: Pool, settings: SearchSettings) -> bool:
        """Whether gains are guessed. They are if guessing at least halves the forward passes."""
        linear = settings.search == "interpolated" and pool.linear
        return linear and 2 * passes_for(pool, pool.num_groups, guess=True) <= pool.num_groups * pool.group_size

    def perform(self, pool: Pool, context: SearchContext) -> Gains:
        """See `kdray.search.requests.Request`."""
        total, size = pool.num_groups, pool.group_size
        work = self.work(pool, context)
        # An entry of the table is a group, or a candidate.
        table = Table(total if self.per == "group" else total * size, work.each)
        context.run_stage(work.stage, table)
        scores = np.delete(table.scores, self.taken) if len(self.taken) else table.scores
        return Gains(
            gains=to_gains(scores, self.score),
            taken=self.taken,
            evaluated=work.evaluated + table.evaluated,
            exhaustive=total * size,
            guessed=work.guessed,
        )

    def work(self, pool: Pool, context: SearchContext, groups: np.ndarray | None = None) -> Work:
        """The stage that gives the scores, after what it has to learn first.

        Args:
            groups: int64, sorted: the groups to score; None means all.
        """
        size, one = pool.group_size, self.per == "group"
        common: dict[str, Any] = {"cut": context.cut, "count": pool.num_groups, "k": len(pool), "groups": groups}
        common |= {"per": self.per, "taken": self.taken, "score": self.score}
        if self.guesses(pool, context.settings) and is_linear(pool):
            knots = first_knots(size)
            learned = learn(pool, sample_size(pool.num_groups), (knots,), context)
            stage = Guess(knots=knots, matrix=learned.matrices[0], sources=learned.sources, **common)
            return Work(stage=stage, each=1, guessed=True, evaluated=learned.evaluated)
        # `Guess` identifies a group by its number, `ScoreGroups` by the id of its best candidate.
        return Work(stage=ScoreGroups(group_size=size, **common), each=size if one else 1)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A stage that scores everything in a pool.

    Attributes:
        stage: the stage.
        each: number of consecutive ids of its results that stand for one group, or candidate.
        guessed: whether the scores are guessed.
        evaluated: forward passes made before the stage, in images.
    """

    stage: Guess | ScoreGroups
    each: int
    guessed: bool = False
    evaluated: int = 0


@dataclass(frozen=True, kw_only=True)
class Gains:
    """The gains of the groups, or candidates, that are left, in ascending order of their numbers.

    Attributes:
        gains: float32 [n].
        taken: `taken` of the request.
        evaluated: forward passes made, in images.
        exhaustive: forward passes that scoring every candidate takes.
        guessed: whether the gains are guessed from a few λ of each group.
    """

    gains: np.ndarray
    taken: np.ndarray
    evaluated: int
    exhaustive: int
    guessed: bool

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """The groups, or candidate ids, int64, of the given rows of `gains`."""
        return free_numbers(rows, self.taken)


class Table:
    """A table of the scores of all groups, or candidates. An entry without a score is NaN.

    Args:
        count: number of entries.
        each: number of consecutive ids that share an entry.
    """

    bound = float("inf")

    def __init__(self, count: int, each: int) -> None:
        self.scores = np.full(count, np.nan, dtype=np.float32)
        self._each = each
        self.evaluated = 0
        """Forward passes so far, in images."""

    def add(self, number: int, part: Scored) -> None:
        """Add the scores of one task."""
        self.scores[part.ids // self._each] = part.scores
        self.evaluated += part.evaluated


def passes_for(pool: Pool, groups: int, *, guess: bool) -> int:
    """Forward passes needed for the gains of so many groups of a pool."""
    if not guess:
        return groups * pool.group_size
    sample = sample_size(pool.num_groups)
    return len(pool.images) + sample * pool.group_size + groups * len(first_knots(pool.group_size))
