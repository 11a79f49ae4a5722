"""Asking many batches: the contract of a teacher pool, and the one that asks in this process."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from kdray.errors import TeacherError
from kdray.teachers.answers import Answers, Teacher

FaultKind = Literal["refused", "throttled", "unsent", "lost", "malformed", "doubtful", "declined", "failed"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a batch has no answer.

    Attributes:
        kind: what it means for money and for trying again:
            refused: the teacher turned it down (wrong key, no such model); not charged, asking again is useless.
            throttled: too many requests, or out of order for now; not charged, ask again later.
            unsent: it never got there; not charged, ask again later.
            lost: it was sent, and no answer came; may be charged, ask again.
            malformed: a reply came that is no answer; charged, ask again.
            doubtful: answers came, and none of them can be believed; charged, ask again.
            declined: the teacher turned these images down, and answers others; not charged, ask again in smaller parts.
            failed: it was sent and went wrong for good; may be charged, asking again is useless.
        message: what happened, for people.
        wait_s: how long the teacher wants to be left alone, where it says so.
    """

    kind: FaultKind
    message: str
    wait_s: float | None = None

    @property
    def charged(self) -> bool:
        """Somebody may bill for it."""
        return self.kind in ("lost", "malformed", "doubtful", "failed")

    @property
    def final(self) -> bool:
        """Asking again cannot help."""
        return self.kind in ("refused", "failed")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of one batch.

    Attributes:
        key: the batch's key.
        answers: the answers, or None where none came; rows in `answers.bad` cannot be believed.
        fault: why none came.
    """

    key: Any
    answers: Answers | None = None
    fault: Fault | None = None


class TeacherPool(Protocol):
    """Sends batches to one teacher. It decides nothing: what goes when, and what a fault means, is up to its user."""

    teacher: Teacher
    """Who is asked: identity, number of classes, metered or not."""
    slots: int
    """Batches that can be on their way at once."""

    def send(self, key: Any, images: Tensor) -> None:
        """Send uint8 images [B, C, H, W]; the reply carries `key`. At most `slots` may be on their way.

        Raises:
            TeacherError: they cannot be sent, and were not.
        """

    def collect(self, timeout_s: float | None) -> list[Reply]:
        """All replies that are there; waits for the first, at most `timeout_s` seconds (None: as long as it takes)."""

    def close(self) -> None:
        """Let go of whatever asks."""


class LocalTeacherPool:
    """Asks one teacher in this process, one batch after the other, when its reply is collected."""

    slots = 1

    def __init__(self, teacher: Teacher) -> None:
        self.teacher = teacher
        self._sent: deque[tuple[Any, Tensor]] = deque()

    def send(self, key: Any, images: Tensor) -> None:
        """See `TeacherPool`."""
        self._sent.append((key, images))

    def collect(self, timeout_s: float | None) -> list[Reply]:
        """See `TeacherPool`."""
        if not self._sent:
            return []
        key, images = self._sent.popleft()
        return [ask(self.teacher, key, images)]

    def close(self) -> None:
        """Nothing to let go of."""


def ask(teacher: Teacher, key: Any, images: Tensor) -> Reply:
    """One batch, asked here and now."""
    try:
        return Reply(key=key, answers=teacher.answer(images))
    except TeacherError as error:
        return Reply(key=key, fault=Fault(kind="failed", message=str(error)))
