"""Forward passes of a student for scoring: device, precision, memory layout and batch size."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from kdray.models.features import features_and_logits
from kdray.pools.base import Pool, is_linear
from kdray.search import first_layer
from kdray.search.cost import GPU_BATCH, batch_on

_MOST = 1 << 20  # most images in a task
_GPU_PASSES = 32  # batches in a task on a GPU; fixed, because a GPU on another machine cannot be timed from here


@dataclass(frozen=True, kw_only=True)
class ForwardOptions:
    """How a student is run to score candidates.

    Attributes:
        precision: precision of the network's arithmetic. auto is float32 on a CPU, bfloat16 on a GPU that supports it,
            and float16 on other GPUs. Logits are always float32.
        compile: whether to compile the network (on a GPU into a CUDA graph). auto compiles on a GPU only: on a CPU,
            compiling takes longer than it saves for networks of this size.
        mixing: where candidates are mixed: as pixels, or behind the first layer (`kdray.search.first_layer`). auto
            mixes behind the first layer on a CPU, in float32 and without compiling, if
            `kdray.search.first_layer.pays`.
    """

    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    mixing: Literal["auto", "pixels", "first-layer"] = "auto"


@dataclass(frozen=True)
class _Behind:
    """The first layer's outputs for all images of a pool, and the rest of the network."""

    outputs: first_layer.Outputs
    rest: nn.Module


class Forward:
    """Runs a student on uint8 images.

    Args:
        model: maps uint8 [B, C, H, W] to logits [B, K]. It is moved to `device` and set to eval mode.
        device: cpu, cuda or cuda:N.
        options: see `ForwardOptions`.
    """

    def __init__(self, model: nn.Module, device: str = "cpu", options: ForwardOptions | None = None) -> None:
        options = options or ForwardOptions()
        precision, compile = options.precision, options.compile
        self.device = torch.device(device)
        gpu = self.device.type == "cuda"
        self._model: Callable[[Tensor], Tensor] = model.to(self.device).to(memory_format=torch.channels_last).eval()
        if precision == "auto":
            precision = "float32" if not gpu else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        self._dtype = getattr(torch, precision)
        self._plain, self._mixing = model, options.mixing
        self._mixed: tuple[Pool, _Behind | None] | None = None
        # A compiled network accepts one shape, so a smaller last batch is padded.
        self._batch = batch_on(device, self._plain)
        self._fill = self._batch if compile == "on" or (compile == "auto" and gpu) else 0
        if self._fill:
            self._model = torch.compile(self._model, dynamic=False, mode="reduce-overhead" if gpu else None)

    def __call__(self, images: Tensor) -> Tensor:
        """Map images uint8 [B, C, H, W] to logits float32 [B, K]."""
        count = len(images)
        if count < self._fill:
            images = torch.cat([images, images.new_zeros(self._fill - count, *images.shape[1:])])
        with self._arithmetic():
            logits = self._model(images.to(self.device).contiguous(memory_format=torch.channels_last))
        return logits[:count].float().clone() if self._fill else logits.float()

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images uint8 [B, C, H, W] to features float32 [B, D], the input of the student's last layer, and to
        logits float32 [B, K]."""
        with self._arithmetic():
            images = images.to(self.device).contiguous(memory_format=torch.channels_last)
            return features_and_logits(self._plain, images)

    def candidates(
        self, pool: Pool, groups: Tensor, step: int, indices: Sequence[int] | None = None
    ) -> Iterator[Tensor]:
        """Logits of the candidates of `groups` int64 [G], `step` groups at a time.

        Args:
            pool: a pool on this device.
            indices: indices of λ in the grid; None means all.

        Yields:
            float32 [B * len(indices), K]. The candidates of a group are consecutive.
        """
        behind = self._behind_first_layer(pool)
        if behind is None or not is_linear(pool):
            yield from (self(images) for images in pool.batches(groups, step, indices))
            return
        i, j = pool.pair(groups.to(self.device))
        lambdas = [pool.lambdas[k] for k in indices or range(pool.group_size)]
        for pairs in zip(i.split(step), j.split(step), strict=True):
            with self._arithmetic():
                logits: Tensor = behind.rest(behind.outputs.mix(pairs, lambdas))
            yield logits.float()

    def _behind_first_layer(self, pool: Pool) -> _Behind | None:
        """The outputs and the network for mixing behind the first layer; None if pixels are mixed."""
        if self._mixed is None or self._mixed[0] is not pool:
            behind = None
            if self._mixes_outputs(pool) and (parts := first_layer.split(self._plain)) is not None:
                with self._arithmetic():
                    behind = _Behind(first_layer.Outputs(parts[0], pool.images, self._batch), parts[1])
            self._mixed = (pool, behind)
        return self._mixed[1]

    def _mixes_outputs(self, pool: Pool) -> bool:
        if self._mixing == "pixels" or not pool.linear:
            return False
        if self._mixing == "first-layer":
            return first_layer.split(self._plain) is not None
        plain = self.device.type == "cpu" and self._dtype == torch.float32 and not self._fill
        return plain and first_layer.pays(self._plain, pool.image_shape, len(pool.images))

    @contextmanager
    def _arithmetic(self) -> Iterator[None]:
        lower = self._dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, self._dtype, enabled=lower):
            yield


def a_seconds_work(model: nn.Module, image_shape: tuple[int, int, int], device: str, options: ForwardOptions) -> int:
    """Images that one worker scores in about a second, used as the size of a task.

    A worker that dies loses the tasks it holds, so tasks should be short. For a CPU, the rate is measured in this
    process on a small batch. The size of tasks does not change the result of a search.
    """
    if torch.device(device).type != "cpu":
        return _GPU_PASSES * GPU_BATCH
    with one_thread():
        forward = Forward(model, device, replace(options, compile="off", mixing="auto"))
        images = torch.zeros(16, *image_shape, dtype=torch.uint8)
        forward(images)  # the first call includes set-up
        begin = time.perf_counter()
        forward(images)
        rate = len(images) / (time.perf_counter() - begin)
    return max(batch_on(device, model), min(_MOST, round(rate)))


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, as in a worker, so that results have the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
