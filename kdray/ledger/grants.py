"""Granting requests: caps, claims and limits are checked and taken in the caller's one transaction."""

import sqlite3
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from kdray.ledger.limits import Fill, Limits, TokenBucket, day_of, seconds_left_today
from kdray.ledger.records import Blocked, Grant, GrantPart, Order, Reservation

LOOKUP_BATCH = 500  # SQLite's oldest limit on parameters is 999
FREE_CLAIM_S = 30.0
"""Seconds for which others wait for the answer of a teacher that bills nothing."""
_POLL_S = 0.2  # until another run's request may be over


@dataclass(frozen=True)
class Facts:
    """The columns that all reservations of one call share."""

    number: int
    teacher: str
    purpose: str
    round: int
    owner: str
    metered: bool
    now: float
    lease_s: float
    request: str


@dataclass
class _Room:
    """Requests and queries that may still go."""

    requests: int
    queries: int
    day_is_tighter: bool = False


BOTH = "((purpose = ? AND owner = ?) OR (purpose = ? AND owner = ''))"
"""The accounts a query counts against: its owner's, and the whole file's; see `accounts_of`."""
LEFT = (
    "SELECT max(0, min(cap - reserved - answered - uncertain - rejected)) FROM accounts "
    f"WHERE {BOTH} AND cap IS NOT NULL"
)
"""Queries of a purpose below every cap that counts for an owner; null where there is no cap at all."""


def accounts_of(purpose: str, owner: str) -> tuple[str, str, str]:
    """Parameters of `BOTH`. Queries for an estimate are paid from the budget, so the file's cap on training holds for
    them too."""
    return purpose, owner, "training" if purpose == "estimate" else purpose


def left(db: sqlite3.Connection, purpose: str, owner: str) -> int:
    """Queries `owner` may still take; 0 where there is no cap at all."""
    (count,) = db.execute(LEFT, accounts_of(purpose, owner)).fetchone()
    return int(count or 0)


def grant(db: sqlite3.Connection, orders: Sequence[Order], facts: Facts, limits: Limits | None) -> Grant:
    """See `kdray.ledger.store.Ledger.grant`."""
    room = _Room(len(orders), left(db, facts.purpose, facts.owner))
    blocked, wait, room = _room(db, facts.number, limits, facts.now, room)
    parts: list[GrantPart] = []
    for order in orders:
        if room.requests == 0 or room.queries == 0:
            break
        parts.append(_part(db, order, facts, room))
    _use_tokens(db, facts.number, limits, facts.now, sum(part.reservation is not None for part in parts))
    cut = bool(parts) and bool(parts[-1].left)
    if len(parts) == len(orders) and not cut:
        busy = bool(parts) and all(part.busy and part.reservation is None for part in parts)
        return Grant(parts=parts, blocked="busy" if busy else None, wait_s=_POLL_S if busy else 0.0)
    if room.queries == 0 and blocked != "resting":
        if room.day_is_tighter:
            return Grant(parts=parts, blocked="day", wait_s=seconds_left_today(facts.now))
        return Grant(parts=parts, blocked="budget")
    return Grant(parts=parts, blocked=blocked, wait_s=wait)


def _room(
    db: sqlite3.Connection, teacher: int, limits: Limits | None, now: float, room: _Room
) -> tuple[Blocked | None, float, _Room]:
    """The part of `room` that the limits leave, what blocks the rest, and for how many seconds."""
    (rests_until,) = db.execute("SELECT rests_until FROM teachers WHERE id = ?", (teacher,)).fetchone()
    if rests_until > now:
        room.requests = 0
        return "resting", rests_until - now, room
    blocked: Blocked | None = None
    wait = 0.0
    if limits is None:
        return blocked, wait, room
    (open_now,) = db.execute(
        "SELECT count(*) FROM reservations WHERE teacher = ? AND state = 'reserved' AND expires > ?",
        (teacher, now),
    ).fetchone()
    if limits.in_flight - open_now < room.requests:
        room.requests, blocked, wait = max(0, limits.in_flight - open_now), "in flight", _POLL_S
    for name, bucket in limits.buckets().items():
        fill = _fill(db, teacher, name, bucket, now)
        if bucket.tokens(fill) < room.requests:
            room.requests, blocked = bucket.tokens(fill), "rate"
            wait = bucket.wait_s(bucket.take(fill, room.requests, now), now)
    if limits.queries_per_day is not None:
        row = db.execute("SELECT queries FROM days WHERE teacher = ? AND day = ?", (teacher, day_of(now))).fetchone()
        today = max(0, limits.queries_per_day - (row[0] if row else 0))
        if today < room.queries:
            room.queries, room.day_is_tighter = today, True
    return blocked, wait, room


def _part(db: sqlite3.Connection, order: Order, facts: Facts, room: _Room) -> GrantPart:
    """Take queries for the images of `order` that may be sent, and claim them."""
    known = _among(db, order.hashes, "answers WHERE teacher = ?", facts.number)
    busy = _among(db, order.hashes, "claims WHERE teacher = ? AND expires > ?", facts.number, facts.now)
    free = [item for item in order.hashes if item not in known and item not in busy]
    send, left = free[: room.queries], free[room.queries :]
    reservation = None
    if send:
        reservation = take(db, len(send), facts, order.attempt)
        room.requests -= 1
        room.queries -= len(send)
        # What a free teacher has on its way is waited for too, or two trials would both count it; but not for long:
        # to ask again, after the other died, costs nothing.
        lease = facts.lease_s if facts.metered else min(facts.lease_s, FREE_CLAIM_S)
        db.executemany(
            "INSERT INTO claims VALUES (?, ?, ?, ?)",
            ((facts.number, item, reservation.id, facts.now + lease) for item in send),
        )
    return GrantPart(
        reservation=reservation,
        send=send,
        known=[item for item in order.hashes if item in known],
        busy=[item for item in order.hashes if item in busy and item not in known],
        left=left,
    )


def _among(db: sqlite3.Connection, hashes: Sequence[bytes], rows: str, *parameters: object) -> set[bytes]:
    """The `hashes` that are in `rows`, the end of a SELECT from its table on."""
    found: set[bytes] = set()
    for start in range(0, len(hashes), LOOKUP_BATCH):
        part = hashes[start : start + LOOKUP_BATCH]
        marks = ",".join("?" * len(part))
        found.update(
            row[0] for row in db.execute(f"SELECT hash FROM {rows} AND hash IN ({marks})", (*parameters, *part))
        )
    return found


def take(db: sqlite3.Connection, n: int, facts: Facts, attempt: int) -> Reservation:
    """Reserve `n` queries without a look at the caps, which the caller has checked."""
    key = uuid.uuid4().hex
    purpose, owner, of_file = accounts_of(facts.purpose, facts.owner)
    for account in {(owner, purpose), ("", of_file)}:
        db.execute(
            "INSERT INTO accounts (owner, purpose, reserved) VALUES (?, ?, ?) "
            "ON CONFLICT (owner, purpose) DO UPDATE SET reserved = reserved + excluded.reserved",
            (*account, n),
        )
    db.execute(
        "INSERT INTO reservations "
        "(id, owner, teacher, purpose, round, queries, metered, attempt, state, created, expires, request) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'reserved', ?, ?, ?)",
        (
            key,
            facts.owner,
            facts.number,
            facts.purpose,
            facts.round,
            n,
            int(facts.metered),
            attempt,
            facts.now,
            facts.now + facts.lease_s,
            facts.request,
        ),
    )
    _use_day(db, facts.number, facts.now, n)
    return Reservation(id=key, queries=n, teacher=facts.teacher, purpose=facts.purpose)


def _fill(db: sqlite3.Connection, teacher: int, name: str, bucket: TokenBucket, now: float) -> Fill:
    row = db.execute("SELECT level, since FROM buckets WHERE teacher = ? AND name = ?", (teacher, name)).fetchone()
    last = None if row is None else Fill(*row)
    fill = bucket.fill(last, now)
    if last is not None and fill.since < last.since:  # the clock was set back: store it, or every call finds it so
        _put_fill(db, teacher, name, fill)
    return fill


def _put_fill(db: sqlite3.Connection, teacher: int, name: str, fill: Fill) -> None:
    db.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?, ?, ?)", (teacher, name, fill.level, fill.since))


def _use_tokens(db: sqlite3.Connection, teacher: int, limits: Limits | None, now: float, requests: int) -> None:
    if requests and limits is not None:
        for name, bucket in limits.buckets().items():
            fill = bucket.take(_fill(db, teacher, name, bucket, now), requests, now)
            _put_fill(db, teacher, name, fill)


def _use_day(db: sqlite3.Connection, teacher: int, now: float, queries: int) -> None:
    """Count queries for the daily quota, also where this run has none: another run may."""
    db.execute(
        "INSERT INTO days VALUES (?, ?, ?) "
        "ON CONFLICT (teacher, day) DO UPDATE SET queries = queries + excluded.queries",
        (teacher, day_of(now), queries),
    )
