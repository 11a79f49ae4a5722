"""CORESET: k-center greedy on the student's features (Sener and Savarese, 2018, Algorithm 1)."""

import numpy as np
import torch

from kdray.search import FeaturesRequest, Method
from kdray.search.forward import one_thread
from kdray.select.sample import best_of, drawn_groups, sampled
from kdray.select.task import Looked, Selection, Task

_BLOCK = 2048


def coreset(task: Task) -> Selection:
    """The k candidates that leave the least distance between any candidate and its nearest labelled one, greedily.

    Candidates are one of each group, its best by the margin, of at most 50,000 groups drawn at random (ten for each
    that is chosen, where that is more).
    """
    if task.k == 0:
        return Selection(ids=np.empty(0, dtype=np.int64))
    ids = drawn_groups(task, sampled(task.free_groups, task.k))
    scores, passes = None, 0
    if task.pool.group_size > 1:  # else a group is one candidate, and nobody need be asked which
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


def coreset_passes(pool, k: int, method: Method, score: str) -> int:
    """See `kdray.select.task.Passes`."""
    return sampled(pool.num_groups, k) * (1 + pool.group_size * (pool.group_size > 1))


def k_center_greedy(features: np.ndarray, centres: np.ndarray, k: int) -> np.ndarray:
    """Rows chosen one after the other, each the farthest from all centres and from those before it; ties to the first.

    Takes O((M + k) n D). Without a centre the first one chosen is the row farthest from the mean.

    Args:
        features: float32 [n, D], k <= n.
        centres: float32 [M, D], of what is labelled; M may be 0.

    Returns:
        int64 [k], distinct, in the order chosen.
    """
    with one_thread(), torch.inference_mode():  # sums depend on the number of threads in the last bits
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
