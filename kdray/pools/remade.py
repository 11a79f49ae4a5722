"""Pools whose candidates each round makes anew, from what the student has learnt so far.

Such a pool is built before there is a student, and then has candidates like any other pool: those of an untrained
student. A round calls `make`, keeps the tensors that it gives, and chooses from the pool that `made` returns. So a run
that is resumed has the same candidates without making them again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from kdray.pools.base import Pool

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


EACH = 10
"""Candidates that a round makes for each that it chooses, where the size is auto and the strategy looks at them."""


def _silent(done: int, of: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What a round makes its candidates from.

    Attributes:
        number: of the round, at least 1. Rounds must draw different random numbers.
        student: the newest, in eval mode on the CPU: pixels [B, C, H, W] of 0...255, uint8 or float, to logits float
            [B, K]. Gradients reach float pixels.
        images: all that has been bought so far, behind images with true labels: uint8 [N, C, H, W], N may be 0.
        targets: their answers as probabilities, float32 [N, K].
        last: what `make` gave in the round before; None in round 1.
        device: to work on; the trainer puts its own in.
        count: candidates that the round asks about.
        teacher: the teacher's network, as `student` but wherever it is, for a pool that may look into it
            (`kdray.pools.base.PoolSection.white_box`); else None.
        on_progress: called with (steps done, steps in all).
    """

    number: int
    student: nn.Module
    images: Tensor
    targets: Tensor
    last: Mapping[str, Tensor] | None = None
    device: torch.device | str = "cpu"
    count: int = 0
    teacher: nn.Module | None = None
    on_progress: Callable[[int, int], None] = _silent


@dataclass(frozen=True, kw_only=True)
class Made:
    """What `RemadePool.make` gives.

    Attributes:
        tensors: all that the candidates follow from, besides what the pool holds; on the CPU. The round keeps them as
            safetensors.
        facts: figures for the record of the round, as JSON has them.
        notes: what the user should know.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class RemadePool(Pool, Protocol):
    """A pool whose candidates each round makes anew. Its ids are those of one round: other rounds use them again."""

    def make(self, basis: Basis) -> Made:
        """Make the candidates of a round; the same basis gives the same bits, on a CPU with the same threads.

        Raises:
            PoolExhausted: there are no candidates.
        """

    def made(self, number: int, tensors: Mapping[str, Tensor]) -> Pool:
        """The candidates of round `number`, from the tensors that `make` gave."""


def is_remade(pool: Pool) -> TypeGuard[RemadePool]:
    """Whether each round makes the candidates anew."""
    return hasattr(pool, "made")
