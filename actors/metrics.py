"""What scoring tells Ray's metrics: they show at each node's metrics port, and in the dashboard where there is one."""

import time

from ray.util.metrics import Counter, Histogram


class ScoringMetrics:
    """Counters of one scoring worker."""

    def __init__(self) -> None:
        self._scored = Counter("kdray_candidates_scored", "Forward passes of the student, in images.")
        self._seconds = Histogram(
            "kdray_chunk_seconds", "Time a scoring task took.", boundaries=[0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]
        )

    def done(self, images: int, begin: float) -> None:
        """A task of so many images, begun at that `time.monotonic()`, is done."""
        if images:
            self._scored.inc(images)
        self._seconds.observe(time.monotonic() - begin)


class SearchMetrics:
    """Counters of the driver."""

    def __init__(self) -> None:
        self._requeued = Counter("kdray_chunks_requeued", "Scoring tasks given out again after a worker's death.")

    def requeued(self, tasks: int) -> None:
        """So many more."""
        if tasks:
            self._requeued.inc(tasks)
