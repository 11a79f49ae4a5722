"""Which class of the teacher a label of a data set means.

A data set and a teacher may list the same classes in another order, and a data set may lack some. Both are matched by
name wherever both have names.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class ClassesDiffer(ValueError):
    """The classes of a data set are not those of the teacher. The message says in what."""


@dataclass(frozen=True)
class Matching:
    """What the labels of a data set mean.

    Attributes:
        positions: label of the data set -> position of the class at the teacher, for all labels that occur.
        note: how the two were matched, where that is an assumption a user should see; else None.
    """

    positions: dict[int, int]
    note: str | None = None


def match_classes(
    labels: Iterable[int], own: Sequence[str] | None, names: Sequence[str] | None, count: int | None
) -> Matching:
    """Find the teacher's position for each label of a data set.

    1. Both have names: a class is looked up by its name, first as it is written, then ignoring case, spaces at its
       ends, a final full stop, and leading zeros of a number. The teacher may have more classes.
    2. Only the data set has names: whole numbers are positions. Other names are taken in their order, if there are as
       many as the teacher has classes.
    3. Only the teacher has names: labels are positions. If its names are numbers too, and the labels could be names
       that stand elsewhere, they are refused.
    4. Nobody has names: labels are positions.

    Args:
        labels: those that occur, in any order, repeated or not.
        own: class names of the data set; a label is an index into them.
        names: class names of the teacher, in the order of its probabilities.
        count: number of the teacher's classes; None where it is not known.

    Raises:
        ClassesDiffer: a label has no position, or could have two.
    """
    used = sorted({int(label) for label in labels})
    refuse_twice(own or (), "the data set")
    refuse_twice(names or (), "the teacher")
    count = len(names) if names is not None else count
    if own is None:
        return Matching(_numbers(used, names, count))
    if used and not 0 <= used[0] <= used[-1] < len(own):
        wrong = used[0] if used[0] < 0 else used[-1]
        raise ClassesDiffer(f"label {wrong} found, but the data set names {len(own)} classes")
    if names is not None:
        return Matching(_by_name(used, own, names))
    return _of_a_teacher_without_names(used, own, count)


def refuse_twice(names: Sequence[str], whose: str) -> None:
    """Refuse names of which two are the same.

    Raises:
        ClassesDiffer: a name is given twice.
    """
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ClassesDiffer(f"{whose} has two classes named {twice[0]!r}; names must differ")


def loose(name: str) -> str:
    """A name without what people write in more than one way: case, spaces at its ends, a final full stop, the leading
    zeros of a number, and composed or decomposed accents."""
    text = unicodedata.normalize("NFC", name).casefold().strip().removesuffix(".").rstrip()
    return str(int(text)) if _is_number(text) else text


def are_numbers(names: Iterable[str]) -> bool:
    """Whether all names are whole numbers, such as folders named 0, 1, 2."""
    return all(map(_is_number, names))


def _is_number(name: str) -> bool:
    return re.fullmatch(r"[0-9]{1,18}", name) is not None


def _numbers(used: list[int], names: Sequence[str] | None, count: int | None) -> dict[int, int]:
    """Positions of labels without names."""
    plain = {label: label for label in used}
    if used and used[0] < 0:
        raise ClassesDiffer(f"label {used[0]} found; every image needs its true label")
    beyond = used[-1] if used and count is not None and used[-1] >= count else None
    numbers = {name: k for k, name in enumerate(map(loose, names or ())) if _is_number(name)}
    if all(str(label) in numbers for label in used):
        named = {label: numbers[str(label)] for label in used}
        if beyond is not None:
            return named
        moved = next((label for label in used if named[label] != label), None)
        if moved is not None:
            raise ClassesDiffer(
                f"label {moved} could be the teacher's class named {moved} or its class at position {moved}, which is "
                f"{(names or ())[moved]!r}; positions count from 0"
            )
    if beyond is not None:
        raise ClassesDiffer(f"label {beyond} found, but the teacher has {count} classes")
    return plain


def _by_name(used: list[int], own: Sequence[str], names: Sequence[str]) -> dict[int, int]:
    exact = {name: k for k, name in enumerate(names)}
    near: dict[str, list[int]] = {}
    for k, name in enumerate(names):
        near.setdefault(loose(name), []).append(k)
    found: dict[int, int] = {}
    for label in used:
        name = own[label]
        places = [exact[name]] if name in exact else near.get(loose(name), [])
        if len(places) > 1:
            raise ClassesDiffer(f"class {name!r} could be the teacher's {_list(names[k] for k in places)}")
        if places:
            found[label] = places[0]
    if lacking := [own[label] for label in used if label not in found]:
        unused = [name for k, name in enumerate(names) if k not in found.values()]
        rest = f"it has {_list(unused)}" if unused else "all others match"
        raise ClassesDiffer(f"the teacher has no class {_list(lacking)}; {rest}")
    for place, times in Counter(found.values()).items():
        if times > 1:
            twice = [own[label] for label in used if found[label] == place]
            raise ClassesDiffer(f"{_list(twice)} would all be the teacher's class {names[place]!r}")
    return found


def _of_a_teacher_without_names(used: list[int], own: Sequence[str], count: int | None) -> Matching:
    if are_numbers(own):
        positions = {label: int(own[label]) for label in used}
        refuse_twice([str(int(name)) for name in own], "the data set")
        if positions and count is not None and max(positions.values()) >= count:
            raise ClassesDiffer(
                f"class {max(positions.values())} found, but the teacher has {count} classes, 0 to {count - 1}, and no "
                "names for them"
            )
        return Matching(positions)
    if count is not None and len(own) != count:
        raise ClassesDiffer(
            f"the data set has {len(own)} classes ({_list(own)}), the teacher {count} and no names for them"
        )
    return Matching(
        {label: label for label in used},
        f"the teacher has no class names, so its classes are taken to be {_list(own)}, in this order",
    )


def _list(names: Iterable[str]) -> str:
    """The first of some names, as text."""
    names = list(names)
    shown = ", ".join(map(repr, names[:6]))
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
