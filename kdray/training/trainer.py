"""The trainer of local mode."""

from collections.abc import Callable

from torch import Tensor

from kdray.pools.base import Pool
from kdray.pools.remade import Basis, Made, RemadePool
from kdray.training.candidates import make_candidates
from kdray.training.fitting import OnEpoch, StudentSpec, fit, with_candidates, with_start
from kdray.training.loop import TrainResult


class LocalTrainer:
    """A `kdray.training.base.Trainer` that trains in this process."""

    def __init__(self, spec: StudentSpec) -> None:
        self._spec = spec

    def take_candidates(self, pool: Pool) -> None:
        """See `kdray.training.base.Trainer.take_candidates`."""
        self._spec = with_candidates(self._spec, pool)

    def start_from(self, student: bytes) -> None:
        """See `kdray.training.base.Trainer.start_from`."""
        self._spec = with_start(self._spec, student)

    def make(self, pool: RemadePool, basis: Basis) -> Made:
        """See `kdray.training.base.Trainer.make`."""
        return make_candidates(self._spec, pool, basis)

    def fit(
        self,
        images: Tensor,
        targets: Tensor,
        round: int,
        on_epoch: OnEpoch | None = None,
        *,
        final: bool = True,
        last: bytes | None = None,
        on_state: Callable[[bytes], None] | None = None,
    ) -> tuple[bytes, TrainResult]:
        """See `kdray.training.base.Trainer.fit`."""
        return fit(self._spec, images, targets, round, on_epoch, final=final, last=last, on_state=on_state)
