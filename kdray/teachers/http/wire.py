"""The contract of a wire format: what a request looks like and where a reply has the answer. Knows no network.

A format registers itself under a name, which is then a value of `teacher.protocol`; adding one means adding a module to
`kdray.teachers.http.wires`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from kdray.sections.registry import Catalogue
from kdray.teachers.http.malformed import MalformedReply
from kdray.utils.text import counted

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.teachers.answers import Answers
    from kdray.teachers.http.section import HttpTeacherConfig

_CATALOGUE = Catalogue("kdray.teachers.http.wires")
_WIRES: dict[str, type[Wire]] = {}
_W = TypeVar("_W", bound="type[Wire]")


class Wire(ABC):
    """One format of requests and replies.

    Args:
        section: the teacher's section.
        image_shape: (C, H, W) of the images.
    """

    layout: ClassVar[str] = "nhwc"
    """Order of the axes of a request's images where `teacher.input.layout` is null."""
    describes: ClassVar[bool] = True
    """Servers may describe the model: `about` may be set. A first request then takes up to twice `timeout_s`."""
    url: str
    """Where requests go, with ${NAME} for what is secret."""
    about: str | None = None
    """Where the server describes the model free of charge, or None."""
    batch_limit: int | None = None
    """Images a request that the server says it takes, where it says so."""

    @abstractmethod
    def __init__(self, section: HttpTeacherConfig, image_shape: tuple[int, int, int]) -> None: ...

    @classmethod
    def check(cls, section: HttpTeacherConfig) -> None:
        """Refuse fields of a section that this format cannot use, or lacks.

        Raises:
            ValueError: with the name of the field.
        """
        return

    @classmethod
    def replies_in_names(cls, section: HttpTeacherConfig) -> bool:
        """Whether a reply may name classes. Then the names and their order decide what an answer means."""
        return True

    def lacks(self) -> str | None:
        """The field to set before requests can be made to a server that does not describe its model, or None."""
        return None

    def learn(self, reply: Any) -> None:
        """Take the reply from `about`.

        Raises:
            TeacherError: the model does not fit the section or the images.
        """
        return

    @abstractmethod
    def request(self, images: Tensor) -> Any:
        """The body of a request, as JSON values, for uint8 images [B, C, H, W]."""

    @abstractmethod
    def answers(self, reply: Any, batch: int) -> Answers:
        """The answers in the body of a reply to a request of `batch` images.

        Raises:
            MalformedReply: it holds none.
        """


def register(protocol: str) -> Callable[[_W], _W]:
    """Class decorator: a wire under the name that `teacher.protocol` gives."""

    def decorate(wire: _W) -> _W:
        if _WIRES.setdefault(protocol, wire) is not wire:
            raise ValueError(f"teacher.protocol: two wires are named {protocol!r}")
        return wire

    return decorate


def wires() -> dict[str, type[Wire]]:
    """The wires by protocol; v2, the default, first."""
    _CATALOGUE.load()
    return dict(sorted(_WIRES.items(), key=lambda item: (item[0] != "v2", item[0])))


def exactly(rows: list[Any], batch: int) -> list[Any]:
    """`rows`, where they are as many as the images.

    Raises:
        MalformedReply: they are not.
    """
    if len(rows) != batch:
        raise MalformedReply(f"the teacher gave {counted(len(rows), 'answer')} to {counted(batch, 'image')}")
    return rows
