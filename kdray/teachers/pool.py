"""Asking many batches: the contract of a teacher pool, and the one that asks in this process."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from kdray.errors import TeacherError
from kdray.ledger.limiter import TokenBucket
from kdray.teachers.answers import Answers, Teacher


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What became of one batch.

    Attributes:
        key: the batch's key.
        answers: the answers, or None where none came.
        error: why none came. The batch may have reached the teacher.
        fatal: asking again cannot help: the teacher refuses or answers nonsense.
    """

    key: Any
    answers: Answers | None = None
    error: str | None = None
    fatal: bool = True


class TeacherPool(Protocol):
    """Asks batches of one teacher, with one rate limit for all of its workers."""

    teacher: Teacher
    """Who is asked: identity, number of classes, metered or not."""

    def ask(self, batches: Iterable[tuple[Any, Tensor]]) -> Iterator[Reply]:
        """Replies to (key, uint8 images [B, C, H, W]), in any order.

        A batch is drawn from `batches` only when it is about to be sent: drawing is the moment to reserve.
        """


class Pacer:
    """Waits as long as a token bucket says; none where no rate is set. Used by whoever sends."""

    def __init__(self, rate_per_s: float | None, burst: int, sleep: Callable[[float], None] = time.sleep) -> None:
        self._bucket = TokenBucket(rate_per_s, burst, time.monotonic()) if rate_per_s else None
        self._sleep = sleep

    def wait(self, queries: int) -> None:
        """Return when `queries` may be sent."""
        if self._bucket is not None:
            delay = self._bucket.take(queries, time.monotonic())
            if delay > 0:
                self._sleep(delay)


class LocalTeacherPool:
    """Asks one teacher in this process, one batch after the other."""

    def __init__(self, teacher: Teacher, pacer: Pacer) -> None:
        self.teacher = teacher
        self._pacer = pacer

    def ask(self, batches: Iterable[tuple[Any, Tensor]]) -> Iterator[Reply]:
        """See `TeacherPool`."""
        for key, images in batches:
            self._pacer.wait(len(images))
            try:
                reply = Reply(key=key, answers=self.teacher.answer(images))
            except TeacherError as error:
                reply = Reply(key=key, error=str(error))
            yield reply
