"""All figures of a machine with one GPU, without Ray: scoring, training, rendering, and students of CIFAR-10.

    python benchmarks/gpu.py            # all of it
    python benchmarks/gpu.py check      # students whose steps are replayed, beside the same step by step
    python benchmarks/gpu.py speed
    python benchmarks/gpu.py table1     # AlexNet, CIFAR-10: 2,000 images, 40,000 queries (Active Mixup, Table 1)

speed: for LeNet-5, ResNet-18 and VGG-16, the rate at which a search scores pools of mixes and of pairs as a share of
the bare forward pass in bfloat16; the rate of training as a share of a bare loop of forward and backward passes; and
how many candidates a second a pool renders. It runs on a CPU too (`speed --device cpu --seconds 0.2`), where it is
only a trial. table1: accuracy on the 10,000 test images; needs ../shared/data.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from machine import ROOT, all_runs, keep
from pairs import measured
from student import figures_of, summary

from kdray.config.load import load_config
from kdray.images.base import read_images
from kdray.images.parquet import ParquetImages
from kdray.models.classifier import build_model, pixel_statistics
from kdray.models.predict import accuracy, predict
from kdray.observers.base import Observer
from kdray.pools.base import pools
from kdray.runs.bench import Setting
from kdray.runs.bench_training import measure_training
from kdray.runs.directory import RunDirectory
from kdray.runs.inputs import read_test, resolve
from kdray.runs.run import run
from kdray.runs.teachers import train_by_recipe
from kdray.search.forward import ForwardOptions
from kdray.teachers.recipe import measure_teacher
from kdray.training.loop import train
from kdray.training.recipe import StudentSection
from kdray.utils.seeds import numpy_generator

NETWORKS = {"lenet5": (1, 28, 28), "resnet18": (3, 32, 32), "vgg16": (3, 32, 32)}
POOLS: dict[str, dict[str, Any]] = {
    "mixup": {"kind": "mixup"},
    "affine+cutmix": {"kind": "pairs", "blend": "cutmix", "pre": "affine"},
    "flip-crop+mixup": {"kind": "pairs", "blend": "mixup", "pre": "flip-crop"},
}
IMAGES, RENDERED = 2000, 1 << 16
DATA = "../shared/data"
CHECKED: dict[str, dict[str, Any]] = {
    "LeNet-5": {"model": "lenet5", "augment": "affine", "precision": "float32"},
    "LeNet-5, averaged": {"model": "lenet5", "augment": "affine", "precision": "float32", "ema": 0.99},
    "small-cnn, bfloat16": {"model": "small-cnn", "augment": {"shift": 2}, "precision": "bfloat16"},
    "ResNet-20": {"model": "resnet20", "augment": {"shift": 2}},
    "ResNet-20, which cannot be recorded": {"model": "resnet20", "augment": "standard"},
    "MobileNetV2": {"model": "mobilenetv2", "augment": "affine"},
}
CIFAR10, TEACHER = "examples/cifar10.yaml", "runs/teachers/cifar10-alexnet.safetensors"
ALEXNET = ("teacher.model=alexnet", f"teacher.weights={TEACHER}", "student.loss=cross-entropy")  # then the default
WAYS = {
    "mixup, random": ("select={strategy: random}",),
    "mixup, cluster-margin": (),
    "flip-crop, cutmix, margin": ("pool={kind: pairs, blend: cutmix, pre: flip-crop}", "select.strategy=margin"),
}


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("check", "speed", "table1"), help="all, unless one is named")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, about")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="of table1")
    parser.add_argument("--at-once", type=int, default=2, help="of table1")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; give --device cpu for a trial")
    if options.what in (None, "check"):
        keep("gpu_check", {name: checked(name, how) for name, how in CHECKED.items()})
    if options.what in (None, "speed"):
        speeds(options)
    if options.what in (None, "table1"):
        keep("gpu_table1", table1(options))


def speeds(options: argparse.Namespace) -> None:
    """Scoring and training of each network, and rendering; kept after each, as the command takes minutes."""
    figures: dict[str, Any] = {"device": options.device}
    for name in NETWORKS:
        figures[name] = speed(name, options)
        keep_of_gpu(figures)
    figures["rendering"] = {name: rendering(name, options) for name in POOLS}
    keep_of_gpu(figures)


def keep_of_gpu(figures: dict[str, Any]) -> None:
    """Keep the figures of a GPU, and print those of a trial."""
    if figures["device"] == "cuda":
        keep("gpu_speed", figures)
    else:
        print(figures, flush=True)


def checked(name: str, how: dict[str, Any]) -> dict[str, Any]:
    """Accuracy, last loss and seconds of a student, step by step and replayed."""
    own = read_images(
        ParquetImages(source="parquet", path=f"{DATA}/mnist-train.parquet", rows="0:3000"),
        generator=numpy_generator(0, "images"),
        with_labels=True,
    )
    labels = torch.as_tensor(own.labels)
    targets = torch.nn.functional.one_hot(labels, 10).float()
    figures: dict[str, Any] = {}
    for graphs in (False, True, False, True):  # the first of each has to load and choose
        recipe = StudentSection.model_validate({"steps": 700, "cuda_graphs": graphs, **how})
        mean, std = pixel_statistics(own.images)
        model = build_model(recipe.model, own.image_shape, 10, seed=0, mean=mean, std=std)
        begin = time.perf_counter()
        result = train(model, own.images[:2010], targets[:2010], recipe, seed=0)
        figures["replayed" if graphs else "step by step"] = {
            "seconds": round(time.perf_counter() - begin, 2),
            "last_loss": round(result.losses[-1], 5),
            "accuracy": round(accuracy(predict(model, own.images[2010:]).argmax(dim=1), labels[2010:]), 4),
        }
    print(name, figures, flush=True)
    return figures


def speed(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Scoring of each pool and training, for one network."""
    shape = NETWORKS[name]
    setting = Setting(
        model=name,
        images=IMAGES,
        shape=shape,
        gpus=1.0 if options.device == "cuda" else 0.0,
        options=ForwardOptions(precision="bfloat16"),
    )
    scoring = {
        kind: measured(setting, pools.parse(section), options.seconds, options.repeats)
        for kind, section in POOLS.items()
    }
    training = {}
    for augment in ("none", "affine"):
        recipe = StudentSection(model=name, augment=augment, batch_size=128, device=options.device)
        found = measure_training(recipe, shape, seconds=options.seconds, repeats=options.repeats)
        training[augment] = {
            "images_per_s": round(found.images_per_s),
            "bare_per_s": round(found.bare_per_s),
            "share": round(found.share, 3),
        }
    print(name, scoring, training, flush=True)
    return {"shape": shape, "scoring": scoring, "training": training}


def rendering(name: str, options: argparse.Namespace) -> dict[str, int]:
    """Candidates a second of 28x28 and of 3x32x32, the first time and after that."""
    rates = {}
    for shape in ((1, 28, 28), (3, 32, 32)):
        images = torch.randint(0, 256, (IMAGES, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        pool = pools.parse(POOLS[name]).build(images, 0).to(options.device)
        ids = torch.randint(0, len(pool), (RENDERED,), generator=torch.Generator().manual_seed(1))
        seconds = []
        for _ in range(1 + options.repeats):
            begin = time.perf_counter()
            int(pool.render(ids)[-1].sum())  # waits for the GPU
            seconds.append(time.perf_counter() - begin)
        size = "x".join(map(str, shape))
        rates[f"{size}, first time"] = round(RENDERED / seconds[0])
        rates[size] = round(RENDERED / statistics.median(seconds[1:]))
    return rates


def table1(options: argparse.Namespace) -> dict[str, Any]:
    """The row CIFAR-10 of Active Mixup's Table 1."""
    train_alexnet()
    with tempfile.TemporaryDirectory() as folder:
        found = all_runs("gpu_runs", one_run, all_tasks(range(options.seeds)), options.at_once, folder)
    return {name: summary([found[name, seed] for seed in range(options.seeds)]) for name in WAYS} | {
        "teacher_accuracy": teacher_accuracy()
    }


def train_alexnet() -> None:
    """Train the teacher, unless it is there."""
    if not (ROOT / TEACHER).exists():
        train_by_recipe(load_config(ROOT / CIFAR10, ALEXNET), force=False, observer=Observer())


def teacher_accuracy() -> float:
    """On the test images."""
    config = resolve(load_config(ROOT / CIFAR10, ALEXNET))
    test = read_test(config)
    assert test is not None
    return measure_teacher(config.teacher, test)


def all_tasks(seeds: Iterable[int]) -> list[tuple]:
    """Arguments of `one_run`."""
    return [(name, seed) for seed in seeds for name in WAYS]


def one_run(name: str, seed: int, folder: str) -> dict[str, float]:
    """A run of 2,000 images and 40,000 queries."""
    config = load_config(
        ROOT / CIFAR10, [*ALEXNET, *WAYS[name], f"seed={seed}", "budget.queries=40000", "student.steps_factor=1"]
    )
    return figures_of(run(config, RunDirectory(Path(folder) / f"{name}-{seed}"), local=True).history)


if __name__ == "__main__":
    main()
