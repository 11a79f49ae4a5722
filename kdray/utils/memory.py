"""Control over freed memory: the C library keeps it for later allocations, or returns it to the system."""

import contextlib
import ctypes
import sys

# Constants of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 128 << 20  # most bytes of freed memory that are kept
_LARGEST = 32 << 20  # bytes of the largest block that is kept; glibc accepts no larger value


def keep_freed_memory() -> None:
    """Make this process reuse the memory of freed tensors instead of returning it to the system.

    A forward pass on a CPU allocates and frees a few blocks of some MB. If they are returned to the system each time,
    it clears and maps every page again. That takes a third of a LeNet's time. This does nothing if the C library is not
    glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back_memory() -> None:
    """Return to the system the memory that Arrow and the C library keep after reading or writing files.

    Otherwise the process keeps it for the rest of the run: tens of MB for each set of images.
    """
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has this function
        ctypes.CDLL(None).malloc_trim(0)
