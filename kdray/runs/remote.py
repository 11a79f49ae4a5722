"""A run at an address: it works in a folder of this machine, and its files are copied to the address.

The ledger is always on the disk of the machine; a consistent copy of it is put at the address after each phase, and
every half minute while the teacher is asked. The ledger is copied before the artefacts that follow from it, so a copy
that was cut off may hold answers that no artefact shows yet, but no artefact whose queries the ledger does not know.

    ADDRESS/push.json     the generation of the copy; a machine whose folder belongs to another one fetches all anew
    ADDRESS/owner.json    who works there, see `kdray.runs.ownership`
"""

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from kdray.config.money import LedgerSection, read_money
from kdray.errors import ConfigError, KdrayError, RunDirectoryError
from kdray.observers.base import Observer, RoundMetrics
from kdray.runs.directory import RunDirectory, runs_folder
from kdray.runs.ownership import OWNER, Ownership, Pace, read_owner
from kdray.runs.status import Status
from kdray.runs.storage import Storage
from kdray.utils.files import read_json, write_json

MANIFEST = "push.json"
_OURS = (MANIFEST, OWNER)
_TOGETHER = 8  # files that are copied at the same time


def read_status_at(address: str) -> Status:
    """The status of the run at an address. One that says running was killed if its machine gives no sign.

    Raises:
        ConfigError: this is no address.
        RunDirectoryError: there is no run, or it cannot be read.
    """
    storage = Storage(address)
    data = storage.read("status.json")
    if data is None:
        raise RunDirectoryError(f"{address} holds no run with a status")
    status = Status.parse(data, f"{address}/status.json")
    if status.state == "running":
        owner = read_owner(storage)
        if owner is None or time.time() - owner.time > 2 * Pace().patience:
            return replace(status, state="killed")
    return status


def work_folder(address: str) -> Path:
    """Where the run at an address is worked on."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", address.partition("?")[0].partition("://")[2])[-48:].strip("_")
    digest = hashlib.blake2b(address.encode(), digest_size=4).hexdigest()
    return runs_folder() / "remote" / f"{name}-{digest}"


def check_ledger(section: LedgerSection, address: str) -> None:
    """Refuse a ledger that is not the run's own: others would go on with the file, and this run with its copy.

    Raises:
        ConfigError: it is shared.
    """
    if section.path is not None:
        raise ConfigError(
            f"ledger.path: a run at an address ({address}) takes its own ledger along; leave ledger.path out, or give "
            "a local --out"
        )


@contextlib.contextmanager
def mirrored(address: str, observer: Observer, pace: Pace | None = None) -> Iterator[tuple[RunDirectory, "Mirror"]]:
    """The run at `address` in a folder of this machine, and the observer that copies it back. At the end of the block,
    however it ends, all is copied.

    Raises:
        ConfigError: this is no address.
        RunDirectoryError: it cannot be read or written, or another process works there.
    """
    where, mark, options = address.partition("?")
    address = where.rstrip("/") + mark + options
    storage, directory = Storage(address), RunDirectory(work_folder(address), name=address)
    pace = pace or Pace()
    ownership = Ownership(storage, pace, observer.note)
    mirror = Mirror(storage, directory, observer, ownership, pace.push)
    directory.lock()
    try:
        with ownership.held():
            mirror.pull()
            if directory.is_run():
                check_ledger(read_money(directory.config)[1], address)
            try:
                yield directory, mirror
            except BaseException:
                with contextlib.suppress(KdrayError):  # the first error is told; of this one a note tells
                    mirror.push()
                raise
            mirror.push(needed=True)
    finally:
        directory.unlock()


class Mirror(Observer):
    """Copies a run to its address, after each phase and while the teacher is asked. What cannot be copied is copied
    after the next phase; a note tells.

    Args:
        storage: the address.
        directory: the run on this machine.
        observer: for notes.
        ownership: of the address, which this process holds.
        every_s: seconds between two copies of the ledger while the teacher is asked.
    """

    def __init__(
        self, storage: Storage, directory: RunDirectory, observer: Observer, ownership: Ownership, every_s: float
    ) -> None:
        self._storage, self._directory, self._observer = storage, directory, observer
        self._ownership, self._every_s = ownership, every_s
        self._record = directory.path.with_name(directory.path.name + ".json")
        self._ledger = b""  # digest of the copy that is at the address
        self._pushed = time.monotonic()

    # From there to here

    def pull(self) -> None:
        """Make the folder of this machine the run at the address, unless it is that already, or further.

        Raises:
            RunDirectoryError: the files cannot be fetched, or are not those of a run.
        """
        files = self._storage.list()
        generation = self._generation()
        here, known = self._directory.is_run(), self._known()
        if here and known and (generation is None or generation in known):  # None: our first copy was cut off
            return
        there = {path: size for path, size in files.items() if path not in _OURS}
        if not there:
            return
        if "config.yaml" not in there:
            if all(path.partition("/")[0] in self._before_config() for path in there):
                return  # a copy that was cut off; nothing was paid by then
            raise RunDirectoryError(f"{self._storage.address} is not empty and holds no run; choose another --out")
        if here:
            self._set_aside()
        for end in ("-wal", "-shm"):  # of another ledger
            self._directory.ledger.with_name(self._directory.ledger.name + end).unlink(missing_ok=True)
        order = sorted(there, key=lambda path: path == "config.yaml")  # last: with it this is a run
        self._get(order[:-1])
        self._get(order[-1:])
        self._remember([generation], self._stamps())
        self._observer.note(f"fetched {len(order):,} files of {self._storage.address}")

    def _get(self, paths: list[str]) -> None:
        with ThreadPoolExecutor(_TOGETHER) as pool:
            list(pool.map(lambda path: self._storage.get(path, self._directory.path / path), paths))

    def _before_config(self) -> set[str]:
        directory = self._directory
        return {"id", *(path.name for path in (directory.ledger, directory.status, directory.log, directory.events))}

    def _generation(self) -> str | None:
        data = self._storage.read(MANIFEST)
        try:
            return None if data is None else str(json.loads(data)["generation"])
        except (ValueError, KeyError, TypeError):
            raise RunDirectoryError(f"{self._storage.address}/{MANIFEST} is damaged") from None

    def _set_aside(self) -> None:
        """The run in the folder is another one, or older than the one at the address."""
        old = self._directory.path.with_name(f"{self._directory.path.name}.{uuid.uuid4().hex[:6]}")
        self._directory.unlock()
        self._directory.path.rename(old)
        self._directory.lock()
        self._observer.note(
            f"{self._storage.address} was changed by another machine; this one's files are now in {old}"
        )

    # From here to there

    def push(self, *, needed: bool = False) -> None:
        """Copy what is new. What an artefact follows from is copied before it, and the status last.

        Args:
            needed: raise an error where it cannot be copied, do not note it alone.

        Raises:
            RunDirectoryError: another process has begun to work there; or see `needed`.
        """
        try:
            self._ownership.look()
            if not self._ownership.lost:
                self._push()
        except RunDirectoryError as error:
            told = f"{error}; all is kept in {self._directory.path}"
            if needed:
                raise RunDirectoryError(f"{told}; 'kdray resume {self._storage.address}' copies it") from None
            self._observer.note(f"{told} and copied after the next phase")
        self._pushed = time.monotonic()
        self._ownership.check()

    def _push(self) -> None:
        if not self._directory.config.exists():
            return
        # Artefacts are listed before the ledger is copied: all that they follow from is in the copy.
        now, before = self._stamps(), self._sent()
        changed = [path for path, stamp in now.items() if before.get(path) != list(stamp)]
        generation = uuid.uuid4().hex
        status, config = self._directory.status.name, self._directory.config.name
        self._remember([*self._known()[-1:], generation], before)
        self._push_ledger()
        self._put([path for path in changed if path not in (status, config)])
        self._put([path for path in changed if path == config])
        self._storage.put(MANIFEST, json.dumps({"generation": generation}).encode())
        self._put([path for path in changed if path == status])
        self._remember([generation], now)

    def _put(self, paths: list[str]) -> None:
        # In threads, which no Ctrl-C interrupts within a file.
        with ThreadPoolExecutor(_TOGETHER) as pool:
            list(pool.map(lambda path: self._storage.put(path, self._directory.path / path), paths))

    def _push_ledger(self) -> None:
        if not self._directory.ledger.exists():
            return
        with tempfile.TemporaryDirectory(prefix=".ledger-", dir=self._directory.path.parent) as folder:
            copy = Path(folder) / self._directory.ledger.name
            copy_ledger(self._directory.ledger, copy)
            with copy.open("rb") as file:
                digest = hashlib.file_digest(file, "blake2b").digest()
            if digest != self._ledger:
                self._storage.put(self._directory.ledger.name, copy)
                self._ledger = digest

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """Time and size of each file of the run that is copied as it is."""
        found = {}
        for folder, _, names in os.walk(self._directory.path):
            for name in names:
                path = Path(folder) / name
                local = name.endswith((".tmp", ".part")) or name == ".lock"
                if not local and not name.startswith(self._directory.ledger.name):
                    stat = path.stat()
                    found[path.relative_to(self._directory.path).as_posix()] = (stat.st_mtime_ns, stat.st_size)
        return found

    # What this machine knows of the address

    def _read_record(self) -> dict[str, Any]:
        data = read_json(self._record) if self._record.exists() else {}
        return data if self._directory.is_run() else {}

    def _known(self) -> list[str]:
        """Generations that the folder holds, or is ahead of."""
        return [str(key) for key in self._read_record().get("known", []) if key is not None]

    def _sent(self) -> dict[str, Any]:
        """`_stamps` of the files that are at the address."""
        sent: dict[str, Any] = self._read_record().get("files", {})
        return sent

    def _remember(self, known: list[str | None], files: dict[str, Any]) -> None:
        write_json(self._record, {"address": self._storage.address, "known": known, "files": files})

    # Events of the run

    def phase(self, round: int, name: str) -> None:
        self.push()

    def round_done(self, metrics: RoundMetrics) -> None:
        self.push()

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        self._ownership.check()
        if time.monotonic() - self._pushed < self._every_s:
            return
        try:
            self._push_ledger()
        except RunDirectoryError as error:
            self._observer.note(f"{error}; tried again after the next phase")
        self._pushed = time.monotonic()


def copy_ledger(source: Path, target: Path) -> None:
    """A consistent copy of an SQLite file that others may be writing.

    Raises:
        RunDirectoryError: it cannot be read.
    """
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as old,
            contextlib.closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
    except sqlite3.Error as error:
        raise RunDirectoryError(f"{source} cannot be copied: {error}") from None
