"""What the C library does with memory that is freed: keep it for the next one who asks, or give it to the system."""

import contextlib
import ctypes
import sys

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT = 128 << 20  # bytes of free memory at most
_LARGEST = 32 << 20  # the largest block that is kept, and the most glibc takes


def keep_freed_memory() -> None:
    """Have this process reuse the memory of freed tensors instead of giving it back and asking the system again.

    A forward pass on a CPU takes and frees a few blocks of some MB. Handed back each time, every page of them is
    cleared and mapped anew: a third of a LeNet's time. Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)


def give_back_memory() -> None:
    """Return to the system what Arrow and the C library keep of files that were read or written.

    Else it stays with the process for the rest of the run, tens of MB a set of images.
    """
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)
