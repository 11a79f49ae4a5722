"""Training a classifier. The labelled set stays on the device: there is no DataLoader, and no copy an epoch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from kdray.errors import TrainingError
from kdray.models.predict import images_at_a_time
from kdray.training.augment import check_augment
from kdray.training.balance import balanced_order, repeats
from kdray.training.choice import Choice
from kdray.training.descent import Descent, MovingAverage
from kdray.training.feed import Feed
from kdray.training.length import Length, held_out, length, rate_factor
from kdray.training.losses.base import check_loss
from kdray.training.recipe import Recipe
from kdray.training.replay import Replay, can_replay, own_stream
from kdray.training.saved import Saved
from kdray.training.shard import Shard
from kdray.training.unpaid import Labeller
from kdray.utils.devices import cpu_threads, resolve_device
from kdray.utils.seeds import seed_globally, torch_generator, torch_seed

_GOOD_EVERY = 50  # steps between two copies of the weights, to go back to


@dataclass(kw_only=True)
class TrainResult:
    """What training did.

    Attributes:
        losses: mean training loss of each epoch.
        holdout_losses: loss on the held-out part after each epoch; empty without early stopping.
        best_epoch: the epoch whose weights were kept, counted from 1.
        steps: optimisation steps that were to be done.
        diverged: the step whose loss was not finite, counted from 1; None where all were finite.
        kept: where it diverged, the number of steps that the kept weights have seen.
        choices: what was chosen by cross-validation, by the field of the recipe.
        beside: notes about networks that were trained for this one.
    """

    losses: list[float] = field(default_factory=list)
    holdout_losses: list[float] = field(default_factory=list)
    best_epoch: int = 0
    steps: int = 0
    diverged: int | None = None
    kept: int | None = None
    choices: dict[str, Choice] = field(default_factory=dict)
    beside: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What the user should know of it."""
        notes = [choice.note(f"student.{name}") for name, choice in self.choices.items()] + self.beside
        if self.diverged is not None and self.kept is not None:
            notes.append(
                f"training stopped at step {self.diverged:,} of {self.steps:,}: the loss is not finite. The student "
                f"has the weights of step {self.kept:,}; set student.lr lower"
            )
        return notes


def train(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    round: int = 0,
    threads: int | None = None,
    on_epoch: Callable[[int, int, float], None] | None = None,
    shard: Shard | None = None,
    unpaid: Labeller | None = None,
    saved: Saved | None = None,
) -> TrainResult:
    """Train `model` in place; it ends on the CPU and in eval mode.

    The same arguments give the same bits on one kind of CPU, also where training was broken off and went on.

    Args:
        model: takes images [B, C, H, W] with pixels of 0 to 255, gives logits [B, K].
        images: uint8 [N, C, H, W].
        targets: probabilities, float32 [N, K]; rows sum to 1.
        recipe: loss, length, batch size, rates, augmentation, early stop.
        seed, round: name the random streams of order, augmentation and dropout.
        threads: CPU threads; None leaves the setting alone.
        on_epoch: called with (epochs done, epochs in all, mean loss).
        shard: this process's share of the work; None: all of it. All processes get the same other arguments, and end
            with the same weights. No batch may have fewer images than there are processes; see `Length`.
        unpaid: adds labelled candidates to each batch; its pool and students are on the device of the recipe.
        saved: what is kept of an unfinished training, to go on from; None keeps nothing.

    Raises:
        ConfigError: the augmentation does not fit the images, a GPU is named that is not there, or the loss does not
            work.
        TrainingError: the loss was not finite before there were weights worth keeping.
    """
    check_augment(recipe.augment, (images.shape[1], images.shape[2], images.shape[3]))
    check_loss(recipe.loss, targets.shape[1])
    device = resolve_device(recipe.device)
    training = _Training(model, images.to(device), targets.to(device), recipe, seed, round, shard or Shard(), unpaid)
    gpus = [device] if device.type == "cuda" else []
    with cpu_threads(threads), torch.random.fork_rng(devices=gpus), own_stream(device):
        if saved is not None:
            training.load(saved.read())
        while not training.finished:
            training.epoch()
            if on_epoch is not None and training.result.diverged is None:
                on_epoch(*training.progress)
            if saved is not None and not training.finished:
                saved.write(training.state)
    training.settle()
    model.to("cpu").to(memory_format=torch.contiguous_format).eval()
    return training.result


class _Training:
    """A training that is under way; its state is that between two epochs."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        recipe: Recipe,
        seed: int,
        round: int,
        shard: Shard,
        unpaid: Labeller | None,
    ) -> None:
        self._model, self._recipe, self._shard, self._device = model, recipe, shard, images.device
        self._feed = Feed(images, targets, recipe, shard, unpaid)
        self._labels = targets.argmax(dim=1).cpu()
        self._seed, self._round = seed, round
        model.to(self._device).to(memory_format=torch.channels_last)
        self._kept, held = _split(len(images), recipe, torch_generator(seed, "held-out part", round))
        self._held = images[held.to(self._device)], targets[held.to(self._device)]
        self._length: Length = length(recipe, len(images))
        self._average = None if recipe.ema is None else MovingAverage(model, recipe.ema)
        network = shard.wrap(model)
        self._network = torch.compile(network) if recipe.compile else network
        self._descent = Descent(model, recipe)
        self._vary = torch.Generator(self._device)  # of augmentation
        self._replay: Replay | None = None
        if can_replay(model, recipe, self._device) and shard.size == 1 and unpaid is None:
            self._replay = Replay(list(model.parameters()), self._vary)
        self._best: tuple[int, dict[str, Tensor]] = (0, {})  # the same, of the lowest held-out loss
        self._good: tuple[int, dict[str, Tensor]] = (0, {})  # steps, and weights of which a finite loss came
        self._newest: tuple[int, dict[str, Tensor]] = (0, {})  # the same, of which none may have come yet
        self._waited = False
        self.result = TrainResult(steps=self._length.steps)

    @property
    def finished(self) -> bool:
        """Whether no epoch is left to do."""
        return self._descent.steps >= self._length.steps or self._waited or self.result.diverged is not None

    @property
    def progress(self) -> tuple[int, int, float]:
        """Epochs done, epochs in all, mean loss of the last one."""
        return len(self.result.losses), self._length.epochs, self.result.losses[-1]

    def epoch(self) -> None:
        """Train on all images once, or on so many as there are steps left."""
        self._model.train()
        device, number = self._device, len(self.result.losses)
        # Each epoch has streams of its own, so a training that goes on needs no state of random numbers.
        shuffle = torch_generator(self._seed, f"order of epoch {number}", self._round)  # on CPU, whatever the device
        self._vary.manual_seed(torch_seed(self._seed, f"augmentation in epoch {number}", self._round))
        dropout = torch_seed(self._seed, f"dropout in epoch {number}, part {self._shard.rank}", self._round)
        seed_globally(dropout, self._device)
        order = self._kept[self._order(shuffle)].to(device)
        begin, edges = self._descent.steps, self._length.edges
        batches = list(pairwise(edges))[: self._length.steps - begin]
        losses = torch.zeros(len(batches), device=device)
        for place, (start, stop) in enumerate(batches):
            rate = self._recipe.rate * rate_factor(self._descent.steps, self._length.steps, self._recipe.schedule)
            share = 1.0 if self._average is None else self._average.next_share()
            numbers = order[start:stop]
            if self._replay is None:
                losses[place] = self._step(numbers, rate, share)
            else:
                losses[place] = self._replay(self._step, numbers, rate, share)
            self._descent.steps += 1
        sizes = torch.tensor([stop - start for start, stop in batches], dtype=torch.float32)
        means = self._shard.sum(losses).cpu() / sizes  # one look at the device an epoch
        wrong = (~means.isfinite()).nonzero().flatten()
        if len(wrong):
            self.result.diverged = begin + int(wrong[0]) + 1
            self._prove(self.result.diverged - 1)
            return
        self._prove(self._descent.steps)
        self.result.losses.append(float((means * sizes).sum() / sizes.sum()))
        if self._recipe.early_stop is None or len(self._held[0]) == 0:
            self.result.best_epoch = len(self.result.losses)
        else:
            self._judge(self._recipe.early_stop.patience)
        due = self._descent.steps >= self._newest[0] + _GOOD_EVERY or not self._newest[1]
        if due and not self.finished:
            weights = self._weights()
            if _finite(weights):
                self._newest = self._descent.steps, weights

    def _prove(self, steps: int) -> None:
        """So many steps had a finite loss: the loss of each is that of the weights before it."""
        if self._newest[0] < steps:
            self._good = self._newest

    def _order(self, shuffle: torch.Generator) -> Tensor:
        """The images of an epoch, as places among those to train on."""
        if self._recipe.balance == "none":
            return torch.randperm(len(self._kept), generator=shuffle)
        labels = self._labels[self._kept]
        return balanced_order(labels, repeats(labels, self._recipe.balance), shuffle)

    def _step(self, batch: Tensor, rate: float | Tensor, share: float | Tensor) -> Tensor:
        """One step on a batch; gives the sum of the losses of this process's rows."""
        recipe, shard = self._recipe, self._shard
        own = self._feed.batch(batch, self._vary)
        with precision_of(recipe, own.images.device):
            logits = self._logits(own.images)
            how = {"distil": own.answered} if recipe.loss.labels_mixes else {}
            loss = recipe.loss(logits, own.targets, **how)
        (loss * shard.weight(len(logits), own.of)).backward()
        self._descent.move(rate)
        if self._average is not None:
            self._average.update(share)
        return loss.detach() * shard.weight(len(logits), own.of) * len(batch) / shard.size

    def _logits(self, images: Tensor) -> Tensor:
        try:
            logits: Tensor = self._network(images.contiguous(memory_format=torch.channels_last))
        except ValueError as error:
            if len(images) > 1 or "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                "the network normalises over a batch, and this batch is a single image; set student.batch_size higher, "
                "or buy more images"
            ) from None
        return logits

    def _judge(self, patience: int) -> None:
        """Compare the held-out loss with the best one."""
        images, targets = self._held

        def held_loss(rows: slice) -> Tensor:
            some, answers = images[rows], targets[rows]
            step = images_at_a_time(len(some), images.shape[1:], self._device)
            if step == len(some):
                return self._recipe.loss(self._model(some), answers)
            parts = zip(some.split(step), answers.split(step), strict=True)
            losses = [self._recipe.loss(self._model(x), wanted) * len(x) for x, wanted in parts]
            return torch.stack(losses).sum() / len(some)

        losses = self.result.holdout_losses
        self._model.eval()
        with torch.inference_mode(), self._averaged():
            losses.append(self._shard.mean(held_loss, len(images)))
        lowest = min((loss for loss in losses[:-1] if isfinite(loss)), default=inf)
        if isfinite(losses[-1]) and losses[-1] <= lowest and _finite(weights := self._weights()):
            self._best, self.result.best_epoch = (self._descent.steps, weights), len(losses)
        self._waited = len(losses) - self.result.best_epoch >= patience

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model has the weights that would be kept, meanwhile."""
        with self._average.in_place() if self._average is not None else nullcontext():
            yield

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the weights that would be kept."""
        with self._averaged():
            return {name: value.detach().clone() for name, value in self._model.state_dict().items()}

    def settle(self) -> None:
        """Give the model the weights to keep.

        Raises:
            TrainingError: the loss was not finite before there were any.
        """
        result = self.result
        step, kept = self._best if self._best[1] else self._good
        if result.diverged is None and self._best[1]:
            self._model.load_state_dict(kept)
            return
        if result.diverged is None:
            if self._average is not None:
                self._average.copy()
            if _finite(self._model.state_dict()):
                return
            result.diverged = self._descent.steps
        if not kept:
            raise TrainingError(
                f"the loss is not finite at step {result.diverged:,} of {result.steps:,}; set lr, which is "
                f"{self._recipe.rate:g}, lower"
            )
        self._model.load_state_dict(kept)
        result.kept = step

    def state(self) -> dict[str, Any]:
        """All that the epochs to come depend on."""
        return {
            "weights": self._model.state_dict(),
            "descent": self._descent.state(),
            "average": None if self._average is None else self._average.state(),
            "best": self._best,
            "good": self._good,
            "newest": self._newest,
            "result": asdict(self.result),
        }

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from a `state`; None: from the beginning."""
        if state is None:
            return
        self._model.load_state_dict(state["weights"])
        self._descent.load(state["descent"])
        if self._average is not None:
            self._average.load(state["average"])
        self._best, self._good, self._newest = state["best"], state["good"], state["newest"]
        self.result = TrainResult(**state["result"])


def precision_of(recipe: Recipe, device: torch.device) -> Any:
    """The context of the forward pass."""
    on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if recipe.precision == "bfloat16" or (recipe.precision == "auto" and on_gpu):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def _finite(weights: dict[str, Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in weights.values())


def _split(count: int, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row numbers to train on and to hold out, int64; see `held_out`."""
    held = held_out(count, recipe)
    if not held:
        return torch.arange(count), torch.arange(0)
    order = torch.randperm(count, generator=generator)
    return order[held:].sort().values, order[:held].sort().values
