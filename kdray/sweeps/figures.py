"""Figures of a sweep, as SVG text; None where a figure would say nothing."""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.ticker import NullLocator

from kdray.pages.figures import (
    BAD_TO_GOOD,
    BEST,
    COLOURS,
    GRID,
    INK,
    ON_DARK,
    ON_LIGHT,
    SOFT,
    new_axes,
    plain,
    set_apart,
    short_number,
    suits_logarithm,
    svg,
)
from kdray.sweeps.importance import Importances
from kdray.sweeps.results import Measured, Mode, Trial, best_trial, pareto_front
from kdray.sweeps.shown import (
    figure_scale,
    figure_words,
    is_number,
    is_numeric,
    ordered,
    value_text,
    varied_keys,
)

_MOST_LINES = len(COLOURS)


def queries_figure(trials: Sequence[Trial], metric: str, mode: Mode) -> str | None:
    """The metric against queries asked: a line for each trial, the best in colour; the Pareto front in steps."""
    scale, best = figure_scale(metric), best_trial(trials, metric, mode)
    curves = [(trial, trial.measured(metric)) for trial in trials]
    curves = [(trial, rounds) for trial, rounds in curves if rounds]
    if not curves:
        return None
    figure, axes = new_axes(9.6, 4.4)
    alpha = min(0.45, max(0.12, 12 / len(curves)))
    for trial, rounds in curves:
        x, y = [after.asked for after in rounds], [scale * after.mean for after in rounds]
        look: dict[str, Any] = {"color": COLOURS[0], "alpha": alpha, "linewidth": 0.9, "markersize": 2.5}
        if trial is best:
            look = {"color": BEST, "linewidth": 2, "markersize": 5, "zorder": 4, "label": f"best: {plain(trial.name)}"}
        axes.plot(x, y, marker="o", **look)
    front = pareto_front(trials, metric, mode)
    x, y = [after.asked for _, after in front], [scale * after.mean for _, after in front]
    end = max(after.asked for _, rounds in curves for after in rounds)
    axes.step([*x, end], [*y, y[-1]], where="post", color=INK, linewidth=1.2, linestyle="--", zorder=5)
    axes.plot(x, y, "D", color="white", markeredgecolor=INK, markersize=5, zorder=6, label="Pareto front")
    several = any(after.seeds > 1 for _, rounds in curves for after in rounds)
    axes.set_xlabel("queries asked by a run" + (", mean over seeds" if several else ""))
    axes.set_ylabel(figure_words(metric))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(short_number)
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    return svg(figure)


def importance_figure(found: Importances) -> str | None:
    """The importance of each key, as bars; the lines on them are the standard deviation over the shuffles."""
    if not found.keys:
        return None
    figure, axes = new_axes(6.4, 0.9 + 0.38 * len(found.keys))
    names = [plain(item.key) for item in found.keys]
    axes.barh(
        range(len(names)),
        [item.mean for item in found.keys],
        xerr=[item.deviation for item in found.keys],
        color=COLOURS[0],
        error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 3},
        height=0.6,
    )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_xlabel("fall of R² when the key is shuffled")
    return svg(figure)


def heat_map(trials: Sequence[Trial], metric: str, mode: Mode, x_key: str, y_key: str) -> str | None:
    """The metric over two numeric keys: a cell for each pair of values, or, off a grid, a point for each trial.

    Trials that differ in other keys share a cell, which shows their mean.
    """
    cells: dict[tuple[float, float], list[float]] = defaultdict(list)
    for trial, last in _finished(trials, metric):
        x, y = trial.values.get(x_key), trial.values.get(y_key)
        if is_number(x) and is_number(y):
            cells[float(x), float(y)].append(figure_scale(metric) * last.mean)  # type: ignore[arg-type]
    means = {cell: math.fsum(values) / len(values) for cell, values in cells.items()}
    xs, ys = sorted({x for x, _ in means}), sorted({y for _, y in means})
    if len(xs) < 2 or len(ys) < 2:
        return None
    figure, axes = new_axes(6.4, 4.4)
    axes.grid(visible=False)
    norm = Normalize(min(means.values()), max(means.values()))
    colours = BAD_TO_GOOD if mode == "max" else BAD_TO_GOOD.reversed()
    best = (max if mode == "max" else min)(means, key=lambda cell: means[cell])
    if _on_grid(means):
        grid = np.full((len(ys), len(xs)), np.nan)
        for (x, y), mean in means.items():
            grid[ys.index(y), xs.index(x)] = mean
        axes.imshow(grid, origin="lower", aspect="auto", cmap=colours, norm=norm)
        axes.set_xticks(range(len(xs)), map(short_number, xs))
        axes.set_yticks(range(len(ys)), map(short_number, ys))
        if len(xs) <= 9:
            for (x, y), mean in means.items():
                dark = colours(norm(mean))[1] < 0.6  # its green
                axes.text(
                    xs.index(x), ys.index(y), f"{mean:.4g}", ha="center", va="center", fontsize=9,
                    color=ON_DARK if dark else ON_LIGHT, fontweight="bold" if (x, y) == best else "normal",
                )  # fmt: skip
    else:
        x, y = zip(*means, strict=True)
        axes.scatter(x, y, c=list(means.values()), cmap=colours, norm=norm, s=60, edgecolors=SOFT, linewidths=0.6)
        axes.scatter(*best, s=150, facecolors="none", edgecolors=BEST, linewidths=2)
        _scale(axes, "x", xs)
        _scale(axes, "y", ys)
    axes.set_xlabel(plain(x_key))
    axes.set_ylabel(plain(y_key))
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=figure_words(metric))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, length=0, colors=INK)
    return svg(figure)


def curve_figure(trials: Sequence[Trial], metric: str, x_key: str, line_key: str | None = None) -> str | None:
    """The metric against one key, with its standard error over the seeds; a line for each value of `line_key`.

    Trials that differ in other keys are joined by no line: each is a point.
    """
    finished = _finished(trials, metric)
    if len({value_text(trial.values.get(x_key)) for trial, _ in finished}) < 2:
        return None
    scale, values = figure_scale(metric), [trial.values.get(x_key) for trial, _ in finished]
    numeric, places = all(map(is_number, values)), [value_text(value) for value in ordered(values)]
    lines: dict[str, list[tuple[float, Measured]]] = defaultdict(list)
    for trial, last in finished:
        x = float(trial.values[x_key]) if numeric else float(places.index(value_text(trial.values.get(x_key))))
        lines[value_text(trial.values.get(line_key)) if line_key else ""].append((x, last))
    order = [""] if line_key is None else [value_text(v) for v in ordered(t.values.get(line_key) for t, _ in finished)]
    joined = numeric and all(len({x for x, _ in points}) == len(points) for points in lines.values())
    joined = joined and not set(varied_keys([trial for trial, _ in finished])) - {x_key, line_key}
    figure, axes = new_axes()
    for k, name in enumerate(order):
        points = sorted(lines[name], key=lambda item: item[0])
        axes.errorbar(
            # Points of different lines at one category stand side by side.
            [x if numeric else x + 0.12 * (k - (len(order) - 1) / 2) for x, _ in points],
            [scale * last.mean for _, last in points],
            yerr=[scale * (last.error or 0.0) for _, last in points] if any(last.error for _, last in points) else None,
            color=COLOURS[k % len(COLOURS)], marker="o", markersize=5, capsize=3,
            linestyle="-" if joined else "none", linewidth=1.8, elinewidth=1.2,
            label=None if line_key is None else plain(name, 24),
        )  # fmt: skip
    if numeric:
        _scale(axes, "x", sorted({float(trial.values[x_key]) for trial, _ in finished}))
    else:
        long = sum(len(place) for place in places) > 60
        axes.set_xticks(range(len(places)), [plain(place, 24) for place in places])
        axes.tick_params(axis="x", rotation=25 if long else 0)
        axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xlabel(plain(x_key))
    axes.set_ylabel(figure_words(metric))
    if line_key is not None:
        columns = max(1, min(len(order), 60 // (6 + max(len(plain(name, 24)) for name in order))))
        axes.legend(
            frameon=False, fontsize=9, ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0),
            title=plain(line_key), title_fontsize=9,
        )  # fmt: skip
    return svg(figure)


@dataclass(frozen=True, kw_only=True)
class KeyFigure:
    """A figure about one or two keys.

    Attributes:
        caption: what it shows.
        svg: the figure.
    """

    caption: str
    svg: str


def key_figures(trials: Sequence[Trial], metric: str, mode: Mode) -> list[KeyFigure]:
    """The heat maps and curves that suit what was swept.

    A heat map of the metric over the ends of the range of λ, or over the only two numeric keys; curves over select.w (a
    line for each select.m) and budget.queries (a line for each select.strategy); and where one or two keys are swept, a
    curve over them.
    """
    finished = [trial for trial, _ in _finished(trials, metric)]
    keys = varied_keys(finished)
    numeric = [key for key in keys if is_numeric(finished, key)]
    seeds = max((len(trial.seeds) for trial in finished), default=1)
    bars = f"; the bars are standard errors over {seeds} seeds" if seeds > 1 else ""
    found: list[tuple[str, str | None]] = []

    for x, y in _maps(finished, numeric):
        others = ", mean over trials that differ in other keys" if set(keys) - {x, y} else ""
        found.append((f"{metric} over {x} and {y}{others}", heat_map(trials, metric, mode, x, y)))
    for x, line in _curves(finished, keys, numeric):
        lines = f", for each {line}" if line else ""
        others = "; the trials differ in other keys too" if set(keys) - {x, line} else ""
        found.append((f"{metric} against {x}{lines}{bars}{others}", curve_figure(trials, metric, x, line)))
    return [KeyFigure(caption=caption, svg=figure) for caption, figure in found if figure]


def _maps(trials: Sequence[Trial], numeric: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of keys for a heat map."""
    ends = ("pool.lambdas.min", "pool.lambdas.max")
    if set(ends) <= set(numeric):
        return [ends]
    if len(numeric) == 2 and _on_grid({(trial.values[numeric[0]], trial.values[numeric[1]]) for trial in trials}):
        return [(numeric[0], numeric[1])]
    return []


def _curves(trials: Sequence[Trial], keys: Sequence[str], numeric: Sequence[str]) -> list[tuple[str, str | None]]:
    """Keys for the x axis of a curve, each with the key of its lines."""

    def few(key: str) -> bool:
        return len({value_text(trial.values.get(key)) for trial in trials}) <= _MOST_LINES

    found: list[tuple[str, str | None]] = []
    for x, line in (("select.w", "select.m"), ("budget.queries", "select.strategy")):
        if x in keys:
            found.append((x, line if line in keys and few(line) else None))
    if not found and len(keys) == 1:
        found = [(keys[0], None)]
    elif len(keys) == 2:
        # The x axis is for a number; of two, for the one of more values.
        counts = {key: len({value_text(trial.values.get(key)) for trial in trials}) for key in keys}
        x = found[0][0] if found else max(keys, key=lambda key: (key in numeric, counts[key]))
        line = next(key for key in keys if key != x)
        found = [(x, line)] if few(line) else [(x, None), (line, None)]
    return found


def _finished(trials: Sequence[Trial], metric: str) -> list[tuple[Trial, Measured]]:
    """The finished trials with their figure after the last round."""
    return [(trial, last) for trial in trials if trial.state == "finished" and (last := trial.last(metric))]


def _on_grid(cells: Collection[tuple[float, float]]) -> bool:
    """Whether pairs of values come from a grid, of which part may be missing (λ from 0.7 to 0.5, failed trials)."""
    return len(cells) >= 0.4 * len({x for x, _ in cells}) * len({y for _, y in cells})


def _scale(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Fit an axis to values, sorted: logarithmic where that suits them, with ticks at the values if they are few."""
    axis, positive = getattr(axes, f"{which}axis"), [value for value in values if value > 0]
    if len(positive) > 1 and values[0] >= 0 and suits_logarithm(positive, span=20):
        if values[0] > 0:
            getattr(axes, f"set_{which}scale")("log")
        else:
            getattr(axes, f"set_{which}scale")("symlog", linthresh=positive[0], linscale=0.5)
    if len(values) <= 8:
        transform = axis.get_transform()
        heights = transform.transform(np.asarray(values, dtype=float))
        heights = (heights - heights[0]) / (heights[-1] - heights[0])
        marks = set_apart(list(zip(heights.tolist(), values, strict=True)), 0.07)
        axis.set_ticks([value for _, value in marks])
    axis.set_major_formatter(short_number)
    axis.set_minor_locator(NullLocator())
