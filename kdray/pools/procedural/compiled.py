"""Drawing that numba compiles: an extra, and slow to import, so a painter imports it when it is made."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kdray.errors import ConfigError
from kdray.pools.counter import BITS, CounterRandom
from kdray.utils.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def drawing(kind: str) -> ModuleType:
    """The compiled drawing of a pool's kind.

    Raises:
        ConfigError: numba cannot be imported.
    """
    try:
        return importlib.import_module(f"kdray.pools.procedural.{kind}_numba")
    except ImportError as error:
        raise ConfigError(
            f"pool.kind: {kind} needs numba, which cannot be imported ({error}); pip install 'kdray[{kind}]', or take "
            "another kind"
        ) from None


def draw(
    kind: str, ids: Tensor, random: CounterRandom, shape: tuple[int, int, int], *fields: npt.NDArray[np.int64] | int
) -> Tensor:
    """The images of ids int64 [B]: uint8 [B, C, H, W] on their device. They are drawn on a CPU.

    Args:
        kind: the pool's.
        ids: of the candidates.
        random: gives each id two random numbers, from which all others follow.
        shape: (C, H, W).
        fields: further arguments of the compiled drawing.
    """
    high, low = random(ids.cpu())
    starts = ((high << BITS) | low).numpy().view(np.uint64)
    images = torch.empty(len(ids), *shape, dtype=torch.uint8)
    # A worker's arrays may be read-only, and for these numba would compile all of it once more.
    writable = (np.require(one, requirements="W") if isinstance(one, np.ndarray) else one for one in fields)
    drawing(kind).draw(images.numpy(), starts, *writable)
    return images.to(ids.device)
