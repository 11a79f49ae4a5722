"""How fast a teacher may be asked, as policy: numbers in, a decision out. It knows no clock and no file.

The counts it decides on lie in the ledger, so every run, trial and worker on one ledger shares them, and a run that was
killed and started again does not get its burst a second time.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_TINY = 1e-9  # a level of 0.9999999999 is a token
_TICK_S = 1e-6  # seconds since 1970 are no finer: who waits to the last bit must not find it a bit too early


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
class TokenBucket:
    """At most `rate_per_s` requests a second in the long run, and `burst` at once: in any t seconds at most
    burst + rate_per_s * t.

    Attributes:
        rate_per_s: refill.
        burst: capacity.
    """

    rate_per_s: float
    burst: int

    def level(self, level: float | None, since: float, now: float) -> float:
        """Tokens at `now`, of `level` at `since`; a bucket never used before is full. A clock set back adds none."""
        if level is None:
            return float(self.burst)
        return min(float(self.burst), level + max(0.0, now - since) * self.rate_per_s)

    def tokens(self, level: float) -> int:
        """Requests that may go at once."""
        return math.floor(level + _TINY)

    def wait_s(self, level: float) -> float:
        """Seconds until the next request may go."""
        return (1.0 - level) / self.rate_per_s + _TICK_S if level < 1.0 else 0.0


def day_of(now: float) -> str:
    """The day (UTC) of a time in seconds since 1970: daily quotas are counted by it."""
    return datetime.fromtimestamp(now, UTC).date().isoformat()


def seconds_left_today(now: float) -> float:
    """Seconds from `now` to the next day (UTC)."""
    moment = datetime.fromtimestamp(now, UTC)
    midnight = datetime.combine(moment.date() + timedelta(days=1), datetime.min.time(), UTC)
    return (midnight - moment).total_seconds()
