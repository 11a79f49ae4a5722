"""Images that are read when they are asked for: a set of any size, of which nothing is kept."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from kdray.errors import ImageSetError
from kdray.images.base import ImageRows, ImageSource
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_MOST_DAMAGED = 100  # images in a row


class ImagesOnDemand:
    """Rows of a source as uint8 [N, C, H, W] that is indexed by row numbers, and decodes just these.

    An image whose file holds no readable image gives way to the next of the set: one in a million is damaged, and a run
    would find it after it has paid. A pickle holds no image; each process opens the source anew.

    Args:
        source: the section; it has a size and a colour, so all images have one shape.
        opened: what it opens.
        rows: which of its rows these are, int64 [N].
        field: the config field of the section, for messages.
    """

    def __init__(self, source: ImageSource, opened: ImageRows, rows: np.ndarray, field: str) -> None:
        assert source.size is not None
        assert source.colour is not None
        self._source, self._field, self._all = source, field, opened.rows
        self._rows = None if len(rows) == opened.rows else rows
        self._opened: ImageRows | None = opened
        self._lock = threading.Lock()
        self.shape = (len(rows), 1 if source.colour == "grey" else 3, *source.size)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """The images of numbers int64 [B] below N: uint8 [B, C, H, W].

        Raises:
            ImageSetError: the source is not there, or has another number of images than before; or an image cannot be
                read, for which see `decode_row`; or a hundred in a row are damaged.
        """
        images = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        with self._lock:  # a source may keep a place in a file
            wanted = numbers.numpy()
            for place in np.argsort(wanted, kind="stable").tolist():  # files of many rows are read in order
                images[place] = self._read(int(wanted[place]))
        return torch.from_numpy(images)

    def _read(self, number: int) -> np.ndarray:
        from kdray.images.decode import DamagedImage, decode_row

        opened, damaged = self._open(), []
        for at in range(number, number + min(_MOST_DAMAGED, len(self))):
            row = at % len(self) if self._rows is None else int(self._rows[at % len(self)])
            try:
                return decode_row(opened, row, self._source, self._field)
            except DamagedImage as error:
                damaged.append(error)
        rest = f", nor is any of the {len(damaged) - 1:,} after it" if len(damaged) > 1 else ""
        raise ImageSetError(f"{damaged[0]}{rest}")

    def _open(self) -> ImageRows:
        if self._opened is None:
            self._opened = self._source.open(self._field)
            if self._opened.rows != self._all:
                raise ImageSetError(
                    f"{self._field}: {self._opened.name} has {self._opened.rows:,} images here, and had {self._all:,} "
                    "when it was opened first; each machine needs the same files, and none may be added meanwhile"
                )
        return self._opened
