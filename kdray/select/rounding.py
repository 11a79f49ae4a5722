"""Draw exactly b of n with given probabilities: dependent rounding (Chekuri et al., 2009; RAD, Algorithm 2)."""

from collections.abc import Iterable, Iterator

import numpy as np

_BLOCK = 1 << 16
_OFF = 1e-9
"""By how much a sum of probabilities may miss a whole number, for each of them; a millionth in all is nothing."""


def dependent_round(probs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Positions drawn: exactly sum(probs) of them, each with its probability.

    Arguments and errors as of `round_parts`, in one array: float [n].

    Returns:
        int64 [sum(probs)], ascending.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim != 1:
        raise ValueError(f"probs must be one number for each of n, got shape {probs.shape}")
    return round_parts(_blocks(probs), generator)


def round_parts(parts: Iterable[tuple[np.ndarray, np.ndarray]], generator: np.random.Generator) -> np.ndarray:
    """`dependent_round` of candidates that come in parts, of which one at a time is held.

    Algorithm 2 in O(n). It takes any two uncertain candidates and moves probability from one to the other until one of
    them is certain. Here neighbours are taken, all such pairs of a part at once, then those left over, until one is
    left, and so on with what parts leave over: what is near in the pool is seldom drawn together.

    Args:
        parts: (ids, int64 [B] ascending; probabilities, float64 [B]), ids ascending from part to part.
        generator: draws at most one number a candidate.

    Returns:
        int64 ids, ascending.

    Raises:
        ValueError: a probability not in [0, 1], or a sum that is not whole.
    """
    drawn, ids, values, total, count = [], [], [], 0.0, 0
    for part, probs in parts:
        if not ((probs >= 0.0) & (probs <= 1.0)).all():
            raise ValueError("probabilities must lie in [0, 1]")
        total, count = total + float(probs.sum()), count + len(probs)
        some, left, value = _settle(part, probs, generator)
        drawn.append(some)
        ids.append(left)
        values.append(value)
    if abs(total - round(total)) > 1e-6 + _OFF * count:
        raise ValueError(f"probabilities must sum to a whole number, they sum to {total!r}")
    last, left, value = _settle(_joined(ids, np.int64), _joined(values, np.float64), generator)
    # One is left, and by then 0 or 1 but for the last bits.
    return np.sort(_joined([*drawn, last, left[value > 0.5]], np.int64))


def _settle(
    ids: np.ndarray, values: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids drawn, the one that is still uncertain or none [0 or 1], its probability)."""
    drawn = [ids[values == 1.0]]
    uncertain = (values > 0.0) & (values < 1.0)
    ids, values = ids[uncertain], values[uncertain]
    while len(ids) > 1:
        even = len(ids) // 2 * 2
        i, j, a, b = ids[0:even:2], ids[1:even:2], values[0:even:2], values[1:even:2]
        both = a + b
        over = both >= 1.0  # one of the two is drawn and the other keeps the rest; else one is not, and leaves it all
        first = generator.random(len(i)) < np.where(over, (1.0 - b) / (2.0 - both), a / both)  # has the larger part
        drawn.append(np.where(first, i, j)[over])
        rest = np.where(over, both - 1.0, both)
        still = rest > 0.0
        ids = np.concatenate([np.where(first != over, i, j)[still], ids[even:]])
        values = np.concatenate([rest[still], values[even:]])
    return np.concatenate(drawn), ids, values


def _blocks(probs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for begin in range(0, len(probs), _BLOCK):
        some = probs[begin : begin + _BLOCK]
        yield np.arange(begin, begin + len(some)), some


def _joined(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
