"""Answers and charges in one SQLite file.

Every query is reserved before it is sent and committed, with its answer, before anything uses it. Reserved,
answered and uncertain queries of a purpose together never pass its budget: one UPDATE checks and takes.

    reserve --> answered    commit: the answer is on disk
            --> (returned)  release: it was never sent, or the teacher cannot bill
            --> uncertain   it was sent and no answer came: counts as charged

A reservation carries its owner (the run). Only one process works in a run directory at a time, so what a run finds
reserved by itself when it starts was left by a process that died; `recover` settles it.
"""

import hashlib
import sqlite3
import time
import uuid
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdray.errors import BudgetExceeded, LedgerError
from kdray.teachers.answers import Answers

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE budgets (
    purpose TEXT PRIMARY KEY, cap INTEGER NOT NULL,
    reserved INTEGER NOT NULL DEFAULT 0, answered INTEGER NOT NULL DEFAULT 0, uncertain INTEGER NOT NULL DEFAULT 0,
    CHECK (reserved >= 0 AND answered >= 0 AND uncertain >= 0)
);
CREATE TABLE teachers (id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE);
CREATE TABLE reservations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, teacher INTEGER NOT NULL REFERENCES teachers (id),
    purpose TEXT NOT NULL REFERENCES budgets (purpose), round INTEGER NOT NULL, queries INTEGER NOT NULL,
    metered INTEGER NOT NULL, state TEXT NOT NULL CHECK (state IN ('reserved', 'answered', 'released', 'uncertain')),
    created REAL NOT NULL
);
CREATE TABLE answers (
    teacher INTEGER NOT NULL REFERENCES teachers (id), hash BLOB NOT NULL,
    reservation TEXT NOT NULL REFERENCES reservations (id), label INTEGER NOT NULL, probs BLOB,
    PRIMARY KEY (teacher, hash)
) WITHOUT ROWID;
"""
_TIMEOUT_S = 60.0  # for other writers
_LOOKUP_BATCH = 500  # SQLite's oldest limit on parameters is 999


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Queries taken from the budget and not yet settled."""

    id: str
    queries: int
    teacher: str
    purpose: str


def hash_images(images: Tensor) -> list[bytes]:
    """The ledger's key of each image: BLAKE2b (16 bytes) of its shape and its uint8 pixels [N, C, H, W]."""
    shape = np.asarray(images.shape[1:], dtype=np.int64).tobytes()
    flat = images.contiguous().flatten(1).numpy()
    return [hashlib.blake2b(shape + row.tobytes(), digest_size=16).digest() for row in flat]


class Ledger:
    """Opens the ledger at `path`, making it where it is not there.

    Args:
        path: the SQLite file; ":memory:" for a throw-away one.
        budget: hard cap on training queries; the file keeps it, and refuses another.
        evaluation: hard cap on evaluation queries, counted apart; may be set anew at each opening.

    Raises:
        LedgerError: not a ledger, a newer schema, another budget, or a file that cannot be written.
    """

    def __init__(self, path: str | Path, budget: int | None = None, evaluation: int | None = None) -> None:
        self.path = str(path)
        self._db: sqlite3.Connection | None = None
        try:
            self._db = sqlite3.connect(self.path, timeout=_TIMEOUT_S, isolation_level=None)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._open(budget, evaluation)
            self._write_ahead()  # last: it changes the file, which may have turned out to be somebody else's
        except sqlite3.Error as error:
            self.close()
            raise LedgerError(f"cannot use {self.path} as a ledger: {error}; it was left as it is") from None
        except LedgerError:
            self.close()
            raise

    def _write_ahead(self) -> None:
        """Switch to write-ahead logging. SQLite's own waiting does not cover this while others open the file too."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _open(self, budget: int | None, evaluation: int | None) -> None:
        with self._transaction() as db:
            tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
            elif "meta" not in tables or "budgets" not in tables:
                raise LedgerError(f"{self.path} is a SQLite file, but not a kdray ledger; it was left as it is")
            row = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
            if row is None:
                raise LedgerError(f"{self.path} does not say which ledger schema it has; it was left as it is")
            version = row[0]
            if int(version) != SCHEMA_VERSION:
                raise LedgerError(
                    f"{self.path} has ledger schema {version}, this kdray reads {SCHEMA_VERSION}; "
                    "use the kdray that wrote it"
                )
            known = db.execute("SELECT cap FROM budgets WHERE purpose = 'training'").fetchone()
            if known and budget is not None and known[0] != budget:
                raise LedgerError(
                    f"{self.path} was made for a budget of {known[0]:,} queries, not {budget:,}; "
                    "use another ledger or run directory"
                )
            if budget is not None:
                db.execute("INSERT OR IGNORE INTO budgets (purpose, cap) VALUES ('training', ?)", (budget,))
            if evaluation is not None:
                db.execute(
                    "INSERT INTO budgets (purpose, cap) VALUES ('evaluation', ?) "
                    "ON CONFLICT (purpose) DO UPDATE SET cap = excluded.cap",
                    (evaluation,),
                )

    def close(self) -> None:
        """Close the file. Everything committed is already on disk."""
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def _transaction(self):
        """A write transaction: waits for other writers, rolls back on any error."""
        if self._db is None:
            raise LedgerError(f"the ledger {self.path} is closed")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite rolls back by itself on a full disk
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {self.path} cannot be written: {error}; nothing more was spent") from None

    def _read(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple]:
        """All rows of a query."""
        if self._db is None:
            raise LedgerError(f"the ledger {self.path} is closed")
        try:
            return self._db.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {self.path} cannot be read: {error}; it was left as it is") from None

    def lookup(self, teacher: str, hashes: Iterable[bytes]) -> dict[bytes, tuple[int, np.ndarray | None]]:
        """Answers already bought: hash -> (label, probs float32 [K] or None). Hashes without an answer are left out."""
        found: dict[bytes, tuple[int, np.ndarray | None]] = {}
        ids = self._read("SELECT id FROM teachers WHERE identity = ?", (teacher,))
        if not ids:
            return found
        wanted = list(dict.fromkeys(hashes))
        for start in range(0, len(wanted), _LOOKUP_BATCH):
            part = wanted[start : start + _LOOKUP_BATCH]
            marks = ",".join("?" * len(part))
            rows = self._read(
                f"SELECT hash, label, probs FROM answers WHERE teacher = ? AND hash IN ({marks})", (ids[0][0], *part)
            )
            for key, label, probs in rows:
                found[key] = (label, None if probs is None else np.frombuffer(probs, dtype="<f4"))
        return found

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
            metered: somebody may bill for them once they are sent.

        Raises:
            BudgetExceeded: fewer than `n` are left. Nothing was taken.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        with self._transaction() as db:
            taken = db.execute(
                "UPDATE budgets SET reserved = reserved + ? "
                "WHERE purpose = ? AND cap - reserved - answered - uncertain >= ?",
                (n, purpose, n),
            )
            if taken.rowcount != 1:
                left = self.remaining(purpose)
                raise BudgetExceeded(
                    f"{n:,} {purpose} queries wanted, {left:,} of the budget are left; nothing was asked"
                )
            db.execute("INSERT OR IGNORE INTO teachers (identity) VALUES (?)", (teacher,))
            reservation = Reservation(id=uuid.uuid4().hex, queries=n, teacher=teacher, purpose=purpose)
            db.execute(
                "INSERT INTO reservations "
                "VALUES (?, ?, (SELECT id FROM teachers WHERE identity = ?), ?, ?, ?, ?, 'reserved', ?)",
                (reservation.id, owner, teacher, purpose, round, n, int(metered), time.time()),
            )
        return reservation

    def commit(self, reservation: Reservation, hashes: Sequence[bytes], answers: Answers) -> None:
        """Store the answers to all queries of `reservation`: charged, and on disk when this returns.

        Committing the same reservation again changes nothing. An image that has an answer keeps its first one.

        Raises:
            LedgerError: the counts differ, or the reservation was released.
        """
        if not len(hashes) == len(answers) == reservation.queries:
            raise LedgerError(
                f"{len(hashes)} hashes and {len(answers)} answers for a reservation of {reservation.queries}"
            )
        with self._transaction() as db:
            if not self._settle(db, reservation.id, "answered"):
                return
            (teacher,) = db.execute("SELECT id FROM teachers WHERE identity = ?", (reservation.teacher,)).fetchone()
            labels = answers.labels.tolist()
            rows = (
                [None] * len(labels)
                if answers.probs is None
                else [r.astype("<f4").tobytes() for r in answers.probs.numpy()]
            )
            db.executemany(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)",
                (
                    (teacher, key, reservation.id, label, row)
                    for key, label, row in zip(hashes, labels, rows, strict=True)
                ),
            )

    def release(self, reservation: Reservation) -> None:
        """Give the queries of `reservation` back: they were never sent, or cannot have been billed."""
        with self._transaction() as db:
            self._settle(db, reservation.id, "released")

    def mark_uncertain(self, reservation: Reservation) -> None:
        """The queries were sent and no answer came. They count as charged."""
        with self._transaction() as db:
            self._settle(db, reservation.id, "uncertain")

    def recover(self, owner: str) -> tuple[int, int]:
        """Settle what a dead process of `owner` left reserved: metered queries become uncertain, others are given back.

        Returns:
            (uncertain, released) queries.
        """
        counts = [0, 0]
        with self._transaction() as db:
            left = db.execute(
                "SELECT id, queries, metered FROM reservations WHERE owner = ? AND state = 'reserved'", (owner,)
            ).fetchall()
            for key, queries, metered in left:
                self._settle(db, key, "uncertain" if metered else "released")
                counts[0 if metered else 1] += queries
        return counts[0], counts[1]

    def _settle(self, db: sqlite3.Connection, key: str, state: str) -> bool:
        """Move a reservation out of 'reserved', and its queries to their counter. False if it is there already."""
        row = db.execute("SELECT state, purpose, queries FROM reservations WHERE id = ?", (key,)).fetchone()
        if row is None or row[0] != "reserved":
            if row is not None and row[0] == state:
                return False
            raise LedgerError(f"reservation {key} is {row[0] if row else 'unknown'} and cannot become {state}")
        db.execute("UPDATE reservations SET state = ? WHERE id = ?", (state, key))
        extra = f", {state} = {state} + :n" if state in ("answered", "uncertain") else ""
        db.execute(f"UPDATE budgets SET reserved = reserved - :n{extra} WHERE purpose = :p", {"n": row[2], "p": row[1]})
        return True

    def spent(self, purpose: str = "training") -> int:
        """Queries charged: answered and uncertain."""
        return self._count("SELECT answered + uncertain FROM budgets WHERE purpose = ?", (purpose,))

    def uncertain(self, purpose: str = "training") -> int:
        """Queries charged whose answer never came."""
        return self._count("SELECT uncertain FROM budgets WHERE purpose = ?", (purpose,))

    def remaining(self, purpose: str = "training") -> int:
        """Queries that can still be reserved; 0 also where a cap was lowered below what is spent."""
        return max(
            0, self._count("SELECT cap - reserved - answered - uncertain FROM budgets WHERE purpose = ?", (purpose,))
        )

    def teachers(self) -> list[str]:
        """Identity of every teacher that was asked."""
        return [row[0] for row in self._read("SELECT identity FROM teachers ORDER BY id")]

    def spent_in_round(self, round: int, purpose: str = "training", owner: str = "") -> tuple[int, int]:
        """(answered, uncertain) queries `owner` was charged for in `round`, by whichever of its processes."""
        rows = self._read(
            "SELECT state, sum(queries) FROM reservations WHERE round = ? AND purpose = ? AND owner = ? GROUP BY state",
            (round, purpose, owner),
        )
        queries = dict(rows)
        return queries.get("answered", 0), queries.get("uncertain", 0)

    def _count(self, statement: str, parameters: Sequence[object]) -> int:
        rows = self._read(statement, parameters)
        return rows[0][0] if rows else 0


def to_answers(rows: Sequence[tuple[int, np.ndarray | None]], num_classes: int) -> Answers:
    """Rows of `Ledger.lookup` as one batch of answers."""
    labels = torch.tensor([label for label, _ in rows], dtype=torch.int64)
    soft = bool(rows) and rows[0][1] is not None
    probs = torch.from_numpy(np.stack([probs for _, probs in rows])) if soft else None
    return Answers(probs=probs, labels=labels, num_classes=num_classes)
