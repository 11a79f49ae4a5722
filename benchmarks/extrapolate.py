"""How well a learning curve foretells more queries: expected at 1,000 answers for 4,000, against what 4,000 gave.

python benchmarks/extrapolate.py [--seeds 3] [--at-once 2] [--only mnist]
"""

import argparse
import tempfile
from pathlib import Path

from machine import ROOT, all_runs, keep

from kdray.config.load import load_config
from kdray.metrics.extrapolation import extrapolate
from kdray.runs.directory import RunDirectory
from kdray.runs.learning import learn
from kdray.runs.run import run

SETTINGS = {
    "digits": ("examples/digits.yaml", ()),
    "mnist": ("examples/mnist.yaml", ("student={model: lenet5, augment: affine}", "images.count=500")),
    "cifar10": (
        "benchmarks/cifar10-small.yaml",
        ("student={model: small-cnn, augment: standard, steps_factor: 1}", "images.count=500"),
    ),
}
"""The pool and the strategy are kdray's defaults, but for the digits of the demo."""
DEFAULTS = ("pool={kind: pairs, pre: affine}", "select={strategy: cluster-margin, rounds: 3}")
FIRST = (125, 250, 500, 1000)


def measured(name: str, queries: int, seed: int, folder: str) -> dict[str, object]:
    """Accuracy of a run's last student, and of students of fewer answers where it is the run that looks ahead."""
    path, changes = SETTINGS[name]
    config = load_config(
        ROOT / path,
        [
            *(() if name == "digits" else DEFAULTS),
            *changes,
            f"budget={{queries: {queries}, evaluation: 0}}",
            f"seed={seed}",
            "resources.trainer.threads=1",
        ],
    )
    directory = RunDirectory(Path(folder) / f"{name}-{queries}-{seed}")
    done = run(config, directory, local=True)
    found: dict[str, object] = {
        "accuracy": done.history[-1].student_accuracy,
        "rounds": [(m.images, m.student_accuracy) for m in done.history],
    }
    if queries == FIRST[-1]:
        curve = learn(directory, config, first=FIRST[:-1])
        found["first"] = [(point.images, point.scores.student) for point in curve.points]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    given = parser.parse_args()
    budgets = (FIRST[-1], 4 * FIRST[-1])
    tasks = [(name, queries, seed) for name in given.only for seed in range(given.seeds) for queries in budgets]
    with tempfile.TemporaryDirectory() as folder:
        runs = all_runs("extrapolate_runs", measured, tasks, given.at_once, folder)
    figures = {}
    for name in given.only:
        tested = {"digits": 397}.get(name, 10_000)
        for seed in range(given.seeds):
            small, large = (runs[name, queries, seed] for queries in budgets)
            row: dict[str, object] = {"measured at 1,000": small["accuracy"], "measured at 4,000": large["accuracy"]}
            points = [*small["first"], (FIRST[-1], small["accuracy"])]
            for how, curve in (("rounds", small["rounds"]), ("first", points)):
                counts, values = zip(*curve, strict=True)
                (ahead,) = extrapolate(counts, values, tested, [budgets[1]])
                row[how] = {
                    "expected": round(ahead.value, 4),
                    "interval": [round(ahead.low, 4), round(ahead.high, 4)],
                    "holds": ahead.low <= large["accuracy"] <= ahead.high,
                }
            figures[f"{name}, seed {seed}"] = row
    keep("extrapolate", figures)


if __name__ == "__main__":
    main()
