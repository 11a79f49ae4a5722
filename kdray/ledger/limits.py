"""How fast a teacher may be asked, as policy: numbers in, a decision out. It knows no clock and no file.

The counts it decides on lie in the ledger, so every run, trial and worker on one ledger shares them, and a run that was
killed and started again does not get its burst a second time.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_TINY = 1e-9  # a level of 0.9999999999 is a token
_TICK_S = 1e-6  # seconds since 1970 are no finer: who waits to the last bit must not find it a bit too early
_SLACK_S = 0.25  # a busy machine or network holds a request up for so long


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one teacher, over all who ask it. None sets none.

    Attributes:
        requests_per_s, requests_per_minute: refill of two token buckets; a request must find a token in both.
        burst: tokens a bucket holds: requests that may go at once after a pause.
        in_flight: requests sent and not yet answered.
        queries_per_day: images a day (UTC).
    """

    requests_per_s: float | None = None
    requests_per_minute: float | None = None
    burst: int = 1
    in_flight: int | None = None
    queries_per_day: int | None = None

    def buckets(self) -> "dict[str, TokenBucket]":
        """The token buckets in force, by the name under which the ledger keeps their level."""
        rates = {"second": self.requests_per_s, "minute": self.requests_per_minute and self.requests_per_minute / 60}
        return {name: TokenBucket(rate, self.burst) for name, rate in rates.items() if rate}


@dataclass(frozen=True)
class Fill:
    """What is in a bucket.

    Attributes:
        level: tokens that may be used, at `since`.
        since: when that was, seconds; in the future while the refill pauses.
    """

    level: float
    since: float


@dataclass(frozen=True)
class TokenBucket:
    """At most `rate_per_s` requests a second in the long run, and `burst` at once: in any t seconds at most
    burst + rate_per_s * t.

    That holds where they leave, and where they arrive, though no two are equally long on their way: what arrives in t
    seconds left within t + `slack_s`, so no more may leave in those than may arrive in t. It is so when a token may be
    used one slack after it came in. In a bucket that is in use tokens come in all the time, and this slows nobody
    down; in a full one none do, so after a pause the first come one slack late.

    Attributes:
        rate_per_s: refill.
        burst: capacity.
    """

    rate_per_s: float
    burst: int

    @property
    def slack_s(self) -> float:
        """How much longer than another a request may be on its way. At most half of what a burst makes up for beyond
        the token in use, so that who looks late by as much still gets the whole rate."""
        return min(_SLACK_S, max(0, self.burst - 2) / (2 * self.rate_per_s))

    def fill(self, last: Fill | None, now: float) -> Fill:
        """What is in it at `now`, of what was there `last`; a new one is full. A clock set back adds none."""
        if last is None:
            return Fill(float(self.burst), now)
        if now < last.since:
            # Further away than any pause: the clock was set back. Fill from here, or nothing goes until it caught up.
            return Fill(last.level, last.since if last.since <= now + self.slack_s else now)
        return Fill(min(float(self.burst), last.level + (now - last.since) * self.rate_per_s), now)

    def take(self, fill: Fill, requests: int, now: float) -> Fill:
        """What is left of `fill` when so many go at `now`."""
        since = max(fill.since, now)
        # With those that have come in and may not yet be used it was full for this long, and none came in.
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
