"""The run directory: where each artefact lies, written whole or not at all, and who may work in it."""

import fcntl
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kdray.errors import RunDirectoryError
from kdray.files import read_json, write_bytes, write_json
from kdray.images import ImageSet, decode_png, encode_png
from kdray.memory import give_back_memory
from kdray.teachers.answers import Answers

PHASES = ("choose", "query", "train", "evaluate")
_ARTEFACTS = {
    "estimate": "estimate.json",
    "choose": "candidates.parquet",
    "query": "labelled.parquet",
    "train": "student.safetensors",
    "evaluate": "metrics.json",
}
_SAMPLE = "sample"
_ROW_GROUP = 2048  # rows of images encoded, or decoded, at a time


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What a round asks for, before anything is paid.

    Attributes:
        ids: int64 [k]: pool ids; in round 0 the numbers of the real images.
        scores: float32 [k], or None.
        source: "image" or the pool's kind.
        columns: more about each, as the pool describes it.
        search: what finding them took (`kdray.search.Found.facts`); empty where nothing was searched.
    """

    ids: np.ndarray
    scores: np.ndarray | None
    source: str
    columns: dict[str, list]
    search: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images and the answers to them: what the user paid for.

    Attributes:
        images: uint8 [N, C, H, W].
        answers: N answers.
        ids: int64 [N]: image numbers or pool ids.
        source: of each image.
    """

    images: Tensor
    answers: Answers
    ids: np.ndarray
    source: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


class RunDirectory:
    """RUN and the paths in it. See section 5 of the design."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path).absolute()
        self.config = self.path / "config.yaml"
        self.student = self.path / "student.safetensors"
        self.labelled = self.path / "labelled"
        self.events = self.path / "events"
        self.report = self.path / "report.html"
        self.ledger = self.path / "ledger.sqlite"
        self._lock: int | None = None

    def round(self, number: int) -> Path:
        """The folder of a round."""
        return self.path / "rounds" / f"{number:03d}"

    def artefact(self, number: int, phase: str) -> Path:
        """The file whose presence means that `phase` of a round is done."""
        return self.round(number) / _ARTEFACTS[phase]

    def next_phase(self, rounds: int, estimate: bool = False) -> tuple[int, str] | None:
        """The first (round, phase) without its artefact, of rounds 0..`rounds`; None when all are there.

        Args:
            estimate: round 1 begins with an estimate.
        """
        for number in range(rounds + 1):
            for phase in (*(("estimate",) if estimate and number == 1 else ()), *PHASES):
                if not self.artefact(number, phase).exists():
                    return number, phase
        return None

    def is_run(self) -> bool:
        """Whether kdray works or worked here: any folder may hold a config.yaml of its own."""
        return self.config.exists() and ((self.path / ".lock").exists() or self.ledger.exists())

    def owner(self) -> str:
        """The run's name in a ledger: made once, kept in RUN/id, so that a run that is moved keeps its account.

        Runs made before there was such a file are the only owner of their ledger, and have no name in it.
        """
        path = self.path / "id"
        if not path.exists():
            if self.ledger.exists():
                return ""
            write_bytes(path, f"{self.path.name}-{uuid.uuid4().hex[:12]}\n".encode())
        return path.read_text(encoding="utf-8").strip()

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
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise RunDirectoryError(
                f"another kdray process is working in {self.path}; wait for it, or choose another --out"
            ) from None
        self._lock = handle

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def write_candidates(self, number: int, candidates: Candidates) -> None:
        """rounds/NNN/candidates.parquet."""
        columns: dict[str, Any] = {"id": candidates.ids}
        columns["score"] = (
            candidates.scores if candidates.scores is not None else pa.nulls(len(candidates.ids), pa.float32())
        )
        table = pa.table(columns | candidates.columns)
        metadata = {"source": candidates.source, "search": json.dumps(candidates.search)}
        _write_tables(self.artefact(number, "choose"), [table.replace_schema_metadata(metadata)])

    def read_candidates(self, number: int) -> Candidates:
        """What `write_candidates` wrote."""
        table = pa.concat_tables(_read_tables(self.artefact(number, "choose")))
        scores = table.column("score")
        metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        return Candidates(
            ids=table.column("id").to_numpy().copy(),
            scores=None if scores.null_count == len(table) else scores.to_numpy(),
            source=metadata["source"],
            columns={
                name: table.column(name).to_pylist() for name in table.column_names if name not in ("id", "score")
            },
            search=json.loads(metadata.get("search", "{}")),
        )

    def write_labelled(
        self, number: int, labelled: Labelled, classes: tuple[str, ...] | None, sample: bool = False
    ) -> None:
        """rounds/NNN/labelled.parquet, and the same rows in labelled/.

        Args:
            sample: they are of the sample for the round's estimate, which are kept beside: rounds/NNN/sample.parquet.
        """
        names = list(classes) if classes else [str(k) for k in range(labelled.answers.num_classes)]
        features = {
            "image": {"_type": "Image"},
            "probs": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"},
            "label": {"names": names, "_type": "ClassLabel"},
            "source": {"dtype": "string", "_type": "Value"},
            "id": {"dtype": "int64", "_type": "Value"},
        }
        parts = (_labelled_rows(labelled, rows) for rows in _slices(len(labelled)))
        _write_tables(self._rows(number, sample), (_with_features(part, features) for part in parts))
        give_back_memory()
        self.publish(number, sample)

    def _rows(self, number: int, sample: bool) -> Path:
        return self.round(number) / f"{_SAMPLE}.parquet" if sample else self.artefact(number, "query")

    def has_sample(self, number: int) -> bool:
        """Whether a round's estimate bought images to train on."""
        return self._rows(number, sample=True).exists()

    def publish(self, number: int, sample: bool = False) -> None:
        """Show a round's labelled images in labelled/ too: the same file where the file system can, else a copy."""
        target = self.labelled / (f"round-{number:03d}" + (f"-{_SAMPLE}" if sample else "") + ".parquet")
        if target.exists():
            return
        self.labelled.mkdir(exist_ok=True)
        source = self._rows(number, sample)
        try:
            os.link(source, target)
        except FileExistsError:
            pass
        except OSError:
            temporary = target.with_suffix(".tmp")
            shutil.copyfile(source, temporary)
            os.replace(temporary, target)

    def read_labelled(self, number: int, num_classes: int, count: int | None = None, sample: bool = False) -> Labelled:
        """What `write_labelled` wrote, to the bit; of it the first `count` rows."""
        images, probs, labels, ids, source = [], [], [], [], []
        for group in _read_tables(self._rows(number, sample)):
            part = group if count is None else group.slice(0, count - len(source))
            if len(part) == 0:
                break
            cells = part.column("image").to_pylist()
            images.append(torch.from_numpy(np.stack([decode_png(cell["bytes"]) for cell in cells])))
            if part.column("probs").null_count == 0:
                probs.append(torch.tensor(part.column("probs").to_pylist(), dtype=torch.float32))
            labels.append(torch.from_numpy(part.column("label").to_numpy().copy()))
            ids.append(part.column("id").to_numpy().copy())
            source.extend(part.column("source").to_pylist())
        if not images:  # a round that asks nothing
            nothing = Answers(probs=None, labels=torch.empty(0, dtype=torch.int64), num_classes=num_classes)
            return Labelled(
                images=torch.empty(0, 0, 0, 0, dtype=torch.uint8), answers=nothing, ids=np.empty(0, np.int64), source=()
            )
        answers = Answers(probs=torch.cat(probs) if probs else None, labels=torch.cat(labels), num_classes=num_classes)
        return Labelled(images=torch.cat(images), answers=answers, ids=np.concatenate(ids), source=tuple(source))

    def add_phase(self, number: int, phase: str, facts: dict[str, Any]) -> None:
        """Keep facts about a phase (its seconds, its losses) in rounds/NNN/phases.json, before its artefact appears."""
        path = self.round(number) / "phases.json"
        write_json(path, self.phases(number) | {phase: facts})

    def phases(self, number: int) -> dict[str, dict[str, Any]]:
        """All facts kept by `add_phase` for a round."""
        path = self.round(number) / "phases.json"
        return read_json(path) if path.exists() else {}


def write_image_set(path: Path, data: ImageSet) -> None:
    """An image set as Hugging Face style parquet, to the bit: for arrays a run was given from Python."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if data.labels is not None:
        features["label"] = {"dtype": "int64", "_type": "Value"}

    def part(rows: slice) -> pa.Table:
        columns = {"image": _image_column(data.images[rows])}
        if data.labels is not None:
            columns["label"] = pa.array(data.labels[rows].numpy())
        return _with_features(pa.table(columns), features)

    _write_tables(path, (part(rows) for rows in _slices(len(data))))


def _labelled_rows(labelled: Labelled, rows: slice) -> pa.Table:
    probs, labels = labelled.answers.probs, labelled.answers.labels[rows]
    vectors = pa.list_(pa.float32())
    return pa.table(
        {
            "image": _image_column(labelled.images[rows]),
            "probs": pa.nulls(len(labels), vectors) if probs is None else pa.array(list(probs[rows].numpy()), vectors),
            "label": labels.numpy(),
            "source": list(labelled.source[rows]),
            "id": labelled.ids[rows],
        }
    )


def _slices(count: int) -> Iterator[slice]:
    """Row groups; one empty one for a table without rows."""
    return (slice(start, start + _ROW_GROUP) for start in range(0, max(count, 1), _ROW_GROUP))


def _image_column(images: Tensor) -> pa.Array:
    """uint8 [N, C, H, W] as a struct column of PNG bytes and an empty path."""
    cells = [{"bytes": encode_png(image), "path": None} for image in images.numpy()]
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _with_features(table: pa.Table, features: dict[str, Any]) -> pa.Table:
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def _write_tables(path: Path, tables: Iterable[pa.Table]) -> None:
    """One parquet file of tables with one schema, a row group each: only one of them is in memory at a time."""
    buffer, writer = io.BytesIO(), None
    for table in tables:
        writer = writer or pq.ParquetWriter(buffer, table.schema, compression="zstd")
        writer.write_table(table)
    writer.close()
    write_bytes(path, buffer.getbuffer())


def _read_tables(path: Path) -> Iterator[pa.Table]:
    """The row groups of a parquet file, one at a time."""
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
    except (pa.ArrowException, OSError) as error:
        raise RunDirectoryError(
            f"{path} cannot be read ({error}); move it away and resume: the ledger has the answers"
        ) from None
    finally:
        give_back_memory()
