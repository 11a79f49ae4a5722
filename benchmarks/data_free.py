"""A teacher without a single image: pools that are drawn, on their own and mixed, at random and chosen from.

    python benchmarks/data_free.py pools        # MNIST, LeNet-5, hard labels, each pool at random
    python benchmarks/data_free.py choice       # strategies beside random, on the best generic mixture and on lines
    python benchmarks/data_free.py augment      # augmentations beside none, on pools drawn at random
    python benchmarks/data_free.py generator    # IDEAL: a generator that each round trains against its student
    python benchmarks/data_free.py rates        # images a second of each pool, one thread

Round 0 asks about a fifth of the budget, drawn from the pool itself; IDEAL's asks nothing. Accuracy is that on the
10,000 test images, `unseen` that on 10,000 training images, by which kdray's defaults are decided. `entropy` is the
relative entropy of all answers ("What Makes a Good Dataset for Knowledge Distillation?", Table 3). IDEAL's released
code asks the teacher anew in every round about all images so far; kdray never pays twice for an image, and gets the
same answers with `replay: all`. `with_requeries` is what that code would be charged for them: B E (E + 1) / 2 for E
rounds of B queries. Each finished run is kept, and one that is started again goes on with those that are missing.
Needs ../shared/data, and `kdray[leaves,gl]`.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from machine import ROOT, all_runs, keep
from scipy.stats import spearmanr

from kdray.config.load import load_config
from kdray.config.root import Config
from kdray.images.base import read_images
from kdray.models.checkpoint import load_student
from kdray.models.predict import accuracy, predict
from kdray.pools.base import pools
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.utils.seeds import numpy_generator

PHOTOGRAPHS = {"kind": "crops", "images": {"source": "parquet", "path": "../shared/data/natural.parquet"}}
LARGE = {"kind": "leaves", "radii": [0.1, 1]}
STROKES = {"kind": "lines", "colours": "light-on-dark"}


def mixed(*of: Any, shares: list[float] | None = None) -> dict[str, Any]:
    """A mixture."""
    return {"kind": "mixture", "of": list(of), "shares": shares}


POOLS: dict[str, Any] = {
    "noise": "noise",
    "spectrum": "spectrum",
    "leaves": "leaves",
    "leaves, large": LARGE,
    "leaves, textured": LARGE | {"textures": ["plain", "gradient", "stripes", "grain"]},
    "shaders": "shaders",
    "photographs": PHOTOGRAPHS,
    "leaves + spectrum": mixed(LARGE, "spectrum"),
    "leaves + shaders": mixed(LARGE, "shaders"),
    "leaves + shaders + spectrum": mixed(LARGE, "shaders", "spectrum"),
    "lines": "lines",
    "lines, light on dark": STROKES,
    "lines + leaves": mixed("lines", LARGE),
    "lines + shaders": mixed("lines", "shaders"),
    "all": mixed("lines", STROKES, LARGE, "shaders", "spectrum"),
}
GENERIC = "leaves + shaders"
STRATEGIES = ("random", "margin", "cluster-margin", "rad", "uniform")
AUGMENTED = ("lines, light on dark", "all")
AUGMENTATIONS = ("random", "random, affine", "random, auto")
BATCH = 250
"""IDEAL's B."""
IDEAL: dict[str, Any] = {
    "model": "lenet5", "start": "last", "replay": "none", "steps": 100, "batch_size": 250, "lr": 0.01,
    "weight_decay": 0, "schedule": "constant", "augment": "none", "precision": "float32",
}  # fmt: skip
"""IDEAL's student: SGD, momentum 0.9, rate 0.01 (section 4.1.3); how many steps a round has is not said there."""
REPLAY: dict[str, Any] = {"replay": "all"}
ANEW: dict[str, Any] = REPLAY | {
    "start": "new", "steps": "auto", "batch_size": 128, "lr": None, "weight_decay": None, "schedule": "one-cycle",
    "early": 0.1,
}  # fmt: skip
GENERATORS: dict[str, dict[str, Any]] = {
    "IDEAL": {},
    "replay all": {"student": REPLAY},
    "replay all, student anew": {"student": ANEW},
    "replay all, ask_below 0.7": {"student": REPLAY, "pool": {"ask_below": 0.7}},
    "replay all, warm start by lines": {"student": REPLAY, "warm": True},
    "replay all, no information loss": {"student": REPLAY, "pool": {"weight": None}},
    "replay all, no cross-entropy": {"student": REPLAY, "pool": {"cross_entropy": False}},
    "replay all, no restart": {"student": REPLAY, "pool": {"restart": False}},
    "replay all, noise alone": {"student": REPLAY, "pool": {"conditional": False}},
    **{f"replay all, E_G {steps}": {"student": REPLAY, "pool": {"steps": steps}} for steps in (3, 10, 30, 50)},
    "lines, student anew": {"student": ANEW, "pool": {"kind": "lines"}, "warm": True},
}
SHAPES = ((1, 28, 28), (3, 32, 32))
_RENDERED, _TIMES = 2048, 5


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pools", "choice", "augment", "generator", "rates"))
    parser.add_argument("--queries", type=int, default=2500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="these pools alone; keeps no table")
    options = parser.parse_args()
    if options.what == "rates":
        keep("data_free_rates", rates())
        return
    if options.what == "generator":
        generators(options.queries, options.seeds, options.at_once, options.only)
        return
    names = [name for name in POOLS if not options.only or name in options.only]
    rows = [(name, "random") for name in names]
    if options.what == "choice":
        rows = [(name, how) for name in (GENERIC, "lines") for how in STRATEGIES]
    elif options.what == "augment":
        rows = [(name, how) for name in AUGMENTED for how in AUGMENTATIONS]
    tasks = all_tasks(rows, options.queries, range(options.seeds))
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs("data_free_runs", one, tasks, options.at_once, folder)
    figures: dict[str, Any] = {}
    for row in rows:
        figures["; ".join(row)] = summary([found[task] for task in tasks if task[:2] == row])
    ranks = [figures[row] for row in figures if row.endswith("; random")]
    correlation = float(spearmanr([one["entropy"] for one in ranks], [one["accuracy"] for one in ranks]).statistic)
    kept = {"queries": options.queries, "runs_each": options.seeds, "entropy_and_accuracy": round(correlation, 3)}
    if options.only:
        print(json.dumps(figures, indent=2))
    else:
        keep(f"data_free_{options.what}_{options.queries}", kept | {"pools": figures})


def all_tasks(rows: list[tuple[str, str]], queries: int, seeds: Iterable[int]) -> list[tuple]:
    """Arguments of `one`."""
    return [(name, how, queries, seed) for seed in seeds for name, how in rows]


def one(name: str, how: str, queries: int, seed: int, folder: str) -> dict[str, float]:
    """A run without images, on hard labels. `how` is a strategy, and perhaps the kind of an augmentation."""
    pool = json.dumps(POOLS[name])
    strategy, _, augment = how.partition(", ")
    config = load_config(
        ROOT / "examples/mnist.yaml",
        [
            f"images={{source: drawn, pool: {pool}, count: {queries // 5}, size: 28, colour: grey}}",
            f"pool={pool}",
            f"select={{strategy: {strategy}, rounds: {1 if strategy == 'random' else 2}}}",
            f"student={{model: lenet5, early: 0.1, precision: float32, augment: {augment or 'none'}}}",
            "teacher.answers=hard",
            f"budget={{queries: {queries}, evaluation: 0}}",
            f"seed={seed}",
            "resources.trainer.threads=1",
        ],
    )
    return figures_of(config, Path(folder) / f"{list(POOLS).index(name)}-{how}-{seed}")


def figures_of(config: Config, place: Path) -> dict[str, float]:
    """What a run of the config in `place` measures."""
    done = run(config, RunDirectory(place), local=True)
    unseen = read_images(
        config.test.model_copy(update={"path": config.teacher.train.images.path, "rows": "50000:60000"}),
        generator=numpy_generator(0, "unseen"),
        with_labels=True,
    )
    student = load_student(done.directory / "student.safetensors")
    last = done.history[-1]
    return {
        "accuracy": last.student_accuracy,
        "unseen": round(accuracy(predict(student, unseen.images).argmax(dim=1), unseen.true_labels), 5),
        "entropy": round(last.relative_entropy, 4),
        "training_s": round(sum(metrics.seconds["train"] for metrics in done.history), 1),
        "choosing_s": round(sum(metrics.seconds["choose"] for metrics in done.history), 1),
    }


def generators(queries: int, seeds: int, at_once: int, only: list[str] | None) -> None:
    """Runs of IDEAL and of its variants."""
    names = [name for name in GENERATORS if not only or name in only]
    tasks = [(name, queries, seed) for seed in range(seeds) for name in names]
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs("data_free_generator_runs", one_generator, tasks, at_once, folder)
    rounds = queries // BATCH
    figures = {name: summary([found[task] for task in tasks if task[0] == name]) for name in names}
    kept = {"queries": queries, "runs_each": seeds, "with_requeries": BATCH * rounds * (rounds + 1) // 2}
    if only:
        print(json.dumps(figures, indent=2))
    else:
        keep(f"data_free_generator_{queries}", kept | {"variants": figures})


def one_generator(name: str, queries: int, seed: int, folder: str) -> dict[str, float]:
    """A run of IDEAL, on hard labels: B = 250, and E as the budget has it."""
    changes = GENERATORS[name]
    pool = {"kind": "generator"} | changes.get("pool", {})
    student = IDEAL | changes.get("student", {})
    first = queries // 5 if changes.get("warm") else 0
    rounds = max(1, (queries - first) // BATCH)
    config = load_config(
        ROOT / "examples/mnist.yaml",
        [
            f"images={{source: drawn, pool: lines, count: {max(first, 200)}, size: 28, colour: grey}}",
            f"pool={json.dumps(pool)}",
            f"select={{strategy: random, first: {first}, rounds: {rounds}}}",
            f"student={json.dumps(student)}",
            "teacher.answers=hard",
            f"budget={{queries: {queries}, evaluation: 0}}",
            f"seed={seed}",
            "resources.trainer.threads=1",
        ],
    )
    return figures_of(config, Path(folder) / f"{list(GENERATORS).index(name)}-{seed}")


def summary(results: list[dict[str, float]]) -> dict[str, Any]:
    """Means, the standard error of the accuracy, and all accuracies."""
    accuracies = [result["accuracy"] for result in results]
    error = statistics.stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else 0.0
    means = {name: round(statistics.mean(result[name] for result in results), 5) for name in results[0]}
    return {**means, "standard_error": round(error, 5), "accuracies": accuracies}


def rates() -> dict[str, dict[str, int]]:
    """Images a second of CPU time, the best of several, on one thread. Shaders are drawn by another process, so theirs
    are a second of wall time."""
    torch.set_num_threads(1)
    found: dict[str, dict[str, int]] = {}
    kinds = {"lines": "lines", "spectrum": "spectrum", "noise": "noise", "leaves": "leaves", "leaves, large": LARGE}
    for name, section in (kinds | {"shaders": "shaders", "photographs": PHOTOGRAPHS}).items():
        clock = time.perf_counter if name == "shaders" else time.process_time
        found[name] = {}
        for shape in SHAPES:
            pool = pools.parse(section).build(torch.empty(0, *shape, dtype=torch.uint8), 0)
            pool.render(torch.arange(64))  # what is compiled or made once
            taken = []
            for number in range(_TIMES):
                begin = clock()
                pool.render(torch.arange(number * _RENDERED, (number + 1) * _RENDERED))
                taken.append(clock() - begin)
            found[name]["x".join(map(str, shape))] = round(_RENDERED / min(taken))
    return found


if __name__ == "__main__":
    main()
