"""Parquet files that hold images: what is in them, and their rows, of which a few are in memory at a time."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdray.errors import ImageSetError
from kdray.utils.files import shown

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

_BATCH = 64  # most rows that are read at a time
_BATCH_BYTES = 4 << 20  # and most bytes
_BUFFER = 1 << 20  # bytes that are read of a file at a time


@dataclass(frozen=True)
class Shard:
    """One parquet file.

    Attributes:
        file: its path.
        schema: of all its columns.
        groups: number of rows in each row group.
    """

    file: Path
    schema: pa.Schema
    groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.groups)


class Cells:
    """The images of some shards, read a few rows at a time: a set may be larger than memory.

    Rows in ascending order are the fastest, as each row group is read once.

    Args:
        shards: the files.
        starts: number of the first row of each, and of all rows.
        column: the column of images.
        field: the config field, for messages.
    """

    def __init__(self, *, shards: list[Shard], starts: np.ndarray, column: str, field: str) -> None:
        self._shards, self._starts, self._column, self._field = shards, starts, column, field
        self._ahead: Iterator[pa.Array] = iter(())
        self._group = (-1, -1)  # shard and row group that are being read
        self._held: pa.Array | None = None  # cells of that shard
        self._first = 0  # row of the first of them in the shard

    def where(self, row: int) -> str:
        """The place of a row in words."""
        number, at = self._place(row)
        return f"row {at} of {shown(self._shards[number].file)}"

    def decode(self, row: int) -> Image.Image:
        """The image of a row; its file beside the parquet where there are no bytes but a path.

        Raises:
            ValueError, OSError: the cell is empty, or there is no such file.
            ImageSetError: the parquet file is damaged there.
        """
        from PIL import Image

        number, at = self._place(row)
        cell = self._cell(number, at)
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is not None:
            return Image.open(io.BytesIO(data))
        if not path:
            raise ValueError("the cell is empty")
        place = self._shards[number].file.parent / path
        if not place.is_file():
            raise ValueError(f"it has no bytes but a path, and there is no file at {shown(place)}")
        return Image.open(place)

    def _place(self, row: int) -> tuple[int, int]:
        """Number of the shard, and row in it."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - int(self._starts[number])

    def _cell(self, number: int, at: int) -> Any:
        ends = np.cumsum(self._shards[number].groups)
        group = int(np.searchsorted(ends, at, side="right"))
        if self._group != (number, group) or at < self._first:
            self._group, self._held = (number, group), None
            self._first = int(ends[group]) - self._shards[number].groups[group]
            self._ahead = _batches(self._shards[number].file, group, self._column, self._field)
        while self._held is None or at >= self._first + len(self._held):
            self._first += 0 if self._held is None else len(self._held)
            self._held = next(self._ahead, None)
            if self._held is None:
                raise ValueError("its row group has fewer rows than the file says")
        return self._held[at - self._first].as_py()


def _batches(file: Path, group: int, column: str, field: str) -> Iterator[pa.Array]:
    """The cells of a column in a row group, some at a time. Arrow reads whole pages; it writes 1,024 cells to one.

    Raises:
        ImageSetError: they cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(file, "rb") as handle:  # Arrow takes no name that is not UTF-8
            # Without both options Arrow reads a whole row group at once.
            opened = pq.ParquetFile(handle, buffer_size=_BUFFER, pre_buffer=False)
            stated = opened.metadata.row_group(group)
            rows = min(_BATCH, max(1, _BATCH_BYTES * stated.num_rows // max(1, stated.total_byte_size)))
            for batch in opened.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False):
                yield batch.column(0)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, field, error) from None


def _open_file(file: Path, field: str, read: Any) -> Any:
    """What `read` gives of an opened parquet file.

    Raises:
        ImageSetError: it cannot be read.
    """
    import pyarrow as pa

    try:
        with open(file, "rb") as handle:  # Arrow takes no name that is not UTF-8
            return read(handle)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, field, error) from None


def _unreadable(file: Path, field: str, error: Exception) -> ImageSetError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ImageSetError(f"{field}.path: {shown(file)} is not a readable parquet file ({reason})")


def open_shard(file: Path, column: str, field: str) -> Shard:
    """One file; none of its rows is read yet.

    Raises:
        ImageSetError: the file has no such column, or one that holds no image files.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def described(handle: Any) -> tuple[pa.Schema, tuple[int, ...]]:
        opened = pq.ParquetFile(handle)
        groups = (opened.metadata.row_group(number) for number in range(opened.num_row_groups))
        return opened.schema_arrow, tuple(group.num_rows for group in groups)

    schema, groups = _open_file(file, field, described)
    if column not in schema.names:
        raise ImageSetError(f"{field}.path: {shown(file)} has no column {column!r}; its columns are {listed(schema)}")
    kind = column_type(schema, column, file, field, "image_column")
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    if pa.types.is_struct(kind):
        parts = [kind.field(k).name for k in range(kind.num_fields)]
        if not {"bytes", "path"} & set(parts):
            raise ImageSetError(
                f"{field}.path: column {column!r} of {shown(file)} has no field 'bytes' or 'path', but "
                + ", ".join(map(repr, parts))
            )
        if twice := [part for part in ("bytes", "path") if parts.count(part) > 1]:
            raise ImageSetError(
                f"{field}.path: column {column!r} of {shown(file)} has {parts.count(twice[0])} fields {twice[0]!r}, "
                "and it cannot be known which is meant; write the file anew with one of them"
            )
    elif not any(is_binary(kind) for is_binary in binary):
        held, advice = ("text", "download what it names, or name") if is_text(kind) else (kind, "name")
        raise ImageSetError(
            f"{field}.path: column {column!r} of {shown(file)} holds {held}, not the bytes of image files; {advice} "
            f"another column as {field}.image_column (its columns are {listed(schema)})"
        )
    return Shard(file, schema, groups)


def column_type(schema: pa.Schema, column: str, file: Path, field: str, option: str) -> pa.DataType:
    """The type of a column that a file has.

    Args:
        option: the field of the config that names such a column.

    Raises:
        ImageSetError: several columns have this name. Arrow reads all of them, and gives none by its name.
    """
    if (count := schema.names.count(column)) > 1:
        raise ImageSetError(
            f"{field}.path: {shown(file)} has {count} columns named {column!r}, and it cannot be known which is meant; "
            f"rename one of them, or name another column as {field}.{option} (its columns are {listed(schema)})"
        )
    return schema.field(column).type


def columns_of(file: Path, field: str) -> pa.Schema:
    """The schema of a file.

    Raises:
        ImageSetError: it cannot be read.
    """
    import pyarrow.parquet as pq

    return _open_file(file, field, pq.read_schema)


def read_column(file: Path, column: str, field: str) -> pa.ChunkedArray:
    """A whole column of small cells.

    Raises:
        ImageSetError: it cannot be read.
    """
    import pyarrow.parquet as pq

    # One thread and no read-ahead: the cells are small, and Arrow would keep its buffers for the whole run.
    table = _open_file(
        file, field, lambda handle: pq.read_table(handle, columns=[column], use_threads=False, pre_buffer=False)
    )
    return table.column(column)


def listed(schema: pa.Schema) -> str:
    """The names of all columns, for messages."""
    return ", ".join(repr(name) for name in schema.names)


def is_text(kind: pa.DataType) -> bool:
    """Whether a column holds text."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
