"""Buying answers: look up, reserve, ask, commit, in that order, for any teacher pool."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kdray.errors import BudgetExceeded, TeacherError
from kdray.ledger.store import Ledger, Reservation, hash_images, to_answers
from kdray.teachers.answers import Answers
from kdray.teachers.pool import TeacherPool

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
    teacher = pool.teacher
    hashes = hash_images(images)
    known = ledger.lookup(teacher.identity, hashes)
    batches = _open_batches(hashes, known, batch_size)
    charged, reused = 0, len(hashes) - sum(len(batch) for batch in batches)
    waiting: dict[int, Reservation] = {}
    tries: dict[int, int] = {}
    queue = list(range(len(batches)))
    broke = False

    def draw() -> Iterator[tuple[int, Tensor]]:
        nonlocal broke
        while queue and not broke:
            number = queue.pop(0)
            positions = batches[number]
            affordable = min(len(positions), ledger.remaining(purpose))
            broke = affordable < len(positions)
            if affordable == 0:
                return
            batches[number] = positions = positions[:affordable]
            try:
                waiting[number] = ledger.reserve(
                    affordable, teacher=teacher.identity, purpose=purpose, round=round, owner=owner, metered=teacher.metered
                )
            except BudgetExceeded:  # another run on the same ledger was faster
                broke = True
                return
            tries[number] = tries.get(number, 0) + 1
            yield number, images[torch.tensor(positions)]

    def settle_lost(number: int) -> None:
        nonlocal charged
        reservation = waiting.pop(number)
        if teacher.metered:
            ledger.mark_uncertain(reservation)
            charged += reservation.queries
        else:
            ledger.release(reservation)

    try:
        while queue and not broke:
            for reply in pool.ask(draw()):
                if reply.answers is None:
                    settle_lost(reply.key)
                    if reply.fatal or tries[reply.key] >= _MAX_TRIES:
                        raise TeacherError(reply.error or "the teacher did not answer")
                    queue.append(reply.key)
                    continue
                keys = [hashes[position] for position in batches[reply.key]]
                ledger.commit(waiting.pop(reply.key), keys, reply.answers)
                charged += len(keys)
                known.update(ledger.lookup(teacher.identity, keys))
                if on_progress is not None:
                    on_progress(len(known), len(set(hashes)))
    finally:
        for number in list(waiting):
            settle_lost(number)
    positions = [position for position, key in enumerate(hashes) if key in known]
    return Bought(
        positions=torch.tensor(positions, dtype=torch.int64),
        answers=to_answers([known[hashes[position]] for position in positions], teacher.num_classes),
        charged=charged,
        reused=reused,
        short=len(hashes) - len(positions),
    )


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
