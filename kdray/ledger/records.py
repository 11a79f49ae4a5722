"""The records that the ledger takes and gives: numpy, not torch, which takes a ledger actor seconds to import."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

NEVER_SENT = "never sent"
"""The reason of a reservation that was released before anything was sent: it is not counted as a request."""
AFTER = -1
"""In the place of the round: what a run was asked to measure once more, by `kdray evaluate --ask`."""
STOPPED = "kdray was stopped before the answer came"
"""The reason of a request that the user's stop left without an answer: it says nothing about its images."""
DIED = "kdray died"
"""The reason of a request that a dead process left open: its images may have been the cause, or not."""


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Queries taken from the budget and not yet settled."""

    id: str
    queries: int
    teacher: str
    purpose: str


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request that has not been granted yet: the images of one batch.

    Attributes:
        hashes: of its images, each once.
        attempt: 1 for the first time they are asked for, 2 for the second.
    """

    hashes: Sequence[bytes]
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class GrantPart:
    """What was granted of one order.

    Attributes:
        reservation: for the images that may be sent now, or None where there are none.
        send: those images.
        known: images that have an answer by now.
        busy: images that another run has asked for, and whose answers have not come.
        left: images that a cap does not allow.
    """

    reservation: Reservation | None
    send: list[bytes]
    known: list[bytes]
    busy: list[bytes]
    left: list[bytes]


Blocked = Literal["budget", "day", "rate", "in flight", "resting", "busy"]
"""What keeps requests from going: a cap, the daily quota, the rate, requests on their way, a rest, or other runs that
have asked for the same images."""


@dataclass(frozen=True, kw_only=True)
class Grant:
    """The requests that may go now.

    Attributes:
        parts: one for each of the first orders, as many as could be granted or need no request.
        blocked: why the other orders may not go; None where there are none.
        wait_s: seconds after which asking again may help.
    """

    parts: list[GrantPart]
    blocked: Blocked | None = None
    wait_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AnswerRows:
    """Answers to B images, as the ledger keeps them.

    Attributes:
        labels: int64 [B].
        probs: float32 [B, K], or None for labels alone.
    """

    labels: np.ndarray
    probs: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a reservation ended.

    Attributes:
        reservation: the reservation.
        state: answered, released or uncertain.
        hashes: where answered or declined, the hashes of its images.
        answers: where answered, the answers, in that order.
        bad: where answered, the invalid rows, with the reason. They are charged, and stored as rejected.
        reason: why it was released or is uncertain.
        declined: it was released because the teacher does not take these images; they are remembered.
    """

    reservation: Reservation
    state: Literal["answered", "released", "uncertain"]
    hashes: Sequence[bytes] = ()
    answers: AnswerRows | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    reason: str | None = None
    declined: bool = False

    def valid(self) -> list[bytes]:
        """Hashes of the images with a valid answer."""
        if self.state != "answered":
            return []
        return [key for row, key in enumerate(self.hashes) if row not in self.bad]


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What came of an image that was asked about and has no valid answer, over all who asked this teacher.

    Attributes:
        times: how often it was paid for: its answer was invalid, or never came.
        own: how often of these the cause was the image itself: it was alone in its request, or others were answered.
        reason: the last reason.
        declined: the teacher does not take it, which costs nothing.
        sent: it was sent, and kdray may have been stopped before the answer came, which is not the image's fault.
    """

    times: int
    own: int
    reason: str
    declined: bool = False
    sent: bool = False


def hash_images(images: "Tensor") -> list[bytes]:
    """The ledger's key of each image: BLAKE2b (16 bytes) of its shape and its uint8 pixels [N, C, H, W]."""
    shape = np.asarray(images.shape[1:], dtype=np.int64).tobytes()
    flat = images.contiguous().flatten(1).numpy()
    return [hashlib.blake2b(shape + row.tobytes(), digest_size=16).digest() for row in flat]
