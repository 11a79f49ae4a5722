"""The rate limit as a policy: state in, decision out. It knows no clock; the caller brings the time."""


class TokenBucket:
    """At most `rate_per_s` queries a second in the long run and `burst` at once.

    One bucket serves the whole teacher pool, so workers do not multiply the rate.

    Args:
        rate_per_s: refill, queries a second.
        burst: the most that can go at once after a pause.
        now: the time it starts, in seconds on the caller's clock; it starts full.
    """

    def __init__(self, rate_per_s: float, burst: int, now: float) -> None:
        self.rate_per_s, self.burst = rate_per_s, burst
        self._level, self._time = float(burst), now

    def take(self, queries: int, now: float) -> float:
        """Take `queries` and return the seconds to wait before sending them (0 when they may go at once).

        A batch larger than `burst` is let through as a debt that later batches wait for.
        """
        self._level = min(float(self.burst), self._level + max(0.0, now - self._time) * self.rate_per_s)
        self._time = max(now, self._time)
        owed = max(0.0, min(queries, self.burst) - self._level)
        self._level -= queries
        return owed / self.rate_per_s
