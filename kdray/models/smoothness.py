"""How tightly a network's features cluster by class, and how soft its answers are (MIX-KD, section 3)."""

import torch
from torch import Tensor


def v_measure(features: Tensor, labels: Tensor, clusters: int, seed: int = 0) -> float:
    """V-measure of the classes and the k-means clusters of features, in [0, 1] (Rosenberg and Hirschberg, 2007).

    It is the harmonic mean of homogeneity, which says how far a cluster has one class, and completeness, which says how
    far a class lies in one cluster. MIX-KD (Figure 3) takes the features in front of the last layer
    (`kdray.models.features.penultimate`), of five similar or five different classes at a time.

    Args:
        features: float [N, D].
        labels: int64 [N].
        clusters: number of clusters, usually that of the classes.
        seed: of the ten starts of k-means.

    Raises:
        ValueError: there is not one label for each row, or there are fewer rows than clusters.
    """
    if len(features) != len(labels):
        raise ValueError(f"{len(labels)} labels of {len(features)} rows of features; each row needs one")
    if not 1 <= clusters <= len(features):
        raise ValueError(f"{clusters} clusters of {len(features)} rows; there must be 1 at least and as many rows")
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.metrics import v_measure_score

    assigned = KMeans(clusters, n_init=10, random_state=seed % (1 << 32)).fit_predict(features.double().cpu().numpy())
    return float(v_measure_score(labels.cpu().numpy(), assigned))


def mean_entropy(probs: Tensor) -> float:
    """Mean Shannon entropy of probabilities [N, K], in nats: the softness of answers (MIX-KD, Figure 4).

    A probability of zero adds nothing.
    """
    return float(torch.special.entr(probs.double()).sum(dim=1).mean())


def class_means(probs: Tensor, labels: Tensor) -> Tensor:
    """Mean distribution of the images of each class, float64 [K, K]: row k of class k (MIX-KD, Figure 4, the bars).

    A class without images has a row of NaN.

    Args:
        probs: float [N, K].
        labels: int64 [N].
    """
    classes = probs.shape[1]
    sums = torch.zeros(classes, classes, dtype=torch.float64, device=probs.device)
    sums.index_add_(0, labels, probs.double())
    return sums / labels.bincount(minlength=classes)[:, None]
