"""Requests for exact values: the best candidate of each group, features, scores, classes, source logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kdray.search.acquisition import INFORMATIVE, Score
from kdray.search.sound import refuse_unsound
from kdray.search.stages import Cut, Cuts, Rows, ScoreGroups, SourceLogits, Stage, TaskRows
from kdray.search.topk import LowestK, Scored
from kdray.sections.search import SearchSettings
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.pools.base import Pool
    from kdray.search.forward import Forward
    from kdray.search.requests import SearchContext


@dataclass(frozen=True, kw_only=True)
class Values:
    """Values of some candidates or images.

    Attributes:
        rows: float32 [n, D], in the order of the request; int64 if they are classes.
        evaluated: forward passes made, in images.
    """

    rows: np.ndarray
    evaluated: int


@dataclass(frozen=True, kw_only=True)
class BestRequest:
    """A request for the best candidate, the one of lowest score, of each of some groups.

    Attributes:
        groups: int64, sorted.
        score: the name of the score.
    """

    groups: np.ndarray
    score: Score = "margin"

    def passes(self, pool: Pool, settings: SearchSettings) -> int:
        """See `kdray.search.requests.Request`."""
        return len(self.groups) * pool.group_size

    def perform(self, pool: Pool, context: SearchContext) -> Scored:
        """The best candidate of each group: ids ascending, float32 scores."""
        merged = LowestK(len(self.groups))
        stage = ScoreGroups(
            cut=context.cut,
            count=pool.num_groups,
            group_size=pool.group_size,
            k=len(self.groups),
            score=self.score,
            groups=self.groups,
        )
        context.run_stage(stage, merged)
        return merged.result(by="id")


@dataclass(frozen=True, kw_only=True)
class FeaturesRequest:
    """A request for the student's features (the input of its last layer) of some candidates, or of other images.

    Attributes:
        ids: int64, candidate ids.
        images: uint8 [N, C, H, W], instead of ids.
    """

    ids: np.ndarray | None = None
    images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images) if self.images is not None else 0 if self.ids is None else len(self.ids)

    def passes(self, pool: Pool, settings: SearchSettings) -> int:
        """See `kdray.search.requests.Request`."""
        return len(self)

    def perform(self, pool: Pool, context: SearchContext) -> Values:
        """Features float32 [n, D].

        Raises:
            ScoringError: the student's output for one of them is not finite.
        """
        return _values(EachOf(cut=context.cut, of=self), context)

    def name(self, row: int) -> str:
        """A row in words."""
        return f"labelled image {row}" if self.ids is None else f"candidate {self.ids[row]}"

    def each(self, pool: Pool, forward: Forward, rows: slice, step: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Features float32 [B, D] of the given rows, `step` at a time, and the logits float32 [B, K]."""
        return map(forward.features, _images(self.ids if self.images is None else self.images, pool, rows, step))


class _OfCandidates:
    """What requests about the rounded pixels of single candidates share."""

    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def passes(self, pool: Pool, settings: SearchSettings) -> int:
        """See `kdray.search.requests.Request`."""
        return len(self)

    def name(self, row: int) -> str:
        """A row in words."""
        return f"candidate {self.ids[row]}"


@dataclass(frozen=True, kw_only=True)
class ScoresRequest(_OfCandidates):
    """A request for the scores of some candidates, computed from the rounded pixels that the teacher would get.

    Attributes:
        ids: int64, candidate ids.
        score: the name of the score.
    """

    ids: np.ndarray
    score: Score = "margin"

    def perform(self, pool: Pool, context: SearchContext) -> Values:
        """Scores float32 [n, 1].

        Raises:
            ScoringError: the student's output for one of them is not finite.
        """
        return _values(EachOf(cut=context.cut, of=self), context)

    def each(self, pool: Pool, forward: Forward, rows: slice, step: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Scores float32 [B, 1] of the given rows, `step` at a time, and the logits float32 [B, K]."""
        score = INFORMATIVE[self.score]
        for logits in map(forward, _images(self.ids, pool, rows, step)):
            yield score(logits.softmax(dim=1))[:, None], logits


@dataclass(frozen=True, kw_only=True)
class PredictionsRequest(_OfCandidates):
    """A request for the classes that the student predicts for some candidates, from the rounded pixels that the teacher
    would get.

    Attributes:
        ids: int64, candidate ids.
    """

    ids: np.ndarray

    def perform(self, pool: Pool, context: SearchContext) -> Values:
        """Classes int64 [n, 1].

        Raises:
            ScoringError: the student's output for one of them is not finite.
        """
        return _values(EachOf(cut=context.cut, of=self), context)

    def each(self, pool: Pool, forward: Forward, rows: slice, step: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Classes int64 [B, 1] of the given rows, `step` at a time, and the logits float32 [B, K]."""
        for logits in map(forward, _images(self.ids, pool, rows, step)):
            yield logits.argmax(dim=1, keepdim=True), logits


@dataclass(frozen=True, kw_only=True)
class SourceLogitsRequest:
    """A request for source logits, the student's logits for the images that a pool mixes."""

    def passes(self, pool: Pool, settings: SearchSettings) -> int:
        """See `kdray.search.requests.Request`."""
        return len(pool.images)

    def perform(self, pool: Pool, context: SearchContext) -> Values:
        """Logits float32 [N, K].

        Raises:
            ScoringError: the student's output for one of the images is not finite.
        """
        return _values(SourceLogits(cut=context.cut, count=len(pool.images)), context)


@dataclass(frozen=True, kw_only=True)
class EachOf:
    """A stage that computes the features, scores or classes of single candidates or images.

    Attributes:
        cut: how the work is cut.
        of: the request.
    """

    cut: Cut
    of: FeaturesRequest | ScoresRequest | PredictionsRequest

    @property
    def cuts(self) -> Cuts:
        """The candidates, or images, of each task."""
        return self.cut.parts(len(self.of))

    def __len__(self) -> int:
        return len(self.cuts)

    def run(self, pool: Pool, forward: Forward, number: int, bound: float = float("inf")) -> TaskRows:
        """See `kdray.search.stages.Stage`.

        Raises:
            ScoringError: the student's output for a candidate or image is not finite.
        """
        start, stop = self.cuts[number]
        parts = [
            (rows, logits.amax(dim=1))
            for rows, logits in self.of.each(pool, forward, slice(start, stop), self.cuts.step)
        ]
        values, peaks = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        sound = np.isfinite(values).all(axis=1) & np.isfinite(peaks)
        refuse_unsound(sound, lambda row: self.of.name(start + row))
        return TaskRows(rows=values, evaluated=stop - start)


def _images(these: np.ndarray | Tensor | None, pool: Pool, rows: slice, step: int) -> Iterator[Tensor]:
    """Images uint8 [B, C, H, W] of the given rows, `step` at a time. `these` are candidate ids or images."""
    if isinstance(these, torch.Tensor):
        yield from these[rows].split(step)
    else:
        yield from map(pool.render, torch.from_numpy(np.asarray(these)[rows]).split(step))


def _values(stage: Stage, context: SearchContext) -> Values:
    rows = Rows()
    if len(stage):
        context.run_stage(stage, rows)
    return Values(rows=rows.result() if len(stage) else np.empty((0, 0), np.float32), evaluated=rows.evaluated)
