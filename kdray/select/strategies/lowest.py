"""Strategies that choose the k lowest scores: Active Mixup's (Figure 4), and the baselines of RAD (section 4)."""

from typing import ClassVar, Literal

import numpy as np

from kdray.pools.base import Pool
from kdray.search import Score, SearchRequest
from kdray.sections.search import SearchSettings
from kdray.select.base import Selection, Strategy, Task, strategies


class _Lowest(Strategy):
    """Chooses the k candidates of lowest score, at most one per group or without that limit."""

    ordered: ClassVar[bool] = True
    prefix: ClassVar[str] = "if every candidate is scored"

    def _score(self) -> Score:
        raise AssertionError("a subclass says by which score")

    def choose(self, task: Task) -> Selection:
        """See `Strategy`."""
        taken = task.taken_groups if self.per == "group" else np.unique(task.taken)
        found = task.ask(SearchRequest(k=task.k, per=self.per, taken=taken, score=self._score()))
        return Selection(ids=found.ids, scores=found.scores, search=found)

    def passes(self, pool: Pool, k: int, settings: SearchSettings) -> int:
        """See `Strategy`."""
        return SearchRequest(k=k, per=self.per, score=self._score()).passes(pool, settings)

    def score_words(self) -> str:
        """See `Strategy`."""
        return {
            "confidence": "student's confidence",
            "entropy": "student's entropy, negated",
            "margin": "student's margin",
        }[self._score()]


class _ByConfig(_Lowest):
    """A strategy whose score is a field of the config."""

    score: Score = "confidence"
    """The score that orders the candidates: lowest confidence (C1 of the paper), smallest margin, or highest entropy
    of the student's probabilities."""

    def _score(self) -> Score:
        return self.score


@strategies.register
class ActiveMixup(_ByConfig):
    """Chooses the k pairs of lowest confidence, each at the λ where it is lowest (C2 of Active Mixup, eq. 3). Chosen
    pairs leave the pool."""

    strategy: Literal["active-mixup"] = "active-mixup"


@strategies.register
class Vanilla(_ByConfig):
    """Chooses the k candidates of lowest confidence, any number from one pair (C1 of Active Mixup, eq. 2). Other
    candidates of the same pair stay in the pool."""

    per: ClassVar[Literal["group", "candidate"]] = "candidate"

    strategy: Literal["vanilla"] = "vanilla"


@strategies.register
class Margin(_Lowest):
    """Chooses the k candidates of smallest margin, at most one per pair (RAD's MARGIN). Chosen pairs leave the pool."""

    strategy: Literal["margin"] = "margin"

    def _score(self) -> Score:
        return "margin"


@strategies.register
class Entropy(_Lowest):
    """Chooses the k candidates of highest entropy, at most one per pair (RAD's ENTROPY). Chosen pairs leave the
    pool."""

    strategy: Literal["entropy"] = "entropy"

    def _score(self) -> Score:
        return "entropy"
