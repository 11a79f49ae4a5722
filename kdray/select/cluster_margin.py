"""CLUSTER-MARGIN (Citovsky et al., 2021): of those with a small margin, some of every cluster, the smallest first."""

from math import ceil

import numpy as np

from kdray.search import FeaturesRequest
from kdray.select.sample import drawn_candidates
from kdray.select.task import Looked, Selection, Task

BUCKET = 10_000
"""Candidates clustered at a time: it takes memory and time in their square (RAD, section D.2)."""
_EACH = 20  # candidates a cluster, on average: 500 clusters of 10,000 in section D.2
_WIDE = 1.25  # candidates of small margin for each that is chosen: k_m / k_t


def cluster_margin(task: Task) -> Selection:
    """k of the 1.25 k candidates of smallest margin, taken in turn from the clusters they lie in.

    Clusters are of the student's features, of the candidates that `kdray.select.coreset.coreset` looks at. The paper
    clusters once, with the first student; here each round does, with its own.
    """
    ids, margins, passes = drawn_candidates(task, margins=True)
    if task.k == 0:
        return Selection(ids=ids[:0], scores=margins[:0])
    features = task.ask(FeaturesRequest(ids=ids))
    clusters = cluster(features.rows, task.generator)
    rows = round_robin(margins, clusters, task.k, task.generator)
    count = len(np.unique(clusters))
    text = f"{count:,} clusters of {len(ids):,} candidates"
    looked = Looked(passes=passes + features.evaluated, exhaustive=task.candidates, text=text)
    return Selection(ids=ids[rows], scores=margins[rows], search=looked)


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
