"""Merging scores that come in parts, in any order, into the k lowest, with bounded memory."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Ids of candidates, or groups, and their scores, ordered by (score, id).

    Attributes:
        scores: float32 [M].
        ids: int64 [M].
        evaluated: forward passes made, in images.
        extra: further data of each row, [M, ...]; or None.
    """

    scores: np.ndarray
    ids: np.ndarray
    evaluated: int
    extra: np.ndarray | None = None


class LowestK:
    """Merges scored parts, in any order, into the k lowest by (score, id). Holds at most 1.25 k rows and one part."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._parts: list[Scored] = []
        self._held = 0
        self.evaluated = 0
        """Forward passes so far, in images."""
        self.bound = float("inf")
        """A score above this bound cannot be among the k lowest."""

    def add(self, number: int, part: Scored) -> None:
        """Add one part. The result does not depend on `number`."""
        self.evaluated += part.evaluated
        keep = part.scores <= self.bound  # the task may have started with a higher bound
        if not keep.all():
            part = _rows(part, keep)
        if not len(part.ids):
            return
        self._parts.append(part)
        self._held += len(part.ids)
        if self._held > self._k + self._k // 4:
            self._shrink()

    def _shrink(self) -> None:
        """Drop rows that cannot be among the k lowest."""
        scores, ids = self._column("scores"), self._column("ids")
        keep = np.sort(_lowest_in_any_order(scores, ids, self._k))
        if len(keep) == self._k and self._k:
            self.bound = float(scores[keep].max())
        self._held = len(keep)
        if self._parts[0].extra is None:
            self._parts = [Scored(scores=scores[keep], ids=ids[keep], evaluated=0)]
            return
        # Part by part, because `extra` may be large.
        ends = np.cumsum([len(part.ids) for part in self._parts])
        rows = np.split(keep, np.searchsorted(keep, ends[:-1]))
        starts = [0, *ends[:-1]]
        kept = [
            _rows(part, own - start) for part, own, start in zip(self._parts, rows, starts, strict=True) if len(own)
        ]
        self._parts = kept

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in self._parts])

    def result(self, by: Literal["score", "id"] = "score") -> Scored:
        """The k lowest rows so far, or all if there are fewer, ordered by (score, id) or by id."""
        if self._held > self._k:
            self._shrink()
        if not self._parts:
            return Scored(scores=np.empty(0, np.float32), ids=np.empty(0, np.int64), evaluated=self.evaluated)
        scores, ids = self._column("scores"), self._column("ids")
        order = np.lexsort((ids, scores) if by == "score" else (ids,))
        extra = None
        if self._parts[0].extra is not None:
            place = np.empty(len(order), dtype=np.int64)
            place[order] = np.arange(len(order))
            first = self._parts[0].extra
            extra, begin = np.empty((len(order), *first.shape[1:]), dtype=first.dtype), 0
            for part in self._parts:
                extra[place[begin : begin + len(part.ids)]] = part.extra
                begin += len(part.ids)
        return Scored(scores=scores[order], ids=ids[order], evaluated=self.evaluated, extra=extra)


def _rows(part: Scored, rows: np.ndarray) -> Scored:
    """Some rows of a part."""
    extra = None if part.extra is None else part.extra[rows]
    return Scored(scores=part.scores[rows], ids=part.ids[rows], evaluated=0, extra=extra)


def contains(taken: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which of `values` are in the sorted array `taken`; bool."""
    if len(taken) == 0:
        return np.zeros(len(values), dtype=bool)
    position = np.searchsorted(taken, values)
    found: np.ndarray = taken[np.minimum(position, len(taken) - 1)] == values
    return found


def lowest(scores: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k lowest by (score, id), in that order. If there are at most k, all rows in the given order."""
    if k >= len(scores):
        return np.arange(len(scores))
    rows = _lowest_in_any_order(scores, ids, k)
    return rows[np.lexsort((ids[rows], scores[rows]))]


def _lowest_in_any_order(scores: np.ndarray, ids: np.ndarray, k: int) -> np.ndarray:
    if k >= len(scores):
        return np.arange(len(scores))
    if k == 0:
        return np.empty(0, dtype=np.int64)
    limit = np.partition(scores, k - 1)[k - 1]
    below, ties = np.flatnonzero(scores < limit), np.flatnonzero(scores == limit)
    return np.concatenate([below, ties[np.argsort(ids[ties])[: k - len(below)]]])
