"""How fast a network answers on one core, and how large it is."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kdray.models.predict import images_at_a_time
from kdray.utils.devices import cpu_threads

_BATCH = 128
_WARM = 3  # passes before it is timed


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Forward passes on one thread.

    Attributes:
        latency_ms: median time of one image alone, in milliseconds.
        latency_slow_ms: the time that 95 of 100 such passes take at most.
        throughput: images a second in batches of `batch_size`, the median.
        batch_size: images in such a batch.
    """

    latency_ms: float
    latency_slow_ms: float
    throughput: float
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """Attributes:
    parameters: number of trained numbers.
    megabytes: all tensors of the network, running statistics too, in units of 10^6 bytes.
    """

    parameters: int
    megabytes: float


def measure_speed(model: nn.Module, image_shape: Sequence[int], seconds: float = 1.0) -> Speed:
    """Times of forward passes of random images on the CPU, on one thread. Other work on the machine makes them longer.

    Args:
        model: uint8 images [B, C, H, W] to logits; left on the CPU, in eval mode.
        image_shape: (C, H, W).
        seconds: to spend on each of the two measurements; three passes are made at least.

    Raises:
        ValueError: `seconds` is not above 0.
    """
    if seconds <= 0:
        raise ValueError(f"seconds is {seconds:g}; it must be above 0")
    model.cpu().eval()
    images = torch.randint(
        0, 256, (_BATCH, *image_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    batch = images[: images_at_a_time(_BATCH, image_shape, "cpu")]
    with cpu_threads(1), torch.inference_mode():
        alone = sorted(_times(lambda: model(images[:1]), seconds))
        together = _times(lambda: model(batch), seconds)
    return Speed(
        latency_ms=1000 * statistics.median(alone),
        latency_slow_ms=1000 * alone[int(0.95 * (len(alone) - 1))],
        throughput=len(batch) / statistics.median(together),
        batch_size=len(batch),
    )


def size_of(model: nn.Module) -> Size:
    """How large a network is."""
    return Size(
        parameters=sum(value.numel() for value in model.parameters()),
        megabytes=sum(value.numel() * value.element_size() for value in model.state_dict().values()) / 1e6,
    )


def _times(work: Callable[[], object], seconds: float) -> list[float]:
    for _ in range(_WARM):
        work()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < _WARM or time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return taken
