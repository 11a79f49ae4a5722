"""Figures of a report, as SVG text."""

from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Rectangle
from torch import Tensor

from kdray.metrics.calibration import Reliability
from kdray.observers.base import RoundMetrics
from kdray.pages.figures import BAD_TO_GOOD, COLOURS, INK, ON_DARK, ON_LIGHT, SOFT, new_axes, plain, short_number, svg
from kdray.report.curve import Curve
from kdray.utils.intervals import clopper_pearson

_PHASES = ("estimate", "compare", "make", "choose", "query", "train", "evaluate")
_COLOURS = dict(
    zip(_PHASES, ("#7c3aed", "#be185d", "#be185d", "#0b6e99", "#c2410c", "#4d7c0f", "#475569"), strict=True)
)
_WIDE = (4.8, 3.2)  # inches: text of 9 points is legible on a phone and not too large on a screen
_MOST_BARS = 40
_MOST_POINTS = 60  # of a line
_MOST_CLASSES = 20  # of a matrix with names


def accuracy_figure(runs: Sequence[tuple[str, Sequence[RoundMetrics]]]) -> str | None:
    """Student accuracy against queries charged, one line per run, and the teacher's accuracy as a dashed line.

    Returns:
        None where no run has a test set with labels.
    """
    return _lines(runs, "student_accuracy", "accuracy on the test set, %")


def agreement_figure(runs: Sequence[tuple[str, Sequence[RoundMetrics]]]) -> str | None:
    """Agreement of student and teacher against queries charged, one line per run, with its 95 % interval.

    Returns:
        None unless some run has agreement and no accuracy: it is about test sets without labels.
    """
    if not any(m.agreement is not None and m.student_accuracy is None for _, history in runs for m in history):
        return None
    return _lines(runs, "agreement", "agreement with the teacher, %")


def _lines(runs: Sequence[tuple[str, Sequence[RoundMetrics]]], field: str, label: str) -> str | None:
    """A field of the metrics, a share, against queries charged, one line per run that has it."""
    runs = [(name, some) for name, history in runs if (some := [m for m in history if getattr(m, field) is not None])]
    if not runs:
        return None
    figure, axes = new_axes(*_WIDE)
    for k, (name, rounds) in enumerate(runs):
        colour = COLOURS[k % len(COLOURS)]
        history = [rounds[row] for row in spread(len(rounds), max(2, _MOST_POINTS // len(runs)))]
        x, y = [m.paid for m in history], [100 * getattr(m, field) for m in history]
        axes.plot(x, y, marker="o", markersize=4, linewidth=1.8, color=colour, label=plain(name))
        axes.annotate(
            f"{y[-1]:.2f}", (x[-1], y[-1]), xytext=(4, -12), textcoords="offset points", color=colour, fontsize=9
        )
        if field == "agreement":
            bounds = [(m.paid, m.agreement_low, m.agreement_high) for m in history]
            band = np.array([bound for bound in bounds if None not in bound], dtype=float).reshape(-1, 3)
            axes.fill_between(band[:, 0], 100 * band[:, 1], 100 * band[:, 2], color=colour, alpha=0.15, linewidth=0)
        teacher = history[-1].teacher_accuracy
        if teacher is not None and k == 0 and field == "student_accuracy":
            axes.axhline(100 * teacher, color=INK, linewidth=1, linestyle="--", label=f"teacher {100 * teacher:.2f}")
    axes.set_xlabel("teacher queries charged")
    axes.set_ylabel(label)
    axes.set_xlim(left=0)
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(short_number)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return svg(figure)


def curve_figure(curve: Curve, teacher: float | None) -> str | None:
    """The learning curve, and what is expected beyond its end with the 95 % interval.

    Args:
        teacher: its accuracy, in [0, 1], or None.

    Returns:
        None without two points.
    """
    if len(curve.points) < 2:
        return None
    figure, axes = new_axes(*_WIDE)
    points = [curve.points[row] for row in spread(len(curve.points), _MOST_POINTS)]
    x, y = [count for count, _ in points], [100 * value for _, value in points]
    axes.plot(x, y, marker="o", markersize=5, linewidth=2, color=COLOURS[0], label="measured")
    if curve.expected:
        ahead = [x[-1], *(one.count for one in curve.expected)]
        middle = [y[-1], *(100 * one.value for one in curve.expected)]
        low = [y[-1], *(100 * one.low for one in curve.expected)]
        high = [y[-1], *(100 * one.high for one in curve.expected)]
        axes.plot(
            ahead, middle, marker="o", markersize=5, markerfacecolor="white", linestyle="--", linewidth=1.6,
            color=COLOURS[1], label="expected",
        )  # fmt: skip
        axes.fill_between(ahead, low, high, color=COLOURS[1], alpha=0.15, linewidth=0, label="95 % interval")
    if teacher is not None and curve.measure == "accuracy":
        axes.axhline(100 * teacher, color=INK, linewidth=1, linestyle=":", label=f"teacher {100 * teacher:.2f}")
    if x[0] > 0:
        axes.set_xscale("log")
        marks = [*x, *(one.count for one in curve.expected)]
        axes.set_xticks([marks[k] for k in _apart(marks)])
        axes.minorticks_off()
    axes.xaxis.set_major_formatter(short_number)
    axes.set_xlabel("answers")
    axes.set_ylabel(f"{curve.measure}, %")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return svg(figure)


def _apart(marks: Sequence[int]) -> list[int]:
    """Places of marks of a logarithmic axis whose numbers do not run into each other; the last is one of them."""
    least = np.log(marks[-1] / marks[0]) / 6
    kept = [len(marks) - 1]
    for place in range(len(marks) - 2, -1, -1):
        if np.log(marks[kept[-1]] / marks[place]) >= least:
            kept.append(place)
    return kept


def reliability_figure(found: Reliability) -> str:
    """The share of images that is right with its 95 % interval, by confidence. On the diagonal a student is as often
    right as it says."""
    figure, axes = new_axes(*_WIDE)
    axes.plot([0, 100], [0, 100], color=SOFT, linewidth=1, linestyle="--", label="as often as it says")
    bins = [
        (100 * sure, 100 * right, *clopper_pearson(round(right * count), count))
        for sure, right, count in zip(found.confidence, found.accuracy, found.counts, strict=True)
        if sure is not None and right is not None
    ]
    sure, right, low, high = np.array(bins).T
    axes.errorbar(
        sure, right, yerr=[np.maximum(right - 100 * low, 0), np.maximum(100 * high - right, 0)], fmt="o", markersize=5,
        color=COLOURS[0], elinewidth=1.2, label="images, by confidence",
    )  # fmt: skip
    axes.set_xlabel("the student's confidence, %")
    axes.set_ylabel("right, %")
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return svg(figure)


def matrix_figure(matrix: Tensor, names: Sequence[str]) -> str | None:
    """Mistakes by right class (rows) and the class that the student called (columns), as counts.

    Returns:
        None of more classes than can be told apart, or of fewer than three confusions, which are listed.
    """
    wrong = matrix.clone().fill_diagonal_(0).numpy()
    if len(names) > _MOST_CLASSES or np.count_nonzero(wrong) < 3:
        return None
    side = 1.6 + 0.28 * len(names)
    figure, axes = new_axes(max(4.8, side), max(3.6, side))
    axes.grid(visible=False)
    most = wrong.max()
    for row, column in zip(*np.nonzero(wrong), strict=True):
        count = int(wrong[row, column])
        share = count / most
        axes.add_patch(_cell(column, row, BAD_TO_GOOD(share)))
        axes.text(
            column,
            row,
            f"{count:,}",
            ha="center",
            va="center",
            fontsize=8,
            color=ON_DARK if share > 0.45 else ON_LIGHT,
        )
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    short = [plain(name, 14) for name in names]
    axes.set_xticks(range(len(names)), short, rotation=90 if max(map(len, short)) > 2 else 0)
    axes.set_yticks(range(len(names)), short)
    axes.set_xlabel("the student said")
    axes.set_ylabel("right")
    return svg(figure)


def _cell(column: int, row: int, colour: tuple[float, float, float, float]) -> Rectangle:
    return Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, facecolor=colour, edgecolor="none")


def time_figure(history: Sequence[RoundMetrics]) -> str:
    """Duration of each phase in seconds, one stacked bar per round, or per some rounds."""
    figure, axes = new_axes(*_WIDE)
    groups = [rows.tolist() for rows in np.array_split(np.arange(len(history)), min(len(history), _MOST_BARS))]
    places = [history[rows[0]].round for rows in groups]
    width = 0.6 * (places[1] - places[0] if len(places) > 1 else 1)
    bottom = [0.0] * len(groups)
    for phase in _PHASES:
        seconds = [sum(history[row].seconds.get(phase, 0.0) for row in rows) for rows in groups]
        if not any(seconds):
            continue
        axes.bar(places, seconds, bottom=bottom, color=_COLOURS[phase], label=phase, width=width)
        bottom = [low + high for low, high in zip(bottom, seconds, strict=True)]
    if len(groups) <= 12:
        axes.set_xticks(places)
    axes.set_xlabel("round" if len(groups) == len(history) else "round, some in one bar")
    axes.set_ylabel("seconds")
    axes.yaxis.set_major_formatter(short_number)
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return svg(figure)


def spread(count: int, most: int) -> list[int]:
    """`most` of `count` positions, spread evenly, with both ends; all where they are few."""
    if count <= most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})
