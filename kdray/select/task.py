"""What a choice is given, and what it gives: the same for every strategy."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from kdray.search import Method, Reply, Request
from kdray.select.mistakes import Mistakes

Ask = Callable[[Request], Reply]
"""Asks the current student about the pool."""
Passes = Callable[[Any, int, Method, str], int]
"""Of (pool, k, how it is searched, score or gain): forward passes that choosing k from a fresh pool takes, about."""

Holds = Callable[[Any, int], int]
"""Of (pool, k): bytes that choosing k from a fresh pool holds in the driver, at most, where that is much."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user says about the choice; see `kdray.config.SelectConfig`.

    Attributes:
        score: a key of `kdray.scores.INFORMATIVE`: of active-mixup and vanilla.
        gain: likewise, of RAD.
        w: RAD's penalty; None: 1 - m / n.
        mistakes: RAD's m.
        shrink: draw fewer where min(b p, 1) would clip (RAD, section 3.3).
    """

    score: str = "confidence"
    gain: str = "margin"
    w: float | None = None
    mistakes: Mistakes = field(default_factory=Mistakes)
    shrink: bool = False


class Evidence(Protocol):
    """What a choice took and found, for the run's record and for people."""

    def facts(self) -> dict[str, Any]: ...
    def summary(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a choice took that looked at candidates without searching for the lowest.

    Attributes:
        passes: forward passes of the student.
        exhaustive: forward passes that asking about everything that is left takes.
        about: more about the choice, by name.
        text: the same in words.
    """

    passes: int
    exhaustive: int
    about: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    def facts(self) -> dict[str, Any]:
        """As `kdray.search.Found.facts`: no recall is estimated, for nothing was searched for."""
        none = dict.fromkeys(("keep", "recall", "recall_low", "recall_high", "audited"))
        return {"passes": self.passes, "exhaustive": self.exhaustive, **none, **self.about}

    def summary(self) -> str:
        """What it took, in a line."""
        return f"choice: {self.passes:,} forward passes" + (f"; {self.text}" if self.text else "")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A choice to be made.

    Attributes:
        pool: of candidates.
        k: how many to choose.
        taken: int64, candidate ids that have left the pool.
        generator: for choices that draw.
        ask: asks the current student; called only by choices that look at it.
        options: what the user says.
        known: uint8 [M, C, H, W], labelled images that are no candidates of the pool.
    """

    pool: Any
    k: int
    taken: np.ndarray
    generator: np.random.Generator
    ask: Ask
    options: Options = field(default_factory=Options)
    known: Tensor | None = None

    @property
    def taken_groups(self) -> np.ndarray:
        """Groups of what has left the pool, int64, sorted, distinct."""
        return np.unique(self.taken // self.pool.group_size)

    @property
    def free_groups(self) -> int:
        """Groups of which nothing has left the pool."""
        return self.pool.num_groups - len(self.taken_groups)

    @property
    def candidates(self) -> int:
        """Of the pool, taken ones among them."""
        return self.pool.num_groups * self.pool.group_size


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to pay for.

    Attributes:
        ids: int64 [k], distinct candidate ids, none of them taken.
        scores: float32 [k], of each, or None where the choice has none: low means informative.
        search: what choosing took, or None where the choice does not look at the student.
        fewer: there are less than k on purpose.
    """

    ids: np.ndarray
    scores: np.ndarray | None = None
    search: Evidence | None = None
    fewer: bool = False
