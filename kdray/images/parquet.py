"""Images in parquet files, as Hugging Face's data sets store them."""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from kdray.errors import ImageSetError
from kdray.images.base import ImageRows, ImageSource, as_int64, in_order, sources
from kdray.images.shards import Cells, Shard, column_type, columns_of, is_text, listed, open_shard, read_column
from kdray.images.splits import missing_shards, split_of
from kdray.utils.files import shown

if TYPE_CHECKING:
    import pyarrow as pa

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMN = "label"


@sources.register
class ParquetImages(ImageSource):
    """Hugging Face style parquet: a struct column with the bytes of image files, and a column of labels."""

    path_fields: ClassVar[tuple[str, ...]] = ("path",)

    source: Literal["parquet"] = "parquet"
    path: str
    """A parquet file, a folder of them, or a pattern such as data/train-*.parquet."""
    split: str | None = None
    """Which files of a folder: train, test, validation, or what stands before the number of a shard; all reads them
    together. null is for files of one split."""
    image_column: str | None = None
    """The column of images; null: image or img."""
    label_column: str | None = None
    """The column of labels, whole numbers or names; null: label."""

    def open(self, field: str) -> ImageRows:
        """See `ImageSource.open`. Labels are read when they are asked for, from the files that hold the wanted rows.

        A struct column must have a field `bytes` or `path`; a plain column of bytes is read too.
        """
        files, notes = self._files(field)
        column = self.image_column or _image_column(columns_of(files[0], field), files[0], field)
        shards = [open_shard(file, column, field) for file in files]
        starts = np.cumsum([0] + [shard.rows for shard in shards])
        labels = _Labels(shards=shards, starts=starts, wanted=self.label_column, field=field)
        cells = Cells(shards=shards, starts=starts, column=column, field=field)
        return ImageRows(
            name=shown(self.path),
            rows=int(starts[-1]),
            decode=cells.decode,
            where=cells.where,
            labels=labels.read if labels.are_there() else None,
            no_labels=f"its columns are {listed(shards[0].schema)}; name one as {field}.label_column",
            classes=labels.classes,
            notes=notes,
            listing=lambda: (f"{shard.file.name} {shard.rows} {shard.file.stat().st_size}" for shard in shards),
        )

    def _files(self, field: str) -> tuple[list[Path], tuple[str, ...]]:
        """The parquet files that the section names, at least one, and what to say about them.

        Raises:
            ImageSetError: there are none, or files of several splits of which none is named.
        """
        path, name = Path(self.path), shown(self.path)
        notes: list[str] = []
        if path.is_dir():
            files = [file for file in path.glob("*.parquet") if not file.name.startswith(".")]
            below = len([file for file in path.glob("**/*.parquet") if not file.name.startswith(".")]) - len(files)
            if below and files:
                notes.append(f"{below:,} parquet files in folders below {name} were left out")
        else:
            files = (
                [path] if path.is_file() else [Path(found) for found in glob.glob(self.path) if Path(found).is_file()]
            )
            below = 0
        if not files:
            hint = f"; the {below:,} below it lie in folders of their own: name one" if below else ""
            raise ImageSetError(f"{field}.path: no parquet file at {name}{hint}")
        splits = {file: split_of(shown(file.stem)) for file in files}
        named = sorted({split for split in splits.values() if split is not None})
        if self.split is None and len(named) > 1:
            raise ImageSetError(
                f"{field}.path: {name} holds files of several splits, {', '.join(named)}; name one as {field}.split, "
                "or set it to all to read them together"
            )
        if self.split not in (None, "all"):
            files = [file for file in files if splits[file] is not None and splits[file] in _names_of(self.split)]
            if not files:
                held = f"its files are of {', '.join(named)}" if named else "the names of its files say no split"
                raise ImageSetError(f"{field}.split: no file of {self.split} at {name}; {held}")
        notes += [f"only {missing} are at {name}" for missing in missing_shards([shown(file.stem) for file in files])]
        return sorted(files), tuple(notes)


def _names_of(split: str | None) -> set[str | None]:
    """A split as the user calls it, and as `split_of` does."""
    return {split, split_of(split) if split else None}


def _image_column(schema: pa.Schema, file: Path, field: str) -> str:
    column = next((name for name in _IMAGE_COLUMNS if name in schema.names), None)
    if column is None:
        raise ImageSetError(
            f"{field}.path: {shown(file)} has no image column; expected 'image' or 'img', found {listed(schema)}; "
            f"name it as {field}.image_column"
        )
    return column


@dataclass(kw_only=True)
class _Labels:
    """The labels of some shards, read when they are wanted.

    Attributes:
        shards: the files.
        starts: number of the first row of each, and of all rows.
        wanted: the column the config names, or None.
        field: the config field, for messages.
    """

    shards: list[Shard]
    starts: np.ndarray
    wanted: str | None
    field: str

    def are_there(self) -> bool:
        """Whether a shard has a column of labels, or the config names one."""
        import pyarrow as pa

        found = [column for shard in self.shards for column in shard.schema if column.name == _LABEL_COLUMN]
        return self.wanted is not None or any(not pa.types.is_null(column.type) for column in found)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """The labels of rows in ascending order, int64 [M].

        Raises:
            ImageSetError: a shard with some of the rows has no such column, no label for one of them, or a label that
                is neither a whole number of int64 nor a name; or shards that differ in this or in the names of classes.
        """
        found, names = [], self.classes()
        for shard, start, stop in zip(self.shards, self.starts, self.starts[1:], strict=False):
            mine = rows[(rows >= start) & (rows < stop)] - start
            if len(mine) == 0:
                continue
            cells = self._cells(shard).take(mine)
            if cells.null_count:
                row = int(mine[int(np.flatnonzero(cells.is_null().to_numpy())[0])])
                raise ImageSetError(
                    f"{self.field}: row {row} of {shown(shard.file)} has no label in column {self._column(shard)!r}"
                )
            if is_text(cells.type):
                index = {name: k for k, name in enumerate(names or ())}
                found.append(np.array([index[name] for name in cells.to_pylist()], dtype=np.int64))
            else:
                found.append(as_int64(cells.to_numpy(), self.field, partial(_place, shard.file, mine)))
        return np.concatenate(found)

    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes: those of the file's `huggingface` metadata; of labels that are names, the names, in
        order. None where there are none.

        Raises:
            ImageSetError: the shards have other names, or labels of other kinds; or several columns of labels.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        labelled = [shard for shard in self.shards if (self.wanted or _LABEL_COLUMN) in shard.schema.names]
        kinds = [(shard.file, self._type(shard)) for shard in labelled]
        text = [(file, is_text(kind)) for file, kind in kinds if not pa.types.is_null(kind)]
        for file, named in text:
            if named != text[0][1]:
                raise ImageSetError(
                    f"{self.field}.path: labels are {_words(text[0][1])} in {shown(text[0][0])}, but {_words(named)} "
                    f"in {shown(file)}; read them apart"
                )
        if text and text[0][1]:
            names = {name for shard in labelled for name in pc.unique(self._cells(shard)).to_pylist()} - {None}
            return tuple(in_order(names))
        found: tuple[Path, tuple[str, ...]] | None = None
        for shard in labelled:
            names_here = _class_names(shard.schema, self._column(shard))
            if found is not None and names_here is not None and names_here != found[1]:
                raise ImageSetError(
                    f"{self.field}.path: {shown(shard.file)} has other class names than {shown(found[0])}, or in "
                    "another order; read them apart"
                )
            found = found or ((shard.file, names_here) if names_here is not None else None)
        return found[1] if found else None

    def _column(self, shard: Shard) -> str:
        """The name of the column of labels in a shard.

        Raises:
            ImageSetError: there is none.
        """
        column = self.wanted or _LABEL_COLUMN
        if column in shard.schema.names:
            return column
        raise ImageSetError(
            f"{self.field}: {shown(shard.file)} has no column {column!r}, and labels are needed here; its columns are "
            f"{listed(shard.schema)}; name another as {self.field}.label_column, or read fewer files"
        )

    def _type(self, shard: Shard) -> pa.DataType:
        """The type of the labels of a shard.

        Raises:
            ImageSetError: it has none, or several columns of them, or they are neither whole numbers nor text.
        """
        import pyarrow as pa

        column = self._column(shard)
        kind = column_type(shard.schema, column, shard.file, self.field, "label_column")
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_integer(kind) or pa.types.is_null(kind) or is_text(kind)):
            raise ImageSetError(
                f"{self.field}.path: column {column!r} of {shown(shard.file)} holds {kind}, neither whole numbers nor "
                f"names; name another as {self.field}.label_column (its columns are {listed(shard.schema)})"
            )
        return kind

    def _cells(self, shard: Shard) -> pa.ChunkedArray:
        """The labels of a shard, whole numbers or text."""
        return read_column(shard.file, self._column(shard), self.field).cast(self._type(shard))


def _place(file: Path, rows: np.ndarray, number: int) -> str:
    return f"row {rows[number]} of {shown(file)}"


def _words(text: bool) -> str:
    return "names" if text else "whole numbers"


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Class names of a column from the `huggingface` metadata of a parquet schema, or None."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return None
