"""The ledger's tables, and how an older file is brought up to them.

A ledger holds answers somebody paid for, so no version of kdray may orphan one: a file of an older schema is brought
up to date in one transaction, a newer one is refused and left as it is.
"""

import sqlite3

from kdray.errors import LedgerError

SCHEMA_VERSION = 2
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
    PRIMARY KEY (teacher, hash)
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
CREATE TABLE hits (
    owner TEXT NOT NULL, teacher INTEGER NOT NULL REFERENCES teachers (id), purpose TEXT NOT NULL,
    round INTEGER NOT NULL, images INTEGER NOT NULL,
    PRIMARY KEY (owner, teacher, purpose, round)
)"""

_COUNTED = ("reserved", "answered", "uncertain")
# Schema 1 counted for the whole file alone, and knew no refused answers and no limits. Its answers are laid out as now.
_FROM_1 = (
    "ALTER TABLE reservations RENAME TO reservations_1",
    "ALTER TABLE answers RENAME TO answers_1",
    "ALTER TABLE teachers RENAME TO teachers_1",
    "ALTER TABLE meta RENAME TO meta_1",
    *_TABLES.split(";\n"),
    "INSERT INTO meta SELECT key, value FROM meta_1",
    "INSERT INTO accounts (owner, purpose, cap, reserved, answered, uncertain) "
    "SELECT '', purpose, cap, reserved, answered, uncertain FROM budgets",
    "INSERT INTO accounts (owner, purpose, reserved, answered, uncertain) SELECT owner, purpose, "
    + ", ".join(f"sum(CASE state WHEN '{state}' THEN queries ELSE 0 END)" for state in _COUNTED)
    + " FROM reservations_1 WHERE owner != '' GROUP BY owner, purpose",
    "INSERT INTO teachers (id, identity) SELECT id, identity FROM teachers_1",
    "INSERT INTO reservations (id, owner, teacher, purpose, round, queries, metered, state, created) "
    "SELECT id, owner, teacher, purpose, round, queries, metered, state, created FROM reservations_1",
    "INSERT INTO answers SELECT teacher, hash, reservation, label, probs FROM answers_1",
    "DROP TABLE answers_1",
    "DROP TABLE reservations_1",
    "DROP TABLE teachers_1",
    "DROP TABLE budgets",
    "DROP TABLE meta_1",
    "UPDATE meta SET value = '2' WHERE key = 'schema'",
)


def prepare(db: sqlite3.Connection, path: str) -> None:
    """Make the tables in an empty file, or bring those of an older one up to date. Runs in the caller's transaction,
    with foreign keys not yet enforced.

    Raises:
        LedgerError: not a ledger, or one of a newer schema. Nothing was changed.
    """
    tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        for statement in _TABLES.split(";\n"):
            db.execute(statement)
        db.execute("INSERT INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
        return
    if "meta" not in tables or not tables & {"accounts", "budgets"}:
        raise LedgerError(f"{path} is a SQLite file, but not a kdray ledger; it was left as it is")
    row = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    if row is None or not row[0].isdigit():
        raise LedgerError(f"{path} does not say which ledger schema it has; it was left as it is")
    version = int(row[0])
    if version == 1:
        for statement in _FROM_1:
            db.execute(statement)
    elif version != SCHEMA_VERSION:
        raise LedgerError(
            f"{path} has ledger schema {version}, this kdray reads up to {SCHEMA_VERSION}; use the kdray that wrote it"
        )
