"""TensorBoard events of a run."""

import shutil
from pathlib import Path

from tensorboardX import SummaryWriter

from kdray.observers.base import Observer, RoundMetrics


class EventWriter(Observer):
    """Writes the figures of each round against the queries charged so far.

    The folder is emptied at the start. A resumed run reports its finished rounds again, so every round appears exactly
    once, no matter when the run was killed.
    """

    def __init__(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self._writer.close()

    def round_done(self, metrics: RoundMetrics) -> None:
        """Write one point for each figure, at x = queries charged."""
        for name, value in metrics.figures().items():
            self._writer.add_scalar(name, value, metrics.paid)
        self._writer.flush()
