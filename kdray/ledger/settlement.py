"""Settling reservations: charges are moved and answers stored, in the caller's one transaction."""

import sqlite3

from kdray.errors import LedgerError
from kdray.ledger.grants import BOTH, accounts_of
from kdray.ledger.limits import day_of
from kdray.ledger.records import DIED, AnswerRows, Outcome


def check(outcome: Outcome) -> None:
    """Refuse an outcome whose counts contradict each other.

    Raises:
        LedgerError: hashes, answers and reserved queries are not equally many, or a bad row is none of the answers.
    """
    rows = 0
    if outcome.state == "answered":
        given = 0 if outcome.answers is None else len(outcome.answers)
        counts = len(outcome.hashes), given, outcome.reservation.queries
        if len(set(counts)) != 1:
            raise LedgerError(f"{counts[0]} hashes and {counts[1]} answers for a reservation of {counts[2]}")
        rows = counts[0]
    if outcome.declined and (outcome.state != "released" or len(outcome.hashes) != outcome.reservation.queries):
        raise LedgerError(
            f"{len(outcome.hashes)} declined images for a reservation of {outcome.reservation.queries} that is "
            f"{outcome.state}"
        )
    for row in outcome.bad:
        if not 0 <= row < rows:
            raise LedgerError(f"row {row} cannot be believed, but there are {rows} answers")


def settle(db: sqlite3.Connection, outcome: Outcome) -> None:
    """Charge or give back queries, and store answers. Nothing happens where it was settled in this way before, except
    that images are remembered as declined: that is known only later.

    Raises:
        LedgerError: it was settled in another way, or there is no such reservation.
    """
    key = outcome.reservation.id
    new = close(db, key, outcome.state, rejected=len(outcome.bad), reason=outcome.reason)
    if new and outcome.state == "answered" and outcome.answers is not None:
        _store(db, outcome, outcome.answers)
    if outcome.declined:
        db.executemany(
            "INSERT OR REPLACE INTO declined SELECT teacher, ?, id, ? FROM reservations WHERE id = ?",
            [(item, outcome.reason or "declined", key) for item in outcome.hashes],
        )


def _store(db: sqlite3.Connection, outcome: Outcome, answers: AnswerRows) -> None:
    (teacher,) = db.execute("SELECT teacher FROM reservations WHERE id = ?", (outcome.reservation.id,)).fetchone()
    key = outcome.reservation.id
    labels = answers.labels.tolist()
    rows: list[bytes | None] = [None] * len(labels)
    if answers.probs is not None:
        data, size = answers.probs.astype("<f4").tobytes(), 4 * answers.probs.shape[1]
        rows = [data[size * k : size * (k + 1)] for k in range(len(labels))]
    db.executemany(
        "INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?)",
        [(teacher, item, key, labels[k], rows[k]) for k, item in enumerate(outcome.hashes) if k not in outcome.bad],
    )
    db.executemany(
        "INSERT OR IGNORE INTO rejects VALUES (?, ?, ?, ?)",
        [(teacher, outcome.hashes[k], key, reason) for k, reason in outcome.bad.items()],
    )


def close(db: sqlite3.Connection, key: str, state: str, *, rejected: int = 0, reason: str | None = None) -> bool:
    """Move a reservation from 'reserved' to `state`, and its queries to the counters of that state.

    Args:
        key: of the reservation.
        rejected: how many of its answers are invalid.

    Returns:
        False where it is in that state already.

    Raises:
        LedgerError: it is in another state, or there is no such reservation.
    """
    row = db.execute(
        "SELECT state, purpose, queries, owner, teacher, created FROM reservations WHERE id = ?", (key,)
    ).fetchone()
    if row is None or row[0] != "reserved":
        if row is not None and row[0] == state:
            return False
        raise LedgerError(f"reservation {key} is {row[0] if row else 'unknown'} and cannot become {state}")
    _, purpose, queries, owner, teacher, created = row
    db.execute(
        "UPDATE reservations SET state = ?, rejected = ?, reason = ? WHERE id = ?", (state, rejected, reason, key)
    )
    if state == "uncertain":
        db.execute("INSERT INTO lost SELECT teacher, hash, reservation FROM claims WHERE reservation = ?", (key,))
    db.execute("DELETE FROM claims WHERE reservation = ?", (key,))
    db.execute(
        "UPDATE accounts SET reserved = reserved - ?, answered = answered + ?, rejected = rejected + ?, "
        f"uncertain = uncertain + ? WHERE {BOTH}",
        (
            queries,
            queries - rejected if state == "answered" else 0,
            rejected,
            queries if state == "uncertain" else 0,
            *accounts_of(purpose, owner),
        ),
    )
    if state == "released":
        db.execute(
            "UPDATE days SET queries = max(0, queries - ?) WHERE teacher = ? AND day = ?",
            (queries, teacher, day_of(created)),
        )
    return True


def recover(db: sqlite3.Connection, owner: str) -> tuple[int, int]:
    """See `kdray.ledger.store.Ledger.recover`."""
    counts = [0, 0]
    left = db.execute(
        "SELECT id, queries, metered FROM reservations WHERE owner = ? AND state = 'reserved'", (owner,)
    ).fetchall()
    for key, queries, metered in left:
        close(db, key, "uncertain" if metered else "released", reason=DIED)
        counts[0 if metered else 1] += queries
    return counts[0], counts[1]
