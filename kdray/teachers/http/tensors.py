"""Tensors of the Open Inference Protocol v2 as JSON: datatypes, shapes, and one entry an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdray.teachers.http.malformed import MalformedReply
from kdray.utils.text import counted

FLOATS = ("FP32", "FP64", "FP16", "BF16")
INTEGERS = ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64")
_NUMPY = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}


def entries(reply: Any, key: str) -> list[dict[str, Any]]:
    """The tensors that metadata lists; none where it lists something else."""
    found = reply.get(key) if isinstance(reply, dict) else None
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def datatype(entry: dict[str, Any]) -> str | None:
    """A tensor's datatype, which some spell as Triton's configuration does."""
    found = entry.get("datatype")
    return found.upper().removeprefix("TYPE_") if isinstance(found, str) else None


def sizes(entry: dict[str, Any]) -> list[int] | None:
    """A tensor's shape, where it is one; its numbers may be strings."""
    try:
        return [int(size) for size in entry["shape"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def widths(entry: dict[str, Any]) -> set[int]:
    """How many numbers an image may have in a tensor of metadata; empty where its shape does not say. Some servers
    leave the batch out of the shape."""
    shape = sizes(entry) or []
    found = {math.prod(part) for part in (shape, shape[1:]) if part and min(part) > 0}
    return found | {1} if len(shape) == 1 and found else found


def fits(shape: Sequence[int], sent: Sequence[int]) -> bool:
    """Whether an array of shape `sent` is of `shape`, -1 there standing for any number; some leave the batch out."""
    full = shape if len(shape) == len(sent) else [-1, *shape]
    return len(full) == len(sent) and all(want in (-1, has) for want, has in zip(full[1:], sent[1:], strict=True))


def natural_datatype(array: np.ndarray) -> str:
    """The datatype of images as they are: UINT8 for whole pixels, FP32 for floats."""
    return "UINT8" if array.dtype == np.uint8 else "FP32"


def keeps_pixels(array: np.ndarray, wanted: str) -> bool:
    """Whether a datatype holds images as they are, so that the server's metadata may choose it."""
    if array.dtype == np.uint8:
        return wanted in INTEGERS and wanted != "INT8"
    return wanted in FLOATS


def cast(array: np.ndarray, wanted: str) -> np.ndarray:
    """Images, uint8 or float32, as numbers of a datatype. INT8 is pixel - 128. BF16 is rounded by the server."""
    if wanted == "INT8":
        return (array.astype(np.int16) - 128).astype(np.int8)
    return array.astype(_NUMPY.get(wanted, np.float32)) if wanted in FLOATS else array


def rows(data: Any, shape: list[int] | None, batch: int, *, single: bool = False) -> list[Any]:
    """One entry for each image, from a tensor's data, flat or nested, without its dimensions of size 1.

    Args:
        single: an image has one entry alone, a label.

    Raises:
        MalformedReply: the data is not of `batch` images.
    """
    if not isinstance(data, list):
        raise MalformedReply("has no data")
    while batch != 1 and len(data) == 1 and isinstance(data[0], list) and data[0]:
        if not isinstance(data[0][0], list) and len(data[0]) != batch:
            break  # the numbers of one image
        data = data[0]
    if data and not isinstance(data[0], list) and not single:
        if len(data) % batch:
            raise MalformedReply(f"the teacher gave {counted(len(data), 'number')} for {counted(batch, 'image')}")
        width = len(data) // batch
        if width != batch and [size for size in shape or [] if size != 1] == [width, batch]:
            raise MalformedReply(
                f"the teacher gave a tensor of shape {shape} for {counted(batch, 'image')}: they must come first"
            )
        data = [data[k * width : (k + 1) * width] for k in range(batch)]
    if len(data) != batch:
        raise MalformedReply(f"the teacher gave {counted(len(data), 'answer')} to {counted(batch, 'image')}")
    try:
        return [_squeezed(row) for row in data]
    except RecursionError:
        raise MalformedReply("the teacher gave a tensor of very many dimensions") from None


def _squeezed(value: Any) -> Any:
    """A nested list without its dimensions of size 1; one number where nothing else is left."""
    if not isinstance(value, list):
        return value
    inner = [_squeezed(part) for part in value]
    return inner[0] if len(inner) == 1 else inner
