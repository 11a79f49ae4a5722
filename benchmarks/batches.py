"""What the last mini-batch of an epoch costs: batches of one size beside full ones and a rest.

    python benchmarks/batches.py [--seeds 8]

A LeNet-5 of CIFAR-10's true labels; each seed draws its own images, which both ways share. Two runs at a time, one
thread each. Needs ../shared/data.
"""

import argparse
import statistics
import sys
from unittest.mock import patch

import torch
from machine import in_parallel, keep

from kdray.images.base import ImageSet, read_images
from kdray.images.parquet import ParquetImages
from kdray.models.classifier import build_model, pixel_statistics
from kdray.models.predict import accuracy, predict
from kdray.training.loop import train
from kdray.training.recipe import StudentSection
from kdray.utils.seeds import numpy_generator

COUNTS = (2500, 2524, 2560)  # a rest of 4, of 28, and none of 64
BATCH = 64


def main() -> None:
    """Every count, both ways; mean and standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    seeds = range(parser.parse_args().seeds)
    tasks = [(count, even, seed) for count in COUNTS for seed in seeds for even in (True, False)]
    found = dict(zip(tasks, in_parallel(one, tasks), strict=True))
    figures = {}
    for count in COUNTS:
        for even in (True, False):
            some = [found[count, even, seed] for seed in seeds]
            figures[f"{count} images, {'even' if even else f'a rest of {count % BATCH}'}"] = {
                "accuracy": round(statistics.mean(some), 4),
                "standard_error": round(statistics.stdev(some) / len(some) ** 0.5, 4),
            }
    keep("batches", {"runs_each": len(seeds), **figures})


def one(count: int, even: bool, seed: int) -> float:
    """Accuracy of one student."""
    data, test = read("train", seed, count), read("test", 0, None)
    mean, std = pixel_statistics(data.images)
    model = build_model("lenet5", data.image_shape, 10, seed=seed, mean=mean, std=std)
    targets = torch.nn.functional.one_hot(torch.as_tensor(data.labels), 10).float()
    recipe = StudentSection(epochs=20, batch_size=BATCH, augment={"shift": 2, "flip": True})
    if even:
        train(model, data.images, targets, recipe, seed=seed, threads=1)
    else:
        with patch.object(sys.modules["kdray.training.loop"], "_batch_edges", usual):  # the package has a train, too
            train(model, data.images, targets, recipe, seed=seed, threads=1)
    return accuracy(predict(model, test.images).argmax(dim=1), torch.as_tensor(test.labels))


def usual(count: int, batch_size: int) -> list[int]:
    """Boundaries of full batches and a rest."""
    return [*range(0, count, batch_size), count]


def read(part: str, seed: int, count: int | None) -> ImageSet:
    """Images of CIFAR-10 with their labels."""
    where = ParquetImages(source="parquet", path=f"../shared/data/cifar10-{part}.parquet", count=count)
    return read_images(where, generator=numpy_generator(seed, "images"), with_labels=True)


if __name__ == "__main__":
    main()
