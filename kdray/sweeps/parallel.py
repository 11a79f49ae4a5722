"""Parallel coordinates of a sweep, as SVG text."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

from kdray.pages.figures import (
    BEST,
    COLOURS,
    INK,
    SOFT,
    new_axes,
    plain,
    set_apart,
    short_number,
    suits_logarithm,
    svg,
)
from kdray.sweeps.results import Mode, Trial, best_trial
from kdray.sweeps.shown import figure_scale, figure_words, is_number, ordered, value_text, varied_keys


def parallel_figure(trials: Sequence[Trial], metric: str, mode: Mode) -> str | None:
    """Parallel coordinates: an axis for each key that varies, and the metric; a line for each trial.

    Lines are coloured by the rank of the metric, so that a single bad trial does not make all others look the same.

    Failed trials, and trials without a figure after their last round, are left out. Stopped trials are dashed.
    """
    measured = [(trial, last) for trial in trials if trial.state != "failed" and (last := trial.last(metric))]
    keys = varied_keys([trial for trial, _ in measured])
    if len(measured) < 2 or len(keys) < 2:
        return None
    scale, best, sign = figure_scale(metric), best_trial(trials, metric, mode), 1.0 if mode == "max" else -1.0
    measured.sort(key=lambda item: sign * item[1].mean)
    figures = [scale * last.mean for _, last in measured]
    columns = [_Axis([trial.values.get(key) for trial, _ in measured], plain(key)) for key in keys]
    columns.append(_Axis(figures, figure_words(metric)))
    figure, axes = new_axes(max(9.6, 1.7 * len(columns)), 4.6)
    for row, (trial, _) in enumerate(measured):
        strength = 0.15 + 0.85 * row / (len(measured) - 1)  # of any page colour, on light and on dark
        look: dict[str, Any] = {"color": COLOURS[0], "alpha": strength, "linewidth": 1.3, "zorder": 2}
        if trial is best:
            look = {"color": BEST, "linewidth": 2.4, "zorder": 3}
        # Lines that meet in a category are set apart a little, in the order of the metric.
        apart = 0.05 * (row / (len(measured) - 1) - 0.5)
        axes.plot(
            range(len(columns)),
            [column.heights[row] + (0 if column.numeric else apart) for column in columns],
            linestyle="--" if trial.state == "stopped" else "-",
            **look,
        )
    halo = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6}
    for x, column in enumerate(columns):
        axes.axvline(x, color=SOFT, linewidth=0.8, zorder=1)
        last_one = x == len(columns) - 1
        for height, text in column.ticks:
            axes.annotate(
                text, (x, height), xytext=(4 if last_one else -4, 0), textcoords="offset points", fontsize=8, color=INK,
                ha="left" if last_one else "right", va="center", bbox=halo, zorder=5,
            )  # fmt: skip
    axes.set_xlim(-0.35, len(columns) - 0.65)
    axes.set_ylim(-0.06, 1.06)
    axes.set_xticks(range(len(columns)), [_broken(column.label) for column in columns], fontsize=8)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    return svg(figure)


class _Axis:
    """The axis of one key, or of the metric.

    Attributes:
        numeric: whether it is a scale; else it has one place for each value.
        heights: in [0, 1], one for each trial.
        ticks: heights and their texts.
    """

    def __init__(self, values: Sequence[Any], label: str) -> None:
        self.label, different = label, ordered(values)
        self.numeric = all(map(is_number, values)) and len(different) > 1
        if self.numeric:
            low, high = float(different[0]), float(different[-1])
            logarithmic = suits_logarithm(values, span=100)

            def height(value: float) -> float:
                if logarithmic:
                    return math.log(value / low) / math.log(high / low)
                return (value - low) / (high - low)

            self.heights = [height(value) for value in values]
            between = LogLocator() if logarithmic else MaxNLocator(5, steps=[1, 2, 5, 10])
            marks = different if len(different) <= 6 else [low, high, *between.tick_values(low, high)]
            inside = [(height(mark), short_number(mark)) for mark in marks if low <= mark <= high]
            self.ticks = set_apart(inside, 0.055)
        else:
            places = {value_text(value): (k + 0.5) / len(different) for k, value in enumerate(different)}
            self.heights = [places[value_text(value)] for value in values]
            texts = [short_number(v) if is_number(v) else plain(value_text(v), 16) for v in different]
            self.ticks = set_apart(list(zip(places.values(), texts, strict=True)), 0.035)


def _broken(label: str) -> str:
    """A long key on two lines, broken at its last dot."""
    head, dot, last = label.rpartition(".")
    return f"{head}.\n{last}" if dot and len(label) > 12 else label
