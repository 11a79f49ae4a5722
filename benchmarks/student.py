"""What the student's training is worth: the defaults of before and those of now, on the same images, part by part.

    python benchmarks/student.py budgets            # MNIST, 200 images, 500 to 4,000 queries
    python benchmarks/student.py parts              # 1,000 queries, one part of the recipe left out at a time
    python benchmarks/student.py table1             # MNIST, 2,000 images, 24,000 queries (Active Mixup, Table 1)
    python benchmarks/student.py cifar10            # 2,000 images, 8,000 queries, a network of 114,000 weights
    python benchmarks/student.py answers            # soft, top-1 and two-decimal answers
    python benchmarks/student.py labels             # answers kept for augmented images, or asked again
    python benchmarks/student.py losses             # cross entropy beside KD at several temperatures
    python benchmarks/student.py early              # shorter trainings in rounds before the last
    python benchmarks/student.py kinds              # each kind of candidates, and auto
    python benchmarks/student.py augment            # each augmentation, and auto, on MNIST, digits and CIFAR-10

Each seed draws its own images, and all recipes of a seed share them. Accuracy is that on the 10,000 test images; every
decision about recipes was made on others. Two runs at a time, each on one thread and without Ray. Each finished run is
kept, and one that is started again goes on with those that are missing. Needs ../shared/data.
"""

import argparse
import hashlib
import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from machine import ROOT, all_runs, keep

from kdray.config.load import load_config
from kdray.observers.base import RoundMetrics
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run
from kdray.training.augment.auto import Auto

MNIST = "examples/mnist.yaml"
BUDGETS = (500, 1000, 2000, 4000)
BEFORE = (  # the defaults until then
    "pool={kind: mixup}",
    "select={strategy: cluster-margin}",
    "student={model: lenet5, epochs: 40, batch_size: 64, augment: none}",
)
NOW = (
    "pool={kind: pairs, blend: cutmix, pre: affine}",
    "select={strategy: margin, rounds: 4}",
    "student={model: lenet5, augment: affine, early: 0.5, unpaid: {students: 2, model: small-cnn}}",
)
PARTS = {  # what is left out of the recipe of now
    "all of it": (),
    "longer training": ("student.epochs=40",),
    "augmentation": ("student.augment=none",),
    "unpaid candidates": ("student.unpaid=null",),
    "another network that labels them": ("student.unpaid={students: 2}",),
    "pairs other than mixup": ("pool={kind: mixup}",),
    "choice": ("select={strategy: random}",),
    "rounds": ("select.rounds=1",),
}
CIFAR10 = {
    "before": ("student={model: 'benchmarks.networks:cnn', epochs: 40, batch_size: 64, augment: none}",),
    "now": (
        "select={strategy: cluster-margin, rounds: 2}",
        "student={model: 'benchmarks.networks:cnn', augment: {shift: 4, flip: true}, early: 0.5}",
    ),
}
LABELS = {
    "kept": ("student.unpaid=null",),
    "a quarter for copies": ("student.unpaid=null", "student.labels=requery", "student.requery_share=0.25"),
    "half for copies": ("student.unpaid=null", "student.labels=requery"),
}
EARLY = {f"early {share:g}": ("student.unpaid=null", f"student.early={share:g}") for share in (1.0, 0.5, 0.25, 0.1)}
AUGMENTED: dict[str, tuple[str, int, int, tuple[str, ...]]] = {  # config, images, queries, changes, with random choice
    "MNIST": (MNIST, 200, 1000, ("pool={kind: pairs, pre: affine}", "student={model: lenet5, early: 0.1}")),
    "digits": (
        "examples/digits.yaml",
        100,
        1000,
        ("pool={kind: pairs, pre: affine}", "student={model: lenet5, early: 0.1}"),
    ),
    "CIFAR-10": ("benchmarks/cifar10-small.yaml", 1000, 3000, ("student={model: small-cnn, early: 0.1}",)),
}
WITH = ("select={strategy: random}", "student.loss={kind: kl, temperature: 4}")
KINDS = {
    "mixup": ("student.unpaid=null", "pool={kind: mixup}"),
    "cutmix": ("student.unpaid=null", "pool={kind: pairs, blend: cutmix}"),
    "affine, cutmix": ("student.unpaid=null",),
    "flip-crop, cutmix": ("student.unpaid=null", "pool={kind: pairs, blend: cutmix, pre: flip-crop}"),
    "auto": ("student.unpaid=null", "pool={kind: auto}"),
}
KD = {"cross entropy": "cross-entropy"} | {f"KD, temperature {t}": f"{{kind: kl, temperature: {t}}}" for t in (4, 2, 8)}
ANSWERS = {"soft": (), "top-1": ("teacher.answers=hard",), "two decimals": ("teacher.decimals=2",)}

Cell = tuple[str, str, int, int, tuple[str, ...]]  # name, config, images, queries, changes of the config
VARIANTS = {"parts": PARTS, "labels": LABELS, "early": EARLY, "kinds": KINDS, "answers": ANSWERS}


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("budgets", "table1", "cifar10", "augment", "losses", *VARIANTS))
    parser.add_argument("--seeds", type=int, help="10 of budgets and parts, 5 of the others")
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="these recipes or budgets alone; keeps no table")
    options = parser.parse_args()
    seeds = range(options.seeds or (10 if options.what in ("budgets", "parts") else 5))
    rows = [
        (name, config, count, queries, changes)
        for name, config, count, queries, changes in cells(options.what)
        if not options.only or name in options.only or str(queries) in options.only
    ]
    tasks = all_tasks(seeds, rows)
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs("student_runs", one_run, tasks, options.at_once, folder)
    figures = {
        f"{name}; {queries:,} queries": summary([found[config, count, queries, seed, changes] for seed in seeds])
        for name, config, count, queries, changes in rows
    }
    if options.only:
        print(json.dumps(figures, indent=2))
    else:
        keep(f"student_{options.what}", {"runs_each": len(seeds), "before": BEFORE, "now": NOW, "students": figures})
    print(table(figures))


def all_tasks(seeds: Iterable[int], rows: list[Cell]) -> list[tuple]:
    """Arguments of `one_run`, for each cell and seed."""
    return [(*how, seed, changes) for seed in seeds for _, *how, changes in rows]


def cells(what: str) -> list[Cell]:
    """Each recipe to measure."""
    both = {"before": BEFORE, "now": NOW}
    if what == "budgets":
        return [(name, MNIST, 200, queries, how) for queries in BUDGETS for name, how in both.items()]
    if what == "table1":
        both["now"] = with_changes(NOW, ("pool.pairs=250000",))  # of two million
        return [(name, MNIST, 2000, 24_000, how) for name, how in both.items()]
    if what == "cifar10":
        return [(name, "benchmarks/cifar10-small.yaml", 2000, 8000, how) for name, how in CIFAR10.items()]
    if what == "augment":
        return [
            (f"{data}; {name}", config, count, queries, (*how, *WITH, f"student.augment={kind}"))
            for data, (config, count, queries, how) in AUGMENTED.items()
            for name, kind in augmentations(32 if data == "CIFAR-10" else 28).items()
        ]
    if what == "losses":
        return losses()
    return [(name, MNIST, 200, 1000, with_changes(NOW, change)) for name, change in VARIANTS[what].items()]


def losses() -> list[Cell]:
    """Losses on soft answers of MNIST and CIFAR-10, and the first two on coarser answers of MNIST."""
    plain = ("student.unpaid=null", "student.early=0.25")
    config, count, queries, how = AUGMENTED["CIFAR-10"][0], *AUGMENTED["CIFAR-10"][1:]
    how = (*how, "select={strategy: random}", "student.augment={shift: 4, flip: true}")
    found: list[Cell] = []
    for name, loss in KD.items():
        change = () if name == "cross entropy" else (f"student.loss={loss}",)
        found.append((f"MNIST; {name}", MNIST, 200, 1000, with_changes(NOW, (*plain, *change))))
        if name in ("cross entropy", "KD, temperature 4"):
            found.append((f"CIFAR-10; {name}", config, count, queries, (*how, *change)))
            for answers in ("top-1", "two decimals"):
                changes = (*plain, *change, *ANSWERS[answers])
                found.append((f"MNIST, {answers}; {name}", MNIST, 200, 1000, with_changes(NOW, changes)))
    return found


def augmentations(side: int) -> dict[str, str]:
    """`auto`, and each kind that it tries on images of that side, as the config has it."""
    kinds = Auto().candidates((1, side, side)).items()
    return {"auto": "auto"} | {name: json.dumps(kind.model_dump(mode="json")) for name, kind in kinds}


def with_changes(how: tuple[str, ...], changes: tuple[str, ...]) -> tuple[str, ...]:
    """A recipe with changes, which replace the sections and fields that they name."""
    sections = {name: yaml.safe_load(value) for name, _, value in (one.partition("=") for one in how)}
    for name, _, value in (change.partition("=") for change in changes):
        section, _, field = name.partition(".")
        if field and section in sections:
            sections[section] = {**sections[section], field: yaml.safe_load(value)}
        else:
            sections[name] = yaml.safe_load(value)
    return tuple(f"{name}={json.dumps(section)}" for name, section in sections.items()) if changes else how


def one_run(file: str, images: int, queries: int, seed: int, changes: Sequence[str], folder: str) -> dict[str, float]:
    """One run of a config with changes."""
    fixed = [f"images.count={images}", f"budget.queries={queries}", f"seed={seed}", "resources.trainer.threads=1"]
    fixed.append("student.precision=float32")  # on a GPU, too
    fixed.append("student.steps_factor=1")  # the default when these studies were made
    if not any("loss" in change for change in changes):
        fixed.append("student.loss=cross-entropy")  # so was this
    config = load_config(ROOT / file, [*changes, *fixed])
    name = hashlib.blake2b(json.dumps((file, images, queries, seed, changes)).encode(), digest_size=8).hexdigest()
    out = Path(folder) / name
    return figures_of(run(config, RunDirectory(out), local=True).history)


def figures_of(history: Sequence[RoundMetrics]) -> dict[str, float]:
    """Accuracy and agreement at the end, and seconds of all rounds."""
    last = history[-1]
    return {
        "accuracy": last.student_accuracy,
        "agreement": last.agreement,
        "training_s": round(sum(metrics.seconds["train"] for metrics in history), 1),
        "choosing_s": round(sum(metrics.seconds["choose"] for metrics in history), 1),
    }


def summary(results: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and standard error of the accuracy, means of the rest, and all accuracies."""
    accuracies = [result["accuracy"] for result in results]
    error = statistics.stdev(accuracies) / len(accuracies) ** 0.5 if len(accuracies) > 1 else 0.0
    means = {name: round(statistics.mean(result[name] for result in results), 5) for name in results[0]}
    return {**means, "standard_error": round(error, 5), "accuracies": accuracies}


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures as a table, accuracies in percent."""
    lines = ["| | accuracy | seconds of training |", "|---|---|---|"]
    for name, one in figures.items():
        shown = f"{100 * one['accuracy']:.2f} ± {100 * one['standard_error']:.2f}"
        lines.append(f"| {name} | {shown} | {one['training_s']:,.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
