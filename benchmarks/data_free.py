"""A teacher without a single image: pools that are drawn, on their own and mixed, at random and chosen from.

    python benchmarks/data_free.py pools        # MNIST, LeNet-5, hard labels, each pool at random
    python benchmarks/data_free.py random       # each kind and the best mixtures at random, with `augment: affine`
    python benchmarks/data_free.py choice       # strategies beside random on six pools, all with `augment: affine`
    python benchmarks/data_free.py parts        # two pools: at random, augmented, chosen, with unpaid candidates
    python benchmarks/data_free.py augment      # augmentations beside none, on pools drawn at random
    python benchmarks/data_free.py balance      # classes balanced before paying, after paying, both, neither
    python benchmarks/data_free.py boundary     # two pools at random, and boundary pairs of them
    python benchmarks/data_free.py generator    # IDEAL: a generator that each round trains against its student
    python benchmarks/data_free.py rates        # images a second of each pool, one thread

Round 0 asks about a fifth of the budget, drawn from the pool itself; IDEAL's asks nothing. Accuracy is that on the
10,000 test images, `unseen` that on 10,000 training images, by which kdray's defaults are decided. `entropy` is the
relative entropy of all answers ("What Makes a Good Dataset for Knowledge Distillation?", Table 3). `balance` trains
students with each student.balance on the same answers.

IDEAL's released code asks the teacher anew in every round about all images so far: for E rounds of B images these are
B E (E + 1) / 2 queries, `with_requeries`. The variant `requery` does that, for as many rounds as the budget pays for.

Each finished run is kept, and one that is started again goes on with those that are missing. Needs ../shared/data, and
`kdray[fractals,leaves,gl]`.
"""

import argparse
import json
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from free_runs import BATCH, GENERATORS, MOVED, POOLS, TRAININGS, balanced, from_pool, generated, with_requeries
from machine import RESULTS, all_runs, keep
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from scipy.stats import spearmanr

from kdray.models.classifier import build_model
from kdray.models.predict import predict
from kdray.pools.base import pools

CHOSEN = (
    "leaves + shaders", "generic", "fractals, light on dark", "generic, light on dark", "all", "lines, light on dark",
)  # fmt: skip
STRATEGIES = tuple(f"{name}, affine" for name in ("random", "cluster-margin", "margin", "rad", "uniform"))
RANDOM = (
    "noise", "spectrum", "leaves", "leaves, large", "fractals", "fractals, light on dark", "shaders", "photographs",
    "contours, light on dark", "lines", "lines, light on dark", "all", "generic, light on dark",
    "four kinds, light on dark",
)  # fmt: skip
IN_PARTS = ("lines, light on dark", "four kinds, light on dark")
AUGMENTED = ("lines, light on dark", "all")
AUGMENTATIONS = ("random", "random, affine", "random, auto")
PARTS = ("random", "random, affine", "cluster-margin, affine", "cluster-margin, affine, unpaid")
"""Each adds a part to the one before."""
BALANCED = ("leaves, large", "lines")
CHOICES = ("random", "random 8", "margin", "margin 8")
"""Strategies, some with select.balance."""
SHAPES = ((1, 28, 28), (3, 32, 32))
_RENDERED, _TIMES = 2048, 5
_CROWDED, _TICKS = 0.95, (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.97, 0.98)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    others = {"balance": balance, "generator": generator}
    parser.add_argument("what", choices=("pools", "random", "choice", "parts", "augment", *others, "boundary", "rates"))
    parser.add_argument("--queries", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--student", default="{}", help="of balance: fields of each student, as JSON")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="these pools or variants alone; keeps no table")
    options = parser.parse_args()
    if options.what == "rates":
        keep("data_free_rates", rates())
        return
    figures, kept = others.get(options.what, of_pools)(options)
    if options.only:
        print(json.dumps(figures, indent=2))
    else:
        if "entropy_and_accuracy" in kept:
            scatter(figures, f"data_free_{options.what}_{options.queries}", kept["entropy_and_accuracy"])
        about = {"queries": options.queries, "runs_each": options.seeds, **kept}
        keep(f"data_free_{options.what}_{options.queries}", about | {"pools": figures})


def of_pools(options: Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pools with a strategy, and what else is to be kept."""
    named = {
        "pools": [(name, "random") for name in POOLS],
        "random": [(name, STRATEGIES[0]) for name in RANDOM],
        "choice": [(name, how) for name in CHOSEN for how in STRATEGIES],
        "parts": [(name, how) for name in IN_PARTS for how in PARTS],
        "augment": [(name, how) for name in AUGMENTED for how in AUGMENTATIONS],
        "boundary": [(name, "random") for name in ("photographs", "leaves, large", *MOVED)],
    }
    rows = only(named[options.what], options)
    tasks = [(*row, options.queries, seed) for seed in range(options.seeds) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs("data_free_runs", from_pool, tasks, options.at_once, folder)
    figures = {"; ".join(row): summary([found[task] for task in tasks if task[:2] == row]) for row in rows}
    if options.what not in ("pools", "random"):
        return figures, {}
    ranks = list(figures.values())
    correlation = float(spearmanr([one["entropy"] for one in ranks], [one["accuracy"] for one in ranks]).statistic)
    return figures, {"entropy_and_accuracy": round(correlation, 3)}


def balance(options: Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each choice of each pool, with students that are trained in each way on the same answers."""
    rows = only([(name, choice) for name in BALANCED for choice in CHOICES], options)
    tasks = [(*row, options.queries, options.student, seed) for seed in range(options.seeds) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs("data_free_balance_runs", balanced, tasks, options.at_once, folder)
    figures = {}
    for row in rows:
        runs = [found[task] for task in tasks if task[:2] == row]
        entropy = round(statistics.mean(result["entropy"] for result in runs), 4)
        students = {how: summary([result[how] for result in runs]) for how in TRAININGS}
        figures["; ".join(row)] = {"entropy": entropy, **students}
    return figures, {"student": json.loads(options.student)}


def generator(options: Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """IDEAL and its variants."""
    rows = only([(name,) for name in GENERATORS], options)
    tasks = [(*row, options.queries, seed) for seed in range(options.seeds) for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs("data_free_generator_runs", generated, tasks, options.at_once, folder)
    figures = {row[0]: summary([found[task] for task in tasks if task[:1] == row]) for row in rows}
    return figures, {"with_requeries": with_requeries(options.queries // BATCH)}


def scatter(figures: dict[str, Any], file: str, correlation: float) -> None:
    """The accuracy of each pool against the relative entropy of its answers, as an SVG."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    axes = figure.subplots()
    points = {name.split(";")[0]: (one["entropy"], one["accuracy"]) for name, one in figures.items()}
    axes.plot(*zip(*points.values(), strict=True), "o", color="tab:blue")
    axes.set(xlabel="relative entropy of the answers", ylabel="student's accuracy, %")
    axes.set_title(f"Random candidates of {len(figures)} pools, MNIST: rank correlation {correlation:.2f}")
    axes.set_xlim(-0.02, 1.15)  # room for the names
    if max(accuracy for _, accuracy in points.values()) > _CROWDED:  # else the best lie on one another
        axes.set_yscale("logit")
        axes.set_yticks(_TICKS)
        axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")
    axes.grid(alpha=0.3)
    label(axes, points)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kdray"}):  # small, and the same each time
        figure.savefig(RESULTS / f"{file}.svg", metadata={"Date": None})


def label(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Write each point's name beside it, in the first place where it covers no name or point, or else in the last."""
    axes.figure.draw_without_rendering()  # places are known from here on
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in axes.transData.transform(list(points.values()))]
    places = [(6 * sign, up, side) for up in (2, -7, 7, -14, 14) for sign, side in ((1, "left"), (-1, "right"))]
    for name, point in sorted(points.items(), key=lambda one: -len(one[0])):  # long ones find a place the hardest
        for place in places:
            text = axes.annotate(name, point, place[:2], textcoords="offset points", fontsize=7, ha=place[2])
            box = text.get_window_extent()
            if place == places[-1] or not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        taken.append(box)


def only(rows: Iterable[tuple[str, ...]], options: Namespace) -> list[tuple[str, ...]]:
    """The rows that are asked for."""
    return [row for row in rows if not options.only or row[0] in options.only]


def summary(results: list[dict[str, float]]) -> dict[str, Any]:
    """Means of what all runs have, the standard error of the accuracy, and all accuracies."""
    accuracies = [result["accuracy"] for result in results]
    error = statistics.stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else 0.0
    names = [name for name in results[0] if all(name in result for result in results)]
    means = {name: round(statistics.mean(result[name] for result in results), 5) for name in names}
    return {**means, "standard_error": round(error, 5), "accuracies": accuracies}


def rates() -> dict[str, dict[str, float]]:
    """Images a second of CPU time, the best of several, on one thread, and the share of rendering in the time that a
    LeNet-5 takes to render and score them. Shaders are drawn by another process, so theirs are seconds of wall time."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, float]] = {"LeNet-5, scoring": {}}
    kinds = ("lines", "contours", "spectrum", "noise", "leaves", "leaves, large", "fractals", "shaders", "photographs")
    for shape in SHAPES:
        size = "x".join(map(str, shape))
        model = build_model("lenet5", shape, 10, seed=0)
        scored = rate(
            partial(predict, model), lambda ids, shape=shape: torch.zeros(len(ids), *shape, dtype=torch.uint8)
        )
        found["LeNet-5, scoring"][size] = scored
        for name in kinds:
            pool = pools.parse(POOLS[name]).build(torch.empty(0, *shape, dtype=torch.uint8), 0)
            clock = time.perf_counter if name == "shaders" else time.process_time
            rendered = rate(pool.render, clock=clock)
            share = round(scored / (scored + rendered), 2)
            found.setdefault(name, {}).update({size: rendered, f"{size}, share of scoring": share})
    return found


def rate(
    work: Callable[[Any], Any],
    made: Callable[[torch.Tensor], Any] = lambda ids: ids,
    clock: Callable[[], float] = time.process_time,
) -> int:
    """Images a second that are worked on, of what is `made` of their numbers beforehand."""
    work(made(torch.arange(64)))  # what is compiled or made once
    taken = []
    for number in range(_TIMES):
        batch = made(torch.arange(number * _RENDERED, (number + 1) * _RENDERED))
        begin = clock()
        work(batch)
        taken.append(clock() - begin)
    return round(_RENDERED / min(taken))


if __name__ == "__main__":
    main()
