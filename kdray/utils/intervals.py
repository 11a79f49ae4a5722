"""Confidence intervals of a share."""

LEVEL = 0.95
"""Confidence level of the intervals that are shown."""


def clopper_pearson(hits: int, count: int, tail: float = (1 - LEVEL) / 2) -> tuple[float, float]:
    """The exact interval of a share of which `hits` of `count` draws were seen (Clopper and Pearson, 1934).

    Args:
        count: at least 1.
        tail: probability left out on each side.
    """
    from scipy.special import betaincinv

    low = float(betaincinv(hits, count - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return low, high
