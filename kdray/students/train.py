"""Training a classifier on a labelled set that fits the device: no DataLoader, no copy an epoch."""

import math
import os
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from kdray.errors import ConfigError
from kdray.seeds import torch_generator, torch_seed
from kdray.students.augment import random_flip, random_shift
from kdray.students.losses import kd_divergence, soft_cross_entropy
from kdray.students.models import LIGHT


@dataclass(kw_only=True)
class TrainResult:
    """What training did.

    Attributes:
        losses: mean training loss of each epoch.
        holdout_losses: loss on the held-out part after each epoch; empty without early stopping.
        best_epoch: the epoch whose weights were kept, counted from 1.
    """

    losses: list[float] = field(default_factory=list)
    holdout_losses: list[float] = field(default_factory=list)
    best_epoch: int = 0


def resolve_device(name: str, field: str = "device") -> torch.device:
    """auto, cpu, cuda or cuda:N, the value of the config field `field`, to a device that is there.

    Raises:
        ConfigError: a GPU is named that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= count:
            raise ConfigError(f"{field}: {name!r} is set, but this machine has {count} usable GPUs; use auto or cpu")
    return torch.device(name)


def auto_threads(model: str | None) -> int:
    """CPU threads for a network of the zoo: one for the light ones, else all cores this process may use.

    The steps of a light network are so short that a second thread gains a third at best, and on a machine that does
    anything else it costs several times what it gains: both threads wait for each other at every layer.
    """
    return 1 if model in LIGHT else len(os.sched_getaffinity(0))


@contextmanager
def cpu_threads(count: int | None):
    """Run with `count` CPU threads (results depend on it in the last bits), then set back what was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    recipe: "TrainConfig",  # noqa: F821 - kdray.config.TrainConfig; config imports this package
    *,
    seed: int,
    round: int = 0,
    threads: int | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> TrainResult:
    """Train `model` in place with SGD (Nesterov).

    The same arguments give the same bits on one kind of CPU. Test data has no way in.

    Args:
        model: takes uint8 [B, C, H, W].
        images: uint8 [N, C, H, W].
        targets: float32 [N, K], rows sum to 1.
        recipe: loss, epochs, batch size, rates, augmentation, early stop.
        seed, round: name the random streams of order, augmentation and dropout.
        threads: CPU threads; None leaves the setting alone.
        on_epoch: called with (epochs done, mean loss).
    """
    if recipe.augment.shift >= min(images.shape[2:]):
        raise ConfigError(f"augment.shift: {recipe.augment.shift} pixels do not fit images of {list(images.shape[2:])}")
    device = resolve_device(recipe.device)
    images, targets = images.to(device), targets.to(device)
    model.to(device=device, memory_format=torch.channels_last)
    draw = torch_generator(seed, "training order", round)  # order and split: on CPU, whatever the device
    vary = torch_generator(seed, "augmentation", round, device=device.type)
    kept, held = _split(len(images), recipe, draw)
    images_held, targets_held = images[held.to(device)], targets[held.to(device)]
    kl = partial(kd_divergence, temperature=recipe.temperature)
    criterion = kl if recipe.loss == "kl" else soft_cross_entropy
    descent = _Descent(model, recipe)
    edges = _batch_edges(len(kept), recipe.batch_size)
    steps = recipe.epochs * (len(edges) - 1)
    result, best = TrainResult(), None
    devices = [device] if device.type == "cuda" else []
    with cpu_threads(threads), torch.random.fork_rng(devices=devices):
        torch.manual_seed(torch_seed(seed, "dropout", round))
        for epoch in range(recipe.epochs):
            model.train()
            order = kept[torch.randperm(len(kept), generator=draw)].to(device)
            total = torch.zeros((), device=device)
            for start, stop in pairwise(edges):
                batch = order[start:stop]
                x = random_shift(images[batch], recipe.augment.shift, vary)
                x = random_flip(x, vary) if recipe.augment.flip else x
                loss = criterion(model(x.contiguous(memory_format=torch.channels_last)), targets[batch])
                loss.backward()
                descent.step(recipe.lr * rate_factor(descent.steps, steps, recipe.schedule))
                total += loss.detach() * len(batch)
            result.losses.append(float(total) / len(kept))
            result.best_epoch = epoch + 1
            if on_epoch is not None:
                on_epoch(epoch + 1, result.losses[-1])
            if recipe.early_stop is not None:
                model.eval()
                with torch.inference_mode():
                    result.holdout_losses.append(float(criterion(model(images_held), targets_held)))
                if best is None or result.holdout_losses[-1] <= result.holdout_losses[best[0] - 1]:
                    best = (epoch + 1, {name: value.detach().clone() for name, value in model.state_dict().items()})
                elif epoch + 1 - best[0] >= recipe.early_stop.patience:
                    break
    if best is not None:
        result.best_epoch = best[0]
        model.load_state_dict(best[1])
    model.to("cpu", memory_format=torch.contiguous_format).eval()
    return result


def _split(count: int, recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to hold out. Nothing is held out without early stopping or of a single image."""
    if recipe.early_stop is None or count < 2:
        return torch.arange(count), torch.arange(0)
    order = torch.randperm(count, generator=generator)
    held = min(max(1, round(count * recipe.early_stop.holdout)), count - 1)
    return order[held:].sort().values, order[:held].sort().values


def _batch_edges(count: int, batch_size: int) -> list[int]:
    """Boundaries of batches of one size, give or take one image: `batch_size` at most, two images at least.

    Not full ones and a rest: a step along the gradient of a handful of images, at the rate meant for a whole batch,
    undoes much of the epoch. A LeNet-5 of 2,500 CIFAR-10 images, the last batch of 64 holding 4, had 46.2 %; 51.0 % so.
    Batch normalisation needs two, so an odd count in batches of two has one of three.
    """
    batches = -(-count // batch_size)
    if batch_size > 1:
        batches = min(batches, max(1, count // 2))
    return [count * number // batches for number in range(batches + 1)]


class _Descent:
    """SGD with Nesterov momentum: torch's own function, without torch.optim's class around it.

    Making an object of that class imports torch's compiler, which takes 137 MB of memory and over a second.
    Weights decay; biases and normalisation scales, which have one dimension, do not. All gradients together are cut to
    a length of `clip_norm`: of a LeNet-5 on 500 images it is about 1 and at times 20, and one such step at the peak of
    the learning rate sends the network back to where it began (benchmarks/clipping.py).
    """

    def __init__(self, model: nn.Module, recipe) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        self._momentum, self._clip = recipe.momentum, recipe.clip_norm
        self._groups = [
            (group, decay, [None] * len(group))
            for group, decay in ((matrices, recipe.weight_decay), (vectors, 0.0))
            if group
        ]
        self.steps = 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step along the gradients, at learning rate `rate`; the gradients are cleared."""
        if self._clip is not None:
            trained = [parameter for parameters, _, _ in self._groups for parameter in parameters]
            total = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained])
            torch.nn.utils.clip_grads_with_norm_(trained, self._clip, total)
        for parameters, decay, buffers in self._groups:
            sgd(
                parameters,
                [p.grad for p in parameters],
                buffers,
                weight_decay=decay,
                momentum=self._momentum,
                lr=rate,
                dampening=0.0,
                nesterov=self._momentum > 0,
                maximize=False,
                foreach=True,
            )
            for parameter in parameters:
                parameter.grad = None
        self.steps += 1


def rate_factor(step: int, steps: int, schedule: str) -> float:
    """Share of the peak learning rate at `step` of `steps`, taken at the step's middle so that one step is no extreme.

    cosine: from 1 down to 0. one-cycle: from 1/25 up to 1 in the first quarter, then down to 0, both along a cosine.
    """
    position, rise = (step + 0.5) / steps, 0.25 if schedule == "one-cycle" else 0.0
    if position < rise:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * position / rise)) / 2
    return (1 + math.cos(math.pi * (position - rise) / (1 - rise))) / 2
