"""How a pool is searched: all of it, or by guesses that are then made exact.

The search by guesses asks the student about the images that are mixed and about two λ of each pair, and guesses the
others (`kdray.search.interpolation`). The pairs that look best are asked about three more λ and guessed again; the best
`keep` times k of those are asked about all others too, and the choice is made on these exact scores. What may be missed
is estimated from a sample of the groups that were left out (`kdray.search.audit`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

import numpy as np

from kdray.pools.order import sample_without
from kdray.search.audit import Recall, Stratum, estimate, share_out
from kdray.search.guesses import Sweep, learn, sample_size
from kdray.search.interpolation import first_knots, second_knots
from kdray.search.lowest import LowestK, Scored
from kdray.search.stages import GroupedPool, Guess, Merge, ScoreGroups, Stage
from kdray.search.work import CPU_BATCH
from kdray.seeds import numpy_generator

_WORTH = 2  # guess where it takes at most one forward pass in so many: it finds a little less
_WIDE = 5  # groups that are guessed twice for each that is scored exactly
_LEAST_LIST = 40_000  # groups scored exactly at least, or a fortieth of the pool: a small k is far out in the tail
_MOST_CARRIED = 64 << 20  # bytes handed from one stage to the next; where it would be more, the student is asked again
_LEAST_AUDIT = 200  # groups; fewer say nothing
_SURER = 4  # times as many when it seems that too much is missed: a few unlucky draws must not cost a whole sweep
# Shares of the audit for groups of ranks up to so many times the list's length: what is missed is densest just beyond
# it. The rest is for all others: they are so many that as much is missed among them.
_BEYOND = ((2, 0.1), (_WIDE, 0.1))


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """What to look for.

    Attributes:
        k: how many.
        per: "group": at most one candidate a group, its lowest (Active Mixup, eq. 3);
            "candidate": no such rule (eq. 2).
        taken: int64, sorted: groups, or candidate ids, that have left the pool.
        score: what makes a candidate informative, a key of `kdray.scores.INFORMATIVE`.
        seed: of the samples: the one the guess is fitted to, and those by which recall is estimated.
    """

    k: int
    per: Literal["group", "candidate"] = "group"
    taken: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    score: str = "confidence"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Method:
    """How to look for it; see `kdray.config.PoolConfig`."""

    search: Literal["exhaustive", "interpolated"] = "exhaustive"
    keep: float = 5.0
    min_recall: float = 0.97
    audit: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Found(Scored):
    """What a search found, and what it took.

    Attributes:
        exhaustive: forward passes that scoring every candidate takes.
        keep: how many times k groups were scored exactly; None where all were.
        recall: the estimated share of the truly lowest among them; None where all were scored, or no audit was made.
    """

    exhaustive: int
    keep: float | None = None
    recall: Recall | None = None

    def facts(self) -> dict[str, float | None]:
        """What the search took, for the run's record: passes, exhaustive, keep, and of the recall that was estimated
        value, low, high and the number of groups sampled."""
        recall = self.recall
        return {
            "passes": self.evaluated,
            "exhaustive": self.exhaustive,
            "keep": self.keep,
            "recall": recall and recall.value,
            "recall_low": recall and recall.low,
            "recall_high": recall and recall.high,
            "audited": recall and recall.sampled,
        }

    def summary(self) -> str:
        """What it took, in a line."""
        text = f"search: {self.evaluated:,} forward passes"
        if self.keep is not None:
            text += f", {self.exhaustive / self.evaluated:.1f} times fewer than all"
        if self.recall is not None:
            found = self.recall
            text += f"; found {found.value:.1%} of what all would have shown ({found.low:.1%} to {found.high:.1%})"
        return text


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a search will take.

    Attributes:
        guess: whether it guesses.
        shortlist: groups scored exactly.
        wide: groups guessed twice.
        sample: groups the guess is fitted to.
        audit: groups scored to estimate recall.
        passes: forward passes, unless the list has to be widened.
        exhaustive: forward passes without guessing.
    """

    guess: bool
    shortlist: int
    wide: int = 0
    sample: int = 0
    audit: int = 0
    passes: int
    exhaustive: int


def look_ahead(pool: GroupedPool, request: SearchRequest, method: Method) -> Outlook:
    """What a search will take. It guesses where that at least halves the forward passes."""
    size, total = pool.group_size, pool.num_groups
    per_group = request.per == "group"
    # Where candidates leave the pool and not groups, a group may be on the list for one that has left.
    spent = 0 if per_group else len(np.unique(request.taken // size))
    free = total - len(request.taken) if per_group else total
    shortlist = min(free, max(ceil(method.keep * request.k), min(_LEAST_LIST, free // 40)) + spent)
    wide = min(free, _WIDE * shortlist)
    sample = sample_size(total)
    audit = min(free - shortlist, max(_LEAST_AUDIT, ceil(method.audit * shortlist))) if method.audit else 0
    exhaustive = total * size
    if method.search == "interpolated" and getattr(pool, "linear", False) and request.k > 0:
        first, second = len(first_knots(size)), len(second_knots(size))
        passes = len(pool.images) + sample * size + total * first + wide * (second - first)
        passes += shortlist * (size - second) + audit * size
        if passes * _WORTH <= exhaustive:
            return Outlook(
                guess=True,
                shortlist=shortlist,
                wide=wide,
                sample=sample,
                audit=audit,
                passes=passes,
                exhaustive=exhaustive,
            )
    return Outlook(guess=False, shortlist=total, passes=exhaustive, exhaustive=exhaustive)


def run_search(
    pool: GroupedPool,
    request: SearchRequest,
    method: Method,
    sweep: Sweep,
    *,
    chunk: int = 8192,
    batch: int = CPU_BATCH,
    on_note: Callable[[str], None] | None = None,
) -> Found:
    """Find the k lowest.

    Args:
        sweep: does the tasks of a stage, here or elsewhere.
        chunk, batch: images a task, and a forward pass, about.
        on_note: told what the user should know.
    """
    outlook = look_ahead(pool, request, method)
    search = _Search(pool, request, method, sweep, chunk, batch)
    if not outlook.guess:
        return search.all_of_it(outlook)
    return search.by_guesses(outlook, on_note or (lambda text: None))


class _Search:
    def __init__(
        self, pool: GroupedPool, request: SearchRequest, method: Method, sweep: Sweep, chunk: int, batch: int
    ) -> None:
        self._pool, self._request, self._method, self._sweep = pool, request, method, sweep
        self._cut = {"chunk": chunk, "batch": batch}
        self._passes = 0

    def all_of_it(self, outlook: Outlook) -> Found:
        merged = LowestK(self._request.k)
        self._score(merged, None, self._request.k)
        return self._found(merged, outlook)

    def by_guesses(self, outlook: Outlook, note: Callable[[str], None]) -> Found:
        request, listed, size = self._request, outlook.shortlist, self._pool.group_size
        best = self._rank(outlook)
        ranked = best.ids
        merged, done, attempt = LowestK(request.k), 0, 0
        while True:
            self._score_listed(merged, best, slice(done, listed))
            done = min(listed, len(ranked))
            recall, keep = self._recall(merged.result().scores, ranked, done, outlook.audit, attempt), done / request.k
            if recall is None or recall.value >= self._method.min_recall:
                return self._found(merged, outlook, keep, recall)
            missed = (
                f"an estimated {recall.value:.1%} of the {request.k:,} lowest were found, less than "
                f"pool.min_recall = {self._method.min_recall:g}"
            )
            listed, attempt = min(2 * done, len(ranked)), attempt + 1
            # A longer list brings in what lies just beyond its end, and no more.
            hopeless = 1.0 - recall.missed[-1] < self._method.min_recall
            if hopeless or done == listed or (listed - done + outlook.audit) * size >= outlook.exhaustive:
                note(f"{missed}: scoring the whole pool; with pool.keep above {keep:.3g} less is missed")
                return self.all_of_it(outlook)
            note(f"{missed}: scoring {listed / request.k:.3g} times as many exactly instead of {keep:.3g}")

    def _rank(self, outlook: Outlook) -> Scored:
        """The groups that look best, best first; with their exact scores at the second knots, unless that is much."""
        request, size, total = self._request, self._pool.group_size, self._pool.num_groups
        few, more = first_knots(size), second_knots(size)
        learned = learn(self._pool, request.seed, outlook.sample, (few, more), self._run, self._cut)
        ends, (least, most) = learned.ends, learned.matrices
        taken = request.taken if request.per == "group" else np.empty(0, dtype=np.int64)
        carry = 2 * outlook.wide * len(few) * (2 * ends.shape[1] + 4) <= _MOST_CARRIED
        common = {"count": total, "k": outlook.wide, "ends": ends, "score": request.score, **self._cut}
        first = LowestK(outlook.wide)
        self._run(Guess(knots=few, matrix=least, taken=taken, hand_on=("logits", "scores") * carry, **common), first)
        found = first.result(by="id")
        del first  # much, and there once more now
        known = {"known": found.extra, "have": few} if found.extra is not None else {}
        second = LowestK(outlook.wide)
        hand_on = ("scores",) * (2 * outlook.wide * len(more) * 4 <= _MOST_CARRIED)
        stage = Guess(knots=more, matrix=most, groups=found.ids, hand_on=hand_on, **known, **common)
        self._run(stage, second)
        return second.result()

    def _score_listed(self, merged: LowestK, best: Scored, rows: slice) -> None:
        """Score these of the groups that look best; where that was handed on, at the λ they were not asked about."""
        order = np.argsort(best.ids[rows])
        known = {}
        if best.extra is not None:
            known = {"known": best.extra["scores"][rows][order], "have": second_knots(self._pool.group_size)}
        self._score(merged, best.ids[rows][order], self._request.k, **known)

    def _score(self, merged: LowestK, groups: np.ndarray | None, k: int, **known: Any) -> None:
        """Score groups exactly; all of the pool where None."""
        request = self._request
        stage = ScoreGroups(
            count=self._pool.num_groups,
            group_size=self._pool.group_size,
            k=k,
            per=request.per,
            taken=request.taken,
            score=request.score,
            groups=groups,
            **known,
            **self._cut,
        )
        self._run(stage, merged)

    def _recall(self, chosen: np.ndarray, ranked: np.ndarray, done: int, count: int, attempt: int) -> Recall | None:
        """What was found, estimated; by a larger sample where the first one leaves open whether it is enough."""
        recall = self._audit(chosen, ranked, done, count, "audit", attempt)
        if recall is not None and recall.value < self._method.min_recall <= recall.high:
            return self._audit(chosen, ranked, done, _SURER * count, "larger audit", attempt)
        return recall

    def _audit(
        self, chosen: np.ndarray, ranked: np.ndarray, done: int, count: int, name: str, attempt: int
    ) -> Recall | None:
        """Score a sample of the groups that are not on the list, some of those next to it and some of all others."""
        left = self._request.taken if self._request.per == "group" else np.empty(0, dtype=np.int64)
        gone = np.union1d(ranked, left)
        ends = [min(times * done, len(ranked)) for times, _ in _BEYOND[:-1]]
        beyond = np.split(ranked[done:], [end - done for end in ends])
        sizes = [*map(len, beyond), self._pool.num_groups - len(gone)]
        if count == 0 or sum(sizes) == 0:
            return None
        generator = numpy_generator(self._request.seed, name, attempt)
        counts = share_out(count, sizes, [share for _, share in _BEYOND])
        samples = [generator.choice(part, n, replace=False) for part, n in zip(beyond, counts[:-1], strict=True)]
        samples.append(sample_without(self._pool.num_groups, counts[-1], gone, generator))
        strata = [
            Stratum(size=size, scores=self._sampled(np.sort(sample)))
            for size, sample in zip(sizes, samples, strict=True)
        ]
        return estimate(chosen, strata)

    def _sampled(self, groups: np.ndarray) -> np.ndarray:
        """Exact scores of some groups: [n, 1], or [n, L] where candidates of one group may all be chosen."""
        one = self._request.per == "group"
        size = 1 if one else self._pool.group_size
        merged = LowestK(len(groups) * size)
        if len(groups):
            self._score(merged, groups, len(groups) * size)
        found = merged.result()
        table = np.full((len(groups), size), np.inf, dtype=np.float32)  # what has left the pool is no miss
        row = np.searchsorted(groups, found.ids // self._pool.group_size)
        table[row, 0 if one else found.ids % size] = found.scores
        return table

    def _run(self, stage: Stage, merge: Merge) -> None:
        before = merge.evaluated
        self._sweep(stage, merge)
        self._passes += merge.evaluated - before

    def _found(
        self, merged: LowestK, outlook: Outlook, keep: float | None = None, recall: Recall | None = None
    ) -> Found:
        result = merged.result()
        return Found(
            scores=result.scores,
            ids=result.ids,
            evaluated=self._passes,
            exhaustive=outlook.exhaustive,
            keep=keep,
            recall=recall,
        )
