"""The run directory: where each artefact lies, written whole or not at all, and who may work in it."""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdray.config.money import LedgerSection
from kdray.errors import ConfigError, RunDirectoryError
from kdray.utils.files import expand, read_json, shown, why_unwritable, write_bytes, write_json

if TYPE_CHECKING:  # `kdray ledger` needs a run's paths, and neither torch nor pyarrow
    import numpy as np

    from kdray.runs.tables import Candidates, Labelled

PHASES = ("choose", "query", "train", "evaluate")
_ARTEFACTS = {
    "estimate": "estimate.json",
    "compare": "kind.json",
    "make": "pool.safetensors",
    "choose": "candidates.parquet",
    "query": "labelled.parquet",
    "train": "student.safetensors",
    "evaluate": "metrics.json",
}
_SAMPLE = "sample"
_LOOKS = 5  # at a lock that is taken


class RunDirectory:
    """RUN and the paths in it. See section 5 of the design.

    Args:
        path: of the folder.
        name: what commands call the run; default: its path.

    Raises:
        ConfigError: the path is an address.
    """

    def __init__(self, path: str | os.PathLike[str], name: str | None = None) -> None:
        self.path = expand(path).absolute()
        self.name = name or str(self.path)
        self.config = self.path / "config.yaml"
        self.student = self.path / "student.safetensors"
        self.labelled = self.path / "labelled"
        self.events = self.path / "events"
        self.report = self.path / "report.html"
        self.ledger = self.path / "ledger.sqlite"
        self.status = self.path / "status.json"
        self.log = self.path / "log.txt"
        self._lock: int | None = None

    def round(self, number: int) -> Path:
        """The folder of a round."""
        return self.path / "rounds" / f"{number:03d}"

    def artefact(self, number: int, phase: str) -> Path:
        """The file whose presence means that `phase` of a round is done."""
        return self.round(number) / _ARTEFACTS[phase]

    def training(self, number: int) -> Path:
        """The state of the training of a round, while it is under way."""
        return self.round(number) / "training.pt"

    def next_phase(self, rounds: int, before: Mapping[int, str] | None = None) -> tuple[int, str] | None:
        """The first (round, phase) without its artefact, of rounds 0..`rounds`; None when all are there.

        Args:
            before: the phase with which the round of a number begins: an estimate, a comparison, or the making of its
                candidates.
        """
        for number in range(rounds + 1):
            for phase in (*((before[number],) if before and number in before else ()), *PHASES):
                if not self.artefact(number, phase).exists():
                    return number, phase
        return None

    def is_complete(self, rounds: int | None) -> bool:
        """Whether the artefacts of all phases are there.

        Args:
            rounds: the last round, where the config says it; None: as the run recorded it in round 0.
        """
        if rounds is None:
            rounds = self.last_round()
        return rounds is not None and self.next_phase(rounds) is None

    def last_round(self) -> int | None:
        """The number of the last round, as the run recorded it in round 0; None before that."""
        schedule = self.phases(0).get("choose", {}).get("schedule")
        return len(schedule) - 1 if schedule else None

    def finished_rounds(self) -> list[int]:
        """Numbers of the rounds that have been evaluated, ascending."""
        return sorted(int(path.parent.name) for path in self.path.glob(f"rounds/*/{_ARTEFACTS['evaluate']}"))

    def asked_rounds(self) -> list[int]:
        """Numbers of the rounds whose answers are here, ascending."""
        return sorted(int(path.parent.name) for path in self.path.glob(f"rounds/*/{_ARTEFACTS['query']}"))

    def is_run(self) -> bool:
        """Whether kdray works or worked here: any folder may hold a config.yaml of its own."""
        return self.config.exists() and ((self.path / ".lock").exists() or self.ledger.exists())

    def has_begun(self) -> bool:
        """Whether a first phase is done: by then the ledger was opened, and knew the run."""
        return self.artefact(0, "choose").exists()

    def owner(self) -> str:
        """The run's name in a ledger. It is made once and kept in RUN/id, so a run that is moved keeps its account."""
        path = self.path / "id"
        if not path.exists():
            write_bytes(path, f"{shown(self.path.name)}-{uuid.uuid4().hex[:12]}\n".encode())
        return path.read_text(encoding="utf-8").strip()

    def ledger_of(self, section: LedgerSection) -> Path:
        """Where the run's ledger is: its own, or the shared one that the section names."""
        return Path(section.path) if section.path else self.ledger

    def check_writable(self) -> None:
        """Find out, without a trace, that nothing can be written here.

        Raises:
            RunDirectoryError: so it is.
        """
        if (reason := why_unwritable(self.path / ".lock")) is not None:
            raise RunDirectoryError(f"cannot work in {self.path}: {reason}; choose another --out")

    def lock(self) -> None:
        """Keep other processes out until this one ends, however it ends. Locking again changes nothing.

        Raises:
            RunDirectoryError: another process works here, or the directory cannot be made.
        """
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunDirectoryError(f"cannot work in {self.path}: {error.strerror}; choose another --out") from None
        if not _locks(handle):
            os.close(handle)
            raise RunDirectoryError(
                f"another kdray process is working in {self.path}; wait for it, or choose another --out"
            )
        self._lock = handle

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_candidates(self, number: int, candidates: Candidates) -> None:
        """rounds/NNN/candidates.parquet."""
        from kdray.runs import tables

        tables.write_candidates(self.artefact(number, "choose"), candidates)

    def read_candidates(self, number: int) -> Candidates:
        """What `write_candidates` wrote."""
        from kdray.runs import tables

        return tables.read_candidates(self.artefact(number, "choose"))

    def write_labelled(
        self,
        number: int,
        labelled: Labelled,
        classes: tuple[str, ...] | None,
        sample: bool = False,
        *,
        top: int | None = None,
    ) -> None:
        """rounds/NNN/labelled.parquet, and the same rows in labelled/.

        Args:
            top: see `kdray.runs.tables.write_labelled`.
            sample: they are of the sample for the round's estimate, which are kept beside: rounds/NNN/sample.parquet.
        """
        from kdray.runs import tables

        tables.write_labelled(self._rows(number, sample), labelled, classes, top=top)
        self.publish(number, sample)

    def read_labelled(self, number: int, num_classes: int, count: int | None = None, sample: bool = False) -> Labelled:
        """What `write_labelled` wrote, to the bit; of it the first `count` rows."""
        from kdray.runs import tables

        return tables.read_labelled(self._rows(number, sample), num_classes, count)

    def read_rows(self, number: int, num_classes: int, rows: np.ndarray, sample: bool = False) -> Labelled:
        """Some rows of what `write_labelled` wrote; see `kdray.runs.tables.read_rows`."""
        from kdray.runs import tables

        return tables.read_rows(self._rows(number, sample), num_classes, rows)

    def read_ids(self, number: int, sample: bool = False) -> np.ndarray:
        """The ids, int64 [N], of what was bought in a round; `sample`: by its estimate."""
        from kdray.runs import tables

        return tables.read_ids(self._rows(number, sample))

    def read_classes(self, number: int) -> tuple[str, ...]:
        """The teacher's classes, as `write_labelled` wrote them for a round; their numbers where they have no names."""
        from kdray.runs import tables

        return tables.read_classes(self.artefact(number, "query"))

    def count_labelled(self, number: int, sample: bool = False) -> int:
        """Number of rows that `write_labelled` wrote."""
        from kdray.runs import tables

        return tables.count_rows(self._rows(number, sample))

    def count_first(self, number: int) -> int:
        """Rows of a round about whose images no earlier one has asked; they come before those that it asked again."""
        return self.count_labelled(number) - int(self.phases(number).get("query", {}).get("again", 0))

    def _rows(self, number: int, sample: bool) -> Path:
        return self.round(number) / f"{_SAMPLE}.parquet" if sample else self.artefact(number, "query")

    def has_sample(self, number: int) -> bool:
        """Whether a round's estimate bought images to train on."""
        return self._rows(number, sample=True).exists()

    def publish(self, number: int, sample: bool = False) -> None:
        """Show a round's labelled images in labelled/ too: the same file where the file system can, else a copy. One of
        an earlier file of the round, which was damaged and written anew, is replaced."""
        target = self.labelled / (f"round-{number:03d}" + (f"-{_SAMPLE}" if sample else "") + ".parquet")
        source = self._rows(number, sample)
        if target.exists() and (target.samefile(source) or filecmp.cmp(source, target, shallow=False)):
            return
        self.labelled.mkdir(exist_ok=True)
        temporary = target.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, target)

    def add_phase(self, number: int, phase: str, facts: dict[str, Any]) -> None:
        """Keep facts about a phase (its seconds, its losses) in rounds/NNN/phases.json, before its artefact appears."""
        path = self.round(number) / "phases.json"
        write_json(path, self.phases(number) | {phase: facts})

    def phases(self, number: int) -> dict[str, dict[str, Any]]:
        """All facts kept by `add_phase` for a round."""
        path = self.round(number) / "phases.json"
        return read_json(path) if path.exists() else {}


def find_run(path: Path) -> RunDirectory | None:
    """The run whose directory, or whose folder of labelled images, is at `path`; None where it is a folder of parquet
    files that belong to no run.

    Raises:
        RunDirectoryError: it is neither.
    """
    path = path.absolute()
    for folder in (path, path.parent) if path.name == "labelled" else (path,):
        if (run := RunDirectory(folder)).is_run():
            return run
    if path.is_dir() and any(path.glob("*.parquet")):
        return None
    raise RunDirectoryError(
        f"{path} is neither a run directory nor a folder of labelled images; give RUN, RUN/labelled, or a folder that "
        "kdray ledger --merge wrote"
    )


def find_student(where: Path) -> tuple[RunDirectory | None, Path]:
    """The run at `where` and its newest student's file; or None and the model file that `where` is.

    Raises:
        ConfigError: there is neither.
        RunDirectoryError: the run has no student yet.
    """
    run = RunDirectory(where)
    if run.is_run():
        if not run.student.exists():
            raise RunDirectoryError(f"{run.path} has not finished a round yet; go on with: kdray resume {run.path}")
        return run, run.student
    if not where.is_file():
        what = "is a folder that holds no run" if where.is_dir() else "is not there"
        raise ConfigError(f"{where} {what}; give a run directory, or a model file of kdray's")
    return None, where.absolute()


def _locks(handle: int) -> bool:
    """Whether the lock can be taken. `kdray status` holds it for a moment to see whether it is free."""
    for _ in range(_LOOKS):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(0.01)
    return False


def runs_folder() -> Path:
    """KDRAY_RUNS if set; in a Ray job the home folder, since the job's own folder is deleted after it; else ./runs."""
    if os.environ.get("KDRAY_RUNS"):
        return expand(os.environ["KDRAY_RUNS"])
    if "working_dir_files" in Path.cwd().parts:
        return Path.home() / "kdray-runs"
    return Path("runs")
