"""Asking many batches: the contract of a teacher pool, and the pool for a teacher that answers one batch at a time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from kdray.teachers.answers import Answers
from kdray.teachers.base import AsyncTeacher, Teacher
from kdray.teachers.faults import Fault, fault_of

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TeacherReply:
    """The end of one request: answers or a fault.

    Attributes:
        key: the batch's key.
        answers: the answers, or None where none came; rows in `answers.bad` are invalid.
        fault: why no answers came, else None.
    """

    key: Any
    answers: Answers | None = None
    fault: Fault | None = None


class TeacherPool(Protocol):
    """Sends batches to one teacher. The caller decides when a batch goes and what follows a fault."""

    @property
    def teacher(self) -> Teacher:
        """The teacher: its identity, number of classes, and whether it is metered."""
        ...

    @property
    def slots(self) -> int:
        """Batches that can be on their way at once."""
        ...

    def wait_until_ready(self) -> None:
        """Wait until a batch can be sent. The caller reserves nothing before: another run may ask about what is
        reserved, once it has waited for so long that a reply should have come.

        Raises:
            TeacherError: nobody can send one, for so long that nobody will.
        """

    def send(self, key: Any, images: Tensor, replies: int = 0) -> None:
        """Send uint8 images [B, C, H, W]; the reply carries `key`. At most `slots` may be on their way.

        Args:
            replies: how many replies to a request with these images may have come before; told to a teacher that
                counts them (`kdray.teachers.base.CountsReplies`) and answers several requests at once.

        Raises:
            TeacherError: they cannot be sent, and were not.
        """

    def collect(self, timeout_s: float | None) -> list[TeacherReply]:
        """All replies that have come; waits for the first, at most `timeout_s` seconds (None: without an end)."""
        ...

    def close(self) -> None:
        """Stop asking and free what the pool holds."""


class LocalTeacherPool:
    """Asks one teacher in this process, one batch after the other. A batch is asked when its reply is collected."""

    slots = 1

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self._sent: deque[tuple[Any, Tensor]] = deque()

    def send(self, key: Any, images: Tensor, replies: int = 0) -> None:
        """See `TeacherPool`."""
        self._sent.append((key, images))

    def wait_until_ready(self) -> None:
        """It always is."""

    def collect(self, timeout_s: float | None) -> list[TeacherReply]:
        """See `TeacherPool`."""
        if not self._sent:
            return []
        key, images = self._sent.popleft()
        return [ask(self.teacher, key, images)]

    def close(self) -> None:
        """There is nothing to free."""


def make_pool(teacher: Teacher, slots: int) -> TeacherPool:
    """A pool in this process: of up to `slots` requests at once where the teacher can answer several."""
    if isinstance(teacher, AsyncTeacher):
        from kdray.teachers.async_pool import AsyncTeacherPool  # asyncio is of no use to other teachers

        return AsyncTeacherPool(teacher, slots)
    return LocalTeacherPool(teacher)


def ask(teacher: Teacher, key: Any, images: Tensor) -> TeacherReply:
    """Ask one batch and wait for the answers."""
    try:
        return as_reply(key, teacher.answer(images))
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # a user's own teacher may raise anything
        return TeacherReply(key=key, fault=fault_of(error))


def as_reply(key: Any, result: object) -> TeacherReply:
    """What a teacher gave as a reply. A user's own teacher may give anything."""
    if isinstance(result, Fault):
        return TeacherReply(key=key, fault=result)
    if not isinstance(result, Answers):
        message = f"the teacher gave {type(result).__name__}, not kdray.teachers.Answers; see docs/extending.md"
        return TeacherReply(key=key, fault=Fault(kind="failed", message=message))
    return TeacherReply(key=key, answers=result.plain())
