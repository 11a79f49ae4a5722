"""From a teacher's reply to what the ledger is told of it: what is charged, and what is kept."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from kdray.ledger.records import AnswerRows, Outcome, Reservation
from kdray.teachers.answers import Answers, check_labels
from kdray.teachers.faults import Fault
from kdray.teachers.pool import TeacherReply
from kdray.utils.text import counted


def outcome_of(
    reply: TeacherReply,
    reservation: Reservation,
    hashes: Sequence[bytes],
    *,
    classes: int,
    metered: bool,
) -> Outcome:
    """How a request ended. That an image was declined is not told here: the next answers show whether it is the image.

    Args:
        reply: answers, or why there are none.
        reservation: of the request.
        hashes: of its images, in the order they were sent.
        classes: K, as the teacher says.
        metered: the teacher may bill; one that does not has charged nothing.
    """
    answers, fault = reply.answers, reply.fault or _misfit(reply.answers, len(hashes), classes)
    if fault is None:
        assert answers is not None  # or it would be a misfit
        return _answered(reservation, hashes, answers.rows(), _invalid_rows(answers))
    if fault.kind in ("malformed", "doubtful"):
        nothing = AnswerRows(labels=np.zeros(len(hashes), dtype=np.int64))
        return _answered(reservation, hashes, nothing, dict.fromkeys(range(len(hashes)), fault.message))
    state: Literal["released", "uncertain"] = "uncertain" if fault.charged and metered else "released"
    return Outcome(reservation=reservation, state=state, reason=fault.message)


def _answered(reservation: Reservation, hashes: Sequence[bytes], rows: AnswerRows, bad: dict[int, str]) -> Outcome:
    return Outcome(reservation=reservation, state="answered", hashes=hashes, answers=rows, bad=bad)


def _misfit(answers: Answers | None, images: int, classes: int) -> Fault | None:
    """Why a teacher's answers are none to so many images, or None."""
    count = 0 if answers is None else len(answers)
    if answers is None or count != images:
        return Fault(
            kind="malformed", message=f"the teacher gave {counted(count, 'answer')} to {counted(images, 'image')}"
        )
    if answers.num_classes != classes:
        message = f"the teacher gave answers of {answers.num_classes} classes, and says that it has {classes}"
        return Fault(kind="malformed", message=message)
    return None


def _invalid_rows(answers: Answers) -> dict[int, str]:
    """The rows a teacher calls invalid, and those that no student could learn from, with the reason."""
    bad = check_labels(answers.labels.numpy(), answers.num_classes)
    if answers.probs is not None:
        broken = torch.nonzero(~torch.isfinite(answers.probs).all(dim=1)).flatten().tolist()
        bad |= dict.fromkeys(broken, "the teacher's probabilities hold NaN or infinity")
    return bad | dict(answers.bad)
