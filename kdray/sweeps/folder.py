"""The folder of a sweep: its config, its ledger, and a folder for each trial with the runs of its seeds."""

import fcntl
import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdray.errors import RunDirectoryError
from kdray.observers.base import RoundMetrics
from kdray.runs.directory import RunDirectory, runs_folder
from kdray.sweeps.config import SweepConfig, load_sweep
from kdray.sweeps.results import State, Trial
from kdray.utils.files import expand, read_json, why_unwritable, write_bytes, write_json

_UNSAFE = re.compile(r"[^A-Za-z0-9._=+-]+")
_NAME = 48  # most characters of the readable part of a trial's name


def trial_name(values: Mapping[str, Any]) -> str:
    """The name of a trial's folder: its values, shortened, and a hash of them all. Equal values have equal names."""
    short = [f"{key.rpartition('.')[2]}={_shown(value)}" for key, value in values.items()]
    digest = hashlib.blake2b(json.dumps(values, sort_keys=True, default=str).encode(), digest_size=4).hexdigest()
    return f"{_UNSAFE.sub('_', ','.join(short))[:_NAME]}-{digest}"


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, before all else."""
    number = isinstance(value, int | float)
    return not number, value if number else 0.0, json.dumps(value, default=str)


def _shown(value: Any) -> str:
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class TrialFolder:
    """SWEEP/trials/NAME."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._about, self._state = path / "trial.json", path / "state.json"

    def begin(self, values: Mapping[str, Any], seeds: list[int]) -> None:
        """Make the folder, if it is not there. A trial that failed before its seeds were known gets them."""
        if not self._about.exists() or (seeds and not read_json(self._about)["seeds"]):
            write_json(self._about, {"values": dict(values), "seeds": seeds})

    @property
    def begun(self) -> bool:
        """Whether a process has started the trial."""
        return self._about.exists()

    def lock(self) -> int:
        """Wait until no other process works on this trial, then keep others out until the returned handle is closed.

        Optuna may propose the same values twice. The second trial then finds what the first one measured.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        return handle

    def run(self, seed: int) -> RunDirectory:
        """The run directory of a seed."""
        return RunDirectory(self.path / f"seed-{seed}")

    @property
    def log(self) -> Path:
        """What the runs of the trial told."""
        return self.path / "log.txt"

    @property
    def state(self) -> State:
        """How far the trial is."""
        state: State = read_json(self._state)["state"] if self._state.exists() else "waiting"
        return state

    @property
    def cause(self) -> tuple[str, str]:
        """Why the trial failed, and in which session of the sweep; empty if it did not."""
        told = read_json(self._state) if self._state.exists() else {}
        return told.get("cause", ""), told.get("session", "")

    def put_state(self, state: State, cause: str = "", session: str = "") -> None:
        """Record how far the trial is."""
        write_json(self._state, {"state": state} | ({"cause": cause, "session": session} if cause else {}))

    def fail(self, values: Mapping[str, Any], cause: str, session: str) -> None:
        """Record why the trial failed, also where it failed before it began; then it has no seeds yet."""
        self.begin(values, [])
        self.put_state("failed", cause, session)

    def read(self) -> Trial:
        """What the trial measured so far."""
        about = read_json(self._about)
        return Trial(
            name=self.path.name,
            values=about["values"],
            state=self.state,
            cause=self.cause[0],
            seeds=about["seeds"],
            histories=[read_history(self.run(seed)) for seed in about["seeds"]],
        )


def read_history(run: RunDirectory) -> list[RoundMetrics]:
    """Metrics of the finished rounds of a run, in order."""
    found: list[RoundMetrics] = []
    while (path := run.artefact(len(found), "evaluate")).exists():
        found.append(RoundMetrics(**read_json(path)))
    return found


class SweepFolder:
    """SWEEP and the paths in it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = expand(path).absolute()
        self.config = self.path / "sweep.yaml"
        self.ledger = self.path / "ledger.sqlite"
        self.best = self.path / "best.yaml"
        self.scheduler = self.path / "scheduler.pkl"
        self.tune = self.path / "tune"
        """The files of Ray Tune."""
        self.ended = self.path / "ended"
        """Is there once every trial has finished, was stopped or failed, until the sweep goes on."""
        self._lock: int | None = None

    def is_sweep(self) -> bool:
        """Whether a sweep works or worked here."""
        return self.config.exists() and (self.path / "id").exists()

    def identity(self) -> str:
        """The name of the sweep's ledger actor. It is made once, and moves with the folder."""
        path = self.path / "id"
        if not path.exists():
            write_bytes(path, f"sweep-{uuid.uuid4().hex[:16]}\n".encode())
        return path.read_text(encoding="utf-8").strip()

    def trial(self, values: Mapping[str, Any]) -> TrialFolder:
        """The folder of the trial with these values."""
        return TrialFolder(self.path / "trials" / trial_name(values))

    def trials(self) -> list[Trial]:
        """All trials that have begun, in the order of their values."""
        folder = self.path / "trials"
        entries = folder.iterdir() if folder.is_dir() else ()
        found = [TrialFolder(entry).read() for entry in entries if (entry / "trial.json").exists()]
        return sorted(found, key=lambda trial: [_order(value) for value in trial.values.values()])

    def read_config(self) -> SweepConfig:
        """The config of the sweep here.

        Raises:
            RunDirectoryError: there is none.
        """
        if not self.is_sweep():
            raise RunDirectoryError(f"{self.path} holds no sweep; start one with 'kdray sweep FILE --out {self.path}'")
        return load_sweep(self.config)

    def check_free(self) -> None:
        """Refuse a folder in which no new sweep can begin.

        Raises:
            RunDirectoryError: so it is.
        """
        if self.is_sweep():
            raise RunDirectoryError(
                f"{self.path} holds a sweep; go on with it: kdray sweep --resume {self.path}, or choose another --out"
            )
        if self.path.exists() and (
            not self.path.is_dir() or any(entry.name != ".lock" for entry in self.path.iterdir())
        ):
            raise RunDirectoryError(f"{self.path} is not an empty folder; choose another --out")
        if (reason := why_unwritable(self.path / ".lock")) is not None:
            raise RunDirectoryError(f"cannot work in {self.path}: {reason}; choose another --out")

    def lock(self) -> None:
        """Keep other sweeps out until this process ends.

        Raises:
            RunDirectoryError: another process works here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise RunDirectoryError(f"another kdray sweep is working in {self.path}; choose another --out") from None
        self._lock = handle

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def choose_folder(name: str) -> SweepFolder:
    """runs/NAME. It is refused if anything is there: a sweep is never overwritten, nor mixed with another."""
    return SweepFolder(runs_folder() / name)
