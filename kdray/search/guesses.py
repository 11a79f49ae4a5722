"""How a search guesses: what a sample of groups and the images that are mixed tell of all the others."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdray.pools.order import sample_without
from kdray.search.interpolation import fit
from kdray.search.stages import Ends, Merge, Rows, Sample, Stage
from kdray.seeds import numpy_generator

_SAMPLE = 1000  # groups the guess is fitted to, or a fiftieth of the pool, or as many as a few million logits are
_LEAST_SAMPLE, _MOST_LOGITS = 20, 4_000_000

Sweep = Callable[[Stage, Merge], None]
"""Does all tasks of a stage and merges what they give."""
Cut = dict[str, int]
"""`chunk` and `batch`: images a task, and a forward pass, about."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What guesses are made from.

    Attributes:
        ends: logits of the pool's images, float32 [N, K].
        matrices: for each set of knots, see `kdray.search.interpolation.fit`.
        evaluated: forward passes it took.
    """

    ends: np.ndarray
    matrices: list[np.ndarray]
    evaluated: int


def sample_size(groups: int) -> int:
    """Groups the guess is fitted to."""
    return min(groups, max(_LEAST_SAMPLE, min(_SAMPLE, groups // 50)))


def learn(pool: Any, seed: int, count: int, knots: tuple[tuple[int, ...], ...], sweep: Sweep, cut: Cut) -> Learned:
    """Ask about the images that are mixed and about every λ of `count` groups, and fit a guess from each of `knots`."""
    images, sample = Rows(), Rows()
    sweep(Ends(count=len(pool.images), **cut), images)
    ends = images.result()
    count = max(1, min(count, _MOST_LOGITS // (pool.group_size * ends.shape[1])))
    generator = numpy_generator(seed, "fit")
    groups = np.sort(sample_without(pool.num_groups, count, np.empty(0, dtype=np.int64), generator))
    sweep(Sample(group_size=pool.group_size, groups=groups, **cut), sample)
    i, j = (part.cpu().numpy() for part in pool.pair(torch.from_numpy(groups)))
    sides, logits = np.stack([ends[j], ends[i]], axis=1), sample.result()
    return Learned(
        ends=ends,
        matrices=[fit(pool.lambdas, some, sides, logits) for some in knots],
        evaluated=images.evaluated + sample.evaluated,
    )
