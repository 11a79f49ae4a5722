"""The optimisers, and the moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from kdray.training.recipe import Recipe
from kdray.utils.adam import adam_step, nothing_yet


class Descent:
    """SGD with Nesterov momentum, or AdamW, by torch's own functions: making a torch.optim.SGD imports torch's
    compiler, which took 155 MB and 1.9 s of CPU time where training itself took 0.06 s (torch 2.14, a small-cnn of 200
    images, one epoch).

    Weights decay; biases and normalisation scales, which have one dimension, do not. All gradients together are cut to
    a length of `clip_norm`: of a LeNet-5 on 500 images it is about 1 and at times 20, and one such step at the peak of
    the learning rate sends the network back to where it began (benchmarks/clipping.py).
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        self._parameters, self._recipe, self.steps = matrices + vectors, recipe, 0
        self._groups = [_Group(matrices, recipe.decay), _Group(vectors, 0.0)]
        self._step = self._sgd if recipe.optimizer == "sgd" else self._adamw

    def step(self, rate: float) -> None:
        """One step along the gradients, at learning rate `rate`; the gradients are cleared."""
        self.move(rate)
        self.steps += 1

    @torch.no_grad()
    def move(self, rate: "float | Tensor") -> None:
        """Move along the gradients, at learning rate `rate`, and clear them; the caller counts the step."""
        if self._recipe.clip_norm is not None:
            cut([p.grad for p in self._parameters if p.grad is not None], self._recipe.clip_norm)
        for group in self._groups:
            # A layer that is left out at random has none in this step.
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in group.parameters]
            self._step(group, gradients, rate)
        for parameter in self._parameters:
            parameter.grad = None

    def _sgd(self, group: "_Group", gradients: list[Tensor], rate: "float | Tensor") -> None:
        # One kernel for all weights, which takes their numbers as they lie in memory.
        fits = all(p.stride() == g.stride() for p, g in zip(group.parameters, gradients, strict=True))
        if not fits and (group.parameters[0].is_cuda or isinstance(rate, Tensor)):
            # The other way looks at the rate, which a recorded step cannot; see `Replay`.
            gradients = [torch.empty_like(p).copy_(g) for p, g in zip(group.parameters, gradients, strict=True)]
            fits = True
        sgd(
            group.parameters,
            gradients,
            group.momenta,
            weight_decay=group.decay,
            momentum=self._recipe.momentum,
            nesterov=self._recipe.momentum > 0,
            dampening=0.0,
            lr=rate,
            maximize=False,
            foreach=not fits,
            fused=fits,
        )

    def _adamw(self, group: "_Group", gradients: list[Tensor], rate: "float | Tensor") -> None:
        if group.squares is None:
            group.momenta, group.squares, group.counts = nothing_yet(group.parameters)  # type: ignore[assignment]
        adam_step(
            group.parameters,
            gradients,
            group.momenta,  # type: ignore[arg-type]  # all are there now
            group.squares,
            group.counts,
            rate=rate,
            beta1=self._recipe.momentum,
            decay=group.decay,
        )

    def state(self) -> dict[str, Any]:
        """All that later steps depend on, but for the weights."""
        return {"steps": self.steps, "groups": [group.state() for group in self._groups]}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.steps = state["steps"]
        for group, kept in zip(self._groups, state["groups"], strict=True):
            group.load(kept)


def cut(gradients: list[Tensor], length: float) -> None:
    """Cut gradients that together are longer than `length` to it, in place. The same arithmetic as torch's
    clip_grad_norm_, which takes 1.7 times as long for a small network."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (length / (norm + 1e-6)).clamp_(max=1.0))


class _Group:
    """Parameters with one weight decay, and what the optimiser keeps of them; SGD's first step fills the momenta."""

    def __init__(self, parameters: list[Tensor], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.momenta: list[Tensor | None] = [None] * len(parameters)
        self.squares: list[Tensor] | None = None
        self.counts: list[Tensor] = []

    def state(self) -> dict[str, Any]:
        return {"momenta": self.momenta, "squares": self.squares, "counts": self.counts}

    def load(self, state: dict[str, Any]) -> None:
        def here(held: list[Tensor | None]) -> list[Any]:
            return [None if t is None else t.to(p.device) for t, p in zip(held, self.parameters, strict=True)]

        self.momenta, self.counts = here(state["momenta"]), state["counts"]
        self.squares = None if state["squares"] is None else here(state["squares"])


class MovingAverage:
    """The exponential moving average of a model's weights and of the running statistics of its normalisations.

    The decay rises to its value: it is (1 + t) / (10 + t) at step t, if that is lower. So the average forgets the first
    weights (Polyak averaging as in TensorFlow's ExponentialMovingAverage). Counters take the model's value.

    Args:
        model: trained elsewhere, in place.
        decay: share of the average that a step keeps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay, self._steps = decay, 0
        tensors = [*model.parameters(), *model.buffers()]
        self._own = [t.detach() for t in tensors if t.is_floating_point()]
        self.averages = [t.clone() for t in self._own]

    def next_share(self) -> float:
        """What the next update takes in of the model's weights; it is counted as made."""
        kept = min(self._decay, (1 + self._steps) / (10 + self._steps))
        self._steps += 1
        return 1.0 - kept

    @torch.no_grad()
    def update(self, share: "float | Tensor | None" = None) -> None:
        """Take in this share of the model's present weights; None: `next_share`."""
        share = self.next_share() if share is None else share
        if isinstance(share, Tensor):
            more = torch._foreach_sub(self._own, self.averages)
            torch._foreach_mul_(more, share)
            torch._foreach_add_(self.averages, more)
        else:
            torch._foreach_lerp_(self.averages, self._own, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages meanwhile."""
        kept = [t.clone() for t in self._own]
        self.copy()
        try:
            yield
        finally:
            torch._foreach_copy_(self._own, kept)

    @torch.no_grad()
    def copy(self) -> None:
        """Give the model the averages."""
        torch._foreach_copy_(self._own, self.averages)

    def state(self) -> dict[str, Any]:
        """All that later updates depend on."""
        return {"steps": self._steps, "averages": self.averages}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self._steps = state["steps"]
        torch._foreach_copy_(self.averages, state["averages"])
