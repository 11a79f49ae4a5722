"""The k lowest of many scores that come in parts, in any order, with bounded memory."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Candidates, or groups, and their scores, ordered by (score, id).

    Attributes:
        scores: float32 [M].
        ids: int64 [M].
        evaluated: forward passes it took, in images.
        extra: [M, ...], what goes with each; or None.
    """

    scores: np.ndarray
    ids: np.ndarray
    evaluated: int
    extra: np.ndarray | None = None


class LowestK:
    """Merges scored parts, in any order, into the k lowest by (score, id). Holds at most 2k + one part of them."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._parts: list[Scored] = []
        self._held = 0
        self.evaluated = 0
        """Forward passes so far."""
        self.bound = float("inf")
        """Nothing above this can be among the k lowest any more."""

    def add(self, number: int, part: Scored) -> None:
        """Take in one part; its `number` does not matter."""
        self._parts.append(part)
        self._held += len(part.ids)
        self.evaluated += part.evaluated
        if self._held > 2 * self._k:
            self._shrink()

    def _shrink(self) -> None:
        scores, ids = (np.concatenate([getattr(part, name) for part in self._parts]) for name in ("scores", "ids"))
        rows = lowest(scores, ids, self._k)
        extra = None
        if self._parts[0].extra is not None:
            extra = np.concatenate([part.extra for part in self._parts])[rows]
        self._parts = [Scored(scores=scores[rows], ids=ids[rows], evaluated=0, extra=extra)]
        self._held = len(rows)
        if len(rows) == self._k and self._k:
            self.bound = float(self._parts[0].scores[-1])

    def result(self) -> Scored:
        """The k lowest so far (fewer if there were fewer)."""
        if not self._parts:
            return Scored(scores=np.empty(0, np.float32), ids=np.empty(0, np.int64), evaluated=self.evaluated)
        self._shrink()
        return replace(self._parts[0], evaluated=self.evaluated)


def contains(taken: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which of `values` are in the sorted array `taken`; bool."""
    if len(taken) == 0:
        return np.zeros(len(values), dtype=bool)
    position = np.searchsorted(taken, values)
    return taken[np.minimum(position, len(taken) - 1)] == values


def lowest(scores: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k lowest by (score, id), in that order. All of them when there are fewer."""
    rows = np.arange(len(scores))
    if k < len(scores):
        # Everything at or below the k-th score; ties there are decided by id in the sort.
        limit = np.partition(scores, k - 1)[k - 1] if k else -np.inf
        rows = np.flatnonzero(scores <= limit)
    return rows[np.lexsort((ids[rows], scores[rows]))[:k]]
