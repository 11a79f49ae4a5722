"""How many queries each round has. It depends on the config alone, so it is the same after a resume."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

from kdray.errors import ConfigError
from kdray.utils.text import counted


def evenly(budget: int, images: int, rounds: int, per_round: int | None, others: int = 0) -> list[int]:
    """Number of queries in each round, round 0 first, where the queries that round 0 leaves are divided evenly.

    If there is a remainder, the first rounds get one more each.

    Args:
        budget: training queries in all.
        images: queries in round 0.
        rounds, per_round: see `kdray.select.base.Strategy`.
        others: queries of rounds that do not choose, which are part of the budget and not of the result.

    Raises:
        ConfigError: the budget does not pay for round 0, or for at least one candidate in every later round.
    """
    enough = images + rounds * (per_round or 1)
    _check_round_0(budget, images, enough)
    left = budget - images - others
    if rounds and left < rounds * (per_round or 1):
        # How many the other rounds have may depend on the budget, so nobody here knows which budget is enough.
        taken, least = (f" and {others:,} queries of other rounds", "") if others else ("", f" to at least {enough:,}")
        fewer = f", or lower select.per_round to {left // rounds:,}" if per_round and left >= rounds else ""
        raise ConfigError(
            f"budget.queries: after round 0{taken} {left:,} of {budget:,} queries are left, too few for "
            f"select.rounds = {rounds} rounds of {per_round or 1:,}; raise budget.queries{least}{fewer}"
        )
    if per_round is not None:
        return [images] + [per_round] * rounds
    return [images] + [left // rounds + (k < left % rounds) for k in range(rounds)]


def asking_again(budget: int, images: int, rounds: int, per_round: int | None) -> list[int]:
    """Number of new images in each round, round 0 first, where every later round asks about all before once more.

    E rounds of B new images are (E + 1) `images` + B E (E + 1) / 2 queries, and the budget pays for all of them.

    The arguments are those of `evenly`.

    Raises:
        ConfigError: the budget does not pay for that.
    """
    least = per_round or 1

    def wanted(rounds: int) -> int:
        return images * (rounds + 1) + least * rounds * (rounds + 1) // 2

    _check_round_0(budget, images, wanted(rounds))
    if wanted(rounds) > budget:
        most = bisect_right(range(rounds + 1), budget, key=wanted) - 1
        fewer = f"lower select.rounds to {most}" if most else "lower select.first or select.per_round"
        raise ConfigError(
            f"budget.queries: {budget:,} are too few for select.rounds = {rounds:,} with {counted(least, 'new image')} "
            f"in each, as each asks again about all before (pool.requery): these are {wanted(rounds):,} queries; raise "
            f"budget.queries to that, or {fewer}"
        )
    if per_round is None and rounds:
        per_round = (budget - images * (rounds + 1)) // (rounds * (rounds + 1) // 2)
    return [images] + [per_round or 0] * rounds


def nested(budget: int, images: int) -> list[int]:
    """Number of queries in each round, round 0 first, where the queries in all double from round to round.

    The arguments are those of `evenly`.

    Raises:
        ConfigError: round 0 asks nothing, or the budget does not pay for it.
    """
    if images == 0:
        raise ConfigError(
            "select.schedule: nested doubles the queries of round 0, and round 0 has none; set select.first to a "
            "number, or list the queries in all after each round, such as [250, 500, 1000]"
        )
    return until(budget, images, _doubled(images))


def _doubled(images: int) -> Iterator[int]:
    while True:
        images *= 2
        yield images


def until(budget: int, images: int, totals: Iterable[int]) -> list[int]:
    """Number of queries in each round, round 0 first, where the rounds after round 0 end at `totals` queries in all.

    Totals that do not lie below the budget are left out. The last round ends at the budget.

    Args:
        totals: ascending.
        budget, images: see `evenly`.

    Raises:
        ConfigError: the budget does not pay for round 0, or a total is not above what round 0 asks.
    """
    _check_round_0(budget, images, images)
    ends = [images]
    for total in totals:
        if total <= images:
            raise ConfigError(
                f"select.schedule: {total:,} queries in all after a round, but round 0 asks {images:,} already; a "
                f"total counts the queries of round 0 too: give totals above {images:,}, or lower select.first"
            )
        if total >= budget:
            break
        ends.append(total)
    if budget > images:
        ends.append(budget)
    return [images] + [end - begin for begin, end in pairwise(ends)]


def _check_round_0(budget: int, images: int, enough: int) -> None:
    if budget < images:
        raise ConfigError(
            f"budget.queries: {budget:,} queries do not pay for round 0, which asks for {images:,} images; "
            f"raise budget.queries to at least {enough:,}, lower select.first, or give fewer images "
            "(images.count)"
        )
