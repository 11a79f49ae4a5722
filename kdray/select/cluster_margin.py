"""CLUSTER-MARGIN (Citovsky et al., 2021): of those with a small margin, some of every cluster, the smallest first."""

from math import ceil

import numpy as np

from kdray.search import FeaturesRequest, Method
from kdray.search.lowest import lowest
from kdray.select.sample import best_of, drawn_groups, sampled
from kdray.select.task import Looked, Selection, Task

BUCKET = 10_000
"""Candidates clustered at a time: it takes memory and time in their square (RAD, section D.2)."""
_EACH = 20  # candidates a cluster, on average: 500 clusters of 10,000 in section D.2
_WIDE = 1.25  # candidates of small margin for each that is chosen: k_m / k_t


def cluster_margin(task: Task) -> Selection:
    """k of the 1.25 k candidates of smallest margin, at most one a group, taken in turn from the clusters they lie in.

    Looks at the best candidate of each of some groups drawn at random (`looked_at`) and makes clusters of the student's
    features of those that may be chosen or lie near them (`clustered`). The paper clusters the whole pool, and once,
    with the first student; here each round does, with its own. Chosen groups leave the pool.
    """
    if task.k == 0:
        return Selection(ids=np.empty(0, dtype=np.int64), scores=np.empty(0, dtype=np.float32))
    groups = drawn_groups(task, looked_at(task.pool, task.free_groups, task.k))
    best = best_of(task, groups)
    near = np.sort(lowest(best.scores, best.ids, clustered(len(groups), task.k)))
    ids, margins = best.ids[near], best.scores[near]
    features = task.ask(FeaturesRequest(ids=ids))
    clusters = cluster(features.rows, task.generator)
    rows = round_robin(margins, clusters, task.k, task.generator)
    looked = Looked(
        passes=best.evaluated + features.evaluated,
        exhaustive=task.free_groups * task.pool.group_size + features.evaluated,
        text=f"{len(np.unique(clusters)):,} clusters of the {len(ids):,} smallest margins of {len(groups):,}",
    )
    return Selection(ids=ids[rows], scores=margins[rows], search=looked)


def cluster_margin_passes(pool, k: int, method: Method, score: str) -> int:
    """See `kdray.select.task.Passes`."""
    count = looked_at(pool, pool.num_groups, k) if k else 0
    return count * pool.group_size + (clustered(count, k) if k else 0)


def distances_held(pool, k: int) -> int:
    """See `kdray.select.task.Holds`: float64 distances between all candidates of a bucket, and a copy to work on."""
    return 8 * min(BUCKET, clustered(looked_at(pool, pool.num_groups, k), k)) ** 2 if k else 0


def looked_at(pool, free: int, k: int) -> int:
    """Of how many of `free` groups margins are asked for to choose k: as `sampled` has it, and of all images where a
    group is an image.

    Of millions of pairs a hundred thousands have a λ at which two classes are as good as level. Which of them the grid
    happens to hit best says nothing; to find it out takes a forward pass for every candidate.
    """
    return max(k, free) if pool.group_size == 1 else sampled(free, k)


def clustered(seen: int, k: int) -> int:
    """How many of the groups that were `seen` are clustered to choose k: those of smallest margin, a whole bucket at
    least."""
    return min(seen, max(BUCKET, ceil(_WIDE * k)))


def cluster(features: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Clusters of some twenty rows by hierarchical agglomerative clustering with average linkage; rows are dealt into
    random buckets of 10,000 at most first.

    Args:
        features: float32 [n, D].

    Returns:
        int64 [n], the number of each row's cluster.
    """
    from sklearn.cluster import AgglomerativeClustering  # slow to import, and few need it

    n = len(features)
    buckets = np.array_split(generator.permutation(n), max(1, ceil(n / BUCKET)))
    labels, known = np.zeros(n, dtype=np.int64), 0
    for rows in (np.sort(bucket) for bucket in buckets):
        count = max(1, ceil(len(rows) / _EACH))
        if len(rows) > 1:
            found = AgglomerativeClustering(n_clusters=count, linkage="average").fit_predict(features[rows])
            labels[rows] = known + found
        elif len(rows):
            labels[rows] = known
        known += count
    return labels


def round_robin(margins: np.ndarray, clusters: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """k of the 1.25 k rows of smallest margin: one at random from each cluster in turn, clusters by ascending number of
    such rows, those that are used up left out (Algorithm 2 of the paper).

    Returns:
        int64 [k], in the order chosen.
    """
    few = np.argsort(margins, kind="stable")[: max(k, min(len(margins), ceil(_WIDE * k)))]
    few = generator.permutation(np.sort(few))
    # The turn of a row: how many of its cluster come before it in the random order.
    order = np.argsort(clusters[few], kind="stable")
    _, starts, sizes = np.unique(clusters[few][order], return_index=True, return_counts=True)
    turn = np.arange(len(few)) - np.repeat(starts, sizes)
    size = np.repeat(sizes, sizes)
    return few[order][np.lexsort((clusters[few][order], size, turn))][:k]
