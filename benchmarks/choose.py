"""Which choice is best: every strategy on MNIST from 200 images, a larger pool, and RAD's own setting.

    python benchmarks/choose.py budgets             # 200 MNIST images, 500 to 4,000 queries, every strategy
    python benchmarks/choose.py large               # 1,000 other images, 5.5 million candidates, as users get it
    python benchmarks/choose.py rad mnist|cifar10   # few true labels, a weak teacher, real images (Figures 3 and 7)

Not named select.py: that is a module of Python's own, which every script in this folder would then miss.

Each seed draws its own images, and all choices share them. Two runs at a time, each on one thread and without Ray.
Needs ../shared/data.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, ROOT, in_parallel, keep
from matplotlib.figure import Figure

from kdray.config.load import load_config, parse_config
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.select.base import strategies

BUDGETS = (500, 1000, 2000, 4000)
LARGE = ("cluster-margin", "rad", "active-mixup", "random")
RIVALS = ("rad", "margin", "entropy", "uniform", "coreset", "cluster-margin", "unixkd")
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
DATA = "../shared/data"
SIZES = {  # of RAD's setting: |A|, unlabelled images, b a round, rounds; teacher and student, with epochs
    "mnist": {
        "labelled": 100,
        "pool": 5000,
        "b": 100,
        "rounds": 5,
        "teacher": "lenet5",
        "teacher_epochs": 400,
        "student": "lenet5",
        "student_epochs": 100,
    },
    "cifar10": {
        "labelled": 1000,
        "pool": 8000,
        "b": 500,
        "rounds": 4,
        "teacher": "small-cnn",
        "teacher_epochs": 100,
        "student": "lenet5",
        "student_epochs": 20,
    },
}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("budgets", "large", "rad"))
    parser.add_argument("data", nargs="?", choices=tuple(SIZES), default="mnist")
    parser.add_argument("--seeds", type=int, help="10 of budgets, 5 of the others")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="these strategies alone; of budgets the other figures are kept")
    options = parser.parse_args()
    options.seeds = options.seeds or (10 if options.what == "budgets" else 5)
    {"budgets": budgets, "large": large, "rad": rad}[options.what](options)


# Every strategy at every budget


def budgets(options: argparse.Namespace) -> None:
    """Every strategy at every budget, everything scored."""
    figures = all_budgets(options.only or tuple(strategies.parts()), options)
    if options.only:
        figures = kept_budgets(options.seeds) | figures
    figures = compared(figures, BUDGETS)
    near = {name: [q for q in BUDGETS if at[q]["behind"] <= at[q]["standard_error"]] for name, at in figures.items()}
    keep("select_budgets", {"runs_each": options.seeds, "within_one_standard_error_of_the_best": near, **figures})
    draw_budgets(figures)


def large(options: argparse.Namespace) -> None:
    """Other images than the default was picked on, a larger pool, and the search that is the default."""
    names, queries, seeds = options.only or LARGE, 4000, range(100, 100 + options.seeds)
    tasks = [(name, 1000, queries, seed, "interpolated") for seed in seeds for name in names]
    found = all_runs(tasks, options.at_once)
    figures = {name: {queries: summary([found[task] for task in tasks if task[0] == name])} for name in names}
    keep("select_large", {"runs_each": options.seeds, **compared(figures, (queries,))})


def kept_budgets(seeds: int) -> dict[str, dict[int, dict[str, Any]]]:
    """Figures of an earlier run with as many seeds, whose images are the same."""
    kept = json.loads((RESULTS / "select_budgets.json").read_text())["figures"]
    if kept["runs_each"] != seeds:
        sys.exit(f"--only: the kept figures are of {kept['runs_each']} seeds, not {seeds}; give --seeds")
    return {name: {int(q): at for q, at in kept[name].items()} for name in kept if name in strategies.parts()}


def compared(
    figures: dict[str, dict[int, dict[str, Any]]], budgets: Sequence[int]
) -> dict[str, dict[int, dict[str, Any]]]:
    """With how far each is behind the best, and the standard error of that over the seeds, whose images all share."""
    result: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in figures}
    for queries in budgets:
        best = max((at[queries] for at in figures.values()), key=lambda figure: figure["accuracy"])
        for name, at in figures.items():
            behind = [b - a for a, b in zip(at[queries]["accuracies"], best["accuracies"], strict=True)]
            result[name][queries] = at[queries] | {"behind": mean(behind), "behind_standard_error": error(behind)}
    return result


def all_budgets(names: Sequence[str], options: argparse.Namespace) -> dict[str, dict[int, dict[str, float]]]:
    """Accuracy, agreement and seconds of choosing, for each strategy and budget."""

    def task(name: str, queries: int, seed: int) -> tuple[str, int, int, int, str]:
        return name, 200, queries, seed, "exhaustive"

    # Longest first, so that both processes end together; seeds beside each other, so that what is noted while it runs
    # compares like with like.
    seeds = range(options.seeds)
    tasks = [task(name, queries, seed) for queries in reversed(BUDGETS) for seed in seeds for name in names]
    found = all_runs(tasks, options.at_once)
    return {
        name: {queries: summary([found[task(name, queries, seed)] for seed in seeds]) for queries in BUDGETS}
        for name in names
    }


def all_runs(tasks: list[tuple], at_once: int) -> dict[tuple, dict[str, float]]:
    """What `one_run` gives of each."""
    with tempfile.TemporaryDirectory() as folder:
        results = told(one_run, [(*task, folder) for task in tasks], at_once)
    return dict(zip(tasks, results, strict=True))


def one_run(name: str, images: int, queries: int, seed: int, search: str, folder: str) -> dict[str, float]:
    """One run: so many images, one selection round."""
    config = load_config(
        ROOT / "examples" / "mnist.yaml",
        [
            f"images.count={images}",
            f"budget.queries={queries}",
            f"select.strategy={name}",
            f"seed={seed}",
            "student={model: lenet5, epochs: 40, batch_size: 64}",
            "resources.trainer.threads=1",
            f"pool.search={search}",
        ],
    )
    result = run(config, RunDirectory(Path(folder) / f"{name}-{queries}-{seed}"), local=True)
    last = result.history[-1]
    return {"accuracy": last.student_accuracy, "agreement": last.agreement, "seconds": last.seconds["choose"]}


def summary(results: list[dict[str, float]]) -> dict[str, Any]:
    """Means over the seeds, the standard error of the accuracy, and all accuracies."""
    accuracies = [result["accuracy"] for result in results]
    return {
        "accuracy": mean(accuracies),
        "standard_error": error(accuracies),
        "agreement": mean([result["agreement"] for result in results]),
        "seconds": round(statistics.mean(result["seconds"] for result in results), 2),
        "accuracies": accuracies,
    }


def mean(values: Sequence[float]) -> float:
    """To five digits."""
    return round(statistics.mean(values), 5)


def error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 of a single value."""
    return round(statistics.stdev(values) / len(values) ** 0.5, 5) if len(values) > 1 else 0.0


def draw_budgets(figures: dict[str, dict]) -> None:
    """Accuracy less that of random pairs, by budget."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    base = figures["random"]
    for k, (name, at) in enumerate(figures.items()):
        x = [queries * 1.012 ** (k - len(figures) / 2) for queries in at]  # side by side
        y = [100 * (at[queries]["accuracy"] - base[queries]["accuracy"]) for queries in at]
        off = [100 * at[queries]["standard_error"] for queries in at]
        bold = {"linewidth": 2.4, "zorder": 3} if name == "cluster-margin" else {"linewidth": 1.1}
        axes.errorbar(
            x, y, off, label=name, marker="o", markersize=4, capsize=2, color=f"C{k}" if k < 10 else "k", **bold
        )
    axes.set_xscale("log")
    axes.set_xticks(list(base), [f"{queries:,}" for queries in base])
    axes.minorticks_off()
    axes.set_xlabel("queries, 200 of them for the images")
    axes.set_ylabel("accuracy less that of random pairs, points")
    axes.grid(axis="y", color="#d9dee4")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    figure.savefig(RESULTS / "select_budgets.svg")


# RAD's own setting


def rad(options: argparse.Namespace) -> None:
    """Accuracy after each round for RAD and its rivals, and for RAD with other w."""
    size = SIZES[options.data]
    names = options.only or [*RIVALS, *(f"rad w={w:g}" for w in WEIGHTS)]
    with tempfile.TemporaryDirectory() as folder:
        teachers = told(weak_teacher, [(options.data, seed, folder) for seed in range(options.seeds)], options.at_once)
        tasks = [(name, seed) for seed in range(options.seeds) for name in names]
        results = told(one_trial, [(options.data, *task, folder) for task in tasks], options.at_once)
    found = dict(zip(tasks, results, strict=True))
    figures = {}
    for name in names:
        trials = [found[name, seed] for seed in range(options.seeds)]
        rounds = list(zip(*(trial["accuracy"] for trial in trials), strict=True))
        right = [trial["right"] for trial in trials if trial["right"] is not None]
        figures[name] = {
            "accuracy": [mean(column) for column in rounds],
            "standard_error": [error(column) for column in rounds],
            "teacher_right_on_what_was_bought": mean(right) if right else None,
            "choose_seconds": round(statistics.mean(trial["seconds"] for trial in trials), 2),
        }
    about = {"runs_each": options.seeds, **size, "teacher_accuracy": mean(teachers)}
    about["queries"] = [size["b"] * number for number in range(size["rounds"] + 1)]
    if options.only:
        print(json.dumps(about | figures, indent=2))
        return
    keep(f"select_rad_{options.data}", {**about, **figures})
    draw_rad(options.data, about["queries"], figures)


def trial(data: str, seed: int, folder: str) -> dict[str, Any]:
    """A trial's config: its own labelled and unlabelled images, and a teacher of the labelled ones."""
    size = SIZES[data]
    train = {"source": "parquet", "path": f"{DATA}/{data}-train.parquet"}
    end = 60_000 if data == "mnist" else 50_000
    augment = {"shift": 2, "flip": data == "cifar10"}
    return {
        "seed": seed,
        "images": train | {"rows": f"10000:{end - 5000}", "count": size["pool"]},
        "labelled": train | {"rows": "0:10000", "count": size["labelled"]},
        "validation": train | {"rows": f"{end - 5000}:{end}", "count": 1000},
        "test": {"source": "parquet", "path": f"{DATA}/{data}-test.parquet"},
        "teacher": {
            "kind": "local",
            "model": size["teacher"],
            "weights": f"{folder}/teacher-{seed}.safetensors",
            "train": {"epochs": size["teacher_epochs"], "augment": augment, "clip_norm": 2.0, "threads": 1},
        },
        "budget": {"queries": size["b"] * size["rounds"]},
        "pool": {"kind": "images"},
        "select": {"rounds": size["rounds"]},
        "student": {
            "model": size["student"],
            "epochs": size["student_epochs"],
            "batch_size": 64,
            "loss": "kl",
            "augment": augment,
        },
        "resources": {"trainer": {"threads": 1}},
    }


def weak_teacher(data: str, seed: int, folder: str) -> float:
    """Train a trial's teacher on its labelled images; its accuracy."""
    from kdray.runs.inputs import read_labelled, read_test
    from kdray.teachers.recipe import measure_teacher, train_teacher

    config = parse_config(trial(data, seed, folder))
    train_teacher(config.teacher, labelled=read_labelled(config, "labelled"))
    test = read_test(config)
    assert test is not None
    return measure_teacher(config.teacher, test)


def one_trial(data: str, name: str, seed: int, folder: str) -> dict[str, Any]:
    """One run of several rounds: accuracy after each, how often the teacher was right (None: of mixes nobody knows),
    seconds of choosing a round."""
    config, (strategy, _, w) = trial(data, seed, folder), name.partition(" w=")
    config["select"]["strategy"] = strategy
    if strategy == "rad":
        config["select"] |= {"m": "estimate", "estimate_queries": SIZES[data]["b"] // 4}
        config["select"] |= {"w": float(w)} if w else {}
    if strategy == "unixkd":  # it mixes: pairs of the same images, each nearly or wholly one of them
        config["pool"] = {"kind": "mixup", "lambdas": {"min": 0.0, "max": 1.0, "step": 0.05}}
        config["select"]["first"] = 0
    parsed = parse_config(config)
    result = run(parsed, RunDirectory(Path(folder) / f"{name}-{seed}"), local=True)
    return {
        "accuracy": [metrics.student_accuracy for metrics in result.history],
        "right": teacher_right(parsed, result) if strategy != "unixkd" else None,
        "seconds": statistics.mean(metrics.seconds["choose"] for metrics in result.history[1:]),
    }


def teacher_right(config, result) -> float:
    """Share of what was bought that the teacher labelled as the truth has it; nobody but this benchmark looks."""
    from kdray.images.base import read_images
    from kdray.utils.seeds import numpy_generator

    truth = read_images(config.images, generator=numpy_generator(config.seed, "images"), with_labels=True).labels
    parts = [part for part in result.labelled if len(part)]
    return float(np.mean(np.concatenate([part.answers.labels.numpy() == truth[part.ids].numpy() for part in parts])))


def draw_rad(data: str, queries: list[int], figures: dict[str, dict]) -> None:
    """The shape of RAD's Figure 3 and, beside it, of Figure 7."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, names, title in zip(
        figure.subplots(1, 2, sharey=True),
        (RIVALS, ("rad", *(f"rad w={w:g}" for w in WEIGHTS))),
        (f"{data}: RAD and its rivals", "RAD with other w"),
        strict=True,
    ):
        for k, name in enumerate(names):
            y, off = (100 * np.array(figures[name][key]) for key in ("accuracy", "standard_error"))
            line = {"linewidth": 2.4, "zorder": 3} if name == "rad" else {"linewidth": 1.2}
            axes.plot(queries, y, marker="o", markersize=3, label=name, color=f"C{k}", **line)
            axes.fill_between(queries, y - off, y + off, color=f"C{k}", alpha=0.12, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("queries")
        axes.grid(axis="y", color="#d9dee4")
        axes.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("accuracy on the test set, %")
    figure.savefig(RESULTS / f"select_rad_{data}.svg")


def told(function: Callable, tasks: list[tuple], at_once: int) -> list:
    """The results of all tasks, in their order, each printed when it is there."""
    results = []
    for task, result in zip(tasks, in_parallel(function, tasks, at_once), strict=True):
        print(*task[:-1], result, flush=True)
        results.append(result)
    return results


if __name__ == "__main__":
    main()
