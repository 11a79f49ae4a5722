"""What a purchase needs, on what terms it asks, and what comes of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from kdray.ledger.limits import Limits
from kdray.ledger.records import Grant, Order, Outcome
from kdray.ledger.store import LEASE_S
from kdray.teachers.answers import Answers
from kdray.teachers.retry import Patience, RetryPolicy


class LedgerLike(Protocol):
    """What a purchase needs of `kdray.ledger.store.Ledger`, here or behind an actor."""

    def lookup(self, teacher: str, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, np.ndarray | None]]: ...
    def refusals(self, teacher: str, hashes: Sequence[bytes]) -> dict[bytes, tuple[int, str]]: ...
    def on_their_way(self, teacher: str, hashes: Sequence[bytes]) -> set[bytes]: ...
    def grant(self, orders: Sequence[Order], **facts: object) -> Grant: ...
    def settle(self, outcomes: Sequence[Outcome]) -> None: ...
    def rest(self, teacher: str, seconds: float) -> None: ...
    def spent_in_round(self, round: int, purpose: str, owner: str) -> tuple[int, int]: ...
    def record_hits(self, teacher: str, images: int, *, purpose: str, round: int, owner: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what terms a teacher may be asked; one object for a whole run.

    Attributes:
        limits: shared by all who ask this teacher; None sets none, but a rest it asked for holds all the same.
        patience: what earlier replies said about it.
        lease_s: seconds after which a request is surely over.
        probe: ask for one image at a time until a teacher has answered, so that a wrong address costs a query or two.
    """

    limits: Limits | None = None
    patience: Patience = field(default_factory=lambda: Patience(RetryPolicy()))
    lease_s: float = LEASE_S
    probe: bool = False


@dataclass(frozen=True, kw_only=True)
class Bought:
    """Answers to those images that have one.

    Attributes:
        positions: int64 [M], ascending: which of the images were answered.
        answers: M answers, in that order.
        charged: queries `owner` was charged in this round, by whichever of its processes (lost ones included).
        reused: images that cost nothing: another round or run had bought them, or they appear twice.
        short: images without an answer, because the budget ran out.
        set_aside: position -> reason, of images the teacher gave no answer to that one could believe.
    """

    positions: Tensor
    answers: Answers
    charged: int
    reused: int
    short: int
    set_aside: Mapping[int, str]
