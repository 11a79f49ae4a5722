"""Which output tensor of a v2 model holds the answer. It is chosen once, by name, and never by its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdray.errors import TeacherError
from kdray.teachers.base import count_in
from kdray.teachers.http.malformed import AmbiguousReply, MalformedReply
from kdray.teachers.http.tensors import FLOATS, INTEGERS, datatype, rows, sizes, widths

if TYPE_CHECKING:
    from kdray.teachers.http.section import HttpTeacherConfig


class OutputChoice:
    """The output with the answer.

    Args:
        section: the teacher's section: the output it names, and what its classes and answers are.

    Attributes:
        name: the output's name, once it is chosen.
    """

    def __init__(self, section: HttpTeacherConfig) -> None:
        self.name, self._count = section.output, count_in(section.classes)
        self._hard, self._classified = section.form.kind == "hard", section.classification is not None
        self._width = 1 if section.one_number else self._count
        self._numeric = FLOATS if section.scale is None else FLOATS + INTEGERS

    def holds_numbers(self, entry: dict[str, Any]) -> bool:
        """Whether a tensor has numbers for the classes, and not labels."""
        return datatype(entry) in self._numeric

    def learn(self, outputs: list[dict[str, Any]]) -> None:
        """Choose among the outputs that the model's metadata lists.

        Raises:
            TeacherError: none can hold the answer, or several can.
        """
        if self.name is not None:
            outputs = [entry for entry in outputs if entry.get("name") == self.name]
            if not outputs:
                return  # some servers give outputs that they do not list
        fitting = self._fitting(outputs, widths)
        if len(fitting) > 1:
            raise TeacherError(self._ambiguous(fitting))
        if not fitting:
            raise TeacherError(self._misfit(outputs))
        if isinstance(fitting[0].get("name"), str):
            self.name = fitting[0]["name"]

    def pick(self, outputs: list[dict[str, Any]], batch: int) -> dict[str, Any]:
        """The output in a reply about `batch` images. The first choice is remembered.

        Raises:
            AmbiguousReply: several can hold the answer.
            MalformedReply: none can.
        """
        if self.name is not None:
            named = [entry for entry in outputs if entry.get("name") == self.name]
            if not named:
                raise MalformedReply(f"the teacher's reply has no output {self.name!r}: check teacher.output")
            classified = self._classified and datatype(named[0]) == "BYTES"
            if not (self._hard or classified or self.holds_numbers(named[0])):
                raise MalformedReply(self._no_numbers(named))
            return named[0]
        fitting = self._fitting(outputs, lambda entry: _widths_of_data(entry, batch))
        if len(fitting) > 1:
            raise AmbiguousReply(self._ambiguous(fitting))
        if fitting:
            if isinstance(fitting[0].get("name"), str):
                self.name = fitting[0]["name"]
            return fitting[0]
        numbers = [entry for entry in outputs if self.holds_numbers(entry)]
        labels = [entry for entry in outputs if not self.holds_numbers(entry)] if self._hard else []
        if not numbers + labels:
            raise MalformedReply(self._no_numbers(outputs))
        return (labels + numbers)[0]  # it does not fit, and what reads it says why

    def _fitting(self, outputs: list[dict[str, Any]], width_of: Any) -> list[dict[str, Any]]:
        """The outputs that can hold the answer: for hard answers labels, or else numbers."""
        numbers = [entry for entry in outputs if self.holds_numbers(entry)]
        labels = [entry for entry in outputs if not self.holds_numbers(entry)]
        wide = [entry for entry in numbers if not (found := width_of(entry)) or self._width in found]
        if not self._hard or self._classified:
            return wide
        return [entry for entry in labels if not (found := width_of(entry)) or 1 in found] or wide

    def _misfit(self, outputs: list[dict[str, Any]]) -> str:
        numbers = [entry for entry in outputs if self.holds_numbers(entry)]
        if not numbers:
            return self._no_numbers(outputs)
        entry = numbers[0]
        if self._width == 1:
            return f"output {entry.get('name')!r} of the model has shape {sizes(entry)}, teacher.one_number says one"
        return (
            f"output {entry.get('name')!r} of the model has shape {sizes(entry)}, teacher.classes says "
            f"{self._count}: check teacher.classes and teacher.output"
        )

    def _no_numbers(self, outputs: list[dict[str, Any]]) -> str:
        which = "the teacher" if self.name is None else f"output {self.name!r} of the teacher"
        message = f"{which} gives no probabilities; set teacher.answers to hard for labels"
        if self._classified:
            message = (
                f"{which} does not give the texts of teacher.classification; leave that out, and set teacher.answers "
            )
            message += "to hard for labels"
        if any(datatype(entry) in ("UINT8", "INT8") for entry in outputs):
            message += ", or teacher.scale if its whole numbers are probabilities"
        return message

    def _ambiguous(self, fitting: list[dict[str, Any]]) -> str:
        names = ", ".join(repr(entry.get("name")) for entry in fitting)
        return f"the model has several outputs that can hold the answer: {names}; set teacher.output to the right one"


def _widths_of_data(entry: dict[str, Any], batch: int) -> set[int]:
    """How many numbers an image has in a tensor of a reply; 0 where it has not the same number for each image."""
    try:
        counts = {len(row) if isinstance(row, list) else 1 for row in rows(entry.get("data"), sizes(entry), batch)}
    except MalformedReply:
        return {0}
    return counts if len(counts) == 1 else {0}
