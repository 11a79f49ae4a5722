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
    left, and so on with what parts leave over: what is near in the pool is seldom drawn together. Of neighbours with at
    most 1 between them one is left that has it all, each with its share of the chances, in whatever order pairs are
    taken: so these are settled at one stroke.

    Args:
        parts: (ids, int64 [B] ascending; probabilities, float64 [B]), ids ascending from part to part.
        generator: draws at most one number a candidate.

    Returns:
        int64 ids, ascending.

    Raises:
        ValueError: a probability not in [0, 1], or a sum that is not whole.
    """
    drawn, total, count = [], 0.0, 0
    ids, values = np.empty(0, dtype=np.int64), np.empty(0)  # still uncertain, not yet paired
    for part, probs in parts:
        least, most = (float(probs.min()), float(probs.max())) if len(probs) else (0.0, 0.0)
        if not (least >= 0.0 and most <= 1.0):
            raise ValueError("probabilities must lie in [0, 1]")
        total, count = total + float(probs.sum()), count + len(probs)
        if most == 1.0:
            drawn.append(part[probs == 1.0])
        left, value = _thinned(part, probs, generator, most)
        ids, values = np.concatenate([ids, left]), np.concatenate([values, value])
        if len(ids) >= _BLOCK:
            some, ids, values = _paired(ids, values, generator)
            drawn.append(some)
    if abs(total - round(total)) > 1e-6 + _OFF * count:
        raise ValueError(f"probabilities must sum to a whole number, they sum to {total!r}")
    some, ids, values = _paired(ids, values, generator)
    # One is left, and by then 0 or 1 but for the last bits.
    return np.sort(np.concatenate([*drawn, some, ids[values > 0.5]]))


def _paired(
    ids: np.ndarray, values: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours paired until one is left: (ids drawn, the one that is still uncertain or none [0 or 1], its
    probability)."""
    drawn = [ids[:0]]
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


def _thinned(
    ids: np.ndarray, values: np.ndarray, generator: np.random.Generator, most: float
) -> tuple[np.ndarray, np.ndarray]:
    """The uncertain ones, in order; of small neighbours with at most 1 between them only the one that is left, and its
    probability.

    Args:
        most: the largest value.
    """
    if most > 0.5:
        large, small = (values > 0.5) & (values < 1.0), values <= 0.5
        left, value = _thinned(ids[small], values[small], generator, 0.5)
        left, value = np.concatenate([ids[large], left]), np.concatenate([values[large], value])
        order = np.argsort(left, kind="stable")
        return left[order], value[order]
    if len(values) == 0 or (total := np.cumsum(values))[-1] == 0.0:
        return ids[:0], values[:0]
    # Cut at multiples of what the largest value leaves of 1: between two cuts lies less than that, and one value.
    room = 1.0 - most
    ends = np.searchsorted(total, room * np.arange(1, int(total[-1] / room) + 1))
    last = np.append(ends[ends > 0], len(total)) - 1
    last = last[np.append(np.diff(last) > 0, True)]
    begin = np.concatenate([[0.0], total[last[:-1]]])
    rest = total[last] - begin
    one = np.minimum(np.searchsorted(total, begin + generator.random(len(rest)) * rest, side="right"), last)
    some = rest > 0.0
    return ids[one[some]], np.minimum(rest[some], 1.0)


def _blocks(probs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for begin in range(0, len(probs), _BLOCK):
        some = probs[begin : begin + _BLOCK]
        yield np.arange(begin, begin + len(some)), some
