"""What a trainer is."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from kdray.pools.base import Pool
    from kdray.pools.remade import Basis, Made, RemadePool
    from kdray.training.loop import TrainResult


class Trainer(Protocol):
    """Trains students, in this process or elsewhere."""

    def take_candidates(self, pool: "Pool") -> None:
        """Students to come learn from unpaid candidates of this pool, if their recipe has any."""
        ...

    def start_from(self, student: bytes) -> None:
        """Students to come start from the weights of this one: the bytes of its file."""
        ...

    def make(self, pool: "RemadePool", basis: "Basis") -> "Made":
        """Make the candidates of a round, for a pool that makes them anew each time; on the device of the trainer.

        Raises:
            PoolExhausted: there are none.
        """
        ...

    def fit(
        self,
        images: "Tensor",
        targets: "Tensor",
        round: int,
        on_epoch: Callable[[int, int, float], None] | None = None,
        *,
        final: bool = True,
        last: bytes | None = None,
        on_state: Callable[[bytes], None] | None = None,
    ) -> "tuple[bytes, TrainResult]":
        """Train a student from scratch.

        Args:
            images: uint8 [N, C, H, W].
            targets: probabilities, float32 [N, K].
            round: names the random streams, with the run's seed.
            on_epoch: called with (epochs done, epochs in all, mean loss).
            final: whether this student is kept; else it only chooses what is asked next, see `StudentSection.early`.
            last: the newest state of this training, where it was broken off: it goes on from there, to the same bits.
            on_state: called now and then with the state of the training.

        Returns:
            The bytes of the student's file, and what training did.
        """
        ...
