"""Answers and charges in one SQLite file, shared by all runs, trials and workers that are given it.

Every query is reserved before it is sent and settled, with its answer, before anything uses it. Reserved, answered,
rejected and uncertain queries of a purpose together never pass a cap: one transaction checks the caps and reserves.

    reserve --> answered    an answer came, and is on disk; its invalid rows are stored as rejected
            --> released    it was never sent, or the teacher refused it or cannot bill: given back
            --> uncertain   it was sent and no answer came: counts as charged

A reservation carries its owner (the run), whose own cap it counts against besides the file's. Only one process works in
a run directory at a time, so a reservation that a run finds open when it starts was left by a process that died:
`recover` settles it. An open reservation holds a claim on each of its images, so no other run pays for them too; a
claim ends with the reservation's lease, should its run never come back. Where no answer came, the claims tell which
images were lost. An image that the teacher does not take is remembered, too: asking again is free, and of no use.
"""

import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kdray.errors import BudgetExceeded, LedgerError
from kdray.ledger import grants, settlement
from kdray.ledger.database import LedgerFile
from kdray.ledger.grants import LOOKUP_BATCH, Facts
from kdray.ledger.limits import Limits
from kdray.ledger.records import (
    DIED,
    NEVER_SENT,
    STOPPED,
    AnswerRows,
    Failures,
    Grant,
    Order,
    Outcome,
    Reservation,
    hash_images,
)

__all__ = ["LEASE_S", "Ledger", "Reservation", "hash_images"]

_MOST = 2**63 - 1  # what SQLite can count
LEASE_S = 3600.0
"""Seconds for which a reservation counts as on its way, unless its sender gives another time."""


class Ledger:
    """Opens the ledger at `path`, making it where it is not there.

    Args:
        path: the SQLite file; ":memory:" for a throw-away one.
        budget: hard cap on the training queries of all who use the file; the file keeps it, and refuses another.
        evaluation: hard cap on all evaluation queries, counted apart; may be set anew at each opening.
        clock: seconds since 1970; limits and leases are measured by it.
        read_only: only read an existing file, also one on a read-only file system.

    Raises:
        LedgerError: not a ledger, another schema, another budget, or a file that cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        budget: int | None = None,
        evaluation: int | None = None,
        *,
        clock: Callable[[], float] = time.time,
        read_only: bool = False,
    ) -> None:
        self.path = str(path)
        self._clock = clock
        self._file = LedgerFile(
            path,
            lambda db: self._set_caps(db, "", {"training": budget, "evaluation": evaluation}),
            read_only=read_only,
        )

    def close(self) -> None:
        """Close the file. Everything settled is already on disk."""
        self._file.close()

    def read(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query; see `kdray.ledger.schema` for the tables."""
        return self._file.read(statement, parameters)

    # Caps and counts

    def open_account(self, owner: str, caps: Mapping[str, int]) -> None:
        """Set the caps of `owner`, by purpose, besides those of the whole file.

        Raises:
            LedgerError: the owner's cap on training queries was another.
        """
        with self._file.transaction() as db:
            self._set_caps(db, owner, caps)

    def _set_caps(self, db: sqlite3.Connection, owner: str, caps: Mapping[str, int | None]) -> None:
        for purpose, cap in caps.items():
            if cap is None:
                continue
            row = db.execute("SELECT cap FROM accounts WHERE owner = ? AND purpose = ?", (owner, purpose)).fetchone()
            if purpose == "training" and row and row[0] is not None and row[0] != cap:
                change = "" if owner else f", set ledger.queries to {row[0]}, or change it with 'kdray ledger --budget'"
                raise LedgerError(
                    f"{self.path} was made for a budget of {row[0]:,} queries, not {cap:,}; "
                    f"use another ledger or run directory{change}"
                )
            self._put_cap(db, owner, purpose, cap)

    def _put_cap(self, db: sqlite3.Connection, owner: str, purpose: str, cap: int) -> None:
        if cap > _MOST:
            raise LedgerError(f"a budget of {cap:,} queries is more than a ledger can count; {_MOST:,} is the most")
        db.execute(
            "INSERT INTO accounts (owner, purpose, cap) VALUES (?, ?, ?) "
            "ON CONFLICT (owner, purpose) DO UPDATE SET cap = excluded.cap",
            (owner, purpose, cap),
        )

    def change_budget(self, cap: int) -> None:
        """Set another cap on the training queries of the whole file. Below what is spent it stops all buying."""
        with self._file.transaction() as db:
            self._put_cap(db, "", "training", cap)

    def knows(self, owner: str) -> bool:
        """Whether `owner` has ever opened an account here."""
        return bool(self.read("SELECT 1 FROM accounts WHERE owner = ? LIMIT 1", (owner,)))

    def remaining(self, purpose: str = "training", owner: str = "") -> int:
        """Queries that can still be reserved, for `owner` where one is given; 0 also where no cap was ever set."""
        return self.read(grants.LEFT, grants.accounts_of(purpose, owner))[0][0] or 0

    def spent(self, purpose: str = "training", owner: str = "") -> int:
        """Queries charged, by everybody or by `owner`: answered, rejected and uncertain."""
        return self._count("answered + rejected + uncertain", purpose, owner)

    def reserved(self) -> int:
        """Queries of all purposes and owners that are on their way."""
        return int(self.read("SELECT coalesce(sum(queries), 0) FROM reservations WHERE state = 'reserved'")[0][0])

    def uncertain(self, purpose: str = "training", owner: str = "") -> int:
        """Queries charged whose answer never came."""
        return self._count("uncertain", purpose, owner)

    def rejected(self, purpose: str = "training", owner: str = "") -> int:
        """Queries charged whose answer was invalid."""
        return self._count("rejected", purpose, owner)

    def _count(self, what: str, purpose: str, owner: str) -> int:
        rows = self.read(f"SELECT {what} FROM accounts WHERE purpose = ? AND owner = ?", (purpose, owner))
        return rows[0][0] if rows else 0

    def spent_in_round(self, round: int, purpose: str = "training", owner: str = "") -> tuple[int, int]:
        """(answered, lost) queries that all processes of `owner` were charged for in `round`. A query is lost where its
        answer never came or was invalid."""
        rows = self.read(
            "SELECT coalesce(sum(CASE state WHEN 'answered' THEN queries - rejected END), 0), "
            "coalesce(sum(CASE state WHEN 'uncertain' THEN queries ELSE rejected END), 0) "
            "FROM reservations WHERE owner = ? AND purpose = ? AND round = ?",
            (owner, purpose, round),
        )
        ((answered, lost),) = rows
        return answered, lost

    def teachers(self, owner: str | None = None) -> list[str]:
        """Identities of all teachers that were asked; or of those whose answers `owner` has, bought or free."""
        if owner is None:
            return [row[0] for row in self.read("SELECT identity FROM teachers ORDER BY id")]
        return [
            row[0]
            for row in self.read(
                "SELECT identity FROM teachers WHERE id IN (SELECT teacher FROM reservations "
                "WHERE owner = ? AND state = 'answered' AND queries > rejected "
                "UNION SELECT teacher FROM hits WHERE owner = ? AND images > 0) ORDER BY id",
                (owner, owner),
            )
        ]

    # Answers

    def lookup(self, teacher: str, hashes: Iterable[bytes]) -> dict[bytes, tuple[int, np.ndarray | None]]:
        """Answers already bought: hash -> (label, probs float32 [K] or None). Hashes without an answer are left out."""
        found: dict[bytes, tuple[int, np.ndarray | None]] = {}
        for key, label, probs in self._by_hash("hash, label, probs", "answers", teacher, hashes):
            found[key] = (label, None if probs is None else np.frombuffer(probs, dtype="<f4"))
        return found

    def bought_by_others(self, teacher: str, hashes: Iterable[bytes], owner: str) -> set[bytes]:
        """Images with an answer that another run than `owner` has bought."""
        buyer = "(SELECT owner FROM reservations WHERE id = reservation)"
        found = self._by_hash(f"hash, {buyer}", "answers", teacher, hashes)
        return {key for key, whose in found if whose != owner}

    def answers_of(self, teacher: str) -> bool:
        """Whether the file holds any answer of `teacher`, whoever bought it."""
        return bool(
            self.read(
                "SELECT 1 FROM answers WHERE teacher = (SELECT id FROM teachers WHERE identity = ?) LIMIT 1", (teacher,)
            )
        )

    def failures(self, teacher: str, hashes: Iterable[bytes]) -> dict[bytes, Failures]:
        """What came of images that were asked about and have no valid answer, whoever asked."""
        wanted = set(hashes)
        wanted.difference_update(row[0] for row in self._by_hash("hash", "answers", teacher, wanted))
        found: dict[bytes, list[tuple[int, str, bool]]] = {}
        of = "(SELECT {} FROM reservations WHERE id = reservation)".format
        columns = f"hash, {of('rowid')}, {of('queries')}, "  # row numbers grow with time
        for key, number, queries, reason, bad in self._by_hash(
            f"{columns} reason, {of('rejected')}", "rejects", teacher, wanted
        ):
            found.setdefault(key, []).append((number, reason, queries == 1 or bad < queries))
        stopped = set()
        for key, number, queries, reason in self._by_hash(f"{columns} {of('reason')}", "lost", teacher, wanted):
            if reason == STOPPED:
                stopped.add(key)
            else:
                found.setdefault(key, []).append((number, reason, queries == 1 and reason != DIED))
        failures = {
            key: Failures(times=len(times), own=sum(own for *_, own in times), reason=max(times)[1], sent=True)
            for key, times in found.items()
        }
        for key in stopped - failures.keys():
            failures[key] = Failures(times=0, own=0, reason=STOPPED, sent=True)
        for key, reason in self._by_hash("hash, reason", "declined", teacher, wanted):
            paid = failures.get(key, Failures(times=0, own=0, reason=""))
            failures[key] = replace(paid, reason=reason, declined=True)
        return failures

    def forget_declined(self) -> int:
        """Forget which images their teachers declined, so that they are asked about again; how many there were."""
        with self._file.transaction() as db:
            return int(db.execute("DELETE FROM declined").rowcount)

    def on_their_way(self, teacher: str, hashes: Iterable[bytes]) -> set[bytes]:
        """Images that any run has asked for and that have no answer yet, while their lease lasts."""
        now = self._clock()
        return {key for key, expires in self._by_hash("hash, expires", "claims", teacher, hashes) if expires > now}

    def _by_hash(self, columns: str, table: str, teacher: str, hashes: Iterable[bytes]) -> Iterator[tuple[Any, ...]]:
        ids = self.read("SELECT id FROM teachers WHERE identity = ?", (teacher,))
        wanted = sorted(set(hashes)) if ids else []  # in the order of the file, so that no page is read twice
        for start in range(0, len(wanted), LOOKUP_BATCH):
            part = wanted[start : start + LOOKUP_BATCH]
            marks = ",".join("?" * len(part))
            yield from self.read(
                f"SELECT {columns} FROM {table} WHERE teacher = ? AND hash IN ({marks})", (ids[0][0], *part)
            )

    # Reserving

    def reserve(
        self,
        n: int,
        *,
        teacher: str = "",
        purpose: str = "training",
        round: int = 0,
        owner: str = "",
        metered: bool = True,
    ) -> Reservation:
        """Take `n` queries from the budget of `purpose`, all or none.

        Args:
            n: queries about to be sent, at least 1.
            teacher: identity of the teacher they go to.
            owner: the run that asks; see `recover`.
            metered: they may be billed once they are sent.

        Raises:
            BudgetExceeded: fewer than `n` are left. Nothing was taken.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        with self._file.transaction() as db:
            left = grants.left(db, purpose, owner)
            if left < n:
                raise BudgetExceeded(
                    f"{n:,} {purpose} queries wanted, {left:,} of the budget are left; nothing was asked"
                )
            number, now = self._teacher(db, teacher), self._clock()
            return grants.take(db, n, Facts(number, teacher, purpose, round, owner, metered, now, LEASE_S, ""), 1)

    def grant(
        self,
        orders: Sequence[Order],
        *,
        teacher: str,
        purpose: str = "training",
        round: int = 0,
        owner: str = "",
        metered: bool = True,
        limits: Limits | None = None,
        lease_s: float = LEASE_S,
        request: str | None = None,
    ) -> Grant:
        """Take queries for as many of `orders` as may be sent this moment, in order, in one transaction.

        Images that have an answer by now are not paid for, nor those another run has on its way; the order that meets
        a cap is cut to what it leaves.

        Args:
            limits: of the teacher, counted over all who ask it; None sets none. A rest of the teacher holds either way.
            lease_s: seconds after which a request that was sent is over for certain.
            request: names this call: repeated with the same name, it takes nothing a second time.
        """
        request = request or uuid.uuid4().hex
        with self._file.transaction() as db:
            # The call is repeated, so the reply to the first one was lost, and what it took was never sent.
            for (key,) in db.execute(
                "SELECT id FROM reservations WHERE request = ? AND state = 'reserved'", (request,)
            ).fetchall():
                settlement.close(db, key, "released", reason=NEVER_SENT)
            number, now = self._teacher(db, teacher), self._clock()
            facts = Facts(number, teacher, purpose, round, owner, metered, now, lease_s, request)
            return grants.grant(db, orders, facts, limits)

    def _teacher(self, db: sqlite3.Connection, identity: str) -> int:
        db.execute("INSERT OR IGNORE INTO teachers (identity) VALUES (?)", (identity,))
        (number,) = db.execute("SELECT id FROM teachers WHERE identity = ?", (identity,)).fetchone()
        return int(number)

    def rest(self, teacher: str, seconds: float) -> None:
        """Grant no request to `teacher` for so many seconds. A longer rest that was set before remains."""
        with self._file.transaction() as db:
            db.execute(
                "UPDATE teachers SET rests_until = max(rests_until, ?) WHERE id = ?",
                (self._clock() + seconds, self._teacher(db, teacher)),
            )

    # Settling

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Settle reservations in one transaction: charged, and on disk when this returns.

        Settling one again in the same way changes nothing. An image that has an answer keeps its first one.

        Raises:
            LedgerError: the counts differ, or a reservation was settled in another way. Then none of them is settled.
        """
        for outcome in outcomes:
            settlement.check(outcome)
        with self._file.transaction() as db:
            for outcome in outcomes:
                settlement.settle(db, outcome)

    def commit(self, reservation: Reservation, hashes: Sequence[bytes], answers: AnswerRows) -> None:
        """Settle one reservation as answered; see `settle`."""
        self.settle([Outcome(reservation=reservation, state="answered", hashes=hashes, answers=answers)])

    def release(self, reservation: Reservation) -> None:
        """Give the queries of `reservation` back: they were never sent, or cannot have been billed."""
        self.settle([Outcome(reservation=reservation, state="released")])

    def mark_uncertain(self, reservation: Reservation) -> None:
        """Settle one reservation as sent and never answered: its queries count as charged."""
        self.settle([Outcome(reservation=reservation, state="uncertain")])

    def recover(self, owner: str) -> tuple[int, int]:
        """Settle what a dead process of `owner` left reserved: metered queries become uncertain, others are given back.

        Returns:
            (uncertain, released) queries.
        """
        with self._file.transaction() as db:
            return settlement.recover(db, owner)

    def record_hits(self, teacher: str, images: int, *, purpose: str, round: int, owner: str) -> None:
        """Note how many images of a round cost nothing. A later count replaces it: a resumed round counts again."""
        with self._file.transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO hits VALUES (?, ?, ?, ?, ?)",
                (owner, self._teacher(db, teacher), purpose, round, images),
            )
