"""The choices by name: those Active Mixup compares (Figure 4), those RAD compares (section 4), and RAD over pairs.

Each takes candidate ids that have left the pool and gives k others. Index spaces: `ids` are candidate ids, `groups` are
pairs; of a pool of real images both are image numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from kdray.errors import PoolExhausted
from kdray.pools.order import sample_without
from kdray.search import Method, SearchRequest
from kdray.search.requests import expected_passes
from kdray.select.cluster_margin import cluster_margin, cluster_margin_passes, distances_held
from kdray.select.coreset import coreset, coreset_passes
from kdray.select.robust import gains_held, pair_gains_held, rad, rad_pairs, rad_pairs_passes, rad_passes
from kdray.select.task import Holds, Passes, Selection, Task
from kdray.select.unixkd import unixkd, unixkd_passes


def active_mixup(task: Task) -> Selection:
    """The k pairs of lowest C2, each at its least confident λ (Active Mixup, eq. 3). Chosen pairs leave the pool."""
    return _lowest_groups(task, task.options.score)


def vanilla(task: Task) -> Selection:
    """The k candidates of lowest C1 (eq. 2), however many of one pair. Chosen candidates leave the pool."""
    found = task.ask(SearchRequest(k=task.k, per="candidate", taken=np.unique(task.taken), score=task.options.score))
    return Selection(ids=found.ids, scores=found.scores, search=found)


def random_pairs(task: Task) -> Selection:
    """k pairs drawn uniformly, each at the λ of the grid nearest 0.5 (section 4.2.2). Chosen pairs leave the pool."""
    groups = sample_without(task.pool.num_groups, task.k, task.taken_groups, task.generator)
    return Selection(ids=groups * task.pool.group_size + task.pool.middle())


def uniform(task: Task) -> Selection:
    """k candidates drawn uniformly (RAD's UNIFORM)."""
    return Selection(ids=sample_without(task.candidates, task.k, np.unique(task.taken), task.generator))


def margin(task: Task) -> Selection:
    """The k of smallest margin (RAD's MARGIN), of each pair at most one. Chosen pairs leave the pool."""
    return _lowest_groups(task, "margin")


def entropy(task: Task) -> Selection:
    """The k of highest entropy (RAD's ENTROPY), of each pair at most one. Chosen pairs leave the pool."""
    return _lowest_groups(task, "entropy")


def _lowest_groups(task: Task, score: str) -> Selection:
    found = task.ask(SearchRequest(k=task.k, per="group", taken=task.taken_groups, score=score))
    return Selection(ids=found.ids, scores=found.scores, search=found)


def _lowest_passes(pool, k: int, method: Method, score: str, per: Literal["group", "candidate"] = "group") -> int:
    return expected_passes(pool, SearchRequest(k=k, per=per, score=score), method)


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """A choice, and what it needs.

    Attributes:
        choose: makes it.
        passes: what that takes; None: it does not look at the student.
        holds: what that holds in the driver; None: nothing to speak of.
        held: the same in words.
        per: what leaves the pool with a chosen candidate: its group, or itself alone.
        features: it needs the student's features.
        mistakes: it needs RAD's m.
        mixes: it needs a pool of pairs.
    """

    choose: Callable[[Task], Selection]
    passes: Passes | None = None
    holds: Holds | None = None
    held: str = ""
    per: Literal["group", "candidate"] = "group"
    features: bool = False
    mistakes: bool = False
    mixes: bool = False

    @property
    def asks(self) -> bool:
        """It looks at the student."""
        return self.passes is not None


_GAINS = "the gains of all that can be chosen"
STRATEGIES: dict[str, Strategy] = {
    "rad": Strategy(choose=rad, passes=rad_passes, holds=gains_held, held=_GAINS, per="candidate", mistakes=True),
    "rad-pairs": Strategy(choose=rad_pairs, passes=rad_pairs_passes, holds=pair_gains_held, held=_GAINS, mistakes=True),
    "active-mixup": Strategy(choose=active_mixup, passes=_lowest_passes),
    "vanilla": Strategy(choose=vanilla, passes=partial(_lowest_passes, per="candidate"), per="candidate"),
    "random": Strategy(choose=random_pairs),
    "uniform": Strategy(choose=uniform, per="candidate"),
    "margin": Strategy(choose=margin, passes=_lowest_passes),
    "entropy": Strategy(choose=entropy, passes=_lowest_passes),
    "coreset": Strategy(choose=coreset, passes=coreset_passes, features=True),
    "cluster-margin": Strategy(
        choose=cluster_margin,
        passes=cluster_margin_passes,
        holds=distances_held,
        held="the distances between candidates",
        features=True,
    ),
    "unixkd": Strategy(choose=unixkd, passes=unixkd_passes, per="candidate", mixes=True),
}


def capacity(strategy: str, pool) -> int:
    """How many candidates `strategy` can choose from a fresh pool, over all rounds."""
    return len(pool) if STRATEGIES[strategy].per == "candidate" else pool.num_groups


def select(strategy: str, task: Task) -> Selection:
    """Choose `task.k` candidates with the named strategy.

    Returns:
        Exactly k; fewer where `Options.shrink` asks for that.

    Raises:
        PoolExhausted: fewer than k are left.
    """
    chosen = STRATEGIES[strategy].choose(task)
    if len(chosen.ids) < task.k and not chosen.fewer:
        raise PoolExhausted(
            f"{task.k:,} candidates wanted, {len(chosen.ids):,} are left for {strategy}; lower budget.queries"
        )
    return chosen


def expected(strategy: str, pool, k: int, method: Method, score: str) -> int:
    """Forward passes that choosing `k` from a fresh pool will take, about."""
    passes = STRATEGIES[strategy].passes
    return passes(pool, k, method, score) if passes is not None else 0


def driver_bytes(strategy: str, pool, k: int) -> int:
    """Bytes that choosing `k` from a fresh pool holds in the driver, at most, where that is much."""
    holds = STRATEGIES[strategy].holds
    return holds(pool, k) if holds is not None else 0
