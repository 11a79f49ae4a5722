"""What the trials of a sweep measured: the mean over the seeds of each trial, and which trial is best."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from kdray.observers.base import RoundMetrics
from kdray.utils.text import counted

State = Literal["waiting", "running", "stopped", "failed", "finished"]
"""waiting: not started. stopped: by the scheduler, after a round in which others were better. failed: see its cause."""
Mode = Literal["max", "min"]

METRICS = (
    "student_accuracy",
    "teacher_accuracy",
    "success_rate",
    "agreement",
    "agreement_low",
    "agreement_high",
    "loss",
)
"""The figures of a round that a sweep can compare, see `kdray.observers.base.RoundMetrics`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A figure after one round of a trial.

    Attributes:
        round: number of the round.
        asked: images that the run had answers to, or was charged for, the mean over the seeds: what the trial would
            have paid alone.
        mean: of the figure over the seeds.
        error: standard error of that mean; None with one seed.
        seeds: how many seeds there are.
    """

    round: int
    asked: float
    mean: float
    error: float | None
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One combination of values, with a run for each seed.

    Attributes:
        name: of its folder.
        values: the swept fields, key with dots -> value.
        state: see `State`.
        cause: why it failed; else empty.
        seeds: of its runs.
        histories: metrics of the finished rounds of each run, in the order of `seeds`.
    """

    name: str
    values: Mapping[str, Any]
    state: State
    cause: str
    seeds: Sequence[int]
    histories: Sequence[Sequence[RoundMetrics]]

    @property
    def rounds(self) -> int:
        """How many rounds all seeds have finished; round 0 counts."""
        return min((len(history) for history in self.histories), default=0)

    @property
    def bought(self) -> int:
        """Queries that the runs of this trial were charged, without those on test images."""
        return sum(history[-1].paid for history in self.histories if history)

    @property
    def saved(self) -> int:
        """Answers that cost nothing: another run, trial or round had bought them."""
        return sum(metrics.reused for history in self.histories for metrics in history)

    @property
    def asked(self) -> int:
        """Queries that the runs of this trial would have been charged alone."""
        return self.bought + self.saved

    def asked_after(self, number: int) -> float:
        """What a run of this trial would have been charged alone up to a round, the mean over the seeds.

        Args:
            number: position of the round in the histories; all seeds have finished it.
        """
        asked = [history[number].paid + sum(m.reused for m in history[: number + 1]) for history in self.histories]
        return sum(asked) / len(asked)

    def measured(self, metric: str) -> list[Measured]:
        """A figure after each round that all seeds have finished; a round in which it was not measured is left out."""
        rounds: list[Measured] = []
        for number in range(self.rounds):
            values = [getattr(history[number], metric) for history in self.histories]
            if any(value is None or not math.isfinite(value) for value in values):
                continue
            count, mean = len(values), math.fsum(values) / len(values)
            spread = math.fsum((value - mean) ** 2 for value in values)
            rounds.append(
                Measured(
                    round=self.histories[0][number].round,
                    asked=self.asked_after(number),
                    mean=mean,
                    error=math.sqrt(spread / (count - 1) / count) if count > 1 else None,
                    seeds=count,
                )
            )
        return rounds

    def up_to(self, round: int) -> "Trial":
        """The trial as it was after a round."""
        return replace(self, histories=[history[: round + 1] for history in self.histories])

    def last(self, metric: str) -> Measured | None:
        """The figure after the trial's last round; None where that was not measured."""
        measured = self.measured(metric)
        return measured[-1] if measured and measured[-1].round == self.histories[0][self.rounds - 1].round else None


def best_trial(trials: Sequence[Trial], metric: str, mode: Mode) -> Trial | None:
    """The finished trial with the best mean of `metric` after its last round; of equals, the one that asked least.

    A trial whose figure is missing or not a number is never the best.
    """
    sign = -1.0 if mode == "max" else 1.0
    ranked = []
    for trial in trials:
        last = trial.last(metric)
        if trial.state == "finished" and last is not None:
            ranked.append((sign * last.mean, last.asked, trial.name, trial))
    return min(ranked, key=lambda item: item[:3])[3] if ranked else None


def pareto_front(trials: Sequence[Trial], metric: str, mode: Mode) -> list[tuple[Trial, Measured]]:
    """The best figure for at most so many queries asked, among all rounds of all trials.

    Returns:
        The rounds that no other round beats with as few queries, by queries asked; each is better than the one before.
    """
    sign = -1.0 if mode == "max" else 1.0
    rounds = [(trial, measured) for trial in trials for measured in trial.measured(metric)]
    front: list[tuple[Trial, Measured]] = []
    for trial, measured in sorted(rounds, key=lambda item: (item[1].asked, sign * item[1].mean, item[0].name)):
        if not front or sign * measured.mean < sign * front[-1][1].mean:
            front.append((trial, measured))
    return front


def scope(trials: Sequence[Trial], metric: str, mode: Mode) -> str:
    """In words, among which trials the best was found, and by what."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.last(metric) is not None]
    seeds = max((len(trial.seeds) for trial in finished), default=1)
    mean = f"mean of {metric} over {seeds} seeds" if seeds > 1 else metric
    which = "highest" if mode == "max" else "lowest"
    return f"{which} {mean} after the last round, among {len(finished)} finished of {counted(len(trials), 'trial')}"


STATES = get_args(State)
