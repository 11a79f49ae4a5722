"""From the entries of a server's reply, one for each image, to answers.

An invalid row is named in `Answers.bad`; a reply raises only where all its rows are invalid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from kdray.teachers.answers import Answers, check_probabilities
from kdray.teachers.base import count_in
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.teachers.http.section import HttpTeacherConfig

T = TypeVar("T")


class MalformedReply(Exception):
    """A reply that holds no answers. The message goes to the user."""


class Reader:
    """Turns the numbers or labels of a reply into answers.

    Args:
        section: the teacher's section: the form of the answers, the classes, whether numbers are logits, and how far
            probabilities may be from summing to 1.
    """

    def __init__(self, section: HttpTeacherConfig) -> None:
        self.form, self.num_classes = section.form, count_in(section.classes)
        self._names, self._logits, self._tolerance = (
            section.class_names(),
            section.outputs == "logits",
            section.tolerance,
        )

    def probabilities(self, rows: Sequence[Any]) -> Answers:
        """Answers from an entry of K numbers, or of class name -> number, for each image."""
        values, bad = _read_each(rows, self._numbers, [0.0] * self.num_classes)
        probs = self._probabilities_of(values)
        wrong = check_probabilities(probs, len(probs), self.num_classes, self._tolerance)
        return self.form.apply(torch.nan_to_num(probs), wrong | bad)

    def top(self, rows: Sequence[list[tuple[Any, Any]]]) -> Answers:
        """Answers from (class, number) pairs for each image. They may leave classes out: then they sum to 1 at most."""
        values, bad = _read_each(rows, self._top, [0.0] * self.num_classes)
        probs = self._probabilities_of(values)
        complete = torch.tensor([len(row) >= self.num_classes for row in rows])
        total = probs.double().sum(dim=1)
        # The probabilities of classes that were left out are unknown: the rest may sum to less than 1.
        padded = torch.where((total < 1) & ~complete, torch.ones_like(total), total)
        for k in (~torch.isfinite(probs).all(dim=1) | (probs < 0).any(dim=1)).nonzero().flatten().tolist():
            bad.setdefault(k, "the teacher's probabilities hold a negative number, NaN or infinity")
        for k in ((padded - 1).abs() > self._tolerance).nonzero().flatten().tolist():
            bad.setdefault(k, f"the teacher's probabilities sum to {float(total[k]):g}, not 1; does it give logits?")
        return self.form.apply(torch.nan_to_num(probs), bad)

    def labels(self, rows: Sequence[Any]) -> Answers:
        """Answers from a class name or number for each image."""
        values, bad = _read_each(rows, self._class, 0)
        return Answers(
            probs=None, labels=torch.tensor(values, dtype=torch.int64), num_classes=self.num_classes, bad=bad
        )

    def _probabilities_of(self, values: list[list[float]]) -> Tensor:
        """float32 [B, K]; a softmax is taken in float64."""
        probs = torch.tensor(values, dtype=torch.float64).reshape(len(values), self.num_classes)
        if self._logits:
            finite = torch.isfinite(probs).all(dim=1, keepdim=True)
            probs = torch.where(finite, probs.softmax(dim=1), probs)
        return probs.to(torch.float32)

    def _named(self, pairs: Sequence[tuple[Any, Any]]) -> list[float]:
        """K numbers from (class, number) pairs, zero where a class is not named."""
        values = [0.0] * self.num_classes
        seen: set[int] = set()
        for name, number in pairs:
            index = self._class(name)
            if index in seen:
                raise MalformedReply(f"the teacher named class {short(name)} twice")
            seen.add(index)
            values[index] = self._number(number)
        return values

    def _top(self, row: Sequence[tuple[Any, Any]]) -> list[float]:
        values = self._named(row)
        if not row:
            raise MalformedReply("the teacher named no class")
        if self._logits and len(row) < self.num_classes:
            raise MalformedReply(
                f"the teacher gave logits of {len(row)} of {self.num_classes} classes; "
                "probabilities cannot be made of them"
            )
        if self.form.kind == "soft" and len(row) < self.num_classes:
            raise MalformedReply(
                f"the teacher named {len(row)} of {self.num_classes} classes; set teacher.answers to top{len(row)}"
            )
        return values

    def _numbers(self, row: Any) -> list[float]:
        if isinstance(row, dict):
            values = self._named(list(row.items()))
            if len(row) != self.num_classes:
                raise MalformedReply(
                    f"the teacher named {len(row)} of {self.num_classes} classes: check teacher.classes"
                )
            return values
        if not isinstance(row, list):
            raise MalformedReply(f"the teacher answered {short(row)}; expected {self.num_classes} numbers an image")
        if len(row) != self.num_classes:
            raise MalformedReply(
                f"the teacher answered {len(row)} numbers for an image, teacher.classes says {self.num_classes}"
            )
        return [self._number(number) for number in row]

    def _number(self, number: Any) -> float:
        # JSON has no NaN: servers write it as a word, or as null.
        if number is None or (isinstance(number, str) and number.lower().strip("+-") in ("nan", "inf", "infinity")):
            return math.nan
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise MalformedReply(f"the teacher answered {short(number)} where a number belongs")
        try:
            return float(number)
        except OverflowError:  # JSON's whole numbers have no limit
            return math.inf

    def _class(self, name: Any) -> int:
        if isinstance(name, float) and name.is_integer():
            name = int(name)
        if isinstance(name, int) and not isinstance(name, bool):
            return name if 0 <= name < self.num_classes else self._unknown(name)
        if isinstance(name, str):
            if self._names and name in self._names:
                return self._names.index(name)
            if name.isascii() and name.isdigit() and int(name) < self.num_classes:
                return int(name)
        return self._unknown(name)

    def _unknown(self, name: Any) -> int:
        raise MalformedReply(f"the teacher answered class {short(name)}, which teacher.classes does not name")


def _read_each(rows: Sequence[Any], read: Callable[[Any], T], missing: T) -> tuple[list[T], dict[int, str]]:
    """What is read from each row, and the rows that cannot be read, with the reason; `missing` stands for those.

    Raises:
        MalformedReply: no row can be read.
    """
    values: list[T] = []
    bad: dict[int, str] = {}
    for k, row in enumerate(rows):
        try:
            values.append(read(row))
        except MalformedReply as reason:
            values.append(missing)
            bad[k] = str(reason)
    if bad and len(bad) == len(rows):
        raise MalformedReply(bad[0])
    return values, bad


def short(value: Any) -> str:
    """The beginning of a value's repr, for a message."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of very many levels"
    return text if len(text) <= 80 else text[:77] + "..."
