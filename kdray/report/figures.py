"""Figures of a report, as SVG text."""

from collections.abc import Sequence

import numpy as np

from kdray.observers.base import RoundMetrics
from kdray.pages.figures import COLOURS, INK, new_axes, plain, svg

_PHASES = {"choose": "#0b6e99", "query": "#c2410c", "train": "#4d7c0f", "evaluate": "#94a3b8"}


def accuracy_figure(runs: Sequence[tuple[str, Sequence[RoundMetrics]]]) -> str | None:
    """Student accuracy against queries charged, one line per run, and the teacher's accuracy as a dashed line.

    Returns:
        None where no run has a test set with labels.
    """
    return _measure_figure(runs, "student_accuracy", "accuracy on the test set, %")


def agreement_figure(runs: Sequence[tuple[str, Sequence[RoundMetrics]]]) -> str | None:
    """Agreement of student and teacher against queries charged, one line per run, with its 95 % interval.

    Returns:
        None unless some run has agreement and no accuracy: it is about test sets without labels.
    """
    if not any(m.agreement is not None and m.student_accuracy is None for _, history in runs for m in history):
        return None
    return _measure_figure(runs, "agreement", "agreement with the teacher, %")


def _measure_figure(runs: Sequence[tuple[str, Sequence[RoundMetrics]]], field: str, label: str) -> str | None:
    """A field of the metrics, a share, against queries charged, one line per run that has it."""
    points = [
        (name, history, [(m.paid, 100 * getattr(m, field)) for m in history if getattr(m, field) is not None])
        for name, history in runs
    ]
    points = [measured for measured in points if measured[2]]
    if not points:
        return None
    figure, axes = new_axes()
    for k, (name, history, curve) in enumerate(points):
        colour = COLOURS[k % len(COLOURS)]
        x, y = [queries for queries, _ in curve], [share for _, share in curve]
        axes.plot(x, y, marker="o", markersize=5, linewidth=2, color=colour, label=plain(name))
        axes.annotate(
            f"{y[-1]:.2f}", (x[-1], y[-1]), xytext=(6, -12), textcoords="offset points", color=colour, fontsize=9
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
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    return svg(figure)


def time_figure(history: Sequence[RoundMetrics]) -> str:
    """Duration of each phase in seconds, one stacked bar per round."""
    figure, axes = new_axes()
    rounds = [str(m.round) for m in history]
    bottom = [0.0] * len(history)
    for phase, colour in _PHASES.items():
        seconds = [m.seconds.get(phase, 0.0) for m in history]
        axes.bar(rounds, seconds, bottom=bottom, color=colour, label=phase, width=0.6)
        bottom = [low + high for low, high in zip(bottom, seconds, strict=True)]
    axes.set_xlabel("round")
    axes.set_ylabel("seconds")
    axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return svg(figure)
