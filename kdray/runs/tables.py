"""Files of a round as parquet: what was chosen, and the images with their answers."""

import itertools
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from kdray.errors import RunDirectoryError
from kdray.images import ImageSet, decode_png, encode_png
from kdray.teachers.answers import Answers
from kdray.utils.files import openable, whole_file
from kdray.utils.memory import give_back_memory
from kdray.utils.stored import gathered, rows_in_a_part

_ROW_GROUP = 2048  # most rows of images encoded, or decoded, at a time; fewer where they are large


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
    columns: dict[str, list[Any]]
    search: dict[str, Any] = field(default_factory=dict)

    def about(self, ids: np.ndarray) -> list[dict[str, Any]]:
        """What is known of candidates, by their ids int64 [B]: their `columns`, and their `score` where they have one.
        Nothing is known of ids that are not among these."""
        columns = self.columns if self.scores is None else self.columns | {"score": self.scores.tolist()}
        rows = {key: row for row, key in enumerate(self.ids.tolist())}
        return [
            {name: values[rows[key]] for name, values in columns.items()} if key in rows else {} for key in ids.tolist()
        ]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images and the answers to them: what the user paid for.

    Attributes:
        images: uint8 [N, C, H, W].
        answers: N answers.
        ids: int64 [N]: image numbers or pool ids; -1 of an image that an earlier round had asked about already.
        source: of each image.
    """

    images: Tensor
    answers: Answers
    ids: np.ndarray
    source: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


def write_candidates(path: Path, candidates: Candidates) -> None:
    """What a round asks for: columns id, score and the pool's own."""
    columns: dict[str, Any] = {"id": candidates.ids}
    columns["score"] = (
        candidates.scores if candidates.scores is not None else pa.nulls(len(candidates.ids), pa.float32())
    )
    table = pa.table(columns | candidates.columns)
    metadata = {"source": candidates.source, "search": json.dumps(candidates.search)}
    _write_tables(path, [table.replace_schema_metadata(metadata)])


def read_candidates(path: Path) -> Candidates:
    """What `write_candidates` wrote.

    Raises:
        RunDirectoryError: the file cannot be read.
    """
    table = pa.concat_tables(_read_tables(path))
    scores = table.column("score")
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    return Candidates(
        ids=table.column("id").to_numpy().copy(),
        scores=None if scores.null_count == len(table) else scores.to_numpy(),
        source=metadata["source"],
        columns={name: table.column(name).to_pylist() for name in table.column_names if name not in ("id", "score")},
        search=json.loads(metadata["search"]),
    )


def write_labelled(path: Path, labelled: Labelled, classes: tuple[str, ...] | None, *, top: int | None = None) -> None:
    """Images and answers, Hugging Face style: columns image, probs, label, source, id.

    Args:
        top: k of the answers, or None where all classes are shown; it is kept beside the features.
    """
    names = list(classes) if classes else [str(k) for k in range(labelled.answers.num_classes)]
    features = {
        "image": {"_type": "Image"},
        "probs": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"},
        "label": {"names": names, "_type": "ClassLabel"},
        "source": {"dtype": "string", "_type": "Value"},
        "id": {"dtype": "int64", "_type": "Value"},
    }
    parts = (_labelled_rows(labelled, rows) for rows in _slices(labelled.images))
    _write_tables(path, (_with_features(part, features, top) for part in parts))
    give_back_memory()


def read_labelled(path: Path, num_classes: int, count: int | None = None) -> Labelled:
    """What `write_labelled` wrote, to the bit; of it the first `count` rows.

    Raises:
        RunDirectoryError: the file cannot be read.
    """
    total = count_rows(path)
    return read_rows(path, num_classes, np.arange(total if count is None else min(count, total)))


def read_rows(path: Path, num_classes: int, rows: np.ndarray) -> Labelled:
    """Some rows of what `write_labelled` wrote, to the bit. Only their images are decoded.

    Args:
        rows: row numbers int64 [M], ascending and distinct.

    Raises:
        RunDirectoryError: the file cannot be read.
    """
    if len(rows) == 0:  # a round that asks nothing
        nothing = Answers(probs=None, labels=torch.empty(0, dtype=torch.int64), num_classes=num_classes)
        empty = torch.empty(0, 0, 0, 0, dtype=torch.uint8)
        return Labelled(images=empty, answers=nothing, ids=np.empty(0, np.int64), source=())
    probs, labels, ids = [], [], []
    source: list[str] = []

    def images() -> Iterator[np.ndarray]:
        start = 0
        for group in _read_tables(path):
            wanted = rows[(rows >= start) & (rows < start + len(group))] - start
            start += len(group)
            if len(wanted):
                part = group.take(wanted)
                if part.column("probs").null_count == 0:
                    probs.append(torch.tensor(part.column("probs").to_pylist(), dtype=torch.float32))
                labels.append(torch.from_numpy(part.column("label").to_numpy().copy()))
                ids.append(part.column("id").to_numpy().copy())
                source.extend(part.column("source").to_pylist())
                yield np.stack([decode_png(cell["bytes"]) for cell in part.column("image").to_pylist()])
            if start > rows[-1]:
                return

    pixels = gathered(images(), len(rows))
    answers = Answers(probs=torch.cat(probs) if probs else None, labels=torch.cat(labels), num_classes=num_classes)
    return Labelled(images=pixels, answers=answers, ids=np.concatenate(ids), source=tuple(source))


def read_ids(path: Path) -> np.ndarray:
    """The ids, int64 [N], of what `write_labelled` wrote, without its images.

    Raises:
        RunDirectoryError: the file cannot be read.
    """
    with _opened(path) as file:
        ids: np.ndarray = file.read(columns=["id"]).column("id").to_numpy()
    return ids


def read_classes(path: Path) -> tuple[str, ...]:
    """Names of the classes in what `write_labelled` wrote; their numbers as text where they had no names.

    Raises:
        RunDirectoryError: the file cannot be read.
    """
    with _opened(path) as file:
        return tuple(json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]["label"]["names"])


def read_top(path: Path) -> int | None:
    """k of the answers in what `write_labelled` wrote, or None where all classes are shown.

    Raises:
        RunDirectoryError: the file cannot be read.
    """
    with _opened(path) as file:
        ours = json.loads(file.schema_arrow.metadata.get(b"kdray", b"{}"))
    return int(ours["top"]) if ours.get("top") else None


def write_image_set(path: Path, data: ImageSet) -> None:
    """An image set as Hugging Face style parquet, to the bit: for arrays a run was given from Python."""
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    if data.labels is not None:
        names = {"names": list(data.classes), "_type": "ClassLabel"} if data.classes else None
        features["label"] = names or {"dtype": "int64", "_type": "Value"}

    def part(rows: slice) -> pa.Table:
        columns = {"image": _image_column(data.images[rows])}
        if data.labels is not None:
            columns["label"] = pa.array(data.labels[rows].numpy())
        return _with_features(pa.table(columns), features)

    _write_tables(path, (part(rows) for rows in _slices(data.images)))


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


def _slices(images: Tensor) -> Iterator[slice]:
    """Row groups; one empty one for a table without rows."""
    step = min(_ROW_GROUP, rows_in_a_part(images.shape[1:])) if len(images) else 1
    return (slice(start, start + step) for start in range(0, max(len(images), 1), step))


def _image_column(images: Tensor) -> pa.Array:
    """uint8 [N, C, H, W] as a struct column of PNG bytes and an empty path."""
    cells = [{"bytes": encode_png(image), "path": None} for image in images.numpy()]
    return pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def _with_features(table: pa.Table, features: dict[str, Any], top: int | None = None) -> pa.Table:
    ours = {} if top is None else {"kdray": json.dumps({"top": top})}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})} | ours)


def _write_tables(path: Path, tables: Iterable[pa.Table]) -> None:
    """One parquet file of tables with one schema, at least one, a row group each: only one of them is in memory at a
    time."""
    rest = iter(tables)
    first = next(rest)
    with whole_file(path) as file, pq.ParquetWriter(file, first.schema, compression="zstd") as writer:
        for table in itertools.chain([first], rest):
            writer.write_table(table)


def count_rows(path: Path) -> int:
    """Number of rows of a parquet file; only its end is read.

    Raises:
        RunDirectoryError: the file cannot be read.
    """
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def _read_tables(path: Path) -> Iterator[pa.Table]:
    """The row groups of a parquet file, one at a time."""
    try:
        with _opened(path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)
    finally:
        give_back_memory()


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with openable(path) as name, pq.ParquetFile(name) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise RunDirectoryError(
            f"{path} cannot be read ({error}); move it away and resume: the ledger has the answers"
        ) from None
