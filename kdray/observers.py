"""What a run tells while it works. Observers listen; none of them can change the run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class RoundMetrics:
    """One finished round, as in rounds/NNN/metrics.json.

    Attributes:
        round: its number; 0 is the real images.
        images: labelled images so far.
        queries: training queries charged so far, lost ones included.
        estimate_queries: queries charged for the estimate of RAD's m so far, counted apart.
        estimate: what they told (`kdray.select.mistakes.Estimate`), in the round they were asked in.
        bought: training queries charged in this round.
        reused: answers of this round that cost nothing.
        short: candidates chosen but not answered, because the budget ran out.
        set_aside: candidates the teacher gave no answer to that one could believe.
        evaluated: forward passes of the student to choose this round's candidates.
        search: what those found, see `kdray.search.Found.facts`; empty where the choice does not look at the student.
        student_accuracy, teacher_accuracy: on the labelled test set, or None.
        success_rate: their ratio (Active Mixup, section 4.1), on the images both were measured on.
        agreement: share of test images on which student and teacher name the same class, or None.
        evaluation_queries: teacher queries spent on test images so far, counted apart.
        loss: mean training loss of the last epoch.
        seconds: of each phase: choose, query, train, evaluate.
    """

    round: int
    images: int
    queries: int
    bought: int
    reused: int
    short: int
    evaluated: int
    student_accuracy: float | None
    teacher_accuracy: float | None
    success_rate: float | None
    agreement: float | None
    evaluation_queries: int
    loss: float
    seconds: dict[str, float] = field(default_factory=dict)
    set_aside: int = 0
    search: dict[str, Any] = field(default_factory=dict)
    estimate_queries: int = 0
    estimate: dict[str, Any] = field(default_factory=dict)

    @property
    def paid(self) -> int:
        """Queries charged so far to the budget: for training, and for the estimate."""
        return self.queries + self.estimate_queries

    def to_json(self) -> dict[str, Any]:
        """As a plain mapping."""
        return asdict(self)


class Observer:
    """Does nothing; override what is of interest."""

    def begin(self, *, rounds: int, budget: int, spent: int, title: str) -> None:
        """The run starts or goes on."""

    def phase(self, round: int, name: str) -> None:
        """A phase of a round starts: choose, query, train or evaluate."""

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        """Work done in the current phase, in candidates, images or epochs; `spent` where queries are bought."""

    def round_done(self, metrics: RoundMetrics) -> None:
        """A round is on disk."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def close(self) -> None:
        """The run ended, well or not."""


class Observers(Observer):
    """Tells several observers, in order."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def begin(self, *, rounds: int, budget: int, spent: int, title: str) -> None:
        for observer in self._observers:
            observer.begin(rounds=rounds, budget=budget, spent=spent, title=title)

    def phase(self, round: int, name: str) -> None:
        for observer in self._observers:
            observer.phase(round, name)

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        for observer in self._observers:
            observer.progress(done, total, spent=spent)

    def round_done(self, metrics: RoundMetrics) -> None:
        for observer in self._observers:
            observer.round_done(metrics)

    def note(self, text: str) -> None:
        for observer in self._observers:
            observer.note(text)

    def close(self) -> None:
        for observer in self._observers:
            observer.close()
