"""Which choice is best: every strategy with students that are trained out, and RAD's own setting.

    python benchmarks/choose.py budgets mnist --pool mixup    # 200 images, 500 to 4,000 queries, every strategy
    python benchmarks/choose.py budgets mnist --pool pairs    # the same, from affine pairs that are cut
    python benchmarks/choose.py budgets cifar10 --pool pairs  # 1,000 images, 2,000 and 4,000 queries
    python benchmarks/choose.py rad mnist|cifar10             # few true labels, a weak teacher (Figures 3 and 7)

Not named select.py: that is a module of Python's own, which every script in this folder would then miss.

A run goes from budget to budget: it chooses with the student of the budget before, so one run has the figures of all.
Each seed draws its own images, and all choices share them. Two runs at a time, each on one thread and without Ray. Each
finished run is kept, and a benchmark that is started again makes those that are missing. Needs ../shared/data.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, ROOT, all_runs, in_parallel, keep
from matplotlib.figure import Figure

from kdray.config.load import load_config, parse_config
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.select.base import strategies

SETTINGS: dict[str, dict[str, Any]] = {
    "mnist": {
        "file": "examples/mnist.yaml",
        "images": 200,
        "totals": (500, 1000, 2000, 4000),
        "student": "{model: lenet5, augment: affine}",
    },
    "cifar10": {
        "file": "benchmarks/cifar10-small.yaml",
        "images": 1000,
        "totals": (2000, 4000),
        "student": "{model: small-cnn, augment: {shift: 4, flip: true}}",
    },
}
POOLS = {
    "mnist": {"mixup": "{kind: mixup}", "pairs": "{kind: pairs, blend: cutmix, pre: affine}"},
    "cifar10": {"mixup": "{kind: mixup}", "pairs": "{kind: pairs, blend: cutmix, pre: flip-crop}"},
}
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
    parser.add_argument("what", choices=("budgets", "rad"))
    parser.add_argument("data", nargs="?", choices=tuple(SIZES), default="mnist")
    parser.add_argument("--pool", choices=("mixup", "pairs"), default="mixup", help="of budgets")
    parser.add_argument("--seeds", type=int, help="10 of budgets, 5 of rad")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="these strategies alone; keeps no table")
    options = parser.parse_args()
    options.seeds = options.seeds or (10 if options.what == "budgets" else 5)
    {"budgets": budgets, "rad": rad}[options.what](options)


# Every strategy at every budget


def budgets(options: argparse.Namespace) -> None:
    """Every strategy at every budget, on one pool."""
    data, pool, seeds = options.data, options.pool, range(options.seeds)
    names = options.only or names_of(pool)
    tasks = all_tasks(data, pool, names, seeds)
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs("choose_runs", one_run, tasks, options.at_once, folder)
    totals = [str(total) for total in SETTINGS[data]["totals"]]
    figures = {
        name: {total: summary([found[data, pool, name, seed][total] for seed in seeds]) for total in totals}
        for name in names
    }
    figures = compared(figures, totals)
    if options.only:
        print(json.dumps(figures, indent=2))
    else:
        near = {name: [q for q in totals if at[q]["behind"] <= at[q]["standard_error"]] for name, at in figures.items()}
        about = {"runs_each": len(seeds), "setting": SETTINGS[data], "pool": POOLS[data][pool]}
        keep(f"select_{data}_{pool}", {**about, "within_one_standard_error_of_the_best": near, **figures})
        draw_budgets(f"select_{data}_{pool}", figures)
    print(table(figures))


def names_of(pool: str) -> list[str]:
    """Strategies that choose from this pool."""
    return [name for name in strategies.parts() if pool == "mixup" or name != "unixkd"]


def all_tasks(data: str, pool: str, names: Sequence[str], seeds: Iterable[int]) -> list[tuple]:
    """Arguments of `one_run`, all of a seed beside each other."""
    return [(data, pool, name, seed) for seed in seeds for name in names]


def one_run(data: str, pool: str, name: str, seed: int, folder: str) -> dict[str, dict[str, float]]:
    """One run: accuracy, agreement and seconds of choosing at each total of queries."""
    setting = SETTINGS[data]
    config = load_config(
        ROOT / setting["file"],
        [
            f"images.count={setting['images']}",
            f"budget.queries={setting['totals'][-1]}",
            f"pool={POOLS[data][pool]}",
            f"select={{strategy: {name}, schedule: {list(setting['totals'])}}}",
            f"student={setting['student']}",
            f"seed={seed}",
            "resources.trainer.threads=1",
            "student.precision=float32",  # on a GPU, too
            "student.loss=cross-entropy",  # the defaults when these studies were made
            "student.steps_factor=1",
        ],
    )
    result = run(config, RunDirectory(Path(folder) / f"{data}-{pool}-{name}-{seed}"), local=True)
    return {
        str(total): {
            "accuracy": metrics.student_accuracy,
            "agreement": metrics.agreement,
            "seconds": metrics.seconds["choose"],
        }
        for total, metrics in zip(setting["totals"], result.history[1:], strict=True)
    }


def compared(figures: dict[str, dict[str, Any]], totals: Sequence[str]) -> dict[str, dict[str, Any]]:
    """With how far each is behind the best, and the standard error of that over the seeds, whose images all share."""
    result: dict[str, dict[str, Any]] = {name: {} for name in figures}
    for total in totals:
        best = max((at[total] for at in figures.values()), key=lambda figure: figure["accuracy"])
        for name, at in figures.items():
            behind = [b - a for a, b in zip(at[total]["accuracies"], best["accuracies"], strict=True)]
            result[name][total] = at[total] | {"behind": mean(behind), "behind_standard_error": error(behind)}
    return result


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures as a table, accuracies in percent."""
    totals = list(next(iter(figures.values())))
    lines = ["| | " + " | ".join(f"{int(total):,}" for total in totals) + " |", "|---" * (len(totals) + 1) + "|"]
    for name, at in sorted(figures.items(), key=lambda item: -sum(one["accuracy"] for one in item[1].values())):
        cells = [f"{100 * one['accuracy']:.2f} ± {100 * one['standard_error']:.2f}" for one in at.values()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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


def draw_budgets(name_of_file: str, figures: dict[str, dict[str, Any]]) -> None:
    """Accuracy less that of random pairs, by budget."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    base = figures["random"]
    for k, (name, at) in enumerate(figures.items()):
        x = [int(queries) * 1.012 ** (k - len(figures) / 2) for queries in at]  # side by side
        y = [100 * (at[queries]["accuracy"] - base[queries]["accuracy"]) for queries in at]
        off = [100 * at[queries]["standard_error"] for queries in at]
        bold = {"linewidth": 2.4, "zorder": 3} if name == "cluster-margin" else {"linewidth": 1.1}
        axes.errorbar(
            x, y, off, label=name, marker="o", markersize=4, capsize=2, color=f"C{k}" if k < 10 else "k", **bold
        )
    axes.set_xscale("log")
    axes.set_xticks([int(queries) for queries in base], [f"{int(queries):,}" for queries in base])
    axes.minorticks_off()
    axes.set_xlabel("queries in all")
    axes.set_ylabel("accuracy less that of random ones, points")
    axes.grid(axis="y", color="#d9dee4")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    figure.savefig(RESULTS / f"{name_of_file}.svg")


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
            "loss": {"kind": "kl", "temperature": 1},
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
