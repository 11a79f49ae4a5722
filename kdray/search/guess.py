"""The data that guesses are made from: source logits, and matrices fitted to a sample of groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdray.pools.permutation import sample_without
from kdray.search.interpolation import fit
from kdray.search.stages import Rows, SampleLogits, SourceLogits
from kdray.utils.lazy import torch
from kdray.utils.seeds import numpy_generator

if TYPE_CHECKING:
    from kdray.pools.base import SegmentPool
    from kdray.search.requests import SearchContext

# The guess is fitted to a sample of groups: a fiftieth of the pool, at least 20 groups, at most 1,000 groups and at
# most 4 million logits.
_SAMPLE = 1000
_LEAST_SAMPLE, _MOST_LOGITS = 20, 4_000_000


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Source logits and fitted matrices.

    Attributes:
        sources: source logits, float32 [N, K].
        matrices: one for each set of knots; see `kdray.search.interpolation.fit`.
        evaluated: forward passes made, in images.
    """

    sources: np.ndarray
    matrices: list[np.ndarray]
    evaluated: int


def sample_size(groups: int) -> int:
    """Number of groups that the guess is fitted to."""
    return min(groups, max(_LEAST_SAMPLE, min(_SAMPLE, groups // 50)))


def learn(pool: SegmentPool, count: int, knots: tuple[tuple[int, ...], ...], context: SearchContext) -> Learned:
    """Compute source logits and the logits of `count` random groups at every λ; fit a matrix for each set of knots."""
    images, sample = Rows(), Rows()
    context.run_stage(SourceLogits(cut=context.cut, count=len(pool.images)), images)
    sources = images.result()
    count = max(1, min(count, _MOST_LOGITS // (pool.group_size * sources.shape[1])))
    generator = numpy_generator(context.seed, "fit")
    groups = np.sort(sample_without(pool.num_groups, count, np.empty(0, dtype=np.int64), generator))
    context.run_stage(SampleLogits(cut=context.cut, group_size=pool.group_size, groups=groups), sample)
    i, j = (part.cpu().numpy() for part in pool.pair(torch.from_numpy(groups)))
    sides, logits = np.stack([sources[j], sources[i]], axis=1), sample.result()
    return Learned(
        sources=sources,
        matrices=[fit(pool.lambdas, some, sides, logits) for some in knots],
        evaluated=images.evaluated + sample.evaluated,
    )
