"""All figures of a machine with one GPU, without Ray: scoring, training, rendering, and students of CIFAR-10.

    python benchmarks/gpu.py                  # ten minutes or so
    python benchmarks/gpu.py --only speed     # speed, students: one of the two parts

speed: for LeNet-5, ResNet-18 and VGG-16, the rate at which a search scores pools of mixes and of pairs as a share of
the bare forward pass in bfloat16; the rate of training as a share of a bare loop of forward and backward passes; and
how many candidates a second a pool renders. students: the rows of CIFAR-10, as `benchmarks/student.py cifar10` has
them; they need ../shared/data. It runs on a CPU too (`--device cpu --seconds 0.2`), where it is only a trial.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from machine import keep
from pairs import measured

from kdray.pools.base import pools
from kdray.runs.bench import Setting
from kdray.runs.bench_training import measure_training
from kdray.search.forward import ForwardOptions
from kdray.training.recipe import StudentSection

NETWORKS = {"lenet5": (1, 28, 28), "resnet18": (3, 32, 32), "vgg16": (3, 32, 32)}
POOLS: dict[str, dict[str, Any]] = {
    "mixup": {"kind": "mixup"},
    "affine+cutmix": {"kind": "pairs", "blend": "cutmix", "pre": "affine"},
    "flip-crop+mixup": {"kind": "pairs", "blend": "mixup", "pre": "flip-crop"},
}
IMAGES, RENDERED = 2000, 1 << 16


def main() -> None:
    """Measure and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("speed", "students"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, about")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; give --device cpu for a trial")
    figures: dict[str, Any] = {"device": options.device}
    if options.only != "students":
        figures |= {name: speed(name, shape, options) for name, shape in NETWORKS.items()}
        figures["rendering"] = {name: rendering(name, options) for name in POOLS}
    if options.only != "speed":
        figures["students"] = students(options)
    if options.device == "cuda":
        keep("gpu", figures)
    else:
        print(figures)


def speed(name: str, shape: tuple[int, int, int], options: argparse.Namespace) -> dict[str, Any]:
    """Scoring of each pool and training, for one network."""
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


def students(options: argparse.Namespace) -> dict[str, Any]:
    """CIFAR-10 as benchmarks/student.py has it."""
    import tempfile

    from student import CIFAR10, one_run, summary

    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in CIFAR10.items():
            how = (*changes, f"student.device={options.device}")
            found = [one_run("benchmarks/cifar10-small.yaml", 2000, 8000, seed, how, folder) for seed in range(3)]
            figures[name] = summary(found)
            print(name, figures[name], flush=True)
    return figures


if __name__ == "__main__":
    main()
