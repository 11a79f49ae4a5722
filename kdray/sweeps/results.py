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
        """Answers that another run had bought, of this trial or of another, and that so cost nothing."""
        return sum(metrics.saved for history in self.histories for metrics in history)

    @property
    def asked(self) -> int:
        """Queries that the runs of this trial would have been charged alone."""
        return self.bought + self.saved

    def asked_after(self, number: int) -> float:
        """What a run of this trial would have been charged alone up to a round, the mean over the seeds.

        Args:
            number: position of the round in the histories; all seeds have finished it.
        """
        asked = [history[number].paid + sum(m.saved for m in history[: number + 1]) for history in self.histories]
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


def beaten(best: Trial, trials: Sequence[Trial], metric: str, mode: Mode) -> list[Trial]:
    """The other finished trials that the best one clearly beats, and not by the luck of its seeds.

    That is a two-sided paired t-test at 5 % over the seeds that both trials have, after their last rounds. With one
    seed no trial is clearly beaten. The test is made for each trial apart: of many equal trials, the best one may beat
    some by chance.
    """
    from scipy.special import stdtr

    sign = 1.0 if mode == "max" else -1.0
    ours, found = _of_seeds(best, metric), []
    for trial in trials:
        theirs = _of_seeds(trial, metric)
        leads = [sign * (ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()]
        if trial is best or trial.state != "finished" or len(leads) < 2:
            continue
        mean = math.fsum(leads) / len(leads)
        error = math.sqrt(math.fsum((lead - mean) ** 2 for lead in leads) / (len(leads) - 1) / len(leads))
        if mean > 0 and (error == 0 or stdtr(len(leads) - 1, mean / error) > 0.975):
            found.append(trial)
    return found


def _of_seeds(trial: Trial, metric: str) -> dict[int, float]:
    """The figure after the trial's last round by seed; empty where it was not measured."""
    if trial.last(metric) is None:
        return {}
    runs = zip(trial.seeds, trial.histories, strict=True)
    return {seed: getattr(history[trial.rounds - 1], metric) for seed, history in runs}


def lead(trials: Sequence[Trial], metric: str, mode: Mode) -> str:
    """In words, how sure it is that the best trial is the best one; empty where it is the only one."""
    best = best_trial(trials, metric, mode)
    others = [trial for trial in trials if trial.state == "finished" and trial.last(metric) and trial is not best]
    if best is None or not others:
        return ""
    if min(len(trial.seeds) for trial in (best, *others)) < 2:
        return "with one seed a trial, a lead cannot be told from chance: set sweep.seeds to 3 or more"
    count = len(beaten(best, others, metric, mode))
    return f"clearly better than {count} of the other {len(others)}, by a paired t-test over the seeds at 5 %"


STATES = get_args(State)
