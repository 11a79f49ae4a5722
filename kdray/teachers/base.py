"""The contract of a teacher and of its section in the config; see `kdray.sections.registry` for how one is added."""

from __future__ import annotations

import json
import os
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, runtime_checkable

from pydantic import Field, field_validator

from kdray.ledger.limits import Limits
from kdray.ledger.store import LEASE_S
from kdray.sections.base import Classes, Section
from kdray.sections.registry import Registry
from kdray.teachers.answers import AnswerFormat
from kdray.teachers.input import TeacherInput
from kdray.teachers.retry import RetryPolicy

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.images.base import ImageSet
    from kdray.observers.base import Observer
    from kdray.teachers.answers import Answers
    from kdray.teachers.faults import Fault, FaultKind
    from kdray.teachers.http.secrets import Secrets
    from kdray.teachers.recipe import TeacherTrainConfig


class Teacher(Protocol):
    """The contract of every teacher."""

    identity: str
    """Names the model and the form of its answers; part of the ledger's key. All that decides what an answer is belongs
    in it: another model, or the same model with another setting, has another identity."""
    num_classes: int
    """K."""
    metered: bool
    """A call may be billed: one that was sent and never answered counts as charged."""

    def answer(self, images: Tensor) -> Answers:
        """Answers to uint8 images [B, C, H, W]; invalid rows are named in `Answers.bad`, not raised.

        Raises:
            TeacherError: there are no answers.
        """
        ...


@runtime_checkable
class AsyncTeacher(Teacher, Protocol):
    """A teacher that can answer several requests at once, on one event loop."""

    def session(self) -> Any:
        """What `ask` needs, such as an HTTP session: to be made inside the event loop that uses it, and closed by
        `await session.close()`."""
        ...

    async def ask(self, session: Any, images: Tensor) -> Answers | Fault:
        """Answers to uint8 images [B, C, H, W], or why there are none."""
        ...

    def fault(self, kind: FaultKind, message: str, wait_s: float | None = None) -> Fault:
        """A fault whose message holds no secret of this teacher."""
        ...


@runtime_checkable
class CountsReplies(Protocol):
    """A teacher that sends a request under another key once a reply without answers has come to it."""

    def note_replies(self, images: Tensor, replies: int) -> None:
        """Take into account how many such replies to a request with these images have come, to whichever worker."""
        ...


class TeacherSection(Section):
    """What all teachers have in common. A subclass is a kind of teacher: it adds fields and builds the teacher."""

    local: ClassVar[bool] = False
    """The teacher computes on this machine and costs nothing: by default there are as many teacher workers as scoring
    workers, and the plan counts on evaluating all test images."""
    servable: ClassVar[bool] = True
    """`kdray teacher serve` can serve it: it is not behind a server already."""

    resumable_fields: ClassVar[tuple[str, ...]] = ("batch_size", "limits", "retry")

    kind: str
    """Which kind of teacher answers."""
    answers: str = "soft"
    """soft (all probabilities), hard (a label), or topK such as top5 (the K largest probabilities)."""
    decimals: Annotated[int, Field(ge=0, le=10)] | None = None
    """Round probabilities to so many decimals, as many APIs do; null does not."""
    input: TeacherInput = TeacherInput()
    """What it sees of an image, where that is not what the student sees."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 128
    """Images a request: also the most that one lost reply costs."""
    limits: Limits = Limits()
    """How fast it may be asked."""
    retry: RetryPolicy = RetryPolicy()
    """What to do when it fails."""

    @field_validator("answers")
    @classmethod
    def _known_answers(cls, value: str) -> str:
        if not re.fullmatch(r"soft|hard|top[1-9]\d*", value):
            raise ValueError(f"{value!r} is not a kind of answer; use soft, hard or topK (top5, for example)")
        return value

    @abstractmethod
    def build(self, image_shape: tuple[int, int, int], *, folder: str = "", secrets: Secrets | None = None) -> Teacher:
        """The teacher. Called in this process and in each teacher worker; it must not ask anything that is billed.

        Args:
            image_shape: (C, H, W) of the images it will be asked about: those of the student as `input` converts them.
            folder: where the user's own modules may lie; "" is the current folder.
            secrets: what `read_secrets` gave in the driver; None: read them here.

        Raises:
            TeacherError, ModelError: the section does not describe a teacher for such images.
        """
        raise NotImplementedError

    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, in the order of the probabilities, or None where they are not known."""
        return None

    def expected_classes(self, labelled: ImageSet | None) -> tuple[int | None, tuple[str, ...] | None]:
        """Number and names of the classes, as far as they are known before the teacher was made.

        Args:
            labelled: the config's labelled set, where there is one.
        """
        return None, self.class_names()

    def count_classes(self, image_shape: tuple[int, int, int]) -> int | None:
        """Number of classes, or None where it is not known before the teacher was made; see `missing`."""
        return self.build(image_shape).num_classes

    def read_secrets(self, environ: Mapping[str, str] = os.environ) -> Secrets | None:
        """Values of the environment variables that the section names, for `build`.

        Raises:
            TeacherError: a variable is not set.
        """
        return None

    @property
    def recipe(self) -> TeacherTrainConfig | None:
        """How to train the teacher where it does not exist yet, or None where it must exist."""
        return None

    def missing(self) -> bool:
        """Whether `prepare` would train the teacher."""
        return False

    def prepare(self, image_shape: tuple[int, int, int], labelled: ImageSet | None, observer: Observer) -> None:
        """Make what `build` needs and is `missing`.

        Args:
            image_shape: see `build`.
            labelled: the config's labelled set, where there is one, with images as the student sees them.
            observer: told what is done, and how far it is.
        """

    def check(self, teacher: Teacher) -> None:
        """Check, free of charge, that the teacher that was built can be asked. Called once, before anything is paid.

        Raises:
            TeacherError: it cannot.
        """

    def lease_s(self) -> float:
        """Seconds after which a request that was sent is over for certain."""
        return LEASE_S

    def probes(self) -> bool:
        """Whether to send one image alone until the teacher has answered: a wrong setting, or a bug, then costs one
        query. It matters to teachers that are metered."""
        return True

    def own_settings(self) -> str:
        """The fields that a user's own subclass of a kind of teacher adds, for the identity; empty for kdray's own."""
        kind = next(b for b in type(self).__mro__ if issubclass(b, TeacherSection) and b.__module__[:6] == "kdray.")
        if kind is type(self):
            return ""
        added = {k: v for k, v in self.model_dump(mode="json").items() if k == "kind" or k not in kind.model_fields}
        return json.dumps(added, sort_keys=True)

    @property
    def form(self) -> AnswerFormat:
        """How much of its probabilities the teacher shows."""
        return AnswerFormat(self.answers, self.decimals)


teachers = Registry[TeacherSection](
    TeacherSection,  # type: ignore[type-abstract]  # a registry takes an abstract base and never makes one
    field="teacher",
    package="kdray.teachers",
    skip=("server", "async_pool"),
)
"""Kinds of teachers by name; `module:Class` names a user's own subclass of `TeacherSection`."""


def names_in(classes: Classes | None) -> tuple[str, ...] | None:
    """The names in a `classes` field, or None where it holds a number or nothing."""
    return tuple(classes) if isinstance(classes, list) else None


def count_in(classes: Classes) -> int:
    """The number of classes that a `classes` field gives."""
    return len(classes) if isinstance(classes, list) else classes
