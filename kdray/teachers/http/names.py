"""Which class a server means by a name or a number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar

from kdray.teachers.http.malformed import NoSuchClass, short

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_K = TypeVar("_K")


class Position(int):
    """A number that is a class's position for certain, as in Triton's classification strings."""


class ClassNames:
    """Finds classes by name first, in whatever type and case the name is written.

    Args:
        names: the names of the classes, or None where they have none.
        count: how many classes there are.
        labels: what a number means: "names", "positions", or "auto": a name where one matches, else a position, but
            that only where no name is a whole number.
    """

    def __init__(self, names: tuple[str, ...] | None, count: int, labels: str = "auto") -> None:
        self._count, self._labels = count, labels
        names = names or ()
        self._exact = {name: k for k, name in enumerate(names)}
        self._loose = _unique((_loosely(name), k) for k, name in enumerate(names))
        whole = [(number, k) for k, name in enumerate(names) if (number := _whole(name)) is not None]
        self._numbers, self._numeric = _unique(whole), bool(whole)

    def index(self, given: Any) -> int:
        """The position of the class that a server calls `given`.

        Raises:
            NoSuchClass: there is none.
        """
        number = _whole(given)
        if isinstance(given, Position) or (self._labels == "positions" and number is not None):
            return self._position(given, number)
        text = str(given).lower() if isinstance(given, bool) else given
        if isinstance(text, str):
            if text in self._exact:
                return self._exact[text]
            if _loosely(text) in self._loose:
                return self._loose[_loosely(text)]
        if number is not None and number in self._numbers:
            return self._numbers[number]
        if self._labels == "names" or (self._numeric and number is not None):
            hint = "; some classes are named by numbers, so a number counts as a name: see teacher.labels"
            raise NoSuchClass(_unknown(given) + (hint if number is not None else ""))
        return self._position(given, number)

    def _position(self, given: Any, number: int | None) -> int:
        digits = not isinstance(given, str) or given.isdigit()
        if number is None or not digits or not 0 <= number < self._count:
            raise NoSuchClass(_unknown(given))
        return number


def _unknown(given: Any) -> str:
    return f"the teacher answered class {short(given)}, which teacher.classes does not name"


def _loosely(name: str) -> str:
    """A name without what servers write in other ways: case, spaces around it, a full stop behind it."""
    return name.strip().removesuffix(".").rstrip().casefold()


def _whole(value: Any) -> int | None:
    """The whole number that a number or a text is."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value.partition(".")[0]) if isinstance(value, str) and _WHOLE.fullmatch(value) else None


def _unique(pairs: Iterable[tuple[_K, int]]) -> dict[_K, int]:
    """The keys that stand for one position alone."""
    found: dict[_K, int] = {}
    twice: set[_K] = set()
    for key, position in pairs:
        if found.setdefault(key, position) != position:
            twice.add(key)
    return {key: position for key, position in found.items() if key not in twice}
