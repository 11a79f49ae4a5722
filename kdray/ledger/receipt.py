"""The receipt of a ledger: queries by run, teacher, purpose and round; and the export of answers to parquet."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from kdray.errors import LedgerError
from kdray.ledger.records import NEVER_SENT
from kdray.ledger.store import Ledger

_EXPORT_ROWS = 10_000  # answers in memory at a time


@dataclass(kw_only=True)
class Line:
    """What one owner bought of one teacher, for one purpose, in one round. Queries are images.

    Attributes:
        owner: the run.
        teacher: its identity.
        purpose: training, evaluation, estimate.
        round: of the run.
        requests: sent, or on their way, refused ones included.
        answered: queries with an answer.
        rejected: queries with an answer that makes no sense; charged.
        uncertain: queries that were sent and never answered; charged.
        open: queries on their way now.
        returned: queries the teacher refused or that were never sent; not charged.
        retries: requests for images that had been asked for before.
        hits: images that cost nothing: their answer was there.
    """

    owner: str
    teacher: str
    purpose: str
    round: int
    requests: int = 0
    answered: int = 0
    rejected: int = 0
    uncertain: int = 0
    open: int = 0
    returned: int = 0
    retries: int = 0
    hits: int = 0

    @property
    def charged(self) -> int:
        """Queries that count against the budget."""
        return self.answered + self.rejected + self.uncertain


@dataclass(frozen=True, kw_only=True)
class Account:
    """A cap and what counts against it; owner "" is the whole file."""

    owner: str
    purpose: str
    cap: int | None
    charged: int
    open: int

    @property
    def left(self) -> int | None:
        """Queries below the cap."""
        return None if self.cap is None else max(0, self.cap - self.charged - self.open)


def lines(ledger: Ledger, owner: str | None = None) -> list[Line]:
    """All lines of the receipt, or those of one owner; by owner, purpose, round and teacher."""
    found: dict[tuple[Any, ...], Line] = {}
    for key_and_counts in ledger.read(
        "SELECT owner, identity, purpose, round, sum(reason IS NOT ?), "
        "sum(CASE state WHEN 'answered' THEN queries - rejected ELSE 0 END), sum(rejected), "
        "sum(CASE state WHEN 'uncertain' THEN queries ELSE 0 END), "
        "sum(CASE state WHEN 'reserved' THEN queries ELSE 0 END), "
        "sum(CASE state WHEN 'released' THEN queries ELSE 0 END), "
        "sum(attempt > 1 AND reason IS NOT ?) "
        "FROM reservations JOIN teachers ON teachers.id = teacher GROUP BY owner, identity, purpose, round",
        (NEVER_SENT, NEVER_SENT),
    ):
        names = [field.name for field in fields(Line)]
        found[key_and_counts[:4]] = Line(**dict(zip(names, key_and_counts, strict=False)))
    for *key, images in ledger.read(
        "SELECT owner, identity, purpose, round, images FROM hits JOIN teachers ON teachers.id = teacher "
        "WHERE images > 0"
    ):
        name, teacher, purpose, number = key
        line = found.setdefault(tuple(key), Line(owner=name, teacher=teacher, purpose=purpose, round=number))
        line.hits = images
    wanted = [line for line in found.values() if owner is None or line.owner == owner]
    # Training comes first: the budget is meant for it.
    return sorted(wanted, key=lambda x: (x.owner, x.purpose != "training", x.purpose, x.round, x.teacher))


def total(some: Sequence[Line]) -> Line:
    """The sum of some lines."""
    result = Line(owner="", teacher="", purpose="", round=0)
    for line in some:
        for name in (field.name for field in fields(Line) if field.default == 0):
            setattr(result, name, getattr(result, name) + getattr(line, name))
    return result


def accounts(ledger: Ledger, owner: str | None = None) -> list[Account]:
    """The accounts of the file: all of them, or that of `owner` and the file's own."""
    rows = ledger.read(
        "SELECT owner, purpose, cap, answered + rejected + uncertain, reserved FROM accounts "
        "ORDER BY owner, purpose != 'training', purpose"
    )
    found = [Account(owner=a, purpose=b, cap=c, charged=d, open=e) for a, b, c, d, e in rows]
    return [account for account in found if owner is None or account.owner in ("", owner)]


def reasons(ledger: Ledger, owner: str | None = None, most: int = 5) -> list[tuple[str, str, int]]:
    """Why queries had no answer: (state, reason, number of queries), the most frequent first."""
    where, parameters = ("", ()) if owner is None else ("AND owner = ?", (owner,))
    return ledger.read(
        "SELECT state, reason, queries FROM ("
        "SELECT state, reason, sum(queries) AS queries FROM reservations "
        f"WHERE reason IS NOT NULL {where} GROUP BY 1, 2 "
        "UNION ALL SELECT 'rejected', rejects.reason, count(*) FROM rejects "
        f"JOIN reservations ON reservations.id = reservation WHERE 1 {where} GROUP BY 2) "
        "ORDER BY queries DESC, state, reason LIMIT ?",
        (*parameters, *parameters, most),
    )


def export(ledger: Ledger, path: Path) -> int:
    """Write every answer of the ledger to a parquet file: teacher, hash, label, probs, owner, purpose, round, time.

    The file is written whole or not at all; an older export is replaced.

    Returns:
        The number of answers.

    Raises:
        LedgerError: the file cannot be written, or a file of that name is there that is no parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("teacher", pa.string()),
            ("hash", pa.string()),
            ("label", pa.int64()),
            ("probs", pa.list_(pa.float32())),
            ("owner", pa.string()),
            ("purpose", pa.string()),
            ("round", pa.int64()),
            ("time", pa.timestamp("us", tz="UTC")),
        ]
    )
    count, temporary = 0, path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not _is_parquet(path):
            raise LedgerError(f"{path} is there and is no parquet file; choose another name for the export")
        with open(temporary, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for rows in _answers(ledger):
                columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
                columns[3] = [None if cell is None else np.frombuffer(cell, "<f4") for cell in columns[3]]
                columns[7] = [datetime.fromtimestamp(cell, UTC) for cell in columns[7]]
                arrays = [pa.array(list(c), field.type) for c, field in zip(columns, schema, strict=True)]
                writer.write_table(pa.table(arrays, schema=schema))
                count += len(rows)
        os.replace(temporary, path)
    except OSError as error:
        raise LedgerError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
    return count


def _is_parquet(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PAR1"


def _answers(ledger: Ledger) -> Iterator[list[tuple[Any, ...]]]:
    """All answers, `_EXPORT_ROWS` at a time, in the order of their keys."""
    teacher, key = 0, b""
    while True:
        rows = ledger.read(
            "SELECT a.teacher, a.hash, t.identity, lower(hex(a.hash)), a.label, a.probs, r.owner, r.purpose, r.round, "
            "r.created FROM answers a JOIN teachers t ON t.id = a.teacher JOIN reservations r ON r.id = a.reservation "
            "WHERE (a.teacher, a.hash) > (?, ?) ORDER BY a.teacher, a.hash LIMIT ?",
            (teacher, key, _EXPORT_ROWS),
        )
        if not rows:
            return
        teacher, key = rows[-1][:2]
        yield [row[2:] for row in rows]
