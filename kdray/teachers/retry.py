"""When to ask again, when to wait and when to give up: decisions from faults and times; nothing is sent here.

tenacity would retry one call. Here a retry is a new purchase with its own reservation, and a rest holds for all who
ask this teacher, so the decision is taken where replies come in.
"""

import random
from typing import Annotated

from pydantic import Field

from kdray.sections.base import Section
from kdray.teachers.faults import Fault

_DOUBTS = 3  # images that a teacher may decline before it has answered any
_MOST_DOUBTS = 10  # and one that has: from all over what is asked, so it is hardly the images
_MOST_DOUBLINGS = 64  # beyond every cap, and below what a float holds


class RetryPolicy(Section):
    """How patient to be with a teacher that fails."""

    tries: Annotated[int, Field(ge=1)] = 5
    """Requests that may be charged before giving up: for one image, which is then set aside, and failures in a row,
    after which the run stops. A batch that is lost twice is asked again in halves, so an image is given up alone."""
    give_up_after_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds for which the teacher may take no request and charge nothing (429, 503, no connection after it has
    answered) before the run stops."""
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
        """The teacher has answered this process: what fails now is an accident, and not a wrong address."""
        self.known = False
        """The ledger has answers of this teacher: some images it has taken."""
        self.batch_limit: int | None = None
        """Images a request that the teacher was found to take, where that is less than `teacher.batch_size`."""
        self._jitter = jitter or random.SystemRandom()
        self._failures = self._charged = 0  # in a row
        self._since = self._until = 0.0  # when the first and the last of the row came
        self._declined = 0
        self._counted_at = float("-inf")

    @property
    def believed(self) -> bool:
        """The teacher has answered, now or earlier."""
        return self.proven or self.known

    def slots(self, wanted: int) -> int:
        """Requests to keep on their way: one until the teacher has answered, and one while it fails."""
        return wanted if self.proven and self._failures == 0 else min(1, wanted)

    def succeeded(self) -> None:
        """Note that an answer came."""
        self.proven, self._failures, self._charged, self._declined = True, 0, 0, 0

    def declined(self) -> bool:
        """Note that the teacher declined an image; whether to give up, since it has answered none in between. Who lets
        all images of a round be set aside has one that answers nothing at all to put up with."""
        self._declined += 1
        if not self.believed:
            return self._declined >= _DOUBTS
        return self.policy.max_bad_share < 1 and self._declined >= _MOST_DOUBTS

    def failed(self, fault: Fault, sent_at: float, now: float, *, same: bool = False) -> float:
        """Note `fault` of a request.

        Args:
            sent_at, now: seconds of one monotonic clock.
            same: the failure before was of the same one image: of the teacher this one says nothing new.

        Returns:
            Seconds to leave the teacher alone.
        """
        self._until = now
        if sent_at >= self._counted_at:
            self._since = self._since if self._failures else now
            self._failures += 1
            self._charged += fault.charged and not same
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
        # A wrong address, or a server that is not there; replies that make no sense.
        at_once = (not self.proven and fault.kind == "unsent") or (not self.believed and fault.kind == "malformed")
        if fault.final or at_once:
            return fault.message
        if fault.wait_s is not None and fault.wait_s > self.policy.max_wait_s:
            return f"{fault.message}; it wants to be left alone for {fault.wait_s:,.0f} s (teacher.retry.max_wait_s)"
        if fault.charged and self._charged >= self.policy.tries:
            return f"the teacher failed {self._charged} times in a row; last: {fault.message}"
        if not fault.charged and self._until - self._since >= self.policy.give_up_after_s:
            return (
                f"the teacher has taken no request for {self._until - self._since:,.0f} s "
                f"(teacher.retry.give_up_after_s); last: {fault.message}"
            )
        return None
