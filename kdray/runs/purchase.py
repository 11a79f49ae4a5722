"""Buying answers: look up, reserve, send, settle, in that order, for any teacher pool.

One loop decides what is paid, repeated and given up; pools only send. Each turn takes permits for as many batches as
may go now (one transaction), sends them, and settles all replies that have come (one transaction): answers are on disk
before anything uses them.
"""

import contextlib
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdray.errors import LedgerError, TeacherError
from kdray.ledger.records import NEVER_SENT, AnswerRows, Blocked, Order, Outcome, Reservation, hash_images
from kdray.runs.policy import Bought, LedgerLike, PurchasePolicy
from kdray.teachers.answers import to_answers
from kdray.teachers.faults import Fault, FaultKind
from kdray.teachers.pool import TeacherPool, TeacherReply

_GRACE_S = 10.0  # for replies on their way when the user stops the run
_LOOK_S = 0.2  # between two looks at what others have bought
_NAP_S = 1.0  # the longest sleep between two looks at the limits: another run may have changed them
_LONG_REST_S = 5.0  # worth telling
_NUMBERS = itertools.count()  # of requests: a late reply must not be taken for one to another purchase


def buy(
    images: Tensor,
    *,
    teachers: TeacherPool,
    ledger: LedgerLike,
    batch_size: int,
    purpose: str = "training",
    round: int = 0,
    owner: str = "",
    policy: PurchasePolicy | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Bought:
    """Answers to `images`, from the ledger where it has them, else from the teacher, each image paid for once.

    Batches are cut by position, so after a crash the same batches are asked again, less those that are answered.
    When the budget runs out, images are bought in order as far as it goes. An image whose answers cannot be believed
    is asked again, and set aside after so many tries.

    Args:
        images: uint8 [N, C, H, W].
        owner: names the run in the ledger.
        on_progress: called with (images answered or known, N).
        on_note: told what the user should know.

    Raises:
        TeacherError: the teacher refused, is down, answers nonsense, or its daily quota is used up. What was answered
            is in the ledger, and asking again goes on from there.
    """
    purchase = _Purchase(
        images, teachers, ledger, batch_size, (purpose, round, owner), policy or PurchasePolicy(), on_note
    )
    return purchase.complete(on_progress)


@dataclass(kw_only=True)
class _Batch:
    positions: list[int]
    attempt: int = 1


@dataclass(kw_only=True)
class _Request:
    """A batch with its reservation, until it is settled."""

    batch: _Batch
    reservation: Reservation
    sent_at: float | None = None
    outcome: Outcome | None = None


class _Purchase:
    """One call of `buy`: the batches still to ask, the requests on their way, the answers known."""

    def __init__(
        self,
        images: Tensor,
        teachers: TeacherPool,
        ledger: LedgerLike,
        batch_size: int,
        book: tuple[str, int, str],
        policy: PurchasePolicy,
        on_note: Callable[[str], None] | None,
    ) -> None:
        self._images, self._teachers, self._ledger, self._policy = images, teachers, ledger, policy
        self._purpose, self._round, self._owner = book
        self._note = on_note or (lambda text: None)
        self._teacher, self._retry = teachers.teacher, policy.retry
        self._hashes = hash_images(images)
        self._distinct = len(set(self._hashes))
        self._known = ledger.lookup(self._teacher.identity, self._hashes)
        self._tries: Counter[bytes] = Counter()
        self._set_aside: dict[bytes, str] = {}
        self._remember_refusals()
        done = self._known.keys() | self._set_aside.keys()
        self._probe = policy.probe and not self._known
        self._queue = deque(_Batch(positions=p) for p in _open_batches(self._hashes, done, batch_size))
        self._waiting: dict[int, _Request] = {}
        self._told = False

    def complete(self, on_progress: Callable[[int, int], None] | None) -> Bought:
        try:
            self._check_share()
            while self._queue or self._waiting:
                blocked, wait = self._send()
                if self._waiting:
                    self._receive(wait)
                elif blocked in ("budget", "day") and self._others_answer():
                    time.sleep(_LOOK_S)
                elif blocked == "budget":
                    break
                elif blocked == "day":
                    raise TeacherError(
                        "the teacher's daily quota (teacher.limits.queries_per_day) is used up; "
                        f"go on in {(wait or 0.0) / 3600:.1f} hours, after midnight UTC"
                    )
                elif self._queue:
                    self._tell_of(blocked)
                    time.sleep(min(wait or 0.0, _NAP_S))
                if on_progress is not None:
                    on_progress(len(self._known), self._distinct)
        except BaseException as error:
            self._wind_up(self._policy.lease_s if isinstance(error, TeacherError) else _GRACE_S)
            raise
        return self._bought()

    def _tell_of(self, blocked: str | None) -> None:
        if blocked == "busy":
            self._tell_of_others(sum(len(batch.positions) for batch in self._queue))

    def _tell_of_others(self, images: int) -> None:
        if not self._told:
            self._told = True
            self._note(f"another run on this ledger has {images:,} of the images on their way: waiting for its answers")

    def _others_answer(self) -> bool:
        """Where no more may be bought: take off the queue what others have bought; whether to look again."""
        keys = [self._hashes[p] for batch in self._queue for p in batch.positions]
        # In this order: an answer that comes in between is seen.
        busy = self._ledger.on_their_way(self._teacher.identity, keys)
        self._look_up(keys)
        left = [
            _Batch(positions=positions, attempt=batch.attempt)
            for batch in self._queue
            if (positions := [p for p in batch.positions if self._hashes[p] not in self._known])
        ]
        self._queue = deque(left)
        busy -= self._known.keys()
        if busy:
            self._tell_of_others(len(busy))
        return bool(busy) or not left

    def _bought(self) -> Bought:
        positions = [position for position, key in enumerate(self._hashes) if key in self._known]
        set_aside = {p: self._set_aside[key] for p, key in enumerate(self._hashes) if key in self._set_aside}
        answered, lost = self._ledger.spent_in_round(self._round, self._purpose, self._owner)
        reused = max(0, len(positions) - answered)
        self._ledger.record_hits(
            self._teacher.identity, reused, purpose=self._purpose, round=self._round, owner=self._owner
        )
        return Bought(
            positions=torch.tensor(positions, dtype=torch.int64),
            answers=to_answers([self._known[self._hashes[p]] for p in positions], self._teacher.num_classes),
            charged=answered + lost,
            reused=reused,
            short=len(self._hashes) - len(positions) - len(set_aside),
            set_aside=set_aside,
        )

    # Sending

    def _send(self) -> tuple[Blocked | None, float | None]:
        """Send what may go now; what blocks the rest, and the seconds until it may be otherwise."""
        free = self._retry.slots(self._teachers.slots) - len(self._waiting)
        if free <= 0 or not self._queue:
            return None, None
        if self._probe and not self._retry.proven and len(self._queue[0].positions) > 1:
            head = self._queue.popleft()
            for positions in (head.positions[1:], head.positions[:1]):
                self._queue.appendleft(_Batch(positions=positions, attempt=head.attempt))
        batches = list(itertools.islice(self._queue, free))
        grant = self._ledger.grant(
            [Order(hashes=[self._hashes[p] for p in batch.positions], attempt=batch.attempt) for batch in batches],
            teacher=self._teacher.identity,
            purpose=self._purpose,
            round=self._round,
            owner=self._owner,
            metered=self._teacher.metered,
            limits=self._policy.limits,
            lease_s=self._policy.lease_s,
        )
        fresh: list[int] = []
        later: list[_Batch] = []
        for batch, part in zip(batches, grant.parts, strict=False):  # the parts are those of the first few
            self._queue.popleft()
            position = {self._hashes[p]: p for p in batch.positions}
            if part.reservation is not None:
                number = next(_NUMBERS)
                sent = _Batch(positions=[position[key] for key in part.send], attempt=batch.attempt)
                self._waiting[number] = _Request(batch=sent, reservation=part.reservation)
                fresh.append(number)
            if part.known:
                self._look_up(part.known)
            if part.busy:
                later.append(_Batch(positions=[position[key] for key in part.busy], attempt=batch.attempt))
            if part.left:
                left = _Batch(positions=[position[key] for key in part.left], attempt=batch.attempt)
                self._queue.appendleft(left)  # only the last part can be cut
        self._queue.extend(later)
        for number in fresh:
            request = self._waiting[number]
            images = self._images[torch.tensor(request.batch.positions)]
            request.sent_at = time.monotonic()
            try:
                self._teachers.send(number, images)
            except TeacherError:
                request.sent_at = None
                raise
        return grant.blocked, (grant.wait_s if grant.blocked not in (None, "budget") else None)

    # Receiving

    def _receive(self, wait: float | None) -> None:
        """Settle the replies that have come, then see what they mean for what follows."""
        # Others are to an earlier purchase, which did not wait for them.
        replies = [reply for reply in self._teachers.collect(wait) if reply.key in self._waiting]
        if not replies:
            return
        settled = self._settle(replies)
        self._look_up(key for _, outcome in settled for key in _valid(outcome))
        stop = None
        for (request, outcome), reply in zip(settled, replies, strict=True):
            stop = self._digest(request, outcome, reply.fault) or stop
        if stop is not None:
            raise TeacherError(stop)
        self._check_share()

    def _settle(self, replies: Sequence[TeacherReply]) -> list[tuple[_Request, Outcome]]:
        """Tell the ledger how requests ended. Should that fail, the outcomes are kept for `_wind_up`."""
        settled = []
        for reply in replies:
            request = self._waiting[reply.key]
            request.outcome = self._outcome(request, reply)
            settled.append((request, request.outcome))
        self._ledger.settle([outcome for _, outcome in settled])
        for reply in replies:
            del self._waiting[reply.key]
        return settled

    def _outcome(self, request: _Request, reply: TeacherReply) -> Outcome:
        keys = [self._hashes[p] for p in request.batch.positions]
        answers, fault = reply.answers, reply.fault
        if fault is None and answers is not None and len(answers) == len(keys):
            return Outcome(
                reservation=request.reservation, state="answered", hashes=keys, answers=answers.rows(), bad=answers.bad
            )
        if fault is None:
            count = 0 if answers is None else len(answers)
            fault = Fault(kind="malformed", message=f"the teacher gave {count} answers to {len(keys)} images")
        if fault.kind in ("malformed", "doubtful"):
            nothing = AnswerRows(labels=np.zeros(len(keys), dtype=np.int64))
            return Outcome(
                reservation=request.reservation,
                state="answered",
                hashes=keys,
                answers=nothing,
                bad=dict.fromkeys(range(len(keys)), fault.message),
            )
        # A teacher that is not metered has charged nothing.
        charged = fault.charged and self._teacher.metered
        return Outcome(
            reservation=request.reservation, state="uncertain" if charged else "released", reason=fault.message
        )

    def _look_up(self, keys: Iterable[bytes]) -> None:
        self._known.update(self._ledger.lookup(self._teacher.identity, list(keys)))

    def _digest(self, request: _Request, outcome: Outcome, fault: Fault | None) -> str | None:
        """Queue images without an answer again, and rest where that is due; why the run has to stop, or None."""
        batch, bad = request.batch, outcome.bad
        if outcome.state == "answered" and len(bad) < len(batch.positions):
            self._retry.succeeded()
            self._again(batch, {batch.positions[row]: reason for row, reason in bad.items()})
            return None
        if fault is None:  # answers without one row to believe: of many images, it is how the teacher answers
            believed = self._retry.proven or self._known
            if believed and all(self._tries[self._hashes[p]] for p in batch.positions):
                # It is these images, which were picked out for it: of the teacher it says nothing new.
                self._again(batch, {batch.positions[row]: reason for row, reason in bad.items()})
                return None
            kind: FaultKind = "doubtful" if len(batch.positions) == 1 else "malformed"
            fault = Fault(kind=kind, message=next(iter(bad.values()), "the teacher gave another number of answers"))
        if fault.kind == "declined" and self._retry.proven:
            self._in_halves(batch, fault.message)
            return None
        now = time.monotonic()
        rest = self._retry.failed(fault, now if request.sent_at is None else request.sent_at, now)
        stop = self._retry.verdict(fault)
        if stop is not None:
            return stop
        if rest > 0:
            self._ledger.rest(self._teacher.identity, rest)
            if rest >= _LONG_REST_S:
                self._note(f"{fault.message}: leaving the teacher alone for {rest:.0f} s")
        if fault.charged:
            self._again(batch, dict.fromkeys(batch.positions, fault.message))
        else:
            self._queue.appendleft(_Batch(positions=batch.positions, attempt=batch.attempt + 1))
        return None

    def _again(self, batch: _Batch, reasons: dict[int, str]) -> None:
        """Queue images for another try, or set them aside after the last."""
        retry = []
        for position, reason in reasons.items():
            key = self._hashes[position]
            self._tries[key] += 1
            if self._tries[key] < self._retry.policy.tries:
                retry.append(position)
            else:
                self._set_aside[key] = reason
        if retry:
            self._queue.append(_Batch(positions=retry, attempt=batch.attempt + 1))

    def _in_halves(self, batch: _Batch, reason: str) -> None:
        """Ask again in two parts: one image that the teacher does not take must not cost the others their answer."""
        middle = (len(batch.positions) + 1) // 2
        if middle == len(batch.positions):
            self._set_aside[self._hashes[batch.positions[0]]] = reason
            return
        for part in (batch.positions[middle:], batch.positions[:middle]):
            self._queue.appendleft(_Batch(positions=part, attempt=batch.attempt + 1))

    def _remember_refusals(self) -> None:
        """Answers that made no sense to earlier processes count as tries: they were paid for."""
        unknown = [key for key in dict.fromkeys(self._hashes) if key not in self._known]
        for key, (times, reason) in self._ledger.refusals(self._teacher.identity, unknown).items():
            self._tries[key] = times
            if times >= self._retry.policy.tries:
                self._set_aside[key] = reason

    def _check_share(self) -> None:
        share = self._retry.policy.max_bad_share
        if len(self._set_aside) > share * self._distinct:
            raise TeacherError(
                f"{len(self._set_aside):,} of {self._distinct:,} images have no answer one can believe, more than "
                f"teacher.retry.max_bad_share = {share:g} allows; the last reason: {list(self._set_aside.values())[-1]}"
            )

    # Stopping

    def _wind_up(self, grace_s: float) -> None:
        """Leave nothing open: take the replies that are still coming, count what was sent and not answered."""
        deadline = time.monotonic() + grace_s
        try:
            for number in [n for n, request in self._waiting.items() if request.sent_at is None]:
                request = self._waiting[number]
                request.outcome = Outcome(reservation=request.reservation, state="released", reason=NEVER_SENT)
            while any(request.outcome is None for request in self._waiting.values()):
                replies = self._teachers.collect(max(0.0, deadline - time.monotonic()))
                if not replies:
                    break
                for reply in replies:
                    if reply.key in self._waiting:
                        request = self._waiting[reply.key]
                        request.outcome = self._outcome(request, reply)
        finally:
            lost = Fault(kind="lost", message="kdray was stopped before the answer came")
            for number, request in self._waiting.items():
                if request.outcome is None:
                    request.outcome = self._outcome(request, TeacherReply(key=number, fault=lost))
            # What broke the ledger is on its way up already; the next start finds these reserved, and counts them.
            with contextlib.suppress(LedgerError):
                self._ledger.settle([request.outcome for request in self._waiting.values() if request.outcome])


def _valid(outcome: Outcome) -> list[bytes]:
    """Hashes of the images with a valid answer."""
    if outcome.state != "answered":
        return []
    return [key for row, key in enumerate(outcome.hashes) if row not in outcome.bad]


def _open_batches(hashes: list[bytes], done: set[bytes], batch_size: int) -> list[list[int]]:
    """Positions to ask for, cut at fixed multiples of `batch_size`; each distinct image once, those `done` never."""
    first: dict[bytes, int] = {}
    for position, key in enumerate(hashes):
        first.setdefault(key, position)
    batches: dict[int, list[int]] = {}
    for key, position in first.items():
        if key not in done:
            batches.setdefault(position // batch_size, []).append(position)
    return [batches[number] for number in sorted(batches)]
