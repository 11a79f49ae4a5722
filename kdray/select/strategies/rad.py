"""The RAD strategies (Baykal et al., ICLR 2023): one chooses candidates, one chooses pairs of a mixup pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from kdray.errors import ConfigError, PoolExhausted
from kdray.pools.base import Pool, PoolSection
from kdray.search import BestRequest, GainsRequest, Score, ScoresRequest
from kdray.sections.search import SearchSettings
from kdray.select.base import Looked, Selection, Strategy, Task, strategies
from kdray.select.rad import stream
from kdray.select.rad.draw import chances, most_draws
from kdray.select.rad.game import penalty
from kdray.select.rad.mistakes import Mistakes
from kdray.select.rounding import round_parts

MOST_LISTED = 1 << 25
"""Most gains that are listed in the driver. For more, see `kdray.select.rad.stream`."""


class _Robust(Strategy):
    """The fields and computations that both strategies share."""

    held: ClassVar[str] = "the gains that the choice is made from"

    gain: Score = "margin"
    """The gain of a correct answer: 1 - margin (as in the paper), 1 - confidence, or the entropy."""
    w: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """The loss of a wrong answer, as a fraction of the gain; auto: 1 - m / n."""
    m: int | float | Literal["estimate"] = 0.05
    """The number of candidates on which the teacher errs. A number with a decimal point, such as 0.05 or 1.0, is a
    share of the candidates that are left; RAD uses 0.05 if the share is unknown. A whole number is a count. estimate:
    queries of round 1 estimate it. With `validation`, m / n is then the teacher's error on that set; without it, for
    mixes, the share of mixes to which the teacher gives a class of neither of their two images."""
    estimate_queries: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Number of queries for the estimate, if m is estimate. They are paid from the budget and deducted from round 1.
    auto: a tenth of round 1's queries, at most 1,000."""
    clip: Literal["redistribute", "shrink"] = "redistribute"
    """What to do if b times a candidate's probability exceeds 1. redistribute: the candidate is certain to be chosen,
    and the excess goes to the other candidates in the optimal way. shrink: choose fewer candidates in that round
    (section 3.3)."""

    @field_validator("m", mode="before")
    @classmethod
    def _m_is_a_number_a_share_or_asked_for(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value == "estimate" or (number and value >= 0 and (isinstance(value, int) or value <= 1)):
            return value
        raise ValueError(
            f"input should be 'estimate', a whole number of candidates, or a share of them in [0, 1], got {value!r}"
        )

    @model_validator(mode="after")
    def _queries_are_for_an_estimate(self) -> _Robust:
        if self.estimate_queries != "auto" and self.m != "estimate":
            raise ValueError(
                f"select.estimate_queries is set, but select.m is {self.m:g}: nothing is estimated; leave it out, or "
                "set m to estimate"
            )
        return self

    @property
    def estimates(self) -> bool:
        """Whether queries are spent on an estimate of m."""
        return self.rounds != 0 and self.m == "estimate"

    def queries_for_estimate(self, queries: int) -> int:
        """See `Strategy`."""
        if not self.estimates:
            return 0
        wanted = self.estimate_queries
        count = max(1, min(1000, queries // 10)) if wanted == "auto" else wanted
        if count >= queries:
            raise ConfigError(
                f"select.estimate_queries: {count:,} queries for the estimate of m leave nothing of the {queries:,} of "
                "round 1; lower it, raise budget.queries, or set select.m to a share such as 0.05"
            )
        return count

    def check(self, pool: PoolSection, *, labelled: bool, validation: bool) -> None:
        """See `Strategy`."""
        super().check(pool, labelled=labelled, validation=validation)
        if not self.estimates or validation:
            return
        if not pool.mixes:
            raise ValueError(
                "select.m: where a teacher errs on real images cannot be told without knowing what they show; give "
                "labelled images as validation, or set select.m to a number or a share (RAD takes 0.05 there)"
            )
        if self.first == 0:
            raise ValueError(
                "select.m: mistakes on mixes show by what the teacher says of their two images, and select.first is 0; "
                "give labelled images as validation, or set select.m to a share such as 0.05"
            )

    def check_size(self, pool: Pool, queries: list[int], left: int) -> None:
        """See `Strategy`."""
        if len(queries) == 1:
            return
        if isinstance(self.m, int) and self.m > left:
            raise ConfigError(
                f"select.m: the teacher cannot err on {self.m:,} of {left:,} candidates, which is what the last "
                "round has left; lower it, or give a share of them such as 0.05"
            )

    def score_words(self) -> str:
        """See `Strategy`."""
        return {
            "confidence": "student's confidence",
            "entropy": "student's entropy, negated",
            "margin": "student's margin",
        }[self.gain]

    def _mistakes(self, task: Task) -> Mistakes:
        """m: the estimate if there is one, else the value in the config."""
        if task.mistakes is not None or self.m == "estimate":
            return task.mistakes or Mistakes()
        return Mistakes(count=self.m) if isinstance(self.m, int) else Mistakes(share=self.m)

    def passes(self, pool: Pool, k: int, settings: SearchSettings) -> int:
        """See `Strategy`."""
        request = GainsRequest(per=self.per, score=self.gain)
        guess = request.guesses(pool, settings)
        gains = request.passes(pool, settings) if self._listed(pool) else stream.passes(pool, guess=guess)
        return gains + self._passes_after(pool, k, guess)

    def _passes_after(self, pool: Pool, k: int, guess: bool) -> int:
        """Forward passes for the drawn ones."""
        raise NotImplementedError

    def driver_bytes(self, pool: Pool, k: int) -> int:
        """See `Strategy`: two float32 for each gain if all are listed.

        This does not include the sort of all gains, which is needed if a round chooses so many candidates that
        probabilities reach 1.
        """
        return 8 * self._count(pool) if self._listed(pool) else stream.driver_bytes(pool, k)

    def _count(self, pool: Pool) -> int:
        return pool.num_groups if self.per == "group" else len(pool)

    def _listed(self, pool: Pool) -> bool:
        return self._count(pool) <= MOST_LISTED

    def _drawn(self, task: Task) -> _Draw:
        """Draw from what is left."""
        taken = task.taken_groups if self.per == "group" else np.unique(task.taken)
        request = GainsRequest(per=self.per, taken=taken, score=self.gain)
        n = self._count(task.pool) - len(taken)
        if n < task.k:
            raise PoolExhausted(f"{task.k:,} candidates wanted, {n:,} are left; lower budget.queries")
        m = min(float(n), self._mistakes(task).of(n))
        w = penalty(n, m, None if self.w == "auto" else self.w)
        draw = self._from_list if self._listed(task.pool) else self._from_stream
        found = draw(task, request, n, m, w)
        looked = found.looked
        about = {"rad_m": m, "rad_n": n, "rad_w": w, "rad_support": found.support}
        text = f"RAD: m = {m:,.0f} of {n:,}, w = {w:.3g}, drawn from the {found.support:,} of largest gain"
        if len(found.numbers) < task.k:
            text += f"; {len(found.numbers):,} instead of {task.k:,}, as no probability may exceed 1"
        return replace(found, looked=replace(looked, about=about, text=text))

    def _from_list(self, task: Task, request: GainsRequest, n: int, m: float, w: float) -> _Draw:
        found = task.ask(request)
        draws = min(task.k, most_draws(found.gains, m, w)) if self.clip == "shrink" and n else task.k
        support = _Counted(chances(found.gains, draws, m, w)) if n else _Counted(iter(()))
        rows = round_parts(support, task.generator)
        return _Draw(
            numbers=found.numbers(rows),
            scores=_scores(found.gains[rows], self.gain),
            guessed=found.guessed,
            support=support.count,
            looked=Looked(passes=found.evaluated, exhaustive=found.exhaustive),
        )

    def _from_stream(self, task: Task, request: GainsRequest, n: int, m: float, w: float) -> _Draw:
        shrink = self.clip == "shrink"
        found = stream.draw_streamed(
            task.pool, task.ask, request, k=task.k, mistakes=m, w=w, shrink=shrink, generator=task.generator
        )
        return _Draw(
            numbers=found.held.numbers,
            scores=_scores(found.held.gains, self.gain),
            guessed=found.guessed,
            support=found.support,
            looked=Looked(passes=found.passes, exhaustive=len(task.pool)),
        )


@dataclass(frozen=True, kw_only=True)
class _Draw:
    """What was drawn.

    Attributes:
        numbers: int64 [b], groups or candidate ids, ascending.
        scores: float32 [b].
        guessed: whether the scores are guessed.
        support: number of candidates whose probability is not zero.
        looked: figures about the draw.
    """

    numbers: np.ndarray
    scores: np.ndarray
    guessed: bool
    support: int
    looked: Looked


@strategies.register
class Rad(_Robust):
    """Draws candidates with RAD's probabilities (Corollary 1). Other candidates of the same pair stay in the pool."""

    per: ClassVar[Literal["group", "candidate"]] = "candidate"

    strategy: Literal["rad"] = "rad"

    def choose(self, task: Task) -> Selection:
        """See `Strategy`."""
        found = self._drawn(task)
        ids, scores, looked = found.numbers, found.scores, found.looked
        if found.guessed and len(ids):
            exact = task.ask(ScoresRequest(ids=ids, score=self.gain))
            looked, scores = _with_error(looked, exact.evaluated, scores, exact.rows[:, 0]), exact.rows[:, 0]
        return Selection(ids=ids, scores=scores, search=looked, fewer=len(ids) < task.k)

    def _passes_after(self, pool: Pool, k: int, guess: bool) -> int:
        return k * guess  # if gains are guessed, the drawn candidates are scored exactly


@strategies.register
class RadPairs(_Robust):
    """Draws pairs with RAD's probabilities, each at its best λ. Drawn pairs leave the pool.

    The gain of a pair is the gain of its best candidate. RAD spreads its draws over many pairs of high gain, because
    the teacher may err on any of them. The rule that a pair is chosen only once (Active Mixup, eq. 3) spreads the draws
    over the images.
    """

    strategy: Literal["rad-pairs"] = "rad-pairs"

    def choose(self, task: Task) -> Selection:
        """See `Strategy`."""
        found = self._drawn(task)
        groups, looked, fewer = found.numbers, found.looked, len(found.numbers) < task.k
        if task.pool.group_size == 1:
            return Selection(ids=groups, scores=found.scores, search=looked, fewer=fewer)
        best = task.ask(BestRequest(groups=groups, score=self.gain))
        if found.guessed and len(groups):
            looked = _with_error(looked, best.evaluated, found.scores, best.scores)
        else:
            looked = replace(looked, passes=looked.passes + best.evaluated)
        return Selection(ids=best.ids, scores=best.scores, search=looked, fewer=fewer)

    def _passes_after(self, pool: Pool, k: int, guess: bool) -> int:
        return k * pool.group_size * (pool.group_size > 1)


def _with_error(looked: Looked, passes: int, guessed: np.ndarray, exact: np.ndarray) -> Looked:
    """Add the forward passes for the exact scores, and the mean absolute error of the guesses, to the figures."""
    error = float(np.abs(guessed - exact).mean())
    text = f"{looked.text}; gains were guessed with a mean absolute error of {error:.3f}"
    return replace(looked, passes=looked.passes + passes, about=looked.about | {"guess_error": error}, text=text)


class _Counted:
    """Iterates over parts and counts the candidates whose probability is not zero."""

    def __init__(self, parts: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
        self._parts, self.count = parts, 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for ids, probs in self._parts:
            self.count += int(np.count_nonzero(probs))
            yield ids, probs


def _scores(gains: np.ndarray, name: Score) -> np.ndarray:
    """Convert gains back to scores."""
    return (-gains if name == "entropy" else 1.0 - gains).astype(np.float32)
