"""From the entries of a server's reply, one for each image, to answers.

An invalid row is named in `Answers.bad`; a reply raises only where all its rows are invalid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from kdray.teachers.answers import Answers, UnknownClass, check_probabilities
from kdray.teachers.base import count_in
from kdray.teachers.http.malformed import MalformedReply, NoSuchClass, short
from kdray.teachers.http.names import ClassNames
from kdray.teachers.suspicion import LogitsCheck, suspect
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from kdray.teachers.http.section import HttpTeacherConfig

T = TypeVar("T")
Find = Callable[[Any], Any]
_Scores = tuple[list[float], int]
"""K numbers, and how many of them the reply had."""

_NUMBER = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*(%?)\s*")
_REMEDIES = {
    "percent": "set teacher.outputs to percent",
    "bytes": "set teacher.scale to 1/255",
    "int8": "set teacher.scale to 1/256 and teacher.zero_point to -128",
    "logs": "set teacher.outputs to logits, which is right for them",
    "logits": "set teacher.outputs to logits",
    "rounded": "raise teacher.tolerance",
    "short": "check teacher.classes, or set teacher.answers to topK if it shows the K likeliest alone",
}

_OTHER_KINDS = ("percent", "bytes", "int8", "logs", "several")


def _itself(row: Any) -> Any:
    return row


class Reader:
    """Turns the numbers or labels of a reply into answers.

    Args:
        section: the teacher's section: the form of the answers, the classes, what the numbers are, and how far
            probabilities may be from summing to 1.
    """

    def __init__(self, section: HttpTeacherConfig) -> None:
        self.form, self.num_classes = section.form, count_in(section.classes)
        self._classes = ClassNames(section.class_names(), self.num_classes, section.labels)
        self._logits, self._tolerance = section.outputs == "logits", section.tolerance
        self._percent = section.outputs == "percent"
        self._factor = 0.01 if self._percent else (section.scale or 1.0)
        self._zero, self._single = section.zero_point, section.one_number
        self._ignored = frozenset(section.reply.ignore)
        self._check = LogitsCheck()

    def probabilities(self, rows: Sequence[Any], find: Find = _itself) -> Answers:
        """Answers from K numbers, or from class name -> number, for each image. Where the config says so, it is one
        number, that of the second of two classes.

        Args:
            find: gets what is read from an entry; it may raise MalformedReply, and the row is invalid.
        """
        return self._scores(rows, lambda row: self._numbers(find(row)))

    def top(self, rows: Sequence[Any], find: Find = _itself) -> Answers:
        """Answers from (class, number) pairs for each image. They may leave classes out: then they sum to 1 at most."""
        return self._scores(rows, lambda row: self._top(find(row)))

    def labels(self, rows: Sequence[Any], find: Find = _itself) -> Answers:
        """Answers from a class name or number for each image. Where probabilities are kept, a label is none."""
        if self.form.kind != "hard":
            raise MalformedReply(f"the teacher gives labels, teacher.answers is {self.form.kind}: set it to hard")
        missing: int | None = 0
        values, bad = _read_each(rows, lambda row: self._label(find(row)), missing)
        nothing = {row: "the teacher answered null, not a class" for row, value in enumerate(values) if value is None}
        labels = torch.tensor([value or 0 for value in values], dtype=torch.int64)
        return Answers(probs=None, labels=labels, num_classes=self.num_classes, bad=bad | nothing)

    def _label(self, given: Any) -> int | None:
        """The position of a class. None: like NaN, an answer that the teacher has not, and no class unknown to us."""
        return None if given is None else self._classes.index(given)

    def _scores(self, rows: Sequence[Any], read: Callable[[Any], _Scores]) -> Answers:
        scores, bad = _read_each(rows, read, ([0.0] * self.num_classes, 0))
        values = torch.tensor([row for row, _ in scores], dtype=torch.float64).reshape(len(scores), self.num_classes)
        probs, partial = values, torch.tensor([count < self.num_classes for _, count in scores])
        if self._logits:
            good = [k for k in range(len(scores)) if k not in bad]
            if not self._single and (found := self._check.look(values[good].numpy())) is not None:
                wanted = "probabilities" if found == "probabilities" else "percent"
                raise MalformedReply(f"the teacher gives {found}, not logits: set teacher.outputs to {wanted}")
            finite = torch.isfinite(values).all(dim=1, keepdim=True)
            probs = torch.where(finite, values.softmax(dim=1), values)
        probs = probs.to(torch.float32)  # after a softmax in float64
        wrong = check_probabilities(
            probs, len(probs), self.num_classes, self._tolerance, remedies=self._remedies(), partial=partial
        )
        misread: set[int] = set()
        for row in wrong:
            if (reason := self._was_right(values[row].numpy())) is not None:
                wrong[row] = reason
                misread.add(row)
            elif suspect(probs[row].double().numpy(), self._tolerance, bool(partial[row])) in _OTHER_KINDS:
                misread.add(row)
        if wrong and len(misread) == len(scores):  # it is not these images: the config says another kind of numbers
            raise MalformedReply(next(iter(wrong.values())))
        return self.form.apply(torch.nan_to_num(probs), wrong | bad)

    def _remedies(self) -> dict[str, str]:
        """What to do about numbers of another kind, where the config has not said already what they are."""
        kinds = _REMEDIES if self._factor == 1 and not self._logits else ("rounded", "short")
        return {kind: _REMEDIES[kind] for kind in kinds}

    def _was_right(self, row: Any) -> str | None:
        """The reason, where numbers look like probabilities that the config has scaled."""
        if self._factor == 1:
            return None
        raw = row / self._factor + self._zero
        if raw.min() < -self._tolerance or raw.max() > 1 + self._tolerance or raw.sum() < self._tolerance:
            return None
        field = "teacher.outputs to probabilities" if self._percent else "teacher.scale to null"
        return f"the teacher's numbers lie in 0..1 as they are: set {field}"

    def _named(self, pairs: Sequence[tuple[Any, Any]]) -> list[float]:
        """K numbers from (class, number) pairs, zero where a class is not named."""
        values = [0.0] * self.num_classes
        seen: set[int] = set()
        for name, number in pairs:
            index = self._classes.index(name)
            if index in seen:
                raise MalformedReply(f"the teacher named class {short(name)} twice")
            seen.add(index)
            values[index] = self._number(number)
        return values

    def _top(self, row: Sequence[tuple[Any, Any]]) -> _Scores:
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
        return values, len(row)

    def _numbers(self, row: Any) -> _Scores:
        if isinstance(row, dict):
            return self._mapping([(key, number) for key, number in row.items() if key not in self._ignored])
        if self._single:
            return self._one_number(row[0] if isinstance(row, list) and len(row) == 1 else row), 2
        if not isinstance(row, list) or (len(row) == 1 and self.num_classes == 2):
            hint = "; if it is that of the second class, set teacher.one_number to true"
            one = self.num_classes == 2 and (isinstance(row, list) or _is_number(row))
            raise MalformedReply(
                f"the teacher answered {short(row)}; expected {self.num_classes} numbers an image{hint if one else ''}"
            )
        if len(row) != self.num_classes:
            raise MalformedReply(
                f"the teacher answered {len(row)} numbers for an image, teacher.classes says {self.num_classes}"
            )
        return [self._number(number) for number in row], self.num_classes

    def _mapping(self, pairs: list[tuple[Any, Any]]) -> _Scores:
        try:
            values = self._named(pairs)
        except NoSuchClass as reason:
            raise NoSuchClass(f"{reason}; keys that are no classes belong into teacher.reply.ignore") from None
        if self.form.top is not None:
            return self._top(pairs)
        if len(pairs) != self.num_classes:
            raise MalformedReply(
                f"the teacher named {len(pairs)} of {self.num_classes} classes: check teacher.classes, or set "
                f"teacher.answers to top{len(pairs)} if it shows the likeliest alone"
            )
        return values, len(pairs)

    def _one_number(self, number: Any) -> list[float]:
        if isinstance(number, list):
            raise MalformedReply(
                f"the teacher answered {short(number)}; expected one number an image, as teacher.one_number says"
            )
        value = self._number(number)
        return [0.0 if self._logits else 1.0 - value, value]

    def _number(self, number: Any) -> float:
        """A number as it is, in a text, or as a percentage ("70%"); scaled as the config says."""
        # JSON has no NaN: servers write it as a word, or as null.
        if number is None or (isinstance(number, str) and number.lower().strip("+-") in ("nan", "inf", "infinity")):
            return math.nan
        written = _NUMBER.fullmatch(number) if isinstance(number, str) else None
        if written is not None and written[2]:
            if self._logits:
                raise MalformedReply(
                    f"the teacher answered {short(number)}, not a logit: set teacher.outputs to probabilities"
                )
            return float(written[1]) / 100
        if written is None and not _is_number(number):
            raise MalformedReply(f"the teacher answered {short(number)} where a number belongs")
        try:
            value = float(written[1]) if written else float(number)
        except OverflowError:  # JSON's whole numbers have no limit
            return math.inf
        return value if self._factor == 1 and not self._zero else (value - self._zero) * self._factor


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
            bad[k] = UnknownClass(reason) if isinstance(reason, NoSuchClass) else str(reason)
    if bad and len(bad) == len(rows):
        raise MalformedReply(bad[0])
    return values, bad
