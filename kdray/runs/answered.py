"""The teacher's answers to given images, as far as they are there already: in a run's ledger, or in a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdray.config.root import Config
from kdray.errors import ConfigError
from kdray.ledger.records import hash_images
from kdray.ledger.store import Ledger
from kdray.observers import Observer
from kdray.runs.directory import RunDirectory
from kdray.teachers.answers import to_answers
from kdray.teachers.input import TeacherInput
from kdray.utils.files import shown


@dataclass(frozen=True, kw_only=True)
class Known:
    """Images that have an answer.

    Attributes:
        rows: their numbers, int64 [M], ascending.
        labels: the teacher's classes for them, int64 [M].
    """

    rows: Tensor
    labels: Tensor

    @classmethod
    def none(cls) -> "Known":
        """No image has one."""
        nothing = torch.empty(0, dtype=torch.int64)
        return cls(rows=nothing, labels=nothing)

    @classmethod
    def among(cls, hashes: Sequence[bytes], known: Mapping[bytes, tuple[int, Any]], num_classes: int) -> "Known":
        """Those whose hash is in `known`, hash -> (label, probs).

        Raises:
            TeacherError: an answer is none of so many classes.
        """
        rows = [row for row, key in enumerate(hashes) if key in known]
        answers = to_answers([known[hashes[row]] for row in rows], num_classes)
        return cls(rows=torch.tensor(rows, dtype=torch.int64), labels=answers.labels)


def answers_of_run(
    run: RunDirectory, config: Config, images: Tensor, num_classes: int, observer: Observer | None = None
) -> Known:
    """Answers that the run's ledger has, whoever paid for them.

    Args:
        images: uint8 [N, C, H, W], as the student sees them.
        observer: told if the ledger is not there.
    """
    path = run.ledger_of(config.ledger)
    if not path.exists():
        if observer is not None:
            observer.note(f"the run's ledger {shown(path)} is not there, so agreement with the teacher is not measured")
        return Known.none()
    ledger = Ledger(path, read_only=True)
    try:
        teachers = ledger.teachers(run.owner())  # one, as a run has one teacher
        hashes = config.teacher.input.hashes(images) if teachers else []
        known = ledger.lookup(teachers[0], hashes) if teachers else {}
    finally:
        ledger.close()
    return Known.among(hashes, known, num_classes)


def trained_on(run: RunDirectory, images: Tensor, num_classes: int) -> int:
    """How many of the images the run has bought, so that its student was trained on them.

    Args:
        images: uint8 [N, C, H, W], as the student sees them.
    """
    hashes, found = hash_images(images), set[bytes]()
    for number in run.asked_rounds():
        for sample in (False, True)[: 1 + run.has_sample(number)]:
            found.update(hash_images(run.read_labelled(number, num_classes, sample=sample).images))
    return sum(key in found for key in hashes)


def answers_of_file(path: Path, images: Tensor, seen: TeacherInput | None, num_classes: int) -> Known:
    """Answers in a ledger, or in the parquet file that `kdray ledger --export` has written.

    Args:
        images: uint8 [N, C, H, W], as the student sees them.
        seen: what the teacher sees of them; None: the same.

    Raises:
        ConfigError: there is no such file, or it has answers of several teachers or of none.
        LedgerError: it is no ledger.
    """
    if not path.is_file():
        raise ConfigError(f"--answers: {path} is no file; give a ledger, or what 'kdray ledger --export' has written")
    hashes = (seen or TeacherInput()).hashes(images)
    with open(path, "rb") as file:
        parquet = file.read(4) == b"PAR1"
    known = _exported(path, hashes) if parquet else _in_ledger(path, hashes)
    return Known.among(hashes, known, num_classes)


def _in_ledger(path: Path, hashes: Sequence[bytes]) -> Mapping[bytes, tuple[int, Any]]:
    ledger = Ledger(path, read_only=True)
    try:
        return ledger.lookup(_only(ledger.teachers(), path), hashes)
    finally:
        ledger.close()


def _exported(path: Path, hashes: Sequence[bytes]) -> Mapping[bytes, tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["teacher", "hash", "label"])
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"--answers: {path} is no export of a ledger ({error}); make one with: kdray ledger RUN --export FILE"
        ) from None
    _only(sorted(set(table["teacher"].to_pylist())), path)
    wanted = {key.hex(): key for key in hashes}
    pairs = zip(table["hash"].to_pylist(), table["label"].to_pylist(), strict=True)
    return {wanted[text]: (label, None) for text, label in pairs if text in wanted}


def _only(teachers: Sequence[str], path: Path) -> str:
    if len(teachers) != 1:
        what = f"answers of {len(teachers)} teachers ({', '.join(teachers[:3])})" if teachers else "no answers"
        raise ConfigError(f"--answers: {path} has {what}; give a file with those of one")
    return teachers[0]
