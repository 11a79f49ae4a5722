"""When to ask again, when to wait and when to give up: decisions from faults and times; nothing is sent here.

tenacity would retry one call. Here a retry is a new purchase with its own reservation, and a rest holds for all who
ask this teacher, so the decision is taken where replies come in.
"""

import random
from typing import Annotated

from pydantic import Field

from kdray.sections.base import Section
from kdray.teachers.faults import Fault

_MOST_DOUBLINGS = 64  # beyond every cap, and below what a float holds


class RetryPolicy(Section):
    """How patient to be with a teacher that fails."""

    tries: Annotated[int, Field(ge=1)] = 5
    """Requests for one image, and failures in a row, before giving up."""
    backoff_s: Annotated[float, Field(gt=0)] = 0.5
    """Rest after a failure, for all workers; doubled with each that follows, shortened at random by up to a half."""
    max_backoff_s: Annotated[float, Field(gt=0)] = 60.0
    """Longest such rest."""
    max_wait_s: Annotated[float, Field(gt=0)] = 300.0
    """Longest rest the teacher may ask for (Retry-After); when it wants more the run stops, and can be resumed."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of a round's images that may be set aside because the teacher gave no valid answer to them."""


class RetryState:
    """What the replies so far say about a teacher: whether it answers, and how long to leave it alone.

    Failures of requests that were on their way at the same time count once, because they have one cause.

    Args:
        policy: the limits of patience.
        jitter: spreads the rests of several runs. It is not seeded by the run: trials with one seed would all come
            back at the same moment.
    """

    def __init__(self, policy: RetryPolicy, jitter: random.Random | None = None) -> None:
        self.policy = policy
        self.proven = False
        """The teacher has answered once: a malformed reply is an accident, and not a wrong address."""
        self._jitter = jitter or random.SystemRandom()
        self._failures = 0
        self._counted_at = float("-inf")

    def slots(self, wanted: int) -> int:
        """Requests to keep on their way: one until the teacher has answered, and one while it fails."""
        return wanted if self.proven and self._failures == 0 else min(1, wanted)

    def succeeded(self) -> None:
        """Note that an answer came."""
        self.proven, self._failures = True, 0

    def failed(self, fault: Fault, sent_at: float, now: float) -> float:
        """Note `fault` of a request.

        Args:
            sent_at, now: seconds of one monotonic clock.

        Returns:
            Seconds to leave the teacher alone.
        """
        if sent_at >= self._counted_at:
            self._failures += 1
            self._counted_at = now
        policy = self.policy
        # 0: the teacher has answered since other requests of the same wave failed.
        doublings = max(0, self._failures - 1)
        if doublings == 0 and fault.kind in ("lost", "malformed", "doubtful"):
            return fault.wait_s or 0.0  # one request failed; the others need not wait for it
        longest = min(policy.max_backoff_s, policy.backoff_s * 2.0 ** min(doublings, _MOST_DOUBLINGS))
        return max(longest * self._jitter.uniform(0.5, 1.0), fault.wait_s or 0.0)

    def verdict(self, fault: Fault) -> str | None:
        """Why the run has to stop after `fault`, of which `failed` was told; None where it can go on."""
        if fault.final:
            return fault.message
        if not self.proven and fault.kind in ("unsent", "malformed", "declined"):
            return fault.message
        if fault.wait_s is not None and fault.wait_s > self.policy.max_wait_s:
            return f"{fault.message}; it wants to be left alone for {fault.wait_s:,.0f} s (teacher.retry.max_wait_s)"
        if self._failures >= self.policy.tries:
            return f"the teacher failed {self._failures} times in a row; last: {fault.message}"
        return None
