"""CLUSTER-MARGIN (Citovsky et al., 2021): candidates of small margin, taken in turn from clusters of the features."""

from math import ceil
from typing import ClassVar, Literal

import numpy as np

from kdray.pools.base import Pool
from kdray.search import FeaturesRequest
from kdray.search.topk import lowest
from kdray.sections.search import SearchSettings
from kdray.select.base import Looked, Selection, Strategy, Task, strategies
from kdray.select.sample import best_of, drawn_groups, sampled

BUCKET = 10_000
"""Most candidates clustered together. Memory and time grow with the square of their number (RAD, section D.2)."""
_EACH = 20  # mean number of candidates in a cluster: section D.2 makes 500 clusters of 10,000 candidates
_WIDE = 1.25  # candidates of small margin for each chosen candidate: k_m / k_t


@strategies.register
class ClusterMargin(Strategy):
    """Chooses k of the 1.25 k candidates of smallest margin, at most one per pair, in turn from clusters of features.

    The strategy finds the best candidate of each of `looked_at` groups drawn at random. It clusters the `clustered`
    candidates of smallest margin by the student's features. The paper clusters the whole pool once, with the first
    student; here each round clusters with its own student. Chosen groups leave the pool.
    """

    features: ClassVar[bool] = True
    ordered: ClassVar[bool] = True
    held: ClassVar[str] = "the distances between candidates"

    strategy: Literal["cluster-margin"] = "cluster-margin"

    def choose(self, task: Task) -> Selection:
        """See `Strategy`."""
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
            text=f"{len(np.unique(clusters)):,} clusters of the {len(ids):,} smallest margins, {len(groups):,} scored",
        )
        return Selection(ids=ids[rows], scores=margins[rows], search=looked)

    def passes(self, pool: Pool, k: int, settings: SearchSettings) -> int:
        """See `Strategy`."""
        count = looked_at(pool, pool.num_groups, k) if k else 0
        return count * pool.group_size + (clustered(count, k) if k else 0)

    def driver_bytes(self, pool: Pool, k: int) -> int:
        """See `Strategy`: the float64 distances between all candidates of a bucket, and a working copy of them."""
        return 8 * min(BUCKET, clustered(looked_at(pool, pool.num_groups, k), k)) ** 2 if k else 0


def looked_at(pool: Pool, free: int, k: int) -> int:
    """Number of groups, out of `free`, that are scored for a choice of k: `sampled`, or all in a pool of images.

    Of millions of pairs, some hundred thousand have a λ at which two classes are nearly equally probable. Which of
    them the grid hits best carries no information, and finding out takes a forward pass for every candidate.
    """
    return max(k, free) if pool.real else sampled(free, k)


def clustered(seen: int, k: int) -> int:
    """Number of groups, out of `seen` scored groups, that are clustered for a choice of k: at least a whole bucket."""
    return min(seen, max(BUCKET, ceil(_WIDE * k)))


def cluster(features: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Cluster rows by hierarchical agglomerative clustering with average linkage, about twenty rows in a cluster.

    The rows are first divided at random into buckets of at most 10,000. Each bucket is clustered separately.

    Args:
        features: float32 [n, D].

    Returns:
        int64 [n], the cluster number of each row.
    """
    from sklearn.cluster import AgglomerativeClustering  # slow to import, and only this strategy needs it

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
    """Choose k of the 1.25 k rows of smallest margin, in turn from their clusters (Algorithm 2 of the paper).

    Each turn takes a random row from every cluster that has rows left. Clusters with fewer such rows come first.

    Returns:
        int64 [k], in the order chosen.
    """
    few = np.argsort(margins, kind="stable")[: max(k, min(len(margins), ceil(_WIDE * k)))]
    few = generator.permutation(np.sort(few))
    # The turn of a row is the number of rows of its cluster that precede it in the random order.
    order = np.argsort(clusters[few], kind="stable")
    _, starts, sizes = np.unique(clusters[few][order], return_index=True, return_counts=True)
    turn = np.arange(len(few)) - np.repeat(starts, sizes)
    size = np.repeat(sizes, sizes)
    return few[order][np.lexsort((clusters[few][order], size, turn))][:k]
