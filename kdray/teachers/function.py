"""A Python function as a teacher: a client of some API, an old binary behind subprocess, another framework."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import field_validator

from kdray.errors import ImageDeclined, TeacherBusy, TeacherError
from kdray.sections.base import Classes
from kdray.sections.registry import import_object
from kdray.teachers.answers import AnswerFormat, Answers, check_labels, check_probabilities
from kdray.teachers.base import TeacherSection, count_in, names_in, teachers
from kdray.utils.lazy import torch
from kdray.utils.text import counted

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.teachers.http.secrets import Secrets

_REMEDIES = {
    "percent": "let the function divide them by 100",
    "bytes": "let the function divide them by 255",
    "logs": "let the function return their exponentials",
    "logits": "let the function return their softmax",
    "short": "check teacher.classes, or fill the probabilities of the others in",
}


@teachers.register
class PythonTeacherConfig(TeacherSection):
    """A Python function: uint8 [B, C, H, W] numpy array in, probabilities [B, K] or labels [B] out."""

    kind: Literal["python"] = "python"
    """python: a function."""
    function: str
    """module:function, importable from where kdray runs."""
    classes: Classes
    """Number or names of the classes."""
    name: str | None = None
    """The teacher's name in the ledger; null uses `function`. Give a new name when the model behind it changes.
    `kdray.distil` needs one where a ledger is shared and the function has no name of its own, as a lambda."""
    metered: bool = True
    """Calls may be billed: a batch that was on its way when kdray died counts as charged."""

    @field_validator("function")
    @classmethod
    def _module_and_function(cls, value: str) -> str:
        if not re.fullmatch(r"[\w.]+:[\w.<>]+", value):
            raise ValueError(f"{value!r} is not of the form module:function")
        return value

    def class_names(self) -> tuple[str, ...] | None:
        """The names in `classes`."""
        return names_in(self.classes)

    def build(
        self, image_shape: tuple[int, int, int], *, folder: str = "", secrets: Secrets | None = None
    ) -> FunctionTeacher:
        """The teacher of the function that is imported from `folder` or the Python path.

        Raises:
            TeacherError: the function cannot be imported, or `answers` asks for more classes than there are.
        """
        self.form.check(count_in(self.classes))
        return self.around(_import(self.function, folder))

    def around(self, function: Callable[[np.ndarray], Any]) -> FunctionTeacher:
        """The teacher that asks `function`, in place of the one the section names.

        Raises:
            TeacherError: `answers` asks for more classes than there are.
        """
        self.form.check(count_in(self.classes))
        return FunctionTeacher(
            function,
            identity=f"python:{self.name or self.function}{self.own_settings()}:{self.form}",
            num_classes=count_in(self.classes),
            form=self.form,
            metered=self.metered,
        )


def shown_name(function: Callable[..., Any]) -> str:
    """`module:function` of any callable, as far as it has such a name."""
    module = getattr(function, "__module__", None) or "python"
    return f"{module}:{getattr(function, '__qualname__', type(function).__name__)}"


def own_name(function: Callable[..., Any]) -> str | None:
    """`module:function`, where everybody who imports that gets this very function; else None.

    Closures, lambdas, partials, bound methods, callable objects and functions of a script or notebook have none.
    """
    module, path = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(path, str) or module == "__main__":
        return None
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return f"{module}:{path}" if found is function else None


class FunctionTeacher:
    """Asks a function of uint8 [B, C, H, W] (numpy) that returns probabilities [B, K] or integer labels [B].

    Args:
        function: the function.
        identity: names the model behind it and the form of the answers.
        num_classes: K.
        form: how much of its probabilities is kept. Labels can only be kept as "hard".
        metered: calls may be billed.
    """

    def __init__(
        self,
        function: Callable[[np.ndarray], Any],
        *,
        identity: str,
        num_classes: int,
        form: AnswerFormat,
        metered: bool = True,
    ) -> None:
        self.identity = identity
        self.num_classes = num_classes
        self.metered = metered
        self._function, self._form = function, form

    def answer(self, images: Tensor) -> Answers:
        """Answers to uint8 images [B, C, H, W].

        Raises:
            TeacherBusy, ImageDeclined: the function raised it.
            TeacherError: the function raised another exception, or returned neither probabilities nor labels of these
                images.
        """
        try:
            reply = self._function(images.numpy())
        except (TeacherBusy, ImageDeclined):
            raise
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            raise TeacherError(f"the teacher function failed: {type(error).__name__}: {error}") from error
        array = to_array(reply)
        if array.dtype.kind in "iu" and array.ndim == 1:
            return self._labels(array, len(images))
        if array.dtype.kind != "f":
            raise TeacherError(
                f"the teacher function returned {array.dtype} of shape {list(array.shape)}; "
                f"expected probabilities [{len(images)}, {self.num_classes}] or integer labels [{len(images)}]"
            )
        probs = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        wrong = check_probabilities(probs, len(images), self.num_classes, tolerance=0.05, remedies=_REMEDIES)
        return self._form.apply(probs, wrong)

    def _labels(self, array: np.ndarray, batch: int) -> Answers:
        if self._form.kind != "hard":
            raise TeacherError(
                f"the teacher function returned labels, but teacher.answers is {self._form.kind!r}; "
                "set teacher.answers to hard"
            )
        if len(array) != batch:
            raise TeacherError(
                f"the teacher function returned {counted(len(array), 'label')} for {counted(batch, 'image')}"
            )
        bad = check_labels(array, self.num_classes)
        return Answers(
            probs=None, labels=torch.from_numpy(array.astype(np.int64)), num_classes=self.num_classes, bad=bad
        )


def to_array(reply: object) -> np.ndarray:
    """What a teacher function returned, as an array.

    Raises:
        TeacherError: it cannot be one, as a ragged list cannot.
    """
    try:
        if isinstance(reply, torch.Tensor):
            reply = reply.detach().cpu()
            return np.asarray(reply.float() if reply.is_floating_point() else reply)
        return np.asarray(reply)
    except (ValueError, TypeError) as error:
        raise TeacherError(f"the teacher function returned something that is no array: {error}") from None


def _import(name: str, folder: str) -> Callable[[np.ndarray], Any]:
    """The function that `name`, module:function, names.

    Raises:
        TeacherError: it cannot be imported, or is not callable.
    """
    try:
        function = import_object(name, folder)
    except LookupError as error:
        raise TeacherError(
            f"teacher.function: {error.args[0]}. Is it importable from here? "
            "A function that was given to kdray.distil goes on from Python: kdray.distil(..., out=RUN)"
        ) from None
    if not callable(function):
        raise TeacherError(f"teacher.function: {name} is not callable")
    called: Callable[[np.ndarray], Any] = function
    return called
