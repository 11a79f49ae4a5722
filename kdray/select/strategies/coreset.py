"""CORESET: k-center greedy on the student's features (Sener and Savarese, 2018, Algorithm 1)."""

from typing import ClassVar, Literal

import numpy as np

from kdray.pools.base import Pool
from kdray.search import FeaturesRequest
from kdray.sections.search import SearchSettings
from kdray.select.base import Looked, Selection, Strategy, Task, strategies
from kdray.select.sample import best_of, drawn_groups, sampled
from kdray.utils.lazy import torch

_BLOCK = 2048


@strategies.register
class Coreset(Strategy):
    """Chooses k candidates greedily, each the one farthest from all labelled images and earlier choices.

    Distances are between the student's features. The strategy compares the candidates of smallest margin of 50,000
    groups drawn at random, one per group (of 10 k groups if that is more, of all groups if they are fewer). Chosen
    pairs leave the pool.
    """

    features: ClassVar[bool] = True
    ordered: ClassVar[bool] = True
    prefix: ClassVar[str] = "up to 5,000 a round, or if the pool has up to 50,000 groups"

    strategy: Literal["coreset"] = "coreset"

    def choose(self, task: Task) -> Selection:
        """See `Strategy`."""
        if task.k == 0:
            return Selection(ids=np.empty(0, dtype=np.int64))
        ids = drawn_groups(task, sampled(task.free_groups, task.k))
        scores, passes = None, 0
        if task.pool.group_size > 1:  # a group of one candidate needs no forward pass to find its best
            best = best_of(task, ids)
            ids, scores, passes = best.ids, best.scores, best.evaluated
        features = task.ask(FeaturesRequest(ids=ids))
        centres = [task.ask(FeaturesRequest(ids=np.unique(task.taken)))] if len(task.taken) else []
        if task.known is not None and len(task.known):
            centres.append(task.ask(FeaturesRequest(images=task.known)))
        known = np.concatenate([part.rows for part in centres]) if centres else np.empty((0, features.rows.shape[1]))
        rows = k_center_greedy(features.rows, known.astype(np.float32), task.k)
        passes += features.evaluated + sum(part.evaluated for part in centres)
        missed = (task.free_groups - len(ids)) * (1 + task.pool.group_size * (task.pool.group_size > 1))
        looked = Looked(passes=passes, exhaustive=passes + missed, text=f"k-center greedy among {len(ids):,}")
        return Selection(ids=ids[rows], scores=None if scores is None else scores[rows], search=looked)

    def passes(self, pool: Pool, k: int, settings: SearchSettings) -> int:
        """See `Strategy`."""
        return sampled(pool.num_groups, k) * (1 + pool.group_size * (pool.group_size > 1))


def k_center_greedy(features: np.ndarray, centres: np.ndarray, k: int) -> np.ndarray:
    """Choose rows one after the other, each the farthest from all centres and earlier rows. A tie goes to the first.

    This takes O((M + k) n D). Without centres, the first chosen row is the one farthest from the mean.

    Args:
        features: float32 [n, D], k <= n.
        centres: float32 [M, D], the features of labelled images; M may be 0.

    Returns:
        int64 [k], distinct, in the order chosen.
    """
    from kdray.search.forward import one_thread  # imports torch

    with one_thread(), torch.inference_mode():  # the last bits of sums depend on the number of threads
        x, known = torch.from_numpy(features), torch.from_numpy(centres)
        middle = x.mean(dim=0)
        x, known = x - middle, known - middle
        squares = x.square().sum(dim=1)
        near = torch.full((len(x),), torch.inf) if len(known) else squares.clone()
        for part in known.split(_BLOCK) if len(known) else ():
            for begin in range(0, len(x), _BLOCK):
                rows = slice(begin, begin + _BLOCK)
                distances = squares[rows, None] - 2 * x[rows] @ part.T + part.square().sum(dim=1)
                near[rows] = torch.minimum(near[rows], distances.amin(dim=1))
        near.clamp_(min=0.0)
        chosen = torch.empty(k, dtype=torch.int64)
        for step in range(k):
            row = int(near.argmax())
            chosen[step] = row
            distances = (squares - 2 * (x @ x[row]) + squares[row]).clamp_(min=0.0)
            near = distances if step == 0 and not len(known) else torch.minimum(near, distances)
            near[chosen[: step + 1]] = -1.0
    return chosen.numpy()
