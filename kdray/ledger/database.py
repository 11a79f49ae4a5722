"""The SQLite file of a ledger: opened, written in transactions, read by many threads."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdray.errors import LedgerError
from kdray.ledger.schema import check, prepare

_TIMEOUT_S = 60.0  # for other writers


class LedgerFile:
    """Opens the SQLite file at `path`, and makes its tables where it is new.

    Args:
        path: the file; ":memory:" for one that is thrown away.
        set_up: called in the transaction that opens the file.
        read_only: only read, also where nothing can be written; `set_up` is not called.

    Raises:
        LedgerError: not a ledger, another schema, a file that cannot be written, or what `set_up` raises. The file is
            left as it was.
    """

    def __init__(
        self, path: str | Path, set_up: Callable[[sqlite3.Connection], None], *, read_only: bool = False
    ) -> None:
        self.path = str(path)
        self._turn = threading.RLock()  # SQLite keeps connections apart, not the threads that share one
        self._db: sqlite3.Connection | None = None
        try:
            if read_only:
                self._db = _open_to_read(Path(self.path))
                return
            self._db = sqlite3.connect(self.path, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            # Answers are stored in the order of their hashes, so each of a batch changes another page: keep many pages
            # in memory, and move them from the log (40 MB at most) to the file seldom.
            self._db.execute("PRAGMA cache_size = -16384")
            self._db.execute("PRAGMA wal_autocheckpoint = 10000")
            with self.transaction() as db:
                prepare(db, self.path)
                set_up(db)
            self._write_ahead(self._db)  # last: it changes the file, which until here may turn out to be no ledger
        except sqlite3.Error as error:
            self.close()
            full = " (is the disk full?)" if "disk" in str(error) else ""
            raise LedgerError(f"cannot use {self.path} as a ledger: {error}{full}; it was left as it is") from None
        except LedgerError:
            self.close()
            raise

    @staticmethod
    def _write_ahead(db: sqlite3.Connection) -> None:
        """Switch to write-ahead logging. SQLite's own waiting does not cover this while others open the file too."""
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def close(self) -> None:
        """Close the file. Everything settled is already on disk."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            raise LedgerError(f"the ledger {self.path} is closed")
        return self._db

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: waits for other writers, rolls back on any error.

        Raises:
            LedgerError: the file is closed, or cannot be written.
        """
        db = self._connection()
        try:
            with self._turn:
                try:  # BEGIN too: a Ctrl-C right after it must not leave it open
                    db.execute("BEGIN IMMEDIATE")
                    yield db
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:  # SQLite rolls back by itself on a full disk
                        db.execute("ROLLBACK")
                    raise
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {self.path} cannot be written: {error}; nothing more was spent") from None

    def read(self, statement: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query; see `kdray.ledger.schema` for the tables.

        Raises:
            LedgerError: the file is closed, or cannot be read.
        """
        db = self._connection()
        try:
            with self._turn:
                return db.execute(statement, parameters).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"the ledger {self.path} cannot be read: {error}; it was left as it is") from None


def _open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing.

    A file with write-ahead logging can be read only where files may be made beside it, unless SQLite is told that it
    never changes. That holds where nothing can be written, and no log with answers lies beside it.

    Raises:
        LedgerError: no ledger of this schema.
        sqlite3.Error: the file cannot be read.
    """
    if not path.is_file():
        raise LedgerError(f"there is no ledger at {path}")
    address = path.absolute().as_uri()
    db = _connect(f"{address}?mode=rw")
    try:
        check(db, str(path))
    except sqlite3.OperationalError as error:
        db.close()
        log = path.with_name(f"{path.name}-wal")
        unwritable = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if error.sqlite_errorcode & 0xFF not in unwritable or (log.exists() and log.stat().st_size):
            raise
        db = _connect(f"{address}?immutable=1")
        check(db, str(path))
    return db


def _connect(address: str) -> sqlite3.Connection:
    db = sqlite3.connect(address, uri=True, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA query_only = ON")
    return db
