"""The k lowest candidates of a pool, found by scoring the whole pool, or by guesses followed by exact scores.

The search by guesses computes source logits and the logits at two λ of each pair, and guesses the scores at the other λ
(`kdray.search.interpolation`). It computes the logits at three more λ for the pairs with the lowest guesses, and
guesses these pairs again. It scores the best `keep` times k of them exactly, and chooses among them by exact score. It
estimates its recall from a sample of the groups that were not scored exactly (`kdray.search.recall`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdray.pools.base import is_linear
from kdray.pools.permutation import sample_without
from kdray.search.acquisition import Score
from kdray.search.guess import learn, sample_size
from kdray.search.interpolation import first_knots, second_knots
from kdray.search.recall import Recall, Stratum, estimate_recall, share_out
from kdray.search.stages import Guess, Merge, ScoreGroups, Stage
from kdray.search.topk import LowestK, Scored
from kdray.sections.search import SearchSettings
from kdray.utils.seeds import numpy_generator

if TYPE_CHECKING:
    from kdray.pools.base import Pool, SegmentPool
    from kdray.search.requests import SearchContext

_WORTH = 2  # guess only if it divides the forward passes by at least this number, as guesses lower the recall
_WIDE = 5  # groups guessed twice for each group scored exactly
# Least number of groups scored exactly, or a fortieth of the pool if that is fewer: the lowest scores of a small k lie
# far out in the tail.
_LEAST_LIST = 40_000
_MOST_CARRIED = 64 << 20  # most bytes passed from one stage to the next; larger results are computed again instead
_LEAST_AUDIT = 200  # groups; a smaller sample is not informative
_SURER = 4  # factor for a second sample if recall seems too low: a few unlucky draws must not cause a full search
# Pairs (factor, share): this share of the audit goes to groups of rank up to factor times the length of the list. The
# density of missed groups is highest there. The rest of the audit goes to all other groups: there are so many of them
# that they contain as many missed groups.
_BEYOND = ((2, 0.1), (_WIDE, 0.1))


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """A request for the k lowest candidates.

    Attributes:
        k: number of candidates.
        per: "group" takes at most one candidate per group, its lowest (Active Mixup, eq. 3);
            "candidate" has no such limit (eq. 2).
        taken: int64, sorted: the groups, or candidate ids, that have left the pool.
        score: the score by which candidates are ordered.
    """

    k: int
    per: Literal["group", "candidate"] = "group"
    taken: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    score: Score = "confidence"

    def passes(self, pool: Pool, settings: SearchSettings) -> int:
        """See `kdray.search.requests.Request`."""
        return plan_search(pool, self, settings).passes

    def perform(self, pool: Pool, context: SearchContext) -> SearchResult:
        """See `kdray.search.requests.Request`."""
        plan, search = plan_search(pool, self, context.settings), _Search(pool, self, context)
        if plan.guess and is_linear(pool):
            return search.by_guesses(plan, pool)
        return search.exhaustive(plan)


@dataclass(frozen=True, kw_only=True)
class SearchResult(Scored):
    """The result of a search: the k lowest candidates, the forward passes made, and the recall.

    Attributes:
        exhaustive: forward passes that scoring every candidate takes.
        keep: number of groups scored exactly, divided by k; None if all groups were.
        recall: the estimated recall; None if all groups were scored exactly, or if there was no audit.
    """

    exhaustive: int
    keep: float | None = None
    recall: Recall | None = None

    def facts(self) -> dict[str, float | None]:
        """The figures of the search, for the run's record.

        They are passes, exhaustive, keep, the estimated recall, the bounds of its interval (recall_low, recall_high),
        and the number of groups sampled for it (audited).
        """
        recall = self.recall
        return {
            "passes": self.evaluated,
            "exhaustive": self.exhaustive,
            "keep": self.keep,
            "recall": None if recall is None else recall.value,
            "recall_low": None if recall is None else recall.low,
            "recall_high": None if recall is None else recall.high,
            "audited": None if recall is None else recall.sampled,
        }

    def summary(self) -> str:
        """The forward passes and the recall, in one line of text."""
        text = f"search: {self.evaluated:,} forward passes"
        if self.keep is not None:
            text += f", {self.exhaustive / self.evaluated:.1f} times fewer than all"
        if self.recall is not None:
            found = self.recall
            text += f"; found an estimated {found.value:.1%} of the k lowest ({found.low:.1%} to {found.high:.1%})"
        return text


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """The planned work of a search.

    Attributes:
        guess: whether the search guesses.
        shortlist: number of groups scored exactly.
        wide: number of groups guessed twice.
        sample: number of groups that the guess is fitted to.
        audit: number of groups scored to estimate the recall.
        passes: forward passes, unless the list has to be made longer.
        exhaustive: forward passes that scoring every candidate takes.
    """

    guess: bool
    shortlist: int
    wide: int = 0
    sample: int = 0
    audit: int = 0
    passes: int
    exhaustive: int


def plan_search(pool: Pool, request: SearchRequest, settings: SearchSettings) -> SearchPlan:
    """Plan a search. It uses guesses if they at least halve the forward passes."""
    size, total = pool.group_size, pool.num_groups
    per_group = request.per == "group"
    # If single candidates leave the pool, a group may be on the list because of a candidate that has left.
    spent = 0 if per_group else len(np.unique(request.taken // size))
    free = total - len(request.taken) if per_group else total
    shortlist = min(free, max(ceil(settings.keep * request.k), min(_LEAST_LIST, free // 40)) + spent)
    wide = min(free, _WIDE * shortlist)
    sample = sample_size(total)
    audit = min(free - shortlist, max(_LEAST_AUDIT, ceil(settings.audit * shortlist))) if settings.audit else 0
    exhaustive = total * size
    if settings.search == "interpolated" and pool.linear and request.k > 0:
        first, second = len(first_knots(size)), len(second_knots(size))
        passes = len(pool.images) + sample * size + total * first + wide * (second - first)
        passes += shortlist * (size - second) + audit * size
        if passes * _WORTH <= exhaustive:
            return SearchPlan(
                guess=True,
                shortlist=shortlist,
                wide=wide,
                sample=sample,
                audit=audit,
                passes=passes,
                exhaustive=exhaustive,
            )
    return SearchPlan(guess=False, shortlist=total, passes=exhaustive, exhaustive=exhaustive)


class _Search:
    """A search in progress."""

    def __init__(self, pool: Pool, request: SearchRequest, context: SearchContext) -> None:
        self._pool, self._request, self._context = pool, request, context
        self._passes = 0

    def exhaustive(self, plan: SearchPlan) -> SearchResult:
        merged = LowestK(self._request.k)
        self._score(merged, None, self._request.k)
        return self._result(merged, plan)

    def by_guesses(self, plan: SearchPlan, pool: SegmentPool) -> SearchResult:
        request, listed, size, note = self._request, plan.shortlist, pool.group_size, self._context.note
        best = self._rank(plan, pool)
        ranked = best.ids
        merged, done, attempt = LowestK(request.k), 0, 0
        while True:
            self._score_listed(merged, best, slice(done, listed))
            done = min(listed, len(ranked))
            recall, keep = self._recall(merged.result().scores, ranked, done, plan.audit, attempt), done / request.k
            if recall is None or recall.value >= self._context.settings.min_recall:
                return self._result(merged, plan, keep, recall)
            missed = (
                f"an estimated {recall.value:.1%} of the {request.k:,} lowest were found, less than "
                f"pool.min_recall = {self._context.settings.min_recall:g}"
            )
            listed, attempt = min(2 * done, len(ranked)), attempt + 1
            # A longer list adds only groups just beyond its end, so it cannot recover what the last stratum holds.
            hopeless = 1.0 - recall.missed[-1] < self._context.settings.min_recall
            if hopeless or done == listed or (listed - done + plan.audit) * size >= plan.exhaustive:
                note(f"{missed}: scoring the whole pool; a pool.keep above {keep:.3g} gives a higher recall")
                return self.exhaustive(plan)
            note(f"{missed}: scoring {listed / request.k:.3g} times as many exactly instead of {keep:.3g}")

    def _rank(self, plan: SearchPlan, pool: SegmentPool) -> Scored:
        """The groups with the lowest guessed scores, lowest first.

        They carry their exact scores at the second knots, unless these exceed `_MOST_CARRIED` bytes.
        """
        request, size, total = self._request, pool.group_size, pool.num_groups
        few, more = first_knots(size), second_knots(size)
        learned = learn(pool, plan.sample, (few, more), replace(self._context, run_stage=self._run))
        sources, (least, most) = learned.sources, learned.matrices
        taken = request.taken if request.per == "group" else np.empty(0, dtype=np.int64)
        carry = 2 * plan.wide * len(few) * (2 * sources.shape[1] + 4) <= _MOST_CARRIED
        common: dict[str, Any] = {"cut": self._context.cut, "count": total, "k": plan.wide, "sources": sources}
        common["score"] = request.score
        first = LowestK(plan.wide)
        self._run(Guess(knots=few, matrix=least, taken=taken, hand_on=("logits", "scores") * carry, **common), first)
        found = first.result(by="id")
        del first  # large, and `found` is a copy
        known: dict[str, Any] = {"known": found.extra, "have": few} if found.extra is not None else {}
        second = LowestK(plan.wide)
        hand_on = ("scores",) * (2 * plan.wide * len(more) * 4 <= _MOST_CARRIED)
        stage = Guess(knots=more, matrix=most, groups=found.ids, hand_on=hand_on, **known, **common)
        self._run(stage, second)
        return second.result()

    def _score_listed(self, merged: LowestK, best: Scored, rows: slice) -> None:
        """Score these rows of `best` exactly. Scores at the second knots are not computed again if `best` has them."""
        order = np.argsort(best.ids[rows])
        known: dict[str, Any] = {}
        if best.extra is not None:
            known = {"known": best.extra["scores"][rows][order], "have": second_knots(self._pool.group_size)}
        self._score(merged, best.ids[rows][order], self._request.k, **known)

    def _score(self, merged: LowestK, groups: np.ndarray | None, k: int, **known: Any) -> None:
        """Score `groups` exactly; None means the whole pool."""
        request = self._request
        stage = ScoreGroups(
            cut=self._context.cut,
            count=self._pool.num_groups,
            group_size=self._pool.group_size,
            k=k,
            per=request.per,
            taken=request.taken,
            score=request.score,
            groups=groups,
            **known,
        )
        self._run(stage, merged)

    def _recall(self, chosen: np.ndarray, ranked: np.ndarray, done: int, count: int, attempt: int) -> Recall | None:
        """Estimate the recall, with a larger sample if the first one leaves open whether the recall is high enough."""
        recall = self._audit(chosen, ranked, done, count, "audit", attempt)
        if recall is not None and recall.value < self._context.settings.min_recall <= recall.high:
            return self._audit(chosen, ranked, done, _SURER * count, "larger audit", attempt)
        return recall

    def _audit(
        self, chosen: np.ndarray, ranked: np.ndarray, done: int, count: int, name: str, attempt: int
    ) -> Recall | None:
        """Estimate the recall from a sample of groups that are not on the list: some just beyond it, some of the rest.

        Returns:
            None if no group is to be sampled.
        """
        left = self._request.taken if self._request.per == "group" else np.empty(0, dtype=np.int64)
        gone = np.union1d(ranked, left)
        ends = [min(times * done, len(ranked)) for times, _ in _BEYOND[:-1]]
        beyond = np.split(ranked[done:], [end - done for end in ends])
        sizes = [*map(len, beyond), self._pool.num_groups - len(gone)]
        if count == 0 or sum(sizes) == 0:
            return None
        generator = numpy_generator(self._context.seed, name, attempt)
        counts = share_out(count, sizes, [share for _, share in _BEYOND])
        samples = [generator.choice(part, n, replace=False) for part, n in zip(beyond, counts[:-1], strict=True)]
        samples.append(sample_without(self._pool.num_groups, counts[-1], gone, generator))
        strata = [
            Stratum(size=size, scores=self._sampled(np.sort(sample)))
            for size, sample in zip(sizes, samples, strict=True)
        ]
        return estimate_recall(chosen, strata)

    def _sampled(self, groups: np.ndarray) -> np.ndarray:
        """Exact scores of some groups: [n, 1] if at most one candidate per group may be chosen, else [n, L]."""
        one = self._request.per == "group"
        size = 1 if one else self._pool.group_size
        merged = LowestK(len(groups) * size)
        if len(groups):
            self._score(merged, groups, len(groups) * size)
        found = merged.result()
        table = np.full((len(groups), size), np.inf, dtype=np.float32)  # a candidate that has left is not missed
        row = np.searchsorted(groups, found.ids // self._pool.group_size)
        table[row, 0 if one else found.ids % size] = found.scores
        return table

    def _run(self, stage: Stage, merge: Merge) -> None:
        before = merge.evaluated
        self._context.run_stage(stage, merge)
        self._passes += merge.evaluated - before

    def _result(
        self, merged: LowestK, plan: SearchPlan, keep: float | None = None, recall: Recall | None = None
    ) -> SearchResult:
        result = merged.result()
        return SearchResult(
            scores=result.scores,
            ids=result.ids,
            evaluated=self._passes,
            exhaustive=plan.exhaustive,
            keep=keep,
            recall=recall,
        )
