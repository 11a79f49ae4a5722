"""Which rows of a source are taken, chosen without looking at an image or a label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kdray.errors import ImageSetError
from kdray.utils.seeds import numpy_generator

if TYPE_CHECKING:
    from kdray.images.base import ImageRows, ImageSource


def parse_rows(text: str) -> tuple[int, int | None]:
    """The half-open range "start:stop" as two numbers; either may be left out, and a missing stop is None.

    Raises:
        ValueError: it is not a range.
    """
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


def choose_rows(opened: ImageRows, source: ImageSource, generator: np.random.Generator, field: str) -> np.ndarray:
    """The numbers of the rows that a section takes, int64 [M], in ascending order.

    Args:
        generator: draws `source.count` of them.
        field: the config field of the section, for messages.

    Raises:
        ImageSetError: there are not so many.
    """
    window, count = source.rows, source.count
    first, last = parse_rows(window) if window else (0, None)
    if last is not None and last > opened.rows:
        raise ImageSetError(f"{field}.rows: {window} reaches past the {opened.rows:,} images of {opened.name}")
    order = np.arange(opened.rows)
    if source.shuffle is not None:  # by its own seed alone: sections that are to share nothing share the order
        order = numpy_generator(source.shuffle, "order of rows").permutation(order)
    rows = np.sort(order[first:last])
    if len(rows) == 0:
        raise ImageSetError(f"{field}: {opened.name} holds no images" + (f" in rows {window}" if window else ""))
    if count is None:
        return rows
    if count > len(rows):
        raise ImageSetError(f"{field}.count: {count:,} images wanted, but {opened.name} holds {len(rows):,}")
    return np.sort(generator.choice(rows, size=count, replace=False))
