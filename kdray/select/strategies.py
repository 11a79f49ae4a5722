"""The three choices Active Mixup compares (Figure 4): its own, vanilla active learning, and random pairs.

Each takes candidate ids that have left the pool and gives k others. Index spaces: `ids` are candidate ids, `groups`
are pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kdray.errors import PoolExhausted
from kdray.pools.order import sample_without
from kdray.search import Found, SearchRequest

Search = Callable[[SearchRequest], Found]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What to pay for.

    Attributes:
        ids: int64 [k], distinct candidate ids, none of them taken; most informative first where there are scores.
        scores: float32 [k], or None where the choice does not look at the student.
        search: what looking for them took, or None where the choice does not look at the student.
    """

    ids: np.ndarray
    scores: np.ndarray | None = None
    search: Found | None = None


def active_mixup(pool, k: int, taken: np.ndarray, generator: np.random.Generator, search: Search) -> Selection:
    """The k pairs of lowest C2, each at its least confident λ (Active Mixup, eq. 3). Chosen pairs leave the pool."""
    return _searched(search(SearchRequest(k=k, per="group", taken=np.unique(taken // pool.group_size))))


def vanilla(pool, k: int, taken: np.ndarray, generator: np.random.Generator, search: Search) -> Selection:
    """The k candidates of lowest C1 (eq. 2), however many of one pair. Chosen candidates leave the pool."""
    return _searched(search(SearchRequest(k=k, per="candidate", taken=np.unique(taken))))


def random_pairs(pool, k: int, taken: np.ndarray, generator: np.random.Generator, search: Search) -> Selection:
    """k pairs drawn uniformly, each at the λ of the grid nearest 0.5 (section 4.2.2). Chosen pairs leave the pool."""
    gone = np.unique(taken // pool.group_size)
    groups = sample_without(pool.num_groups, k, gone, generator)
    return Selection(ids=groups * pool.group_size + pool.middle())


STRATEGIES: dict[str, Callable[..., Selection]] = {
    "active-mixup": active_mixup,
    "vanilla": vanilla,
    "random": random_pairs,
}


def capacity(strategy: str, pool) -> int:
    """How many candidates `strategy` can choose from a fresh pool, over all rounds."""
    return len(pool) if strategy == "vanilla" else pool.num_groups


def select(strategy: str, pool, k: int, taken: np.ndarray, generator: np.random.Generator, search: Search) -> Selection:
    """Choose `k` candidates of `pool` with the named strategy.

    Args:
        taken: int64, candidate ids chosen in earlier rounds.
        generator: for choices that draw.
        search: finds the lowest scores under the current student; called only by choices that look at it.

    Raises:
        PoolExhausted: fewer than `k` are left.
    """
    chosen = STRATEGIES[strategy](pool, k, taken, generator, search)
    if len(chosen.ids) < k:
        raise PoolExhausted(
            f"{k:,} candidates wanted, {len(chosen.ids):,} are left for {strategy}; lower budget.queries"
        )
    return chosen


def _searched(found: Found) -> Selection:
    return Selection(ids=found.ids, scores=found.scores, search=found)
