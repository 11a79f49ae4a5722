"""What there is to choose from, and how many candidates each round chooses."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

from kdray.config.root import Config
from kdray.errors import ConfigError
from kdray.images import ImageSet, read_images
from kdray.images.base import ImageSource
from kdray.pools.base import Pool, PoolSection
from kdray.pools.kinds import KindsPool
from kdray.pools.remade import EACH
from kdray.select import schedule as schedules
from kdray.training.choice import FOLDS
from kdray.utils.seeds import numpy_generator


@dataclass(frozen=True, kw_only=True)
class PoolSchedule:
    """What there is to choose from, and how many are chosen.

    Attributes:
        images: the user's images.
        pool: over them.
        schedule: queries of each round, without those for an estimate.
        kinds: the pools that a round may choose from: `pool`, or those that it consists of, and round 1 is their trial.
        estimate: queries for the estimate of m, before round 1.
        copies: queries of the last round, if that asks about augmented copies; else 0.
        again: of the queries of each round those about images that an earlier round has asked about.
        section, source: the sections of the pool and the images, with what a run records in its config.
        sized: the section of the pool with its size, of which `pool` is built.
        notes: what the user should know of the pool: why it has its size, where that follows from the choice, and what
            cannot be used.
    """

    images: ImageSet
    pool: Pool
    kinds: tuple[Pool, ...]
    schedule: list[int]
    estimate: int
    copies: int
    again: list[int]
    section: PoolSection
    sized: PoolSection
    source: ImageSource
    notes: tuple[str, ...] = ()

    def told(self) -> list[str]:
        """What the user should know of how the images were read, and of the pool."""
        return [*self.images.notes, *self.notes]

    @property
    def chosen(self) -> list[int]:
        """Candidates that each round chooses from the pool."""
        trial = len(self.kinds) > 1
        new = [queries - again for queries, again in zip(self.schedule, self.again, strict=True)]
        return new[1 + trial : len(new) - (self.copies > 0)]


def read_pool(config: Config, in_memory: ImageSet | None = None) -> PoolSchedule:
    """The user's images (`in_memory`, or read), the pool over them, and the queries of each round.

    Raises:
        ImageSetError: images that cannot be read.
        ConfigError: a budget below what round 0 needs, or above what the pool holds; an m above it.
    """
    source, told = config.images.resolved("images") if in_memory is None else (config.images, [])
    images = in_memory or read_images(source, generator=numpy_generator(config.seed, "images"))
    resolved, notes = config.pool.resolved(images.image_shape)
    config = config.model_copy(update={"images": source, "pool": resolved})
    pool, strategy = config.pool.build(images.images, config.seed), config.select
    queries, trial, copies = _divided(config, pool, config.budget.queries)
    if trial and queries[0] < FOLDS:
        raise ConfigError(
            f"pool.kind: auto compares kinds of candidates by answers about the images of round 0, and that asks about "
            f"{queries[0]:,}; set select.first to {FOLDS} or more, or name one kind of pool"
        )
    looks = _looked_at(config, queries) if resolved.remade else sum(queries[1:])
    section, reason = config.pool.sized(len(images), looks)
    if section is not config.pool:
        pool = section.build(images.images, config.seed)
    kinds: tuple[Pool, ...] = (pool,)
    if isinstance(pool, KindsPool):
        kinds = pool.kinds
        pool.check_trial(trial)
    wanted, room = _wanted(config, queries), _room(config, kinds, queries[0], trial)
    if wanted > room:
        most = _most_queries(config, pool, kinds)
        smallest = min(range(len(kinds)), key=lambda number: strategy.capacity(kinds[number]))
        more = config.pool.kinds[smallest].enlarged(len(images))
        when = "in a round" if resolved.remade else "after round 0"
        raise ConfigError(
            f"budget.queries: {wanted:,} candidates are to be chosen {when}, but the pool over "
            f"{len(images):,} images has only {max(0, room):,} for {strategy.strategy}; "
            + (f"lower budget.queries to {most:,} or {more}" if most else more)
        )
    for kind in kinds:
        strategy.check_size(kind, queries, room if resolved.remade else room - sum(queries[1:-1]))
    count = strategy.queries_for_estimate(queries[1]) if len(queries) > 1 else 0
    if count > pool.num_groups and config.validation is None:
        raise ConfigError(
            f"select.estimate_queries: {count:,} pairs wanted for the estimate of m, but there are "
            f"{pool.num_groups:,}; lower it, or set select.m to a share such as 0.05"
        )
    if count:
        queries[1] -= count
    if trial:
        queries.insert(1, trial)
    if copies:
        if not sum(queries):
            raise ConfigError(
                "student.labels: requery asks about copies of what was bought, and nothing is bought before the last "
                f"round: select.first is {config.select.first} and select.rounds {config.select.rounds}; raise one of "
                "them, or set student.labels to reuse"
            )
        queries.append(copies)
    again = [0] * len(queries)
    if resolved.asks_again:
        queries = list(accumulate(queries))
        again, left = [0, *queries[:-1]], config.budget.queries - sum(queries)
        notes.append(
            f"pool.requery: {sum(again):,} of {sum(queries):,} queries ask again about images that have an answer, and "
            f"are paid for again" + (f"; {left:,} of the budget are left over" if left else "")
        )
    return PoolSchedule(
        images=images,
        pool=pool,
        kinds=kinds,
        schedule=queries,
        estimate=count,
        copies=copies,
        again=again,
        section=resolved,
        sized=section,
        source=source,
        notes=(*told, *notes, *([reason] if reason else [])),
    )


def _divided(config: Config, pool: Pool, budget: int) -> tuple[list[int], int, int]:
    """New queries of round 0 and of each round that chooses, those of the trial of kinds, and those for copies.

    Raises:
        ConfigError: too few for one of them.
    """
    start = _first_images(config, pool, budget)
    if config.pool.asks_again:
        rounds = config.select.rounds
        assert rounds is not None, "the schedule is even, see `kdray.config.root.Config`"
        return schedules.asking_again(budget, start, rounds, config.select.per_round), 0, 0
    config.select.queries(budget, start)  # says what is wrong with a budget too small even without the other rounds
    trial = config.pool.trial(budget - start)
    copies = _copies(config, budget - start - trial)
    return config.select.queries(budget, start, trial + copies), trial, copies


def _wanted(config: Config, queries: list[int]) -> int:
    """Candidates that the rounds that choose take from the pool: not what an estimate asks about other images. Of a
    pool that each round makes anew, the most that a round takes."""
    if config.pool.remade:
        return max(queries[1:], default=0)
    others = config.select.queries_for_estimate(queries[1]) if len(queries) > 1 and config.validation else 0
    return sum(queries[1:]) - others


def _looked_at(config: Config, queries: list[int]) -> int:
    """Candidates that a round needs, where each makes its own."""
    return _wanted(config, queries) * (EACH if config.select.looks else 1)


def _room(config: Config, kinds: tuple[Pool, ...], start: int, trial: int) -> int:
    """Candidates that each of the kinds has for the rounds that choose."""
    taken = start if kinds[0].real else -(-trial // len(kinds))
    return min(config.select.capacity(kind) for kind in kinds) - taken


def _most_queries(config: Config, pool: Pool, kinds: tuple[Pool, ...]) -> int | None:
    """The largest budget below the config's for which there are enough candidates; None if no budget will do."""

    def too_large(budget: int) -> bool:
        try:
            queries, trial, _ = _divided(config, pool, budget)
            return _wanted(config, queries) > _room(config, kinds, queries[0], trial)
        except ConfigError:  # too few queries
            return False

    most = bisect_left(range(config.budget.queries), True, key=too_large) - 1
    try:
        _divided(config, pool, most)
    except ConfigError:
        return None
    return most


def _copies(config: Config, queries: int) -> int:
    """Of the queries after round 0, those for augmented copies of what was bought with the others."""
    if config.student.labels == "reuse":
        return 0
    share = config.student.requery_share
    if (copies := round(share * queries)) < 1:
        raise ConfigError(
            f"budget.queries: {queries:,} left after round 0, and student.requery_share = {share:g} of "
            "them leaves none for augmented copies; raise budget.queries, or set student.labels to reuse"
        )
    return copies


def _first_images(config: Config, pool: Pool, budget: int) -> int:
    """Images asked about in round 0, see `kdray.select.base.Strategy.first`."""
    first, count = config.select.first, len(pool.images)
    if first != "auto":
        if first > count:
            raise ConfigError(f"select.first: {first:,} images wanted in round 0, but there are {count:,}; lower it")
        return first
    if not pool.real:
        return count
    if config.labelled is not None:
        return 0
    if (rounds := config.select.rounds) is None:
        raise ConfigError(
            f"select.first: auto takes as many real images as the rounds divide the budget into, and select.schedule "
            f"is {config.select.schedule}; set select.first to a number of images"
        )
    return config.select.per_round or min(count, max(1, budget // (rounds + 1)))
