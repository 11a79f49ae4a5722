"""Training a classifier. The labelled set stays on the device: there is no DataLoader, and no copy an epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from kdray.errors import ConfigError
from kdray.training.augment import random_flip, random_shift
from kdray.training.losses.base import check_loss
from kdray.training.recipe import Recipe
from kdray.training.shard import Shard
from kdray.utils.devices import cpu_threads, resolve_device
from kdray.utils.seeds import torch_generator, torch_seed


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


def train(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    round: int = 0,
    threads: int | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    shard: Shard | None = None,
) -> TrainResult:
    """Train `model` in place with SGD (Nesterov); it ends on the CPU and in eval mode.

    The same arguments give the same bits on one kind of CPU.

    Args:
        model: takes uint8 images [B, C, H, W], gives logits [B, K].
        images: uint8 [N, C, H, W].
        targets: probabilities, float32 [N, K]; rows sum to 1.
        recipe: loss, epochs, batch size, rates, augmentation, early stop.
        seed, round: name the random streams of order, augmentation and dropout.
        threads: CPU threads; None leaves the setting alone.
        on_epoch: called with (epochs done, mean loss).
        shard: this process's share of the work; None: all of it. All processes get the same other arguments, and end
            with the same weights. No batch may have fewer images than there are processes; see `smallest_batch`.

    Raises:
        ConfigError: the shift does not fit the images, a GPU is named that is not there, or the loss does not work.
    """
    if recipe.augment.shift >= min(images.shape[2:]):
        raise ConfigError(f"augment.shift: {recipe.augment.shift} pixels do not fit images of {list(images.shape[2:])}")
    check_loss(recipe.loss, targets.shape[1])
    device = resolve_device(recipe.device)
    images, targets = images.to(device), targets.to(device)
    model.to(device).to(memory_format=torch.channels_last)
    draw = torch_generator(seed, "training order", round)  # order and split: on CPU, whatever the device
    vary = torch_generator(seed, "augmentation", round, device=device.type)
    kept, held = _split(len(images), recipe, draw)
    images_held, targets_held = images[held.to(device)], targets[held.to(device)]
    shard = shard or Shard()
    network = shard.wrap(model)
    descent = _Descent(model, recipe)

    def held_loss(rows: slice) -> Tensor:
        return recipe.loss(model(images_held[rows]), targets_held[rows])

    edges = _batch_edges(len(kept), recipe.batch_size)
    steps = recipe.epochs * (len(edges) - 1)
    result = TrainResult()
    best: tuple[int, dict[str, Tensor]] | None = None  # epoch and weights
    devices = [device] if device.type == "cuda" else []
    with cpu_threads(threads), torch.random.fork_rng(devices=devices):
        torch.manual_seed(torch_seed(seed, f"dropout of part {shard.rank}" if shard.rank else "dropout", round))
        for epoch in range(recipe.epochs):
            model.train()
            order = kept[torch.randperm(len(kept), generator=draw)].to(device)
            total = torch.zeros((), device=device)
            for start, stop in pairwise(edges):
                rows = shard.rows(stop - start)
                batch, place = order[start:stop][rows], {"first": rows.start, "of": stop - start}
                x = random_shift(images[batch], recipe.augment.shift, vary, **place)
                x = random_flip(x, vary, **place) if recipe.augment.flip else x
                loss = recipe.loss(network(x.contiguous(memory_format=torch.channels_last)), targets[batch])
                (loss * shard.weight(len(batch), stop - start)).backward()
                descent.step(recipe.lr * rate_factor(descent.steps, steps, recipe.schedule))
                total += loss.detach() * len(batch)
            result.losses.append(float(shard.sum(total)) / len(kept))
            result.best_epoch = epoch + 1
            if on_epoch is not None:
                on_epoch(epoch + 1, result.losses[-1])
            if recipe.early_stop is not None:
                model.eval()
                with torch.inference_mode():
                    result.holdout_losses.append(shard.mean(held_loss, len(held)))
                if best is None or result.holdout_losses[-1] <= result.holdout_losses[best[0] - 1]:
                    best = (epoch + 1, {name: value.detach().clone() for name, value in model.state_dict().items()})
                elif epoch + 1 - best[0] >= recipe.early_stop.patience:
                    break
    if best is not None:
        result.best_epoch = best[0]
        model.load_state_dict(best[1])
    model.to("cpu").to(memory_format=torch.contiguous_format).eval()
    return result


def _split(count: int, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to hold out, int64. Without early stopping, or of a single image, none is held
    out."""
    held = _held_out(count, recipe)
    if not held:
        return torch.arange(count), torch.arange(0)
    order = torch.randperm(count, generator=generator)
    return order[held:].sort().values, order[:held].sort().values


def _held_out(count: int, recipe: Recipe) -> int:
    if recipe.early_stop is None or count < 2:
        return 0
    return min(max(1, round(count * recipe.early_stop.holdout)), count - 1)


def smallest_batch(count: int, recipe: Recipe) -> int:
    """Images in the smallest batch that `train` makes of `count` images."""
    edges = _batch_edges(count - _held_out(count, recipe), recipe.batch_size)
    return min(stop - start for start, stop in pairwise(edges))


def _batch_edges(count: int, batch_size: int) -> list[int]:
    """Boundaries of batches of one size, give or take one image: `batch_size` at most, two images at least.

    Full batches and a rest would train worse: the gradient of a handful of images, at the rate meant for a whole
    batch, undoes much of the epoch. LeNet-5 on 2,500 CIFAR-10 images has an accuracy of 51.0 %; it was 46.2 % with
    batches of 64 and a last one of 4. Batch normalisation needs two images, so an odd count in batches of two has one
    batch of three.
    """
    batches = -(-count // batch_size)
    if batch_size > 1:
        batches = min(batches, max(1, count // 2))
    return [count * number // batches for number in range(batches + 1)]


class _Descent:
    """SGD with Nesterov momentum by torch's own function: making a torch.optim.SGD imports torch's compiler, which took
    155 MB and 1.9 s of CPU time where training itself took 0.06 s (torch 2.14, a small-cnn of 200 images, one epoch).

    Weights decay; biases and normalisation scales, which have one dimension, do not. All gradients together are cut to
    a length of `clip_norm`: of a LeNet-5 on 500 images it is about 1 and at times 20, and one such step at the peak of
    the learning rate sends the network back to where it began (benchmarks/clipping.py).
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        self._parameters = matrices + vectors
        self._groups = [(matrices, recipe.weight_decay, _buffers(matrices)), (vectors, 0.0, _buffers(vectors))]
        self._momentum, self._clip, self.steps = recipe.momentum, recipe.clip_norm, 0

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step along the gradients, at learning rate `rate`; the gradients are cleared."""
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._clip)
        for group, decay, buffers in self._groups:
            gradients = [p.grad for p in group if p.grad is not None]  # all have one: `build_network` sees to it
            sgd(
                group,
                gradients,
                buffers,
                weight_decay=decay,
                momentum=self._momentum,
                nesterov=self._momentum > 0,
                dampening=0.0,
                lr=rate,
                maximize=False,
                foreach=True,
            )
        for parameter in self._parameters:
            parameter.grad = None
        self.steps += 1


def _buffers(group: list[Tensor]) -> list[Tensor | None]:
    """Momentum buffers that the first step fills."""
    return [None] * len(group)


def rate_factor(step: int, steps: int, schedule: str) -> float:
    """Share of the peak learning rate at `step` (from 0) of `steps`, taken at the middle of the step.

    cosine: from 1 down to 0 (Loshchilov and Hutter, 2017, equation 5). one-cycle: from 1/25 up to 1 in the first
    quarter, then down to 0, both along a cosine (Smith and Topin, 2018).
    """
    position, rise = (step + 0.5) / steps, 0.25 if schedule == "one-cycle" else 0.0
    if position < rise:
        return 0.04 + 0.96 * (1 - math.cos(math.pi * position / rise)) / 2
    return (1 + math.cos(math.pi * (position - rise) / (1 - rise))) / 2
