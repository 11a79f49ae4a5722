"""How long a student should be trained: accuracy against optimisation steps, for 300 to 30,000 answers.

    python benchmarks/steps.py mnist      # LeNet-5, 200 images and random candidates of them
    python benchmarks/steps.py cifar10    # small-cnn, 1,000 images and random candidates of them
    python benchmarks/steps.py mnist-cnn | cifar10-lenet5    # the network of the other, 1,000 answers alone

Each seed draws its own images, and all lengths share its answers. Accuracy is that on labelled images which are neither
test images nor the student's: what is decided here is measured elsewhere. "enough" is the least number of steps that
lies within a standard error of the best. Each finished training is kept, and a study that is started again goes on with
those that are missing. Needs ../shared/data and the teacher of the config.
"""

import argparse
import statistics
from collections.abc import Iterable
from typing import Any

import torch
from machine import ROOT, all_runs, keep
from torch import Tensor, nn

from kdray.config.load import load_config
from kdray.images.base import read_images
from kdray.models.checkpoint import load_student
from kdray.models.classifier import ImageClassifier, build_model, pixel_statistics
from kdray.models.predict import accuracy, predict
from kdray.training.length import auto_steps
from kdray.training.loop import train
from kdray.training.recipe import StudentSection
from kdray.utils.seeds import numpy_generator, torch_generator

SETTINGS: dict[str, dict[str, Any]] = {
    "mnist": {
        "config": "examples/mnist.yaml",
        "rows": "0:50000",
        "unseen": "50000:60000",
        "images": 200,
        "pool": "pool={kind: pairs, blend: cutmix, pre: affine}",
        "student": {"model": "lenet5", "augment": "affine"},
        "steps": {
            300: (250, 500, 1000, 2000, 4000),
            1000: (250, 500, 1000, 2000, 4000),
            3000: (500, 1000, 2000, 4000, 8000),
            10_000: (1000, 2000, 4000, 8000),
            30_000: (2000, 4000, 8000, 16_000),
        },
    },
    "cifar10": {
        "config": "benchmarks/cifar10-small.yaml",
        "rows": "30000:45000",
        "unseen": "45000:50000",
        "images": 1000,
        "pool": "pool={kind: mixup}",
        "student": {"model": "small-cnn", "augment": {"kind": "crop", "shift": 4, "flip": True}},
        "steps": {
            1000: (500, 1000, 2000, 4000, 8000),
            3000: (500, 1000, 2000, 4000),
            10_000: (1000, 2000, 4000, 8000),
        },
    },
}
SETTINGS["mnist-cnn"] = SETTINGS["mnist"] | {
    "student": {"model": "small-cnn", "augment": "affine"},
    "steps": {1000: (1000, 2000, 4000)},
}
SETTINGS["cifar10-lenet5"] = SETTINGS["cifar10"] | {
    "student": SETTINGS["cifar10"]["student"] | {"model": "lenet5"},
    "steps": {1000: (1000, 2000, 4000, 8000)},
}


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=tuple(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    lengths = SETTINGS[options.data]["steps"]
    tasks = all_tasks(options.data, range(options.seeds))
    found = all_runs("steps_runs", one, tasks, options.at_once)
    figures: dict[str, Any] = {"runs_each": options.seeds, **SETTINGS[options.data]["student"]}
    for answers, some in lengths.items():
        each = {steps: [found[options.data, answers, steps, seed] for seed in range(options.seeds)] for steps in some}
        table = {steps: summary(values) for steps, values in each.items()}
        best = max(table.values(), key=lambda one: one["accuracy"])
        enough = min(s for s, one in table.items() if best["accuracy"] - one["accuracy"] <= best["standard_error"])
        figures[f"{answers} answers"] = {"steps": table, "enough": enough, "auto": auto_steps(answers)}
    keep(f"steps_{options.data}", figures)


def all_tasks(data: str, seeds: Iterable[int]) -> list[tuple]:
    """Arguments of `one`."""
    lengths = SETTINGS[data]["steps"].items()
    return [(data, answers, steps, seed) for seed in seeds for answers, some in lengths for steps in some]


def one(data: str, answers: int, steps: int, seed: int) -> float:
    """Accuracy of a student of so many random answers, trained for so many steps."""
    setting = SETTINGS[data]
    images, targets, own = answered(setting, answers, seed)
    recipe = StudentSection.model_validate(setting["student"] | {"steps": steps, "precision": "float32"})
    return accuracy_on_unseen(setting, trained(recipe, images, targets, own, seed))


def trained(recipe: StudentSection, images: Tensor, targets: Tensor, own: Tensor, seed: int) -> ImageClassifier:
    """A student of these answers, which knows the pixel statistics of its own images."""
    mean, std = pixel_statistics(own)
    model = build_model(recipe.model, (*own.shape[1:],), targets.shape[1], seed=seed, mean=mean, std=std)
    train(model, images, targets, recipe, seed=seed, threads=1)
    return model


def answered(setting: dict[str, Any], answers: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """So many images, uint8 [N, C, H, W], and the teacher's answers, float32 [N, K]: first the student's own, which are
    given again, then random candidates."""
    config = load_config(ROOT / setting["config"], [setting["pool"], f"seed={seed}"])
    source = config.images.model_copy(update={"rows": setting["rows"], "count": setting["images"]})
    own = read_images(source, generator=numpy_generator(seed, "images"))
    pool = config.pool.build(own.images, seed)
    ids = torch.randperm(pool.num_groups, generator=torch_generator(seed, "candidates"))[: answers - len(own)]
    if len(ids) < answers - len(own):  # more than there are pairs: several of each
        ids = torch.randperm(len(pool), generator=torch_generator(seed, "candidates"))[: answers - len(own)]
    else:
        ids = ids * pool.group_size + pool.middle()
    images = torch.cat([own.images, pool.render(ids)])
    return images, predict(load_student(config.teacher.weights), images), own.images


def accuracy_on_unseen(setting: dict[str, Any], model: nn.Module) -> float:
    """Accuracy on labelled images that are neither test images nor the student's."""
    config = load_config(ROOT / setting["config"])
    unseen = read_images(
        config.images.model_copy(update={"rows": setting["unseen"], "count": None}),
        generator=numpy_generator(0, "unseen"),
        with_labels=True,
    )
    return accuracy(predict(model, unseen.images).argmax(dim=1), unseen.true_labels)


def summary(values: list[float]) -> dict[str, float]:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {"accuracy": round(statistics.mean(values), 5), "standard_error": round(error, 5)}


if __name__ == "__main__":
    main()
