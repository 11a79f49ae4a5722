"""How fast a teacher may be asked: the limits, and token buckets as arithmetic without a clock or a file.

The counts lie in the ledger, so every run, trial and worker on one ledger shares them, and a run that was killed and
started again does not get its burst a second time.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import Field

from kdray.sections.base import Section

_TINY = 1e-9  # a level of 0.9999999999 is a token
_TICK_S = 1e-6  # floats of seconds since 1970 are no finer: a caller must not wake up a rounding error too early
_SLACK_S = 0.25  # a busy machine or network delays a request by so much


class Limits(Section):
    """How fast the teacher may be asked: by all workers, runs and trials on one ledger together."""

    requests_per_s: Annotated[float, Field(gt=0)] | None = None
    """Most requests a second; in any t seconds at most burst + requests_per_s * t."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Most requests a minute, likewise."""
    burst: Annotated[int, Field(ge=1)] = 1
    """Requests that may go at once after a pause."""
    in_flight: Annotated[int, Field(ge=1)] = 8
    """Most requests sent and not yet answered."""
    queries_per_day: Annotated[int, Field(ge=1)] | None = None
    """Most images a day (UTC). The run stops when they are used up, and can be resumed the next day."""

    def buckets(self) -> "dict[str, TokenBucket]":
        """The token buckets in force, by the name under which the ledger keeps their level."""
        rates = {"second": self.requests_per_s, "minute": self.requests_per_minute and self.requests_per_minute / 60}
        return {name: TokenBucket(rate, self.burst) for name, rate in rates.items() if rate}


@dataclass(frozen=True)
class Fill:
    """The content of a bucket.

    Attributes:
        level: tokens that may be used, at `since`.
        since: time of that level, seconds; in the future while the refill pauses.
    """

    level: float
    since: float


@dataclass(frozen=True)
class TokenBucket:
    """At most `rate_per_s` requests a second in the long run, and `burst` at once: in any t seconds at most
    burst + rate_per_s * t.

    The bound holds where requests leave, and also where they arrive, although their travel times differ by up to
    `slack_s`: the requests that arrive within t seconds left within t + `slack_s`, so no more may leave in that time
    than may arrive in t. To that end a token may be used one slack after it came in. A bucket in use gains tokens all
    the time, so this slows nobody down; a full bucket gains none, so after a pause the first new tokens are one slack
    late.

    Attributes:
        rate_per_s: refill.
        burst: capacity.
    """

    rate_per_s: float
    burst: int

    @property
    def slack_s(self) -> float:
        """How much longer than another a request may be on its way. It is at most half the time in which the burst
        beyond the token in use is refilled, so that a caller who looks that much late still gets the whole rate."""
        return min(_SLACK_S, max(0, self.burst - 2) / (2 * self.rate_per_s))

    def fill(self, last: Fill | None, now: float) -> Fill:
        """The content at `now`, from the `last` one known; a new bucket is full. A clock that was set back adds no
        tokens."""
        if last is None:
            return Fill(float(self.burst), now)
        if now < last.since:
            # Later than any pause can reach: the clock was set back. Fill from now, or nothing goes until it caught up.
            return Fill(last.level, last.since if last.since <= now + self.slack_s else now)
        return Fill(min(float(self.burst), last.level + (now - last.since) * self.rate_per_s), now)

    def take(self, fill: Fill, requests: int, now: float) -> Fill:
        """The content that is left of `fill` when so many requests go at `now`."""
        since = max(fill.since, now)
        # Counting the tokens that came in and may not yet be used, the bucket was full for this long and gained none.
        late = fill.level - (since - now) * self.rate_per_s + self.slack_s * self.rate_per_s - self.burst
        pause = max(0.0, late / self.rate_per_s) if requests else 0.0
        return Fill(fill.level - requests, since + pause)

    def tokens(self, fill: Fill) -> int:
        """Requests that may go at once."""
        return math.floor(fill.level + _TINY)

    def wait_s(self, fill: Fill, now: float) -> float:
        """Seconds from `now` until the next request may go."""
        if self.tokens(fill):
            return 0.0
        return max(0.0, fill.since - now) + (1.0 - fill.level) / self.rate_per_s + _TICK_S


def day_of(now: float) -> str:
    """The day (UTC) of a time in seconds since 1970: daily quotas are counted by it."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def seconds_left_today(now: float) -> float:
    """Seconds from `now` to the next day (UTC)."""
    moment = datetime.fromtimestamp(now, UTC)
    midnight = datetime.combine(moment.date() + timedelta(days=1), datetime.min.time(), UTC)
    return (midnight - moment).total_seconds()
