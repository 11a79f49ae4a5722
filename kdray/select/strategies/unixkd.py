"""UNIXKD (Xu et al., 2020): query the images of highest uncertainty, and mixes of less uncertain images."""

from math import ceil
from typing import ClassVar, Literal

import numpy as np

from kdray.errors import PoolExhausted
from kdray.pools.base import Pool, PoolSection, SegmentPool, is_linear
from kdray.search import SourceLogitsRequest, entropy
from kdray.sections.search import SearchSettings
from kdray.select.base import Looked, Selection, Strategy, Task, strategies
from kdray.utils.lazy import torch

_PURE = 2 / 3  # share of the queried images that are not mixed: b = 32 of k = 48 in the authors' code
_TRIES = 64


@strategies.register
class Unixkd(Strategy):
    """Chooses the images of highest entropy. The most uncertain two thirds stay pure, the others are mixed at random.

    The paper does this in every mini-batch. It sorts the images by the student's uncertainty, keeps the first b pure,
    mixes the next ones with random images by a weight drawn from [0, 1], and does not query the rest. Here the pool's
    images take the place of the mini-batch. A candidate is a pair of images at a λ of the grid, so a pure image is a
    candidate at the λ nearest 1 (it is exactly pure if the grid contains 1). Images that were chosen before, in this
    round or an earlier one, come last. They are always mixed, with other partners. So do the images of round 0 if the
    grid contains 0 or 1.
    """

    per: ClassVar[Literal["group", "candidate"]] = "candidate"

    strategy: Literal["unixkd"] = "unixkd"

    def choose(self, task: Task) -> Selection:
        """See `Strategy`."""
        pool, k = task.pool, task.k
        assert is_linear(pool), "see `check`"
        if k > len(pool) - len(np.unique(task.taken)):
            raise PoolExhausted(f"{k:,} candidates wanted, too few are left for unixkd; lower budget.queries")
        logits = task.ask(SourceLogitsRequest())
        uncertain = entropy(torch.from_numpy(logits.rows).softmax(dim=1)).numpy()
        turns = _turns(pool, task.taken, len(uncertain))
        if {0.0, 1.0} & set(pool.lambdas):  # candidates are images then, and some of these have their answers
            turns[task.asked] += 1
        order = np.lexsort((-uncertain, turns))
        pure = min(ceil(_PURE * k), int(np.count_nonzero(turns == 0)))
        gone: set[int] = set(task.taken.tolist())
        chosen: list[int] = []
        for rank in range(k):
            image = int(order[rank % len(order)])
            candidate = _mixed(pool, image, rank < pure, gone, task.generator)
            gone.add(candidate)
            chosen.append(candidate)
        ids = np.array(chosen, dtype=np.int64)
        return Selection(ids=ids, search=Looked(passes=logits.evaluated, exhaustive=len(pool)))

    def passes(self, pool: Pool, k: int, settings: SearchSettings) -> int:
        """See `Strategy`."""
        return SourceLogitsRequest().passes(pool, settings)

    def check(self, pool: PoolSection, *, labelled: bool, validation: bool) -> None:
        """See `Strategy`."""
        if not pool.segments:
            raise ValueError(
                "select.strategy: unixkd buys mixes of images at every λ of a grid; set pool.kind to mixup"
            )
        if not pool.complete:
            raise ValueError("select.strategy: unixkd mixes any image with any other; set pool.pairs to all")
        super().check(pool, labelled=labelled, validation=validation)


def _turns(pool: SegmentPool, taken: np.ndarray, images: int) -> np.ndarray:
    """How often each image has been the larger part of a taken candidate."""
    i, j = (part.cpu().numpy() for part in pool.pair(torch.from_numpy(taken // pool.group_size)))
    larger = np.array(pool.lambdas)[taken % pool.group_size] >= 0.5
    return np.bincount(np.where(larger, i, j), minlength=images)


def _mixed(pool: SegmentPool, image: int, pure: bool, gone: set[int], generator: np.random.Generator) -> int:
    """A candidate not in `gone` that mixes `image` with a random other image, or any candidate if none is found. Unless
    `pure`, it shows both, where the grid has such a λ: an image alone may have its answer."""
    lambdas = np.array(pool.lambdas)
    inside = (lambdas > 0) & (lambdas < 1)
    if not pure and inside.any():
        lambdas = np.where(inside, lambdas, np.inf)
    for _ in range(_TRIES):
        weight = 1.0 if pure else 1.0 - generator.random()
        partner = int(generator.integers(len(pool.images) - 1))
        partner += partner >= image
        if image < partner:
            group, index = pool.group(image, partner), int(np.abs(lambdas - weight).argmin())
        else:
            group, index = pool.group(partner, image), int(np.abs(lambdas - (1.0 - weight)).argmin())
        if (candidate := group * pool.group_size + index) not in gone:
            return candidate
    # Most candidates of `image` are gone: choose any candidate that is left.
    while True:
        candidate = int(generator.integers(len(pool)))
        if candidate not in gone:
            return candidate
