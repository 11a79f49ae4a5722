"""When to ask again, when to wait, and when to give up: a policy that knows replies and the time, and sends nothing.

tenacity would retry one call; here a retry is a new purchase (its own reservation, its own permit), and a rest is for
all who ask this teacher, so the decision is taken where replies come in.
"""

import random
from dataclasses import dataclass

from kdray.teachers.pool import Fault

_MOST_DOUBLINGS = 64  # beyond every cap, and below what a float holds


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How patient to be with a teacher.

    Attributes:
        tries: requests for one image, and rounds of failures in a row, before giving up.
        backoff_s: rest after the first failure; doubled with each that follows.
        max_backoff_s: longest rest of our own making.
        max_wait_s: longest rest the teacher may ask for (Retry-After); above it the run stops.
        max_bad_share: share of the images of a purchase that may stay without an answer one can believe.
    """

    tries: int = 5
    backoff_s: float = 0.5
    max_backoff_s: float = 60.0
    max_wait_s: float = 300.0
    max_bad_share: float = 0.05


class Patience:
    """What the replies so far say about the teacher: is it there, and how long should it be left alone?

    Failures of requests that were on their way at the same time count once: they say the same thing.

    Args:
        policy: how patient to be.
        jitter: spreads the rests of several runs; not seeded by the run, or trials with one seed would all come back
            at the same moment.
    """

    def __init__(self, policy: RetryPolicy, jitter: random.Random | None = None) -> None:
        self.policy = policy
        self.proven = False
        """It has answered: a garbled reply is an accident, and not a wrong address."""
        self._jitter = jitter or random.SystemRandom()
        self._failures = 0
        self._counted_at = float("-inf")

    def slots(self, wanted: int) -> int:
        """Requests to have on their way: one until it has answered, and one while it fails."""
        return wanted if self.proven and self._failures == 0 else min(1, wanted)

    def succeeded(self) -> None:
        """An answer came."""
        self.proven, self._failures = True, 0

    def failed(self, fault: Fault, sent_at: float, now: float) -> float:
        """Seconds to leave the teacher alone after `fault`, of a request sent at `sent_at`."""
        if sent_at >= self._counted_at:
            self._failures += 1
            self._counted_at = now
        policy = self.policy
        # 0: the teacher has answered since the others of its wave failed.
        doublings = max(0, self._failures - 1)
        if doublings == 0 and fault.kind in ("lost", "malformed", "doubtful"):
            return fault.wait_s or 0.0  # one request went wrong; the others need not wait for it
        longest = min(policy.max_backoff_s, policy.backoff_s * 2.0 ** min(doublings, _MOST_DOUBLINGS))
        return max(longest * self._jitter.uniform(0.5, 1.0), fault.wait_s or 0.0)

    def verdict(self, fault: Fault) -> str | None:
        """Why the run has to stop after `fault`, which `failed` was told of; None where it can go on."""
        if fault.final:
            return fault.message
        if not self.proven and fault.kind in ("unsent", "malformed", "declined"):
            return fault.message
        if fault.wait_s is not None and fault.wait_s > self.policy.max_wait_s:
            return f"{fault.message}; it wants to be left alone for {fault.wait_s:,.0f} s (teacher.retry.max_wait_s)"
        if self._failures >= self.policy.tries:
            return f"the teacher failed {self._failures} times in a row; last: {fault.message}"
        return None
