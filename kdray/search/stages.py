"""The stages of a search. A stage is work in numbered tasks, each a pure function of the pool and the student.

Tasks and batches are cut by number alone. So an image is always in the same batch, on any worker and in any order of
tasks, and the result is the same for any number of workers. The bits of a score may depend on the batch size, so the
batch size depends only on the network and the kind of device (`kdray.search.cost`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from kdray.search.acquisition import INFORMATIVE, Score
from kdray.search.interpolation import guess
from kdray.search.sound import refuse_nan, refuse_unsound, sound_logits
from kdray.search.topk import Scored, contains, lowest
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.pools.base import Pool, SegmentPool
    from kdray.search.forward import Forward

_NOTHING = np.empty(0, dtype=np.int64)


class Stage(Protocol):
    """Work in tasks 0 to len - 1, which may run in any order and on any worker."""

    def __len__(self) -> int:
        """Number of tasks."""

    def run(self, pool: Any, forward: Forward, number: int, bound: float) -> Any:
        """Run one task. It may leave out scores above `bound`."""


class Merge(Protocol):
    """Merges the results of tasks, in any order."""

    bound: float
    """Tasks may leave out scores above this bound."""
    evaluated: int
    """Forward passes so far, in images."""

    def add(self, number: int, part: Any) -> None:
        """Add the result of task `number`."""


@dataclass(frozen=True)
class Cuts:
    """Ranges [start, stop) of items, one for each task.

    An item has `each` images. A range has about `wanted` images, in whole batches of about `batch` images. Ranges are
    computed, not stored: a pool of billions of candidates has millions of ranges.
    """

    items: int
    each: int
    batch: int
    wanted: int

    @property
    def step(self) -> int:
        """Items in one batch."""
        return max(1, self.batch // self.each)

    @property
    def size(self) -> int:
        """Items in one range."""
        return self.step * max(1, round(self.wanted / (self.step * self.each)))

    def __len__(self) -> int:
        return (self.items + self.size - 1) // self.size

    def __getitem__(self, number: int) -> tuple[int, int]:
        """The range [start, stop) of task `number`.

        Raises:
            IndexError: there is no such task.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"cut {number} of {len(self)}")
        return number * self.size, min((number + 1) * self.size, self.items)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How work is cut into tasks and batches.

    Attributes:
        chunk: approximate number of images in a task.
        batch: approximate number of images in a batch.
    """

    chunk: int
    batch: int

    def parts(self, items: int, each: int = 1) -> Cuts:
        """The ranges of `items` items of `each` images, one for each task."""
        return Cuts(items, each, self.batch, self.chunk)


@dataclass(frozen=True, kw_only=True)
class ScoreGroups:
    """Scores every candidate of some groups exactly. A task returns its k lowest.

    Attributes:
        cut: how the work is cut.
        count: number of groups, 0 to count - 1; used if `groups` is None.
        group_size: candidates in a group of the pool.
        k: number of candidates wanted.
        per: "group" takes at most one candidate per group, its lowest; "candidate" has no such limit.
        taken: int64, sorted: the groups, or candidate ids, that have left the pool.
        score: a key of `kdray.search.acquisition.INFORMATIVE`.
        groups: int64, sorted: the groups to score; None means groups 0 to count - 1.
        known: scores of `groups` at the λ of `have`, float32 [G, H]. Only the other scores are computed.
        have: indices of the λ of `known`.
    """

    cut: Cut
    count: int
    group_size: int
    k: int
    per: Literal["group", "candidate"] = "group"
    taken: np.ndarray = field(default_factory=lambda: _NOTHING)
    score: Score = "confidence"
    groups: np.ndarray | None = None
    known: np.ndarray | None = None
    have: tuple[int, ...] = ()

    @property
    def asked(self) -> tuple[int, ...]:
        """Indices of the λ that need forward passes."""
        return tuple(index for index in range(self.group_size) if index not in self.have)

    @property
    def cuts(self) -> Cuts:
        """The groups of each task."""
        count = self.count if self.groups is None else len(self.groups)
        return self.cut.parts(count, max(1, len(self.asked)))

    def __len__(self) -> int:
        return len(self.cuts)

    def run(self, pool: Pool, forward: Forward, number: int, bound: float = float("inf")) -> Scored:
        """Score one task: candidate ids and their scores.

        Raises:
            ScoringError: the student gives NaN for a candidate.
        """
        start, stop = self.cuts[number]
        groups = np.arange(start, stop, dtype=np.int64) if self.groups is None else self.groups[start:stop]
        asked = self.asked
        table = np.empty((len(groups), self.group_size), dtype=np.float32)
        if self.known is not None:
            table[:, self.have] = self.known[start:stop]
        if asked:
            passes = forward.candidates(pool, torch.from_numpy(groups), self.cuts.step, asked)
            answers = torch.cat([INFORMATIVE[self.score](logits.softmax(dim=1)) for logits in passes])
            table[:, asked] = answers.cpu().numpy().reshape(len(groups), len(asked))
        refuse_nan(table, groups, self.group_size)
        if self.per == "group":
            best = table.argmin(axis=1)  # on a tie the first one, which has the lowest id
            scores, ids = table[np.arange(len(table)), best], groups * self.group_size + best
            free = ~contains(self.taken, groups)
        else:
            scores, ids = table.reshape(-1), candidate_ids(groups, self.group_size)
            free = ~contains(self.taken, ids)
        keep = free & (scores <= bound)
        scores, ids = scores[keep], ids[keep]
        rows = lowest(scores, ids, self.k)
        return Scored(scores=scores[rows], ids=ids[rows], evaluated=len(groups) * len(asked))


@dataclass(frozen=True, kw_only=True)
class SourceLogits:
    """Computes source logits, the student's logits for the images that a pool mixes: float32 [B, K] from each task.

    Attributes:
        cut: how the work is cut.
        count: number of images.
    """

    cut: Cut
    count: int

    @property
    def cuts(self) -> Cuts:
        """The images of each task."""
        return self.cut.parts(self.count)

    def __len__(self) -> int:
        return len(self.cuts)

    def run(self, pool: SegmentPool, forward: Forward, number: int, bound: float = float("inf")) -> TaskRows:
        """See `Stage`.

        Raises:
            ScoringError: the student gives an image no finite logits.
        """
        start, stop = self.cuts[number]
        parts = [forward(images) for images in pool.images[start:stop].split(self.cuts.step)]
        rows = torch.cat(parts).cpu().numpy()
        refuse_unsound(sound_logits(rows), lambda row: f"image {start + row}")
        return TaskRows(rows=rows, evaluated=stop - start)


@dataclass(frozen=True, kw_only=True)
class SampleLogits:
    """Computes the logits of some groups at every λ: float32 [B, L, K] from each task.

    Attributes:
        cut: how the work is cut.
        group_size: candidates in a group of the pool.
        groups: int64, sorted.
    """

    cut: Cut
    group_size: int
    groups: np.ndarray

    @property
    def cuts(self) -> Cuts:
        """The groups of each task."""
        return self.cut.parts(len(self.groups), self.group_size)

    def __len__(self) -> int:
        return len(self.cuts)

    def run(self, pool: SegmentPool, forward: Forward, number: int, bound: float = float("inf")) -> TaskRows:
        """See `Stage`.

        Raises:
            ScoringError: the student gives a candidate no finite logits.
        """
        start, stop = self.cuts[number]
        groups = torch.from_numpy(self.groups[start:stop])
        logits = torch.cat(list(forward.candidates(pool, groups, self.cuts.step)))
        ids = candidate_ids(self.groups[start:stop], self.group_size)
        refuse_unsound(sound_logits(logits.cpu().numpy()), lambda row: f"candidate {ids[row]}")
        rows = logits.view(len(groups), self.group_size, -1).cpu().numpy()
        return TaskRows(rows=rows, evaluated=len(groups) * self.group_size)


@dataclass(frozen=True, kw_only=True)
class Guess:
    """Guesses the scores of groups, or of all their candidates; see `kdray.search.interpolation`.

    Attributes:
        cut: how the work is cut.
        count: number of groups, 0 to count - 1; used if `groups` is None.
        k: number of lowest scores wanted.
        per: "group": ids are groups, and the score of a group is its lowest; "candidate": ids are candidates.
        knots: indices of the λ whose logits the guess uses, in order.
        matrix: combines source logits and logits at the knots, float32 [L, M + 2]; see
            `kdray.search.interpolation.fit`.
        sources: source logits, float32 [N, K].
        taken: int64, sorted: the groups, or candidate ids, that have left the pool.
        score: a key of `kdray.search.acquisition.INFORMATIVE`.
        groups: int64, sorted: the groups to guess; None means groups 0 to count - 1.
        known: fields that an earlier guess handed on for `groups`, [G]. Only the other knots need forward passes. None
            means all knots do.
        have: the knots of the earlier guess, in order.
        hand_on: fields of `Scored.extra` to return with the groups: "logits" at all knots, float16 [M, K], for a later
            guess; "scores" of the candidates at all knots, float32 [M], so that they need not be computed again.
    """

    cut: Cut
    count: int
    k: int
    knots: tuple[int, ...]
    matrix: np.ndarray
    sources: np.ndarray
    per: Literal["group", "candidate"] = "group"
    taken: np.ndarray = field(default_factory=lambda: _NOTHING)
    score: Score = "confidence"
    groups: np.ndarray | None = None
    known: np.ndarray | None = None
    have: tuple[int, ...] = ()
    hand_on: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[int, ...]:
        """Indices of the λ that need forward passes."""
        return self.knots if self.known is None else tuple(knot for knot in self.knots if knot not in self.have)

    @property
    def cuts(self) -> Cuts:
        """The groups of each task."""
        count = self.count if self.groups is None else len(self.groups)
        return self.cut.parts(count, len(self.asked))

    def __len__(self) -> int:
        return len(self.cuts)

    def run(self, pool: SegmentPool, forward: Forward, number: int, bound: float = float("inf")) -> Scored:
        """Guess the scores of one task: ids and guessed scores.

        Raises:
            ScoringError: the student gives NaN for a candidate.
        """
        start, stop = self.cuts[number]
        groups = np.arange(start, stop, dtype=np.int64) if self.groups is None else self.groups[start:stop]
        these = torch.from_numpy(groups)
        at = self._at_knots(pool, forward, these, slice(start, stop))
        first, second = pool.pair(these.to(at.device))
        sources = torch.from_numpy(self.sources).to(at.device)
        columns = torch.cat([sources[second].unsqueeze(1), at, sources[first].unsqueeze(1)], dim=1)  # [G, M + 2, K]
        matrix = torch.from_numpy(self.matrix).to(at.device)
        table = torch.cat([guess(part, matrix, self.score) for part in columns.split(1024)]).cpu().numpy()
        refuse_nan(table, groups, pool.group_size)
        if self.per == "group":
            scores, ids = table.min(axis=1), groups
        else:
            scores, ids = table.reshape(-1), candidate_ids(groups, pool.group_size)
        keep = np.flatnonzero(~contains(self.taken, ids) & (scores <= bound))
        rows = keep[lowest(scores[keep], ids[keep], self.k)]
        extra = self._extra(at, rows, slice(start, stop)) if self.hand_on else None
        return Scored(scores=scores[rows], ids=ids[rows], evaluated=len(groups) * len(self.asked), extra=extra)

    def _at_knots(self, pool: SegmentPool, forward: Forward, groups: Tensor, these: slice) -> Tensor:
        """Logits float32 [G, M, K] at all knots, including those that an earlier guess handed on."""
        asked = self.asked
        logits = torch.cat(list(forward.candidates(pool, groups, self.cuts.step, asked)))
        logits = logits.view(len(groups), len(asked), -1)
        if self.known is None:
            return logits
        known = torch.from_numpy(self.known["logits"][these]).to(logits.device, torch.float32)
        both = torch.cat([known, logits], dim=1)
        return both[:, [(*self.have, *asked).index(knot) for knot in self.knots]]

    def _extra(self, logits: Tensor, rows: np.ndarray, these: slice) -> np.ndarray:
        """The fields to hand on for `rows`, given the logits at all knots."""
        logits = logits[torch.from_numpy(rows)]
        kinds = {
            "logits": ("logits", np.float16, logits.shape[1:]),
            "scores": ("scores", np.float32, logits.shape[1:2]),
        }
        extra = np.empty(len(rows), dtype=[kinds[name] for name in self.hand_on])
        if "logits" in self.hand_on:
            most = float(np.finfo(np.float16).max)
            extra["logits"] = logits.clamp(-most, most).to(torch.float16).cpu().numpy()
        if "scores" in self.hand_on:
            scores = INFORMATIVE[self.score](logits.flatten(0, 1).softmax(dim=1)).view(len(rows), len(self.knots))
            extra["scores"] = scores.cpu().numpy()
            if self.known is not None:  # the exact scores, not those of the rounded logits
                extra["scores"][:, [self.knots.index(knot) for knot in self.have]] = self.known["scores"][these][rows]
        return extra


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """The rows that one task computed.

    Attributes:
        rows: [B, ...].
        evaluated: forward passes made, in images.
    """

    rows: np.ndarray
    evaluated: int


class Rows:
    """Merges the rows of all tasks, in the order of the tasks."""

    bound = float("inf")

    def __init__(self) -> None:
        self._parts: dict[int, np.ndarray] = {}
        self.evaluated = 0
        """Forward passes so far, in images."""

    def add(self, number: int, part: TaskRows) -> None:
        """Add the rows of one task."""
        self._parts[number] = part.rows
        self.evaluated += part.evaluated

    def result(self) -> np.ndarray:
        """All rows, in the order of the tasks."""
        return np.concatenate([self._parts[number] for number in sorted(self._parts)])


def candidate_ids(groups: np.ndarray, group_size: int) -> np.ndarray:
    """Ids of all candidates of `groups`, int64."""
    return (groups[:, None] * group_size + np.arange(group_size)).reshape(-1)
