"""RUN/status.json: how far a run is, and how it ended. It is written at the start, after each phase, and last of all.

The exit code of `ray job submit` is wrong where the stream of its log breaks. This file says how the run ended, and
`kdray status` reads it without torch or Ray.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from kdray.errors import KdrayError, RunDirectoryError
from kdray.observers.base import Observer, RoundMetrics
from kdray.observers.log import LogFile
from kdray.runs.directory import RunDirectory
from kdray.utils.files import shown, write_json

State = Literal["running", "finished", "failed", "stopped", "killed"]
_EVERY_S = 10.0  # least time between two writes within one phase


@dataclass(frozen=True, kw_only=True)
class Status:
    """What RUN/status.json holds.

    Attributes:
        state: running; finished; failed, see `cause`; stopped by Ctrl-C or SIGTERM. `read_status` also gives killed:
            the file says running, and no process works there.
        cause: the message of the error that ended the run; else empty.
        exit_code: of the command; None while it runs.
        round, phase: where the run is; None and "prepare" before the first phase.
        rounds: number of the last round.
        queries: charged to `budget` so far, for training and for the estimate of m.
        budget: the most that may be charged.
        evaluation_queries: charged for measuring.
        student_accuracy, agreement, relative_entropy: after the last finished round, see
            `kdray.observers.base.RoundMetrics`; or None.
        started: when this process began to work on the run, UTC.
        updated: when the file was written, UTC.
        host, pid: of this process.
    """

    state: State = "running"
    cause: str = ""
    exit_code: int | None = None
    round: int | None = None
    rounds: int | None = None
    phase: str = "prepare"
    queries: int = 0
    budget: int = 0
    evaluation_queries: int = 0
    student_accuracy: float | None = None
    agreement: float | None = None
    relative_entropy: float | None = None
    started: str = ""
    updated: str = ""
    host: str = ""
    pid: int = 0

    @classmethod
    def read(cls, path: Path) -> Status:
        """The file at `path`; see `parse`."""
        try:
            return cls.parse(path.read_bytes(), shown(path))
        except OSError as error:
            raise RunDirectoryError(f"{shown(path)} cannot be read: {error.strerror}") from None

    @classmethod
    def parse(cls, text: bytes, origin: str) -> Status:
        """What the file holds.

        Raises:
            RunDirectoryError: it is damaged.
        """
        known = {field.name for field in fields(cls)}
        try:
            data = json.loads(text)
        except ValueError:
            data = None
        if not isinstance(data, dict) or "state" not in data:
            raise RunDirectoryError(f"{origin} is not the status of a run")
        return cls(**{name: value for name, value in data.items() if name in known})


class Record(Observer):
    """Keeps status.json and log.txt of a run. Nothing is written before `open`; a file that cannot be written does not
    end the run."""

    def __init__(self) -> None:
        self.log = LogFile()
        self._status = Status(started=_now(), host=socket.gethostname(), pid=os.getpid())
        self._path: Path | None = None
        self._written = 0.0
        self._spent: Callable[[], tuple[int, int]] | None = None

    def open(self, directory: RunDirectory) -> None:
        """Begin to write, in a directory that is locked."""
        self._path = directory.status
        self.log.open(directory.log)
        self._write()

    def watch(self, spent: Callable[[], tuple[int, int]] | None) -> None:
        """Ask the ledger before each write: `spent` gives the queries charged to the budget, and for evaluation. None:
        the ledger is being closed."""
        self._write()
        self._spent = spent

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """Records the error that leaves this block. The first one counts: what fails after it fails because of it."""
        try:
            yield
        except BaseException as error:
            if self._status.state == "running":
                state, code, cause = _ended_by(error)
                if code == 1:
                    self.log.note("".join(traceback.format_exception(error)).rstrip())
                self.end(state, code, cause)
            raise

    def end(self, state: State, exit_code: int, cause: str = "") -> None:
        """Record how the run ended."""
        self._status = replace(self._status, state=state, exit_code=exit_code, cause=cause)
        self._save()  # at once: the ledger may be what does not answer
        self._write()
        self.log.note(f"{state}: {cause}" if cause else state)

    def begin(self, *, rounds: int, budget: int, spent: int, title: str) -> None:
        self.log.begin(rounds=rounds, budget=budget, spent=spent, title=title)
        self._set(rounds=rounds, budget=budget, queries=spent)

    def phase(self, round: int, name: str) -> None:
        self.log.phase(round, name)
        self._set(round=round, phase=name)

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        self.log.progress(done, total, spent=spent)
        if time.monotonic() - self._written >= _EVERY_S:
            self._write()

    def round_done(self, metrics: RoundMetrics) -> None:
        self.log.round_done(metrics)
        self.measured(metrics)

    def measured(self, metrics: RoundMetrics) -> None:
        """Metrics of the last finished round."""
        self._set(
            student_accuracy=metrics.student_accuracy,
            agreement=metrics.agreement,
            relative_entropy=metrics.relative_entropy,
        )

    def note(self, text: str) -> None:
        self.log.note(text)

    def _set(self, **changes: object) -> None:
        self._status = replace(self._status, **changes)  # type: ignore[arg-type]
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        if self._spent is not None:
            with contextlib.suppress(Exception):  # the ledger's actor may be what failed
                queries, evaluation = self._spent()
                self._status = replace(self._status, queries=queries, evaluation_queries=evaluation)
        self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        self._status = replace(self._status, updated=_now())
        with contextlib.suppress(OSError):
            write_json(self._path, asdict(self._status))
        self._written = time.monotonic()


def complete(directory: RunDirectory) -> None:
    """Say that a run is finished whose process died after its last round, if nobody works there."""
    try:
        if Status.read(directory.status).state == "finished":
            return
        directory.lock()
    except (RunDirectoryError, OSError):
        return
    try:
        status = replace(Status.read(directory.status), state="finished", exit_code=0, cause="", updated=_now())
        with contextlib.suppress(OSError):
            write_json(directory.status, asdict(status))
    finally:
        directory.unlock()


def read_status(directory: RunDirectory) -> Status:
    """The status of a run. One that says running although no process of this host works there was killed.

    Raises:
        RunDirectoryError: there is no run, or its status cannot be read.
    """
    if not directory.status.exists():
        raise RunDirectoryError(f"{directory.path} holds no run with a status")
    status = Status.read(directory.status)
    here = status.host == socket.gethostname()
    if status.state == "running" and here and not is_locked(directory.path / ".lock"):
        # It may have ended between the two looks.
        status = Status.read(directory.status)
        if status.state == "running":
            return replace(status, state="killed")
    return status


def is_locked(path: Path) -> bool:
    """Whether a process of this host holds the lock of a run directory or a sweep."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def _ended_by(error: BaseException) -> tuple[State, int, str]:
    """State, exit code and cause, as the command line makes them of an error."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130, ""
    if isinstance(error, GeneratorExit | SystemExit):  # whoever took the steps takes no more
        return "stopped", 1, ""
    if isinstance(error, KdrayError):
        return "failed", 2, str(error)
    return "failed", 1, f"{type(error).__name__}: {error}"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
