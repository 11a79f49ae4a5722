"""RAD's draw from a pool whose gains are not listed, against the draw from a list."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from test_rad import cases, worst

from kdray.models.classifier import build_model
from kdray.models.features import head
from kdray.pools.mixup import MixupPool
from kdray.search import GainsRequest, ScoresRequest, SearchContext
from kdray.search.binned import Binned, BinnedRequest, Held, keys_of
from kdray.search.bins import BINS, WIDTH, bin_values, bins_of
from kdray.search.forward import Forward, ForwardOptions
from kdray.search.local import LocalSearcher
from kdray.search.stages import Cut
from kdray.sections.search import SearchSettings
from kdray.select.base import Task, select, strategies
from kdray.select.rad import stream
from kdray.select.rad.binned import inclusion_of_bins, most_draws_of_bins
from kdray.select.rad.draw import most_draws
from kdray.select.rad.game import inclusion
from kdray.select.strategies import rad

EXHAUSTIVE, GUESSING = SearchSettings(search="exhaustive"), SearchSettings(search="interpolated")
PIXELS = ForwardOptions(mixing="pixels")


def histogram(gains: np.ndarray) -> np.ndarray:
    return np.bincount(bins_of(gains), minlength=BINS)


# --- bins


def test_a_bin_is_narrow_and_bins_are_in_the_order_of_gains() -> None:
    rng = np.random.default_rng(0)
    gains = np.concatenate([rng.random(5000), 10.0 ** (-25 * rng.random(5000)), 255 * rng.random(500), [1.0, 2.0**-24]])
    gains = np.sort(gains.astype(np.float32))
    bins = bins_of(gains)
    assert (np.diff(bins) >= 0).all() and bins.max() < BINS
    assert (abs(gains - bin_values()[bins]) < WIDTH * bin_values()[bins]).all()
    assert bins_of(bin_values().astype(np.float32)).tolist() == list(range(BINS))
    assert bins_of(np.array([0.0, -0.0, 1e-38, 7e-31])).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf, 256.0])
def test_a_gain_in_no_bin_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        bins_of(np.array([0.5, bad]))


def test_keys_are_uniform_and_follow_from_seed_and_number() -> None:
    numbers = np.arange(100_000) + 10**12
    keys = keys_of(numbers, 7)
    assert np.array_equal(keys[[5, 77]], keys_of(numbers[[5, 77]], 7))
    assert keys.min() >= 0 and keys.max() < 1 and len(np.unique(keys)) == len(keys)
    assert abs(np.histogram(keys, 20, (0, 1))[0] / 5000 - 1).max() < 0.08
    assert abs(np.corrcoef(keys, keys_of(numbers, 8))[0, 1]) < 0.02
    assert abs(np.corrcoef(keys[1:], keys[:-1])[0, 1]) < 0.02


# --- probabilities


@pytest.mark.parametrize("count", [150, pytest.param(4000, marks=(pytest.mark.storm, pytest.mark.long))])
def test_a_histogram_has_the_probabilities_of_the_list_of_its_values(count: int) -> None:
    for rng, some, mistakes in cases(3, count, 25):
        gains = (some if rng.random() < 0.6 else some**12).astype(np.float32)
        bins, w = bins_of(gains), None if rng.random() < 0.3 else rng.random()
        listed = bin_values()[bins]
        draws = int(rng.integers(0, len(gains) + 1))
        q = inclusion_of_bins(histogram(gains), draws, mistakes, w)
        np.testing.assert_allclose(q[bins], inclusion(listed, draws, mistakes, w), atol=1e-9)
        most = most_draws_of_bins(histogram(gains), mistakes, w)
        assert most == most_draws(listed.astype(np.float32), mistakes, w)


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=(pytest.mark.storm, pytest.mark.long))])
def test_bins_lose_no_more_of_the_games_value_than_said(count: int) -> None:
    """The bound in kdray.select.rad.binned."""
    for rng, listed, mistakes in cases(4, count, 25):
        gains = listed.astype(np.float32).astype(np.float64)
        draws, w = int(rng.integers(1, len(gains) + 1)), rng.random()
        bins = bins_of(gains)
        q, best = inclusion_of_bins(histogram(gains), draws, mistakes, w)[bins], inclusion(gains, draws, mistakes, w)
        lost = worst(best, gains, w * gains, mistakes) - worst(q, gains, w * gains, mistakes)
        values = bin_values()[bins]
        assert -1e-9 <= lost <= WIDTH * ((q + best) @ values) + 1e-9


@pytest.mark.parametrize("power", [1.0, 8.0])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3])
def test_probabilities_differ_from_those_of_a_list_by_half_a_percent_at_most(power: float, share: float) -> None:
    gains = np.random.default_rng(1).random(200_000).astype(np.float32) ** np.float32(power)
    listed = inclusion(gains, 500, share * len(gains))
    binned = inclusion_of_bins(histogram(gains), 500, share * len(gains))[bins_of(gains)]
    assert binned.sum() == pytest.approx(500, abs=1e-6)
    inside = (listed > 0) & (binned > 0)
    ends = gains[~inside & (binned + listed > 0)]  # in the bin at the end of the support
    assert len(ends) == 0 or ends.max() <= ends.min() * (1 + 2 * WIDTH)
    if share:
        np.testing.assert_allclose(binned[inside], listed[inside], rtol=5e-3)


# --- the draw, from what a searcher finds


class Table:
    """A pool of one-pixel images, each of which says its number, and so its gain."""

    linear = real = False
    source, group_size, image_shape = "table", 1, (1, 1, 8)

    def __init__(self, num_groups: int) -> None:
        self.num_groups, self.images = num_groups, torch.zeros(1, 1, 1, 8, dtype=torch.uint8)

    def __len__(self) -> int:
        return self.num_groups

    def to(self, device):
        return self

    def render(self, ids: torch.Tensor) -> torch.Tensor:
        return ids.contiguous().view(torch.uint8).view(-1, 1, 1, 8)

    def batches(self, groups: torch.Tensor, step: int, indices=None):
        yield from map(self.render, groups.split(step))


class Margins(torch.nn.Module):
    """Two classes whose margin is 1 - gain, where `gain` gives the gain of a number."""

    def __init__(self, gain) -> None:
        super().__init__()
        self.gain, self.unused = gain, torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        numbers = images.contiguous().view(torch.int64).flatten()
        half = torch.atanh(1.0 - self.gain(numbers).double().clamp(0.0, 1.0)).float().clamp(max=50.0)
        return torch.stack([half, -half], dim=1)


def spread(numbers: torch.Tensor) -> torch.Tensor:
    """Most gains small, in no order."""
    return ((numbers * 0x9E3779B1 % (1 << 20)) / float(1 << 20)) ** 6


def asks(pool, model, chunk: int = 256, settings=EXHAUSTIVE):
    searcher = LocalSearcher(chunk, settings=settings, options=PIXELS)
    return lambda request: searcher.search(pool, model, request)


def drawn(pool, model, k: int, *, seed: int = 0, taken=(), share: float = 0.05, ask=None, **fields) -> stream.Drawn:
    taken = np.array(taken, dtype=np.int64)
    return stream.draw_streamed(
        pool,
        ask or asks(pool, model),
        GainsRequest(taken=taken),
        k=k,
        mistakes=share * (len(pool) - len(taken)),
        w=None,
        shrink=fields.get("shrink", False),
        generator=np.random.default_rng(seed),
    )


def expected(gains: np.ndarray, numbers: np.ndarray, k: int, mistakes: float, seed: int) -> np.ndarray:
    """The draw from a list of gains: the lowest keys of each bin."""
    generator = np.random.default_rng(seed)
    keys = keys_of(numbers, int(generator.integers(1 << 62, size=2)[0]))
    wanted = stream.round_bins(inclusion_of_bins(histogram(gains), k, mistakes), histogram(gains), generator)
    bins, chosen = bins_of(gains), []
    for number in np.flatnonzero(wanted):
        rows = np.flatnonzero(bins == number)
        chosen += numbers[rows[np.argsort(keys[rows])][: wanted[number]]].tolist()
    return np.sort(chosen)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.6])
@pytest.mark.parametrize("k", [1, 60, 3000])
def test_the_draw_is_that_from_the_list_of_gains(k: int, share: float) -> None:
    pool, model = Table(20_000), Margins(spread)
    taken = np.arange(0, 9000, 3)
    found = asks(pool, model, 4096)(GainsRequest(taken=taken))
    got = drawn(pool, model, k, seed=k, taken=taken, share=share, ask=asks(pool, model, 4096))
    want = expected(found.gains, found.numbers(np.arange(17_000)), k, share * 17_000, k)
    assert got.held.numbers.tolist() == want.tolist() and len(want) == k
    assert not np.isin(got.held.numbers, taken).any()
    np.testing.assert_array_equal(got.held.gains, found.gains[np.searchsorted(found.numbers(np.arange(17_000)), want)])
    assert got.passes == 20_000 + 1000  # one pass, and the pilot


@pytest.mark.storm
def test_marginals_and_pairs_over_many_draws() -> None:
    gains = np.array([0.9, 0.9, 0.9, 0.5, 0.5, 0.3, 0.2, 0.2, 0.2, 0.2, 0.05, 0.7], dtype=np.float32)
    counts, bins, times = histogram(gains), bins_of(gains), 2000
    q = inclusion_of_bins(counts, 5, 2.0, 0.5)
    assert 0 < q[bins].min() < 1 or q[bins].min() == 0
    generator, hits = np.random.default_rng(0), np.zeros((times, len(gains)))
    for row in hits:
        keys = keys_of(np.arange(12), int(generator.integers(1 << 62)))
        held = Held(numbers=np.arange(12), keys=keys, gains=gains)
        found = Binned(counts=counts, rows=held, evaluated=0, exhaustive=0, guessed=False)
        chosen = found.lowest(stream.round_bins(q, counts, generator))
        assert len(chosen) == 5
        row[chosen.numbers] = 1
    q = q[bins]
    assert (abs(hits.mean(axis=0) - q) <= 4.5 * np.sqrt(q * (1 - q) / times) + 1e-12).all()
    for i, j in itertools.combinations(range(len(gains)), 2):
        assert (hits[:, i] * hits[:, j]).mean() <= q[i] * q[j] + 4.5 * 0.5 / np.sqrt(times)


@pytest.mark.parametrize(
    "gain",
    [
        lambda numbers: numbers * 0.0,
        lambda numbers: numbers * 0.0 + 0.3,
        lambda numbers: (numbers % 100 == 0) * 1.0,
        lambda numbers: 1.0 - 1e-5 * (numbers % 97),
        lambda numbers: 1e-6 * (numbers % 13),
    ],
    ids=["all 0", "all equal", "most 0", "near 1", "near 0"],
)
@pytest.mark.parametrize("k", [0, 1, 50, 2999, 3000])
def test_extremes(gain, k: int) -> None:
    """Among them k = n, and taken groups."""
    for share in (0.0, 0.05, 1.0):
        found = drawn(Table(3100), Margins(gain), k, taken=range(100), share=share)
        assert len(found.held) == len(set(found.held.numbers.tolist())) == k
        assert k == 0 or (found.held.numbers.min() >= 100 and found.support >= k)


def test_it_shrinks_like_the_draw_from_a_list() -> None:
    pool, model = Table(3000), Margins(lambda numbers: (numbers < 5) * 0.9 + 0.01)
    gains = bin_values()[bins_of(asks(pool, model)(GainsRequest()).gains)].astype(np.float32)
    found = drawn(pool, model, 2998, share=0.1, shrink=True)
    assert found.draws == len(found.held) == most_draws(gains, 300, None) < 2998


# --- the same for any order, number and size of tasks


@pytest.mark.parametrize("chunk", [256, 1024, 20_000])
def test_the_draw_is_the_same_for_any_size_and_order_of_tasks_and_when_they_are_redone(chunk: int) -> None:
    pool, model = Table(20_000), Margins(spread)
    reference = drawn(pool, model, 200, ask=asks(pool, model, 4096)).held
    assert drawn(pool, model, 200, ask=asks(pool, model, chunk)).held.numbers.tolist() == reference.numbers.tolist()

    def shuffled(request):
        def run_stage(stage, merge):
            parts = {}

            class Keep:
                bound, evaluated = 1.0, 0

                def add(self, number, part):
                    parts[number] = part

            collect(stage, Keep())
            for number in np.random.default_rng(1).permutation(len(stage)):
                merge.add(int(number), parts[number])

        return request.perform(
            pool, SearchContext(run_stage=run_stage, cut=Cut(chunk=chunk, batch=256), settings=EXHAUSTIVE)
        )

    def collect(stage, merge):
        network = Forward(model, "cpu", PIXELS)
        for number in range(len(stage)):
            stage.run(pool, network, number, 1.0)  # lost with its worker
            merge.add(number, stage.run(pool, network, number, 1.0))

    assert drawn(pool, model, 200, ask=shuffled).held.numbers.tolist() == reference.numbers.tolist()


def test_a_pilot_that_misleads_costs_a_pass_and_changes_nothing(monkeypatch) -> None:
    pool, model = Table(20_000), Margins(spread)
    reference = drawn(pool, model, 200, ask=asks(pool, model, 4096))
    for limits, most in ((np.zeros(BINS), 10), (np.ones(BINS), 300), (np.full(BINS, 0.01), 10_000)):
        monkeypatch.setattr(stream, "first_limits", lambda *_, limits=limits, most=most: (limits, most))
        again = drawn(pool, model, 200, ask=asks(pool, model, 4096))
        assert again.held.numbers.tolist() == reference.held.numbers.tolist()
        assert again.passes == reference.passes + 20_000


# --- a whole strategy


@pytest.fixture
def listed_up_to(monkeypatch):
    return lambda most: monkeypatch.setattr(rad, "MOST_LISTED", most)


@pytest.fixture(scope="module")
def mixes():
    images = torch.randint(0, 256, (40, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model = build_model("lenet5", (1, 28, 28), 10, seed=1)
    with torch.no_grad():
        head(model).weight.mul_(30.0)  # a fresh network finds all classes alike
    return MixupPool(images, np.linspace(0.3, 0.7, 11).round(2).tolist()), model


def choose(mixes, strategy: str, ask, k: int = 40, taken=(), **fields):
    task = Task(
        pool=mixes[0], k=k, taken=np.array(taken, np.int64), generator=np.random.default_rng(2), ask=ask, known=None
    )
    return select(strategies.parse({"strategy": strategy, "m": 0.2, **fields}), task)


@pytest.mark.storm
@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("rad", GUESSING),
        ("rad-pairs", EXHAUSTIVE),
        pytest.param("rad", EXHAUSTIVE, marks=pytest.mark.storm),
        pytest.param("rad-pairs", GUESSING, marks=pytest.mark.storm),
    ],
    ids=["rad-interpolated", "rad-pairs-exhaustive", "rad-exhaustive", "rad-pairs-interpolated"],
)
def test_a_strategy_over_the_limit_chooses_as_below_it(strategy, settings, mixes, listed_up_to) -> None:
    pool, model = mixes
    ask = asks(pool, model, 2048, settings)
    listed = choose(mixes, strategy, ask)
    listed_up_to(500)
    chosen = choose(mixes, strategy, ask)
    facts, before = chosen.search.facts(), listed.search.facts()
    assert len(chosen.ids) == len(set(chosen.ids.tolist())) == 40
    for name in ("rad_m", "rad_n", "rad_w", "exhaustive"):
        assert facts[name] == before[name]
    assert facts["rad_support"] == pytest.approx(before["rad_support"], rel=0.02)
    assert facts["passes"] == strategies.parse({"strategy": strategy}).passes(pool, 40, settings)
    exact = ask(ScoresRequest(ids=chosen.ids)).rows[:, 0]
    np.testing.assert_allclose(chosen.scores, exact, atol=1e-5)
    assert ("guess_error" in facts) == (settings is GUESSING)
    more = choose(mixes, strategy, ask, taken=chosen.ids)
    each = pool.group_size if strategy == "rad-pairs" else 1
    assert not set((more.ids // each).tolist()) & set((chosen.ids // each).tolist())


@pytest.mark.storm
@pytest.mark.parametrize("workers", [pytest.param(1, marks=(pytest.mark.storm, pytest.mark.long)), 2])
def test_workers_of_ray_draw_the_same(workers: int, ray_local, mixes, listed_up_to) -> None:
    from actors.scoring import RaySearcher

    pool, model = mixes
    listed_up_to(500)
    reference = choose(mixes, "rad", asks(pool, model, 2048, GUESSING), taken=[3, 500])
    searcher = RaySearcher(workers, chunk=1024, settings=GUESSING, options=PIXELS)
    try:
        found = choose(mixes, "rad", lambda request: searcher.search(pool, model, request), taken=[3, 500])
    finally:
        searcher.close()
    assert found.ids.tolist() == reference.ids.tolist()
    assert found.scores.tobytes() == reference.scores.tobytes()


# --- memory


@pytest.mark.storm
def test_what_the_driver_holds_does_not_grow_with_the_pool() -> None:
    """Beside the arrays of one task."""
    peaks = []
    for size in (1 << 14, 1 << 19):
        pool, model = Table(size), Margins(spread)
        ask = asks(pool, model, 1 << 12)
        drawn(pool, model, 10, ask=ask)  # what is imported and kept at the first use
        tracemalloc.start()
        found = drawn(pool, model, 300, ask=ask)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(found.held) == 300
    assert peaks[1] < 1.5 * peaks[0] + (1 << 20)


def test_limits_let_a_few_times_k_of_a_billion_groups_through() -> None:
    """How many candidates the driver will hold for a pool of 2^30 groups, from a pilot: no task of it is run."""
    rng, k, n = np.random.default_rng(0), 20_000, 1 << 30
    gains = rng.random(stream.pilot_size(n)).astype(np.float32) ** 6
    limits, most = stream.first_limits(histogram(gains), n, k, 0.05 * n, None)
    bins = bins_of(gains)
    passing = float(limits[bins].mean()) * n
    assert k < passing < most < 40 * k
    assert 20 * most < stream.driver_bytes(Table(n), k) < 100 << 20
    listed = strategies.parse({"strategy": "rad-pairs"}).driver_bytes
    assert listed(Table(1 << 25), k) == 8 << 25 and listed(Table(n), k) == stream.driver_bytes(Table(n), k)
    assert BinnedRequest(gains=GainsRequest()).passes(Table(n), EXHAUSTIVE) == n
