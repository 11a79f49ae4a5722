"""UNIXKD (Xu et al., 2020): ask about images the student is uncertain of, and about mixes of less uncertain ones."""

from math import ceil

import numpy as np
import torch

from kdray.errors import PoolExhausted
from kdray.scores import entropy
from kdray.search import EndsRequest, Method
from kdray.search.requests import expected_passes
from kdray.select.task import Looked, Selection, Task

_PURE = 2 / 3  # of what is asked stays as it is: b = 32 of k = 48 in the authors' code
_TRIES = 64


def unixkd(task: Task) -> Selection:
    """The images of highest entropy, most uncertain first; after the first two thirds each is mixed with another.

    In the paper this is done in every mini-batch: images are sorted by the student's uncertainty, the first b stay
    pure, the next are mixed with random ones with a weight drawn from [0, 1], the rest are not asked about. Here the
    pool's images take the place of the mini-batch. A candidate is a pair of them at a λ of the grid, so pure means the
    λ nearest 1 (that is pure where the grid holds 1). Images that have had their turn, in earlier rounds too, come
    last, with other partners and always mixed.
    """
    k = task.k
    if k > task.candidates - len(np.unique(task.taken)):
        raise PoolExhausted(f"{k:,} candidates wanted, too few are left for unixkd; lower budget.queries")
    ends = task.ask(EndsRequest())
    uncertain = entropy(torch.from_numpy(ends.rows).softmax(dim=1)).numpy()
    turns = _turns(task, len(uncertain))
    order = np.lexsort((-uncertain, turns))
    pure = min(ceil(_PURE * k), int(np.count_nonzero(turns == 0)))
    gone, chosen = set(task.taken.tolist()), []
    for rank in range(k):
        image = int(order[rank % len(order)])
        candidate = _mixed(task, image, rank < pure, gone)
        gone.add(candidate)
        chosen.append(candidate)
    ids = np.array(chosen, dtype=np.int64)
    return Selection(ids=ids, search=Looked(passes=ends.evaluated, exhaustive=task.candidates))


def unixkd_passes(pool, k: int, method: Method, score: str) -> int:
    """See `kdray.select.task.Passes`."""
    return expected_passes(pool, EndsRequest(), method)


def _turns(task: Task, images: int) -> np.ndarray:
    """How often each image has been the larger part of a candidate that is taken."""
    i, j = (part.cpu().numpy() for part in task.pool.pair(torch.from_numpy(task.taken // task.pool.group_size)))
    larger = np.array(task.pool.lambdas)[task.taken % task.pool.group_size] >= 0.5
    return np.bincount(np.where(larger, i, j), minlength=images)


def _mixed(task: Task, image: int, pure: bool, gone: set[int]) -> int:
    """A candidate of `image` and a random other one that has not been chosen."""
    pool, generator = task.pool, task.generator
    lambdas = np.array(pool.lambdas)
    for _ in range(_TRIES):
        weight = 1.0 if pure else 1.0 - generator.random()
        partner = int(generator.integers(len(pool.images) - 1))
        partner += partner >= image
        if image < partner:
            group, index = pool.group(image, partner), int(np.abs(lambdas - weight).argmin())
        else:
            group, index = pool.group(partner, image), int(np.abs(1.0 - lambdas - weight).argmin())
        if (candidate := group * pool.group_size + index) not in gone:
            return candidate
    # Crowded: any candidate that is left will do.
    while True:
        candidate = int(generator.integers(task.candidates))
        if candidate not in gone:
            return candidate
