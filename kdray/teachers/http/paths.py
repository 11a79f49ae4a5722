"""Paths to places in a JSON value, also through JSON that stands in a text."""

from __future__ import annotations

import json
import re
from typing import Any

from kdray.teachers.http.malformed import MalformedReply, short

Path = str | list[str | int]
"""Keys and list positions: a text with dots between them, or a list of them. An empty one is the place itself."""
_POSITION = re.compile(r"-?[0-9]+")
_FENCE = re.compile(r"```\w*\s*(.*?)\s*```", re.DOTALL)  # language models put their JSON between such lines


def follow(value: Any, path: Path) -> Any:
    """The value at `path` in a JSON value. In a path with dots a key may have dots itself: the longest key that is
    there is taken. A text on the way is read as JSON.

    Raises:
        MalformedReply: there is none.
    """
    here = value
    dotted = isinstance(path, str)
    steps = [step for step in path.split(".") if step] if isinstance(path, str) else [str(step) for step in path]
    while steps:
        here = unpacked(here)
        taken = _longest_key(here, steps if dotted else steps[:1]) if isinstance(here, dict) else 0
        if taken:
            here = here[".".join(steps[:taken])]
        elif isinstance(here, list) and _POSITION.fullmatch(steps[0]) and -len(here) <= int(steps[0]) < len(here):
            here, taken = here[int(steps[0])], 1
        else:
            raise MalformedReply(f"the teacher's reply has nothing at {path!r}: {short(value)}; check teacher.reply")
        steps = steps[taken:]
    return here


def unpacked(value: Any) -> Any:
    """`value`, or the list or mapping that stands in it as text."""
    if not isinstance(value, str):
        return value
    fenced = _FENCE.search(value)
    try:
        inside = json.loads(fenced[1] if fenced else value)
    except (ValueError, RecursionError):
        return value
    return inside if isinstance(inside, list | dict) else value


def _longest_key(mapping: dict[str, Any], steps: list[str]) -> int:
    """How many of the next steps are one key of `mapping`; 0 where it has none such."""
    return next((n for n in range(len(steps), 0, -1) if ".".join(steps[:n]) in mapping), 0)
