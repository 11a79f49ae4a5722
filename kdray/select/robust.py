"""RAD's choice of candidates, and of pairs of a mixup pool."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from kdray.errors import PoolExhausted
from kdray.search import BestRequest, Gains, GainsRequest, Method, ScoresRequest
from kdray.search.requests import expected_passes
from kdray.search.whole import guess_pays
from kdray.select.rad import penalty
from kdray.select.rounding import round_parts
from kdray.select.spread import chances, most_draws
from kdray.select.task import Looked, Selection, Task


def rad(task: Task) -> Selection:
    """Candidates drawn with RAD's probabilities (Corollary 1). They leave the pool, others of their pair stay."""
    found, rows, looked = _drawn(task, "candidate")
    ids, scores = found.numbers(rows), _scores(found.gains[rows], task.options.gain)
    if found.guessed and len(ids):
        exact = task.ask(ScoresRequest(ids=ids, score=task.options.gain))
        looked, scores = _told(looked, exact.evaluated, scores, exact.rows[:, 0]), exact.rows[:, 0]
    return Selection(ids=ids, scores=scores, search=looked, fewer=len(rows) < task.k)


def rad_passes(pool, k: int, method: Method, score: str) -> int:
    """See `kdray.select.task.Passes`."""
    request = GainsRequest(per="candidate", score=score)
    # Those drawn by guesses are looked at once more.
    return expected_passes(pool, request, method) + k * guess_pays(pool, request, method.search)


def rad_pairs(task: Task) -> Selection:
    """Pairs drawn with RAD's probabilities, each at its best λ. Drawn pairs leave the pool.

    The gain of a pair is its best candidate's. RAD spreads its draws over many pairs of high gain, as the teacher may
    err on any of them; the rule that a pair is bought once (Active Mixup, eq. 3) spreads them over the images.
    """
    found, rows, looked = _drawn(task, "group")
    groups, fewer = found.numbers(rows), len(rows) < task.k
    scores = _scores(found.gains[rows], task.options.gain)
    if task.pool.group_size == 1:
        return Selection(ids=groups, scores=scores, search=looked, fewer=fewer)
    best = task.ask(BestRequest(groups=groups, score=task.options.gain))
    if found.guessed and len(groups):
        looked = _told(looked, best.evaluated, scores, best.scores)
    else:
        looked = replace(looked, passes=looked.passes + best.evaluated)
    return Selection(ids=best.ids, scores=best.scores, search=looked, fewer=fewer)


def rad_pairs_passes(pool, k: int, method: Method, score: str) -> int:
    """See `kdray.select.task.Passes`."""
    gains = expected_passes(pool, GainsRequest(per="group", score=score), method)
    return gains + k * pool.group_size * (pool.group_size > 1)


def gains_held(pool, k: int) -> int:
    """See `kdray.select.task.Holds`: two float32 of every candidate.

    Not counted: the sort of a round that buys so much of what is left that chances reach 1.
    """
    return 8 * len(pool)


def pair_gains_held(pool, k: int) -> int:
    """The same, of pairs."""
    return 8 * pool.num_groups


def _told(looked: Looked, passes: int, guessed: np.ndarray, exact: np.ndarray) -> Looked:
    """What a choice took, with the passes for the exact scores of the drawn, and how far off the guesses were."""
    error = float(np.abs(guessed - exact).mean())
    text = f"{looked.text}; gains were guessed, {error:.3f} off on average"
    return replace(looked, passes=looked.passes + passes, about=looked.about | {"guess_error": error}, text=text)


def _drawn(task: Task, per: str) -> tuple[Gains, np.ndarray, Looked]:
    """The gains of what is left, the rows of them that were drawn, ascending, and what that took."""
    taken = task.taken_groups if per == "group" else np.unique(task.taken)
    found = task.ask(GainsRequest(per=per, taken=taken, score=task.options.gain))
    n = len(found.gains)
    if n < task.k:
        raise PoolExhausted(f"{task.k:,} candidates wanted, {n:,} are left; lower budget.queries")
    m = min(float(n), task.options.mistakes.of(n))
    w = penalty(n, m, task.options.w)
    draws = min(task.k, most_draws(found.gains, m, w)) if task.options.shrink and n else task.k
    support = _Counted(chances(found.gains, draws, m, w)) if n else _Counted(iter(()))
    rows = round_parts(support, task.generator)
    about = {"rad_m": m, "rad_n": n, "rad_w": w, "rad_support": support.count}
    text = f"RAD: m = {m:,.0f} of {n:,}, w = {w:.3g}, drawn from the {support.count:,} of largest gain"
    text += f"; {draws:,} instead of {task.k:,}, as no chance may pass 1" if draws < task.k else ""
    return found, rows, Looked(passes=found.evaluated, exhaustive=found.exhaustive, about=about, text=text)


class _Counted:
    """Parts that pass by, and how many of them have a chance."""

    def __init__(self, parts: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        self._parts, self.count = parts, 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids, probs in self._parts:
            self.count += int(np.count_nonzero(probs))
            yield ids, probs


def _scores(gains: np.ndarray, name: str) -> np.ndarray:
    """Back from gains to scores."""
    return (-gains if name == "entropy" else 1.0 - gains).astype(np.float32)
