"""Sets of images that may be larger than memory: a large one lies in a temporary file that is mapped into memory.

What is read of such a file stays in memory only as long as there is room, so everything that works on a tensor works on
a set of any size. The file has no name: it is gone with the process, however that ends. Other processes of the machine
can map it too, see `SharedFile`.
"""

from __future__ import annotations

import os
import socket
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import IO, TYPE_CHECKING

import numpy as np

from kdray.errors import ImageSetError
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

IN_MEMORY = 256 << 20
"""Most bytes of a set of images that is held in memory."""
_PART = 8 << 20  # bytes of images that are copied at a time
_BOOT = "/proc/sys/kernel/random/boot_id"
_FILES: dict[int, int] = {}  # where the memory of a mapped file begins -> its descriptor


def gathered(parts: Iterable[np.ndarray], rows: int) -> Tensor:
    """Images of several arrays in one tensor: in memory, or in a file if they take more than `IN_MEMORY` bytes.

    Args:
        parts: uint8 [n, C, H, W] each, all of one shape.
        rows: how many images these are, at least one.

    Returns:
        uint8 [rows, C, H, W].

    Raises:
        ImageSetError: the file cannot be written.
    """
    rest = iter(parts)
    first = next(rest)
    shape = (rows, *first.shape[1:])
    size = int(np.prod(shape, dtype=np.int64))
    if size <= IN_MEMORY:
        whole, start = np.empty(shape, dtype=np.uint8), 0
        for part in chain([first], rest):
            whole[start : start + len(part)] = part
            start += len(part)
        return torch.from_numpy(whole)
    folder = temporary_folder()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for part in chain([first], rest):
                file.write(np.ascontiguousarray(part).data)
            file.flush()
            return _mapped(file).view(shape)
    except OSError as error:
        raise ImageSetError(
            f"{rows:,} images take {size / 2**30:.1f} GiB, more than is held in memory, and cannot be written to "
            f"{folder}: {error.strerror}; set TMPDIR to a folder on a disk with room, or take fewer or smaller images"
        ) from None


def taken(images: Tensor, rows: Tensor) -> Tensor:
    """`images[rows]` of images uint8 [N, C, H, W] and row numbers int64 [M]; see `gathered`."""
    if len(rows) == 0:
        return images[:0]
    step = rows_in_a_part(images.shape[1:])
    return gathered((images[some].numpy() for some in rows.split(step)), len(rows))


def joined(sets: Sequence[Tensor]) -> Tensor:
    """Sets of images uint8 [N, C, H, W], at least one, behind one another; see `gathered`."""
    filled = [images for images in sets if len(images)]
    if len(filled) < 2:
        return filled[0] if filled else sets[0]
    return gathered(chain.from_iterable(map(pieces, filled)), sum(map(len, filled)))


def pieces(images: Tensor) -> Iterator[np.ndarray]:
    """Images uint8 [N, C, H, W], some MiB at a time."""
    yield from (part.numpy() for part in images.split(rows_in_a_part(images.shape[1:])))


def rows_in_a_part(shape: Iterable[int]) -> int:
    """How many images of a shape (C, H, W) are copied at a time."""
    return max(1, _PART // int(np.prod(list(shape), dtype=np.int64)))


def temporary_folder() -> str:
    """Where such files lie: TMPDIR if set, else /var/tmp, which is on a disk more often than /tmp."""
    named = os.environ.get("TMPDIR")
    return named or ("/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir())


def is_stored(images: Tensor) -> bool:
    """Whether a tensor lies in a file."""
    return images.device.type == "cpu" and images.untyped_storage().data_ptr() in _FILES


def any_stored() -> bool:
    """Whether this process has such a tensor."""
    return bool(_FILES)


@dataclass(frozen=True, kw_only=True)
class SharedFile:
    """A tensor in a file of this process, for other processes of the machine.

    Attributes:
        path: of the open file, below /proc.
        machine: what the machine is known by since it was started.
        file: device, inode and size in bytes.
        shape, stride, offset: of the tensor.
    """

    path: str
    machine: str
    file: tuple[int, int, int]
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, images: Tensor) -> SharedFile:
        """That of a tensor for which `is_stored` holds."""
        descriptor = _FILES[images.untyped_storage().data_ptr()]
        return cls(
            path=f"/proc/{os.getpid()}/fd/{descriptor}",
            machine=_machine(),
            file=_identity(descriptor),
            shape=tuple(images.shape),
            stride=images.stride(),
            offset=int(images.storage_offset()),
        )

    def open(self) -> Tensor | None:
        """The tensor, mapped into this process; None on another machine, or where the other process has ended."""
        try:
            if _machine() != self.machine or _identity(self.path) != self.file:
                return None
            with open(self.path, "r+b") as file:
                return _mapped(file).as_strided(self.shape, self.stride, self.offset)
        except OSError:
            return None


def _mapped(file: IO[bytes]) -> Tensor:
    """The content of a file, uint8 [bytes]. Writing to the tensor would write to the file."""
    pixels = np.memmap(file, dtype=np.uint8, mode="r+")
    images = torch.from_numpy(pixels)
    address, descriptor = images.untyped_storage().data_ptr(), os.dup(file.fileno())
    _FILES[address] = descriptor
    weakref.finalize(pixels, _forget, address, descriptor)
    return images


def _forget(address: int, descriptor: int) -> None:
    if _FILES.get(address) == descriptor:  # the memory may be that of another file by now
        del _FILES[address]
    os.close(descriptor)


def _machine() -> str:
    try:
        with open(_BOOT, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return socket.gethostname()


def _identity(file: int | str) -> tuple[int, int, int]:
    state = os.stat(file)
    return state.st_dev, state.st_ino, state.st_size
