"""Images in parquet files, as Hugging Face's data sets store them."""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from kdray.errors import ImageSetError
from kdray.images.base import ImageRows, ImageSource, sources

if TYPE_CHECKING:
    from PIL import Image


@sources.register
class ParquetImages(ImageSource):
    """Hugging Face style parquet: struct column `image` or `img`, optional int64 `label`."""

    path_fields: ClassVar[tuple[str, ...]] = ("path",)

    source: Literal["parquet"] = "parquet"
    path: str
    """A parquet file, or a folder of them."""

    def open(self, field: str) -> ImageRows:
        """See `ImageSource.open`. A struct column must have the field `bytes`; a plain column of bytes is read too."""
        import pyarrow as pa
        import pyarrow.parquet as pq
        from PIL import Image

        path = Path(self.path)
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not path.exists() or not files:
            raise ImageSetError(f"{field}.path: no parquet file at {self.path}")
        try:
            schema = pq.read_schema(files[0])
            column = _image_column(schema, self.path, field)
            wanted = [column] + (["label"] if "label" in schema.names else [])
            # One thread and no read-ahead: the cells are small, and Arrow would keep its buffers for the whole run.
            tables = [pq.read_table(file, columns=wanted, use_threads=False, pre_buffer=False) for file in files]
            table = pa.concat_tables(tables)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ImageSetError(f"{field}.path: {self.path} is not a readable parquet file ({reason})") from None
        cells = _bytes_of(table.column(column), column, self.path, field)
        starts = np.cumsum([0] + [part.num_rows for part in tables])

        def decode(row: int) -> "Image.Image":
            data = cells[row].as_py()
            if data is None:
                raise ValueError("the cell is empty")
            return Image.open(io.BytesIO(data))

        def where(row: int) -> str:
            file = int(np.searchsorted(starts, row, side="right")) - 1
            return f"row {row - starts[file]} of {files[file]}"

        def labels(rows: np.ndarray) -> np.ndarray:
            found: np.ndarray = table.column("label").to_numpy()[rows]
            if found.dtype.kind not in "iu":
                raise ImageSetError(f"{field}.path: column 'label' of {self.path} does not hold whole numbers")
            return found.astype(np.int64)

        return ImageRows(
            name=self.path,
            rows=table.num_rows,
            decode=decode,
            where=where,
            labels=labels if "label" in schema.names else None,
            classes=_class_names(schema),
        )


def _image_column(schema: Any, path: str, field: str) -> str:
    column = next((name for name in ("image", "img") if name in schema.names), None)
    if column is None:
        raise ImageSetError(
            f"{field}.path: {path} has no image column; expected 'image' or 'img', found "
            + ", ".join(repr(name) for name in schema.names)
        )
    return column


def _bytes_of(cells: Any, column: str, path: str, field: str) -> Any:
    """The column's cells as Arrow bytes: the field `bytes` of a struct, or the column itself."""
    import pyarrow as pa

    if not pa.types.is_struct(cells.type):
        return cells
    if "bytes" not in [cells.type.field(k).name for k in range(cells.type.num_fields)]:
        raise ImageSetError(f"{field}.path: column {column!r} of {path} has no field 'bytes'")
    return pa.chunked_array([chunk.field("bytes") for chunk in cells.chunks], type=cells.type.field("bytes").type)


def _class_names(schema: Any) -> tuple[str, ...] | None:
    """Class names from the `huggingface` metadata of a parquet schema, or None."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return None
