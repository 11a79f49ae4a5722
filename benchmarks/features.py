"""Choosing by features beside an active-learning library: k-center greedy on a LeNet-5's features of MNIST.

    pip install scikit-activeml
    python benchmarks/features.py

Not in `make bench`, as kdray does not need that library. Each way runs in a process of its own, in turn: the same
features of 20,000 images, 200 of them labelled, k = 1,000. kdray uses one thread, so that its choice never depends on
their number, and the library as many as it likes. Needs ../shared/data.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import keep

HERE = Path(__file__).parents[1]
IMAGES, LABELLED, K, RUNS = 20_000, 200, 1_000, 3


def main() -> None:
    """Both ways, three times in turn."""
    found: dict[str, list[dict]] = {"kdray": [], "scikit-activeml": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        make_features(path)
        for _ in range(RUNS):
            for way, runs in found.items():
                command = [sys.executable, __file__, way, str(path)]
                runs.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        features = np.load(path)
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(*found.values(), strict=True)]
    figures = {
        way: {
            "seconds": round(statistics.median(run["seconds"] for run in runs), 2),
            "farthest": round(farthest(features, runs[0]["rows"]), 3),
        }
        for way, runs in found.items()
    }
    same = len(set(found["kdray"][0]["rows"]) & set(found["scikit-activeml"][0]["rows"])) / K
    about = {"images": IMAGES, "labelled": LABELLED, "dimensions": features.shape[1], "k": K, "runs_each": RUNS}
    keep(
        "features",
        {
            **about,
            **figures,
            "kdray_is_so_many_times_as_fast": round(statistics.median(ratios), 1),
            "least_and_most": [round(min(ratios), 1), round(max(ratios), 1)],
            "chosen_by_both": round(same, 3),
        },
    )


def make_features(path: Path) -> None:
    """Penultimate features, float32 [20,000, 84], of a student of 200 MNIST images; the first 200 are those."""
    import torch

    from kdray.images.base import read_images
    from kdray.images.parquet import ParquetImages
    from kdray.models.classifier import build_model, pixel_statistics
    from kdray.models.features import penultimate
    from kdray.training.loop import train
    from kdray.training.recipe import StudentSection
    from kdray.utils.seeds import numpy_generator

    os.chdir(HERE)
    where = ParquetImages(source="parquet", path="../shared/data/mnist-train.parquet", count=IMAGES)
    data = read_images(where, generator=numpy_generator(0, "images"), with_labels=True)
    few = data.images[:LABELLED]
    mean, std = pixel_statistics(few)
    model = build_model("lenet5", data.image_shape, 10, seed=0, mean=mean, std=std)
    targets = torch.nn.functional.one_hot(torch.as_tensor(data.labels[:LABELLED]), 10).float()
    train(model, few, targets, StudentSection(epochs=20), seed=0, threads=1)
    with torch.inference_mode():
        parts = [penultimate(model.eval(), part) for part in data.images.split(500)]
    np.save(path, torch.cat(parts).numpy())


def farthest(features: np.ndarray, rows: list[int]) -> float:
    """The objective: how far the image that is worst off lies from its nearest labelled or chosen one."""
    near = np.full(len(features), np.inf)
    for row in [*range(LABELLED), *(LABELLED + row for row in rows)]:
        near = np.minimum(near, np.square(features - features[row]).sum(axis=1))
    return float(np.sqrt(near.max()))


def one(way: str, path: str) -> None:
    """Choose, and print which and how long it took."""
    features = np.load(path)
    if way == "kdray":
        from kdray.select.strategies.coreset import k_center_greedy

        k_center_greedy(features[:300], features[:1], 1)  # what is made once, such as threads
        begin = time.perf_counter()
        rows = k_center_greedy(features[LABELLED:], features[:LABELLED], K)
    else:
        from skactiveml.pool import CoreSet

        labels = np.full(len(features), np.nan)
        labels[:LABELLED] = 0
        CoreSet(random_state=0).query(features[:300], labels[:300], batch_size=1)
        begin = time.perf_counter()
        rows = CoreSet(random_state=0).query(features, labels, batch_size=K) - LABELLED
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "rows": np.asarray(rows).tolist()}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        one(*sys.argv[1:])
    else:
        main()
