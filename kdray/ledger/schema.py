"""The ledger's tables. A file of another schema is refused and left as it is."""

import sqlite3

from kdray.errors import LedgerError

SCHEMA_VERSION = 3
_STATES = "'reserved', 'answered', 'released', 'uncertain'"
_TABLES = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE accounts (
    owner TEXT NOT NULL, purpose TEXT NOT NULL, cap INTEGER,
    reserved INTEGER NOT NULL DEFAULT 0, answered INTEGER NOT NULL DEFAULT 0,
    uncertain INTEGER NOT NULL DEFAULT 0, rejected INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (owner, purpose),
    CHECK (reserved >= 0 AND answered >= 0 AND uncertain >= 0 AND rejected >= 0)
);
CREATE TABLE teachers (id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE, rests_until REAL NOT NULL DEFAULT 0);
CREATE TABLE buckets (
    teacher INTEGER NOT NULL REFERENCES teachers (id), name TEXT NOT NULL, level REAL NOT NULL, since REAL NOT NULL,
    PRIMARY KEY (teacher, name)
);
CREATE TABLE days (
    teacher INTEGER NOT NULL REFERENCES teachers (id), day TEXT NOT NULL, queries INTEGER NOT NULL,
    PRIMARY KEY (teacher, day)
);
CREATE TABLE reservations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, teacher INTEGER NOT NULL REFERENCES teachers (id), purpose TEXT NOT NULL,
    round INTEGER NOT NULL, queries INTEGER NOT NULL, rejected INTEGER NOT NULL DEFAULT 0, metered INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 1, state TEXT NOT NULL CHECK (state IN ({_STATES})), reason TEXT,
    created REAL NOT NULL, expires REAL NOT NULL DEFAULT 0, request TEXT NOT NULL DEFAULT ''
);
CREATE INDEX reservations_requests ON reservations (request) WHERE state = 'reserved';
CREATE INDEX reservations_open ON reservations (teacher, expires) WHERE state = 'reserved';
CREATE INDEX reservations_rounds ON reservations (owner, purpose, round);
CREATE TABLE claims (
    teacher INTEGER NOT NULL, hash BLOB NOT NULL, reservation TEXT NOT NULL, expires REAL NOT NULL,
    PRIMARY KEY (teacher, hash, reservation)
) WITHOUT ROWID;
CREATE INDEX claims_reservations ON claims (reservation);
CREATE TABLE answers (
    teacher INTEGER NOT NULL REFERENCES teachers (id), hash BLOB NOT NULL,
    reservation TEXT NOT NULL REFERENCES reservations (id), label INTEGER NOT NULL, probs BLOB,
    PRIMARY KEY (teacher, hash)
) WITHOUT ROWID;
CREATE TABLE rejects (
    teacher INTEGER NOT NULL REFERENCES teachers (id), hash BLOB NOT NULL,
    reservation TEXT NOT NULL REFERENCES reservations (id), reason TEXT NOT NULL,
    PRIMARY KEY (teacher, hash, reservation)
) WITHOUT ROWID;
CREATE TABLE lost (
    teacher INTEGER NOT NULL REFERENCES teachers (id), hash BLOB NOT NULL,
    reservation TEXT NOT NULL REFERENCES reservations (id),
    PRIMARY KEY (teacher, hash, reservation)
) WITHOUT ROWID;
CREATE TABLE declined (
    teacher INTEGER NOT NULL REFERENCES teachers (id), hash BLOB NOT NULL,
    reservation TEXT NOT NULL REFERENCES reservations (id), reason TEXT NOT NULL,
    PRIMARY KEY (teacher, hash)
) WITHOUT ROWID;
CREATE TABLE hits (
    owner TEXT NOT NULL, teacher INTEGER NOT NULL REFERENCES teachers (id), purpose TEXT NOT NULL,
    round INTEGER NOT NULL, images INTEGER NOT NULL,
    PRIMARY KEY (owner, teacher, purpose, round)
)"""


def prepare(db: sqlite3.Connection, path: str) -> None:
    """Make the tables in an empty file. Runs in the caller's transaction.

    Raises:
        LedgerError: not a ledger, or one of another schema. Nothing was changed.
    """
    if not _tables(db):
        for statement in _TABLES.split(";\n"):
            db.execute(statement)
        db.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
    check(db, path)


def _tables(db: sqlite3.Connection) -> set[str]:
    return {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def check(db: sqlite3.Connection, path: str) -> None:
    """Refuse a file that is no ledger of this schema. Writes nothing.

    Raises:
        LedgerError: not a ledger, or one of another schema.
    """
    if "meta" not in _tables(db):
        raise LedgerError(f"{path} is a SQLite file, but not a kdray ledger; it was left as it is")
    row = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    if row is None or not row[0].isdigit():
        raise LedgerError(f"{path} does not say which ledger schema it has; it was left as it is")
    if int(row[0]) != SCHEMA_VERSION:
        raise LedgerError(
            f"{path} has ledger schema {row[0]}, this kdray reads {SCHEMA_VERSION}; use the kdray that wrote it"
        )
