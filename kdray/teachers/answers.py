"""Answers of a teacher, and the ways an API may cut them short: a label alone, the top k, rounded numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from kdray.errors import TeacherError
from kdray.ledger.records import AnswerRows
from kdray.teachers.suspicion import explain
from kdray.utils.lazy import torch
from kdray.utils.text import counted

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers to B queries.

    Attributes:
        probs: float32 [B, K] as the teacher gave them (rounded, or zero outside the top k), or None for labels alone.
        labels: int64 [B], the class the teacher finds most likely.
        num_classes: K.
        bad: row -> why its answer is invalid; the values in such a row mean nothing.
    """

    probs: Tensor | None
    labels: Tensor
    num_classes: int
    bad: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.probs is not None and tuple(self.probs.shape) != (len(self.labels), self.num_classes):
            raise TeacherError(
                f"the teacher's answers have shape {list(self.probs.shape)}; "
                f"expected [{len(self.labels)}, {self.num_classes}] for {len(self.labels)} images and teacher.classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def believed(self) -> Answers:
        """These answers, none of which is invalid.

        Raises:
            TeacherError: the reason of the first invalid row.
        """
        if self.bad:
            raise TeacherError(next(iter(self.bad.values())))
        return self

    def plain(self) -> Answers:
        """The same on the CPU and without gradients, whatever device a teacher works on."""
        tensors = [self.labels] if self.probs is None else [self.labels, self.probs]
        if all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in tensors):
            return self
        labels, *probs = (tensor.detach().cpu() for tensor in tensors)
        return replace(self, probs=probs[0] if probs else None, labels=labels)

    def rows(self) -> AnswerRows:
        """The rows as the ledger stores them; `to_answers` turns them back."""
        probs = None if self.probs is None else self.probs.numpy()
        return AnswerRows(labels=self.labels.numpy(), probs=probs)

    def __getitem__(self, positions: Tensor) -> Answers:
        probs = None if self.probs is None else self.probs[positions]
        return Answers(probs=probs, labels=self.labels[positions], num_classes=self.num_classes)


def check_rows(rows: Sequence[tuple[int, np.ndarray | None]], num_classes: int) -> None:
    """Refuse rows of `kdray.ledger.Ledger.lookup` that a teacher of so many classes cannot have given.

    Raises:
        TeacherError: a label or the number of probabilities does not fit.
    """
    strange = next(
        (
            f"an answer with class {label}" if probs is None else f"an answer of {len(probs)} classes"
            for label, probs in rows
            if label >= num_classes or (probs is not None and len(probs) != num_classes)
        ),
        None,
    )
    if strange is not None:
        raise TeacherError(
            f"the ledger holds {strange} of this teacher, teacher.classes says {num_classes}: check teacher.classes, "
            "or give teacher.name if this is another model"
        )


def to_answers(rows: Sequence[tuple[int, np.ndarray | None]], num_classes: int) -> Answers:
    """Rows of `kdray.ledger.Ledger.lookup` as one batch of answers."""
    check_rows(rows, num_classes)
    labels = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    shown = [probs for _, probs in rows if probs is not None]
    probs = torch.from_numpy(np.stack(shown)) if shown else None
    return Answers(probs=probs, labels=labels, num_classes=num_classes)


@dataclass(frozen=True)
class AnswerFormat:
    """How much of its probabilities a teacher shows.

    Attributes:
        kind: soft, hard or topK.
        decimals: digits after the point, or None for full float32.
    """

    kind: str = "soft"
    decimals: int | None = None

    @property
    def top(self) -> int | None:
        """K of topK, or None."""
        return int(self.kind[3:]) if self.kind.startswith("top") else None

    def __str__(self) -> str:
        return self.kind + ("" if self.decimals is None or self.kind == "hard" else f",decimals={self.decimals}")

    def check(self, num_classes: int) -> None:
        """Refuse a top k of more classes than there are.

        Raises:
            TeacherError: k is larger than `num_classes`.
        """
        if self.top is not None and self.top > num_classes:
            raise TeacherError(
                f"teacher.answers: {self.kind} of a teacher with {num_classes} classes; "
                f"use top{num_classes} at most, or soft"
            )

    def apply(self, probs: Tensor, bad: Mapping[int, str] | None = None) -> Answers:
        """Reduce full probabilities, float [B, K], to this form. Ties at the k-th place go to the lower class, and
        decimals round half to even. Numbers below 0 count as 0.

        Args:
            bad: invalid rows, as `check_probabilities` found them; they are passed on.

        Raises:
            TeacherError: top k of fewer than k classes.
        """
        count, bad, probs = probs.shape[1], bad or {}, probs.clamp_min(0)
        labels = probs.argmax(dim=1)
        if self.kind == "hard":
            return Answers(probs=None, labels=labels, num_classes=count, bad=bad)
        shown = probs.to(torch.float32)
        if self.top is not None:
            if self.top > count:
                raise TeacherError(f"teacher.answers: {self.kind} of {count} classes; use top{count} at most, or soft")
            order = shown.argsort(dim=1, descending=True, stable=True)[:, : self.top]
            shown = torch.zeros_like(shown).scatter(1, order, shown.gather(1, order))
        if self.decimals is not None:
            # Through float64: the float32 nearest to the decimal, as a client reading JSON would get.
            shown = torch.from_numpy(np.round(shown.double().numpy(), self.decimals).astype(np.float32))
        return Answers(probs=shown, labels=labels, num_classes=count, bad=bad)


def training_targets(answers: Answers, top: int | None = None) -> Tensor:
    """The student's training targets: float32 [B, K], rows that sum to 1.

    A label becomes a one-hot row. In a top-k answer, the probability that the k classes leave is spread evenly over
    the other classes. Rounded rows are scaled to sum to 1; a row whose numbers were all rounded to 0 becomes a one-hot
    row of its label.

    Args:
        top: k of the answers, or None where all classes are shown.
    """
    one_hot = torch.nn.functional.one_hot(answers.labels, answers.num_classes).to(torch.float32)
    if answers.probs is None:
        return one_hot
    probs = answers.probs.double()
    if top is not None and top < answers.num_classes:
        shown = torch.zeros_like(probs, dtype=torch.bool)
        shown.scatter_(1, probs.argsort(dim=1, descending=True, stable=True)[:, :top], True)
        # A probability of the top k that was rounded to 0 looks the same as one that was not shown.
        shown &= probs > 0
        rest = (1.0 - probs.sum(dim=1, keepdim=True)).clamp_min(0.0) / (~shown).sum(dim=1, keepdim=True).clamp_min(1)
        probs = torch.where(shown | ~shown.any(dim=1, keepdim=True), probs, rest)
    total = probs.sum(dim=1, keepdim=True)
    scaled = torch.where(total > 0, probs / total.clamp_min(1e-300), one_hot.double())
    return scaled.to(torch.float32)


def check_probabilities(
    probs: Tensor,
    batch: int,
    num_classes: int,
    tolerance: float,
    *,
    remedies: Mapping[str, str] | None = None,
    partial: Tensor | None = None,
) -> dict[int, str]:
    """Rows of float [B, K] that are no probabilities, with the reason: NaN or infinite, negative by more than
    `tolerance`, or a sum that differs from 1 by more than that. `AnswerFormat.apply` reads what is slightly negative as
    0.

    Args:
        remedies: what the user can do about numbers of another kind; see `kdray.teachers.suspicion.suspect`.
        partial: bool [B], rows that leave classes out: they may sum to less than 1.

    Raises:
        TeacherError: the shape is not [B, K].
    """
    check_shape(probs, batch, num_classes)
    totals = probs.double().sum(dim=1)
    if partial is not None:
        # What was left out is unknown, but the likeliest of K classes has 1 / K at least; half a percent is rounding.
        likely = probs.amax(dim=1) * num_classes >= 1 - tolerance - 0.005 * num_classes
        totals = torch.where(partial & (totals < 1) & likely, torch.ones_like(totals), totals)
    wrong = ~torch.isfinite(probs).all(dim=1) | (probs < -tolerance).any(dim=1) | ((totals - 1).abs() > tolerance)
    rows = wrong.nonzero().flatten().tolist()
    return {
        row: explain(probs[row].double().numpy(), tolerance, remedies, partial is not None and bool(partial[row]))
        for row in rows
    }


def check_shape(probs: Tensor, batch: int, num_classes: int) -> None:
    """Raise where `probs` is not of shape [B, K].

    Raises:
        TeacherError: it has another shape.
    """
    if tuple(probs.shape) != (batch, num_classes):
        raise TeacherError(
            f"the teacher answered {counted(batch, 'image')} with an array of shape {list(probs.shape)}; "
            f"expected [{batch}, {num_classes}]: check teacher.classes"
        )


class UnknownClass(str):
    """Why a row is invalid: it names a class that the teacher should not have. Asking again seldom helps: it is
    `teacher.classes` that is wrong."""


def check_labels(labels: np.ndarray, num_classes: int) -> dict[int, str]:
    """Rows of int [B] labels that name no class, with the reason."""
    text = "the teacher answered label {}; labels lie in 0..{}: check teacher.classes"
    return {
        row: UnknownClass(text.format(labels[row], num_classes - 1))
        for row in np.flatnonzero((labels < 0) | (labels >= num_classes)).tolist()
    }
