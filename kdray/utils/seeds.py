"""Independent random streams, derived from one root seed.

A stream depends on its purpose and its round, not on the order in which streams are made. So a run that resumes in
round 7 draws the same numbers as an uninterrupted run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from kdray.utils.lazy import torch


def seed_sequence(seed: int, purpose: str, round: int = 0) -> np.random.SeedSequence:
    """The stream of (`seed`, `purpose`, `round`), independent of all others."""
    digest = hashlib.blake2b(purpose.encode(), digest_size=8).digest()
    return np.random.SeedSequence([seed, int.from_bytes(digest, "little"), round])


def numpy_generator(seed: int, purpose: str, round: int = 0) -> np.random.Generator:
    """A numpy generator on the stream of (`seed`, `purpose`, `round`)."""
    return np.random.default_rng(seed_sequence(seed, purpose, round))


def torch_seed(seed: int, purpose: str, round: int = 0) -> int:
    """A 63-bit seed for a torch generator on the stream of (`seed`, `purpose`, `round`)."""
    return int(seed_sequence(seed, purpose, round).generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_generator(seed: int, purpose: str, round: int = 0, device: str = "cpu") -> torch.Generator:
    """A torch generator on the stream of (`seed`, `purpose`, `round`)."""
    return torch.Generator(device=device).manual_seed(torch_seed(seed, purpose, round))


@contextmanager
def global_numbers(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch's global random numbers, of the CPU and of one GPU, and leave them as they were.

    For initial weights and dropout, which take no generator.
    """
    with torch.random.fork_rng(devices=_gpus(device)):
        seed_globally(seed, device)
        yield


def seed_globally(seed: int, device: torch.device | None = None) -> None:
    """Seed torch's global random numbers, of the CPU and of one GPU; `torch.manual_seed` seeds all GPUs."""
    torch.default_generator.manual_seed(seed)
    for gpu in _gpus(device):
        with torch.cuda.device(gpu):
            torch.cuda.manual_seed(seed)


def _gpus(device: torch.device | None) -> list[torch.device]:
    return [device] if device is not None and device.type == "cuda" else []
