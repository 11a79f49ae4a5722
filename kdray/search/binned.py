"""The gains of a pool too large to list them: how many are in each bin, and the candidates that a draw may need.

Every candidate (or group) has a *key*, a pseudo-random number in [0, 1) that follows from a seed and its own number.
The candidates of lowest key in a bin are a uniform sample of the bin, without replacement, of any size. So a task can
drop all but the lowest keys of each bin before it is known how many the draw takes from there. Counts are whole
numbers, and a key depends on nothing else, so neither depends on how the work is cut into tasks, or on their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdray.search.acquisition import to_gains
from kdray.search.bins import BINS, bins_of
from kdray.search.gains import GainsRequest, Work, passes_for
from kdray.sections.search import SearchSettings

if TYPE_CHECKING:
    from kdray.pools.base import Pool
    from kdray.search.forward import Forward
    from kdray.search.requests import SearchContext

ROW_BYTES = 20
"""Bytes of a candidate that is held: its number and its key (8 each), and its gain (4)."""
_PARTS = 1024  # most parts: a small array takes a hundred bytes more than its items


@dataclass(frozen=True, kw_only=True)
class BinnedRequest:
    """A request for the number of gains in each bin, and for the candidates of lowest key.

    Attributes:
        gains: what is asked, as for a list of all gains.
        seed: seed of the keys.
        limits: float64 [BINS]; candidates with a key below the limit of their bin are returned. None returns none.
        most: most candidates held. If there are more, all limits are lowered.
        groups: int64, sorted: the groups to look at; None means all.
    """

    gains: GainsRequest
    seed: int = 0
    limits: np.ndarray | None = None
    most: int = 0
    groups: np.ndarray | None = None

    def passes(self, pool: Pool, settings: SearchSettings) -> int:
        """See `kdray.search.requests.Request`."""
        count = pool.num_groups if self.groups is None else len(self.groups)
        return passes_for(pool, count, guess=self.gains.guesses(pool, settings))

    def perform(self, pool: Pool, context: SearchContext) -> Binned:
        """See `kdray.search.requests.Request`."""
        work = self.gains.work(pool, context, self.groups)
        limits = np.zeros(BINS) if self.limits is None else self.limits
        merged = _Merged(limits, self.most)
        context.run_stage(BinGains(work=work, seed=self.seed, limits=limits), merged)
        return merged.result(work, len(pool))


@dataclass(frozen=True, kw_only=True)
class Held:
    """Some candidates, or groups.

    Attributes:
        numbers: int64 [n].
        keys: float64 [n].
        gains: float32 [n].
    """

    numbers: np.ndarray
    keys: np.ndarray
    gains: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: np.ndarray) -> Held:
        return Held(numbers=self.numbers[rows], keys=self.keys[rows], gains=self.gains[rows])


@dataclass(frozen=True, kw_only=True)
class BinnedPart:
    """The result of one task.

    Attributes:
        bins, counts: int32, the bins that are not empty, and the number of gains in each.
        rows: candidates of low key.
        evaluated: forward passes made, in images.
    """

    bins: np.ndarray
    counts: np.ndarray
    rows: Held
    evaluated: int


@dataclass(frozen=True, kw_only=True)
class BinGains:
    """A stage that scores candidates, and returns how many gains are in each bin and the candidates of low key.

    Attributes:
        work: the stage that scores.
        seed, limits: see `BinnedRequest`.
    """

    work: Work
    seed: int
    limits: np.ndarray

    def __len__(self) -> int:
        return len(self.work.stage)

    def run(self, pool: Pool, forward: Forward, number: int, bound: float = float("inf")) -> BinnedPart:
        """See `kdray.search.stages.Stage`. All limits are multiplied by `bound` if that is below 1."""
        part = self.work.stage.run(pool, forward, number)  # type: ignore[arg-type]  # `Guess` comes with pools of mixes
        gains = to_gains(part.scores, self.work.stage.score)
        bins = bins_of(gains)
        counts = np.bincount(bins, minlength=BINS)
        full = np.flatnonzero(counts)
        limits = self.limits[bins] * min(1.0, bound)
        near = np.flatnonzero(limits > 0.0)
        numbers = part.ids[near] // self.work.each
        keys = keys_of(numbers, self.seed)
        kept = keys < limits[near]
        return BinnedPart(
            bins=full.astype(np.int32),
            counts=counts[full].astype(np.int32),
            rows=Held(numbers=numbers[kept], keys=keys[kept], gains=gains[near[kept]]),
            evaluated=part.evaluated,
        )


@dataclass(frozen=True, kw_only=True)
class Binned:
    """How many gains are in each bin, and the candidates of lowest key.

    Attributes:
        counts: int64 [BINS].
        rows: the candidates held.
        evaluated: forward passes made, in images.
        exhaustive: forward passes that scoring every candidate takes.
        guessed: whether the gains are guessed from a few λ of each group.
    """

    counts: np.ndarray
    rows: Held
    evaluated: int
    exhaustive: int
    guessed: bool

    def lowest(self, wanted: np.ndarray) -> Held | None:
        """The candidates of lowest key, `wanted` int64 [BINS] of each bin; None if too few are held.

        They are ordered by number.
        """
        bins = bins_of(self.rows.gains)
        if (np.bincount(bins, minlength=BINS) < wanted).any():
            return None
        order = np.lexsort((self.rows.numbers, self.rows.keys, bins))
        bins = bins[order]
        place = np.arange(len(bins)) - np.searchsorted(bins, bins)
        chosen = order[place < wanted[bins]]
        return self.rows[chosen[np.argsort(self.rows.numbers[chosen])]]


class _Merged:
    """Merges the results of tasks. It holds at most `most` candidates and one part."""

    def __init__(self, limits: np.ndarray, most: int) -> None:
        self._limits, self._most = limits, most
        self._counts = np.zeros(BINS, dtype=np.int64)
        self._parts: list[Held] = []
        self._held = 0
        self.bound = 1.0
        """The factor by which all limits have been lowered."""
        self.evaluated = 0
        """Forward passes so far, in images."""

    def add(self, number: int, part: BinnedPart) -> None:
        """Add the result of one task. The result does not depend on `number`."""
        self._counts[part.bins] += part.counts
        self.evaluated += part.evaluated
        rows = self._below(part.rows) if self.bound < 1.0 else part.rows
        if len(rows):
            self._parts.append(rows)
            self._held += len(rows)
            if len(self._parts) > _PARTS:
                self._parts = [self._joined()]
        while self._held > self._most:
            self.bound *= 0.75
            self._parts = [self._below(self._joined())]
            self._held = len(self._parts[0])

    def _below(self, rows: Held) -> Held:
        return rows[rows.keys < self._limits[bins_of(rows.gains)] * self.bound]

    def _joined(self) -> Held:
        parts = self._parts or [Held(numbers=np.empty(0, np.int64), keys=np.empty(0), gains=np.empty(0, np.float32))]
        return Held(
            numbers=np.concatenate([rows.numbers for rows in parts]),
            keys=np.concatenate([rows.keys for rows in parts]),
            gains=np.concatenate([rows.gains for rows in parts]),
        )

    def result(self, work: Work, exhaustive: int) -> Binned:
        rows = self._joined()
        return Binned(
            counts=self._counts,
            rows=rows,
            evaluated=work.evaluated + self.evaluated,
            exhaustive=exhaustive,
            guessed=work.guessed,
        )


def keys_of(numbers: np.ndarray, seed: int) -> np.ndarray:
    """The key of each number, int64 [n], in [0, 1): float64 [n].

    They are the outputs of SplitMix64 (Steele et al., 2014) at these places of its sequence.
    """
    with np.errstate(over="ignore"):
        mixed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53
