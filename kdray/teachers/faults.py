"""Why a request to a teacher brought no answer, what it may cost, and whether asking again can help."""

from dataclasses import dataclass
from typing import Literal

from kdray.errors import ImageDeclined, TeacherBusy, TeacherError

FaultKind = Literal[
    "refused", "throttled", "unsent", "lost", "malformed", "doubtful", "declined", "oversized", "failed"
]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Why a batch has no answer.

    Attributes:
        kind: what the fault means for the budget and for another try:
            refused: the teacher rejected the request (wrong key, no such model); not charged, asking again is useless.
            throttled: too many requests, or the teacher is out of order for now; not charged, ask again later.
            unsent: the request did not reach the teacher; not charged, ask again later.
            lost: the request was sent, and no answer came; may be charged, ask again.
            malformed: the reply holds no answers; charged, ask again.
            doubtful: answers came, and all of them are invalid; charged, ask again.
            declined: the teacher rejected these images, and answers others; not charged, ask again in smaller parts.
            oversized: the request holds too many images, or too large a one; not charged, ask again in smaller parts.
            failed: the request was sent and failed for good; may be charged, asking again is useless.
        message: what happened, in words for the user.
        wait_s: seconds the teacher asks to be left alone, or None where it does not say.
        replied: the server gave a reply, which holds no answers: another try must not be taken for the same request.
    """

    kind: FaultKind
    message: str
    wait_s: float | None = None
    replied: bool = False

    @property
    def charged(self) -> bool:
        """Whether the request may be billed."""
        return self.kind in ("lost", "malformed", "doubtful", "failed")

    @property
    def final(self) -> bool:
        """Whether asking again is useless."""
        return self.kind in ("refused", "failed")


def _seconds(given: object) -> float | None:
    """What a user's own teacher gave as seconds to wait; a server's header is text, and may be a date."""
    try:
        seconds = float(given)  # type: ignore[arg-type]  # whatever it is
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < float("inf") else None


def fault_of(error: BaseException, *, sent: bool = True) -> Fault:
    """What an exception of a teacher means: `TeacherBusy` and `ImageDeclined` say that nothing is charged; after any
    other asking again is useless.

    Args:
        sent: the request may have been sent, and billed.
    """
    other: FaultKind = "failed" if sent else "refused"
    if isinstance(error, TeacherBusy):
        return Fault(kind="throttled", message=str(error), wait_s=_seconds(error.wait_s))
    if isinstance(error, ImageDeclined):
        return Fault(kind="declined", message=str(error) or "the teacher does not take the image")
    if isinstance(error, TeacherError):
        return Fault(kind=other, message=str(error))
    return Fault(kind=other, message=f"the teacher failed: {type(error).__name__}: {error}")
