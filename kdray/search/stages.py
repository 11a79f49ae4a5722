"""The work of a search in numbered tasks, each a pure function of the pool and the student.

Tasks are cut by number alone, and so are the forward passes in them: an image is always scored in the same batch,
whoever does it and in whatever order, and the result is the same for any number of workers. Bits may depend on the size
of a pass, so that is a property of the kind of device (`kdray.search.forward`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from kdray.errors import ScoringError
from kdray.scores import INFORMATIVE
from kdray.search.forward import Forward
from kdray.search.interpolation import guess
from kdray.search.lowest import Scored, contains, lowest
from kdray.search.work import CPU_BATCH

_NOTHING = np.empty(0, dtype=np.int64)


class GroupedPool(Protocol):
    """What searching needs of a pool."""

    num_groups: int
    group_size: int
    linear: bool
    """The candidates of a group lie on the straight line between two images, see `SegmentPool`."""

    def batches(self, groups: Tensor, step: int, indices: Sequence[int] | None = None) -> Iterator[Tensor]:
        """Candidates of `groups`, those at `indices` in each, `step` groups at a time: uint8 [B, C, H, W]."""


class SegmentPool(GroupedPool, Protocol):
    """A pool whose groups are mixes of two images, at all λ of a grid."""

    images: Tensor
    lambdas: tuple[float, ...]

    def pair(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Groups int64 [B] to the image numbers mixed in them, at λ = 1 and at λ = 0, int64 [B] each."""


class Stage(Protocol):
    """One sweep: tasks 0 to len - 1, in any order, anywhere."""

    def __len__(self) -> int: ...

    def run(self, pool: Any, forward: Forward, number: int, bound: float) -> Any:
        """Do one task. Scores above `bound` may be left out."""


class Merge(Protocol):
    """Takes in what tasks give, in any order."""

    bound: float
    evaluated: int

    def add(self, number: int, part: Any) -> None: ...


@dataclass(frozen=True)
class Cuts(Sequence[tuple[int, int]]):
    """[start, stop) of about `wanted` images each: whole forward passes of `batch` images, of `each` for an item.

    Nothing is listed: a pool of billions has millions of them.
    """

    items: int
    each: int
    batch: int
    wanted: int

    @property
    def step(self) -> int:
        """Items in one forward pass."""
        return max(1, self.batch // self.each)

    @property
    def size(self) -> int:
        """Items in a cut."""
        return self.step * max(1, round(self.wanted / (self.step * self.each)))

    def __len__(self) -> int:
        return (self.items + self.size - 1) // self.size

    def __getitem__(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"cut {number} of {len(self)}")
        return number * self.size, min((number + 1) * self.size, self.items)


@dataclass(frozen=True, kw_only=True)
class Sized:
    """How work is cut.

    Attributes:
        chunk: images a task, about.
        batch: images a forward pass, about.
    """

    chunk: int = 8192
    batch: int = CPU_BATCH


@dataclass(frozen=True, kw_only=True)
class ScoreGroups(Sized):
    """Every candidate of some groups, exactly; of each task those of the k lowest it can hold.

    Attributes:
        count: of groups: 0 to count - 1, where `groups` is None.
        group_size: of the pool.
        k: how many are wanted.
        per: "group": at most one candidate a group, its lowest; "candidate": no such rule.
        taken: int64, sorted: groups, or candidate ids, that have left the pool.
        score: a key of `kdray.scores.INFORMATIVE`.
        groups: int64, sorted: these ones alone.
        known: scores of `groups` at the λ `have`, float32 [G, H]; the student is asked about the others.
        have: indices of those λ.
    """

    count: int
    group_size: int
    k: int
    per: Literal["group", "candidate"] = "group"
    taken: np.ndarray = field(default_factory=lambda: _NOTHING)
    score: str = "confidence"
    groups: np.ndarray | None = None
    known: np.ndarray | None = None
    have: tuple[int, ...] = ()

    @property
    def asked(self) -> tuple[int, ...]:
        """The λ the student is asked about."""
        return tuple(index for index in range(self.group_size) if index not in self.have)

    @property
    def cuts(self) -> Cuts:
        """The groups of each task."""
        count = self.count if self.groups is None else len(self.groups)
        return Cuts(count, max(1, len(self.asked)), self.batch, self.chunk)

    def __len__(self) -> int:
        return len(self.cuts)

    def run(self, pool: GroupedPool, forward: Forward, number: int, bound: float = float("inf")) -> Scored:
        """Candidate ids and their scores.

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
            scores = torch.cat([INFORMATIVE[self.score](logits.softmax(dim=1)) for logits in passes])
            table[:, asked] = scores.cpu().numpy().reshape(len(groups), len(asked))
        _refuse_nan(table, groups, self.group_size)
        if self.per == "group":
            best = table.argmin(axis=1)  # the first on a tie: the lowest id
            scores, ids = table[np.arange(len(table)), best], groups * self.group_size + best
            free = ~contains(self.taken, groups)
        else:
            scores, ids = table.reshape(-1), _candidates(groups, self.group_size)
            free = ~contains(self.taken, ids)
        keep = free & (scores <= bound)
        scores, ids = scores[keep], ids[keep]
        rows = lowest(scores, ids, self.k)
        return Scored(scores=scores[rows], ids=ids[rows], evaluated=len(groups) * len(asked))


@dataclass(frozen=True, kw_only=True)
class Ends(Sized):
    """Logits of the images a pool mixes, float32 [B, K] of each task.

    Attributes:
        count: of images.
    """

    count: int

    @property
    def cuts(self) -> Cuts:
        """The images of each task."""
        return Cuts(self.count, 1, self.batch, self.chunk)

    def __len__(self) -> int:
        return len(self.cuts)

    def run(self, pool: SegmentPool, forward: Forward, number: int, bound: float = float("inf")) -> "Part":
        """See `Stage`."""
        start, stop = self.cuts[number]
        parts = [forward(images) for images in pool.images[start:stop].split(self.cuts.step)]
        return Part(rows=torch.cat(parts).cpu().numpy(), evaluated=stop - start)


@dataclass(frozen=True, kw_only=True)
class Sample(Sized):
    """Logits at every λ of some groups, float32 [B, L, K] of each task.

    Attributes:
        group_size: of the pool.
        groups: int64, sorted.
    """

    group_size: int
    groups: np.ndarray

    @property
    def cuts(self) -> Cuts:
        """The groups of each task."""
        return Cuts(len(self.groups), self.group_size, self.batch, self.chunk)

    def __len__(self) -> int:
        return len(self.cuts)

    def run(self, pool: SegmentPool, forward: Forward, number: int, bound: float = float("inf")) -> "Part":
        """See `Stage`."""
        start, stop = self.cuts[number]
        groups = torch.from_numpy(self.groups[start:stop])
        logits = torch.cat(list(forward.candidates(pool, groups, self.cuts.step)))
        rows = logits.view(len(groups), self.group_size, -1).cpu().numpy()
        return Part(rows=rows, evaluated=len(groups) * self.group_size)


@dataclass(frozen=True, kw_only=True)
class Guess(Sized):
    """The guessed score of groups, or of all their candidates: see `kdray.search.interpolation`.

    Attributes:
        count: of groups: 0 to count - 1, where `groups` is None.
        k: how many of the lowest are wanted.
        per: "group": ids are groups, and a score is their lowest; "candidate": ids are candidates.
        knots: indices of the λ whose logits the guess is made from, in order.
        matrix: how, float32 [L, M + 2].
        ends: logits of the pool's images, float32 [N, K].
        taken: int64, sorted: groups, or candidate ids, that have left the pool.
        score: a key of `kdray.scores.INFORMATIVE`.
        groups: int64, sorted: these ones alone.
        known: what an earlier guess handed on of `groups`, [G]; the student is asked about the other knots. None: about
            all.
        have: the knots of that guess, in order.
        hand_on: what to give with the groups, as fields of `Scored.extra`: "logits" at all knots, float16 [M, K], for a
            later guess; "scores" of the candidates there, float32 [M], which need not be asked about again.
    """

    count: int
    k: int
    knots: tuple[int, ...]
    matrix: np.ndarray
    ends: np.ndarray
    per: Literal["group", "candidate"] = "group"
    taken: np.ndarray = field(default_factory=lambda: _NOTHING)
    score: str = "confidence"
    groups: np.ndarray | None = None
    known: np.ndarray | None = None
    have: tuple[int, ...] = ()
    hand_on: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[int, ...]:
        """The λ the student is asked about."""
        return self.knots if self.known is None else tuple(knot for knot in self.knots if knot not in self.have)

    @property
    def cuts(self) -> Cuts:
        """The groups of each task."""
        count = self.count if self.groups is None else len(self.groups)
        return Cuts(count, len(self.asked), self.batch, self.chunk)

    def __len__(self) -> int:
        return len(self.cuts)

    def run(self, pool: SegmentPool, forward: Forward, number: int, bound: float = float("inf")) -> Scored:
        """Ids and guessed scores.

        Raises:
            ScoringError: the student gives NaN for a candidate.
        """
        start, stop = self.cuts[number]
        groups = np.arange(start, stop, dtype=np.int64) if self.groups is None else self.groups[start:stop]
        these = torch.from_numpy(groups)
        at = self._at_knots(pool, forward, these, slice(start, stop))
        first, second = pool.pair(these.to(at.device))
        ends = torch.from_numpy(self.ends).to(at.device)
        columns = torch.cat([ends[second].unsqueeze(1), at, ends[first].unsqueeze(1)], dim=1)  # [G, M + 2, K]
        matrix = torch.from_numpy(self.matrix).to(at.device)
        table = torch.cat([guess(part, matrix, self.score) for part in columns.split(1024)]).cpu().numpy()
        _refuse_nan(table, groups, pool.group_size)
        if self.per == "group":
            scores, ids = table.min(axis=1), groups
        else:
            scores, ids = table.reshape(-1), _candidates(groups, pool.group_size)
        keep = np.flatnonzero(~contains(self.taken, ids) & (scores <= bound))
        rows = keep[lowest(scores[keep], ids[keep], self.k)]
        extra = self._extra(at, rows, slice(start, stop)) if self.hand_on else None
        return Scored(scores=scores[rows], ids=ids[rows], evaluated=len(groups) * len(self.asked), extra=extra)

    def _at_knots(self, pool: SegmentPool, forward: Forward, groups: Tensor, these: slice) -> Tensor:
        """Logits float32 [G, M, K] at all knots, those handed on among them."""
        asked = self.asked
        logits = torch.cat(list(forward.candidates(pool, groups, self.cuts.step, asked)))
        logits = logits.view(len(groups), len(asked), -1)
        if self.known is None:
            return logits
        known = torch.from_numpy(self.known["logits"][these]).to(logits.device, torch.float32)
        both = torch.cat([known, logits], dim=1)
        return both[:, [(*self.have, *asked).index(knot) for knot in self.knots]]

    def _extra(self, logits: Tensor, rows: np.ndarray, these: slice) -> np.ndarray:
        """What is handed on of `rows`, given the logits at all knots."""
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
            if self.known is not None:  # as they were, not as rounded logits have them
                extra["scores"][:, [self.knots.index(knot) for knot in self.have]] = self.known["scores"][these][rows]
        return extra


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of one task.

    Attributes:
        rows: [B, ...].
        evaluated: forward passes they took, in images.
    """

    rows: np.ndarray
    evaluated: int


class Rows:
    """Puts the rows that tasks give in order."""

    bound = float("inf")

    def __init__(self) -> None:
        self._parts: dict[int, np.ndarray] = {}
        self.evaluated = 0
        """Forward passes so far."""

    def add(self, number: int, part: Part) -> None:
        """Take in the rows of one task."""
        self._parts[number] = part.rows
        self.evaluated += part.evaluated

    def result(self) -> np.ndarray:
        """All rows."""
        return np.concatenate([self._parts[number] for number in sorted(self._parts)])


def _candidates(groups: np.ndarray, group_size: int) -> np.ndarray:
    """Ids of all candidates of `groups`, int64."""
    return (groups[:, None] * group_size + np.arange(group_size)).reshape(-1)


def _refuse_nan(table: np.ndarray, groups: np.ndarray, group_size: int) -> None:
    if np.isnan(table).any():
        row, column = np.argwhere(np.isnan(table))[0]
        candidate = int(groups[row]) * group_size + int(column)
        raise ScoringError(
            f"the student's output for candidate {candidate} is not a number: its training has diverged; "
            "lower student.lr"
        )
