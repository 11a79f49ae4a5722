"""Replies without answers."""

from typing import Any


class MalformedReply(Exception):
    """A reply that holds no answers. The message goes to the user."""


class AmbiguousReply(MalformedReply):
    """A reply with several places where the answer may be. Only the config can say which: asking again is useless."""


class NoSuchClass(MalformedReply):
    """A reply that names a class which `teacher.classes` does not have."""


def short(value: Any) -> str:
    """The beginning of a value's repr, for a message."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a {type(value).__name__} of very many levels"
    return text if len(text) <= 80 else text[:77] + "..."
