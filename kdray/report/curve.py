"""Would more queries help? The learning curve of a run, what it promises, and its price."""

import csv
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isclose
from pathlib import Path

from kdray.config.load import load_config
from kdray.config.root import Config
from kdray.errors import KdrayError
from kdray.metrics.extrapolation import LEAST, Expected, extrapolate
from kdray.observers.base import RoundMetrics
from kdray.pages.html import money
from kdray.runs.directory import RunDirectory
from kdray.runs.result import Result
from kdray.utils.files import shown
from kdray.utils.text import counted

_TIMES = (2, 4)  # the answers of this run


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Students by the number of answers that they were trained on.

    Attributes:
        points: (answers, share of the test images), ascending; images with true labels count too.
        measure: what the share is: "accuracy" or "agreement".
        expected: with more answers; empty where the points do not say.
        said: what that means, in sentences.
    """

    points: Sequence[tuple[int, float]]
    measure: str
    expected: Sequence[Expected]
    said: Sequence[str]


def curve_of(directory: RunDirectory, result: Result, tested: int | None) -> Curve:
    """The learning curve of a run.

    Its points are the students of the rounds. Where `kdray train --first` has trained students on fewer of the answers,
    and as the run trains, those are its points. Without replay a student has learnt from all answers so far, those of
    earlier rounds first, and `kdray train` does not train so.

    Args:
        tested: number of test images; None where it is not known.
    """
    measure = "agreement" if result.history[-1].student_accuracy is None else "accuracy"
    one_after_another = result.config.student.replay == "none"
    counts = _answers_so_far(directory, result) if one_after_another else [m.images for m in result.history]
    shares = (_share(m, measure) for m in result.history)
    known = [(count, share) for count, share in zip(counts, shares, strict=True) if share is not None]
    rounds = [(count, share) for count, share in known if count]  # not what no image has taught
    last = rounds[-1:]
    folders = [] if one_after_another else sorted(directory.path.glob("students*"))
    trained = max((_trained(folder, result.config, measure) for folder in folders), key=len, default=[])
    points = _rising(trained + last) if trained else _rising(rounds)
    why = _why_not(directory, result, points, trained, tested)
    again = ["An image that was asked about again counts again (pool.requery)."] * result.config.pool.asks_again
    if why or tested is None:
        return Curve(points=points, measure=measure, expected=[], said=why + again)
    answers, values = [count for count, _ in points], [value for _, value in points]
    expected = extrapolate(answers, values, tested, [times * answers[-1] for times in _TIMES])
    said = [_sentence(one, answers[-1], measure, result) for one in expected]
    if trained:
        said.append(
            f"The points are {counted(len(points) - 1, 'student')} that `kdray train --first` trained on the first "
            "answers, and the last of the run."
        )
    said.append(
        "A curve a n^-b + c was fitted to the points by Bayes' rule; the intervals hold 95 % of what it allows. They "
        "hold for the same images, pool and strategy, and for a student of the same architecture."
    )
    return Curve(points=points, measure=measure, expected=expected, said=said + again)


def _answers_so_far(directory: RunDirectory, result: Result) -> list[int]:
    """Answers that the student of each round has learnt, its own and those of earlier rounds, with images that have
    true labels."""
    rounds = [
        sum(directory.count_labelled(m.round, sample) for sample in (False, True)[: 1 + directory.has_sample(m.round)])
        for m in result.history
    ]
    given = max(0, result.history[-1].images - rounds[-1])
    return [given + count for count in accumulate(rounds)]


def _share(metrics: RoundMetrics, measure: str) -> float | None:
    return metrics.student_accuracy if measure == "accuracy" else metrics.agreement


def _trained(folder: Path, config: Config, measure: str) -> list[tuple[int, float]]:
    """Points that `kdray train` has measured, if it trained as the run does and measured on the same images."""
    try:
        used = load_config(folder / "config.yaml")
        if used.student != config.student or used.test != config.test:
            return []
        rows = list(csv.DictReader((folder / "learning_curve.csv").read_text().splitlines()))
        field = "student_accuracy" if measure == "accuracy" else "agreement"
        return [(int(row["images"]), float(row[field])) for row in rows if row[field]]
    except (KdrayError, OSError, ValueError, KeyError, UnicodeError):
        return []  # a folder of something else, or one that is being written


def _rising(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """In ascending order; of as many images the last one."""
    return sorted(dict(points).items())


def _why_not(
    directory: RunDirectory,
    result: Result,
    points: Sequence[tuple[int, float]],
    trained: Sequence[tuple[int, float]],
    tested: int | None,
) -> list[str]:
    """What stands in the way of a look ahead, and what to do about it; empty if nothing does."""
    if not points:
        return ["Not known: no student of this run was measured. Give it test images (the field test)."]
    if tested is None:
        return ["Not known: the test images cannot be read again, and their number says how far chance goes."]
    early = getattr(result.config.student, "early", 1.0)
    cut = not trained and len(points) > 1 and not isclose(early, 1.0)
    if not cut and len(points) >= LEAST:
        return []
    reason = f"a curve needs {LEAST} points, and this run has {len(points)}"
    if cut:
        reason = f"the students of earlier rounds were trained shorter (student.early is {early:g}), so they are worse"
    if result.config.student.replay == "none":
        return [
            f"Not known: {reason}. A run with " + ("student.early = 1" if cut else "more rounds") + " would show it."
        ]
    count = points[-1][0]
    some = ",".join(str(count // part) for part in (8, 4, 2) if count // part)
    path = shlex.quote(shown(directory.path))
    return [
        f"Not known yet: {reason}. Students trained on fewer of the answers that are bought show it, without a query:",
        f"kdray train {path} --first {some} && kdray report {path}",
    ]


def _sentence(one: Expected, count: int, measure: str, result: Result) -> str:
    """What to expect, and at what price."""
    more = one.count - count
    price = result.config.budget.price_per_query
    cost = "" if price is None else f", for {money(more * price, result.config.budget.currency)}"
    return (
        f"With {more:,} more answers{cost}, a student would have an {measure} of about {100 * one.value:.1f} % "
        f"({100 * one.low:.1f} to {100 * one.high:.1f} %): {100 * one.gain:.1f} points more than now "
        f"({100 * one.gain_low:.1f} to {100 * one.gain_high:.1f})."
    )
