"""Training steps on a GPU that are recorded once and replayed.

A step of a small network is some hundred short kernels, and launching them takes several times as long as running them.
A CUDA graph launches them all at once.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdray.training.recipe import Recipe

_STEPWISE = 3  # steps of a size before it is recorded: the first ones allocate, choose algorithms and load kernels
_OURS = ("kdray", "torch", "torchvision")

Step = Callable[[Tensor, "float | Tensor", "float | Tensor"], Tensor]
"""A step on the images with the numbers int64 [B], at a learning rate, and with a share for the moving average: its
loss. All its work is on the GPU, and Python does the same for each step."""


@dataclass(frozen=True)
class _Recording:
    graph: "torch.cuda.CUDAGraph"
    numbers: Tensor
    rate: Tensor
    share: Tensor
    loss: Tensor


class Replay:
    """Does steps, from a recording if there is one for that many images. What cannot be recorded is done step by step.

    Args:
        parameters: their gradients are None between two steps.
        generator: what steps draw from, beside torch's own; on the GPU.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], generator: torch.Generator) -> None:
        self._parameters, self._generator = parameters, generator
        self._seen: Counter[int] = Counter()
        self._recordings: dict[int, _Recording] = {}
        self._memory = torch.cuda.graph_pool_handle()
        self.able = True
        """Whether no recording has failed."""

    def __call__(self, step: Step, numbers: Tensor, rate: float, share: float) -> Tensor:
        """The loss of the step, valid until the next one."""
        size = len(numbers)
        self._seen[size] += 1
        if self.able and self._seen[size] == _STEPWISE + 1:
            self._record(step, numbers)
        recording = self._recordings.get(size)
        if recording is None:
            return step(numbers, rate, share)
        recording.numbers.copy_(numbers)
        recording.rate.fill_(rate)
        recording.share.fill_(share)
        recording.graph.replay()
        return recording.loss

    def _record(self, step: Step, numbers: Tensor) -> None:
        """Recording runs nothing, so a step that cannot be recorded has changed nothing but what is restored here."""
        graph, here, device = torch.cuda.CUDAGraph(), numbers.clone(), numbers.device
        rate, share = torch.zeros(2, device=device).unbind()
        generators = [self._generator, torch.cuda.default_generators[numbers.get_device()]]
        states: list[torch.Generator] = []
        stream = torch.cuda.current_stream(device)
        try:
            states += [one.clone_state() for one in generators]
            graph.register_generator_state(self._generator)
            recording = torch.cuda.graph(graph, self._memory, stream, capture_error_mode="thread_local")
            with _nothing_is_collected(), recording:
                loss = step(here, rate, share)
        except RuntimeError:  # a step that waits for the GPU, or looks at a result
            self.able = False
            for parameter in self._parameters:
                parameter.grad = None
            for one, state in zip(generators, states, strict=False):
                one.graphsafe_set_state(state)
            return
        self._recordings[len(numbers)] = _Recording(graph, here, rate, share, loss)


def can_replay(model: nn.Module, recipe: Recipe, device: torch.device) -> bool:
    """Whether steps may be recorded: none of their code is the user's own, which may do other things each time."""
    parts = [*map(type, model.modules()), type(recipe.augment), type(recipe.loss)]
    ours = all(part.__module__.partition(".")[0] in _OURS for part in parts)
    return device.type == "cuda" and ours and recipe.cuda_graphs and recipe.optimizer == "sgd" and not recipe.compile


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A stream of its own on a GPU: nothing can be recorded on the one that all share."""
    if device.type != "cuda":
        yield
        return
    outer, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(outer)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outer.wait_stream(stream)


@contextmanager
def _nothing_is_collected() -> Iterator[None]:
    """Python destroys no garbage meanwhile: an older graph that is destroyed spoils the recording of a new one."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
