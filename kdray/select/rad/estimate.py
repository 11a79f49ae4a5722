"""The estimate of RAD's m (section 3.3), from a few queries before the first selection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdray.images import ImageSet
from kdray.pools.base import PairPool, Pool, is_paired
from kdray.pools.permutation import sample_without
from kdray.select.rad.mistakes import Estimate, estimate_share, foreign_classes
from kdray.utils.lazy import torch
from kdray.utils.seeds import numpy_generator

if TYPE_CHECKING:
    from torch import Tensor


_MOST_LOOKED_AT = 4_000_000  # pairs, where few of them tell anything: some seconds and 100 MB


@dataclass(frozen=True, kw_only=True)
class Estimation:
    """How m is estimated.

    Attributes:
        queries: number of images to query.
        validation: labelled images that they are drawn from; None means the pool.
    """

    queries: int
    validation: ImageSet | None = None


@dataclass(frozen=True, kw_only=True)
class EstimateImages:
    """The images to query for the estimate, with their candidate ids or their true labels.

    Attributes:
        images: uint8 [B, C, H, W].
        ids: int64 [B], candidate ids; None for labelled images.
        labels: int64 [B], true labels; None for candidates.
    """

    images: Tensor
    ids: np.ndarray | None = None
    labels: np.ndarray | None = None


def draw_images(
    pool: Pool, taken: np.ndarray, estimation: Estimation, seed: int, source_classes: Callable[[], np.ndarray]
) -> EstimateImages:
    """Draw images uniformly from the labelled images, or from the pool with at most one candidate per group.

    Of a pool only pairs are drawn of whose images both classes are known, as nothing can be told from others. There may
    be fewer of these than are wanted.

    Args:
        taken: int64, ids of the candidates that have left the pool.
        source_classes: see `judge`.
    """
    generator, count, validation = numpy_generator(seed, "estimate"), estimation.queries, estimation.validation
    if validation is not None:
        rows = np.sort(generator.choice(len(validation), count, replace=False))
        chosen = torch.from_numpy(rows)
        return EstimateImages(images=validation.images[chosen], labels=validation.true_labels[chosen].numpy())
    if not is_paired(pool):
        raise ValueError("without labels, m can be estimated only for a pool of pairs")
    gone = np.unique(taken // pool.group_size)
    groups = np.sort(_telling(pool, count, gone, source_classes() >= 0, generator))
    ids = groups * pool.group_size + generator.integers(pool.group_size, size=len(groups))
    return EstimateImages(images=pool.render(torch.from_numpy(ids)), ids=ids)


def _telling(
    pool: PairPool, count: int, gone: np.ndarray, known: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Up to `count` random groups, int64, of pairs of images that are `known`, bool [N]; none of those in `gone`."""
    free, state = pool.num_groups - len(gone), generator.bit_generator.state
    wanted = count
    while True:
        generator.bit_generator.state = state  # so a larger sample begins with the smaller one
        groups = sample_without(pool.num_groups, wanted, gone, generator)
        i, j = (part.cpu().numpy() for part in pool.pair(torch.from_numpy(groups)))
        telling: np.ndarray = groups[known[i] & known[j]][:count]
        if len(telling) == count or wanted >= min(free, _MOST_LOOKED_AT):
            return telling
        wanted = min(free, _MOST_LOOKED_AT, 4 * wanted)


def judge(
    drawn: EstimateImages,
    rows: np.ndarray,
    labels: np.ndarray,
    pool: Pool,
    source_classes: Callable[[], np.ndarray],
) -> Estimate:
    """Estimate m from the teacher's answers.

    Args:
        rows: int64, the rows of the images that have an answer.
        labels: int64, the teacher's classes for these images.
        source_classes: returns the teacher's classes for the images that the pool mixes, int64 [N]; -1 if unknown.
    """
    if drawn.labels is not None:
        return estimate_share(labels != drawn.labels[rows], pool.num_groups, "validation")
    assert drawn.ids is not None, "see `draw_images`"
    assert is_paired(pool), "see `draw_images`"
    i, j = pool.pair(torch.from_numpy(drawn.ids[rows] // pool.group_size))
    classes = source_classes()
    return estimate_share(foreign_classes(labels, classes[i.numpy()], classes[j.numpy()]), pool.num_groups, "sources")
