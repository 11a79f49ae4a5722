"""What a purchase needs, the policy it follows, and its result."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from kdray.errors import OneClassError
from kdray.ledger.limits import Limits
from kdray.ledger.records import Failures, Grant, Order, Outcome
from kdray.ledger.store import LEASE_S
from kdray.select.balance import FIRST_ALIKE, alike
from kdray.teachers.answers import Answers
from kdray.teachers.base import TeacherSection
from kdray.teachers.input import TeacherInput
from kdray.teachers.retry import RetryPolicy, RetryState

if TYPE_CHECKING:
    from torch import Tensor


_TRIES = 1000  # more than a request has in a round
_FIRST = 50  # images after which a teacher that names one class is told of


class LedgerLike(Protocol):
    """The part of `kdray.ledger.store.Ledger` that a purchase uses; the ledger may be here or behind an actor."""

    def lookup(self, teacher: str, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, np.ndarray | None]]: ...
    def answers_of(self, teacher: str) -> bool: ...
    def failures(self, teacher: str, hashes: Sequence[bytes]) -> dict[bytes, Failures]: ...
    def on_their_way(self, teacher: str, hashes: Sequence[bytes]) -> set[bytes]: ...
    def grant(self, orders: Sequence[Order], **facts: Any) -> Grant: ...
    def settle(self, outcomes: Sequence[Outcome]) -> None: ...
    def rest(self, teacher: str, seconds: float) -> None: ...
    def spent_in_round(self, round: int, purpose: str, owner: str) -> tuple[int, int]: ...
    def record_hits(self, teacher: str, images: int, *, purpose: str, round: int, owner: str) -> None: ...


class FirstAnswers:
    """The first distinct images that a run has answers to: do they name more than one class?

    Args:
        names: of the classes.
    """

    def __init__(self, names: Sequence[str] | None = None) -> None:
        self._names = names
        self._answers: dict[bytes, tuple[int, np.ndarray | None]] = {}
        self._told = self._done = False

    def look(self, known: Mapping[bytes, tuple[int, np.ndarray | None]], *, stop: bool = False) -> str | None:
        """Take in the known answers, hash -> (label, probs); what the user should know, once.

        Args:
            stop: the images come in no order, and more are to be asked about.

        Raises:
            OneClassError: `stop`, and the first answers, as many as tell, are all the same.
        """
        if self._done:
            return None
        for key in itertools.islice(known, FIRST_ALIKE):
            if len(self._answers) < FIRST_ALIKE:
                self._answers.setdefault(key, known[key])
        answers = list(self._answers.values())
        self._done = len(answers) == FIRST_ALIKE or len({label for label, _ in answers}) > 1
        if len({label for label, _ in answers}) != 1:
            return None
        label, probs = answers[0]
        same = (one is None if probs is None else one is not None and np.array_equal(one, probs) for _, one in answers)
        if stop and self._done and all(same):
            raise OneClassError(alike(len(answers), label, self._names))
        if self._told or len(answers) < _FIRST:
            return None
        self._told = True
        name = self._names[label] if self._names else f"number {label}"
        return (
            f"all answers to the first {_FIRST} images name one class ({name}): "
            "does the teacher get its images as it expects them, and are teacher.classes and its outputs right?"
        )


@dataclass(frozen=True, kw_only=True)
class PurchasePolicy:
    """How a teacher may be asked; one object for a whole run.

    Attributes:
        limits: shared by all who ask this teacher; None sets none, but a rest the teacher asked for holds all the same.
        retry: what earlier replies said about the teacher.
        lease_s: seconds after which a request is over for certain.
        input: what the teacher sees of an image.
        probe: ask for one image at a time until the teacher has answered this process, so that a wrong address or a bug
            costs a query or two.
        first: the first answers of the run.
        at_random: the images come in no order, so that the first answers stand for all, and a run whose first ones are
            all the same stops.
        again: how many images, the last of a purchase, have an answer and are paid for again in this round.
    """

    limits: Limits | None = None
    retry: RetryState = field(default_factory=lambda: RetryState(RetryPolicy()))
    lease_s: float = LEASE_S
    input: TeacherInput = field(default_factory=TeacherInput)
    probe: bool = False
    first: FirstAnswers = field(default_factory=FirstAnswers)
    at_random: bool = False
    again: int = 0

    def look(self, known: Mapping[bytes, tuple[int, np.ndarray | None]], *, more: bool) -> str | None:
        """See `FirstAnswers.look`; `more` says whether there is more to ask."""
        return self.first.look(known, stop=self.at_random and more)

    def keys(self, images: "Tensor", round: int) -> list[bytes]:
        """The ledger's key of each image, uint8 [N, C, H, W]. An image that is asked about again has one of its own in
        each round: so the ledger counts it, and pays for it once a round however often that is resumed."""
        keys = self.input.hashes(images)
        first = len(keys) - self.again
        return keys[:first] + [
            hashlib.blake2b(key + b" again in round %d" % round, digest_size=len(key)).digest() for key in keys[first:]
        ]

    def replies(self, positions: Sequence[int], total: int, round: int) -> int:
        """How many replies may have come in earlier rounds to a request with the images at `positions` of `total`: 0,
        or a number that no request reaches by its tries. So a server that repeats its replies to a request
        (Idempotency-Key) takes what is asked again for a new one."""
        return _TRIES * round if any(position >= total - self.again for position in positions) else 0

    @classmethod
    def of(cls, section: TeacherSection, *, metered: bool, names: Sequence[str] | None = None) -> "PurchasePolicy":
        """The policy for the teacher of a section; `metered` as the teacher itself says, `names` of its classes."""
        # A teacher that costs nothing, with the default limits, needs no counting.
        unlimited = not metered and section.limits == Limits()
        return cls(
            limits=None if unlimited else section.limits,
            retry=RetryState(section.retry),
            lease_s=section.lease_s(),
            input=section.input,
            probe=metered and section.probes(),
            first=FirstAnswers(names),
        )


@dataclass(frozen=True, kw_only=True)
class Bought:
    """Answers to those images that have one.

    Attributes:
        positions: int64 [M], ascending: which of the images were answered.
        answers: M answers, in that order.
        charged: queries `owner` was charged in this round, by whichever of its processes (lost ones included).
        reused: images that cost nothing: another round or run had bought them, or they appear twice.
        short: images without an answer, because the budget ran out.
        set_aside: position -> reason, of images to which the teacher gave no valid answer.
    """

    positions: "Tensor"
    answers: Answers
    charged: int
    reused: int
    short: int
    set_aside: Mapping[int, str]
