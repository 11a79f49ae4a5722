"""MIX-KD for black-box answers: temperature 4 and rescaled logits, each with partial mixup, and how robust they are.

    python benchmarks/mixkd.py students [--data mnist] [--answers soft|hard|2]   # the shape of Tables 1, 3 and 4
    python benchmarks/mixkd.py zeros [--data mnist]                              # what a probability that reads 0 is

`students` has four losses: the teacher's labels alone (the paper's "vanilla"), its answers by cross entropy, KD at
temperature 4, and rescaled logits. The last two have weights 0.1 and 0.9. Each is trained without mixes, and with 10,
50 and 100 % of them, λ ~ Beta(1, 1). The paper asks the teacher about every mix of every batch. A black box has two
ways:

- bought: that share of the queries goes to mixes instead of images. All students pay for as many queries.
- free: every batch is mixed anew, and a mixed image counts for the classification alone, with the mix of its labels.

Beside the accuracy stand agreement with the teacher, accuracy under FGSM and I-FGSM at the paper's ε (ten times that on
MNIST), V-measure of the features, and entropy of the student's answers. "fgsm, plain" follows the gradient of the cross
entropy itself, which float32 rounds to 0 where a student is very sure; `fgsm` does not depend on that. Each seed draws
its own images, and all students of a seed share them. Students are trained as long as `steps: auto` has it. Two runs at
a time, one thread each. Each finished run is kept, and a benchmark that is started again makes those that are missing.
Needs ../shared/data. --images and --epochs try it in small, and keep no figures.
"""

import argparse
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from machine import ROOT, all_runs, in_parallel, keep

from kdray.images.base import ImageSet, read_images
from kdray.images.parquet import ParquetImages
from kdray.models.checkpoint import ModelCard, load_student, save_model
from kdray.models.classifier import ImageClassifier, build_model, pixel_statistics
from kdray.models.features import penultimate
from kdray.models.predict import accuracy, predict
from kdray.models.robustness import EPSILONS, fgsm, ifgsm, robust_accuracy
from kdray.models.smoothness import mean_entropy, v_measure
from kdray.teachers.answers import AnswerFormat, training_targets
from kdray.training.loop import train
from kdray.training.losses.mixkd import hard_labels
from kdray.training.losses.rescaled import log_answers, rescale, without_zeros
from kdray.training.mix import partial_mixup
from kdray.training.recipe import Recipe, StudentSection
from kdray.utils.devices import resolve_device
from kdray.utils.seeds import numpy_generator, torch_generator

DATA = ROOT.parent / "shared" / "data"
SIZES: dict[str, dict[str, Any]] = {  # student images are drawn from rows that the teacher has not seen
    "cifar10": {
        "network": "small-cnn",
        "teacher": {"rows": "0:40000", "epochs": 20},
        "student": {"rows": "40000:50000", "images": 5000},
        "augment": {"shift": 2, "flip": True},
        "eps": EPSILONS,
    },
    "mnist": {
        "network": "lenet5",
        "teacher": {"rows": "0:30000", "epochs": 15},
        "student": {"rows": "30000:60000", "images": 1000},
        "augment": {"shift": 2},
        "eps": tuple(10 * eps for eps in EPSILONS),
    },
}
LOSSES: dict[str, dict[str, Any]] = {
    "labels": {"kind": "mix-kd", "gamma": 1.0, "alpha": 0.0, "divergence": "kl"},
    "answers": {"kind": "cross-entropy"},
    "KD, temperature 4": {"kind": "mix-kd", "divergence": "kl", "temperature": 4.0},
    "rescaled": {"kind": "mix-kd", "divergence": "rescaled"},
}
SHARES = (0.1, 0.5, 1.0)
WAYS = (("none", 0.0), *((mixes, share) for mixes in ("bought", "free") for share in SHARES))
ALPHA = 1.0
ATTACKED = 1000  # test images that are attacked, and whose features are clustered
ZEROS = (0.02, 0.005, 0.001, 5e-4, 1e-4, 1e-5, 1e-6)


def main() -> None:
    """What is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("students", "zeros"))
    parser.add_argument("--data", choices=tuple(SIZES), default="cifar10")
    parser.add_argument("--answers", choices=("soft", "hard", "2"), default="soft", help="2: two decimals")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--images", type=int)
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args()
    teacher = teacher_file(options.data, options.epochs)
    [teacher_accuracy] = in_parallel(train_teacher, [(options.data, teacher, options.epochs)], 1)
    figures = {"teacher_accuracy": round(teacher_accuracy, 4)}
    figures |= (students if options.what == "students" else zeros)(options, teacher)
    if options.images or options.epochs:
        print(json.dumps(figures, indent=2))
    else:
        answers = "" if options.what == "zeros" or options.answers == "soft" else f"_{options.answers}"
        keep(f"mixkd_{options.what}_{options.data}{answers}", figures)
    if options.what == "students":
        middle = f"ifgsm {SIZES[options.data]['eps'][2]:g}"
        print(table(figures, "accuracy"), table(figures, middle), sep="\n\n")


# Students


def students(options: argparse.Namespace, teacher: Path) -> dict[str, Any]:
    """Each loss with each share of mixes: means and standard errors over the seeds."""
    seeds = range(options.seeds)
    tasks = all_tasks(options.data, options.answers, seeds)
    small = options.images, options.epochs
    if any(small):
        made = in_parallel(one_student, [(*task, teacher, *small) for task in tasks], options.at_once)
        kept = dict(zip(tasks, made, strict=True))
    else:
        kept = all_runs("mixkd_runs", one_student, tasks, options.at_once, teacher)
    found = {tuple(cell): kept[data, answers, *cell] for data, answers, *cell in tasks}
    figures = {}
    for loss in LOSSES:
        for mixes, share in WAYS:
            some = [found[loss, mixes, share, seed] for seed in seeds]
            figures[f"{loss}; {mixes} {share:.0%}"] = {name: summary([one[name] for one in some]) for name in some[0]}
    return {"runs_each": options.seeds, "students": figures}


def all_tasks(data: str, answers: str, seeds: Iterable[int]) -> list[tuple]:
    """Arguments of `one_student`, all of a seed beside each other."""
    return [(data, answers, loss, *way, seed) for seed in seeds for loss in LOSSES for way in WAYS]


def one_student(
    data: str, answers: str, loss: str, mixes: str, share: float, seed: int,
    teacher: Path, count: int | None = None, epochs: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """All that is measured of one student."""
    size, test = SIZES[data], read(data, "test")
    images = read(data, "train", size["student"]["rows"], count or size["student"]["images"], seed).images
    if mixes == "bought":
        nothing = torch.zeros(len(images), 1)
        images, _, _ = partial_mixup(images, nothing, share, ALPHA, torch_generator(seed, "mixes"))
    asked = load_student(teacher)
    form = AnswerFormat(kind="hard" if answers == "hard" else "soft", decimals=2 if answers == "2" else None)
    targets = training_targets(form.apply(predict(asked, images)))
    in_batches = share if mixes == "free" else 0.0
    model = train_student(data, images, targets, LOSSES[loss], in_batches, epochs, seed)

    truth = torch.as_tensor(test.labels)
    attacked = min(ATTACKED, count or ATTACKED)
    device = resolve_device("auto")
    probs, some, classes = predict(model, test.images, device=str(device)), test.images[:attacked], truth[:attacked]
    with torch.inference_mode():
        features = torch.cat([penultimate(model, part.to(device)).cpu() for part in some.split(256)])
    figure = {
        "accuracy": accuracy(probs.argmax(dim=1), truth),
        "agreement": accuracy(probs.argmax(dim=1), predict(asked, test.images).argmax(dim=1)),
        "entropy": mean_entropy(probs),
        "v_measure": v_measure(features, classes, int(truth.max()) + 1, seed),
    }
    for name, attack in (("fgsm", fgsm), ("ifgsm", ifgsm), ("fgsm, plain", plain_fgsm)):
        found = robust_accuracy(model, some, classes, size["eps"], attack)
        figure |= {f"{name} {eps:g}": value for eps, value in found.items()}
    return figure


def plain_fgsm(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, eps: float) -> torch.Tensor:
    """FGSM by the gradient of the cross entropy, as it is usually written."""
    pixels = (images.float() / 255).requires_grad_()
    loss = torch.nn.functional.cross_entropy(model(255 * pixels), labels, reduction="sum")
    return (pixels + eps * torch.autograd.grad(loss, pixels)[0].sign()).detach().clamp(0, 1)


def train_student(
    data: str,
    images: torch.Tensor,
    targets: torch.Tensor,
    loss: dict[str, Any],
    share: float,
    epochs: int | None,
    seed: int,
) -> ImageClassifier:
    """A student of the answers; `share` of each batch is mixed anew. The one place that knows the student's recipe."""
    size = SIZES[data]
    mix = {"share": share, "alpha": ALPHA} if share else None
    how = {"loss": loss, "augment": size["augment"], "mix": mix, "precision": "float32"}
    recipe = StudentSection.model_validate({"model": size["network"], "epochs": epochs, **how})
    mean, std = pixel_statistics(images)
    model = build_model(recipe.model, tuple(images.shape[1:]), targets.shape[1], seed=seed, mean=mean, std=std)
    train(model, images, targets, recipe, seed=seed, threads=1)
    return model


# What a probability that reads 0 is


def zeros(options: argparse.Namespace, teacher: Path) -> dict[str, Any]:
    """How far the rescaled answers in two to four decimals lie from those in full, by what a zero counts as.

    The distance is the Kullback-Leibler divergence of one from the other, in nats; beside it stand the labels alone.
    """
    size = SIZES[options.data]
    rows = options.images or size["student"]["images"]
    images = read(options.data, "train", size["student"]["rows"], rows, 0).images
    mixes, _, _ = partial_mixup(images, torch.zeros(len(images), 1), 1.0, ALPHA, torch_generator(0, "mixes"))
    figures: dict[str, Any] = {}
    for name, some in (("images", images), ("mixes", mixes)):
        full = predict(load_student(teacher), some)
        figures[name] = {"labels": apart(full, hard_labels(full), ZEROS[0])}
        for decimals in (2, 3, 4):
            rounded = training_targets(AnswerFormat(decimals=decimals).apply(full))
            figures[name][f"{decimals} decimals"] = {
                "share_of_zeros": round(float((rounded == 0).float().mean()), 3),
                **{f"{zero:g}": apart(full, rounded, zero) for zero in ZEROS},
            }
    return figures


def apart(full: torch.Tensor, shown: torch.Tensor, zero: float) -> float:
    """Mean divergence of the rescaled answers `shown` from those in full."""
    log_p, log_q = (rescale(without_zeros(log_answers(some), zero)).log_softmax(dim=1) for some in (full, shown))
    return round(float((log_p.exp() * (log_p - log_q)).sum(dim=1).mean()), 4)


# Data, teacher, summaries


def train_teacher(data: str, path: Path, epochs: int | None) -> float:
    """Train the teacher on true labels and write it, unless it is there; its accuracy."""
    size, test = SIZES[data], read(data, "test")
    if path.exists():
        return accuracy(predict(load_student(path), test.images).argmax(dim=1), torch.as_tensor(test.labels))
    path.parent.mkdir(parents=True, exist_ok=True)
    own = read(data, "train", size["teacher"]["rows"])
    mean, std = pixel_statistics(own.images)
    model = build_model(size["network"], own.image_shape, 10, seed=0, mean=mean, std=std)
    epochs = epochs or size["teacher"]["epochs"]
    recipe = Recipe(epochs=epochs, augment=size["augment"], clip_norm=5.0, precision="float32")
    targets = torch.nn.functional.one_hot(torch.as_tensor(own.labels), 10).float()
    train(model, own.images, targets, recipe, seed=0, threads=1)
    save_model(path, model, ModelCard(model=size["network"], image_shape=own.image_shape, num_classes=10))
    return accuracy(predict(model, test.images).argmax(dim=1), torch.as_tensor(test.labels))


def teacher_file(data: str, epochs: int | None = None) -> Path:
    """Where the teacher's weights are."""
    short = f"-{epochs}-epochs" if epochs else ""
    return ROOT / "runs" / "teachers" / f"mixkd-{data}{short}.safetensors"


def read(data: str, part: str, rows: str | None = None, count: int | None = None, seed: int = 0) -> ImageSet:
    """Images with their labels."""
    where = ParquetImages(source="parquet", path=f"{DATA}/{data}-{part}.parquet", rows=rows, count=count)
    return read_images(where, generator=numpy_generator(seed, "images"), with_labels=True)


def summary(values: list[float]) -> dict[str, float]:
    """Mean and standard error; a single value has none."""
    mean = {"mean": round(statistics.mean(values), 4)}
    if len(values) < 2:
        return mean
    return mean | {"standard_error": round(statistics.stdev(values) / len(values) ** 0.5, 4)}


def table(figures: dict[str, Any], name: str) -> str:
    """One figure of all students, as a table of losses and shares, in percent."""
    columns = {"0 %": "none 0%"} | {f"{m}, {100 * s:.0f} %": f"{m} {s:.0%}" for m in ("bought", "free") for s in SHARES}
    found = figures["students"]
    columns = {head: way for head, way in columns.items() if f"labels; {way}" in found}
    lines = [f"| {name} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for loss in LOSSES:
        cells = [found[f"{loss}; {way}"][name] for way in columns.values()]
        shown = (f"{100 * c['mean']:.2f} ± {100 * c.get('standard_error', 0):.2f}" for c in cells)
        lines.append(f"| {loss} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
