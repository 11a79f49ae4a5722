"""The number of classes of a teacher function: from the ledger, or from one query that is charged and kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from kdray.errors import ImageDeclined, TeacherBusy, TeacherError
from kdray.ledger.store import Ledger, hash_images
from kdray.runs.directory import RunDirectory
from kdray.teachers.answers import AnswerFormat, Answers
from kdray.teachers.function import FunctionTeacher, to_array


def find_class_count(
    function: Callable[..., Any],
    name: str,
    answers: str,
    decimals: int | None,
    *,
    image: Tensor,
    directory: RunDirectory,
    ledger_path: Path,
    budget: int,
) -> int:
    """The number of classes, from the ledger or from one query for `image`.

    Args:
        name, answers, decimals: as in the teacher's section.
        image: uint8 [1, C, H, W], as the teacher sees it.
        directory: of the run that is charged.
        budget: the run's cap on training queries.

    Raises:
        TeacherError: the function fails, or returns labels, which do not show the number of classes.
    """
    form, key = AnswerFormat(answers, decimals), hash_images(image)
    identity = f"python:{name}:{form}"
    directory.lock()
    try:
        owner, ledger = directory.owner(), Ledger(ledger_path)
        try:
            known = ledger.lookup(identity, key)
            if not known:
                ledger.open_account(owner, {"training": budget})
                reservation = ledger.reserve(1, teacher=identity, owner=owner)
                try:
                    reply = _ask_once(function, identity, form, image)
                except (TeacherBusy, ImageDeclined):  # the teacher says that nothing is charged
                    ledger.release(reservation)
                    raise
                except BaseException:  # the query was made, even if it failed
                    ledger.mark_uncertain(reservation)
                    raise
                ledger.commit(reservation, key, reply.rows())
                known = ledger.lookup(identity, key)
        finally:
            ledger.close()
    finally:
        directory.unlock()
    probs = known[key[0]][1]
    if probs is None:
        raise TeacherError("the ledger has only a label for the first image; give classes=, the number of classes")
    return len(probs)


def _ask_once(function: Callable[..., Any], identity: str, form: AnswerFormat, image: Tensor) -> Answers:
    try:
        reply = function(image.numpy())
    except (TeacherBusy, ImageDeclined):
        raise
    except Exception as error:  # a user's function may raise anything
        raise TeacherError(f"the teacher function failed: {type(error).__name__}: {error}") from error
    reply = to_array(reply)
    if reply.ndim != 2 or reply.dtype.kind != "f":
        raise TeacherError(
            f"the teacher function returned {reply.dtype} of shape {list(reply.shape)} for one image, "
            "which does not show the number of classes; give classes=, and "
            'teacher_options={"answers": "hard"} if it returns labels'
        )
    return (
        FunctionTeacher(lambda _: reply, identity=identity, num_classes=reply.shape[1], form=form)
        .answer(image)
        .believed()
    )
