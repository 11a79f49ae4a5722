"""Buying answers: look up, reserve, send, settle, in that order, for any teacher pool.

One loop decides what is paid, repeated and given up; pools only send. Each turn takes permits for as many batches as
may go now (one transaction), sends them, and settles all replies that have come (one transaction): answers are on disk
before anything uses them.
"""

import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdray.errors import LedgerError, TeacherError
from kdray.ledger.records import NEVER_SENT, STOPPED, Blocked, Order, Outcome, Reservation
from kdray.runs.backlog import Backlog, Batch
from kdray.runs.doubts import Doubts
from kdray.runs.outcomes import outcome_of
from kdray.runs.policy import Bought, LedgerLike, PurchasePolicy
from kdray.teachers.answers import UnknownClass, check_rows, to_answers
from kdray.teachers.faults import Fault, FaultKind
from kdray.teachers.pool import TeacherPool, TeacherReply
from kdray.utils.text import counted

_GRACE_S = 10.0  # for replies on their way when the user stops the run
_LOOK_S = 0.2  # between two looks at what others have bought
_NAP_S = 1.0  # the longest sleep between two looks at the limits: another run may have changed them
_LONG_REST_S = 5.0  # worth telling
_FEW_STRANGE = 2  # images with a class that is not the teacher's: so few never stop a run
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
    name: Callable[[int], str] | None = None,
) -> Bought:
    """Answers to `images`, from the ledger where it has them, else from the teacher, each image paid for once.

    Batches are cut by position, so after a crash the same batches are asked again, less those that are answered.
    When the budget runs out, images are bought in order as far as it goes. An image whose answers cannot be believed,
    or never come, is asked again, and set aside after so many tries; so is one that the teacher does not take. The
    ledger remembers that.

    Args:
        images: uint8 [N, C, H, W], as the student sees them; `policy.input` says what the teacher sees of them. Images
            that are one to the teacher are asked about once.
        owner: names the run in the ledger.
        on_progress: called with (images answered or known, N).
        on_note: told what the user should know.
        name: of the image at a position, in words for the user.

    Raises:
        TeacherError: the teacher refused, is down, answers nonsense, or its daily quota is used up. What was answered
            is in the ledger, and asking again goes on from there.
    """
    purchase = _Purchase(
        images, teachers, ledger, batch_size, (purpose, round, owner), policy or PurchasePolicy(), on_note, name
    )
    return purchase.complete(on_progress)


@dataclass(kw_only=True)
class _Request:
    """A batch with its reservation, until it is settled."""

    batch: Batch
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
        name: Callable[[int], str] | None,
    ) -> None:
        self._images, self._teachers, self._ledger, self._policy = images, teachers, ledger, policy
        self._purpose, self._round, self._owner = book
        self._note = on_note or (lambda text: None)
        self._name = name or (lambda position: f"image {position} of round {self._round}")
        self._teacher, self._retry = teachers.teacher, policy.retry
        self._hashes = policy.keys(images, self._round)  # of what the teacher sees, as it is sent below
        self._distinct = len(set(self._hashes))
        self._known = ledger.lookup(self._teacher.identity, self._hashes)
        check_rows(list(self._known.values()), self._teacher.num_classes)
        unknown = [key for key in dict.fromkeys(self._hashes) if key not in self._known]
        self._backlog = Backlog(
            self._hashes,
            self._known,
            ledger.failures(self._teacher.identity, unknown),
            tries=self._retry.policy.tries,
            batch_size=batch_size,
        )
        self._retry.known = self._retry.known or bool(self._known) or ledger.answers_of(self._teacher.identity)
        self._limit(getattr(self._teacher, "batch_limit", None))
        self._waiting: dict[int, _Request] = {}
        self._open_grant: str | None = None
        self._doubts = Doubts(self._name)
        self._failed_alone: bytes | None = None  # the one image of the last request that failed
        self._strange: dict[bytes, str] = {}  # images that got a class which the teacher should not have, and why
        self._told = False

    def complete(self, on_progress: Callable[[int, int], None] | None) -> Bought:
        try:
            self._check_share()
            self._look_at_first()
            while self._backlog or self._waiting:
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
                elif self._backlog:
                    if blocked == "busy":
                        self._tell_of_others(len(self._backlog.hashes()))
                    time.sleep(min(wait or 0.0, _NAP_S))
                if on_progress is not None:
                    on_progress(len(self._known), self._distinct)
        except BaseException as error:
            self._wind_up(self._policy.lease_s if isinstance(error, TeacherError) else _GRACE_S)
            raise
        return self._bought()

    def _tell_of_others(self, images: int) -> None:
        if not self._told:
            self._told = True
            self._note(f"another run on this ledger has {images:,} of the images on their way: waiting for its answers")

    def _others_answer(self) -> bool:
        """Where no more may be bought: take off the backlog what others have bought; whether to look again."""
        keys = self._backlog.hashes()
        # In this order: an answer that comes in between is seen.
        busy = self._ledger.on_their_way(self._teacher.identity, keys)
        self._look_up(keys)
        self._backlog.drop(self._known)
        busy -= self._known.keys()
        if busy:
            self._tell_of_others(len(busy))
        return bool(busy) or not self._backlog

    def _bought(self) -> Bought:
        positions = [position for position, key in enumerate(self._hashes) if key in self._known]
        given_up = self._backlog.set_aside
        set_aside = {p: given_up[key] for p, key in enumerate(self._hashes) if key in given_up}
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
        free = (1 if self._doubts.many else self._retry.slots(self._teachers.slots)) - len(self._waiting)
        if free <= 0 or not self._backlog:
            return None, None
        if self._doubts.many:
            self._backlog.single_out(len(self._doubts), self._doubts)
        elif self._policy.probe and not self._retry.proven:
            self._backlog.split_first()
        self._teachers.wait_until_ready()
        self._open_grant = uuid.uuid4().hex
        grant = self._ledger.grant(
            [
                Order(hashes=[self._hashes[p] for p in batch.positions], attempt=batch.attempt)
                for batch in self._backlog.first(free)
            ],
            teacher=self._teacher.identity,
            purpose=self._purpose,
            round=self._round,
            owner=self._owner,
            metered=self._teacher.metered,
            limits=self._policy.limits,
            lease_s=self._policy.lease_s,
            request=self._open_grant,
        )
        fresh: list[int] = []
        for batch, part in zip(self._backlog.take(grant.parts), grant.parts, strict=True):
            if part.reservation is not None:
                number = next(_NUMBERS)
                self._waiting[number] = _Request(batch=batch, reservation=part.reservation)
                fresh.append(number)
        self._open_grant = None
        for part in grant.parts:
            if part.known:
                self._look_up(part.known)
        for number in fresh:
            positions = (request := self._waiting[number]).batch.positions
            images = self._policy.input.view(self._images[torch.tensor(positions)])
            request.sent_at = time.monotonic()
            try:
                self._teachers.send(number, images, self._policy.replies(positions, len(self._hashes), self._round))
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
        self._look_up([key for _, outcome in settled for key in outcome.valid()])
        self._look_at_first()
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
        return outcome_of(
            reply,
            request.reservation,
            [self._hashes[p] for p in request.batch.positions],
            classes=self._teacher.num_classes,
            metered=self._teacher.metered,
        )

    def _look_up(self, keys: Sequence[bytes]) -> None:
        self._known.update(self._ledger.lookup(self._teacher.identity, keys))

    def _digest(self, request: _Request, outcome: Outcome, fault: Fault | None) -> str | None:
        """Queue images without an answer again, and rest where that is due; why the run has to stop, or None."""
        batch, bad = request.batch, outcome.bad
        if outcome.state == "answered" and len(bad) < len(batch.positions):
            self._retry.succeeded()
            self._dispel_doubts(request.sent_at)
            self._failed_alone = None
            self._limit(self._backlog.answered(batch))
            self._backlog.retry(batch, {batch.positions[row]: reason for row, reason in bad.items()})
            unknown = {row: reason for row, reason in bad.items() if isinstance(reason, UnknownClass)}
            self._strange |= {self._hashes[batch.positions[row]]: reason for row, reason in unknown.items()}
            return None
        if fault is None:  # answers without one row to believe: of many images, it is how the teacher answers
            if self._retry.believed and self._backlog.tried(batch):
                # It is these images, which were picked out for it: of the teacher it says nothing new.
                self._backlog.retry(batch, {batch.positions[row]: reason for row, reason in bad.items()})
                return None
            kind: FaultKind = "doubtful" if len(batch.positions) == 1 else "malformed"
            fault = Fault(kind=kind, message=next(iter(bad.values()), "the teacher gave another number of answers"))
        if fault.kind in ("declined", "oversized"):
            return self._decline(batch, outcome, fault)
        now = time.monotonic()
        alone = self._hashes[batch.positions[0]] if len(batch.positions) == 1 else None
        same = self._retry.proven and alone is not None and alone == self._failed_alone
        self._failed_alone = alone
        rest = self._retry.failed(fault, now if request.sent_at is None else request.sent_at, now, same=same)
        stop = self._retry.verdict(fault)
        if stop is not None:
            return stop
        if rest > 0:
            self._ledger.rest(self._teacher.identity, rest)
            if rest >= _LONG_REST_S:
                self._note(f"{fault.message}: leaving the teacher alone for {rest:.0f} s")
        if fault.charged:
            self._backlog.retry(batch, dict.fromkeys(batch.positions, fault.message))
        else:
            self._backlog.resend(batch)
        return None

    def _decline(self, batch: Batch, outcome: Outcome, fault: Fault) -> str | None:
        """Ask for images that the teacher did not take in smaller parts, or set one aside; why the run has to stop, or
        None. Nothing of this is charged."""
        if len(batch.positions) > 1:
            if fault.kind == "oversized":
                self._limit(len(batch.positions) // 2)
                self._backlog.resend(batch)
            else:
                self._backlog.halve(batch)
            return None
        (position,) = batch.positions
        again, enough = (key := self._hashes[position]) in self._doubts, self._retry.declined()
        self._doubts.add(key, position, outcome, time.monotonic(), first=not self._retry.believed)
        if enough or (again and not self._retry.believed):
            return self._doubts.verdict(fault.message, answered=self._retry.believed)
        if again:  # no other image is left to show whether it is this one: it is left out, and not remembered
            self._backlog.decline({key: fault.message})
        else:
            self._backlog.defer(batch)
        return None

    def _dispel_doubts(self, sent_at: float | None) -> None:
        """The teacher has answered: the images that it declined before are set aside, and remembered."""
        if self._doubts and (declined := self._doubts.dispelled(sent_at or 0.0, set(self._backlog.hashes()))):
            self._ledger.settle(list(declined.values()))
            self._backlog.decline({key: one.reason or "declined" for key, one in declined.items()}, known=True)

    def _limit(self, size: int | None) -> None:
        """Keep to at most `size` images a request from now on, and in later purchases of the run."""
        last = self._retry.batch_limit
        if size is not None and (last is None or size < last):
            self._retry.batch_limit = size
            if self._backlog.limit(size):
                self._note(
                    f"the teacher takes no more than {counted(size, 'image')} a request: asking for no more from now "
                    f"on (set teacher.batch_size to {size})"
                )
        elif last is not None:
            self._backlog.limit(last)

    def _look_at_first(self) -> None:
        if (note := self._policy.look(self._known, more=bool(self._backlog))) is not None:
            self._note(note)

    def _check_share(self) -> None:
        self._backlog.check_share(share := self._retry.policy.max_bad_share, self._distinct, self._name)
        strange = [reason for key, reason in self._strange.items() if key not in self._known]
        answered = len(self._known) + len(strange)
        if len(strange) > max(_FEW_STRANGE, share * answered):
            raise TeacherError(
                f"{len(strange):,} of {answered:,} images got a class that the teacher should not have, more than "
                f"teacher.retry.max_bad_share = {share:g} allows; the last: {strange[-1]}"
            )

    # Stopping

    def _wind_up(self, grace_s: float) -> None:
        """Leave nothing open: take the replies that are still coming, count what was sent and not answered."""
        deadline = time.monotonic() + grace_s
        try:
            if self._open_grant is not None:  # stopped before it was known what was granted: nothing of it was sent
                teacher, last = self._teacher.identity, self._open_grant
                with contextlib.suppress(LedgerError):
                    self._ledger.grant([], teacher=teacher, owner=self._owner, request=last)
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
            lost = Fault(kind="lost", message=STOPPED)
            for number, request in self._waiting.items():
                if request.outcome is None:
                    request.outcome = self._outcome(request, TeacherReply(key=number, fault=lost))
            # What broke the ledger is on its way up already; the next start finds these reserved, and counts them.
            with contextlib.suppress(LedgerError):
                self._ledger.settle([request.outcome for request in self._waiting.values() if request.outcome])
