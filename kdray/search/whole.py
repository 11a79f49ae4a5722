"""What the student thinks of all of a pool, or of some candidates: for choices that need more than the k lowest."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from kdray.pools.order import free_numbers
from kdray.scores import INFORMATIVE, to_gains
from kdray.search.forward import Forward
from kdray.search.guesses import Cut, Sweep, learn, sample_size
from kdray.search.interpolation import first_knots
from kdray.search.lowest import LowestK, Scored
from kdray.search.stages import Cuts, Ends, Guess, Part, Rows, ScoreGroups, Sized

_NOTHING = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class GainsRequest:
    """The gain of everything that is left in the pool: what RAD consumes.

    Attributes:
        per: "group": of each group its best candidate's; "candidate": of each candidate.
        taken: int64, sorted: groups, or candidate ids, that have left the pool.
        score: a key of `kdray.scores.INFORMATIVE`, see `kdray.scores.to_gains`.
        seed: of the sample a guess is fitted to.
    """

    per: Literal["group", "candidate"] = "group"
    taken: np.ndarray = field(default_factory=lambda: _NOTHING)
    score: str = "margin"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Gains:
    """The gains of what is left, by number.

    Attributes:
        gains: float32 [n].
        taken: as of the request.
        evaluated: forward passes it took.
        exhaustive: forward passes that asking about every candidate takes.
        guessed: whether they are guesses, from a few λ of each group.
    """

    gains: np.ndarray
    taken: np.ndarray
    evaluated: int
    exhaustive: int
    guessed: bool

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        """Groups, or candidate ids, int64, at rows of `gains`."""
        return free_numbers(rows, self.taken)


@dataclass(frozen=True, kw_only=True)
class BestRequest:
    """The best candidate of each of some groups, exactly.

    Attributes:
        groups: int64, sorted.
        score: a key of `kdray.scores.INFORMATIVE`.
        seed: not used.
    """

    groups: np.ndarray
    score: str = "margin"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FeaturesRequest:
    """The student's features (the input of its last layer) of some candidates, or of other images.

    Attributes:
        ids: int64.
        images: uint8 [N, C, H, W], in place of ids.
        seed: not used.
    """

    ids: np.ndarray = field(default_factory=lambda: _NOTHING)
    images: torch.Tensor | None = None
    seed: int = 0

    def __len__(self) -> int:
        return len(self.ids) if self.images is None else len(self.images)


@dataclass(frozen=True, kw_only=True)
class ScoresRequest:
    """The scores of some candidates, exactly, as the pixels that would be bought.

    Attributes:
        ids: int64.
        score: a key of `kdray.scores.INFORMATIVE`.
        seed: not used.
    """

    ids: np.ndarray
    score: str = "margin"
    seed: int = 0

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, kw_only=True)
class EndsRequest:
    """The student's logits for the images that a pool mixes.

    Attributes:
        seed: not used.
    """

    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Values:
    """Numbers of some candidates or images.

    Attributes:
        rows: float32 [n, D], in the order asked for.
        evaluated: forward passes it took.
    """

    rows: np.ndarray
    evaluated: int


@dataclass(frozen=True, kw_only=True)
class OneByOne(Sized):
    """Features or scores of candidates or images, float32 [B, D] or [B, 1] of each task.

    Attributes:
        of: which.
    """

    of: FeaturesRequest | ScoresRequest

    @property
    def cuts(self) -> Cuts:
        """The candidates of each task."""
        return Cuts(len(self.of), 1, self.batch, self.chunk)

    def __len__(self) -> int:
        return len(self.cuts)

    def run(self, pool: Any, forward: Forward, number: int, bound: float = float("inf")) -> Part:
        """See `Stage`."""
        (start, stop), of = self.cuts[number], self.of
        if isinstance(of, FeaturesRequest) and of.images is not None:
            passes = of.images[start:stop].split(self.cuts.step)
        else:
            passes = map(pool.render, torch.from_numpy(of.ids[start:stop]).split(self.cuts.step))
        if isinstance(of, FeaturesRequest):
            rows = torch.cat([forward.features(images) for images in passes])
        else:
            rows = torch.cat([INFORMATIVE[of.score](forward(images).softmax(dim=1))[:, None] for images in passes])
        return Part(rows=rows.cpu().numpy(), evaluated=stop - start)


class Table:
    """Scores of everything, each in its place; NaN where there is none.

    Args:
        count: places.
        each: ids that share a place.
    """

    bound = float("inf")

    def __init__(self, count: int, each: int) -> None:
        self.scores = np.full(count, np.nan, dtype=np.float32)
        self._each = each
        self.evaluated = 0
        """Forward passes so far."""

    def add(self, number: int, part: Scored) -> None:
        """Take in the scores of one task."""
        self.scores[part.ids // self._each] = part.scores
        self.evaluated += part.evaluated


def guess_pays(pool: Any, request: GainsRequest, search: str) -> bool:
    """Whether gains are guessed: where that at least halves the forward passes."""
    linear = search == "interpolated" and getattr(pool, "linear", False)
    return linear and 2 * gain_passes(pool, guess=True) <= pool.num_groups * pool.group_size


def gain_passes(pool: Any, *, guess: bool) -> int:
    """Forward passes that the gains of a whole pool take."""
    if not guess:
        return pool.num_groups * pool.group_size
    sample = sample_size(pool.num_groups)
    return len(pool.images) + sample * pool.group_size + pool.num_groups * len(first_knots(pool.group_size))


def find_gains(pool: Any, request: GainsRequest, search: str, sweep: Sweep, cut: Cut) -> Gains:
    """Score everything, or guess it."""
    total, size = pool.num_groups, pool.group_size
    guess, passes = guess_pays(pool, request, search), 0
    one = request.per == "group"
    common = {"count": total, "k": total * size, "per": request.per, "taken": request.taken, "score": request.score}
    if guess:
        knots = first_knots(size)
        learned = learn(pool, request.seed, sample_size(total), (knots,), sweep, cut)
        passes = learned.evaluated
        stage: Any = Guess(knots=knots, matrix=learned.matrices[0], ends=learned.ends, **common, **cut)
    else:
        stage = ScoreGroups(group_size=size, **common, **cut)
    # A guess names groups by their number, a score by their best candidate.
    table = Table(total if one else total * size, size if one and not guess else 1)
    sweep(stage, table)
    scores = np.delete(table.scores, request.taken) if len(request.taken) else table.scores
    return Gains(
        gains=to_gains(scores, request.score),
        taken=request.taken,
        evaluated=passes + table.evaluated,
        exhaustive=total * size,
        guessed=guess,
    )


def find_best(pool: Any, request: BestRequest, sweep: Sweep, cut: Cut) -> Scored:
    """The best candidate of each group: ids ascending, float32 scores."""
    merged = LowestK(len(request.groups))
    stage = ScoreGroups(
        count=pool.num_groups,
        group_size=pool.group_size,
        k=len(request.groups),
        score=request.score,
        groups=request.groups,
        **cut,
    )
    sweep(stage, merged)
    return merged.result(by="id")


def find_values(request: FeaturesRequest | ScoresRequest | EndsRequest, pool: Any, sweep: Sweep, cut: Cut) -> Values:
    """Features or scores of candidates, or logits of the images that are mixed."""
    if isinstance(request, EndsRequest):
        stage: Any = Ends(count=len(pool.images), **cut)
    else:
        stage = OneByOne(of=request, **cut)
    rows = Rows()
    if len(stage):
        sweep(stage, rows)
    return Values(rows=rows.result() if len(stage) else np.empty((0, 0), np.float32), evaluated=rows.evaluated)
