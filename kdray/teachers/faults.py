"""Why a request to a teacher brought no answer, what it may cost, and whether asking again can help."""

from dataclasses import dataclass
from typing import Literal

FaultKind = Literal["refused", "throttled", "unsent", "lost", "malformed", "doubtful", "declined", "failed"]


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
            failed: the request was sent and failed for good; may be charged, asking again is useless.
        message: what happened, in words for the user.
        wait_s: seconds the teacher asks to be left alone, or None where it does not say.
    """

    kind: FaultKind
    message: str
    wait_s: float | None = None

    @property
    def charged(self) -> bool:
        """Whether the request may be billed."""
        return self.kind in ("lost", "malformed", "doubtful", "failed")

    @property
    def final(self) -> bool:
        """Whether asking again is useless."""
        return self.kind in ("refused", "failed")
