"""The estimate of RAD's m (section 3.3): a few answers, bought before the first choice, on how often a teacher errs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdray.images import ImageSet
from kdray.pools.order import sample_without
from kdray.seeds import numpy_generator
from kdray.select.mistakes import Estimate, estimate, strangers


@dataclass(frozen=True, kw_only=True)
class Estimation:
    """How m is found out.

    Attributes:
        queries: how many images to ask about.
        validation: labelled images to draw them from; None: from the pool.
    """

    queries: int
    validation: ImageSet | None = None


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images to ask about, with their candidate ids or their true labels.

    Attributes:
        images: uint8 [B, C, H, W].
        ids: int64 [B], of candidates of the pool; or None.
        labels: int64 [B], the truth; or None.
    """

    images: Tensor
    ids: np.ndarray | None = None
    labels: np.ndarray | None = None


def sample(pool: Any, taken: np.ndarray, estimation: Estimation, seed: int) -> Sample:
    """Draw it: uniformly from the labelled images, or from the pool, at most one candidate of a group."""
    generator, count = numpy_generator(seed, "estimate"), estimation.queries
    if estimation.validation is not None:
        rows = np.sort(generator.choice(len(estimation.validation), count, replace=False))
        chosen = torch.from_numpy(rows)
        return Sample(images=estimation.validation.images[chosen], labels=estimation.validation.labels[chosen].numpy())
    groups = np.sort(sample_without(pool.num_groups, count, np.unique(taken // pool.group_size), generator))
    ids = groups * pool.group_size + generator.integers(pool.group_size, size=count)
    return Sample(images=pool.render(torch.from_numpy(ids)), ids=ids)


def judge(drawn: Sample, rows: np.ndarray, labels: np.ndarray, pool: Any, said: Callable[[], np.ndarray]) -> Estimate:
    """What the answers say of m.

    Args:
        rows: int64, which of the sample were answered.
        labels: int64, the teacher's classes for those.
        said: gives its classes for the images that are mixed, int64 [N]; -1 where it gave none.
    """
    if drawn.labels is not None:
        return estimate(labels != drawn.labels[rows], pool.num_groups, "validation")
    i, j = pool.pair(torch.from_numpy(drawn.ids[rows] // pool.group_size))
    classes = said()
    return estimate(strangers(labels, classes[i.numpy()], classes[j.numpy()]), pool.num_groups, "ends")
