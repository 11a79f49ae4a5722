"""A stand-in for the same search written with Ray Data: pair numbers through `map_batches` on a pool of actors.

This is Ray's documented way to batch inference: a dataset of pair numbers, a callable class that holds images and
student, as many actors of one CPU as there are workers, and a row for each pair; the driver takes the k lowest.

Choices made to be fair:

- Images, pairs and student lie in the object store once, and each actor holds them from its start. The dataset is
  numbers alone, and its blocks are made inside the actors: Ray Data fuses `range` with the map that follows.
- All λ of a pair are mixed in memory at once, as floats (no rounding is paid for), and a forward pass is about 256
  images on one thread, without gradients, the student in channels-last layout as kdray's is.
- A block is about 8,192 images, as a task of kdray is, and goes to the class whole, which cuts it into passes: given a
  batch size, Ray Data does not fuse, and needs tasks and a CPU for `range` beside the actors. There are four blocks a
  worker at least, to share them evenly.
- Progress bars and messages are off.

The clock runs over the whole pipeline, after a small run of the same that warms up driver and object store. It includes
the start of the actors: Ray Data starts a fresh pool whenever a dataset is executed and offers no way to keep one, so
nothing is subtracted. How long the first block took to come is given apart, as that is mostly this start: a workload
should take many times as long.
"""

import logging
import time
from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from torch import Tensor, nn

BATCH, BLOCK = 256, 8192  # images, about


class Scorer:
    """An actor's work: the lowest confidence of each pair of a block, and the λ it has it at.

    Args:
        images, pairs, model: references to uint8 [N, C, H, W], int64 [P, 2] and the student.
        lambdas: weights of a pair's first image.
    """

    def __init__(
        self, images: ray.ObjectRef, pairs: ray.ObjectRef, model: ray.ObjectRef, lambdas: Sequence[float]
    ) -> None:
        torch.set_num_threads(1)
        self._images, self._pairs, model = ray.get([images, pairs, model])
        self._student = model.to(memory_format=torch.channels_last).eval()
        self._weights = torch.tensor(lambdas, dtype=torch.float32).view(1, -1, 1, 1, 1)
        self._step = max(1, BATCH // len(lambdas))

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Pair numbers to a row for each of them."""
        pairs = torch.from_numpy(self._pairs[block["id"]])
        with torch.inference_mode():
            table = torch.cat([self._confidence(part) for part in pairs.split(self._step)])
            lowest, index = table.min(dim=1)
        return {"pair": block["id"], "confidence": lowest.numpy(), "lambda_index": index.numpy()}

    def _confidence(self, pairs: Tensor) -> Tensor:
        """int64 [B, 2] to float32 [B, L]: one forward pass."""
        first, second = (self._images[numbers].float().unsqueeze(1) for numbers in pairs.unbind(1))
        mixed = torch.lerp(second, first, self._weights).flatten(0, 1)  # [B * L, C, H, W]
        logits = self._student(mixed.contiguous(memory_format=torch.channels_last))
        return logits.softmax(dim=1).amax(dim=1).view(len(pairs), -1)


def score(
    images: Tensor, lambdas: Sequence[float], model: nn.Module, pairs: np.ndarray, k: int, workers: int
) -> tuple[np.ndarray, float, float]:
    """The k pairs with the lowest confidence over all λ. Ray must be up, with a CPU for each worker.

    Args:
        images: uint8 [N, C, H, W].
        lambdas: weights of a pair's first image.
        model: pixels [B, C, H, W] from 0 to 255 to logits [B, K], on the CPU; left as it is.
        pairs: image numbers int64 [P, 2].
        workers: actors.

    Returns:
        Rows of `pairs`, lowest first; candidates a second over the whole run; seconds until the first block came.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    held = {"images": ray.put(images), "pairs": ray.put(pairs), "model": ray.put(model), "lambdas": tuple(lambdas)}
    _rows(min(len(pairs), 64 * workers), held, workers)
    begin = time.perf_counter()
    rows, waited = _rows(len(pairs), held, workers)
    numbers = rows["pair"][np.lexsort((rows["pair"], rows["confidence"]))[:k]]
    return numbers, len(pairs) * len(lambdas) / (time.perf_counter() - begin), waited


def _rows(count: int, held: dict[str, Any], workers: int) -> tuple[dict[str, np.ndarray], float]:
    """Run the pipeline over the first `count` pairs: its columns, and the seconds until the first block came."""
    begin, waited, blocks = time.perf_counter(), 0.0, []
    cuts = max(4 * workers, ceil(count * len(held["lambdas"]) / BLOCK))
    scored = ray.data.range(count, override_num_blocks=cuts).map_batches(
        Scorer,
        fn_constructor_kwargs=held,
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    for block in scored.iter_batches(batch_size=None, batch_format="numpy"):
        waited = waited or time.perf_counter() - begin
        blocks.append(block)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}, waited
