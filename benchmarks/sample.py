"""How many pairs are enough to choose from: samples of n pairs beside all pairs, for the k of lowest score, on MNIST.

    python benchmarks/sample.py scores      # mean score of the chosen, one student of 400 images, 79,800 pairs
    python benchmarks/sample.py students    # accuracy after 500 queries, 200 images, 19,900 pairs, five seeds

Needs ../shared/data, and the teacher of examples/mnist.yaml.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from choose import error, mean
from machine import ROOT, in_parallel, keep

from kdray.config.load import load_config
from kdray.models.checkpoint import load_student
from kdray.pools.mixup import MixupPool
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_pool
from kdray.runs.run import run
from kdray.search import GainsRequest
from kdray.search.local import LocalSearcher
from kdray.sections.search import SearchSettings

EACH = (2, 5, 10, 20, 50, 100)
TIMES = 50


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scores", "students"))
    {"scores": scores, "students": students}[parser.parse_args().what]()


def config_of(images: int, queries: int, seed: int, *more: str) -> Any:
    """examples/mnist.yaml with so many images and queries."""
    changes = [
        f"images.count={images}",
        f"budget.queries={queries}",
        f"seed={seed}",
        "student={model: lenet5, epochs: 40, batch_size: 64}",
        "resources.trainer.threads=1",
        "pool.search=exhaustive",
        *more,
    ]
    return load_config(ROOT / "examples" / "mnist.yaml", changes)


def scores() -> None:
    """Mean score of the k lowest of n pairs: mean over samples, and its standard deviation."""
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(400, 400, 0, "select.rounds=0")
        directory = RunDirectory(Path(folder) / "run")
        run(config, directory, local=True)
        model = load_student(Path(folder) / "run" / "student.safetensors")
    pool = read_pool(config).pool
    assert isinstance(pool, MixupPool)
    searcher = LocalSearcher(settings=SearchSettings(search="exhaustive"))
    figures: dict[str, Any] = {"pairs": pool.num_groups, "samples": TIMES}
    for name in ("confidence", "margin", "entropy"):
        gains = searcher.search(pool, model, GainsRequest(score=name)).gains
        figures[name] = {k: of_samples(gains, k) for k in (100, 500)}
        figures[name]["all pairs, mean"] = round(float(gains.mean()), 5)
    keep("sample_scores", figures)


def of_samples(gains: np.ndarray, k: int) -> dict[str, Any]:
    """Mean gain of the k of largest gain, from all and from samples."""
    generator = np.random.default_rng(k)
    result: dict[str, Any] = {"all": round(float(np.sort(gains)[-k:].mean()), 5)}
    for each in EACH:
        found = [float(np.sort(generator.choice(gains, each * k, replace=False))[-k:].mean()) for _ in range(TIMES)]
        result[f"{each} k"] = {"mean": round(float(np.mean(found)), 5), "deviation": round(float(np.std(found)), 5)}
    return result


def students() -> None:
    """Accuracy of students that train on what was chosen from samples and from all pairs."""
    sizes = {"10 k": 3000, "50 k": 15_000, "all": "all"}
    names, seeds = ("active-mixup",), range(5)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(name, pairs, seed, folder) for seed in seeds for name in names for pairs in sizes.values()]
        found = dict(zip(tasks, in_parallel(one_run, tasks), strict=True))
        figures = {
            name: {size: summary([found[name, pairs, seed, folder] for seed in seeds]) for size, pairs in sizes.items()}
            for name in names
        }
    for at in figures.values():
        for figure in at.values():
            less = [a - b for a, b in zip(figure["accuracies"], at["all"]["accuracies"], strict=True)]
            figure |= {"less_all": mean(less), "less_all_standard_error": error(less)}
    keep("sample_students", {"runs_each": len(seeds), "k": 300, **figures})


def one_run(name: str, pairs: int | str, seed: int, folder: str) -> tuple[float, float]:
    """Accuracy, and mean score of the chosen."""
    path = Path(folder) / f"{name}-{pairs}-{seed}"
    config = config_of(200, 500, seed, f"select.strategy={name}", f"pool.pairs={pairs}")
    accuracy = run(config, RunDirectory(path), local=True).history[-1].student_accuracy
    return accuracy, float(np.mean(pq.read_table(path / "rounds/001/candidates.parquet")["score"].to_numpy()))


def summary(results: list[tuple[float, float]]) -> dict[str, Any]:
    """Means over the seeds, the standard error of the accuracy, and all accuracies."""
    accuracies = [accuracy for accuracy, _ in results]
    return {
        "accuracy": mean(accuracies),
        "standard_error": error(accuracies),
        "score": mean([score for _, score in results]),
        "accuracies": accuracies,
    }


if __name__ == "__main__":
    main()
