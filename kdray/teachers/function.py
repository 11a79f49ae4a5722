"""A Python function as a teacher: a client of some API, an old binary behind subprocess, another framework."""

import importlib
import os
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from kdray.errors import TeacherError
from kdray.teachers.answers import AnswerFormat, Answers, check_labels, check_probabilities


class FunctionTeacher:
    """Asks a function of uint8 [B, C, H, W] (numpy) that returns probabilities [B, K] or integer labels [B].

    Args:
        function: the function.
        identity: names the model behind it and the form of the answers.
        num_classes: K.
        form: what is kept of its probabilities. Labels can only be kept as "hard".
        metered: somebody may bill for calls.
    """

    def __init__(
        self, function: Callable, *, identity: str, num_classes: int, form: AnswerFormat, metered: bool = True
    ) -> None:
        self.identity = identity
        self.num_classes = num_classes
        self.metered = metered
        self._function, self._form = function, form

    def answer(self, images: Tensor) -> Answers:
        """Answers to uint8 images [B, C, H, W].

        Raises:
            TeacherError: the function raised, or returned something that is no answer at all.
        """
        try:
            reply = self._function(images.numpy())
        except Exception as error:  # whatever a user's function raises
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
        return self._form.apply(probs, check_probabilities(probs, len(images), self.num_classes, tolerance=0.05))

    def _labels(self, array: np.ndarray, batch: int) -> Answers:
        if self._form.kind != "hard":
            raise TeacherError(
                f"the teacher function returned labels, but teacher.answers is {self._form.kind!r}; "
                "set teacher.answers to hard"
            )
        if len(array) != batch:
            raise TeacherError(f"the teacher function returned {len(array)} labels for {batch} images")
        bad = check_labels(array, self.num_classes)
        return Answers(
            probs=None, labels=torch.from_numpy(array.astype(np.int64)), num_classes=self.num_classes, bad=bad
        )


def to_array(reply: object) -> np.ndarray:
    """What a teacher function returned, as an array.

    Raises:
        TeacherError: it is none, a ragged list for example.
    """
    try:
        if isinstance(reply, Tensor):
            reply = reply.detach().cpu()
            return (reply.float() if reply.is_floating_point() else reply).numpy()
        return np.asarray(reply)
    except (ValueError, TypeError) as error:
        raise TeacherError(f"the teacher function returned something that is no array: {error}") from None


def build_function_teacher(config, function: Callable | None = None, folder: str = "") -> FunctionTeacher:
    """The teacher of a `kdray.config.PythonTeacher` section.

    Args:
        function: stands in for the import where given.
        folder: where the user's module may lie, besides the Python path: the folder kdray was started from.

    Raises:
        TeacherError: the function cannot be imported.
    """
    count = len(config.classes) if isinstance(config.classes, list) else config.classes
    form = AnswerFormat(config.answers, config.decimals)
    if form.top is not None and form.top > count:
        raise TeacherError(
            f"teacher.answers: {config.answers} of a teacher with {count} classes; use top{count} at most, or soft"
        )
    return FunctionTeacher(
        function or _import(config.function, folder or os.getcwd()),
        identity=f"python:{config.name or config.function}:{form}",
        num_classes=count,
        form=form,
        metered=config.metered,
    )


def _import(text: str, folder: str) -> Callable:
    module, _, name = text.partition(":")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:  # a module may raise anything while it is imported
        raise TeacherError(
            f"teacher.function: cannot import {text} ({type(error).__name__}: {error}). Is it importable from here? "
            "A function that was given to kdray.distil goes on from Python: kdray.distil(..., out=RUN)"
        ) from None
    if not callable(function):
        raise TeacherError(f"teacher.function: {text} is not callable")
    return function
