"""Observers, which receive the events of a run. They cannot change the run."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class RoundMetrics:
    """One finished round, as in rounds/NNN/metrics.json.

    Attributes:
        round: number of the round; round 0 queries the real images.
        images: number of labelled images so far.
        queries: training queries charged so far, including lost ones.
        estimate_queries: queries charged so far for the estimate of RAD's m; not part of `queries`.
        estimate: the estimate (`kdray.select.rad.mistakes.Estimate`) in the round that made it; empty in other rounds.
        bought: training queries charged in this round.
        reused: answers of this round that cost nothing, those for the estimate included.
        repeated: of these, answers that cost nothing without other runs too: their images appear twice, or the run had
            asked about them before.
        short: images of the round that were not asked about, because the budget ran out.
        set_aside: images of the round for which the teacher gave no valid answer.
        evaluated: forward passes of the student that were made to choose this round's candidates.
        search: figures about the selection, see `kdray.select.base.Evidence`; empty if it made no forward passes.
        student_accuracy, teacher_accuracy: accuracy on the labelled test set, or None.
        success_rate: student accuracy divided by teacher accuracy (Active Mixup, section 4.1), on the images for which
            both were measured; or None.
        agreement: share of test images for which student and teacher predict the same class, or None. Of a test set
            without labels it is the only one of these figures.
        agreement_low, agreement_high: its 95 % interval (Clopper-Pearson), or None.
        compared: number of test images that it was measured on.
        evaluation_queries: queries on test images so far; not part of `queries`.
        loss: mean training loss of the last epoch; None of a student that is not trained.
        seconds: duration of each phase: choose, query, train, evaluate.
        relative_entropy: how evenly the answers so far are spread over the classes, 0 to 1, see
            `kdray.select.balance.relative_entropy`; None without answers, or in runs of an older version.
        training: steps; diverged, the step whose loss was not finite, or None; choices, what was chosen by agreement
            with held-out answers; notes, all that in words.
        boundaries: of a pool of boundary pairs, how many the teacher confirms, see `kdray.runs.confirmed`.
    """

    round: int
    images: int
    queries: int
    bought: int
    reused: int
    short: int
    set_aside: int
    evaluated: int
    search: dict[str, Any]
    student_accuracy: float | None
    teacher_accuracy: float | None
    success_rate: float | None
    agreement: float | None
    evaluation_queries: int
    estimate_queries: int
    estimate: dict[str, Any]
    loss: float | None
    seconds: dict[str, float]
    agreement_low: float | None = None
    agreement_high: float | None = None
    compared: int = 0
    repeated: int = 0
    relative_entropy: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    boundaries: dict[str, Any] = field(default_factory=dict)

    @property
    def paid(self) -> int:
        """Queries charged to the budget so far: for training, and for the estimate of m."""
        return self.queries + self.estimate_queries

    @property
    def saved(self) -> int:
        """Answers of this round that the run would have paid for alone: another run had bought them."""
        return self.reused - self.repeated

    def measured(self) -> str:
        """How good the student is, in words: accuracy, or else agreement; "" where nothing was measured."""
        if self.student_accuracy is not None:
            return f"accuracy {self.student_accuracy:.2%}"
        return "" if self.agreement is None else f"agreement {self.agreement:.2%}{self.interval()}"

    def interval(self) -> str:
        """The interval of the agreement, in words; "" where there is none."""
        if self.agreement_low is None or self.agreement_high is None:
            return ""
        return f" ({self.agreement_low:.1%} to {self.agreement_high:.1%})"

    def figures(self) -> dict[str, float]:
        """The figures that are plotted against the queries charged, by name."""
        names = ("student_accuracy", "teacher_accuracy", "success_rate", "agreement", "relative_entropy", "loss")
        found = {name: getattr(self, name) for name in names}
        found |= {f"seconds/{phase}": seconds for phase, seconds in self.seconds.items()}
        found |= {f"search/{name}": self.search.get(name) for name in ("passes", "recall", "rad_m", "rad_support")}
        found["images"] = self.images
        return {name: value for name, value in found.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """The metrics as a plain mapping."""
        return asdict(self)


class Observer:
    """Receives the events of a run. Every method does nothing; override those of interest."""

    def begin(self, *, rounds: int, budget: int, spent: int, title: str) -> None:
        """The run starts or resumes."""

    def phase(self, round: int, name: str) -> None:
        """A phase of a round starts: choose, query, train or evaluate."""

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        """`done` of `total` candidates, images or epochs of the current phase are done.

        Args:
            spent: queries charged so far; given in phases that query the teacher.
        """

    def round_done(self, metrics: RoundMetrics) -> None:
        """A round is finished and written to disk."""

    def note(self, text: str) -> None:
        """A message for the user."""

    def close(self) -> None:
        """The run ended, with or without an error."""


class Observers(Observer):
    """Passes every event to several observers, in order."""

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
