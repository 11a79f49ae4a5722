"""`kdray bench train`: how fast a network is trained, compared with a bare loop of forward and backward passes.

The bare loop has one batch in memory, no optimiser and no augmentation: it is the upper limit. Both are measured in
turn, several times, so that other load on the machine slows both.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from kdray.models.base import find_model
from kdray.models.classifier import build_model
from kdray.training.loop import precision_of, train
from kdray.training.losses import soft_cross_entropy
from kdray.training.recipe import StudentSection
from kdray.utils.devices import auto_threads, cpu_threads, resolve_device
from kdray.utils.text import counted

_CLASSES = 10
_BATCHES = 8  # of the labelled set


@dataclass(frozen=True, kw_only=True)
class TrainingSpeed:
    """The rates measured.

    Attributes:
        images_per_s: of `kdray.training.loop.train`; median.
        bare_per_s: of the bare loop; median.
        share: images_per_s / bare_per_s of measurements in pairs; median.
        threads: CPU threads of both.
        device: of both.
    """

    images_per_s: float
    bare_per_s: float
    share: float
    threads: int
    device: str


def measure_training(
    recipe: StudentSection,
    shape: tuple[int, int, int],
    *,
    seconds: float = 5.0,
    repeats: int = 3,
    tell: Callable[[str], None] = lambda text: None,
) -> TrainingSpeed:
    """Measure how fast `recipe` trains its network on images (C, H, W).

    Args:
        seconds: of each measurement, about.
        repeats: measurements of each kind.
        tell: called with a line after each pair of measurements.

    Raises:
        ConfigError: the augmentation does not fit the images, or there is no such device.
        ModelError: the network is unknown, or cannot take images of this shape.
    """
    recipe.augment.check(shape)
    device, threads = resolve_device(recipe.device), auto_threads(find_model(recipe.model).light)
    count = recipe.batch_size * _BATCHES
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, *shape), generator=generator, dtype=torch.uint8)
    targets = torch.randn(count, _CLASSES, generator=generator).softmax(dim=1)
    model = build_model(recipe.model, shape, _CLASSES, seed=0)

    def trained(steps: int) -> float:
        begin = time.perf_counter()
        train(model, images, targets, recipe.model_copy(update={"steps": steps, "epochs": None}), seed=0)
        return steps * recipe.batch_size / (time.perf_counter() - begin)

    def bare(steps: int) -> float:
        batch = images[: recipe.batch_size].to(device), targets[: recipe.batch_size].to(device)
        model.to(device).to(memory_format=torch.channels_last).train()
        network: nn.Module = torch.compile(model) if recipe.compile else model  # type: ignore[assignment]
        _forward_and_backward(network, *batch, precision_of(recipe, device))
        begin = time.perf_counter()
        for _ in range(steps):
            loss = _forward_and_backward(network, *batch, precision_of(recipe, device))
        float(loss)  # a GPU works asynchronously
        return steps * recipe.batch_size / (time.perf_counter() - begin)

    with cpu_threads(threads):
        trained(1)
        first = time.perf_counter()
        bare(3)
        steps = max(4, round(seconds * 3 / (time.perf_counter() - first)))
        rates = []
        for number in range(repeats):
            rates.append((trained(steps), bare(steps)))
            tell(
                f"measurement {number + 1} of {repeats}: {rates[-1][0]:,.0f} images/s, bare loop {rates[-1][1]:,.0f}/s"
            )
    return TrainingSpeed(
        images_per_s=statistics.median(found for found, _ in rates),
        bare_per_s=statistics.median(limit for _, limit in rates),
        share=statistics.median(found / limit for found, limit in rates),
        threads=threads,
        device=str(device),
    )


def _forward_and_backward(
    network: nn.Module,
    images: torch.Tensor,
    targets: torch.Tensor,
    precision: AbstractContextManager[object],
) -> torch.Tensor:
    with precision:
        loss = soft_cross_entropy(network(images.contiguous(memory_format=torch.channels_last)), targets)
    loss.backward()
    for parameter in network.parameters():
        parameter.grad = None
    return loss.detach()


def training_lines(recipe: StudentSection, shape: tuple[int, int, int], speed: TrainingSpeed) -> list[tuple[str, str]]:
    """The measurements as rows (name, value)."""
    size, threads = "x".join(map(str, shape)), counted(speed.threads, "thread")
    return [
        ("student", f"{recipe.model} at {size}, batches of {recipe.batch_size}, augmentation {recipe.augment.kind}"),
        ("device", speed.device if speed.device != "cpu" else f"cpu, {threads}"),
        (
            "training",
            f"{speed.images_per_s:,.0f} images/s, {speed.share:.1%} of {speed.bare_per_s:,.0f} of a bare loop of "
            "forward and backward passes",
        ),
    ]
