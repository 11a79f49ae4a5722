"""Image sets: real images in memory, and their readers.

A reader first finds out how many rows there are, then which are wanted, and only then decodes those. The
subset is drawn without looking at a label.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from kdray.errors import ImageSetError
from kdray.memory import give_back_memory

_MODES = {"grey": "L", "rgb": "RGB"}
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Real images, all of one shape.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: int64 [N], or None.
        classes: class names, or None.
    """

    images: Tensor
    labels: Tensor | None = None
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ImageSetError(f"images must be uint8 [N, C, H, W], got {self.images.dtype} {list(self.images.shape)}")
        if len(self.images) == 0:
            raise ImageSetError("the image set is empty")
        if self.labels is not None and len(self.labels) != len(self.images):
            raise ImageSetError(f"{len(self.images)} images but {len(self.labels)} labels; give one label an image")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Rows that can be decoded one by one: what every reader is reduced to."""

    name: str
    rows: int
    decode: Callable[[int], Image.Image]  # row -> image
    where: Callable[[int], str]  # row -> the words that name it in an error
    labels: Callable[[np.ndarray], np.ndarray] | None = None  # rows -> int64 labels
    classes: tuple[str, ...] | None = None


def read_images(
    config: "ImagesConfig",  # noqa: F821 - kdray.config.ImagesConfig; config imports nothing from here
    *,
    generator: np.random.Generator,
    field: str = "images",
    with_labels: bool = False,
) -> ImageSet:
    """Read the image set that `config` describes.

    Args:
        config: any of the image sources of `kdray.config`.
        generator: draws `count` of the rows; rows keep their order in the file.
        field: the config field this is, for error messages.
        with_labels: keep the labels. Off, they are not even read.

    Raises:
        ImageSetError: no such file, no image column, a corrupt image, mixed sizes, `count` above the set's size.
    """
    try:
        return _read(config, generator, field, with_labels)
    finally:
        give_back_memory()


def _read(config, generator: np.random.Generator, field: str, with_labels: bool) -> ImageSet:
    source = _READERS[config.source](config, field)
    rows = _choose_rows(source, config.rows, config.count, generator, field)
    if with_labels and source.labels is None:
        raise ImageSetError(f"{field}: {source.name} holds no labels; labels are needed here")
    images = _decode(source, rows, config.size, config.colour, field)
    labels = torch.from_numpy(source.labels(rows)) if with_labels else None
    return ImageSet(images=images, labels=labels, classes=source.classes)


def parse_rows(text: str) -> tuple[int, int | None]:
    """The half-open range "a:b" as (a, b); either end may be left out. ValueError if it is not one."""
    start, colon, stop = text.partition(":")
    if not colon:
        raise ValueError(f"rows = {text!r} is not a range; write it as start:stop, for example 0:1000")
    try:
        first, last = int(start or 0), int(stop) if stop else None
    except ValueError:
        raise ValueError(f"rows = {text!r} is not a range of whole numbers; write it as start:stop") from None
    if first < 0 or (last is not None and last <= first):
        raise ValueError(f"rows = {text!r} is empty or negative; write it as start:stop with 0 <= start < stop")
    return first, last


def _choose_rows(
    source: _Source, window: str | None, count: int | None, generator: np.random.Generator, field: str
) -> np.ndarray:
    first, last = parse_rows(window) if window else (0, None)
    if last is not None and last > source.rows:
        raise ImageSetError(f"{field}.rows: {window} reaches past the {source.rows:,} images of {source.name}")
    rows = np.arange(source.rows)[first:last]
    if len(rows) == 0:
        raise ImageSetError(f"{field}: {source.name} holds no images" + (f" in rows {window}" if window else ""))
    if count is None:
        return rows
    if count > len(rows):
        raise ImageSetError(f"{field}.count: {count:,} images wanted, but {source.name} holds {len(rows):,}")
    return np.sort(generator.choice(rows, size=count, replace=False))


def _decode(source: _Source, rows: np.ndarray, size: Sequence[int] | None, colour: str | None, field: str) -> Tensor:
    """Decode rows into uint8 [N, C, H, W]; grey becomes one channel, everything else RGB, unless told."""
    pixels: np.ndarray | None = None
    for position, row in enumerate(rows.tolist()):
        try:
            image = source.decode(row)
            image = _eight_bits(image)
            mode = _MODES[colour] if colour else ("L" if image.mode in ("1", "L", "LA") else "RGB")
            if image.mode != mode:
                image = image.convert(mode)
        except UnidentifiedImageError:
            raise ImageSetError(f"{field}: {source.where(row)} is not a readable image (unknown format)") from None
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
            raise ImageSetError(f"{field}: {source.where(row)} is not a readable image ({error})") from None
        if size is not None and image.size != (size[1], size[0]):
            image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        array = np.asarray(image, dtype=np.uint8)
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if pixels is None:
            pixels = np.empty((len(rows), *array.shape), dtype=np.uint8)
        if array.shape != pixels.shape[1:]:
            raise ImageSetError(
                f"{field}: {source.where(row)} is {_shape(array.shape)}, but {source.where(int(rows[0]))} is "
                f"{_shape(pixels.shape[1:])}; set {field}.size (and {field}.colour) to bring all images to one shape"
            )
        pixels[position] = array
    return torch.from_numpy(pixels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image with eight bits a channel: 16-bit grey is scaled (PIL would clip it), wider kinds are refused."""
    image.load()
    if image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of PIL's mode {image.mode!r}, 32 bits wide; convert it to 8 bits first")
    return image


def _shape(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[2]} {'grey' if shape[0] == 1 else 'RGB'}"


def _parquet(config, field: str) -> _Source:
    """Hugging Face style parquet: a struct column `image` or `img` of bytes and path, an int64 `label`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(config.path)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not path.exists() or not files:
        raise ImageSetError(f"{field}.path: no parquet file at {config.path}")
    try:
        schema = pq.read_schema(files[0])
        column = next((name for name in ("image", "img") if name in schema.names), None)
        if column is None:
            raise ImageSetError(
                f"{field}.path: {config.path} has no image column; expected 'image' or 'img', found "
                + ", ".join(repr(name) for name in schema.names)
            )
        wanted = [column] + (["label"] if "label" in schema.names else [])
        # One thread and no read-ahead: the cells are small, and Arrow's buffers would stay with the process.
        tables = [pq.read_table(file, columns=wanted, use_threads=False, pre_buffer=False) for file in files]
        table = pa.concat_tables(tables)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ImageSetError(f"{field}.path: {config.path} is not a readable parquet file ({reason})") from None
    cells = table.column(column)
    if pa.types.is_struct(cells.type):
        if "bytes" not in [cells.type.field(k).name for k in range(cells.type.num_fields)]:
            raise ImageSetError(f"{field}.path: column {column!r} of {config.path} has no field 'bytes'")
        cells = pa.chunked_array([chunk.field("bytes") for chunk in cells.chunks], type=cells.type.field("bytes").type)
    starts = np.cumsum([0] + [part.num_rows for part in tables])

    def decode(row: int) -> Image.Image:
        data = cells[row].as_py()
        if data is None:
            raise ValueError("the cell is empty")
        return Image.open(io.BytesIO(data))

    def where(row: int) -> str:
        file = int(np.searchsorted(starts, row, side="right")) - 1
        return f"row {row - starts[file]} of {files[file]}"

    def labels(rows: np.ndarray) -> np.ndarray:
        found = table.column("label").to_numpy()[rows]
        if found.dtype.kind not in "iu":
            raise ImageSetError(f"{field}.path: column 'label' of {config.path} does not hold whole numbers")
        return found.astype(np.int64)

    return _Source(
        name=config.path,
        rows=table.num_rows,
        decode=decode,
        where=where,
        labels=labels if "label" in schema.names else None,
        classes=_hugging_face_classes(schema),
    )


def _hugging_face_classes(schema) -> tuple[str, ...] | None:
    """Class names from the `huggingface` metadata of a parquet schema, where they are there."""
    import json

    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, TypeError, ValueError):
        return None


def _folder(config, field: str) -> _Source:
    """A folder of images; where it has subfolders with images, each is a class (in name order)."""
    root = Path(config.path)
    if not root.is_dir():
        raise ImageSetError(f"{field}.path: no folder at {config.path}")
    files = sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    tops = [file.relative_to(root).parts for file in files]
    classes = tuple(sorted({parts[0] for parts in tops if len(parts) > 1}))
    labelled = bool(classes) and all(len(parts) > 1 for parts in tops)
    index = {name: k for k, name in enumerate(classes)}
    return _Source(
        name=config.path,
        rows=len(files),
        decode=lambda row: Image.open(files[row]),
        where=lambda row: str(files[row]),
        labels=(lambda rows: np.array([index[tops[row][0]] for row in rows], dtype=np.int64)) if labelled else None,
        classes=classes if labelled else None,
    )


def _torchvision(config, field: str) -> _Source:
    """A torchvision data set by class name, from files already under `root`: nothing is downloaded unless asked."""
    import inspect

    import torchvision

    kind = getattr(torchvision.datasets, config.name, None)
    if not inspect.isclass(kind):
        raise ImageSetError(f"{field}.name: torchvision.datasets has no {config.name!r}")
    accepted = inspect.signature(kind).parameters
    options: dict[str, object] = {"download": config.download} if "download" in accepted else {}
    if "train" in accepted and config.split != "val":
        options["train"] = config.split == "train"
    elif "split" in accepted:
        options["split"] = config.split
    elif config.split != "train":
        raise ImageSetError(f"{field}.split: torchvision's {config.name} has no part {config.split!r}")
    try:
        data = kind(config.root, **options)
        count = len(data)
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        raise ImageSetError(f"{field}: torchvision cannot read {config.name} under {config.root} ({error})") from None
    targets = getattr(data, "targets", getattr(data, "labels", None))
    names = getattr(data, "classes", None)
    return _Source(
        name=f"torchvision {config.name} ({config.split})",
        rows=count,
        decode=lambda row: data[row][0],
        where=lambda row: f"row {row} of torchvision {config.name}",
        labels=None if targets is None else lambda rows: np.asarray(targets, dtype=np.int64)[rows],
        classes=tuple(names) if names else None,
    )


@lru_cache(maxsize=1)
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    # The file is sorted by writer; a fixed shuffle makes every range of rows a fair sample.
    order = np.random.default_rng(0).permutation(len(data.target))
    pixels = (data.images[order] * (255.0 / 16.0)).round().astype(np.uint8)
    return pixels, data.target[order].astype(np.int64)


def _digits(config, field: str) -> _Source:
    """scikit-learn's handwritten digits: 1,797 grey images of 8x8, in a fixed random order."""
    pixels, labels = _load_digits()
    return _Source(
        name="digits",
        rows=len(pixels),
        decode=lambda row: Image.fromarray(pixels[row]),
        where=lambda row: f"row {row} of digits",
        labels=lambda rows: labels[rows],
        classes=tuple(str(k) for k in range(10)),
    )


_READERS = {"parquet": _parquet, "folder": _folder, "torchvision": _torchvision, "digits": _digits}


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [C, H, W], one or three channels, to PNG bytes: lossless, so it decodes to the same bits."""
    picture = Image.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(data: bytes) -> np.ndarray:
    """PNG bytes from `encode_png` back to uint8 [C, H, W]."""
    array = np.asarray(Image.open(io.BytesIO(data)), dtype=np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
