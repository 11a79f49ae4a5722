"""Active Mixup's Figure 4 on MNIST: its choice, vanilla active learning, random pairs, and two later strategies.

The paper has 500 images and 10 x 10,000 queries on CIFAR-10; this is its shape, sized for two cores. Each seed draws
its own images, and all choices share them, with the same budgets. Needs ../shared/data.

    python benchmarks/figure4.py [--images 200] [--queries 2000] [--rounds 10] [--seeds 3]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import ray
from machine import keep

from actors import environment
from kdray.config.load import load_config
from kdray.runs.directory import RunDirectory
from kdray.runs.run import run

CHOICES = ("cluster-margin", "rad", "active-mixup", "vanilla", "random")


def main() -> None:
    """Run every choice on every seed; mean and standard error of accuracy after each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 200), ("queries", 2000), ("rounds", 10), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    environment.prepare()
    ray.init(address="local", namespace="kdray", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    figures: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        for choice in CHOICES:
            histories = []
            for seed in range(options.seeds):
                config = load_config(
                    Path(__file__).parents[1] / "examples" / "figure4.yaml",
                    [
                        f"images.count={options.images}",
                        f"budget.queries={options.queries}",
                        f"select.rounds={options.rounds}",
                        f"select.strategy={choice}",
                        f"seed={seed}",
                    ],
                )
                result = run(config, RunDirectory(Path(folder) / f"{choice}-{seed}"))
                histories.append(result.history)
                print(choice, seed, [f"{m.student_accuracy:.4f}" for m in result.history], flush=True)
            figures[choice] = {
                "queries": [m.queries for m in histories[0]],
                "accuracy_mean": [round(statistics.mean(column), 4) for column in _columns(histories)],
                "accuracy_standard_error": [
                    round(statistics.stdev(column) / len(column) ** 0.5, 4) if len(column) > 1 else None
                    for column in _columns(histories)
                ],
                "choose_seconds_a_round": round(
                    statistics.mean(m.seconds["choose"] for h in histories for m in h[1:]), 2
                ),
            }
    keep("figure4", {"runs_each": options.seeds, **figures})


def _columns(histories: list) -> list[list[float]]:
    return [[m.student_accuracy for m in column] for column in zip(*histories, strict=True)]


if __name__ == "__main__":
    main()
