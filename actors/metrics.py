"""Metrics of scoring. Ray exports them at the metrics port of each node, and shows them in its dashboard if it runs."""

import time

from ray.util.metrics import Counter, Histogram


class ScoringMetrics:
    """Counters of one scoring worker."""

    def __init__(self) -> None:
        self._scored = Counter("kdray_candidates_scored", "Forward passes of the student, in images.")
        self._seconds = Histogram(
            "kdray_chunk_seconds", "Duration of a scoring task.", boundaries=[0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]
        )

    def done(self, images: int, begin: float) -> None:
        """Count a finished task of `images` images that began at `begin` of `time.monotonic()`."""
        if images:
            self._scored.inc(images)
        self._seconds.observe(time.monotonic() - begin)


class SearchMetrics:
    """Counters of the driver."""

    def __init__(self) -> None:
        self._requeued = Counter("kdray_chunks_requeued", "Scoring tasks assigned again after a worker died.")

    def requeued(self, tasks: int) -> None:
        """Count `tasks` more requeued tasks."""
        if tasks:
            self._requeued.inc(tasks)
