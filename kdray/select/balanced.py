"""A choice with as many candidates of each class that the student predicts ("What Makes a Good Dataset for Knowledge
Distillation?", section 3.2, with the student's prediction in place of the teacher's, which is not paid yet).

The strategy lists more candidates than are wanted, in its own order. Classes take turns on the list: in each turn every
class that has candidates left gives its first one. So k is divided evenly over the classes on the list, a class with
fewer gives all it has, and the others share the rest. The list is the strategy's choice for a larger k, so the result
depends on the number of workers no more than that does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from kdray.pools.base import Pool
    from kdray.sections.search import SearchSettings
    from kdray.select.base import Evidence, Strategy


def listed(k: int, times: int, left: int) -> int:
    """Length of the list for a choice of k: `times` * k, at most all `left` candidates, and at least k."""
    return max(k, min(times * k, left))


def in_turn(classes: np.ndarray, k: int) -> np.ndarray:
    """Rows of a balanced choice.

    Args:
        classes: int64 [n], the predicted class of each candidate of the list.
        k: how many to choose; all n if they are fewer.

    Returns:
        int64 [min(k, n)], turn by turn, and within a turn in the order of the list.
    """
    order = np.argsort(classes, kind="stable")
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    turns = np.empty(len(classes), dtype=np.int64)
    turns[order] = np.arange(len(classes)) - np.repeat(starts, sizes)
    return np.argsort(turns, kind="stable")[:k]


@dataclass(frozen=True, kw_only=True)
class Balanced:
    """Figures about a balanced choice; see `kdray.select.base.Evidence`.

    Attributes:
        of: figures about the list.
        listed: candidates on it, for each of which the student made a forward pass to predict its class.
        chosen: number of chosen candidates of each class that has any.
    """

    of: Evidence
    listed: int
    chosen: tuple[int, ...]

    def facts(self) -> dict[str, Any]:
        """The figures about the list, with all passes, and the classes."""
        facts = self.of.facts()
        more = {name: facts[name] + self.listed for name in ("passes", "exhaustive")}
        return facts | more | {"balance_listed": self.listed, "balance_classes": len(self.chosen)}

    def summary(self) -> str:
        """The figures in one line of text."""
        return (
            f"{self.of.summary()}; {len(self.chosen):,} classes predicted among {self.listed:,}, of which "
            f"{min(self.chosen):,} to {max(self.chosen):,} each were chosen"
        )


def passes(strategy: Strategy, pool: Pool, k: int, settings: SearchSettings) -> int:
    """Approximate number of forward passes of a choice of `k` from a fresh pool, balanced or not."""
    if strategy.balance is None:
        return strategy.passes(pool, k, settings)
    count = listed(k, strategy.balance, strategy.capacity(pool))
    return strategy.passes(pool, count, settings) + count


def driver_bytes(strategy: Strategy, pool: Pool, k: int) -> int:
    """Most bytes held in the driver for a choice of `k` from a fresh pool, balanced or not."""
    wanted = k if strategy.balance is None else listed(k, strategy.balance, strategy.capacity(pool))
    return strategy.driver_bytes(pool, wanted)
