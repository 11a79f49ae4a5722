"""Metrics of scoring and of spending. Ray exports them at the metrics port of each node, with `ray_` before the name;
deploy/grafana.json shows them. They are for looking at: what a run has spent stands in its ledger.
"""

import time
from typing import Protocol

from ray.util.metrics import Counter, Gauge, Histogram

from kdray.observers import Observer, RoundMetrics

PURPOSES = ("training", "estimate", "evaluation")
_LOOK_S = 2.0  # least time between two looks at the ledger; Ray exports metrics every ten seconds


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
    """Metrics of the scoring workers as the driver sees them."""

    def __init__(self) -> None:
        self._requeued = Counter("kdray_chunks_requeued", "Scoring tasks assigned again after a worker died.")
        self._workers = Gauge(
            "kdray_scoring_workers", "Scoring workers, by state: ready, or waiting to be started.", tag_keys=("state",)
        )
        self._counted = 0

    def seen(self, *, requeued: int, ready: int, waiting: int) -> None:
        """Take in the state of a search: tasks requeued since it began, and its workers."""
        if requeued > self._counted:
            self._requeued.inc(requeued - self._counted)
            self._counted = requeued
        self._workers.set(ready, tags={"state": "ready"})
        self._workers.set(waiting, tags={"state": "waiting"})


class Account(Protocol):
    """The part of a ledger that tells what a run has spent."""

    def spent(self, purpose: str, owner: str) -> int: ...
    def remaining(self, purpose: str, owner: str) -> int: ...


class RunMetrics(Observer):
    """Gauges of what a run has spent, read from its ledger: at the start and end of each phase, and at most every two
    seconds while the teacher is asked.

    Args:
        ledger: the ledger of the run.
        owner: its name there.
        price: price of one query; None if it is not known.
        currency: of the price.
    """

    def __init__(self, ledger: Account, owner: str, *, price: float | None, currency: str) -> None:
        self._ledger, self._owner, self._price = ledger, owner, price
        self._charged = Gauge(
            "kdray_queries_charged", "Queries charged to a run so far, by purpose.", tag_keys=("run", "purpose")
        )
        self._left = Gauge(
            "kdray_budget_left",
            "Queries that a run can still reserve, by purpose: those on their way are taken off.",
            tag_keys=("run", "purpose"),
        )
        self._spend = Gauge(
            "kdray_spend", "Price of all queries charged to a run so far.", tag_keys=("run", "currency")
        ).set_default_tags({"run": owner, "currency": currency})
        self._asking, self._looked_at = False, 0.0
        self._look()

    def phase(self, round: int, name: str) -> None:
        """Read the ledger: the phase before this one may have charged queries."""
        self._asking = name in ("query", "estimate", "evaluate")
        self._look()

    def progress(self, done: int, total: int, *, spent: int | None = None) -> None:
        """Read the ledger, if the teacher is asked and the last look is two seconds old."""
        if self._asking and time.monotonic() - self._looked_at >= _LOOK_S:
            self._look()

    def round_done(self, metrics: RoundMetrics) -> None:
        """Read the ledger."""
        self._look()

    def _look(self) -> None:
        charged = {purpose: self._ledger.spent(purpose, self._owner) for purpose in PURPOSES}
        for purpose, queries in charged.items():
            tags = {"run": self._owner, "purpose": purpose}
            self._charged.set(queries, tags=tags)
            self._left.set(self._ledger.remaining(purpose, self._owner), tags=tags)
        if self._price is not None:
            self._spend.set(sum(charged.values()) * self._price)
        self._looked_at = time.monotonic()
