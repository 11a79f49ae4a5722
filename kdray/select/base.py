"""The contract of a strategy, which chooses the candidates to query: its input `Task` and its output `Selection`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field, field_validator, model_validator

from kdray.errors import PoolExhausted, ScoringError
from kdray.pools.base import Pool, PoolSection
from kdray.search.requests import R, Request
from kdray.search.values import PredictionsRequest
from kdray.sections.base import Section
from kdray.sections.registry import Registry
from kdray.sections.search import SearchSettings
from kdray.select import schedule as schedules
from kdray.select.balanced import Balanced, in_turn, listed
from kdray.select.rad.mistakes import Mistakes

if TYPE_CHECKING:
    from torch import Tensor


class Ask(Protocol):
    """Performs a request about the pool with the current student."""

    def __call__(self, request: Request[R]) -> R:
        """The result of the request."""


class Evidence(Protocol):
    """Figures about a selection, for the run's record and for the user."""

    def facts(self) -> dict[str, Any]:
        """The figures by name: passes, exhaustive, keep, recall, recall_low, recall_high, audited, and others."""

    def summary(self) -> str:
        """The figures in one line of text."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Figures about a selection that made forward passes, but no search for the k lowest candidates.

    Attributes:
        passes: forward passes made, in images.
        exhaustive: forward passes that evaluating every candidate that is left takes.
        about: further figures, by name.
        text: the further figures in words.
    """

    passes: int
    exhaustive: int
    about: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    def facts(self) -> dict[str, Any]:
        """See `Evidence`. There is no recall, because there was no search."""
        none = dict.fromkeys(("keep", "recall", "recall_low", "recall_high", "audited"))
        return {"passes": self.passes, "exhaustive": self.exhaustive, **none, **self.about}

    def summary(self) -> str:
        """See `Evidence`."""
        return f"selection: {self.passes:,} forward passes" + (f"; {self.text}" if self.text else "")


@dataclass(frozen=True, kw_only=True)
class Task:
    """The input of a strategy.

    Attributes:
        pool: the pool of candidates.
        k: number of candidates to choose.
        taken: int64, ids of the candidates that have left the pool.
        generator: the random generator for strategies that draw.
        ask: performs requests with the current student.
        known: uint8 [M, C, H, W], labelled images that are not candidates of the pool; for strategies with `features`.
        mistakes: the estimate of RAD's m; None if there is none.
        asked: int64, numbers of the images of the pool that were asked about as such, in round 0.
    """

    pool: Pool
    k: int
    taken: np.ndarray
    generator: np.random.Generator
    ask: Ask
    known: Tensor | None = None
    mistakes: Mistakes | None = None
    asked: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def taken_groups(self) -> np.ndarray:
        """Groups of the candidates in `taken`, int64, sorted, distinct."""
        return np.unique(self.taken // self.pool.group_size)

    @property
    def free_groups(self) -> int:
        """Number of groups of which no candidate is in `taken`."""
        return self.pool.num_groups - len(self.taken_groups)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The output of a strategy: the candidates to query.

    Attributes:
        ids: int64 [k], distinct candidate ids, none of them taken, in the order in which they are queried.
        scores: float32 [k], the score of each candidate; low means informative. None if the strategy has no scores.
        search: figures about the selection; None if the strategy makes no forward passes.
        fewer: whether the strategy chose fewer than k candidates on purpose.
    """

    ids: np.ndarray
    scores: np.ndarray | None = None
    search: Evidence | None = None
    fewer: bool = False


class Strategy(Section):
    """The strategy that chooses candidates. All strategies share these fields; docs/choosing.md describes each one."""

    per: ClassVar[Literal["group", "candidate"]] = "group"
    """What leaves the pool when a candidate is chosen: its whole group, or that candidate alone."""
    features: ClassVar[bool] = False
    """Whether the strategy compares the student's features. The student must then end in a linear layer."""
    asks: ClassVar[bool] = True
    """Whether the strategy makes forward passes of the student, leaving `balance` aside; see `looks`."""
    held: ClassVar[str] = ""
    """A name for the data that the strategy holds in the driver; see `driver_bytes`."""
    ordered: ClassVar[bool] = False
    """Whether a choice is in order of preference, so that the first ones of each class are the best ones of that class:
    `balance` needs it."""
    prefix: ClassVar[str] = ""
    """When a choice of k candidates is the first k of a choice of more, in words; empty: in general it is not."""

    strategy: str
    """Name of the strategy: one from the table in docs/choosing.md, or module:object for a class of your own."""
    first: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Number of images that are queried in round 0, drawn at random. 0 trains on `labelled` alone. auto: all images;
    for a pool of real images, 0 if there is a labelled set, else as many as in a later round."""
    schedule: Literal["even", "nested"] | list[int] = "even"
    """How the budget is divided among the rounds. even: evenly, among `rounds` rounds. nested: the number of queries in
    all doubles from round to round, and the last round takes what is left, so a run with a smaller budget has the
    same first rounds. A list such as [250, 500, 1000]: the number of queries in all, round 0 included, at the end of
    rounds 1, 2, 3; totals from `budget.queries` on are left out, and the last round ends there."""
    rounds: Annotated[int, Field(ge=0)] | None = None
    """T, the number of selection rounds after round 0. 0 trains on the real images alone. null: 1 if `schedule` is
    even; with another schedule the number follows from the budget, and must not be given."""
    per_round: Annotated[int, Field(ge=1)] | None = None
    """Number of candidates chosen in each round; only if `schedule` is even. null divides what round 0 leaves of the
    budget evenly among the rounds."""

    balance: Annotated[int, Field(ge=2)] | None = None
    """m, a number such as 8: the strategy lists m times as many candidates as are wanted, the student predicts their
    classes, and the classes take turns on the list. null: candidates are chosen whatever their classes. Not with rad,
    rad-pairs and unixkd."""

    @model_validator(mode="before")
    @classmethod
    def _one_round_unless_another_schedule_is_given(cls, data: Any) -> Any:
        # Written into the section, so a config that says it and one that does not are the same experiment.
        if not isinstance(data, Mapping) or data.get("schedule", "even") != "even":
            return data
        own = cls.model_fields["rounds"].default  # a class of the user's own may have another
        return {**data, "rounds": 1 if own is None else own} if data.get("rounds") is None else data

    @field_validator("schedule", mode="before")
    @classmethod
    def _schedule_is_a_name_or_ascending_totals(cls, value: Any) -> Any:
        if isinstance(value, str) and value in ("even", "nested"):
            return value
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(f"input should be 'even', 'nested', or a list of totals such as [250, 500], got {value!r}")
        for total in value:
            if not isinstance(total, int) or isinstance(total, bool) or total < 1:
                raise ValueError(f"a total is a whole number of queries, at least 1, got {total!r}")
        for total, later in pairwise(value):
            if later <= total:
                raise ValueError(
                    f"totals must ascend, and {later:,} follows {total:,}: a total counts all queries so far"
                )
        return list(value)

    @model_validator(mode="after")
    def _balance_needs_an_order(self) -> Strategy:
        if self.balance is not None and not self.ordered:
            raise ValueError(
                f"balance is {self.balance}, but {self.strategy} has no order in which the first candidates of each "
                "class could be taken; leave balance out, or name another strategy, such as cluster-margin or random"
            )
        return self

    @property
    def looks(self) -> bool:
        """Whether a choice makes forward passes of the student."""
        return self.asks or self.balance is not None

    def queries(self, budget: int, images: int, others: int = 0) -> list[int]:
        """Number of queries in each round that chooses, after that of round 0.

        Args:
            budget: training queries in all.
            images: queries in round 0.
            others: queries of the budget for rounds that do not choose.

        Raises:
            ConfigError: see `kdray.select.schedule`.
        """
        if self.schedule == "nested":
            return schedules.nested(budget - others, images)
        if isinstance(self.schedule, list):
            return schedules.until(budget - others, images, self.schedule)
        assert self.rounds is not None, "see `_one_round_unless_another_schedule_is_given`"
        return schedules.evenly(budget, images, self.rounds, self.per_round, others)

    @abstractmethod
    def choose(self, task: Task) -> Selection:
        """Choose `task.k` candidates, or all that are left if they are fewer.

        Raises:
            PoolExhausted: too few candidates are left for the strategy.
        """

    def passes(self, pool: Pool, k: int, settings: SearchSettings) -> int:
        """Approximate number of forward passes to choose `k` candidates from a fresh pool."""
        return 0

    def driver_bytes(self, pool: Pool, k: int) -> int:
        """Most bytes held in the driver to choose `k` candidates from a fresh pool; 0 if they are negligible."""
        return 0

    def capacity(self, pool: Pool) -> int:
        """Most candidates that the strategy can choose from a fresh pool, over all rounds."""
        return len(pool) if self.per == "candidate" else pool.num_groups

    def check(self, pool: PoolSection, *, labelled: bool, validation: bool) -> None:
        """Refuse a config in which the strategy cannot work.

        Args:
            labelled, validation: whether the config has these image sets.

        Raises:
            ValueError: the message names the field and says what to do.
        """
        if self.first == 0 and not labelled and (not pool.untaught or self.rounds == 0):
            raise ValueError("select.first: 0 leaves nothing to train on in round 0; raise it, or give labelled images")

    def check_size(self, pool: Pool, queries: list[int], left: int) -> None:
        """Refuse a pool that is too large or too small for the strategy.

        Args:
            queries: number of queries in each round, round 0 first.
            left: number of candidates that are left before the last round.

        Raises:
            ConfigError: the message names the field and says what to do.
        """

    def queries_for_estimate(self, queries: int) -> int:
        """How many of round 1's `queries` are spent on an estimate of RAD's m before the selection.

        Raises:
            ConfigError: no query would be left for the selection.
        """
        return 0

    def score_words(self) -> str:
        """The name of a chosen candidate's score, for the report."""
        return "student's margin"


strategies = Registry[Strategy](
    Strategy,  # type: ignore[type-abstract]  # the registry holds subclasses
    field="select",
    tag="strategy",
    package="kdray.select.strategies",
    default="cluster-margin",
    lenient=True,
)


def select(strategy: Strategy, task: Task) -> Selection:
    """Choose `task.k` candidates, as many of each predicted class if `strategy.balance` is set.

    Returns:
        Exactly k candidates; fewer only if `Selection.fewer` is set.

    Raises:
        PoolExhausted: fewer than k candidates are left.
        ScoringError: a strategy of the user's own chose one twice.
    """
    chosen = strategy.choose(task) if strategy.balance is None else _balanced(strategy, strategy.balance, task)
    if len(chosen.ids) < task.k and not chosen.fewer:
        raise PoolExhausted(
            f"{task.k:,} candidates wanted, {len(chosen.ids):,} are left for {strategy.strategy}; lower budget.queries"
        )
    if len(np.unique(chosen.ids)) < len(chosen.ids) or np.isin(chosen.ids, task.taken).any():
        raise ScoringError(
            f"select.strategy: {strategy.strategy} chose a candidate twice, or one that was chosen before; choose() "
            "must return different ids, none of them in Task.taken"
        )
    return chosen


def _balanced(strategy: Strategy, times: int, task: Task) -> Selection:
    """See `kdray.select.balanced`."""
    left = task.free_groups if strategy.per == "group" else len(task.pool) - len(np.unique(task.taken))
    found = strategy.choose(replace(task, k=listed(task.k, times, left)))
    if len(found.ids) == 0:
        return found
    classes = task.ask(PredictionsRequest(ids=found.ids)).rows[:, 0]
    rows = in_turn(classes, task.k)
    search = Balanced(
        of=found.search or Looked(passes=0, exhaustive=0),
        listed=len(found.ids),
        chosen=tuple(np.unique(classes[rows], return_counts=True)[1].tolist()),
    )
    scores = None if found.scores is None else found.scores[rows]
    return replace(found, ids=found.ids[rows], scores=scores, search=search)
