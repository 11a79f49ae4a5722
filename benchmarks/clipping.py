"""What cutting long gradients is worth on few images: the same runs with and without.

    python benchmarks/clipping.py [--seeds 10]

MNIST, LeNet-5, 200 images and as many random mixes as the budget buys, so that both ways train on the same: what is
bought does not depend on the student. Two runs at a time, each on one thread and without Ray. Needs ../shared/data.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from machine import ROOT, in_parallel, keep

from kdray.config.load import load_config
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run

BUDGETS = (500, 1000)
NORMS = (None, 5.0, 2.0, 1.0)


def main() -> None:
    """Every budget, every norm; mean, standard error, the worst seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = range(parser.parse_args().seeds)
    tasks = [(queries, norm, seed) for queries in BUDGETS for norm in NORMS for seed in seeds]
    found = dict(zip(tasks, in_parallel(one, tasks), strict=True))
    figures = {}
    for queries in BUDGETS:
        for norm in NORMS:
            some = [found[queries, norm, seed] for seed in seeds]
            figures[f"{queries} queries, clip_norm {'null' if norm is None else norm}"] = {
                "accuracy": round(statistics.mean(some), 4),
                "standard_error": round(statistics.stdev(some) / len(some) ** 0.5, 4),
                "worst": round(min(some), 4),
            }
    keep("clipping", {"runs_each": len(seeds), **figures})


def one(queries: int, norm: float | None, seed: int) -> float:
    """Accuracy of one student."""
    changes = [
        "images.count=200",
        f"budget.queries={queries}",
        "select.strategy=random",
        f"seed={seed}",
        f"student={{model: lenet5, epochs: 40, batch_size: 64, clip_norm: {'null' if norm is None else norm}}}",
        "resources.trainer.threads=1",
    ]
    config = load_config(ROOT / "examples" / "mnist.yaml", changes)
    with tempfile.TemporaryDirectory() as folder:
        return run(config, RunDirectory(Path(folder) / "run"), local=True).history[-1].student_accuracy


if __name__ == "__main__":
    main()
