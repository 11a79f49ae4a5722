"""Dependent rounding: draw exactly b of n with given probabilities (Chekuri et al., 2009; RAD, Algorithm 2)."""

from collections.abc import Iterable, Iterator

import numpy as np

_BLOCK = 1 << 16
_OFF = 1e-9
"""Rounding error allowed for each probability when their sum is compared with a whole number, in addition to 1e-6."""


def dependent_round(probs: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw exactly sum(probs) positions, each with its probability.

    Args:
        probs: float [n].
        generator: draws at most one number per candidate.

    Returns:
        int64 [sum(probs)], ascending.

    Raises:
        ValueError: a probability is not in [0, 1], or their sum is not whole.
    """
    probs = np.asarray(probs, dtype=np.float64)
    if probs.ndim != 1:
        raise ValueError(f"probs must be one number for each of n, got shape {probs.shape}")
    return round_parts(_blocks(probs), generator)


def round_parts(parts: Iterable[tuple[np.ndarray, np.ndarray]], generator: np.random.Generator) -> np.ndarray:
    """`dependent_round` for candidates that come in parts. Only one part is in memory at a time.

    This is Algorithm 2 in O(n). The algorithm takes two uncertain candidates and moves probability from one to the
    other until one of them is certain. Here the two are neighbours. All neighbours of a part are paired at once, then
    the candidates that are still uncertain, until one is left. Candidates that the parts leave over are paired in the
    same way. So candidates that are close in the pool are seldom drawn together.

    If neighbours have a sum of probabilities of at most 1, one of them ends up with the whole sum. Each of them has a
    chance proportional to its probability, in any order of pairing. So such neighbours are reduced to one in one step.

    Args:
        parts: pairs (ids int64 [B] ascending, probabilities float64 [B]). Ids ascend from part to part.
        generator: draws at most one number per candidate.

    Returns:
        int64 ids, ascending.

    Raises:
        ValueError: a probability is not in [0, 1], or their sum is not whole.
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
    # At most one candidate is left. Its probability is 0 or 1, apart from rounding errors.
    return np.sort(np.concatenate([*drawn, some, ids[values > 0.5]]))


def _paired(
    ids: np.ndarray, values: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pair neighbours until at most one uncertain candidate is left.

    Returns:
        The drawn ids, the id that is left (an array of length 0 or 1), and its probability.
    """
    drawn = [ids[:0]]
    while len(ids) > 1:
        even = len(ids) // 2 * 2
        i, j, a, b = ids[0:even:2], ids[1:even:2], values[0:even:2], values[1:even:2]
        both = a + b
        # From a sum of 1 on, one of the two is drawn and the other keeps the rest. Below 1, one is dropped and the
        # other gets the sum. `first` says whether the first one is drawn, or gets the sum.
        over = both >= 1.0
        first = generator.random(len(i)) < np.where(over, (1.0 - b) / (2.0 - both), a / both)
        drawn.append(np.where(first, i, j)[over])
        rest = np.where(over, both - 1.0, both)
        still = rest > 0.0
        ids = np.concatenate([np.where(first != over, i, j)[still], ids[even:]])
        values = np.concatenate([rest[still], values[even:]])
    return np.concatenate(drawn), ids, values


def _thinned(
    ids: np.ndarray, values: np.ndarray, generator: np.random.Generator, most: float
) -> tuple[np.ndarray, np.ndarray]:
    """The uncertain candidates and their probabilities, in order, with small neighbours reduced to one.

    Neighbours of probability 0.5 or less, with a sum of at most 1, are reduced to one candidate that gets the sum.

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
    # Cut the running sum at multiples of room = 1 - most. The values between two cuts sum to less than room + most = 1.
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
