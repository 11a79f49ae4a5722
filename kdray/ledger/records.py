"""What goes into the ledger and comes out of it: numpy, not torch, which takes a ledger actor seconds to import."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

NEVER_SENT = "never sent"
"""The reason of a reservation that was released before anything was asked: no request."""


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Queries taken from the budget and not yet settled."""

    id: str
    queries: int
    teacher: str
    purpose: str


@dataclass(frozen=True, kw_only=True)
class Order:
    """A request to be: the images of one batch.

    Attributes:
        hashes: of its images, each once.
        attempt: 1 for the first time they are asked for, 2 for the second.
    """

    hashes: Sequence[bytes]
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """What became of one order.

    Attributes:
        reservation: for the images that may be sent now, or None where there are none.
        send: those images.
        known: images that have an answer by now.
        busy: images another run has asked for and not yet been answered.
        left: images that would pass a cap.
    """

    reservation: Reservation | None
    send: list[bytes]
    known: list[bytes]
    busy: list[bytes]
    left: list[bytes]


@dataclass(frozen=True, kw_only=True)
class Grant:
    """What may go now.

    Attributes:
        parts: one for each order dealt with: the first ones of those given.
        blocked: why no more may go: budget, day, rate, in flight, resting, busy; None where all were dealt with.
        wait_s: seconds until asking again may help.
    """

    parts: list[Part]
    blocked: Literal["budget", "day", "rate", "in flight", "resting", "busy"] | None = None
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
        reservation: which.
        state: answered, released or uncertain.
        hashes: where answered: of its images.
        answers: where answered: to them, in that order.
        bad: where answered: rows that cannot be believed, with the reason. They are charged, and kept as rejected.
        reason: why it was released or is uncertain.
    """

    reservation: Reservation
    state: Literal["answered", "released", "uncertain"]
    hashes: Sequence[bytes] = ()
    answers: AnswerRows | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    reason: str | None = None


def hash_images(images: "Tensor") -> list[bytes]:
    """The ledger's key of each image: BLAKE2b (16 bytes) of its shape and its uint8 pixels [N, C, H, W]."""
    shape = np.asarray(images.shape[1:], dtype=np.int64).tobytes()
    flat = images.contiguous().flatten(1).numpy()
    return [hashlib.blake2b(shape + row.tobytes(), digest_size=16).digest() for row in flat]
