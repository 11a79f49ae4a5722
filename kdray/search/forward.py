"""A student as it is scored with: its device, its precision, its memory layout, and passes of one size."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdray.search import first_layer
from kdray.search.work import GPU_BATCH, batch_on
from kdray.students.features import penultimate

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Compile = Literal["auto", "on", "off"]
Mixing = Literal["auto", "pixels", "first-layer"]

_MOST = 1 << 20  # images a task
_GPU_PASSES = 32  # a task of a GPU: it may be on another machine, where nobody can time it from here


class Forward:
    """Runs a student on uint8 images.

    Args:
        model: uint8 [B, C, H, W] to logits [B, K]; moved to `device` and set to eval mode.
        device: cpu, cuda or cuda:N.
        precision: of the network's arithmetic; auto is float32 on a CPU, and on a GPU bfloat16 where it has it, else
            float16. Logits come as float32 in any case.
        compile: compile the network (on a GPU into a CUDA graph); auto does on a GPU: on a CPU it takes longer to
            compile than it ever saves on networks of this size.
        mixing: where candidates are mixed: as pixels, or behind the first layer (`kdray.search.first_layer`); auto does
            the latter on a CPU, in float32, where it pays.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str = "cpu",
        precision: Precision = "auto",
        compile: Compile = "auto",
        mixing: Mixing = "auto",
    ) -> None:
        self.device = torch.device(device)
        gpu = self.device.type == "cuda"
        self._model = model.to(device=self.device, memory_format=torch.channels_last).eval()
        if precision == "auto":
            precision = "float32" if not gpu else "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        self._dtype = getattr(torch, precision)
        self._plain, self._mixing = self._model, mixing
        self._mixed: tuple[Any, first_layer.Outputs | None, nn.Module | None] | None = None
        # A compiled network is made for one shape: a smaller last batch is filled up.
        self._batch = batch_on(device, self._plain)
        self._fill = self._batch if compile == "on" or (compile == "auto" and gpu) else 0
        if self._fill:
            self._model = torch.compile(self._model, dynamic=False, mode="reduce-overhead" if gpu else None)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to logits float32 [B, K]."""
        count = len(images)
        if count < self._fill:
            images = torch.cat([images, images.new_zeros(self._fill - count, *images.shape[1:])])
        with self._arithmetic():
            logits = self._model(images.to(self.device).contiguous(memory_format=torch.channels_last))
        return logits[:count].float().clone() if self._fill else logits.float()

    def features(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to what goes into the student's last layer, float32 [B, D]."""
        with self._arithmetic():
            images = images.to(self.device).contiguous(memory_format=torch.channels_last)
            return penultimate(self._plain, images)

    def candidates(self, pool, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Logits of the candidates of `groups` int64 [G], `step` groups at a time, those of a group together.

        Args:
            pool: on this device; see `kdray.search.stages.GroupedPool`.
            indices: which λ of the grid; all of them where None.

        Yields:
            float32 [B * len(indices), K].
        """
        table, rest = self._behind_first_layer(pool)
        if table is None:
            yield from (self(images) for images in pool.batches(groups, step, indices))
            return
        i, j = pool.pair(groups.to(self.device))
        lambdas = [pool.lambdas[k] for k in indices or range(pool.group_size)]
        for pairs in zip(i.split(step), j.split(step), strict=True):
            with self._arithmetic():
                logits = rest(table.mix(pairs, lambdas))
            yield logits.float()

    def _behind_first_layer(self, pool) -> tuple[first_layer.Outputs | None, nn.Module | None]:
        """The first layer's outputs for the pool's images, and the rest of the network; None where pixels are mixed."""
        if self._mixed is None or self._mixed[0] is not pool:
            table = rest = None
            if self._mixes_features(pool):
                first, rest = first_layer.split(self._plain)
                with self._arithmetic():
                    table = first_layer.Outputs(first, pool.images, self._batch)
            self._mixed = (pool, table, rest)
        return self._mixed[1:]

    def _mixes_features(self, pool) -> bool:
        if self._mixing == "pixels" or not getattr(pool, "linear", False):
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


def a_seconds_work(model: nn.Module, image_shape: tuple[int, int, int], device: str, options: dict[str, str]) -> int:
    """Images one worker scores in about a second: a good size of a task, for what a dead worker costs is one task.

    Timed here for a CPU, on a small batch. It changes nothing that is found.
    """
    if torch.device(device).type != "cpu":
        return _GPU_PASSES * GPU_BATCH
    with one_thread():
        forward = Forward(model, device, options.get("precision", "auto"), "off")
        images = torch.zeros(16, *image_shape, dtype=torch.uint8)
        forward(images)  # pays for set-up
        begin = time.perf_counter()
        forward(images)
        rate = len(images) / (time.perf_counter() - begin)
    return max(batch_on(device, model), min(_MOST, round(rate)))


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's own work: what a worker has, so the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
