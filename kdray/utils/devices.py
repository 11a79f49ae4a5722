"""Devices and CPU threads of torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from kdray.errors import ConfigError
from kdray.utils.lazy import torch


def resolve_device(name: str, field: str = "device") -> "torch.device":
    """The torch device with this name.

    Args:
        name: auto, cpu, cuda or cuda:N; auto is a GPU if this machine has one, else the CPU.
        field: the config field that gives the name, for messages.

    Raises:
        ConfigError: this machine does not have the named GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(name.partition(":")[2] or 0) >= count:
            raise ConfigError(f"{field}: {name!r} is set, but this machine has {count} usable GPUs; use auto or cpu")
    return torch.device(name)


def auto_threads(light: bool) -> int:
    """Number of CPU threads to train a network: one for a light network, else all cores that this process may use.

    A training step of a light network takes about a millisecond. A second thread saves at most a third of the time. On
    a machine with other work, it costs several times as much, because both threads wait for each other at every layer.
    """
    return 1 if light else len(os.sched_getaffinity(0))


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Run with `count` CPU threads, then restore the earlier number. None changes nothing.

    The last bits of results depend on the number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
