"""Buying answers: look up, reserve, ask, commit, in that order, for any teacher pool."""

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdray.errors import BudgetExceeded, TeacherError
from kdray.ledger.store import Ledger, Reservation, hash_images, to_answers
from kdray.teachers.answers import Answers
from kdray.teachers.pool import Reply, TeacherPool

_MAX_TRIES = 5  # of one batch whose worker died; a reply that says no is never tried again


@dataclass(frozen=True, kw_only=True)
class Bought:
    """Answers to those images that have one.

    Attributes:
        positions: int64 [M], ascending: which of the images were answered.
        answers: M answers, in that order.
        charged: queries paid for now (lost ones included).
        reused: images that cost nothing now: the ledger had their answer, or they appear twice.
        short: images without an answer, because the budget ran out.
    """

    positions: Tensor
    answers: Answers
    charged: int
    reused: int
    short: int


def buy(
    images: Tensor,
    *,
    pool: TeacherPool,
    ledger: Ledger,
    batch_size: int,
    purpose: str = "training",
    round: int = 0,
    owner: str = "",
    on_progress: Callable[[int, int], None] | None = None,
) -> Bought:
    """Answers to `images`, from the ledger where it has them, else from the teacher, each image at most once.

    Batches are cut by position, so after a crash the same batches are asked again, less those that are answered.
    An answer is on disk before this returns it. When the budget runs out, images are bought in order as far as it goes.

    Args:
        images: uint8 [N, C, H, W].
        owner: names the run in the ledger.
        on_progress: called with (images answered or known, N).

    Raises:
        TeacherError: the teacher refused, failed or answered nonsense. What was answered before is in the ledger.
    """
    return _Purchase(images, pool, ledger, batch_size, purpose, round, owner).complete(on_progress)


class _Purchase:
    """One call of `buy`: the batches still to ask, the reservations on their way, the answers known."""

    def __init__(
        self, images: Tensor, pool: TeacherPool, ledger: Ledger, batch_size: int, purpose: str, round: int, owner: str
    ) -> None:
        self._images, self._pool, self._ledger = images, pool, ledger
        self._purpose, self._round, self._owner = purpose, round, owner
        self._teacher = pool.teacher
        self._hashes = hash_images(images)
        self._known = ledger.lookup(self._teacher.identity, self._hashes)
        self._batches = _open_batches(self._hashes, self._known, batch_size)
        self._queue = deque(range(len(self._batches)))
        self._waiting: dict[int, Reservation] = {}
        self._tries: Counter[int] = Counter()
        self._asked: set[bytes] = set()
        self._charged = 0
        self._broke = False
        self._cut: list[int] = []
        """What the budget did not reach: asked last, should queries come back."""

    def complete(self, on_progress: Callable[[int, int], None] | None) -> Bought:
        distinct = len(set(self._hashes))
        try:
            # A batch whose worker died is queued again, maybe after the pool has drawn the last one, and the queries of
            # an unmetered one come back: so as long as there is a batch and a query, there is another pass.
            while (self._queue or self._cut) and self._ledger.remaining(self._purpose) > 0:
                self._queue.extend(self._cut)
                self._cut, self._broke = [], False
                for reply in self._pool.ask(self._draw()):
                    self._take(reply)
                    if on_progress is not None:
                        on_progress(len(self._known), distinct)
        finally:
            for number in list(self._waiting):
                self._settle_lost(number)
        positions = [position for position, key in enumerate(self._hashes) if key in self._known]
        rows = [self._known[self._hashes[position]] for position in positions]
        return Bought(
            positions=torch.tensor(positions, dtype=torch.int64),
            answers=to_answers(rows, self._teacher.num_classes),
            charged=self._charged,
            reused=len(positions) - len(self._asked),
            short=len(self._hashes) - len(positions),
        )

    def _draw(self) -> Iterator[tuple[int, Tensor]]:
        """Batches to send, each reserved at the moment it is drawn; cut short where the budget ends."""
        while self._queue and not self._broke:
            number = self._queue.popleft()
            positions = self._batches[number]
            affordable = min(len(positions), self._ledger.remaining(self._purpose))
            if affordable < len(positions):
                self._broke = True
                self._rest_of(number, affordable)
            if affordable == 0:
                return
            positions = self._batches[number]
            try:
                self._waiting[number] = self._ledger.reserve(
                    affordable,
                    teacher=self._teacher.identity,
                    purpose=self._purpose,
                    round=self._round,
                    owner=self._owner,
                    metered=self._teacher.metered,
                )
            except BudgetExceeded:  # another run on the same ledger was faster
                self._broke = True
                self._cut.insert(0, number)
                return
            self._tries[number] += 1
            yield number, self._images[torch.tensor(positions)]

    def _rest_of(self, number: int, affordable: int) -> None:
        """Cut a batch to what is affordable; keep the rest, and all that was to follow, should queries come back."""
        if affordable == 0:
            self._cut.append(number)
        else:
            positions = self._batches[number]
            self._batches[number] = positions[:affordable]
            self._batches.append(positions[affordable:])
            self._cut.append(len(self._batches) - 1)
        self._cut.extend(self._queue)
        self._queue.clear()

    def _take(self, reply: Reply) -> None:
        """Commit a reply's answers; give up, or queue its batch again, where there are none."""
        if reply.answers is None:
            self._settle_lost(reply.key)
            if reply.fatal or self._tries[reply.key] >= _MAX_TRIES:
                raise TeacherError(reply.error or "the teacher did not answer")
            self._queue.append(reply.key)
            return
        keys = [self._hashes[position] for position in self._batches[reply.key]]
        if len(reply.answers) != len(keys):
            raise TeacherError(f"the teacher gave {len(reply.answers)} answers to {len(keys)} images")
        self._ledger.commit(self._waiting[reply.key], keys, reply.answers)
        del self._waiting[reply.key]
        self._charged += len(keys)
        self._asked.update(keys)
        self._known.update(self._ledger.lookup(self._teacher.identity, keys))

    def _settle_lost(self, number: int) -> None:
        """Nobody will answer this batch: charged where somebody may bill for it, else given back."""
        reservation = self._waiting.pop(number)
        if self._teacher.metered:
            self._ledger.mark_uncertain(reservation)
            self._charged += reservation.queries
        else:
            self._ledger.release(reservation)


def _open_batches(hashes: list[bytes], known: dict, batch_size: int) -> list[list[int]]:
    """Positions to ask for, cut at fixed multiples of `batch_size`; each distinct image once, known ones never."""
    first = {}
    for position, key in enumerate(hashes):
        first.setdefault(key, position)
    batches: dict[int, list[int]] = {}
    for key, position in first.items():
        if key not in known:
            batches.setdefault(position // batch_size, []).append(position)
    return [batches[number] for number in sorted(batches)]
